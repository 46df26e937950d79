"""Which keys a query may see: as a mask, or, in packed rows on a GPU, for flash attention."""

from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.types import Device

Mask = Tensor | None  # (B, 1, T, S), bool or added to scores; `document_starts`; None: causal
# Queries may share keys: torch 2.11 sees it by itself, later ones are to be told.
GROUPED: Any = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


def attention_mask(
    T: int,
    past: int = 0,
    document_ids: Tensor | None = None,
    key_mask: Tensor | None = None,
    device: Device = None,
) -> Tensor | None:
    """Which keys each of T new queries may see, (B, 1, T, S) bool; None: all up to its own.

    T queries follow `past` cached positions; other arguments as in `Transformer.hidden_states`.
    """
    if T == 1 and document_ids is None:
        return None if key_mask is None else key_mask[:, None, None].bool()
    if past == 0 and document_ids is None and key_mask is None:
        return None
    queries = torch.arange(past, past + T, device=device)[:, None]
    keys = torch.arange(past + T, device=device)
    mask = (keys <= queries)[None, None]  # (1, 1, T, S)
    if document_ids is not None:
        mask = mask & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    if key_mask is not None:  # a padding query must see something: itself
        mask = mask & (key_mask[:, None, None].bool() | (keys == queries))
    return mask


def document_starts(document_ids: Tensor) -> Tensor:
    """Where documents begin in the rows of document_ids (B, T) laid end to end, and behind these
    the end, B*T; int32. Each row begins anew, and so does its padding.

    The end is repeated up to a power of two: compiled code is made anew for each length.
    """
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = begins.flatten().nonzero().squeeze(1)
    ends = (1 << len(starts).bit_length()) - len(starts)
    return F.pad(starts, (0, ends), value=begins.numel()).int()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """What queries (B, H, T, d) find in keys and values (B, K, S, d)."""
    B, H, T, d = q.shape
    if mask is not None and mask.dim() == 1:
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))  # rows laid end to end
        out: Any = varlen_attn(q, k, v, mask, mask, T, T, window_size=(-1, 0), **GROUPED)
        return out.view(B, T, H, d).transpose(1, 2)
    if T == 1:  # queries that share a key head go through it together: each key is read once
        q = q.reshape(B, k.shape[1], -1, d)  # (B, K, H/K, d)
        return F.scaled_dot_product_attention(q, k, v, mask).reshape(B, H, T, d)
    causal, grouped = mask is None, k.shape[1] != H
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)


def flash_works(
    heads: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> tuple[bool, str]:
    """Whether `document_starts` may stand for the dense mask: flash attention is tried, forward and
    backward, and must give what that gives; and how it went.

    Args:
        heads: how many for queries, how many for keys, and numbers a head.
    """
    H, K, d = heads
    ids = torch.arange(512, device=device).view(2, 256) // 60
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(2, H + K + K, 256, d, generator=generator).to(device, dtype)
    results = []
    try:
        for mask in (document_starts(ids), attention_mask(256, document_ids=ids, device=device)):
            q, k, v = numbers.requires_grad_().split([H, K, K], dim=1)
            out = attend(q, k, v, mask)
            (gradient,) = torch.autograd.grad(out, numbers, numbers[:, :H])
            results.append(torch.cat([out, gradient], 1).float().transpose(0, 1).flatten(1))
        flash, dense = results  # a row for each head
        off = ((flash - dense).norm(dim=1) / dense.norm(dim=1)).max().item()
    except Exception as problem:  # whatever it is: the dense mask is left
        return False, f"it fails ({type(problem).__name__}: {str(problem)[:100]})"
    return off < 0.02, f"it differs from the dense mask by {off:.1%}"
