"""What `make course` shows of a notebook while it runs."""

import sys
import time
from pathlib import Path

SECONDS_A_LINE = 60


class Progress:
    """The line of one notebook: rewritten with each cell in a terminal; elsewhere, where a long
    silence would look like an end, with a line below it every minute.
    """

    def __init__(self, head: str, runs: Path):
        self.head, self.runs, self.live = head, runs, sys.stdout.isatty()
        self.start, self.told, self.where = time.monotonic(), 0, ""
        print(head, end="", flush=True)

    def on_cell(self, cell: int, cells: int) -> None:
        """Before each code cell."""
        self.where = f"cell {cell} of {cells}"
        if self.live:
            print(f"\r{self.head}  running {self.where} ", end="", flush=True)

    def on_wait(self) -> None:
        """Again and again while the notebook runs."""
        minutes = int((time.monotonic() - self.start) / SECONDS_A_LINE)
        if not self.live and minutes > self.told:
            first, self.told = not self.told, minutes
            training = newest_step(self.runs, SECONDS_A_LINE)
            where = ", ".join(filter(None, [self.where, training]))
            print("\n" * first + f"      after {minutes} min: {where}", flush=True)

    def end(self) -> None:
        """The notebook is through, or has stopped."""
        minutes = f"{(time.monotonic() - self.start) / 60:6.1f} min"
        again = f"\r{self.head}" if self.live else self.head if self.told else ""
        print(again, minutes + " " * 20 * self.live, flush=True)


def newest_step(runs: Path, seconds: float) -> str:
    """Which run has logged a step within the last `seconds`, and how far it is; "": none has."""
    from tinyllm_lib.launch import read_metrics
    from tinyllm_lib.train import run_config

    logs = {path.stat().st_mtime: path.parent for path in runs.glob("*/metrics.jsonl")}
    if not logs or time.time() - max(logs) > seconds or not (rows := read_metrics(logs[max(logs)])):
        return ""
    run = logs[max(logs)]
    return f"{run.name} at step {rows[-1]['step']:,} of {run_config(run).get('steps', 0):,}"
