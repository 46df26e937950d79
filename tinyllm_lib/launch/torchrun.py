"""Processes under torchrun, seen from both sides: who starts them, and what runs in each of them.

`Torchrun` starts torchrun as a subprocess, reads what it prints, stops it, and says what failed. In
each worker a `Lifeline` listens and `failure_reported` leaves the traceback. The two sides meet in
a scratch folder:

    started         from a worker: listening
    met             from a worker: it can reach the others
    stop            from the starter: finish your step, save, end
    rank_<n>.txt    from a worker that failed: its error and traceback

Run as a module it is our torchrun (`python -m torch.distributed.run` that obeys its arguments
alone, and ends when its starter is gone) or the worker of `launch_function`: that joins the process
group, calls the learner's function and, on rank 0, writes the result. Nothing but the standard
library is imported before it is needed, so workers start quickly.
"""

from __future__ import annotations

import collections
import io
import ipaddress
import itertools
import linecache
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tinyllm_lib.data import allowed_cpus, atomic_path, temporary_folder
from tinyllm_lib.train import Lifeline, failure_reported, is_running

PACKAGE_PARENT = (
    Path(__file__).resolve().parents[2]
)  # the folder that holds tinyllm_lib: PYTHONPATH of the workers
SAY_SECONDS = 20.0  # without a sign of life, after which is said what is waited for
STILL_WAITING = "Still waiting"  # how such a line begins


class LaunchError(RuntimeError):
    """Launched processes that ended with an error; the message carries the traceback of the one
    that failed first.
    """


# ---- the side that starts


class Torchrun:
    """A running torchrun; a context manager that leaves no process behind, however its block ends.

    Args:
        arguments: of torchrun and its worker, from `meet` or `cluster.meeting_arguments`.
        scratch: a folder both sides can write to.
        what: what a worker is called in an error.
        env: environment variables beside those of this process.
        machines: that must come before a worker starts.
    """

    def __init__(
        self,
        arguments: list[str],
        scratch: Path,
        *,
        what: str,
        env: dict[str, str] | None = None,
        machines: int = 1,
    ):
        self.scratch, self.what, self.machines = scratch, what, machines
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._tail: collections.deque[str] = collections.deque(maxlen=200)
        env = {**os.environ, **(env or {})}
        env |= {
            "TINYLLM_LAUNCHER_PID": str(os.getpid()),
            "TINYLLM_SCRATCH": str(scratch),
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
            "PYTHONUTF8": "1",  # as `_read` expects it, and names of folders as they are
            "TOKENIZERS_PARALLELISM": "false",
            "TMPDIR": str(temporary_folder(scratch.parent)),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(PACKAGE_PARENT), env.get("PYTHONPATH")])
            ),
        }
        # A session of its own: the terminal's Ctrl-C and the kernel's interrupt reach us alone, and
        # we stop the workers in order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tinyllm_lib.launch.torchrun", "agent", *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Torchrun:
        return self

    def __exit__(self, *_) -> None:
        self.stop(patience=0)

    def _read(self) -> None:
        for line in self._process.stdout:  # a pipe nobody reads fills up and stops the workers
            self._tail.append(line.rstrip("\n"))
            self._lines.put(line.rstrip("\n"))

    def news(self, pause: float) -> Iterator[list[str]]:
        """What was printed since the last time, every `pause` seconds until torchrun has ended.

        Where the workers do not come up, or cannot reach each other, a line says so before it is an
        error.

        Raises:
            LaunchError: it ended with an error.
        """
        patience, said = time.monotonic() + SAY_SECONDS, None
        while self._process.poll() is None:
            lines = self.printed()
            waiting = None if self._has("met") else "started" if self._has("started") else "nothing"
            if time.monotonic() > patience and waiting not in (None, said):
                patience, said = time.monotonic() + SAY_SECONDS, waiting
                lines.append(
                    f"{STILL_WAITING}: {self.what}s have started and try to reach each other."
                    if waiting == "started"
                    else (
                        f"{STILL_WAITING} for the other machines ({self.machines - 1})."
                        if self.machines > 1
                        else (
                            f"{STILL_WAITING}: no {self.what} has started yet, torch is being read"
                            " from the disk."
                        )
                    )
                )
            yield lines
            time.sleep(pause)
        self._reader.join(timeout=5)
        yield self.printed()
        if self._process.returncode:
            raise LaunchError(self._first_failure())

    def printed(self) -> list[str]:
        """The lines that have come since the last call."""
        return [self._lines.get() for _ in range(self._lines.qsize())]

    def _has(self, mark: str) -> bool:
        return (self.scratch / mark).exists()

    def stop(self, patience: float) -> None:
        """Ends all processes: asks the workers, waits `patience` seconds, then torchrun itself is
        told to end them.

        A second Ctrl-C ends the patience. Killing torchrun outright comes last; the workers notice
        and leave.
        """
        with suppress(OSError):
            (self.scratch / "stop").touch()
        if not self._has("started"):  # no worker is there yet to hear it
            patience = 0
        kill = getattr(signal, "SIGKILL", signal.SIGTERM)
        for number, seconds in ((None, patience), (signal.SIGTERM, 40), (kill, 40)):
            if self._process.poll() is None:
                if number:
                    self._process.send_signal(number)
                with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                    self._process.wait(seconds)
        self._reader.join(timeout=5)

    def _first_failure(self) -> str:
        reports = sorted(self.scratch.glob("rank_*.txt"), key=lambda path: path.stat().st_mtime_ns)
        printed = list(self._tail)
        # From torchrun's own summary: when and how workers ended, last the one whose end it saw
        # first. Where one of that moment left
        # no report, and was not ended by torchrun, the reports of others only say that they lost
        # it.
        ended = re.findall(
            r"^ +time +: (\S+)\n.*\n +rank +: (\d+) .*\n +exitcode +: (.+)",
            "\n".join(printed),
            re.MULTILINE,
        )
        silent = [
            (rank, code)
            for when, rank, code in ended
            if when == ended[-1][0]
            and not code.startswith("-15 ")
            and not (self.scratch / f"rank_{rank}.txt").is_file()
        ]
        if reports and not silent:
            return (
                f"{self.what} {reports[0].stem.removeprefix('rank_')}"
                f" failed:\n{reports[0].read_text(encoding='utf-8')}"
            )
        if self.machines > 1 and any("RendezvousTimeoutError" in line for line in printed[-20:]):
            return (
                "The other machines did not come in time. Is the printed command running there, and"
                " can they reach this one's port?"
            )
        if silent:  # without what the others say, and torchrun about itself
            before = itertools.takewhile(
                lambda line: not re.search("closing signal|failed .exitcode: ", line), printed
            )
            printed = [line for line in before if not re.match(r"\[rank\d", line)]
            rank, code = silent[-1]
            killed = " (killed from outside, or out of memory?)" if code.startswith("-9 ") else ""
            who = f"{self.what} {rank} ended with code {code.strip()} and left no traceback{killed}"
        else:
            who = (
                f"torchrun ended with code {self._process.returncode} before any {self.what} could"
                " leave a traceback"
            )
            if causes := [line for line in printed if re.match(r"[\w.]+(Error|Exception): ", line)]:
                # of errors that follow from each other the first
                who += f", after {causes[0].rstrip('.')}"
        return "\n".join([f"{who}. The last lines:", *printed[-20:]])


