"""A run as it is seen, rebuilt from the files of its folder, whoever started it."""

import collections
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
    text = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


class View:
    """Shows a run: a live HTML display in a notebook, plain lines elsewhere.

    Args:
        handle: where to show it instead: `handle.update(bundle, raw=True)` gets a MIME bundle.
        skip: leaves out what the log holds now; else it begins with its last 30 lines.
    """

    def __init__(self, run: Path, handle: Any = None, *, skip: bool = False):
        self.run, self.ended = run, False
        self.plain = handle is None and not has_notebook_front_end()
        self._handle, self._skip = handle, skip
        self._log_file = GrowingFile(run / "train.log", skip=skip)
        self._metrics_file = GrowingFile(run / "metrics.jsonl")
        self._log: collections.deque[str] = collections.deque(maxlen=4)
        self._metrics: list[dict] = []

    def update(self, said: Sequence[str] = ()) -> None:
        """Shows what the run has written since the last call, and `said` below its log."""
        lines, anew = self._log_file.news()
        lines = [line[21:] for line in (lines[-30:] if anew and not self._skip else lines)]
        if lines:
            self.ended = lines[-1].startswith(ENDS)
        if self.plain:
            for line in (*(line for line in lines if line.startswith(("step ", *ENDS))), *said):
                print(line, flush=True)
            return
        from IPython.display import display

        self._log.extend([*lines, *said])
        lines, anew = self._metrics_file.news()
        self._metrics = ([] if anew else self._metrics) + [json.loads(line) for line in lines]
        state = self._metrics, run_config(self.run).get("steps", 0)
        shown = {
            "text/html": progress_html(*state, list(self._log)),
            "text/plain": " · ".join(progress_text(*state)),
        }
        if self._handle:
            self._handle.update(shown, raw=True)
        else:
            self._handle = display(shown, raw=True, display_id=True)


class GrowingFile:
    """The complete lines of a file that grows, is not there yet, or is replaced by another.

    With `skip` without those that it holds now.
    """

    def __init__(self, path: Path, *, skip: bool = False):
        self.path, self._file, self._at = path, 0, 0
        if skip and path.is_file():
            self._file, self._at = path.stat().st_ino, path.stat().st_size

    def news(self) -> tuple[list[str], bool]:
        """The lines since the last call, and whether they are those of another file than before."""
        try:
            with self.path.open("rb") as f:
                state = os.fstat(f.fileno())
                anew = state.st_ino != self._file or state.st_size < self._at
                self._file, self._at = state.st_ino, 0 if anew else self._at
                f.seek(self._at)
                lines = f.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return [], False
        self._at += sum(len(line) + 1 for line in lines)
        return [line.decode(errors="replace").rstrip("\r") for line in lines], anew


def has_notebook_front_end() -> bool:
    """False under pytest and nbval, and where TINYLLM_PLAIN is set: there output is text."""
    if "PYTEST_CURRENT_TEST" in os.environ or os.environ.get("TINYLLM_PLAIN"):
        return False
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
