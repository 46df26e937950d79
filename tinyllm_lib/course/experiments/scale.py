"""Sizes and budgets: what a model costs, and how many steps a budget pays for."""

from dataclasses import dataclass, replace

import torch

from tinyllm_lib.course.profiles import Profile
from tinyllm_lib.model import ModelConfig, Transformer
from tinyllm_lib.train import TrainConfig


@dataclass(frozen=True)
class Scale:
    """How much a profile experiments."""

    seeds: tuple[int, ...]  # of each variant in section 2
    budgets: tuple[float, ...]  # training FLOPs of a run in section 3
    sizes: tuple[tuple[int, int], ...] = ((16, 1), (32, 2), (64, 2), (96, 3))  # width, layers


NUMBERS = {
    "ci": Scale(seeds=(0, 1), budgets=(2e9, 4e9, 8e9)),
    "laptop": Scale(seeds=(0, 1, 2), budgets=(2e10, 6e10, 1.8e11)),
}


def numbers_of(profile: Profile) -> Scale:
    """Seeds and budgets of a profile; those without an entry take the laptop's."""
    return NUMBERS.get(profile.name, NUMBERS["laptop"])


def shape_of(config: TrainConfig, vocab_size: int) -> tuple[int, int]:
    """Parameters of a config's model, and its training FLOPs for a token; nothing is allocated."""
    size = config.dim, config.n_layers, config.n_heads, config.n_kv_heads
    with torch.device("meta"):
        model = Transformer(ModelConfig(*size, vocab_size, config.max_seq_len))
    return model.num_parameters(), model.flops_per_token()


def steps_within(config: TrainConfig, vocab_size: int, flops: float) -> TrainConfig:
    """The config with as many steps as a budget of training FLOPs has room for, at least 2."""
    _, per_token = shape_of(config, vocab_size)
    steps = max(2, round(flops / per_token / config.batch_size / config.max_seq_len))
    return replace(config, steps=steps, warmup_steps=max(1, steps // 10))
