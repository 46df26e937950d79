"""Badges for a published copy: both links lead to this notebook there, and the install cell knows
when it is not needed.
"""

import json
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from helpers.tiny import ROOT, load_tool
from packaging.requirements import Requirement

badges = load_tool("badges")
ADDRESS = "https://github.com/someone/their-course"


@pytest.fixture
def copy(tmp_path):
    """The notebooks, to be written to."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    return tmp_path


def cells(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    return {cell.id: cell.source for cell in notebook.cells}


def test_every_notebook_gets_badges_that_lead_to_itself(copy):
    before = {path.name: list(cells(path)) for path in (copy / "notebooks").glob("0*.ipynb")}
    assert badges.main([ADDRESS + ".git"], copy) == 0
    for name, ids in before.items():
        after = cells(copy / "notebooks" / name)
        assert list(after) == [ids[0], "badges", "install", *ids[1:]]
        assert (
            f"(https://colab.research.google.com/github/someone/their-course/blob/main/notebooks/{name})"
            in after["badges"]
        )
        assert (
            f"(https://mybinder.org/v2/gh/someone/their-course/main?labpath=notebooks/{name})"
            in after["badges"]
        )


def test_a_second_run_replaces_the_first_and_changes_nothing_else(copy):
    path = copy / "notebooks" / "05_pretrain.ipynb"
    original = json.loads(path.read_text("utf-8"))
    badges.main([ADDRESS], copy)
    badges.main([ADDRESS, "--branch", "spring"], copy)
    after = json.loads(path.read_text("utf-8"))
    assert "/blob/spring/" in "".join(
        after["cells"][1]["source"]
    ) and "/blob/main/" not in path.read_text("utf-8")
    del after["cells"][1:3]
    assert after == original


def test_the_install_cell_does_nothing_here_and_names_an_extra_that_exists(copy):
    badges.main([ADDRESS], copy)
    source = cells(copy / "notebooks" / "01_data.ipynb")["install"]
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wanted = Requirement(re.search(r'course = "(.+)"', source)[1])
    assert (
        wanted.name == "tinyllm"
        and wanted.url == "git+https://github.com/someone/their-course@main"
    )
    assert f"{wanted.extras.pop()} = [" in (ROOT / "pyproject.toml").read_text("utf-8")


def test_another_address_is_refused(copy, capsys):
    with pytest.raises(SystemExit):
        badges.main(["https://example.com/a/b"], copy)
    assert "no address like https://github.com/OWNER/NAME" in capsys.readouterr().err
