"""One run on many machines, all of them this one: agents that meet over c10d, one is killed."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from helpers.tiny import is_held, start_python, wait_until

from tinyllm_lib.launch import LaunchError, launch, read_metrics
from tinyllm_lib.launch.cluster import torchrun_arguments
from tinyllm_lib.share.server import free_port
from tinyllm_lib.train.config import parse_args

pytest_plugins = ["helpers.tiny_fixtures"]

VENV = f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
STEPS = {"steps": 40, "save_interval": 5, "keep_last": 100}


def losses(run):
    return [row["loss"] for row in read_metrics(run)]


# ---- the command for the other machines


def test_a_config_survives_the_command_line(tiny_config, tmp_path):
    config = tiny_config(
        tmp_path / "一个 run", separate_documents=False, epochs=0.5, weight_decay=0.0
    )
    words = torchrun_arguments(config, tmp_path / "config.json", 2, 1, None)
    assert parse_args(words[words.index("tinyllm_lib.train") + 1 :]) == config


@pytest.mark.parametrize("endpoint", [None, "node1", "node1:", "node 1:29400"])
def test_machines_need_a_place_to_meet(tiny_config, tmp_path, endpoint):
    with pytest.raises(
        ValueError,
        match=r"rdzv_endpoint is .*, expected 'host:port', as '.+:29400'",
    ):
        launch(tiny_config(tmp_path / "run"), nnodes=4, rdzv_endpoint=endpoint)


def test_machines_that_come_back_must_be_able_to_go_on(tiny_config, tmp_path):
    with pytest.raises(ValueError, match="use resume='auto' with many nodes"):
        launch(tiny_config(tmp_path / "run", resume="never"), nnodes=2, rdzv_endpoint="node1:29400")


def test_machines_that_never_come(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tinyllm_lib.launch.cluster.JOIN_SECONDS", 1)
    with pytest.raises(
        LaunchError,
        match="The other machines did not come in time: does the command run there",
    ):
        launch(tiny_config(tmp_path / "run"), 1, nnodes=2, rdzv_endpoint=f"localhost:{free_port()}")
    command, said = capsys.readouterr().out.split("run this command", 1)
    assert command.startswith("On each of the other machines (1)")
    assert "tinyllm_lib.launch.torchrun agent" in said and "is_host=false" in said
    assert not list(tmp_path.iterdir()), "nothing is left on the shared disk"


def test_a_meeting_place_that_nobody_knows(tiny_config, tmp_path):
    with pytest.raises(LaunchError, match=r"(?s)no training process was started:.*gaierror"):
        launch(
            tiny_config(tmp_path / "run"),
            1,
            nnodes=2,
            rdzv_endpoint="node7.invalid:29400",
            show=False,
        )


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_kernel_that_dies_while_it_waits_for_other_machines_leaves_no_process_and_no_port(
    tiny_config, tmp_path
):
    port, config = free_port(), vars(tiny_config(tmp_path / "run"))
    waiting = f"launch(TrainConfig(**{config!r}), 1, nnodes=2, rdzv_endpoint='localhost:{port}')"
    starter = start_python(
        "-c",
        f"from tinyllm_lib.launch import *; from tinyllm_lib.train import TrainConfig; {waiting}",
    )
    wait_until(
        lambda: is_held(port) or starter.poll() is not None, "the agent at its meeting place"
    )
    [agent] = psutil.Process(starter.pid).children()
    starter.kill()
    starter.communicate()
    agent.wait(timeout=10)
    assert not is_held(port)


@pytest.fixture(scope="module")
def undisturbed(tiny_config, tmp_path_factory):
    """A run of STEPS with two processes on one machine."""
    config = tiny_config(tmp_path_factory.mktemp("undisturbed") / "run", **STEPS)
    return launch(config, nproc_per_node=2, rdzv_endpoint=f"localhost:{free_port()}", show=False)


# ---- two agents that meet over c10d

SLOW = """
import os, time
if "RANK" in os.environ:
    from tinyllm_lib.dataset import PackedDataset
    def slow(self, index, quick=PackedDataset.__getitem__):
        time.sleep(0.03)
        return quick(self, index)
    PackedDataset.__getitem__ = slow
"""


@pytest.mark.slow
def test_a_machine_that_is_lost_and_comes_back(undisturbed, tiny_config, tmp_path, monkeypatch):
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(SLOW, encoding="utf-8")
    # this machine is slow enough for the other one to be killed
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "patch"))
    run, printed = tmp_path / "run", io.StringIO()
    other_machine = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def steps_taken():
        return (run / "metrics.jsonl").is_file() and len(read_metrics(run))

    with contextlib.redirect_stdout(printed), ThreadPoolExecutor(1) as pool:
        launched = pool.submit(
            launch, tiny_config(run, **STEPS), 1, nnodes=2, rdzv_endpoint=f"localhost:{free_port()}"
        )
        command = wait_until(
            lambda: re.search(r"^cd .*torchrun agent .*$", printed.getvalue(), flags=re.MULTILINE),
            "the command",
        )[0]

        def start():  # `exec`: the process is the torchrun agent itself
            shell = ["bash", "-c", command.replace(" python3 ", " exec python3 ", 1)]
            return subprocess.Popen(
                shell,
                env=other_machine,
                cwd="/",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

        agent = start()
        try:
            wait_until(lambda: steps_taken() > 12 or launched.done(), "some steps")
            [worker] = psutil.Process(agent.pid).children()
            agent.kill()
            agent.wait()
            wait_until(
                lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE,
                "the end of the orphan",
            )
            agent = start()
            assert launched.result(timeout=200) == run
            assert agent.wait(timeout=60) == 0
        finally:
            agent.terminate()
            agent.wait(timeout=60)
    assert losses(run) == losses(undisturbed)
    log = (run / "train.log").read_text("utf-8")
    assert "Going on from step_000010" in log or "Going on from step_000015" in log
    shown = [line for line in printed.getvalue().splitlines() if line.startswith("step ")]
    assert (
        shown[-1].startswith("step     40/40") and "Finished: run, 40 steps" in printed.getvalue()
    )
