"""Which keys a query may see: as a mask, or, in packed rows on a GPU, as flash kernels take it."""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.types import Device

try:  # torch 2.10 on; 2.11 says causality in another way, 2.12 knows grouped queries
    from torch.nn.attention.varlen import varlen_attn

    VARLEN_OPTIONS = list(inspect.signature(varlen_attn).parameters)
except ImportError:
    VARLEN_OPTIONS = []

Mask = Tensor | BlockMask | None  # (B, 1, T, S), bool or added to scores; or of `document_mask`


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


def document_mask(kind: str, starts: Tensor, rows: int, T: int) -> Mask:
    """What `attend` takes to stay inside documents, of `document_starts`; no wait for the device.
    `kind`: "varlen" (the starts as they are), "flex" (a BlockMask), "dense" (rows, 1, T, T).
    """
    if kind == "varlen":
        return starts
    positions = torch.arange(rows * T, device=starts.device, dtype=starts.dtype)
    ids = torch.bucketize(positions, starts, right=True).view(rows, T)
    if kind == "dense":
        return attention_mask(T, document_ids=ids, device=ids.device)

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (ids[b, key] == ids[b, query])

    return create_block_mask(visible, rows, None, T, T, device=str(ids.device))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """(B, H, T, d) from q (B, H, T, d), k and v (B, K, S, d); without a mask, plain causality."""
    B, H, T, d = q.shape
    grouped = k.shape[1] != H
    if isinstance(mask, BlockMask):
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)
    if mask is None or mask.dim() == 4:
        causal = mask is None
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)
    options: dict[str, Any] = {"window_size": (-1, 0), "is_causal": True, "enable_gqa": grouped}
    options = {name: value for name, value in options.items() if name in VARLEN_OPTIONS}
    if "enable_gqa" not in options:
        k, v = (t.repeat_interleave(H // t.shape[1], 1) for t in (k, v))
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))  # rows laid end to end
    out: Any = varlen_attn(q, k, v, mask, mask, T, T, **options)
    return out.view(B, T, H, d).transpose(1, 2)


def document_attention(
    heads: tuple[int, int, int], device: torch.device, dtype: torch.dtype, compiled: bool
) -> tuple[str, str]:
    """The kind of `document_mask` to train with, and why: on a GPU the first that gives, forward
    and backward, what the dense mask gives. FlexAttention is fast only where it is compiled.

    Args:
        heads: how many for queries, how many for keys, and numbers a head.
    """
    if device.type != "cuda":
        return "dense", "the others need a CUDA GPU"
    found = []
    for kind in ["varlen"] * bool(VARLEN_OPTIONS) + ["flex"] * compiled:
        try:
            off = difference_from_dense(kind, heads, device, dtype)
            found.append(f"{kind} differs from the dense mask by {off:.1%}")
            if off < 0.02:
                return kind, "; ".join(found)
        except Exception as error:  # whatever it is: the dense mask is left
            found.append(f"{kind} fails here ({type(error).__name__}: {str(error)[:100]})")
    return "dense", "; ".join(found) or "this torch has nothing else (varlen_attn: 2.10)"


def difference_from_dense(
    kind: str, heads: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> float:
    """The largest difference of outputs and gradients, as a share of the largest of their head."""
    H, K, d = heads
    generator, B, T = torch.Generator().manual_seed(0), 2, 256
    starts = document_starts(torch.arange(B * T).view(B, T) // 60).to(device)
    numbers = torch.randn(B, H + K + K, T, d, generator=generator).to(device, dtype)
    results = []
    for name in (kind, "dense"):
        run = torch.compile(attend, dynamic=False) if name == "flex" else attend
        leaf = numbers.clone().requires_grad_()
        q, k, v = leaf.split([H, K, K], dim=1)
        out = run(q, k, v, document_mask(name, starts, B, T))
        (gradient,) = torch.autograd.grad((out * numbers[:, :H]).sum(), leaf)
        results.append(torch.cat([out.detach(), gradient], 1).float())
    differences, largest = (results[0] - results[1]).abs(), results[1].abs()
    return (differences.amax((0, 2, 3)) / largest.amax((0, 2, 3))).max().item()
