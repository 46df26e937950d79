"""A training process under torchrun: how processes meet, and how each notices that it has to end.

The starter (`tinyllm_lib.launch`) and its workers share a scratch folder:

    started         from a worker: listening
    met             from a worker: it can reach the others
    stop            from the starter: finish your step, save, end
    rank_<n>.txt    from a worker that failed: its error and traceback
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ITSELF = "127.0.0.1:0"  # where one machine meets itself, at a free port


def meet(nproc: int, nnodes: int = 1, endpoint: str = ITSELF) -> list[str]:
    """Torchrun's arguments for `nproc` processes on each of `nnodes` machines, which meet at
    `endpoint`, "host:port"; one machine does so at its loopback address, whatever it is called.
    """
    if nproc < 1:
        raise ValueError(f"nproc_per_node must be at least 1, is {nproc}.")
    sizes = ["--nnodes", str(nnodes), "--nproc_per_node", str(nproc)]
    return [*sizes, "--rdzv_backend", "c10d", "--rdzv_endpoint", endpoint]


def meeting_host(here: bool, seconds: int = 60) -> list[str]:
    """Torchrun's arguments that say whether the meeting place is on this machine, which its name
    does not always tell, and how many `seconds` one that is there waits for the rest.
    """
    return ["--rdzv_conf", f"is_host={str(here).lower()},join_timeout={seconds}"]


def resume_command(run: Path, processes: int) -> str:
    """The shell command that goes on with a run of this machine from its last checkpoint."""
    agent = ["tinyllm_lib.launch.torchrun", "agent", *meeting_host(True), *meet(processes), "-m"]
    options = ["--config", str(run / "config.json"), "--resume", "must"]
    many = agent if processes > 1 else []
    return shlex.join([sys.executable, "-m", *many, "tinyllm_lib.train", *options])


class Lifeline:
    """Ends a worker that is asked to stop, or whose starter is gone: none is ever left behind.

    Asked by the starter, or the notebook kernel gone: `end` is called, once; it leaves at once,
    unless the worker has set something gentler. The torchrun agent gone: the process leaves at
    once, so that on many machines the others notice and start again from the last checkpoint.
    """

    def __init__(self) -> None:
        self.end: Callable[[], None] = lambda: os._exit(1)
        self.mark("started")
        if "TORCHELASTIC_RUN_ID" in os.environ:
            threading.Thread(target=self._listen, args=(os.getppid(),), daemon=True).start()

    @staticmethod
    def mark(what: str) -> None:
        """Tells the starter how far this worker is: "started", "met"."""
        if scratch := os.environ.get("TINYLLM_SCRATCH"):
            with suppress(OSError):
                Path(scratch, what).touch()

    def _listen(self, agent: int) -> None:
        starter = int(os.environ.get("TINYLLM_LAUNCHER_PID", 0))
        scratch = os.environ.get("TINYLLM_SCRATCH")
        asked = False
        while os.getppid() == agent:
            stop = scratch and Path(scratch, "stop").exists()
            if not asked and (stop or (starter and not is_running(starter))):
                asked = True
                self.end()
            time.sleep(0.3)
        os._exit(1)


def is_running(pid: int) -> bool:
    """Whether this process of this machine is there and not dead."""
    if os.name != "posix":  # Windows cannot be asked without harm
        return True
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # Linux: one whose parent has not asked for its end yet is gone, too.
        return stat.rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's, or no Linux, but there


@contextmanager
def failure_reported() -> Iterator[None]:
    """Leaves an error of its block where `Torchrun` finds it, and raises it again."""
    rank, scratch = os.environ.get("RANK", "0"), os.environ.get("TINYLLM_SCRATCH")
    report = Path(scratch or os.devnull, f"rank_{rank}.txt")  # nowhere, without a starter
    with suppress(OSError):
        report.unlink()  # of an attempt that torchrun has started again
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not isinstance(error.code, str):
            raise  # a number: what is wrong has been printed
        frames = error.__traceback__
        while frames and frames.tb_next and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next  # begin where the reader's own code begins
        headline = "".join(traceback.format_exception_only(error)).rstrip()
        lines = "".join(traceback.format_exception(type(error), error, frames)).rstrip()
        with suppress(OSError):
            report.write_text(f"{headline}\n\n{lines}", encoding="utf-8")
        raise
