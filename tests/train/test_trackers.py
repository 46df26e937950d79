"""Experiment trackers: the rows of metrics.jsonl arrive there."""

import sys
import types

import pytest

from tinyllm_lib.train import train

pytest_plugins = ["helpers.tiny_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_row_of_metrics_is_sent_and_the_tracker_closed(tiny_config, tmp_path, monkeypatch):
    rows, begun, closed = [], [], []
    run = types.SimpleNamespace(
        log=lambda row, step: rows.append((step, row)), finish=lambda: closed.append(True)
    )
    wandb = types.SimpleNamespace(init=lambda **about: begun.append(about) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(tiny_config(tmp_path / "run", steps=4, log_interval=2, tracker="wandb"))
    assert [step for step, _ in rows] == [1, 2, 4] and closed == [True]
    assert {"loss", "lr", "val_bits_per_byte"} <= rows[-1][1].keys()
    assert (begun[0]["name"], begun[0]["dir"]) == ("run", str(tmp_path / "run"))


def test_a_package_that_is_missing_is_named(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "swanlab", None)
    with pytest.raises(ModuleNotFoundError, match="swanlab"):
        train(tiny_config(tmp_path / "run", steps=4, tracker="swanlab"))


def test_tensorboard_without_a_server(tiny_config, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tiny_config(tmp_path / "run", steps=4, log_interval=2, tracker="tensorboard"))
    events = accumulator.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 4]


def test_swanlab_offline(tiny_config, tmp_path, monkeypatch):
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    run = train(tiny_config(tmp_path / "run", steps=4, log_interval=2, tracker="swanlab"))
    assert any("swanlab" in str(path) or path.name.startswith("run-") for path in run.rglob("*"))
