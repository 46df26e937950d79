"""Starting processes from a notebook cell: a training run, or a function the learner wrote.

The kernel is never forked and never touches the GPU, so the same cell works with one CPU and with
eight GPUs.
"""

from __future__ import annotations

import linecache
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tinyllm_lib.data import allowed_cpus, require_writable, temporary_folder
from tinyllm_lib.launch import cluster
from tinyllm_lib.launch.live import REFRESH_SECONDS, WAITING, GrowingFile, LogTail, View
from tinyllm_lib.train import TrainConfig, meet, meeting_host

SAY_SECONDS = 20.0  # without a sign of life, after which is said what is waited for
STOP_PATIENCE = 120.0  # seconds for a step and a checkpoint
NOT_FROM_A_WORKER = re.compile(  # from torchrun, torch's libraries, and torch's own tracebacks
    r"\s*$|\[?[WIE]\d{4} |\[W|\[Gloo]|\[rank\d|\*{5}|.*torch\.distributed\.elastic"
)


class LaunchError(RuntimeError):
    """Launched processes ended with an error; the message has the traceback of the first."""


def launch(
    config: TrainConfig,
    nproc_per_node: int | str = "auto",
    *,
    nnodes: int = 1,
    rdzv_endpoint: str | None = None,
    rdzv_id: str | None = None,
    show: bool | View = True,
    stop: threading.Event | None = None,
) -> Path:
    """Trains as `config` says in torchrun processes and shows the progress until they end.

    With `nnodes` above 1 this machine is one of them, and the command for each of the others is
    printed; what they must share, and what happens when one is lost: `cluster.py`.

    Args:
        nproc_per_node: processes; "auto" is one per GPU, or one per CPU core that may be used (at
            most 8) where there is no GPU.
        nnodes: machines.
        rdzv_endpoint: "host:port" where the machines meet: this one as the others call it, and a
            free port. One machine finds a port by itself.
        rdzv_id: tells this run from others that meet at the same place; None: the run's name.
        show: False for silence; a `View` to show the run there.
        stop: does what the stop button does, once it is set by another thread.

    Returns:
        The run folder.

    Raises:
        LaunchError: a process failed.
        KeyboardInterrupt: after the stop button, once the run has saved a checkpoint and ended.
        ValueError: several machines and no place to meet.
    """
    nproc = default_processes(config.device) if nproc_per_node == "auto" else int(nproc_per_node)
    config = cluster.with_absolute_paths(config)
    meeting = cluster.meeting(config, nproc, nnodes, rdzv_endpoint, rdzv_id)
    run, others = Path(config.out_dir), nnodes - 1
    require_writable(run)
    run.parent.mkdir(parents=True, exist_ok=True)
    shared = run.parent if others else temporary_folder(run.parent)
    with tempfile.TemporaryDirectory(prefix="tinyllm_", dir=shared) as scratch:
        arguments = ["--log_dir", scratch, *meeting]
        arguments += cluster.training(config, Path(scratch, "config.json"))
        if others:
            print(
                f"On each of the other machines ({others}) run this command; the run begins when"
                f" all are there:\n\n{cluster.node_command(arguments)}\n",
                flush=True,
            )
        arguments = meeting_host(True, cluster.JOIN_SECONDS if others else 60) + arguments
        view = View(run) if show is True else show or None
        # With many machines the process that speaks may run on another one.
        log = LogTail(run, skip=True) if others else None

        def update(printed: list[str], final: bool = False) -> None:
            if log:
                printed = [line for line in printed if line.startswith(WAITING)] + log.news()
            if view:
                view.update(printed, final)

        with Torchrun(arguments, scratch, others) as torchrun:
            try:
                for printed in torchrun.news(0.1 if not view or view.plain else REFRESH_SECONDS):
                    update(printed)
                    if stop and stop.is_set():
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                if show is True:
                    print(
                        "Stopping: the run finishes its step and saves a checkpoint …", flush=True
                    )
                torchrun.stop(STOP_PATIENCE)
                update(torchrun.printed(), final=True)
                raise
        update([], final=True)
    return run


