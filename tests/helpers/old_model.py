"""The model of the earlier scripts, written from its definition: names, shapes, rotation of
adjacent pairs.

It shares no code with the library, and says the rotation as it is defined: two neighbours are a
complex number, and position t multiplies the i-th one of a head by exp(1j * t * base**(-2i/d))."""

import torch
import torch.nn.functional as F
from torch import nn


def rotate(x, base=10000.0):
    """x (B, T, H, d) -> the same shape, each adjacent pair turned by its position's angle."""
    T, d = x.shape[1], x.shape[3]
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:3], d // 2, 2))
    angles = torch.outer(torch.arange(T).float(), base ** (-torch.arange(0, d, 2).float() / d))
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]
    return torch.view_as_real(turned).flatten(3)


class Norm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def linear(rows, columns):
    layer = nn.Linear(columns, rows, bias=False)
    nn.init.normal_(layer.weight, std=0.1)
    return layer


class Attention(nn.Module):
    def __init__(self, dim, n_heads, n_kv_heads):
        super().__init__()
        self.d = dim // n_heads
        self.wq, self.wo = linear(dim, dim), linear(dim, dim)
        self.wk, self.wv = linear(n_kv_heads * self.d, dim), linear(n_kv_heads * self.d, dim)

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = (w(x).view(B, T, -1, self.d) for w in (self.wq, self.wk, self.wv))
        q, k = rotate(q), rotate(k)
        share = q.shape[2] // k.shape[2]  # query heads 0 and 1 read key head 0, and so on
        k, v = (t.repeat_interleave(share, dim=2) for t in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / self.d**0.5
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
        return self.wo(torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.w1, self.w2, self.w3 = linear(hidden, dim), linear(dim, hidden), linear(hidden, dim)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, dim, n_heads, n_kv_heads, hidden):
        super().__init__()
        self.attention, self.feed_forward = (
            Attention(dim, n_heads, n_kv_heads),
            FeedForward(dim, hidden),
        )
        self.attention_norm, self.ffn_norm = Norm(dim), Norm(dim)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class OldModel(nn.Module):
    """ids (B, T) -> logits (B, T, V)."""

    def __init__(
        self, vocab_size, dim=64, n_layers=2, n_heads=8, n_kv_heads=2, hidden=192, tied=True
    ):
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(
            Layer(dim, n_heads, n_kv_heads, hidden) for _ in range(n_layers)
        )
        self.norm = Norm(dim)
        self.output = linear(vocab_size, dim)
        if tied:
            self.tok_embeddings.weight = self.output.weight

    def forward(self, ids):
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))
