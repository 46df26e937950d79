"""What this process may use of the machine, which is often less than what is built in: cores, memory, room on a disk."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def allowed_cpus() -> int:
    """Cores that this process may use: by affinity (taskset, Slurm) and by the quota of its cgroup (containers)."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:                                     # macOS, Windows
        cores = os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def _cpu_quota() -> float | None:
    """Cores of the cgroup's quota; None where there is no limit."""
    try:                                                       # version 2: "200000 100000" or "max 100000"
        limit, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:                                                   # version 1
            limit, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if limit in ("max", "-1") else int(limit) / int(period)
