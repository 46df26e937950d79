"""Notebooks 05 and 06: shards and a `TrainConfig` become a run folder; `python -m tinyllm_lib.train
--help` lists every option.

Read `start.py` (`train` and `build`), `run_folder.py` (`prepare_run`), `trainer.py` (the loop).

    TrainConfig: every option of a training run, in five groups; saved as the run's config.json
    train: trains as a config says, in this process and its torchrun siblings
    get_lr: the learning rate of a step
    run_config: what the config.json of a run says
    is_out_of_memory: whether a GPU or the CPU had no memory left
    train_memory: the gigabytes that each GPU needs, by part
    prepare_run: finds a run's checkpoint to go on from, or makes its folder
    make_optimizers: AdamW, or Muon for hidden matrices and AdamW for the rest
    build: the model and optimisers of a prepared run, as a Trainer
    Trainer: a run at work: its steps one by one, or all of them (`fit`)
    Processes: the processes that train together, and this one's place among them
    peak_flops: the FLOP/s that this process could reach
    end_with_starter: ends a worker that is asked to stop, or whose starter is gone
"""

from tinyllm_lib.train.config import TrainConfig, get_lr, run_config
from tinyllm_lib.train.devices import Processes, peak_flops
from tinyllm_lib.train.memory import is_out_of_memory, train_memory
from tinyllm_lib.train.optim import make_optimizers
from tinyllm_lib.train.run_folder import prepare_run
from tinyllm_lib.train.start import build, end_with_starter, train
from tinyllm_lib.train.trainer import Trainer
