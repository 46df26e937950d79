"""The page for readers of the Chinese chapter: its code runs, and what it says of PyTorch is so."""

import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

PAGE = Path(__file__).resolve().parents[2] / "docs/from_the_script.md"


def block(about):
    """The Python block of the page that names this, as code."""
    text = PAGE.read_text(encoding="utf-8")
    [code] = [
        found for found in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if about in found
    ]
    return code


def test_a_begun_text_of_an_imported_model_goes_on_behind_its_begin_token(tmp_path, capsys):
    from helpers.tiny import TEXTS

    from tinyllm_lib.model import ModelConfig, Transformer, seal, write_model
    from tinyllm_lib.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(TEXTS, tmp_path / "tokenizer", vocab_size=300)
    model = Transformer(ModelConfig(32, 1, 2, 1, len(tokenizer), max_seq_len=128))
    folder = tmp_path / "k-model"
    folder.mkdir()
    write_model(folder, model, tokenizer)
    seal(folder, step=0)
    names = {}
    exec(block("bos_token_id").replace('"k-model"', repr(str(folder))), names)
    row = names["row"]
    assert row.prompt[0] == tokenizer.bos_token_id and 0 < len(row.ids) <= 60
    assert capsys.readouterr().out.strip() == tokenizer.decode(row.ids).strip()


def test_copies_for_data_parallel_share_what_a_model_keeps_to_return():
    """One object for all copies, so the one that writes last is returned by all of them; a model
    that returns a new object each time does not have this.
    """

    class Model(nn.Module):
        def __init__(self, keeps):
            super().__init__()
            self.layer, self.kept = nn.Linear(4, 1), {} if keeps else None

        def forward(self, x):
            out = {} if self.kept is None else self.kept
            out["loss"] = self.layer(x)
            return out

    halves = torch.randn(2, 3, 4)
    for keeps in (True, False):
        model = Model(keeps)
        copies = [model._replicate_for_data_parallel() for _ in halves]
        outputs = [copy(half) for copy, half in zip(copies, halves, strict=True)]
        lost = torch.equal(outputs[0]["loss"], model.layer(halves[1]))
        assert (outputs[0] is outputs[1]) == lost == keeps


def test_the_older_autocast_runs_fp16_unless_told_otherwise():
    options = inspect.signature(torch.cuda.amp.autocast.__init__).parameters
    assert options["dtype"].default == torch.float16


def test_a_run_is_replayed_into_swanlab_without_account_or_network(tmp_path, monkeypatch):
    pytest.importorskip("swanlab", reason="swanlab is not installed, and nothing else needs it")
    run = tmp_path / "workspace/laptop/runs/pretrain"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"dim": 64, "learning_rate": 0.01}))
    rows = [{"step": step, "loss": 7.0 - step / 100, "lr": 1e-3} for step in (10, 20, 30)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # no account
    for name in ("http_proxy", "https_proxy", "all_proxy"):  # no network
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    exec(block("swanlab"), {})
    kept = [path for path in (tmp_path / "swanlog").rglob("*") if path.is_file()]
    assert kept and sum(path.stat().st_size for path in kept) > 0
    assert "swanlab" in sys.modules
