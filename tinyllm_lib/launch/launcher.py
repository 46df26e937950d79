"""Starting processes from a notebook cell: a training run, or a function the learner wrote.

`launch(config)` runs torchrun (`torchrun … -m tinyllm_lib.train`) as a subprocess, and
`launch_function(fn)` does the same with a function. The kernel is never forked and never touches
the GPU, so the same cell works with one CPU and with eight GPUs. A run is shown from its files
(`tinyllm_lib.live`), so `watch(run)` shows the same later; how it gets to more machines than one is
in `tinyllm_lib.cluster`.
"""

from __future__ import annotations

import linecache
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from tinyllm_lib.data import allowed_cpus, require_writable, temporary_folder
from tinyllm_lib.launch import cluster
from tinyllm_lib.launch.cluster import slurm_script
from tinyllm_lib.launch.live import (
    REFRESH_SECONDS,
    LogTail,
    View,
    progress_html,
    read_metrics,
    watch,
)
from tinyllm_lib.launch.torchrun import (
    STILL_WAITING,
    LaunchError,
    Torchrun,
    load_object,
    save_object,
)
from tinyllm_lib.train import TrainConfig, meet, meeting_host

__all__ = [
    "LaunchError",
    "default_processes",
    "launch",
    "launch_function",
    "progress_html",
    "read_metrics",
    "slurm_script",
    "watch",
]

STOP_PATIENCE = 120.0  # seconds for a step and a checkpoint


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

    With `nnodes` above 1 this machine is one of them. The command for each of the others is
    printed; clone, data and run folder must lie on a file system that all share. What happens when
    a machine is lost: see `tinyllm_lib.cluster`.

    Args:
        nproc_per_node: processes; "auto" is one per GPU, or one per CPU core that may be used (at
            most 8) where there is no GPU.
        nnodes: machines.
        rdzv_endpoint: "host:port" where the machines meet: this one as the others call it, and a
            free port. With one machine only where the free port that torchrun finds by itself must
            not be used.
        rdzv_id: a name that tells this run from others that meet at the same place; None: that of
            the run.
        show: False for silence; a `View` to show the run there.
        stop: does what the stop button does, once it is set; for a call from another thread than
            the notebook's.

    Returns:
        The run folder.

    Raises:
        LaunchError: a process failed.
        KeyboardInterrupt: after the stop button, once the run has saved a checkpoint and ended.
        ValueError: several machines and no place to meet.
    """
    nproc = default_processes(config.device) if nproc_per_node == "auto" else int(nproc_per_node)
    config = cluster.with_absolute_paths(config)
    run, many = Path(config.out_dir), nnodes > 1
    require_writable(run)
    run.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="tinyllm_", dir=run.parent if many else temporary_folder(run.parent)
    ) as folder:
        scratch = Path(folder)
        arguments = cluster.meeting_arguments(config, nproc, nnodes, rdzv_endpoint, rdzv_id)
        host = meeting_host(True, cluster.JOIN_SECONDS) if many else meeting_host(True)
        if many:
            print(
                f"On each of the other machines ({nnodes - 1}) run this command; the run begins"
                f" when all are there:\n\n{cluster.node_command(arguments, scratch)}\n",
                flush=True,
            )
        log = (
            LogTail(run, skip=True) if many else None
        )  # the process that speaks may run on another machine
        view = View(run) if show is True else show or None

        def update(printed: list[str], final: bool = False) -> None:
            if view:
                shown = [line for line in printed if _from_trainer(line)]
                view.update(
                    (
                        [*(line for line in shown if line.startswith(STILL_WAITING)), *log.news()]
                        if log
                        else shown
                    ),
                    final,
                )

        env = cluster.MEETING_ENV if many else None
        with Torchrun(
            [*host, *arguments], scratch, what="training process", env=env, machines=nnodes
        ) as torchrun:
            try:
                for printed in torchrun.news(0.1 if not view or view.plain else REFRESH_SECONDS):
                    update(printed)
                    if stop is not None and stop.is_set():
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


def launch_function(fn: Callable, *args, nproc_per_node: int = 2, **kwargs) -> object:
    """Calls `fn(*args, **kwargs)` in several torchrun processes at once, one call on each rank, and
    returns what rank 0 returned.

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
    with tempfile.TemporaryDirectory(prefix="tinyllm_", dir=temporary_folder(Path.cwd())) as folder:
        scratch = Path(folder)
        call, result = scratch / "call.pt", scratch / "result.pt"
        file = getattr(getattr(fn, "__code__", None), "co_filename", "")
        try:
            save_object((fn, args, kwargs, file, linecache.getlines(file)), call)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"launch_function needs the package {error.name}: run `make setup` or `pip install"
                f" {error.name}`.",
                name=error.name,
            ) from None
        except Exception as error:
            raise TypeError(
                f"launch_function cannot send {getattr(fn, '__name__', fn)} to other processes:"
                f" {error}. It, or something of the notebook that it uses, lives in this process"
                " only (an open file, a lock, a generator): make that inside the function."
            ) from error
        env = {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)
        }  # what this notebook can import, fn can
        arguments = [
            *meeting_host(True),
            *meet(nproc_per_node),
            "-m",
            "tinyllm_lib.launch.torchrun",
            str(call),
            str(result),
        ]
        with Torchrun(arguments, scratch, what="rank", env=env) as torchrun:
            for printed in torchrun.news(0.05):
                for line in printed:
                    if line.startswith(("[rank ", STILL_WAITING)):  # the rest is torchrun's
                        print(line, flush=True)
        return load_object(result)


def default_processes(device: str = "auto") -> int:
    """One process per GPU; without a GPU one per CPU core, 8 at most (each then runs
    single-threaded, which wastes least).
    """
    import torch

    gpus = (
        torch.cuda.device_count() if device in ("auto", "cuda") else 0
    )  # counts without starting CUDA
    if gpus or device in ("cuda", "mps"):
        return max(gpus, 1)
    if device == "auto" and torch.backends.mps.is_available():
        return 1
    return 1 if sys.platform == "win32" else min(allowed_cpus(), 8)


def _from_trainer(line: str) -> bool:
    """Whether the trainer printed it, and not torchrun or one of torch's libraries."""
    return bool(line.strip()) and not re.match(
        r"\[?[WIE]\d{4} |\[W|\[Gloo]|\*{5}|.*torch\.distributed\.elastic", line
    )
