"""A training process under torchrun: how processes meet, and how each notices that it has to end.

The starter (`tinyllm_lib.launch`) and its workers share a scratch folder, in which a file says:

    started     from a worker: listening
    met         from a worker: it can reach the others
    stop        from the starter: finish your step, save, end
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinyllm_lib.data import is_running

ITSELF = "127.0.0.1:0"  # where one machine meets itself, at a free port


def meet(nproc: int, nnodes: int = 1, endpoint: str = ITSELF) -> list[str]:
    """Torchrun's arguments for `nproc` processes on each of `nnodes` machines.

    One machine meets itself at its loopback address: what it is called, and whether that name
    resolves, does not matter.

    Args:
        endpoint: "host:port" where the machines meet.

    Raises:
        ValueError: no process.
    """
    if nproc < 1:
        raise ValueError(f"nproc_per_node must be at least 1, is {nproc}.")
    numbers = ["--nnodes", str(nnodes), "--nproc_per_node", str(nproc)]
    return [*numbers, "--rdzv_backend", "c10d", "--rdzv_endpoint", endpoint]


def meeting_host(here: bool, seconds: int = 60) -> list[str]:
    """Torchrun's arguments that say whether the meeting place is on this machine.

    It cannot always be told from the name.

    Args:
        seconds: as long as one that is there waits for the rest.
    """
    return ["--rdzv_conf", f"is_host={str(here).lower()},join_timeout={seconds}"]


class Lifeline:
    """Ends a worker that is asked to stop, or whose starter is gone, so that none is left behind.

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
        starter = int(os.environ.get("TINYLLM_LAUNCHER_PID", 0))
        stop = Path(os.environ.get("TINYLLM_SCRATCH", os.devnull), "stop")
        asked = False
        while os.getppid() == agent:
            if not asked and (stop.exists() or (starter and not is_running(starter))):
                asked = True
                self.end()
            time.sleep(0.3)
        os._exit(1)


@contextmanager
def failure_reported(*hidden: str) -> Iterator[None]:
    """Writes an error of its block where torchrun and `launch` find it, and raises it again.

    That is torchelastic's error file, as `torch.distributed.elastic`'s `@record` writes it.

    Args:
        hidden: files of ours whose frames are left out where the traceback begins.
    """
    try:
        yield
    except Exception as error:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        frames = error.__traceback__
        while (
            frames and frames.tb_next and frames.tb_frame.f_code.co_filename in (__file__, *hidden)
        ):
            frames = frames.tb_next
        with suppress(OSError):  # a full disk
            get_error_handler().record_exception(error.with_traceback(frames))
        raise
