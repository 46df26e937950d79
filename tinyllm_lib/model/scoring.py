"""How well a model predicts; the trainer's validation and `bits_per_byte` bring the batches."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyllm_lib.model.transformer import Transformer

Batch = tuple[Tensor, Tensor, Tensor, dict[str, Any]]  # X, Y, loss_mask; documents


@dataclass(frozen=True)
class Score:
    """What `score` found; all 0 where there was nothing to score."""

    nats_per_token: float  # of all targets
    bits_per_byte: float  # of those that are text
    text_bytes: float  # how many bytes that were


@torch.no_grad()
def score(
    model: Transformer,
    batches: Iterable[Batch],
    byte_lengths: Tensor,
    *,
    all_reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Score:
    """The loss per token, and how many bits the model needs for a byte of text.

    A tokenizer that cuts text finer has more tokens, each easier to guess; bytes are the same for
    all. A token without any (`<|im_end|>`) counts neither as bits nor as bytes.

    Args:
        batches: X, Y, loss_mask (B, T) each, and how to tell the documents of packed rows apart.
        byte_lengths: (V,) bytes of each token, 0 for special ones, from `token_byte_lengths`.
        all_reduce: sums a tensor over all processes, where several share the batches.
    """
    device = model.lm_head.weight.device
    nats = [torch.zeros(2, device=device)]  # of text and of special tokens, a row for each batch
    counts = torch.zeros(2, dtype=torch.float64)  # targets, bytes
    for X, Y, mask, documents in batches:
        size = byte_lengths[Y] * mask
        counts += torch.stack([mask.sum(), size.sum()])
        documents = {name: tensor.to(device) for name, tensor in documents.items()}
        x = model.hidden_states(X.to(device), **documents)
        weights = [size > 0, (size == 0) & (mask > 0)]
        parts = [model.head_nll(x, Y.to(device), w.float().to(device)) for w in weights]
        nats.append(torch.stack(parts))
    sums = torch.stack(nats).double().sum(0).cpu()  # read at the end: no batch waits
    text, special, targets, text_bytes = all_reduce(torch.cat([sums, counts])).tolist()
    bits = text / math.log(2) / max(text_bytes, 1)
    return Score((text + special) / max(targets, 1), bits, text_bytes)
