"""Launching runs in processes of their own: what comes back, what an error says, and that nothing is left behind."""

import contextlib
import io
import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers import launch_config
from helpers.tiny import start_python, wait_until
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinyllm_lib.checkpoint import latest_checkpoint, step_of
from tinyllm_lib.launch import LaunchError, default_processes, launch, progress_html, read_metrics, watch

pytest_plugins = ["helpers.tiny_fixtures"]

ENDLESS = {"steps": 1_000_000, "batch_size": 4}


@pytest.fixture(scope="module")
def two_runs(tiny_config, tmp_path_factory):
    """The same job with one process and with two, launched at the same time; the run folders and what was printed."""
    folder = tmp_path_factory.mktemp("launch")
    printed = io.StringIO()

    def start(nproc):
        return launch(tiny_config(folder / f"with_{nproc}", eval_interval=6), nproc_per_node=nproc)

    with contextlib.redirect_stdout(printed), ThreadPoolExecutor(2) as pool:
        runs = [*pool.map(start, (1, 2))]
    return folder, runs, printed.getvalue()


# ---- runs that end well


def test_launch_returns_the_run_folder(two_runs):
    folder, runs, _ = two_runs
    assert runs == [folder / "with_1", folder / "with_2"]
    for run in runs:
        assert [row["step"] for row in read_metrics(run)] == list(range(1, 13))
        assert step_of(latest_checkpoint(run)) == 12


def test_one_and_two_processes_agree_step_by_step(two_runs):
    one, two = map(read_metrics, two_runs[1])
    for a, b in zip(one, two, strict=True):
        assert a["tokens"] == b["tokens"]
        for key in ("loss", "grad_norm", "lr", *(["val_loss", "val_bits_per_byte"] if "val_loss" in a else [])):
            assert a[key] == pytest.approx(b[key], rel=2e-4), (a["step"], key)


def test_what_a_launched_run_saved_loads_with_transformers(two_runs):
    folder = latest_checkpoint(two_runs[1][1])
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 2
    assert len(AutoTokenizer.from_pretrained(folder)) == 400


def test_outside_a_notebook_progress_is_plain_lines(two_runs):
    lines = two_runs[2].splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == 2 * 12
    assert sum("val bits/byte" in line for line in steps) == 2 * 2
    assert all(" loss " in line and "tokens/s" in line for line in steps)
    assert [line for line in lines if "Finished: with_" in line]
    assert "torch.distributed" not in two_runs[2] and "Warning" not in two_runs[2]
    assert "<div" not in two_runs[2]


def test_a_run_can_be_watched_by_whoever_has_its_folder(two_runs, tmp_path, capsys):
    watch(two_runs[1][0])
    *steps, end = capsys.readouterr().out.splitlines()
    assert "Finished: with_1, 12 steps" in end and len(steps) == 12
    with pytest.raises(FileNotFoundError, match="is no run folder .*workspace/<profile>/runs/"):
        watch(tmp_path)
    with pytest.raises(FileNotFoundError, match="metrics.jsonl does not exist: the run has not taken a step yet"):
        read_metrics(tmp_path)


def test_a_half_written_line_of_metrics_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.5}]


def test_processes_by_default(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert (default_processes(), default_processes("cuda")) == (4, 4)
    assert 1 <= default_processes("cpu") <= 8
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert default_processes("mps") == 1


# ---- the picture of a run


def test_progress_as_html_shows_bar_curve_numbers_and_log(two_runs):
    metrics = read_metrics(two_runs[1][0])
    html = progress_html(metrics[:6], 12, ["first", "a < b", "third", "fourth", "fifth"])
    assert "step 6 of 12" in html and 'aria-valuenow="50%"' in html and "left" in html
    assert f"loss {metrics[5]['loss']:.3f}" in html and "tokens/s" in html and "MFU" in html
    assert f"validation {metrics[5]['val_bits_per_byte']:.3f} bits/byte" in html
    assert "<svg" in html and "loss falls from" in html
    assert "a &lt; b" in html and "first" not in html, "the last four lines of the log, as text"
    assert "finished" in progress_html(metrics, 12, [])


def test_progress_before_the_first_step():
    html = progress_html([], 100, ["43,680 parameters"])
    assert "step 0 of 100" in html and "43,680 parameters" in html and "<svg" not in html


# ---- errors


@pytest.fixture
def patched_workers(tmp_path, monkeypatch):
    """patched_workers(code): every Python that the test starts runs `code` before anything else."""

    def patch(code):
        (tmp_path / "patch").mkdir()
        (tmp_path / "patch" / "sitecustomize.py").write_text(code, encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "patch"))

    return patch


