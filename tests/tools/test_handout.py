"""What a teacher hands out: unpacked elsewhere, it spares the class the training."""

import json
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny import load_tool

from tinyllm_lib.course import get_profile, get_workspace, prepare
from tinyllm_lib.course.profiles import PROFILES
from tinyllm_lib.model import latest_checkpoint, step_folders
from tinyllm_lib.train import train

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


@pytest.fixture
def taught(workspace, monkeypatch):
    """A workspace in which a very small course has run."""
    ci = get_profile("ci")
    numbers = {
        "dim": 32,
        "n_layers": 1,
        "batch_size": 4,
        "steps": 3,
        "save_interval": 1,
        "keep_last": 3,
    }
    small = replace(
        ci,
        documents=300,
        dialogues=100,
        vocab_size=400,
        max_length=64,
        pretrain={**ci.pretrain, **numbers},
        sft={**ci.sft, **numbers, "steps": 2},
    )
    monkeypatch.setitem(PROFILES, "ci", small)
    for stage in ("pretrain", "sft"):
        prepare.token_shards(workspace, stage)
        saved = json.loads(
            (train(prepare.train_config(stage, workspace)) / "config.json").read_text("utf-8")
        )
        # the teacher's machine has a GPU, those of the class have none
        saved["resolved"] |= {"dtype": "bfloat16", "device": "cuda"}
        (workspace.run(Path(saved["out_dir"]).name) / "config.json").write_text(
            json.dumps(saved), "utf-8"
        )
    return workspace


def test_on_the_other_machine_it_is_used_as_it_is(handout, taught, tmp_path, capsys, monkeypatch):
    assert len(step_folders(taught.run("chat"))) > 1
    monkeypatch.setattr(sys, "argv", ["handout.py", str(tmp_path / "class.zip")])
    assert handout.main() == 0 and "Unpack it in the folder of the clone" in capsys.readouterr().out

    with zipfile.ZipFile(tmp_path / "class.zip") as packed:
        packed.extractall(tmp_path / "clone")
    taught.root.rename(tmp_path / "gone")
    monkeypatch.setenv("TINYLLM_WORKSPACE", str(tmp_path / "clone" / "workspace"))
    theirs = get_workspace()
    before = {path: path.stat().st_mtime_ns for path in theirs.root.rglob("*") if path.is_file()}
    assert prepare.pretrained_run(theirs) == theirs.run("pretrain") and prepare.chat_run(
        theirs
    ) == theirs.run("chat")
    for stage in ("pretrain", "sft"):
        prepare.token_shards(theirs, stage)
    assert capsys.readouterr().out == ""
    assert {
        path: path.stat().st_mtime_ns for path in theirs.root.rglob("*") if path.is_file()
    } == before
    for name in ("chat", "pretrain"):
        assert [latest_checkpoint(theirs.run(name)).name] == [
            f.name for f in step_folders(theirs.run(name))
        ]

    train(prepare.train_config("sft", theirs))
    assert (
        "Finished" in capsys.readouterr().out.splitlines()[-1]
        and len(step_folders(theirs.run("chat"))) == 1
    ), "it trained again"
    assert sorted(path.name for path in (theirs.root / "runs").iterdir()) == ["chat", "pretrain"], (
        "a run was set aside"
    )


def test_a_run_that_was_stopped_is_not_handed_out(handout, taught, tmp_path, capsys, monkeypatch):
    shutil.rmtree(latest_checkpoint(taught.run("chat")))
    monkeypatch.setattr(sys, "argv", ["handout.py", str(tmp_path / "class.zip")])
    assert (
        handout.main() == 2
        and "the run chat is not for a class: it has come to step 1 of 2" in capsys.readouterr().err
    )
    assert not list(tmp_path.glob("*.zip"))


def test_without_a_course_run_it_says_what_to_do_and_leaves_no_file(
    handout, workspace, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["handout.py", str(tmp_path / "class.zip")])
    assert handout.main() == 2
    assert "run `make course` first" in capsys.readouterr().err and not list(tmp_path.glob("*.zip"))
