"""A run as it is seen, rebuilt from the files of its folder, whoever started it."""

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinyllm_lib.launch.progress import progress_html, progress_text
from tinyllm_lib.train import run_config

ENDS = ("Finished", "Stopped", "Failed")  # how a last line of train.log begins
REFRESH_SECONDS = 1.0


def watch(run: str | Path, *, follow: bool = True) -> None:
    """Shows a run from its files until it ends or the cell is stopped, which does not stop the run.

    Args:
        run: the run folder, `ws.run(name)`. A FileNotFoundError says that there is none.
        follow: False shows the present state and returns. (True waits for a run that was killed.)
    """
    if not run_config(run).get("steps"):
        raise FileNotFoundError(f"{run} is no run folder: no config.json in it says its steps.")
    view = View(Path(run))
    view.update()
    with suppress(KeyboardInterrupt):
        while follow and not view.ended:
            time.sleep(REFRESH_SECONDS)
            view.update()


def read_metrics(run: str | Path) -> list[dict]:
    """The lines of a run's `metrics.jsonl`, oldest first; a half-written last line is left out. A
    FileNotFoundError says that the run has written none.
    """
    return [json.loads(line) for line in whole_lines(Path(run) / "metrics.jsonl")]


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that grows, without the last as long as it has no end."""
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


class View:
    """Shows a run: a live HTML display in a notebook, plain lines elsewhere.

    Args:
        handle: where to show it instead: `handle.update(bundle, raw=True)` gets a MIME bundle.
        skip: leaves out what the log holds now; else it begins with its last 30 lines.
    """

    def __init__(self, run: Path, handle: Any = None, *, skip: bool = False):
        self.run, self.ended = run, False
        self.plain = handle is None and not has_notebook_front_end()
        self._handle = handle
        lines = self._log_lines()
        self._seen = lines if skip else lines[:-30]
        self._shown: list[str] = []  # the last lines of the log and what was said

    def _log_lines(self) -> list[str]:
        log = self.run / "train.log"
        return whole_lines(log) if log.is_file() else []

    def update(self, said: Sequence[str] = ()) -> None:
        """Shows what the run has written since the last call, and `said` below its log."""
        log, seen = self._log_lines(), self._seen
        goes_on = log[: len(seen)] == seen  # else: a new run in the place of another
        lines = [line[21:] for line in (log[len(seen) :] if goes_on else log)]
        self._seen = log
        if lines:
            self.ended = lines[-1].startswith(ENDS)
        if self.plain:
            for line in (*(line for line in lines if line.startswith(("step ", *ENDS))), *said):
                print(line, flush=True)
            return
        from IPython.display import display

        self._shown = [*self._shown, *lines, *said][-4:]
        metrics = read_metrics(self.run) if (self.run / "metrics.jsonl").is_file() else []
        state = metrics, run_config(self.run).get("steps", 0)
        shown = {
            "text/html": progress_html(*state, self._shown),
            "text/plain": " · ".join(progress_text(*state)),
        }
        if self._handle:
            self._handle.update(shown, raw=True)
        else:
            self._handle = display(shown, raw=True, display_id=True)


def has_notebook_front_end() -> bool:
    """False under pytest and nbval, and where TINYLLM_PLAIN is set: there output is text."""
    if "PYTEST_CURRENT_TEST" in os.environ or os.environ.get("TINYLLM_PLAIN"):
        return False
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