FAIL = """
import os
if os.environ.get("RANK") == "1":
    from tinyllm_lib.dataset import PackedDataset
    def row_of_a_broken_disk(self, index):
        raise OSError("the disk of process 1 is broken")
    PackedDataset.__getitem__ = row_of_a_broken_disk
"""

KILL = """
import os, signal
if os.environ.get("RANK") == "0":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_error_carries_the_traceback_of_the_process_that_failed_first(tiny_config, tmp_path, patched_workers):
    patched_workers(FAIL)
    with pytest.raises(LaunchError) as error:
        launch(tiny_config(tmp_path / "run"), nproc_per_node=2, show=False)
    headline, what, *traceback = str(error.value).splitlines()
    assert headline == "training process 1 failed:"
    assert what == "OSError: the disk of process 1 is broken"
    assert "Traceback (most recent call last):" in traceback
    assert "in row_of_a_broken_disk" in str(error.value) and "in load_step" in str(error.value)


def test_a_worker_killed_from_outside_is_an_error_that_says_so(tiny_config, tmp_path, patched_workers):
    patched_workers(KILL)
    with pytest.raises(LaunchError, match=r"no worker left a traceback \(killed from outside, or out of memory\?\)"):
        launch(tiny_config(tmp_path / "run"), nproc_per_node=1, show=False)


# ---- interrupted


def commands_with(text):
    """Command lines of living processes that contain `text`."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "stat=,command="], capture_output=True, text=True, check=True)
    rows = (line.split(maxsplit=1) for line in listed.stdout.splitlines())
    return [command for stat, command in rows if text in command and not stat.startswith("Z")]


@pytest.fixture(params=[(1, 5)])
def launcher(tiny_config, tmp_path, request):
    """A Python process that launched an endless run; `params`: its workers, and the steps they have taken."""
    processes, steps = request.param
    config = tiny_config(tmp_path / "run", **ENDLESS)
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)), encoding="utf-8")
    (tmp_path / "scratch").mkdir()  # in the command line of every worker: tells them from other tests' workers
    process = start_python(launch_config.__file__, tmp_path / "config.json", processes, TMPDIR=str(tmp_path / "scratch"))
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: process.poll() is not None or (metrics.is_file() and lines_in(metrics) > steps), "some steps")
    assert len(commands_with(str(tmp_path / "scratch"))) == 1 + processes, "torchrun and its workers"
    yield process
    process.kill()
    process.wait()


def lines_in(path):
    return path.read_bytes().count(b"\n")


def gone(folder):
    wait_until(lambda: not commands_with(str(folder)), "the end of all workers", seconds=60)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("launcher", [(2, 220)], indirect=True)
def test_the_stop_button_leaves_a_checkpoint_and_no_process(launcher, tmp_path):
    launcher.send_signal(signal.SIGINT)
    out = launcher.communicate(timeout=90)[0]
    assert not commands_with(str(tmp_path / "scratch"))
    assert out.rstrip().endswith("KeyboardInterrupt")
    assert "Stopping: the run finishes its step and saves a checkpoint" in out
    stopped = step_of(latest_checkpoint(tmp_path / "run"))
    assert f"Stopped after step {stopped} of 1000000; the checkpoint is saved." in out
    assert read_metrics(tmp_path / "run")[-1]["step"] == stopped
    shown = [int(line.split()[1].split("/")[0]) for line in out.splitlines() if line.startswith("step ")]
    assert shown == [*range(1, stopped + 1)], "every step, also of a long run"
    assert not [*Path(tmp_path / "scratch").glob("tinyllm_*")]


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_kernel_that_dies_leaves_a_checkpoint_and_no_process(launcher, tmp_path):
    launcher.kill()
    launcher.communicate()
    gone(tmp_path / "scratch")
    stopped = step_of(latest_checkpoint(tmp_path / "run"))
    assert read_metrics(tmp_path / "run")[-1]["step"] == stopped
    assert f"Stopped after step {stopped}" in (tmp_path / "run" / "train.log").read_text("utf-8")
