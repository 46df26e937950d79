"""What this process may use of the machine, often less than what is built in."""

import io
import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def allowed_cpus() -> int:
    """Cores for this process, by affinity (taskset, Slurm) and the quotas of its cgroups."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    for limit in _limits("cpu.max"):
        if len(limit) == 2:  # quota and period
            cores = min(cores, math.ceil(limit[0] / limit[1]))
    return max(1, cores)


def allowed_memory() -> int:
    """Bytes of memory for this process: what is built in, or less by the limits of its cgroups."""
    if sys.platform == "win32":
        import ctypes

        kibibytes = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kibibytes))
        size = 1024 * kibibytes.value
    else:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([size, *(number for limit in _limits("memory.max") for number in limit)])


def _limits(name: str) -> Iterator[list[int]]:
    """The numbers in this file ("max" is none), for the cgroup of this process and all above."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for path in (line.removeprefix("0::") for line in lines if line.startswith("0::/")):
        # A path with ".." is not in the part of the tree that this container sees.
        parts = [] if ".." in path else path.strip("/").split("/")
        for folder in (CGROUPS.joinpath(*parts[:n]) for n in range(len(parts) + 1)):
            with suppress(OSError, ValueError):
                text = (folder / name).read_text(encoding="utf-8")
                yield [int(word) for word in text.split()]


def utf8_output() -> None:
    """For a `main()`: what is printed is UTF-8, whatever the locale; a terminal keeps its own."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not one that a test or a notebook has put there
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="replace")


def is_running(pid: int) -> bool:
    """Whether this process of this machine is there and not dead."""
    if os.name != "posix":  # Windows cannot be asked without harm
        return True
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] not in "ZX"  # ended, but nobody has asked for it
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, or no Linux: but there
        return True