def save_object(value: object, path: Path) -> None:
    """Writes any Python object, functions of a notebook included; whole or not at all."""
    import cloudpickle
    import torch

    with atomic_path(path) as temporary:
        torch.save(value, temporary, pickle_module=cloudpickle)


def load_object(path: Path) -> object:
    """What `save_object` wrote; tensors come back on the CPU. Runs code from the file: only for
    one's own scratch folder.
    """
    import torch

    return torch.load(path, map_location="cpu", weights_only=False)


# ---- torchrun itself

PATIENCE_WITHOUT_STARTER = 120.0  # seconds that workers have to finish their step and save


# What torchrun and its workers read from the environment: left there by another job or by a
# cluster's controller, it would steer ours.
FOREIGN = re.compile(
    r"(PET|TORCHELASTIC|TORCH_ELASTIC)_.*|((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|"
    r"(TORCH_)?NCCL_ASYNC_ERROR_HANDLING|TORCH_DIST_INIT_BARRIER|PYTHON_EXEC|USE_LIBUV|LOGLEVEL|OMP_NUM_THREADS"
)
OF_A_NETWORK = (
    "GLOO_SOCKET_IFNAME",
    "NCCL_SOCKET_IFNAME",
)  # right for one machine in its cluster, and no use inside a machine


