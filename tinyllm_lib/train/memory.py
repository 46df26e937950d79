"""How much memory training needs: computed from the shapes, the activations by estimate. And what
to change where it is not there.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from tinyllm_lib.data import allowed_memory
from tinyllm_lib.model import ModelConfig, Transformer
from tinyllm_lib.train.config import TrainConfig

ACTIVATIONS_MARGIN = (
    1.35  # plain PyTorch keeps this many times the estimate, counted on a CPU in notebook 05
)
USABLE_SHARE = 0.9  # of a GPU; the rest is for PyTorch's own buffers and for fragments


def train_memory(config: TrainConfig, vocab_size: int, gpus: int = 1) -> dict[str, float]:
    """Gigabytes (1e9 bytes) that each of `gpus` needs, by part.

    The activations are what autograd keeps of every token and layer: the inputs of norms and
    matrices, queries, keys, values, the halves of SwiGLU. The logits are not among them, `HeadLoss`
    never has all of them at once. grad_accumulation_steps="auto" counts as 1.
    """
    shape = ModelConfig(config.dim, config.n_layers, config.n_heads, config.n_kv_heads, vocab_size)
    with torch.device("meta"):
        model = Transformer(shape)
    total = model.num_parameters()
    hidden = sum(
        p.numel() for n, p in model.named_parameters() if p.dim() == 2 and ".layers." in n
    ) * (config.optimizer == "muon")
    micro_batches = (
        1 if config.grad_accumulation_steps == "auto" else config.grad_accumulation_steps
    )
    tokens = config.max_seq_len * config.batch_size / gpus / micro_batches
    values = (
        6 * shape.dim + 2 * shape.n_kv_heads * shape.head_dim + 4 * shape.hidden_dim
    )  # kept per token and layer
    dtype, size = ("fp32", 4) if config.dtype == "fp32" else ("bf16", 2)
    parts = {
        "weights, fp32": 4 * total,
        "gradients, fp32": 4 * total,
        "Muon: one mean per weight": 4 * hidden,
        "AdamW: two means per weight": 8 * (total - hidden),
        f"activations, {dtype}": size * tokens * shape.n_layers * values,
    }
    return {part: n / 1e9 for part, n in parts.items() if n}


def accumulation_that_fits(
    config: TrainConfig, vocab_size: int, gpus: int, gigabytes: float | None, at_least: int = 1
) -> int:
    """`at_least` micro-batches, doubled until the estimate fits or none has more than one row.

    Args:
        gigabytes: of each GPU; None: not known, `at_least` it is.
    """
    steps = at_least
    while gigabytes and steps < config.batch_size / gpus:
        *rest, activations = train_memory(
            replace(config, grad_accumulation_steps=steps), vocab_size, gpus
        ).values()
        if sum(rest) + ACTIVATIONS_MARGIN * activations <= USABLE_SHARE * gigabytes:
            break
        steps *= 2
    return min(steps, math.ceil(config.batch_size / gpus))


def device_gigabytes(device: torch.device, processes: int) -> float:
    """Memory of a GPU (1e9 bytes); elsewhere what may be used of the machine's, of which each of
    its `processes` has a share.
    """
    return (
        torch.cuda.get_device_properties(device).total_memory / 1e9
        if device.type == "cuda"
        else allowed_memory() / 1e9 / processes
    )


def advice_for_rows(
    config: TrainConfig, vocab_size: int, processes: int, gigabytes: float | None, tried: int
) -> str:
    """What to change so that a step or an evaluation fits that did not with `tried` rows at once."""
    rows = math.ceil(config.batch_size / processes)
    if tried == 1:
        return (
            f"even one row of {config.max_seq_len} tokens at a time does not fit. Take a smaller"
            " model or a smaller max_seq_len, or a device with more memory."
        )
    steps = accumulation_that_fits(
        config, vocab_size, processes, gigabytes, math.ceil(rows / (tried // 2))
    )
    fewer = math.ceil(rows / steps)
    need = sum(
        train_memory(replace(config, grad_accumulation_steps=steps), vocab_size, processes).values()
    )
    known = (
        f", with which training by estimate needs {need:.3g} of the {gigabytes:.3g} GB"
        if gigabytes
        else ""
    )
    return (
        f"{tried} rows of {config.max_seq_len} tokens at a time do not fit."
        f" grad_accumulation_steps={steps} makes it {fewer}{known}; the result is the same."
    )


def advice_for_model(config: TrainConfig, vocab_size: int, gigabytes: float | None) -> str:
    """What to change where not even the model and its optimisers fit."""
    *parts, _ = train_memory(config, vocab_size).values()
    known = f" of {gigabytes:.3g}" if gigabytes else ""
    return (
        f"weights, gradients and optimisers of this model take {sum(parts):.3g}{known} GB, whatever"
        " the batch. Take a smaller model, or a device with more memory, and see what else runs"
        " there."
    )
