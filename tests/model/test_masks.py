"""Documents of packed rows: whatever keeps attention inside them gives what the dense mask gives."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import random_model

from tinyllm_lib.model import ModelConfig, document_attention, document_starts, masks
from tinyllm_lib.model.masks import difference_from_dense

CONFIG = ModelConfig(dim=64, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=97, max_seq_len=48)
HEADS = (4, 2, 16)
CPU = torch.device("cpu")


def segments(q, k, v, starts):
    """What varlen_attn computes: causal attention in each piece of rows that lie end to end."""
    out = torch.zeros_like(q)
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        piece = (t[None, begin:end].transpose(1, 2) for t in (q, k, v))
        if begin < end:
            attended = F.scaled_dot_product_attention(*piece, is_causal=True, enable_gqa=True)
            out[begin:end] = attended[0].transpose(0, 1)
    return out


@torch.library.custom_op("tinyllm_tests::varlen", mutates_args=())
def varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return segments(q, k, v, s)


varlen.register_fake(lambda q, k, v, s: torch.empty_like(q))


def _backward(ctx, grad):
    *qkv, starts = ctx.saved_tensors
    with torch.enable_grad():
        qkv = [t.detach().requires_grad_() for t in qkv]
        out = segments(*qkv, starts)
    return *torch.autograd.grad(out, qkv, grad), None


varlen.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def torch_2_10(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal and q.shape == k.shape and (max_q, max_k) == (48, 48) and cu_q is cu_k
    return varlen(q, k, v, cu_q)


def torch_2_11(q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux=None, window_size=(-1, -1)):
    assert window_size == (-1, 0) and q.shape == k.shape
    return varlen(q, k, v, cu_q)


def torch_2_12(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
    assert window_size == (-1, 0) and enable_gqa == (q.shape != k.shape)
    return varlen(q, k, v, cu_q)
