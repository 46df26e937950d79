"""Notebook 05: a cell becomes processes on one machine or many, which are shown and stopped.

The processes are torchrun's; what is shown is read from the files of the run folder.

    has_notebook_front_end: whether output is seen in a notebook, and not compared or read as text
    launch: trains as a config says in torchrun processes and shows the run until they end
    launch_function: calls a function on several ranks at once and returns what rank 0 returned
    LaunchError: launched processes ended with an error, whose traceback it carries
    progress_html: a run as HTML: a bar, numbers, curves, the last lines of the log
    read_metrics: the lines of a run's metrics.jsonl, oldest first
    View: shows a run: live HTML in a notebook, plain lines elsewhere
    watch: shows a run from its files, whoever started it
"""

from tinyllm_lib.launch.launcher import LaunchError, launch, launch_function
from tinyllm_lib.launch.live import View, has_notebook_front_end, read_metrics, watch
from tinyllm_lib.launch.progress import progress_html
