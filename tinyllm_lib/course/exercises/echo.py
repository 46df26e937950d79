"""What exercises train on: a made-up language of echoes, which a small model learns in seconds.

A row is question, echo, question, echo, … A question is one of 32 words, drawn anew each time. The
echo behind it is the same word in other letters (32 words more) as the question *before* that one.
So half of all words are known to nobody in advance, and no model that sees only the past comes
below FLOOR; one that cannot look back at all stays at twice that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tinyllm_lib.model import ModelConfig, Transformer

WORDS, PAIRS = 32, 17
FLOOR = math.log(WORDS) / 2  # nats per token
UNSEEN = 10**6  # a seed that no training step has

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def echo_rows(count: int, seed: int) -> Tensor:
    """(count, 34) ids: questions 0 to 31, echoes 32 to 63."""
    rng = torch.Generator().manual_seed(seed)
    questions = torch.randint(0, WORDS, (count, PAIRS + 1), generator=rng)
    return torch.stack([questions[:, 1:], questions[:, :-1] + WORDS], dim=-1).flatten(1)


def echo_model(seed: int = 0) -> Transformer:
    """An untrained model of one layer for this language: 4 query heads, 2 key/value heads."""
    torch.manual_seed(seed)
    return Transformer(ModelConfig(64, 1, 4, 2, vocab_size=2 * WORDS, max_seq_len=64))


def echo_loss(model: Transformer, rows: Tensor, attention: Attention | None = None) -> Tensor:
    """Nats per token. The first echo, whose question is not in the row, does not count."""
    targets = rows[:, 1:]
    weights = torch.full(targets.shape, 1 / targets[:, 1:].numel())
    weights[:, 0] = 0
    ids = rows[:, :-1]
    x = hidden_states(model, ids, attention) if attention else model.hidden_states(ids)
    return model.head_nll(x, targets, weights)


def hidden_states(model: Transformer, ids: Tensor, attention: Attention) -> Tensor:
    """As `Transformer.hidden_states`, with another attention of q (B, H, T, d), k, v (B, K, T, d)
    -> (B, H, T, d).
    """
    T = ids.shape[1]
    cos, sin = model.rope_cos[None, :T, None], model.rope_sin[None, :T, None]
    x = model.model.embed_tokens(ids)
    for block in model.model.layers:
        q, k, v = block.self_attn.queries_keys_values(block.input_layernorm(x), cos, sin)
        x = x + block.self_attn.o_proj(attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.post_attention_layernorm(x))
    return model.model.norm(x)


def learn(
    model: Transformer,
    steps: int,
    *,
    lr: float = 1e-2,
    rows: Callable[[int], Tensor] = lambda step: echo_rows(32, step),
    loss: Callable[[Transformer, Tensor], Tensor] = echo_loss,
) -> float:
    """Trains what may move, with AdamW at a rate that falls to 0; the loss on new rows.

    Args:
        rows: what step number `step` reads.
        loss: of a model on rows.
    """
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        loss(model, rows(step)).backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return loss(model, echo_rows(256, UNSEEN)).item()