def run_agent(arguments: list[str]) -> None:
    """`python -m torch.distributed.run` that nothing in the environment steers, and which ends when
    its starter is gone.

    Workers notice by themselves, and with the last of them torchrun ends. Only an agent that has
    none, because it waits for other machines, would stay until its time is over, and hold the port
    where they meet.
    """
    nnodes, nproc, endpoint = (
        arguments[arguments.index(f"--{name}") + 1]
        for name in ("nnodes", "nproc_per_node", "rdzv_endpoint")
    )
    for name in [
        name
        for name in os.environ
        if FOREIGN.fullmatch(name) or (nnodes == "1" and name in OF_A_NETWORK)
    ]:
        del os.environ[name]
    if nnodes == "1" and (
        loopback := {"lo", "lo0"}.intersection(name for _, name in socket.if_nameindex())
    ):
        os.environ["GLOO_SOCKET_IFNAME"] = (
            loopback.pop()
        )  # and not where the machine's name leads, which may be a VPN
    os.environ["OMP_NUM_THREADS"] = str(max(1, allowed_cpus() // int(nproc)))
    if "TINYLLM_LAUNCHER_PID" in os.environ:
        threading.Thread(target=_end_with_starter, daemon=True).start()
    address = _own_address(endpoint)
    from torch.distributed.run import main as torchrun

    torchrun(["--local_addr", address, *arguments])


def _own_address(endpoint: str) -> str:
    """This machine as those see it who meet at `endpoint`; its own name may mean nothing to them."""
    host, port = endpoint.rsplit(":", 1)
    try:
        family, kind, _, _, there = socket.getaddrinfo(
            host.strip("[]"), int(port) or 1, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind) as s:
            s.connect(there)  # of this kind: finds the way, sends nothing
            own = s.getsockname()[0]
    except OSError as error:
        raise SystemExit(
            f"No way from this machine ({socket.gethostname()}) to {host}, where all should meet:"
            f" {error}. Give rdzv_endpoint by a name that all machines know, or by a number."
        ) from None
    return host if ipaddress.ip_address(own.partition("%")[0]).is_loopback else own


def _end_with_starter() -> None:
    while is_running(int(os.environ["TINYLLM_LAUNCHER_PID"])):
        time.sleep(0.3)
    if Path(os.environ["TINYLLM_SCRATCH"], "started").exists():
        time.sleep(PATIENCE_WITHOUT_STARTER)
    os.kill(os.getpid(), signal.SIGTERM)  # torchrun's own way out: it takes its workers along


# ---- the side of a worker


class _Labelled(io.TextIOBase):
    """Standard output of one rank: whole lines only, each with the rank before it and written at
    once.
    """

    def __init__(self, rank: str):
        self._rank, self._rest, self._lock = rank, "", threading.Lock()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                shown = line.rstrip("\r").rpartition("\r")[2]  # of a progress bar the last state
                os.write(1, f"[rank {self._rank}] {shown}\n".encode(errors="replace"))
        return len(text)

    def finish(self) -> None:
        """Writes a last line that has no end."""
        if self._rest:
            self.write("\n")


def _call(call: Path, result: Path) -> None:
    """Runs the function in `call` on this rank; rank 0 writes what it returns to `result`."""
    import torch
    import torch.distributed as dist

    on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    Lifeline.mark("met")
    fn, args, kwargs, file, source = load_object(call)
    if isinstance(fn, types.FunctionType):  # a traceback shows the lines of the cell
        fn.__code__ = fn.__code__.replace(co_filename=file)
        linecache.cache[file] = (0, None, source, file)
    try:
        returned = fn(*args, **kwargs)
    except SystemExit as leaving:
        raise RuntimeError(f"the function called exit({leaving.code}); use return") from leaving
    if on_gpus:
        torch.cuda.synchronize()  # another rank may still wait for this one's share
    if dist.get_rank() == 0:
        try:
            save_object(returned, result)
        except Exception as error:
            raise TypeError(
                f"launch_function: rank 0 returned a {type(returned).__name__}, which cannot be"
                f" sent to the notebook ({error}). Return numbers, strings, lists, dicts, arrays or"
                " tensors."
            ) from None


def main() -> None:
    """`python -m tinyllm_lib.launch.torchrun agent …`, and under it `python -m
    tinyllm_lib.launch.torchrun CALL RESULT`.
    """
    if sys.argv[1] == "agent":
        return run_agent(sys.argv[2:])
    Lifeline()
    output = sys.stdout = sys.stderr = _Labelled(os.environ["RANK"])
    code = 1
    with suppress(Exception), failure_reported():
        _call(Path(sys.argv[1]), Path(sys.argv[2]))
        code = 0
    output.finish()
    os._exit(code)  # gloo's threads may abort a process that takes them down in order


if __name__ == "__main__":
    main()
