"""What this process may use of the machine, which is often less than what is built in or asked for:
cores, memory, room on a disk, a home directory, a console that shows Chinese.
"""

from __future__ import annotations

import atexit
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
ENOUGH_ROOM = 2**30  # bytes that a temporary folder should have free


def allowed_cpus(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Cores that this process may use: by affinity (taskset, Slurm) and by the quotas of its
    cgroups (containers).
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    for folder in _cgroups("cpu", cgroups, membership):
        with suppress(
            OSError, ValueError, ZeroDivisionError
        ):  # version 2: "200000 100000" or "max 100000"
            limit, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
            cores = min(cores, math.ceil(int(limit) / int(period)))
        with suppress(OSError, ValueError, ZeroDivisionError):  # version 1; -1 is no limit
            limit, period = (
                int((folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8"))
                for name in ("quota", "period")
            )
            cores = min(cores, math.ceil(limit / period)) if limit > 0 else cores
    return max(1, cores)


def allowed_memory(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Bytes of memory that this process may use: what is built in, or less by the limits of its
    cgroups.
    """
    if hasattr(os, "sysconf"):
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:  # Windows, in KiB
        import ctypes

        kibibytes = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kibibytes))
        size = 1024 * kibibytes.value
    for folder in _cgroups("memory", cgroups, membership):
        for name in (
            "memory.max",
            "memory.limit_in_bytes",
        ):  # version 2: a number or "max"; version 1: a huge one for no limit
            with suppress(OSError, ValueError):
                size = min(size, int((folder / name).read_text(encoding="utf-8")))
    return size


def _cgroups(controller: str, cgroups: Path, membership: Path) -> Iterator[Path]:
    """The folders of this process's cgroups and of all above them, whose limits hold, too: version
    2, and one controller of 1.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots = [cgroups, cgroups / "unified"]
        else:
            roots = [cgroups / controller] if controller in controllers.split(",") else []
        parts = (
            [] if ".." in path else path.strip("/").split("/")
        )  # not in the part of the tree that this container sees
        for root in roots:
            yield from (root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def temporary_folder(*others: Path) -> Path:
    """Where temporary files and programs made on the way find room: the system's folder, or else
    the first of `others` that is fit.
    """
    try:
        usual = Path(tempfile.gettempdir())
    except FileNotFoundError:  # none can be written to
        usual = Path.cwd()
    return next((folder for folder in (usual, *others) if _has_room(folder)), usual)


def _has_room(folder: Path) -> bool:
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    noexec = (
        hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_NOEXEC
    )  # torch.compile runs what it has written there
    return not noexec and shutil.disk_usage(folder).free >= ENOUGH_ROOM


def ensure_home() -> None:
    """Where there is no home directory to write to, a temporary one for this process and those it
    starts.

    Jupyter, IPython and matplotlib keep their files there and do not start without.
    """
    with suppress(RuntimeError):  # no HOME, and a user whom the system does not know
        home = Path.home()  # not made: where it is missing, nobody wanted it
        if os.access(home, os.W_OK | os.X_OK):
            return
    home = tempfile.mkdtemp(prefix="tinyllm-home-", dir=temporary_folder())
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["HOME"] = os.environ["USERPROFILE"] = home


def utf8_output() -> None:
    """For a `main()`: what goes to a file or another program is UTF-8, whatever the locale; a
    terminal keeps its own, and shows "?" for what it does not have.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not one that a test or a notebook has put in its place
            stream.reconfigure(
                encoding=stream.encoding if stream.isatty() else "utf-8", errors="replace"
            )
