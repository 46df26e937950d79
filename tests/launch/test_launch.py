"""Launching runs and functions in processes of their own: what comes back, what an error says, what
a front end shows, and that nothing is left behind."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from helpers import launch_config
from helpers.kernel import real_kernel
from helpers.tiny import ROOT, is_held, start_python, wait_until
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinyllm_lib.data import is_running
from tinyllm_lib.launch import LaunchError, launch, read_metrics, watch
from tinyllm_lib.launch.cluster import meet
from tinyllm_lib.launch.launcher import default_processes
from tinyllm_lib.launch.torchrun import _own_address, run_agent
from tinyllm_lib.model import latest_checkpoint, step_of

pytest_plugins = ["helpers.tiny_fixtures"]

ENDLESS = {"steps": 1_000_000, "batch_size": 4}


@pytest.fixture(scope="module")
def two_runs(tiny_config, tmp_path_factory):
    """The same job with one process and with two, launched at the same time; the run folders and
    what was printed.
    """
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
        for key in (
            "loss",
            "grad_norm",
            "lr",
            *(["val_loss", "val_bits_per_byte"] if "val_loss" in a else []),
        ):
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
    with pytest.raises(FileNotFoundError, match="is no run folder: no config.json"):
        watch(tmp_path)
    with pytest.raises(FileNotFoundError, match="No such file or directory: .*metrics.jsonl"):
        read_metrics(tmp_path)


def test_processes_by_default(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert (default_processes(), default_processes("cuda")) == (4, 4)
    assert 1 <= default_processes("cpu") <= 8
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert default_processes("mps") == 1


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
    from tinyllm_lib.dataset import PackedDataset
    def row_too_many(self, index):
        os.kill(os.getpid(), signal.SIGKILL)
    PackedDataset.__getitem__ = row_too_many
"""


def test_an_error_carries_the_traceback_of_the_process_that_failed_first(
    tiny_config, tmp_path, patched_workers
):
    patched_workers(FAIL)
    with pytest.raises(LaunchError) as error:
        launch(tiny_config(tmp_path / "run"), nproc_per_node=2, show=False)
    headline, what, *traceback = str(error.value).splitlines()
    assert headline == "training process 1 failed:"
    assert what == "OSError: the disk of process 1 is broken"
    assert "Traceback (most recent call last):" in traceback
    assert "in row_of_a_broken_disk" in str(error.value) and "in load_step" in str(error.value)


def test_a_worker_killed_from_outside_is_an_error_that_says_so(
    tiny_config, tmp_path, patched_workers
):
    patched_workers(KILL)
    with pytest.raises(LaunchError) as error:  # process 1 reports that it lost process 0
        launch(tiny_config(tmp_path / "run"), nproc_per_node=2, show=False)
    headline, *lines = str(error.value).splitlines()
    assert (
        headline.startswith("training process 0 ended with code -9 ")
        and "left no traceback (killed from outside" in headline
    )
    assert any("2 x cpu" in line for line in lines) and "Traceback" not in str(error.value)


CRASH = """
import os
if os.environ.get("RANK") == "0":
    from tinyllm_lib.dataset import PackedDataset
    PackedDataset.__getitem__ = lambda self, index: os._exit(3)
"""


def test_no_cause_is_named_that_nobody_knows(tiny_config, tmp_path, patched_workers):
    patched_workers(CRASH)
    with pytest.raises(
        LaunchError,
        match="^training process 0 ended with code 3 .* left no traceback. The last lines:",
    ) as error:
        launch(tiny_config(tmp_path / "run"), nproc_per_node=1, show=False)
    assert "memory" not in str(error.value).splitlines()[0]


def test_a_meeting_place_that_is_taken_is_the_cause_that_is_named(tiny_config, tmp_path):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        with pytest.raises(
            LaunchError,
            match="(?is)^no training process was started:.*address already in use",
        ) as error:
            launch(
                tiny_config(tmp_path / "run"),
                1,
                rdzv_endpoint=f"localhost:{other.getsockname()[1]}",
                show=False,
            )
    assert "memory" not in str(error.value) and "machines" not in str(error.value)


