"""Experiment trackers: the numbers of `metrics.jsonl`, sent to SwanLab, TensorBoard or Weights &
Biases as well.

None is needed. Each is a few lines over its own library, which is imported only when asked for.
Keys and modes come from the environment alone, under the library's own names (SWANLAB_API_KEY,
SWANLAB_MODE=offline, WANDB_API_KEY, WANDB_MODE=offline), never from a config that is saved with the
run.
"""

from __future__ import annotations

import secrets
import signal
import threading
from pathlib import Path


class TensorBoard:
    """Event files for `tensorboard --logdir runs/`; what a killed run wrote past its last
    checkpoint is purged.
    """

    def __init__(self, folder: Path, run_name: str, run_id: str, config: dict, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first_step)
        self.writer.add_text(
            "config",
            "\n".join(f"    {name} = {value}" for name, value in config.items()),
            first_step,
        )

    def log(self, step: int, numbers: dict) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class SwanLab:
    """swanlab.cn, or a folder for `swanlab sync`."""

    def __init__(self, folder: Path, run_name: str, run_id: str, config: dict, first_step: int):
        import swanlab

        in_main_thread = threading.current_thread() is threading.main_thread()
        interrupt = signal.getsignal(signal.SIGINT)
        self.run = swanlab.init(
            project="tinyllm",
            name=run_name,
            id=run_id,
            resume="allow",
            log_dir=str(folder),
            config=config,
        )
        if in_main_thread:
            signal.signal(
                signal.SIGINT, interrupt
            )  # SwanLab takes Ctrl-C for itself; the trainer saves first

    def log(self, step: int, numbers: dict) -> None:
        self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()


class WandB:
    """wandb.ai, or a folder for `wandb sync`; of a step sent twice, the first is kept."""

    def __init__(self, folder: Path, run_name: str, run_id: str, config: dict, first_step: int):
        import wandb

        self.run = wandb.init(
            project="tinyllm",
            name=run_name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            config=config,
        )

    def log(self, step: int, numbers: dict) -> None:
        self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS = {"tensorboard": TensorBoard, "swanlab": SwanLab, "wandb": WandB}


def open_tracker(name: str, run: Path, config: dict, first_step: int = 1):
    """The tracker called `name`, ready for `log(step, numbers)` and `close()`; its files lie in the
    run folder.

    Args:
        run: the run folder. A run that goes on finds its identifier there, and with it the same run
            at the tracker.
        config: shown beside the curves.
        first_step: the first that will be logged.

    Raises:
        ModuleNotFoundError: the library is not installed.  RuntimeError: it does not start, for
            want of a key for example.
    """
    folder = run / "trackers" / name
    folder.mkdir(parents=True, exist_ok=True)
    id_file = folder / "run_id.txt"
    if not id_file.is_file():
        id_file.write_text(secrets.token_hex(8), encoding="utf-8")
    try:
        return TRACKERS[name](
            folder, run.name, id_file.read_text(encoding="utf-8"), config, first_step
        )
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"tracker={name!r} needs a package that is not installed ({error}): make setup"
            f" EXTRAS=trackers, or pip install {name}, or leave tracker at 'none'."
        ) from error
    except Exception as error:
        hint = (
            f": set {name.upper()}_API_KEY in the environment, or {name.upper()}_MODE=offline"
            if name != "tensorboard"
            else ""
        )
        raise RuntimeError(
            f"tracker={name!r} did not start ({type(error).__name__}: {error}){hint}."
        ) from error
