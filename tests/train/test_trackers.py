"""Experiment trackers: the numbers of metrics.jsonl arrive there, and none ever stops a run."""

import sys

import pytest

from tinyllm_lib.train import log as trackers
from tinyllm_lib.train import train

pytest_plugins = ["helpers.tiny_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")


class Memory:
    """A tracker that keeps what it is told, and may fail."""

    def __init__(self, folder, run_name, run_id, config, first_step):
        self.run_id, self.first_step, self.rows, self.closed = run_id, first_step, [], False
        MADE.append(self)

    def log(self, step, numbers):
        if FAIL_AT and step >= FAIL_AT[0]:
            raise ConnectionError("no route to host")
        self.rows.append((step, numbers))

    def close(self):
        self.closed = True


MADE, FAIL_AT = [], []


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Memory)
    MADE.clear(), FAIL_AT.clear()
    return MADE


def test_every_row_of_metrics_is_sent_and_the_tracker_closed(tiny_config, tmp_path, memory):
    train(tiny_config(tmp_path / "run", steps=4, log_interval=2, tracker="wandb"))
    (tracker,) = memory
    assert [step for step, _ in tracker.rows] == [1, 2, 4] and tracker.closed
    assert {"loss", "lr", "val_bits_per_byte"} <= tracker.rows[-1][1].keys()


def test_a_run_that_goes_on_is_the_same_run_at_the_tracker(tiny_config, tmp_path, memory):
    for run_id in (
        trackers.open_tracker("wandb", tmp_path, {}).run_id,
        trackers.open_tracker("wandb", tmp_path, {}, 5).run_id,
    ):
        assert run_id == memory[0].run_id
    assert memory[1].first_step == 5


def test_a_tracker_that_fails_does_not_stop_the_run(tiny_config, tmp_path, memory, capsys):
    FAIL_AT.append(2)
    train(tiny_config(tmp_path / "run", steps=4, log_interval=1, tracker="wandb"))
    output = capsys.readouterr().out
    assert (
        output.count(
            "Warning: tracker='wandb' failed after step 2 (ConnectionError: no route to host)"
        )
        == 1
    )
    assert "Finished: run, 4 steps" in output


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "swanlab", None)
    with pytest.raises(
        ModuleNotFoundError, match="make setup EXTRAS=trackers, or pip install swanlab"
    ):
        trackers.open_tracker("swanlab", tmp_path, {})


def test_tensorboard_without_a_server(tiny_config, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tiny_config(tmp_path / "run", steps=4, log_interval=2, tracker="tensorboard"))
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "trackers" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 4]


def test_swanlab_offline(tiny_config, tmp_path, monkeypatch):
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    train(tiny_config(tmp_path / "run", steps=4, log_interval=2, tracker="swanlab"))
    found = [
        path for path in (tmp_path / "run" / "trackers" / "swanlab").rglob("*") if path.is_file()
    ]
    assert len(found) > 1
