"""A training process under torchrun: how processes meet, and how each of them notices that it has
to end.

The starter (`tinyllm_lib.launch`) and its workers share a scratch folder:

    started         from a worker: listening
    met             from a worker: it can reach the others
    stop            from the starter: finish your step, save, end
    rank_<n>.txt    from a worker that failed: its error and traceback
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ITSELF = "127.0.0.1:0"  # where one machine meets itself, at a free port


def meet(nproc: int, nnodes: int = 1, endpoint: str = ITSELF) -> list[str]:
    """Torchrun's arguments for `nproc` processes on each of `nnodes` machines, which meet at
    `endpoint`, "host:port".

    One machine meets itself at its loopback address: what it is called, and whether that name
    resolves, does not matter.
    """
    if nproc < 1:
        raise ValueError(f"nproc_per_node must be at least 1, is {nproc}.")
    return [
        "--nnodes",
        str(nnodes),
        "--nproc_per_node",
        str(nproc),
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        endpoint,
    ]


def meeting_host(here: bool, seconds: int = 60) -> list[str]:
    """Torchrun's arguments that say whether the meeting place is on this machine, which cannot
    always be told from the name.

    Args:
        seconds: as long as one that is there waits for the rest; when it is alone, nobody has to
            come.
    """
    return ["--rdzv_conf", f"is_host={str(here).lower()},join_timeout={seconds}"]


class Lifeline:
    """Ends a worker that is asked to stop, or whose starter is gone, so that none is ever left
    behind.

    Asked by the starter, or the notebook kernel gone: `end` is called, once; to leave at once,
    unless the worker has set something gentler. The torchrun agent gone: the process leaves at
    once, so that on many machines the others notice and start again from the last checkpoint as
    soon as this machine is back.
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
        launcher, scratch = (
            int(os.environ.get("TINYLLM_LAUNCHER_PID", 0)),
            os.environ.get("TINYLLM_SCRATCH"),
        )
        asked = False
        while True:
            if os.getppid() != agent:
                os._exit(1)
            if not asked and (
                (scratch and Path(scratch, "stop").exists())
                or (launcher and not is_running(launcher))
            ):
                asked = True
                self.end()
            time.sleep(0.3)


def is_running(pid: int) -> bool:
    """Whether this process of this machine is there and not dead."""
    if os.name != "posix":  # Windows cannot be asked without harm
        return True
    try:
        os.kill(pid, 0)
        with suppress(
            FileNotFoundError
        ):  # Linux: one whose parent has not asked for its end yet is gone, too
            return (
                Path(f"/proc/{pid}/stat")
                .read_text(encoding="utf-8", errors="replace")
                .rpartition(")")[2]
                .split()[0]
                not in "ZX"
            )
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's, but there
    return True


@contextmanager
def failure_reported() -> Iterator[None]:
    """Leaves an error of its block where `Torchrun` finds it, and raises it again."""
    rank, scratch = os.environ.get("RANK", "0"), os.environ.get("TINYLLM_SCRATCH")
    report = Path(scratch, f"rank_{rank}.txt") if scratch else None
    with suppress(OSError):
        if report:
            report.unlink()  # of an attempt that torchrun has started again
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not isinstance(error.code, str):
            raise  # a number: what is wrong has been printed
        headline, frames = (
            "".join(traceback.format_exception_only(error)).rstrip(),
            error.__traceback__,
        )
        while (
            frames.tb_next and frames.tb_frame.f_code.co_filename == __file__
        ):  # begin where the reader's own code begins
            frames = frames.tb_next
        with suppress(OSError):
            if report:
                lines = traceback.format_exception(type(error), error, frames)
                report.write_text(f"{headline}\n\n{''.join(lines).rstrip()}", encoding="utf-8")
        raise