def launch_function(fn: Callable, *args: object, nproc_per_node: int = 2, **kwargs: object) -> Any:
    """Calls `fn(*args, **kwargs)` on several ranks at once; returns what rank 0 returned.

    `fn` may be written in a notebook cell: it is sent with the functions, imports and values of the
    notebook that it uses. On each rank the process group is there already (gloo; nccl for tensors
    on GPUs, where there is one for each rank): `torch.distributed.get_rank()` and the environment
    variables RANK, LOCAL_RANK and WORLD_SIZE say who one is. What a rank prints is shown at once,
    with its number before each line.

    Args:
        nproc_per_node: ranks.

    Returns:
        The result of rank 0, through a file; tensors on the CPU.

    Raises:
        LaunchError: a rank failed; with the traceback of the one that failed first.
        TypeError: `fn` or an argument cannot be sent to another process.
        KeyboardInterrupt: after the stop button, once all ranks have ended.
    """
    try:
        import cloudpickle
    except ModuleNotFoundError as error:
        message = (
            "launch_function needs cloudpickle: run `make setup` or `pip install cloudpickle`."
        )
        raise ModuleNotFoundError(message, name=error.name) from None
    with tempfile.TemporaryDirectory(
        prefix="tinyllm_", dir=temporary_folder(Path.cwd())
    ) as scratch:
        call, result = Path(scratch, "call.pt"), Path(scratch, "result.pt")
        file = getattr(getattr(fn, "__code__", None), "co_filename", "")
        try:
            source = linecache.getlines(file)
            torch.save((fn, args, kwargs, file, source), call, pickle_module=cloudpickle)
        except Exception as error:
            raise TypeError(
                f"launch_function cannot send {getattr(fn, '__name__', fn)} to other processes:"
                f" {error}. It, or something of the notebook that it uses, lives in this process"
                " only (an open file, a lock, a generator): make that inside the function."
            ) from error
        worker = ["-m", "tinyllm_lib.launch.call", str(call), str(result)]
        arguments = [*meeting_host(True), *meet(nproc_per_node), "--log_dir", scratch, *worker]
        with Torchrun(arguments, scratch) as torchrun:
            for printed in torchrun.news(0.05):
                for line in printed:
                    if line.startswith(("[rank ", *WAITING)):
                        print(line, flush=True)
        return torch.load(result, map_location="cpu", weights_only=False)


def default_processes(device: str = "auto") -> int:
    """One process per GPU; without a GPU one per CPU core, 8 at most, single-threaded then."""
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0  # does not start CUDA
    if gpus or device in ("cuda", "mps"):
        return max(gpus, 1)
    if sys.platform == "win32" or (device == "auto" and torch.backends.mps.is_available()):
        return 1
    return min(allowed_cpus(), 8)


class Torchrun:
    """Our torchrun (`torchrun.py`), running; leaves no process behind, however its block ends.

    Args:
        arguments: of torchrun and its worker.
        scratch: a folder that both sides can write to, see `train/worker.py`.
        others: machines that must come before a worker starts.
    """

    def __init__(self, arguments: list[str], scratch: str, others: int = 0):
        self._scratch, self._others = Path(scratch), others
        self._output = GrowingFile(self._scratch / "output.txt")
        # What this process can import, the workers can.
        paths = [str(cluster.PACKAGE_PARENT), os.environ.get("PYTHONPATH", ""), *sys.path]
        env = {
            "TINYLLM_LAUNCHER_PID": str(os.getpid()),
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in paths),
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",
            "PYTHONIOENCODING": "utf-8",
            "TOKENIZERS_PARALLELISM": "false",
            "TMPDIR": str(temporary_folder(self._scratch.parent)),
        }
        with self._output.path.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tinyllm_lib.launch.torchrun", "agent", *arguments],
                env=os.environ | env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, who stop the workers in order
            )

    def __enter__(self) -> Torchrun:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(patience=0)

    def news(self, pause: float) -> Iterator[list[str]]:
        """What was printed since the last time, every `pause` seconds until torchrun has ended.

        Where the workers do not come up, or cannot reach each other, a line says so before it is an
        error.

        Raises:
            LaunchError: it ended with an error.
        """
        patience, said = time.monotonic() + SAY_SECONDS, ""
        while self._process.poll() is None:
            lines = self.printed()
            if time.monotonic() > patience and (waiting := self._waiting()) not in ("", said):
                patience, said = time.monotonic() + SAY_SECONDS, waiting
                lines.append(waiting)
            yield lines
            time.sleep(pause)
        yield self.printed()
        if self._process.returncode:
            raise LaunchError(self._failure())

    def printed(self) -> list[str]:
        """The lines of workers that have come since the last call."""
        return [line for line in self._output.news()[0] if not NOT_FROM_A_WORKER.match(line)]

    def _has(self, mark: str) -> bool:
        return (self._scratch / mark).exists()

    def _waiting(self) -> str:
        if self._has("met"):
            return ""
        if self._has("started"):
            return "Still waiting: processes have started and try to reach each other."
        if self._others:
            return f"Still waiting for the other machines ({self._others})."
        return "Still waiting: no process has started yet, torch is being read from the disk."

    def stop(self, patience: float) -> None:
        """Ends all processes: asks the workers, waits `patience` seconds, then tells torchrun.

        A second Ctrl-C ends the patience. Killing torchrun outright comes last; the workers notice
        and leave.
        """
        with suppress(OSError):
            (self._scratch / "stop").touch()
        if not self._has("started"):  # no worker is there yet to hear it
            patience = 0
        kill = getattr(signal, "SIGKILL", signal.SIGTERM)
        for number, seconds in ((None, patience), (signal.SIGTERM, 40), (kill, 40)):
            if self._process.poll() is None:
                if number:
                    self._process.send_signal(number)
                with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                    self._process.wait(seconds)

    def _failure(self) -> str:
        """What the agents say failed first; without a traceback the last lines, too."""
        said = f"torchrun ended with code {self._process.returncode}"
        for report in sorted(self._scratch.glob("failure_*.txt"))[:1]:  # named by the time
            said = report.read_text(encoding="utf-8")
        if "Traceback (most recent call last)" in said:
            return said
        lines, _ = GrowingFile(self._output.path).news()
        last = [line for line in lines if not NOT_FROM_A_WORKER.match(line)][-20:]
        return "\n".join([f"{said}. The last lines:", *last])
