"""What a run says: on the terminal and in train.log, in metrics.jsonl and in samples.jsonl."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tinyllm_lib.data import atomic_path
from tinyllm_lib.model import step_folders

# What train.log shows of metrics.jsonl, and how it calls it.
SHOWN = {"loss": "loss", "lr": "lr", "tokens_per_second": "tokens/s", "val_loss": "val_loss"}
SHOWN |= {"val_bits_per_byte": "val bits/byte"}


@dataclass(frozen=True)
class RunLog:
    """The files in which a run tells how it goes; of its processes only the first one speaks."""

    folder: Path
    speaks: bool

    def say(self, line: str) -> None:
        """A line for people."""
        if self.speaks:
            with suppress(BrokenPipeError):  # the launcher is gone; the file still takes the line
                print(line, flush=True)
            file = self.folder / "train.log"
            with suppress(OSError), file.open("a", encoding="utf-8") as f:
                f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    def append(self, name: str, row: dict) -> None:
        """A line for programs: `row` as JSON, at the end of the file `name`."""
        if not self.speaks:
            return
        path = self.folder / name
        try:
            with path.open("a", encoding="utf-8") as f:
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise OSError(
                f"{path} cannot be written: {error}. {self.last_good()} Where the disk is full,"
                " make room; the same command goes on from that checkpoint."
            ) from error

    def write_metrics(self, step: int, steps: int, numbers: dict) -> None:
        """A line of metrics.jsonl, and the most important of it for people."""
        self.append("metrics.jsonl", {"step": step, **numbers})
        found = [f"{SHOWN[key]} {number:.6g}" for key, number in numbers.items() if key in SHOWN]
        self.say(f"step {step:>6}/{steps}  {'  '.join(found)}")

    def forget_after(self, step: int) -> None:
        """Removes the lines of later steps, which the run takes once more, and broken ones."""
        for path in (self.folder / "metrics.jsonl", self.folder / "samples.jsonl"):
            if self.speaks and path.is_file():
                lines = path.read_bytes().splitlines()
                kept = [line + b"\n" for line in lines if _step_of_line(line) <= step]
                with atomic_path(path) as temporary:
                    temporary.write_bytes(b"".join(kept))

    def last_good(self) -> str:
        """For an error: the checkpoint from which the run can go on."""
        folders = step_folders(self.folder)
        return f"Last good checkpoint: {folders[-1].name if folders else 'none'}."


def _step_of_line(line: bytes) -> float:
    """Infinity where the line was broken off, be it within a character."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
