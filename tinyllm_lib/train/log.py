"""What a run says: to people in train.log, to programs in metrics.jsonl and samples.jsonl, and, if
asked, the same numbers to an experiment tracker: SwanLab, TensorBoard or Weights & Biases.

The library of a tracker is imported only when asked for. Keys and modes come from the environment
alone, under the library's own names (SWANLAB_API_KEY, SWANLAB_MODE=offline, WANDB_API_KEY,
WANDB_MODE=offline), never from a config that is saved with the run.
"""

import importlib
import json
import math
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tinyllm_lib.data import atomic_path
from tinyllm_lib.model import step_folders
from tinyllm_lib.train.config import TrainConfig

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
        try:
            if self.speaks:
                with (self.folder / name).open("a", encoding="utf-8") as f:
                    f.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise OSError(
                f"{self.folder / name} cannot be written: {error}. {self.last_good()} Where the"
                " disk is full, make room; the same command goes on from that checkpoint."
            ) from error

    def write_metrics(self, step: int, steps: int, numbers: dict) -> None:
        """A line of metrics.jsonl, and what matters most of it for people."""
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


class TensorBoard:
    """Event files for `tensorboard --logdir runs/`; what a killed run wrote too much is purged."""

    def __init__(self, folder: Path, run_name: str, run_id: str, config: dict, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first_step)
        lines = [f"    {name} = {value}" for name, value in config.items()]
        self.writer.add_text("config", "\n".join(lines), first_step)
        self.close = self.writer.close

    def log(self, step: int, numbers: dict) -> None:
        """Writes the numbers of a step."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)


class SwanLab:
    """swanlab.cn, or a folder for `swanlab sync`."""

    package, folder_option = "swanlab", "log_dir"

    def __init__(self, folder: Path, run_name: str, run_id: str, config: dict, first_step: int):
        interrupt, options = signal.getsignal(signal.SIGINT), {self.folder_option: str(folder)}
        options |= {"project": "tinyllm", "name": run_name, "id": run_id, "resume": "allow"}
        self.run = importlib.import_module(self.package).init(config=config, **options)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)  # SwanLab takes Ctrl-C; the trainer saves first
        self.close = self.run.finish

    def log(self, step: int, numbers: dict) -> None:
        """Sends the numbers of a step."""
        self.run.log(numbers, step=step)


class WandB(SwanLab):
    """wandb.ai, or a folder for `wandb sync`; of a step sent twice, the first is kept."""

    package, folder_option = "wandb", "dir"


TRACKERS: dict[str, Callable] = {"tensorboard": TensorBoard, "swanlab": SwanLab, "wandb": WandB}


def open_tracker(name: str, run: Path, config: dict, first_step: int = 1):
    """A tracker, ready for `log(step, numbers)` and `close()`; its files lie in the run folder, and
    so does its identifier, by which a run that goes on is the same one there.

    Raises:
        ModuleNotFoundError: it is not installed.  RuntimeError: it does not start.
    """
    folder = run / "trackers" / name
    folder.mkdir(parents=True, exist_ok=True)
    id_file = folder / "run_id.txt"
    if not id_file.is_file():
        id_file.write_text(secrets.token_hex(8), encoding="utf-8")
    run_id = id_file.read_text(encoding="utf-8")
    try:
        return TRACKERS[name](folder, run.name, run_id, config, first_step)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError)
        hint = f"set {name.upper()}_API_KEY in the environment, or {name.upper()}_MODE=offline"
        if missing or name == "tensorboard":
            hint = f"make setup EXTRAS=trackers, or pip install {name}"
        raise (ModuleNotFoundError if missing else RuntimeError)(
            f"tracker={name!r} did not start ({type(error).__name__}: {error}): {hint}, or leave"
            " tracker at 'none'."
        ) from error


@contextmanager
def tracked(config: TrainConfig, log: RunLog, first_step: int) -> Iterator[Callable]:
    """`send(step, numbers)` to the config's tracker, or to nobody. One that fails must not stop the
    training: the run goes on without it and says so, once.
    """
    tracker, step = None, first_step - 1
    if log.speaks and config.tracker != "none":
        tracker = open_tracker(config.tracker, log.folder, asdict(config), first_step)

    def attempt(what: str, *numbers: Any) -> None:
        nonlocal tracker, step
        step = numbers[0] if numbers else step
        try:
            if tracker:
                getattr(tracker, what)(*numbers)
        except Exception as error:
            tracker = None
            log.say(
                f"Warning: tracker={config.tracker!r} failed after step {step}"
                f" ({type(error).__name__}: {error}). The run goes on without it; metrics.jsonl has"
                " every number."
            )

    try:
        yield partial(attempt, "log")
    finally:
        attempt("close")
