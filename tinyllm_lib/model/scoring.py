"""How well a model predicts, as two numbers: nats per token, which is what training minimises, and
bits per byte of text.

This is the one place where bits per byte are computed; the trainer's validation and
`evaluate.bits_per_byte` only bring the batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyllm_lib.model.transformer import Transformer

FP32 = nullcontext()
Batch = tuple[
    Tensor, Tensor, Tensor, dict[str, Tensor]
]  # X, Y, loss_mask, each (B, T), and what else `nats` is to know


@dataclass(frozen=True)
class Score:
    """Sums over the targets that were scored."""

    nats: float  # of all of them
    targets: float
    text_nats: float  # of those that are text
    text_bytes: float

    @property
    def nats_per_token(self) -> float:
        return self.nats / max(self.targets, 1)

    @property
    def bits_per_byte(self) -> float:
        return self.text_nats / math.log(2) / max(self.text_bytes, 1)


@torch.no_grad()
def score(
    model: Transformer,
    batches: Iterable[Batch],
    byte_lengths: Tensor,
    *,
    autocast: AbstractContextManager = FP32,
    add_up: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Score:
    """The loss per token, and how many bits the model needs for a byte of text.

    Nats per token are no measure between tokenizers: one that cuts text finer has more tokens, each
    easier to guess. Bytes are the same for all. A number per byte must count the same on both
    sides, so a token without bytes of its own counts on neither: `<|im_end|>` and the other special
    tokens, which say where a text ends and not what stands in it. (Their nats over no bytes would
    raise the number, the more the shorter the documents are.) Likewise on neither side: targets
    that the mask leaves out, and the first token of a document, which nothing predicts and which is
    no target.

    Args:
        batches: X, Y, loss_mask, and keyword arguments of `Transformer.nats`.
        byte_lengths: (V,) bytes of each token, 0 for special ones, from `token_byte_lengths`.
        autocast: the number format to compute in.
        add_up: sums a tensor over all processes, where several share the batches.
    """
    device = model.lm_head.weight.device
    nats, counts = [], torch.zeros(2, dtype=torch.float64)  # targets, bytes
    for X, Y, mask, documents in batches:
        size = byte_lengths[Y] * mask
        counts += torch.stack([mask.sum(), size.sum()])
        documents = {name: tensor.to(device) for name, tensor in documents.items()}
        with autocast:
            x = model.hidden_states(X.to(device), **documents)
            parts = [
                model.head_nats(x, Y.to(device), part.float().to(device))
                for part in (size > 0, (size == 0) & (mask > 0))
            ]
        nats.append(torch.stack(parts))
    sums = (
        torch.stack(nats).double().sum(0).cpu() if nats else torch.zeros(2, dtype=torch.float64)
    )  # read at the end: no batch waits
    text, special, targets, size = add_up(torch.cat([sums, counts])).tolist()
    return Score(text + special, targets, text, size)