# ---- wherever it is started

ELSEWHERE = {  # left over from another job, or said of another machine
    "PET": {
        "PET_NNODES": "2",
        "PET_STANDALONE": "0",
        "PET_RDZV_ENDPOINT": "node1:29500",
        "PET_MASTER_ADDR": "node1",
    },
    "torch": {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "192.0.2.1",
        "MASTER_PORT": "1",
        "LOGLEVEL": "loud",
        "GLOO_SOCKET_IFNAME": "eth77",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    },
    "proxy": {
        name: "socks5://127.0.0.1:9"
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy")
    },
    "home": {"HOME": "/proc/nobody", "USERPROFILE": "/proc/nobody"},
    "locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"},
    "temporary": {"TMPDIR": "/nowhere", "TEMP": "/nowhere", "TMP": "/nowhere"},
}
ONE_CORE = ["taskset", "-c", "0"] if shutil.which("taskset") else []
STRANGE_NAME = ["unshare", "--uts", "bash", "-c", 'hostname lab-pc-07.local; exec "$@"', "bash"]
MAY_RENAME = (
    bool(shutil.which("unshare"))
    and not subprocess.run(["unshare", "--uts", "true"], capture_output=True).returncode
)


def launched(tiny_config, folder, *before, **env):
    """What a run of two processes and two steps in a folder "空 间" prints, started behind the
    command `before`.
    """
    folder = folder / "空 间"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(asdict(tiny_config("run 1", steps=2))), encoding="utf-8"
    )
    command = [*before, sys.executable, launch_config.__file__, folder / "config.json", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TINYLLM_PLAIN": "1", **env}
    done = subprocess.run(
        command, env=env, cwd=folder, timeout=150, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    printed = done.stdout.decode("utf-8", errors="replace")
    assert done.returncode == 0 and "Finished: run 1, 2 steps" in printed, printed
    assert "2 x cpu" in (folder / "run 1" / "train.log").read_text("utf-8")
    assert len(read_metrics(folder / "run 1")) == 2
    assert {path.name for path in folder.iterdir()} == {"config.json", "run 1"}


@pytest.mark.skipif(os.name != "posix", reason="other machines have other troubles")
def test_a_run_starts_whatever_the_machine_is_called_and_the_environment_holds(
    tiny_config, tmp_path
):
    everything = {name: value for some in ELSEWHERE.values() for name, value in some.items()}
    launched(tiny_config, tmp_path, *(STRANGE_NAME if MAY_RENAME else []), *ONE_CORE, **everything)


@pytest.mark.slow
@pytest.mark.parametrize("what", ELSEWHERE)
def test_a_run_starts_whatever_the_environment_holds(tiny_config, tmp_path, what):
    launched(tiny_config, tmp_path, **ELSEWHERE[what])


@pytest.mark.slow
@pytest.mark.skipif(
    not MAY_RENAME, reason="this user may not give the machine another name (unshare --uts)"
)
def test_a_run_starts_where_the_own_name_means_nothing(tiny_config, tmp_path):
    launched(tiny_config, tmp_path, *STRANGE_NAME)


@pytest.fixture
def obeyed(monkeypatch):
    """obeyed(arguments): what torchrun is called with, and the environment that it finds."""
    found = []
    torchrun = types.SimpleNamespace(
        main=lambda arguments: found.append((arguments, dict(os.environ)))
    )
    monkeypatch.setitem(sys.modules, "torch.distributed.run", torchrun)
    monkeypatch.delenv("TINYLLM_LAUNCHER_PID", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    for name, value in (ELSEWHERE["PET"] | ELSEWHERE["torch"]).items():
        monkeypatch.setenv(name, value)

    def obey(arguments):
        run_agent(arguments)
        return found.pop()

    return obey


def test_our_torchrun_obeys_its_arguments_alone(obeyed, tmp_path):
    wanted = ["--log_dir", str(tmp_path), *meet(2)]
    arguments, env = obeyed(wanted)
    assert arguments == ["--local_addr", "127.0.0.1", *wanted]
    assert not {*ELSEWHERE["PET"], *ELSEWHERE["torch"]} - {"GLOO_SOCKET_IFNAME"} & {*env}
    assert env["GLOO_SOCKET_IFNAME"] != "eth77" and 1 <= int(env["OMP_NUM_THREADS"]) < 64


def test_on_one_of_many_machines_the_network_is_chosen_by_whoever_knows_it(obeyed, tmp_path):
    _, env = obeyed(["--log_dir", str(tmp_path), *meet(2, 2, "localhost:29400")])
    assert env["GLOO_SOCKET_IFNAME"] == "eth77" and not {*ELSEWHERE["PET"]} & {*env}


def test_a_machine_is_called_as_the_others_see_it():
    assert _own_address("localhost:29400") == "localhost", (
        "the meeting place itself: as it was given"
    )


# ---- interrupted


def commands_with(text):
    """Command lines of living processes that contain `text`."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "stat=,command="], capture_output=True, text=True, check=True
    )
    rows = (line.split(maxsplit=1) for line in listed.stdout.splitlines())
    return [command for stat, command in rows if text in command and not stat.startswith("Z")]


@pytest.fixture(params=[(1, 5)])
def launcher(tiny_config, tmp_path, request):
    """A Python process that launched an endless run; `params`: its workers, and the steps they have
    taken.
    """
    processes, steps = request.param
    config = tiny_config(tmp_path / "run", **ENDLESS)
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)), encoding="utf-8")
    (tmp_path / "scratch").mkdir()
    process = start_python(
        launch_config.__file__,
        tmp_path / "config.json",
        processes,
        TMPDIR=str(tmp_path / "scratch"),
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(
        lambda: process.poll() is not None or (metrics.is_file() and lines_in(metrics) > steps),
        "some steps",
    )
    assert len(commands_with(out_dir(tmp_path))) == 1 + processes, "torchrun and its workers"
    yield process
    process.kill()
    process.wait()


def lines_in(path):
    return path.read_bytes().count(b"\n")


def out_dir(folder):
    """Stands in the command line of every process of the run `folder`/run, and of no other."""
    return f"--out_dir={folder / 'run'}"


def gone(folder):
    wait_until(lambda: not commands_with(out_dir(folder)), "the end of all workers", seconds=60)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("launcher", [(2, 220)], indirect=True)
def test_the_stop_button_leaves_a_checkpoint_and_no_process(launcher, tmp_path):
    launcher.send_signal(signal.SIGINT)
    out = launcher.communicate(timeout=90)[0]
    assert not commands_with(out_dir(tmp_path))
    assert out.rstrip().endswith("KeyboardInterrupt")
    assert "Stopping: the run finishes its step and saves a checkpoint" in out
    stopped = step_of(latest_checkpoint(tmp_path / "run"))
    assert f"Stopped after step {stopped} of 1000000; the checkpoint is saved." in out
    assert read_metrics(tmp_path / "run")[-1]["step"] == stopped
    shown = [
        int(line.split()[1].split("/")[0]) for line in out.splitlines() if line.startswith("step ")
    ]
    assert shown == [*range(1, stopped + 1)], "every step, also of a long run"
    assert not [*Path(tmp_path / "scratch").glob("tinyllm_*")]


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_kernel_that_dies_leaves_a_checkpoint_and_no_process(launcher, tmp_path):
    launcher.kill()
    launcher.communicate()
    gone(tmp_path)
    stopped = step_of(latest_checkpoint(tmp_path / "run"))
    assert read_metrics(tmp_path / "run")[-1]["step"] == stopped
    assert f"Stopped after step {stopped}" in (tmp_path / "run" / "train.log").read_text("utf-8")


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs Linux's /proc")
def test_a_dead_kernel_is_gone_also_where_nobody_has_asked_for_its_end():
    assert is_running(os.getpid())
    process = start_python("-c", "")
    # ended, and still in the list of processes
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_running(process.pid)
    process.communicate()
    assert not is_running(process.pid)


# ---- in a real kernel


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    with real_kernel(tmp_path_factory.mktemp("kernel")) as kernel:
        yield kernel


def launching(config):
    return f"""
from tinyllm_lib.launch.launcher import *
from tinyllm_lib.train import TrainConfig
launch(TrainConfig(**{asdict(config)!r}), nproc_per_node=2)
"""


def listening_ports(text):
    """Ports on which processes with `text` in their command line wait for others."""
    ports = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if text in " ".join(process.cmdline()):
                ports |= {
                    c.laddr.port
                    for c in process.net_connections()
                    if c.status == psutil.CONN_LISTEN
                }
    return ports


def test_the_stop_button_in_a_notebook(kernel, tiny_config, tmp_path):
    config = tiny_config(tmp_path / "run", **ENDLESS, eval_interval=10)
    kernel.start(launching(config))
    kernel.wait("a curve with an evaluation", lambda kernel: "<circle" in kernel.html)
    assert (
        'role="progressbar"' in kernel.html
        and "left" in kernel.html
        and "learning rate (dashes)" in kernel.html
    )
    assert "step " not in kernel.text, "no plain lines beside the picture"
    kernel.manager.interrupt_kernel()
    kernel.wait()
    assert kernel.error.startswith("KeyboardInterrupt") and "Stopping" in kernel.text
    assert not commands_with(out_dir(tmp_path))
    stopped = step_of(latest_checkpoint(tmp_path / "run"))
    assert f"Stopped after step {stopped} of 1000000" in kernel.html


def test_a_restarted_kernel_leaves_no_process_and_no_port_and_can_watch(
    kernel, tiny_config, tmp_path
):
    config = tiny_config(tmp_path / "run", **ENDLESS)
    kernel.start(launching(config))
    kernel.wait("a curve", lambda kernel: "<svg" in kernel.html)
    ports = listening_ports(out_dir(tmp_path))
    assert ports, "torchrun's and gloo's"
    kernel.restart()
    gone(tmp_path)
    assert not [port for port in ports if is_held(port)]
    kernel.run(f"from tinyllm_lib.launch import watch; watch({config.out_dir!r})")
    assert not kernel.error
    stopped = step_of(latest_checkpoint(tmp_path / "run"))
    assert f"Stopped after step {stopped} of 1000000" in kernel.html
    assert f"step {stopped:,} of 1,000,000" in kernel.html and "<svg" in kernel.html


def test_a_run_of_another_process_is_watched_to_its_end(kernel, launcher, tmp_path):
    kernel.start(f"from tinyllm_lib.launch import watch; watch({str(tmp_path / 'run')!r})")
    kernel.wait("a curve", lambda kernel: "<svg" in kernel.html)
    first = kernel.html
    kernel.wait("more of it", lambda kernel: kernel.html != first)
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=90)
    kernel.wait()
    assert "Stopped after step" in kernel.html


# ---- functions of a notebook

CELL = """
import os, torch
import torch.distributed as dist
from pathlib import Path
from tinyllm_lib.launch import launch_function

scale = 10

class Answer:
    def __init__(self, value): self.value = value

def times_scale(x):
    return x * scale

def meet(start, *, wait_for):
    number = torch.tensor([start + dist.get_rank()])
    print("begun, one of", os.environ["WORLD_SIZE"], end="\\n")
    while not Path(wait_for).exists():
        pass
    dist.all_reduce(number)
    print("the sum", end=" "); print("is\\n", number.item())
    print("[rank0] *****")
    print("[rank0]: [World] of torch.distributed.elastic")
    print("[Warmup]", "done"); print("W1234 is a name")
    return Answer(times_scale(number))

answer = launch_function(meet, 3, wait_for="go", nproc_per_node=2)
assert isinstance(answer, Answer)
print("returned", answer.value)
"""

FAILING_CELL = """
def first_rank_waits():
    if dist.get_rank() == 1:
        raise ValueError("rank 1 has had enough")  # of this
    dist.barrier()

launch_function(first_rank_waits)
"""

LEAVING_CELL = """
import sys

def one_leaves():
    if dist.get_rank() == 1:
        sys.exit()
    dist.barrier()

launch_function(one_leaves)
"""

UNSENDABLE_CELL = """
import threading
lock = threading.Lock()
try:
    launch_function(lambda: lock)
except TypeError as error:
    print(error)
launch_function(lambda: (n for n in range(3)), nproc_per_node=1)
"""

WAITING_CELL = """
def one_never_comes():
    print("here")
    if dist.get_rank() == 0:
        dist.barrier()
    while True:
        pass

launch_function(one_never_comes)
"""


@pytest.fixture(scope="module")
def after_meeting(kernel):
    """The kernel after CELL, and what the front end showed before and after the ranks went on."""
    pytest.importorskip("cloudpickle")
    kernel.start(CELL)
    kernel.wait("both ranks", lambda kernel: kernel.text.count("begun") == 2)
    before = kernel.text
    (kernel.folder / "go").touch()
    kernel.wait()
    return kernel, before, kernel.text


SAID = (
    *("begun, one of 2", "the sum is", " 7", "[rank0] *****"),
    *("[rank0]: [World] of torch.distributed.elastic", "[Warmup] done", "W1234 is a name"),
)


def test_prints_of_a_function_come_at_once_and_labelled(after_meeting):
    _, before, text = after_meeting
    assert sorted(before.splitlines()) == [f"[rank {rank}] begun, one of 2" for rank in (0, 1)]
    for rank in (0, 1):
        said = [line for line in text.splitlines() if line.startswith(f"[rank {rank}] ")]
        assert said == [f"[rank {rank}] {line}" for line in SAID]


def test_a_function_returns_what_rank_0_returned(after_meeting):
    assert after_meeting[2].endswith("returned tensor([70])\n")


def test_a_function_that_fails_on_a_rank(after_meeting):
    kernel, *_ = after_meeting
    kernel.run(FAILING_CELL)
    name, headline, what, _, *traceback = (
        kernel.error.splitlines()[0].split(": ", 1) + kernel.error.splitlines()[1:]
    )
    assert (name, headline, what) == (
        "LaunchError",
        "rank 1 failed:",
        "ValueError: rank 1 has had enough",
    )
    assert traceback[0] == "Traceback (most recent call last):"
    assert any("line 3, in first_rank_waits" in line for line in traceback)


def test_a_function_that_leaves_on_a_rank_is_told_to_return(after_meeting):
    kernel, *_ = after_meeting
    kernel.run(LEAVING_CELL)
    assert kernel.error.startswith("LaunchError: rank 1 failed:")
    assert "the function called sys.exit(): use return" in kernel.error


def test_what_cannot_be_sent_is_said_so(after_meeting):
    kernel, *_ = after_meeting
    kernel.run(UNSENDABLE_CELL)
    assert "cannot pickle '_thread.lock' object" in kernel.text
    assert "LaunchError: rank 0 failed:" in kernel.error
    assert "cannot pickle 'generator' object" in kernel.error


KILLED_CELL = """
def killed_on_rank_1():
    if dist.get_rank() == 1:
        os.kill(os.getpid(), 9)
    dist.barrier()

launch_function(killed_on_rank_1)
"""


def test_a_function_that_is_killed_on_a_rank(after_meeting):
    kernel, *_ = after_meeting
    kernel.run(KILLED_CELL)
    assert kernel.error.startswith("LaunchError: rank 1 ended with code -9 "), (
        "rank 0 reports that it lost rank 1"
    )
    kernel.run("launch_function(killed_on_rank_1, nproc_per_node=0)")
    assert kernel.error.startswith("ValueError: nproc_per_node must be at least 1, is 0")


def test_the_stop_button_ends_a_function_on_all_ranks(after_meeting):
    kernel, *_ = after_meeting
    kernel.start(WAITING_CELL)
    kernel.wait("both ranks", lambda kernel: kernel.text.count("here") == 2)
    kernel.manager.interrupt_kernel()
    kernel.wait()
    assert kernel.error.startswith("KeyboardInterrupt")
    assert not commands_with(f"tinyllm_lib.launch.call {kernel.folder}")
