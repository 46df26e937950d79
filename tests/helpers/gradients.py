"""Under torchrun: gradients.py CONFIG OUT writes the gradient of a run's first step over all
processes, and the ids of the first batches; then the run is trained to its end."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tinyllm_lib.train import Processes, TrainConfig, build, prepare_run


def first_gradient(config, processes):
    """The gradient of each parameter and the loss, as the first optimiser step of `config` uses
    them.
    """
    trainer = build(prepare_run(config, processes))
    batches, supervised, _ = trainer.load_step(0)
    everywhere = processes.all_reduce(torch.tensor([supervised], dtype=torch.float64))
    trainer.accumulate_gradients(batches, int(everywhere.item()))
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    return {"loss": processes.all_reduce(trainer.loss.clone()), **gradients}


if __name__ == "__main__":
    config = TrainConfig(**json.loads(Path(sys.argv[1]).read_text("utf-8")))
    processes = Processes.join(config)
    gradients = first_gradient(config, processes)
    trainer = build(prepare_run(config, processes))
    mine = [torch.cat([batch.X for batch in trainer.load_step(step)[0]]) for step in range(5)]
    everybodys = [None] * processes.world_size
    dist.all_gather_object(everybodys, mine)
    if processes.rank == 0:
        batches = [torch.cat(parts) for parts in zip(*everybodys, strict=True)]
        torch.save({"gradients": gradients, "batches": batches}, sys.argv[2])
    trainer.fit()
    dist.barrier()
    os._exit(0)  # as the trainer does
