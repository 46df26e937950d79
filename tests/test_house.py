"""How the library is built: a folder for each notebook, which knows only those above it."""

import ast
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from helpers.tiny import ROOT, start_python

LIBRARY = ROOT / "tinyllm_lib"
# The table of contents, as in pyproject.toml's contract. `generate` stands above `train`, which
# prints samples while it trains.
CORE = ("data", "tokenizer", "dataset", "model", "generate", "train", "launch", "evaluate", "share")
FOLDERS = (*CORE, "course")
SEVEN = {"torch", "numpy", "tokenizers", "transformers", "safetensors", "tqdm", "regex"}
# Named in an extra of pyproject.toml, imported where they are asked for, and an error that says
# what to install where they are missing.
EXTRAS = {
    "IPython": "launch",  # where a launch shows itself in a notebook
    "cloudpickle": "launch",
    "gguf": "share",
    "huggingface_hub": "data share",
    "modelscope": "data share",
    "openai": "share",
    "rapidgzip": "data",
}


def python_files(folder):
    return sorted((LIBRARY / folder).rglob("*.py"))


def line_counts():
    """{folder: lines}, as `wc -l` counts them; the core is all that stands outside of course/."""
    counts = {
        name: sum(len(p.read_text(encoding="utf-8").splitlines()) for p in python_files(name))
        for name in (*FOLDERS, ".")
    }
    return counts | {"core": counts.pop(".") - counts["course"]}


# As the design has it, and 220 for what GPUs asked for: fp16 with its scaler, flash attention
# within documents, recorded sampling, checkpoints beside training, rows kept on the disk.
MOST_LINES = {"core": 6500 + 220, "launch": 700}


def test_the_core_is_thin(capsys):
    counts = line_counts()
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:<10} {lines:>6} lines" for name, lines in counts.items()))
    too_many = {name: counts[name] for name, most in MOST_LINES.items() if counts[name] > most}
    assert not too_many


def test_the_listing_is_the_table_of_contents():
    found = {path.name for path in LIBRARY.iterdir() if path.name != "__pycache__"}
    assert found == {*FOLDERS, "__init__.py"}


def test_each_folder_knows_only_those_above_it():
    """The contracts of pyproject.toml: `lint-imports` draws them with `lint-imports --verbose`."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_a_folder_offers_stands_in_its_docstring_a_sentence_each(folder):
    tree = ast.parse((LIBRARY / folder / "__init__.py").read_text(encoding="utf-8"))
    offered = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    told = dict(re.findall(r"^    (\w+): (\S.*)", ast.get_docstring(tree), flags=re.MULTILINE))
    assert offered == set(told)


def imports(path):
    """(line, module) of every import in a file, also of those within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module


@pytest.mark.parametrize("folder", FOLDERS)
def test_other_folders_are_imported_by_what_they_offer(folder):
    """`from tinyllm_lib.dataset import PackedDataset`, never from a file inside a folder."""
    inside = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in python_files(folder)
        for line, module in imports(path)
        if module.startswith("tinyllm_lib.")
        and module.split(".")[1] != folder
        and module.count(".") > 1
    ]
    assert not inside


def test_notebooks_import_what_folders_offer():
    pattern = re.compile(r"from (tinyllm_lib[\w.]*) import")
    allowed = {
        "tinyllm_lib.course.world",
        "tinyllm_lib.course.exercises",
        *(f"tinyllm_lib.{name}" for name in FOLDERS),
    }
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        found = set(pattern.findall(path.read_text(encoding="utf-8")))
        assert found <= allowed, path.name


def test_the_core_imports_nothing_but_its_seven_packages():
    for folder in CORE:
        for path in python_files(folder):
            for line, module in imports(path):
                top = module.split(".")[0]
                if top in sys.stdlib_module_names or top == "tinyllm_lib" or top in SEVEN:
                    continue
                folders = EXTRAS.get(top, "").split()
                assert folder in folders, f"{path.relative_to(ROOT)}:{line}: {module}"


def bare_environment(folder):
    """A folder with links to the seven packages and what they need, and to nothing else."""
    folder.mkdir()
    found, todo = set(), [*SEVEN]
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            files = metadata.files(name)
        except metadata.PackageNotFoundError:  # for another platform
            continue
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(files[0].locate().parents[len(files[0].parts) - 1] / top)
        needs = [need for need in metadata.requires(name) or [] if "extra ==" not in need]
        todo += [re.match(r"[\w.-]+", need)[0] for need in needs]
    return folder


def test_the_core_trains_where_only_its_seven_packages_are(tmp_path):
    """From texts to a run that writes, with no other package of this environment."""
    program = (
        "import importlib, importlib.util, pathlib, sys\n"
        "for name in ('matplotlib', 'ipywidgets', 'IPython', 'cloudpickle', 'gguf'):\n"
        "    assert importlib.util.find_spec(name) is None, name\n"
        f"for folder in {CORE!r}: importlib.import_module('tinyllm_lib.' + folder)\n"
        "from tinyllm_lib.dataset import write_pretrain_tokens\n"
        "from tinyllm_lib.generate import TextGenerator\n"
        "from tinyllm_lib.tokenizer import train_tokenizer\n"
        "from tinyllm_lib.train import TrainConfig, train\n"
        "texts = ['法国的首都是巴黎。', 'the cat and the dog', '1+1等于2。'] * 40\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "tokenizer = train_tokenizer(texts, root / 'tokenizer', vocab_size=300)\n"
        "write_pretrain_tokens(texts, tokenizer, root / 'tokens' / 'train')\n"
        "run = train(TrainConfig(data_path=str(root / 'tokens'), out_dir=str(root / 'run'),\n"
        "    tokenizer_path=str(root / 'tokenizer'), dim=32, n_layers=1, n_heads=2, n_kv_heads=1,\n"
        "    max_seq_len=32, batch_size=4, steps=2))\n"
        "print(TextGenerator(run).pretrain_sample('法国', max_new_tokens=2))\n"
    )
    packages = f"{bare_environment(tmp_path / 'packages')}{os.pathsep}{ROOT}"
    process = start_python("-S", "-c", program, tmp_path, PYTHONPATH=packages)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
