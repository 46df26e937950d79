"""The parts of the model, named as in transformers' Llama. Shapes in comments: B batch, T new
positions, S keys (cached + new), D dim, H heads, K key/value heads, d numbers a head, V vocab.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm_lib.model.config import ModelConfig
from tinyllm_lib.model.masks import Mask, attend

LayerCache = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None  # new keys, values -> all


class RMSNorm(nn.RMSNorm):
    """Divides vectors by their root mean square, scales each coordinate (Zhang & Sennrich 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) from x (..., D), in the number format of x (autocast would take fp32 on CUDA;
        the sum of squares is in fp32 in any case).
        """
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)  # to switch it off for nothing takes 10 us
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def rope_frequencies(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """How far each pair turns from one position to the next, base^(-2i/d), and the share of it that
    remains; each (d/2,).

    Llama 3 slows pairs that turn less than `low_freq_factor` times within the original context by
    `factor`; those that turn more than `high_freq_factor` times stay, with a ramp between the two.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / config.rope_base**exponents
    if (scaling := config.rope_scaling) is None:
        return frequencies, torch.ones_like(frequencies)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies, kept + (1 - kept) / scaling["factor"]


def rope_angles(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cos and sin of position x frequency, each (max_seq_len, d/2)."""
    frequencies, share = rope_frequencies(config)
    angles = torch.outer(torch.arange(config.max_seq_len).float(), frequencies * share)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns coordinate pairs (i, i + d/2) of x (B, T, H, d) by the angles (B or 1, T, 1, d/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class KVCache:
    """Keys and values of the positions seen so far, (layers, B, K, capacity, d), written in place.

    The first `length` of `capacity` positions (default: the context) are filled. With a `slot` (1,)
    the next one goes there, and attention reads all: `key_mask` says what is filled.
    """

    def __init__(self, config: ModelConfig, batch_size: int, capacity: int = 0, **options: Any):
        self.capacity = capacity or config.max_seq_len
        shape = (config.n_layers, batch_size, config.n_kv_heads, self.capacity, config.head_dim)
        self.keys = torch.zeros(shape, **options)
        self.values = torch.zeros_like(self.keys)
        self.length = 0
        self.slot: Tensor | None = None

    def append(self, i: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes layer i's k, v (B, K, T, d) behind what is filled; returns all, (B, K, S, d)."""
        keys, values = self.keys[i], self.values[i]
        if self.slot is not None:
            return keys.index_copy_(2, self.slot, k), values.index_copy_(2, self.slot, v)
        end = self.length + k.shape[2]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]


class Attention(nn.Module):
    """Grouped-query attention: H query heads share K key/value heads, H/K queries to each."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, q_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, kv_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, kv_dim, bias=False)
        self.o_proj = nn.Linear(q_dim, config.dim, bias=False)

    def queries_keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """Of x (B, T, D): turned q (B, H, T, d), turned k and plain v (B, K, T, d)."""
        B, T, _ = x.shape
        q = apply_rope(self.q_proj(x).view(B, T, -1, self.head_dim), cos, sin)
        k = apply_rope(self.k_proj(x).view(B, T, -1, self.head_dim), cos, sin)
        v = self.v_proj(x).view(B, T, -1, self.head_dim)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Mask = None, cache: LayerCache = None
    ) -> Tensor:
        """(B, T, D) from x (B, T, D); without a mask, a position sees itself and those before."""
        q, k, v = self.queries_keys_values(x, cos, sin)
        if cache is not None:
            k, v = cache(k, v)  # (B, K, S, d)
        return self.o_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): one half decides how much of the other passes (Shazeer 2020)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.down_proj = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) from x (..., D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention moves information between positions, the MLP works on each alone."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config)
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, **options: Any) -> Tensor:
        """(B, T, D) from x (B, T, D); options are `Attention`'s, mask and cache."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, **options)
        return x + self.mlp(self.post_attention_layernorm(x))


class HeadLoss(torch.autograd.Function):
    """`F.cross_entropy(x @ weight.T, targets, reduction="none") @ weights`, a chunk of rows at a
    time: the (N, V) logits never exist at once.

    The gradient of softmax cross-entropy is `softmax - onehot`: each chunk's logits turn into it.
    """

    ROWS, ROWS_CPU = 8192, 128  # on a CPU a chunk of logits should stay in the cache

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """A scalar in fp32 from x (N, D), weight (V, D), targets (N,) and weights (N,).

        Products are in the number format of x, softmax and sums in fp32. A gradient is rounded
        after its weight, which may thus hold the scale that keeps it within the range of fp16.
        """
        step = HeadLoss.ROWS if x.is_cuda else HeadLoss.ROWS_CPU
        matrix, total = weight.to(x.dtype), x.new_zeros((), dtype=torch.float32)
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
        # New memory is slow: all chunks use the same. Autocast leaves what has an `out` alone.
        all_logits = x.new_empty(min(step, len(x)), len(weight))
        all_p, product = torch.empty_like(all_logits, dtype=torch.float32), torch.empty_like(matrix)
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            target, w = targets[rows, None], weights[rows, None].float()
            logits = torch.mm(x[rows], matrix.T, out=all_logits[: len(target)])  # (rows, V)
            p = torch.softmax(logits, -1, dtype=torch.float32, out=all_p[: len(target)])
            # By way of the likeliest token: its p, unlike the target's, never rounds to 0.
            gap = logits.amax(-1, keepdim=True).float() - logits.gather(1, target).float()
            total += ((gap - p.amax(-1, keepdim=True).log()) * w).sum()
            if any(ctx.needs_input_grad):
                p.scatter_(1, target, p.gather(1, target) - 1)
                grad = torch.mul(p, w, out=logits)
                torch.mm(grad, matrix, out=dx[rows])
                dweight += torch.mm(grad.T, x[rows], out=product)
        ctx.save_for_backward(dx, dweight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x and weight, times that of the loss."""
        dx, dweight = ctx.saved_tensors
        return dx * grad, dweight * grad, None, None
