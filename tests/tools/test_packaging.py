"""The files that build the environment say the same; the set-up helper explains itself."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.tiny import load_tool
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools.bench.harness import table

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    REPOSITORY / "CHANGELOG.md",
]
CONDA_NAMES = {"torch": "pytorch"}  # where conda-forge's name is another one
ENVIRONMENT_GROUPS = ("course", "dev", "fast-io")


exam_over_seeds = load_tool("exam_over_seeds")
setup_env = load_tool("setup_env")
clean = load_tool("clean")


def project():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(*groups):
    """The core and the named extras: {canonical name: (version range, environment marker)}."""
    lines = list(project()["dependencies"])
    for group in groups:
        lines += project()["optional-dependencies"][group]
    return named_ranges(lines)


def named_ranges(lines):
    return {
        canonicalize_name(r.name): (str(r.specifier), str(r.marker or ""))
        for r in map(Requirement, lines)
    }


def pins():
    """constraints.txt as {canonical name: version}."""
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in pinned}


def conda_list():
    """environment.yml in the same form; read by lines, as it has one package a line."""
    text = (REPOSITORY / "environment.yml").read_text(encoding="utf-8")
    entries = re.findall(r"^ +- (\w[^:\n]*)$", text.split("dependencies:")[1], flags=re.MULTILINE)
    return named_ranges(entries)


def test_environment_yml_lists_what_pyproject_lists():
    ours = requirements(*ENVIRONMENT_GROUPS)
    expected = {CONDA_NAMES.get(name, name): wanted for name, wanted in ours.items()}
    expected |= {"python": (project()["requires-python"], ""), "pip": ("", "")}
    assert conda_list() == expected
    assert tuple(setup_env.BASE_EXTRAS) == ENVIRONMENT_GROUPS


def test_constraints_pin_every_requirement_inside_its_range():
    pinned = pins()
    for name, (specifier, _) in requirements(*project()["optional-dependencies"]).items():
        assert name in pinned, f"constraints.txt has no pin for {name}"
        version = str(pinned[name].specifier).removeprefix("==")
        assert SpecifierSet(specifier).contains(version), f"{name} {version} is not {specifier}"


def test_constraints_pin_exact_versions_for_every_platform():
    for pin in pins().values():
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), (
            f"{pin}: want ==VERSION without +cpu"
        )
    assert str(pins()["torch"].specifier) == "==2.13.0"


def test_every_dependency_says_why_it_is_there():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for line in re.findall(r'^    "[a-z._-]+>=.*$', text, flags=re.MULTILINE):
        assert "# " in line, line


def test_fact_tables_are_package_data():
    data = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]
    assert "course/world/tables/*" in data["package-data"]["tinyllm_lib"]
    assert any((REPOSITORY / "tinyllm_lib" / "course" / "world" / "tables").iterdir())


def make_targets():
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    return set(re.search(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)[1].split())


def test_every_make_target_named_in_the_docs_exists():
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCS)
    named = set(re.findall(r"(?:^|`)(?:[A-Z_]+=\S+ )*make ([a-z-]+)", text, flags=re.MULTILINE))
    missing = named - make_targets()
    assert not missing, f"the docs name targets that the Makefile lacks: {missing}"


def test_make_help_explains_every_target_on_one_screen():
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    printed = re.findall(r'^\t@echo(?: "(.*)")?$', text, flags=re.MULTILINE)
    assert len(printed) <= 24 and max(map(len, printed)) <= 100
    told = {line.split()[1] for line in printed if line.startswith("make ")}
    assert told == make_targets() - {"help"}


def test_each_make_target_has_a_python_command_that_is_there():
    page = (REPOSITORY / "docs/contributing.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", page, flags=re.MULTILINE))
    assert set(rows) == make_targets() - {"help"}
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8") + page
    for path in re.findall(r"(?:tools|tests)/[\w/]+\.py", text):
        assert (REPOSITORY / path).is_file(), path
    for module in re.findall(r"-m ((?:tinyllm_lib|tools)[\w.]*)", text):
        path = REPOSITORY / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_hands_on_what_it_is_given_as_one_word():
    given = ["FROM=0 5", "HOST=a b", "PORT=1 2", "PYTHON=/my python/bin/python3"]
    commands = subprocess.run(
        ["make", "-n", "course", "demo", *given],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    words = [shlex.split(line) for line in commands.splitlines() if line.strip()]
    for word in ("0 5", "a b", "1 2", "/my python/bin/python3"):
        assert any(word in line for line in words), commands


@pytest.mark.skipif(os.name != "posix", reason="Windows names folders in one way")
def test_a_clone_is_the_same_under_every_locale(tmp_path):
    clone = tmp_path / "我的 课"
    (clone / "tools").mkdir(parents=True)
    for name in ("tools/setup_env.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, clone / name)
    found = set()
    for env in ({"PYTHONUTF8": "1"}, {"PYTHONUTF8": "0", "LC_ALL": "C"}):
        code = (
            "import setup_env as s; print(s.fingerprint(s.REPOSITORY, [], ''),"
            " s.name_of(s.REPOSITORY).encode())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=clone / "tools",
            env={**os.environ, **env},
            capture_output=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1 and repr(str(clone).encode()) in found.pop().decode()


def test_ci_runs_make_test():
    script = REPOSITORY / ".ci" / "run"
    assert "make test" in script.read_text(encoding="utf-8")
    workflow = (REPOSITORY / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert "bash .ci/run" in workflow and '"3.11"' in workflow


def test_old_python_is_told_which_version_is_needed():
    message = setup_env.too_old_message((3, 9), which=lambda name: None)
    assert "3.9" in message and "3.11 or newer" in message and "conda" in message


def test_old_python_is_told_of_a_newer_one_on_the_machine():
    message = setup_env.too_old_message(
        (3, 9), which=lambda name: name == "python3.12", version_of=lambda name: (3, 12)
    )
    assert "make setup PYTHON=python3.12" in message


def test_setup_does_nothing_when_nothing_changed(tmp_path, monkeypatch, capfd):
    commands = []

    def fake_run(command, doing):
        commands.append([str(part) for part in command])
        if "venv" in commands[-1]:
            python = setup_env.venv_python(tmp_path / "env")
            python.parent.mkdir(parents=True)
            python.write_text("not run")

    monkeypatch.setattr(setup_env, "run", fake_run)
    arguments = ["--venv", str(tmp_path / "env")]
    assert (
        setup_env.main(
            [*arguments, "--extras", "hub", "--torch-index", "https://index.example/cpu"]
        )
        == 0
    )
    assert any(
        "https://index.example/cpu" in command and command[-1] == "torch" for command in commands
    )
    assert any(command[-1] == ".[course,dev,fast-io,hub]" for command in commands)
    assert any("ipykernel" in command and "--sys-prefix" in command for command in commands)
    config = tmp_path / "env" / "etc" / "ipython" / "ipython_kernel_config.py"
    assert "import tinyllm_lib" in config.read_text(encoding="utf-8")
    done = len(commands)
    assert setup_env.main(arguments) == 0  # the extras of the first call stay
    assert len(commands) == done


def test_a_failed_step_says_what_it_was(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(setup_env.subprocess, "call", lambda *args, **kwargs: 7)
    assert setup_env.main(["--venv", str(tmp_path / "env")]) == 1
    error = capsys.readouterr().err
    assert "making" in error and "exit code 7" in error and "make setup" in error


def test_clean_keeps_the_environment_and_what_was_trained(tmp_path):
    kept = (".venv/lib/__pycache__", "workspace/build")
    for name in (*kept, "tinyllm_lib/__pycache__", "build", "tinyllm.egg-info"):
        (tmp_path / name).mkdir(parents=True)
    found = {str(path.relative_to(tmp_path)) for path in clean.leftovers(tmp_path)}
    assert found == {str(Path("tinyllm_lib/__pycache__")), "build", "tinyllm.egg-info"}


def test_setup_helper_runs_without_installed_packages():
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(REPOSITORY / "tools" / "setup_env.py"), "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--torch-index" in done.stdout


def test_the_exam_that_readme_and_notebook_show_is_the_measured_one():
    measured = json.loads((REPOSITORY / "figures/data/seeds.json").read_text(encoding="utf-8"))
    assert len(measured["seeds"]) >= 3
    table = exam_over_seeds.table(measured["seeds"])
    assert table in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    notebook = json.loads((REPOSITORY / "notebooks/06_sft.ipynb").read_text(encoding="utf-8"))
    assert any(
        table in "".join(cell["source"])
        for cell in notebook["cells"]
        if cell["cell_type"] == "markdown"
    )


def test_the_rates_that_docs_show_are_the_measured_ones():
    page = (REPOSITORY / "docs/speed.md").read_text(encoding="utf-8")
    for path in sorted((REPOSITORY / "figures/bench").glob("*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))
        assert table(rows) in page, path.name
        assert f"{rows[0]['hardware']}, {rows[0]['date']}" in page


def test_the_readme_is_read_in_five_minutes_and_leads_to_every_page_of_docs():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    for path in DOCS[1:]:
        assert f"]({path.relative_to(REPOSITORY).as_posix()})" in readme, path.name


def markdown_pages():
    """(path, text) of every page with links: README, docs, glossary, the Markdown cells of the
    notebooks.
    """
    for path in (*DOCS, *sorted((REPOSITORY / "notebooks").glob("*.md"))):
        yield path, path.read_text(encoding="utf-8")
    for path in sorted((REPOSITORY / "notebooks").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield (
            path,
            "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"),
        )


def test_every_link_to_a_file_leads_to_one():
    seen = 0
    for path, text in markdown_pages():
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if not target.startswith(("http://", "https://", "data:")):
                assert (path.parent / target).exists(), f"{path.name}: {target}"
                seen += 1
    assert seen > 20


def test_every_term_of_the_glossary_stands_in_the_notebook_it_names():
    texts = {
        path.relative_to(REPOSITORY).as_posix(): text.lower() for path, text in markdown_pages()
    }
    rows = re.findall(
        r"^\| (.+?) \| .+ \| \[(\d\d)\]\((.+?)\) \|$", texts["notebooks/glossary.md"], re.M
    )
    assert len(rows) > 30 and [term for term, *_ in rows] == sorted(term for term, *_ in rows)
    for term, number, notebook in rows:
        assert notebook.startswith(number)
        assert any(
            name.strip(" ()") in texts[f"notebooks/{notebook}"] for name in re.split(r"[,(]", term)
        ), f"{term} is not in {notebook}"


def reading_minutes(notebook):
    """120 words, 20 lines of code or three pictures a minute, for a reader in a second language; to
    the nearest 5.
    """
    text = {
        kind: "\n".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind)
        for kind in ("markdown", "code")
    }
    words = len(re.sub(r"<details>.*?</details>", "", text["markdown"], flags=re.DOTALL).split())
    pictures = sum(
        "image/png" in output.get("data", {})
        for c in notebook["cells"]
        for output in c.get("outputs", [])
    )
    return 5 * round((words / 120 + len(text["code"].splitlines()) / 20 + pictures / 3) / 5)


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "notebooks").glob("0*.ipynb")), ids=lambda path: path.stem
)
def test_each_notebook_says_how_long_it_takes_to_read(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    found = re.search(
        r"\*\*Minutes:\*\* to read, about (\d+); to run, ", "".join(notebook["cells"][0]["source"])
    )
    assert found and abs(int(found[1]) - reading_minutes(notebook)) <= 5, (
        found and found[1],
        reading_minutes(notebook),
    )


def test_stored_html_has_no_drawing_that_a_stranger_s_jupyterlab_would_take_out():
    pages = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (REPOSITORY / "notebooks").glob("0*.ipynb")
    ]
    stored = [
        "".join(output["data"]["text/html"])
        for page in pages
        for cell in page["cells"]
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    assert any("data:image/svg+xml" in html for html in stored) and not any(
        "<svg" in html for html in stored
    )
