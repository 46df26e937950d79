from pathlib import Path
from types import SimpleNamespace

import pytest

import tinyllm_lib
from tinyllm_lib.course import Workspace, get_workspace
from tinyllm_lib.course.workspace import _default_base


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.delenv("TINYLLM_WORKSPACE", raising=False)
    monkeypatch.delenv("TINYLLM_PROFILE", raising=False)


def test_the_tree_of_the_design(tmp_path):
    workspace = Workspace(tmp_path / "ci")
    assert workspace.raw == tmp_path / "ci" / "raw"
    assert workspace.tokenizer == tmp_path / "ci" / "tokenizer"
    assert workspace.tokens("sft", "val") == tmp_path / "ci" / "tokens" / "sft" / "val"
    assert workspace.run("chat") == tmp_path / "ci" / "runs" / "chat"
    assert not list(tmp_path.iterdir())  # asking creates nothing


def test_default_lies_beside_the_package_in_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    repository = Path(tinyllm_lib.__file__).resolve().parent.parent
    assert get_workspace().root == repository / "workspace" / "laptop"


def test_an_installed_package_uses_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    installed = tmp_path / "env" / "lib" / "site-packages" / "tinyllm_lib"
    assert _default_base(installed) == Path.cwd() / "workspace"


def test_environment_moves_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYLLM_WORKSPACE", str(tmp_path / "a b"))
    monkeypatch.setenv("TINYLLM_PROFILE", "ci")
    assert get_workspace().root == tmp_path.resolve() / "a b" / "ci"
    assert get_workspace("gpu").root.name == "gpu"
    assert get_workspace(SimpleNamespace(name="full")).root.name == "full"


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", "..", "C:"])
def test_a_name_cannot_leave_the_workspace(tmp_path, name):
    with pytest.raises(ValueError, match="one folder name"):
        get_workspace(name)
    with pytest.raises(ValueError, match="one folder name"):
        Workspace(tmp_path).run(name)
