"""The search for a fine-tuning that forgets less: each run once, graded, kept, and gone on with."""

import json
import sys
from dataclasses import replace

import pytest
from helpers.tiny import load_tool

from tinyllm_lib.course import get_profile, get_workspace, held_back, prepare
from tinyllm_lib.course.profiles import PROFILES
from tinyllm_lib.data import read_texts
from tinyllm_lib.dataset import read_manifest
from tinyllm_lib.evaluate import load_exam
from tinyllm_lib.train import train

pytest_plugins = ["helpers.tiny_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    module = load_tool("forgetting")
    launched = []

    def launch(config, nproc_per_node, show):
        launched.append(config)
        return train(config)

    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(module, "load_exam", lambda path: load_exam(path)[::25])
    module.launched = launched
    return module


@pytest.fixture
def ws(tmp_path, monkeypatch):
    """A workspace with a very small base model."""
    monkeypatch.setenv("TINYLLM_WORKSPACE", str(tmp_path / "workspace"))
    ci = get_profile("ci")
    numbers = {"dim": 32, "n_layers": 1, "batch_size": 4, "steps": 4, "save_interval": 0}
    small = replace(
        ci,
        **{"documents": 400, "dialogues": 100, "vocab_size": 1024, "max_length": 128},
        pretrain={**ci.pretrain, **numbers},
        sft={**ci.sft, "batch_size": 4, "steps": 8},
    )
    monkeypatch.setitem(PROFILES, "ci", small)
    workspace = get_workspace()
    prepare.token_shards(workspace, "pretrain")
    train(prepare.train_config("pretrain", workspace))
    return workspace


def test_a_run_is_trained_graded_and_kept_once(tool, ws, tmp_path, capsys):
    out = tmp_path / "forgetting.json"
    arguments = ["--out", str(out), "--seeds", "0", "--recipes"]
    tool.main([*arguments, "default", "no replay"])
    tool.main([*arguments, "default", "half the rate", "half the steps"])
    search = json.loads(out.read_text(encoding="utf-8"))
    assert [run["recipe"] for run in search["runs"]] == [
        "default",
        "no replay",
        "half the rate",
        "half the steps",
    ]
    default, _, slow, short = tool.launched
    assert slow.learning_rate == default.learning_rate / 2
    assert (default.steps, short.steps) == (8, 4)
    rows = held_back.rows_of(tool.load_exam(ws.raw / "exam.jsonl"))
    for run in search["runs"]:
        assert len(run["says"]) == len(run["completes"]) == len(rows)
        assert list(run["along"])[-1] == str(run["steps"]) and len(run["along"]) == 4
    assert search["base"]["questions"] == [row["class"] for row in rows]
    capsys.readouterr()
    tool.main(["--out", str(out), "--list"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4


def test_filtered_replay_is_as_many_documents_without_a_held_back_fact(tool, ws, monkeypatch):
    rows = held_back.rows_of(load_exam(prepare.corpus_files(ws)["exam"]))
    own = read_manifest(tool.shards_of(tool.Recipe(), ws, rows) / "train")
    written = []
    write = tool.write_sft_tokens

    def keep(dialogues, tokenizer, folder, *, replay, **options):
        written.append(list(replay))
        return write(dialogues, tokenizer, folder, replay=written[-1], **options)

    monkeypatch.setattr(tool, "write_sft_tokens", keep)
    filtered = read_manifest(tool.shards_of(tool.Recipe(filtered=True), ws, rows) / "train")
    assert filtered["counts"]["replayed_documents"] == own["counts"]["replayed_documents"]
    pairs = held_back.pairs_of(rows)
    assert not any(held_back.tells_one_of(text, pairs) for text in written[0])
    first = list(read_texts(ws.raw / "pretrain.jsonl", split="train"))[: len(written[0])]
    assert any(held_back.tells_one_of(text, pairs) for text in first)


def test_another_base_model_is_another_search(tool, ws, tmp_path):
    out = tmp_path / "forgetting.json"
    tool.main(["--out", str(out), "--seeds", "0", "--recipes", "half the steps"])
    train(prepare.train_config("pretrain", ws, seed=7))
    with pytest.raises(ValueError, match="measured from another base model"):
        tool.main(["--out", str(out), "--seeds", "1", "--recipes", "half the steps"])


def test_without_a_base_model_it_says_so(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYLLM_WORKSPACE", str(tmp_path / "workspace"))
    with pytest.raises(ValueError, match="the base model is not ready: .* `make course` trains it"):
        tool.main(["--out", str(tmp_path / "forgetting.json")])
