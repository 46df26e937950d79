"""What a teacher hands out: unpacked elsewhere, it spares the class the training."""

import json
import sys
import zipfile

import pytest
from helpers.tiny import load_tool

from tinyllm_lib.checkpoint import latest_checkpoint, step_folders
from tinyllm_lib.train import train
from tinyllm_lib.workspace import get_workspace

pytest_plugins = ["helpers.tiny_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def handout(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    return load_tool("handout")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYLLM_PROFILE", "ci")
    monkeypatch.setenv("TINYLLM_WORKSPACE", str(tmp_path / "teacher"))
    return get_workspace()


def test_it_holds_both_runs_and_what_they_were_made_of(handout, workspace, tiny_config, tmp_path, capsys, monkeypatch):
    for folder in (workspace.raw, workspace.tokenizer, workspace.root / "tokens" / "pretrain"):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.name)
    for name in ("pretrain", "chat", "chat_no_mask"):
        config = tiny_config(workspace.run(name), save_interval=1, keep_last=3, dtype="auto")
        saved = json.loads((train(config) / "config.json").read_text("utf-8"))
        saved["resolved"] |= {"dtype": "bfloat16", "device": "cuda"}  # the teacher's machine has a GPU, those of the class have none
        (workspace.run(name) / "config.json").write_text(json.dumps(saved), "utf-8")
    assert len(step_folders(workspace.run("chat"))) > 1
    monkeypatch.setattr(sys, "argv", ["handout.py", str(tmp_path / "class.zip")])
    assert handout.main() == 0 and "Unpack it in the folder of the clone" in capsys.readouterr().out

    with zipfile.ZipFile(tmp_path / "class.zip") as packed:
        packed.extractall(tmp_path / "clone")
    monkeypatch.setenv("TINYLLM_WORKSPACE", str(tmp_path / "clone" / "workspace"))
    theirs = get_workspace()
    assert (theirs.raw / "file").read_text() == "raw" and (theirs.tokenizer / "file").is_file()
    assert sorted(path.name for path in (theirs.root / "runs").iterdir()) == ["chat", "pretrain"]
    for name in ("chat", "pretrain"):
        assert [latest_checkpoint(theirs.run(name)).name] == [f.name for f in step_folders(theirs.run(name))]
    train(tiny_config(theirs.run("chat"), save_interval=1, keep_last=3, dtype="auto"))
    assert "Finished" in capsys.readouterr().out.splitlines()[-1] and len(step_folders(theirs.run("chat"))) == 1, "it trained again"


def test_without_a_course_run_it_says_what_to_do_and_leaves_no_file(handout, workspace, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["handout.py", str(tmp_path / "class.zip")])
    assert handout.main() == 2
    assert "run `make course` first" in capsys.readouterr().err and not list(tmp_path.glob("*.zip"))
