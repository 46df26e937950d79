"""Notebooks 05 and 06: shards and a `TrainConfig` become a run folder. `python -m tinyllm_lib.train
--help`

    failure_reported: leaves an error of its block where `Torchrun` finds it, and raises it again
    get_lr: learning rate of optimiser step `step` (from 0)
    is_running:
    Lifeline: ends a worker that is asked to stop, or whose starter is gone, so that none is ever
        left behind
    meet: torchrun's arguments for `nproc` processes on each of `nnodes` machines, which meet at
        `endpoint`, "host:port"
    meeting_host: torchrun's arguments that say whether the meeting place is on this machine,
        which cannot always be told from the name
    missing_for_cpu_compile: what `torch.compile` needs on a CPU under Linux and does not find, in
        words
    peak_flops: FLOP/s this process could reach
    Processes: the processes that train together, and this one's place among them
    run_config: the `config.json` of a run
    train: trains as `config` says, in this process (and its torchrun siblings)
    train_memory: gigabytes (1e9 bytes) that each of `gpus` needs, by part
    TrainConfig: every option of a training run
    Trainer: one run
    ITSELF: where one machine meets itself
"""

from tinyllm_lib.train.config import TrainConfig, get_lr, run_config
from tinyllm_lib.train.devices import Processes, missing_for_cpu_compile, peak_flops
from tinyllm_lib.train.memory import train_memory
from tinyllm_lib.train.trainer import Trainer, train
from tinyllm_lib.train.worker import (
    ITSELF,
    Lifeline,
    failure_reported,
    is_running,
    meet,
    meeting_host,
)

__all__ = [
    "ITSELF",
    "Lifeline",
    "Processes",
    "TrainConfig",
    "Trainer",
    "failure_reported",
    "get_lr",
    "is_running",
    "meet",
    "meeting_host",
    "missing_for_cpu_compile",
    "peak_flops",
    "run_config",
    "train",
    "train_memory",
]
