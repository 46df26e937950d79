"""A short run: the trainer's loop in one function, with places where an experiment can reach in.

With nothing changed its losses are those of `tinyllm_lib.train.train`; a test holds the two
together. One process, fp32: the same seed gives the same run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.course import prepare
from tinyllm_lib.course.profiles import Profile
from tinyllm_lib.course.workspace import Workspace
from tinyllm_lib.dataset import DataOrder, PackedDataset, PackedRow, collate
from tinyllm_lib.model import Batch, ModelConfig, Transformer, score
from tinyllm_lib.train import TrainConfig, get_lr, make_optimizers

STEPS = {"ci": 12, "laptop": 120}  # of a run, by profile; others take the laptop's
EVAL_BATCH = 16  # rows
Change = Callable[[Transformer], None]  # alters a new model in place
Feed = Callable[[PackedRow, int | None], PackedRow]  # a batch, its step (None: validation)


@dataclass(frozen=True)
class Data:
    """What short runs read: packed rows to train on and to validate with, and their tokenizer."""

    train: PackedDataset
    val: PackedDataset
    tokenizer: PreTrainedTokenizerFast


@dataclass(frozen=True)
class Result:
    """What a short run gave."""

    config: TrainConfig
    losses: list[float]  # of each step's batch, before the step; nats per token
    validation: dict[int, float]  # steps done -> nats per token of the validation rows
    model: Transformer = field(repr=False)

    @property
    def val_loss(self) -> float:
        """The last validation loss, nats per token."""
        return self.validation[max(self.validation)]


def load_data(ws: Workspace, profile: Profile) -> Data:
    """The rows of the workspace's pretraining shards, which are made where they are missing."""
    tokenizer = prepare.tokenizer(ws, profile)
    shards = prepare.token_shards(ws, "pretrain", profile)
    packing = profile.pretrain.get("packing", "best_fit")
    options = {"packing": packing, "tokenizer": tokenizer}
    train = PackedDataset(shards / "train", profile.max_length, **options)
    return Data(train, PackedDataset(shards / "val", profile.max_length, **options), tokenizer)


def base_config(profile: Profile, **changes: object) -> TrainConfig:
    """The small model and the few steps from which every experiment starts; `changes` win."""
    steps = changes.get("steps") or STEPS.get(profile.name, STEPS["laptop"])
    numbers = {
        "dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "max_seq_len": profile.max_length,
        "batch_size": 4,
        "steps": steps,
        "warmup_steps": max(1, steps // 10),
        "learning_rate": 1e-2,
        "dtype": "fp32",
        "eval_rows": 32,
    }
    return TrainConfig(**{**numbers, **changes})


def make_model(data: Data, config: TrainConfig, change: Change | None = None) -> Transformer:
    """A new model of the config's size and seed, changed if asked for."""
    torch.manual_seed(config.seed)
    size = config.dim, config.n_layers, config.n_heads, config.n_kv_heads
    model = Transformer(ModelConfig(*size, len(data.tokenizer), config.max_seq_len))
    if change:
        with torch.no_grad():
            change(model)
    return model


def short_run(
    data: Data,
    config: TrainConfig,
    *,
    change: Change | None = None,
    feed: Feed | None = None,
    rows: Sequence[int] | None = None,
    start: Transformer | None = None,
    guarded: bool = True,
) -> Result:
    """Trains a new model for `config.steps` steps, with the losses of the library's trainer.

    Args:
        change: alters the new model in place, before the first step.
        feed: (batch, step) -> the batch that is used instead; step is None for validation.
        rows: only these rows of the training text, again and again.
        start: a trained model to go on from, which stays as it is.
        guarded: a batch without a token to learn has a loss of 0; if not, of 0/0.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = copy.deepcopy(start) if start else make_model(data, config, change)
    model.to(device)
    optimizers = make_optimizers(model, config)
    rows = range(len(data.train)) if rows is None else rows
    order = DataOrder(len(rows), config.seed)
    losses, validation = [], {}
    for step in range(config.steps):
        chosen = order.step_rows(step, config.batch_size)
        batch = collate([data.train[int(rows[i])] for i in chosen])
        batch = feed(batch, step) if feed else batch
        loss = batch_loss(model, batch, guarded=guarded)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = get_lr(step, config)
            optimizer.step()
        losses.append(loss.item())
        if (step + 1) % (config.eval_interval or config.steps) == 0 or step + 1 == config.steps:
            validation[step + 1] = validate(model, data, config, feed)
    return Result(config, losses, validation, model)


def batch_loss(model: Transformer, batch: PackedRow, *, guarded: bool = True) -> Tensor:
    """The mean loss of a batch's supervised tokens, nats; a scalar."""
    batch = PackedRow(*(t.to(model.lm_head.weight.device) for t in batch))
    supervised = batch.loss_mask.sum()
    weights = batch.loss_mask.float() / (supervised.clamp(min=1) if guarded else supervised)
    documents = {"position_ids": batch.position_ids, "document_ids": batch.document_ids}
    return model.weighted_nll(batch.X, batch.Y, weights, **documents)


def validate(
    model: Transformer, data: Data, config: TrainConfig, feed: Feed | None = None
) -> float:
    """Nats per token of `config.eval_rows` validation rows, the trainer's own choice of them."""
    order = np.random.default_rng(0).permutation(len(data.val))
    rows = sorted(order[: config.eval_rows].tolist())
    lengths = torch.ones(len(data.tokenizer))  # bytes do not matter here

    def batches() -> Iterator[Batch]:
        for begin in range(0, len(rows), EVAL_BATCH):
            batch = collate([data.val[i] for i in rows[begin : begin + EVAL_BATCH]])
            batch = feed(batch, None) if feed else batch
            documents = {"position_ids": batch.position_ids, "document_ids": batch.document_ids}
            yield batch.X, batch.Y, batch.loss_mask, documents

    return score(model, batches(), lengths).nats_per_token


def epoch_rows(data: Data, count: int) -> list[int]:
    """`count` rows of the training text, drawn at random: best fit sorts them by length."""
    return np.random.default_rng(0).permutation(len(data.train))[:count].tolist()
