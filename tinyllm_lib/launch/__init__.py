"""Notebook 05: a cell becomes processes on one machine or many, which are shown and stopped.

default_processes: one process per GPU; without a GPU one per CPU core, 8 at most (each then
    runs single-threaded, which wastes least)
has_notebook_front_end: false under pytest and nbval, and where TINYLLM_PLAIN is set
launch: trains as `config` says in torchrun processes and shows the progress until they end
launch_function: calls `fn(*args, **kwargs)` in several torchrun processes at once, one call
    on each rank, and returns what rank 0 returned
LaunchError: launched processes that ended with an error
LogTail: what a run's train.log says, without the times
progress_html: A run as HTML: a bar with the time left, loss and learning rate as curves, the
    latest numbers, the last lines of the log
read_metrics: the lines of a run's `metrics.jsonl`, oldest first
slurm_script: writes a Slurm job that trains as `config` says, one torchrun per node
View: shows a run
watch: shows a run from its files, whoever started it
"""

from tinyllm_lib.launch.cluster import slurm_script
from tinyllm_lib.launch.launcher import default_processes, launch, launch_function
from tinyllm_lib.launch.live import (
    LogTail,
    View,
    has_notebook_front_end,
    progress_html,
    read_metrics,
    watch,
)
from tinyllm_lib.launch.torchrun import LaunchError

__all__ = [
    "LaunchError",
    "LogTail",
    "View",
    "default_processes",
    "has_notebook_front_end",
    "launch",
    "launch_function",
    "progress_html",
    "read_metrics",
    "slurm_script",
    "watch",
]
