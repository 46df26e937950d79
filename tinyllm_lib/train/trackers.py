"""Experiment trackers: the numbers of `metrics.jsonl`, sent to SwanLab, TensorBoard or Weights &
Biases as well.

None is needed; the library of each is imported only when asked for. Keys and modes come from the
environment alone, under the library's own names (SWANLAB_API_KEY, SWANLAB_MODE=offline,
WANDB_API_KEY, WANDB_MODE=offline), never from a config that is saved with the run.
"""

from __future__ import annotations

import importlib
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tinyllm_lib.train.config import TrainConfig
from tinyllm_lib.train.run_log import RunLog


class TensorBoard:
    """Event files for `tensorboard --logdir runs/`; what a killed run wrote past its last
    checkpoint is purged.
    """

    def __init__(self, folder: Path, run_name: str, run_id: str, config: dict, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first_step)
        lines = "\n".join(f"    {name} = {value}" for name, value in config.items())
        self.writer.add_text("config", lines, first_step)

    def log(self, step: int, numbers: dict) -> None:
        """Sends the numbers of a step."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Waits until all is sent."""
        self.writer.close()


class SwanLab:
    """swanlab.cn, or a folder for `swanlab sync`."""

    package, folder_option = "swanlab", "log_dir"

    def __init__(self, folder: Path, run_name: str, run_id: str, config: dict, first_step: int):
        interrupt = signal.getsignal(signal.SIGINT)
        self.run = importlib.import_module(self.package).init(
            project="tinyllm",
            name=run_name,
            id=run_id,
            resume="allow",
            config=config,
            **{self.folder_option: str(folder)},
        )
        if threading.current_thread() is threading.main_thread():
            # SwanLab takes Ctrl-C for itself; the trainer saves first
            signal.signal(signal.SIGINT, interrupt)

    def log(self, step: int, numbers: dict) -> None:
        """Sends the numbers of a step."""
        self.run.log(numbers, step=step)

    def close(self) -> None:
        """Waits until all is sent."""
        self.run.finish()


class WandB(SwanLab):
    """wandb.ai, or a folder for `wandb sync`; of a step sent twice, the first is kept."""

    package, folder_option = "wandb", "dir"


TRACKERS: dict[str, Callable] = {"tensorboard": TensorBoard, "swanlab": SwanLab, "wandb": WandB}


def open_tracker(name: str, run: Path, config: dict, first_step: int = 1):
    """The tracker called `name`, ready for `log(step, numbers)` and `close()`; its files lie in the
    run folder, and so does its identifier, by which a run that goes on is the same one there.

    Raises:
        ModuleNotFoundError: the library is not installed.
        RuntimeError: it does not start, for want of a key for example.
    """
    folder = run / "trackers" / name
    folder.mkdir(parents=True, exist_ok=True)
    id_file = folder / "run_id.txt"
    if not id_file.is_file():
        id_file.write_text(secrets.token_hex(8), encoding="utf-8")
    run_id = id_file.read_text(encoding="utf-8")
    try:
        return TRACKERS[name](folder, run.name, run_id, config, first_step)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"tracker={name!r} needs a package that is not installed ({error}): make setup"
            f" EXTRAS=trackers, or pip install {name}, or leave tracker at 'none'."
        ) from error
    except Exception as error:
        hosted = f"set {name.upper()}_API_KEY in the environment, or {name.upper()}_MODE=offline"
        hint = f": {hosted}" if name != "tensorboard" else ""
        raise RuntimeError(
            f"tracker={name!r} did not start ({type(error).__name__}: {error}){hint}."
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
