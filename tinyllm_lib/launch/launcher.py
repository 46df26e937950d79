"""Starting processes from a notebook cell: a training run, or a function the learner wrote.

The kernel is never forked and never touches the GPU, so the same cell works with one CPU and with
eight GPUs.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import torch

from tinyllm_lib.data import allowed_cpus, require_writable
from tinyllm_lib.launch import cluster
from tinyllm_lib.launch.live import REFRESH_SECONDS, View
from tinyllm_lib.train import TrainConfig

STOP_PATIENCE = 120.0  # seconds for a step and a checkpoint
# How lines begin that the log lacks; the last is of a damaged checkpoint.
NOT_IN_THE_LOG = ("An older run", "step_")
NOISE = re.compile(  # of torchrun and of torch's libraries, also in a rank
    r"(\[rank \d+] )?(\s*$|(\[rank\d+]:)?\[?[WIE]\d{4} \d\d:|\[Gloo] Rank )"
    r"|\[rank\d+]:|\*{5}|torch\.distributed\.elastic"
)
# By its path: with `-m` it would read all of the trainer before it starts one.
AGENT = str(Path(__file__).with_name("torchrun.py"))


class LaunchError(RuntimeError):
    """Launched processes ended with an error; the message has the traceback of the first."""


def launch(
    config: TrainConfig,
    nproc_per_node: int | str = "auto",
    *,
    nnodes: int = 1,
    rdzv_endpoint: str | None = None,
    show: bool | View = True,
    stop: threading.Event | None = None,
) -> Path:
    """Trains as `config` says in torchrun processes, shown until they end; returns the run folder.

    With `nnodes` above 1 the command for each other machine is printed; see `cluster.py`.

    Args:
        nproc_per_node: processes; "auto": one per GPU, or without one per CPU core, at most 8.
        nnodes: machines, of which this is one.
        rdzv_endpoint: "host:port" where the machines meet: this one as the others call it, and a
            free port. One machine finds a port by itself.
        show: False for silence; a `View` to show the run there.
        stop: does what the stop button does, once it is set by another thread.

    Raises:
        LaunchError: a process failed.
        KeyboardInterrupt: after the stop button, once the run has saved a checkpoint and ended.
        ValueError: several machines and no place to meet.
    """
    nproc = default_processes(config.device) if nproc_per_node == "auto" else int(nproc_per_node)
    run, others = Path(os.path.abspath(config.out_dir)), nnodes - 1
    require_writable(run)
    run.parent.mkdir(parents=True, exist_ok=True)
    shared = run.parent if others else None
    with tempfile.TemporaryDirectory(prefix="tinyllm_", dir=shared) as scratch:
        where = Path(scratch, "config.json"), nproc, nnodes, rdzv_endpoint
        arguments = ["--log_dir", scratch, *cluster.torchrun_arguments(config, *where)]
        if others:
            print(f"On each of the other machines ({others}) run this command; all begin together:")
            print(f"\n{cluster.node_command(arguments)}\n", flush=True)
        view = View(run, skip=True) if show is True else show or None
        with Torchrun(arguments, scratch) as torchrun:
            try:
                for printed in torchrun.news(REFRESH_SECONDS if view and not view.plain else 0.1):
                    if view:
                        view.update([line for line in printed if line.startswith(NOT_IN_THE_LOG)])
                    if stop and stop.is_set():
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                if show is True:
                    print("Stopping: the run finishes its step and saves a checkpoint.", flush=True)
                torchrun.stop(STOP_PATIENCE)
                raise
            finally:
                if view:
                    view.update()
    return run


def launch_function(fn: Callable, *args: object, nproc_per_node: int = 2, **kwargs: object) -> Any:
    """Calls `fn(*args, **kwargs)` on several ranks at once; returns what rank 0 returned.

    `fn` may be written in a notebook cell: it is sent with the functions, imports and values of the
    notebook that it uses. On each rank the process group is there already (gloo; nccl for tensors
    on GPUs, where there is one for each rank); the environment variables RANK, LOCAL_RANK and
    WORLD_SIZE say who one is. What a rank prints is shown at once, with its number before it, and
    tensors come back on the CPU.

    Raises:
        LaunchError: a rank failed.
        TypeError: `fn` or an argument cannot be pickled, such as a lock or a generator.
        KeyboardInterrupt: after the stop button, once all ranks have ended.
    """
    import cloudpickle

    with tempfile.TemporaryDirectory(prefix="tinyllm_") as scratch:
        call, result = Path(scratch, "call.pt"), Path(scratch, "result.pt")
        torch.save((fn, args, kwargs), call, pickle_module=cloudpickle)
        arguments = ["--log_dir", scratch, "--tee", "3", *cluster.meet(nproc_per_node)]
        arguments += ["-m", "tinyllm_lib.launch.call", str(call), str(result)]
        with Torchrun(arguments, scratch) as torchrun:
            for printed in torchrun.news(0.05):
                for line in printed:
                    if line.startswith("[rank "):
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


class Torchrun(AbstractContextManager):
    """Our torchrun (`torchrun.py`), running; leaves no process behind, however its block ends.

    In the folder `scratch` both sides leave each other signs, see `end_with_starter`.
    """

    def __init__(self, arguments: list[str], scratch: str):
        self._scratch = Path(scratch)
        printed = Path(scratch, "output.txt")
        # What this process can import, the workers can.
        paths = [str(cluster.PACKAGE_PARENT), os.environ.get("PYTHONPATH", ""), *sys.path]
        env = {
            "TINYLLM_LAUNCHER_PID": str(os.getpid()),
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in paths),
            "TMPDIR": tempfile.gettempdir(),
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",
            "PYTHONIOENCODING": "utf-8",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with printed.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", AGENT, "agent", *arguments],
                env=os.environ | env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, who stop the workers in order
            )
        self._output, self._half_line = printed.open("rb"), b""

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._output.close()

    def news(self, pause: float) -> Iterator[list[str]]:
        """What was printed since the last time, every `pause` seconds until torchrun has ended. A
        LaunchError says what failed.
        """
        while self._process.poll() is None:
            yield self._printed()
            time.sleep(pause)
        yield self._printed()
        if self._process.returncode:
            raise LaunchError(self._failure())

    def _printed(self) -> list[str]:
        *lines, self._half_line = (self._half_line + self._output.read()).split(b"\n")
        texts = (line.decode(errors="replace").rstrip("\r") for line in lines)
        return [text for text in texts if not NOISE.match(text)]

    def stop(self, patience: float = 0.0) -> None:
        """Ends all processes: asks workers, waits, tells torchrun, kills it, which workers notice.

        A second Ctrl-C ends the patience, which is in seconds.
        """
        ask, process = (self._scratch / "stop").touch, self._process
        if not (self._scratch / "started").exists():
            patience = 0.0  # no worker is there yet to hear it
        for end, seconds in ((ask, patience), (process.terminate, 40.0), (process.kill, 40.0)):
            if process.poll() is None:
                with suppress(OSError, subprocess.TimeoutExpired, KeyboardInterrupt):
                    end()
                    process.wait(seconds)

    def _failure(self) -> str:
        """What the agents say failed first; without a traceback the last lines, too."""
        said = f"torchrun ended with code {self._process.returncode}"
        for report in sorted(self._scratch.glob("failure_*.txt"))[:1]:  # named by the time
            said = report.read_text(encoding="utf-8")
        if "Traceback (most recent call last)" in said:
            return said
        self._output.seek(0)
        return "\n".join([f"{said}. The last lines:", *self._printed()[-20:]])
