"""What a trained model computes on its way: attention weights, and the next token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tinyllm_lib.course.views.steps import Steps
from tinyllm_lib.generate import Sampling, TextGenerator
from tinyllm_lib.model import Transformer


def attention_maps(model: Transformer, ids: Tensor) -> Tensor:
    """Attention weights (layers, B, H, T, T) of ids (B, T), which SDPA does not show."""
    ids, T = ids.to(model.lm_head.weight.device), ids.shape[1]
    angles = model.rope_cos[None, :T, None], model.rope_sin[None, :T, None]
    cos, sin = (part.to(model.lm_head.weight.dtype) for part in angles)
    future = torch.ones(T, T, dtype=torch.bool, device=ids.device).triu(1)
    x, maps = model.model.embed_tokens(ids), []
    for block in model.model.layers:
        q, k, _ = block.self_attn.queries_keys_values(block.input_layernorm(x), cos, sin)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, H, T, d)
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(model.config.head_dim)
        maps.append(scores.masked_fill(future, -torch.inf).float().softmax(-1).cpu())
        x = block(x, cos, sin)
    return torch.stack(maps)


def next_token_distribution(
    generator: TextGenerator, prompt: list[dict[str, str]] | str, top: int = 20
) -> tuple[list[bytes], list[float]]:
    """The bytes of the `top` likeliest next tokens, likeliest first, and their probabilities.

    Args:
        prompt: a text to go on with, or messages to reply to.
    """
    steps = Steps(generator, prompt, chat=not isinstance(prompt, str))
    best = steps.candidates(Sampling(), top)
    return [candidate.piece for candidate in best], [candidate.before for candidate in best]
