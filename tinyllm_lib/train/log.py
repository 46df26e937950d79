"""What a run says, to people (train.log) and to programs (metrics.jsonl, samples.jsonl)."""

import json
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
        """A line for people, on the terminal and in train.log."""
        if self.speaks:
            with suppress(OSError):  # the launcher is gone, or its disk is full; the file remains
                print(line, flush=True)
            with suppress(OSError), (self.folder / "train.log").open("a", encoding="utf-8") as f:
                f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    def append(self, name: str, row: dict) -> None:
        """A line for programs: `row` as JSON, at the end of the file `name`."""
        if self.speaks:
            with (self.folder / name).open("a", encoding="utf-8") as f:
                f.write(json.dumps(row, ensure_ascii=False) + "\n")

    def write_metrics(self, step: int, steps: int, numbers: dict) -> None:
        """A line of metrics.jsonl, and what matters most of it for people."""
        self.append("metrics.jsonl", {"step": step, **numbers})
        found = [f"{SHOWN[key]} {number:.6g}" for key, number in numbers.items() if key in SHOWN]
        self.say(f"step {step:>6}/{steps}  {'  '.join(found)}")

    def forget_after(self, step: int) -> None:
        """Removes the lines of later steps, which the run takes once more, and broken ones."""
        for path in (self.folder / "metrics.jsonl", self.folder / "samples.jsonl"):
            if self.speaks and path.is_file():
                kept = []
                for line in path.read_bytes().splitlines():
                    with suppress(ValueError):  # broken off, be it within a character
                        if json.loads(line)["step"] <= step:
                            kept.append(line + b"\n")
                with atomic_path(path) as temporary:
                    temporary.write_bytes(b"".join(kept))

    def last_good(self) -> str:
        """For an error: the checkpoint from which the run can go on."""
        folders = step_folders(self.folder)
        return f"Last good checkpoint: {folders[-1].name if folders else 'none'}."
