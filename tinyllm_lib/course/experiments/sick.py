"""The gallery: runs with one fault each, under letters that give nothing away."""

from __future__ import annotations

from dataclasses import replace

import torch

from tinyllm_lib.course.experiments.training import (
    Data,
    Feed,
    Result,
    epoch_rows,
    short_run,
)
from tinyllm_lib.dataset import PackedRow
from tinyllm_lib.tokenizer import SPECIAL_TOKENS
from tinyllm_lib.train import TrainConfig

CAUSES = (
    "the learning rate is too high",
    "the learning rate is too low",
    "the targets are not shifted: each token is its own target",
    "the ids come from another tokenizer than the weights it goes on from",
    "no warm-up",
    "a batch without a single token to learn, and a mean over it",
    "too little text, read again and again",
)
_PLACES = {"A": 1, "B": 5, "C": 2, "D": 6, "E": 0, "F": 3, "G": 4}
ANSWERS = {letter: CAUSES[place] for letter, place in _PLACES.items()}


def sick_runs(data: Data, config: TrainConfig, healthy: Result) -> dict[str, Result]:
    """Letter -> a run that differs from `healthy`, a run of `config`, in one fault."""
    rate = config.learning_rate
    other = permuted_ids(len(data.tokenizer))
    few = epoch_rows(data, 2 * config.batch_size)
    return {
        "A": short_run(data, replace(config, learning_rate=rate / 100)),
        "B": short_run(data, config, feed=one_empty(config.steps // 3), guarded=False),
        "C": short_run(data, config, feed=own_target),
        "D": short_run(data, config, rows=few),
        "E": short_run(data, replace(config, learning_rate=100 * rate)),
        "F": short_run(data, config, feed=other, start=healthy.model),
        "G": short_run(data, replace(config, warmup_steps=0)),
    }


def own_target(batch: PackedRow, step: int | None) -> PackedRow:
    """A feed: nobody has shifted the targets, so each token is to predict itself."""
    return batch._replace(Y=batch.X)


def one_empty(empty: int) -> Feed:
    """A feed: in this step the loss mask has no token to learn."""

    def feed(batch: PackedRow, step: int | None) -> PackedRow:
        return batch._replace(loss_mask=0 * batch.loss_mask) if step == empty else batch

    return feed


def permuted_ids(vocab_size: int) -> Feed:
    """A feed: every id but the special ones stands for another piece, the same in every batch."""
    generator = torch.Generator().manual_seed(0)
    first = len(SPECIAL_TOKENS)
    pieces = first + torch.randperm(vocab_size - first, generator=generator)
    table = torch.cat([torch.arange(first), pieces])

    def feed(batch: PackedRow, step: int | None) -> PackedRow:
        return batch._replace(X=table[batch.X], Y=table[batch.Y])

    return feed
