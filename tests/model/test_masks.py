"""Whatever keeps attention inside the documents of packed rows gives what the dense mask gives."""

import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import random_model

from tinyllm_lib.model import ModelConfig, document_starts, flash_works, masks

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


varlen.register_autograd(
    _backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


def torch_2_11(q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux=None, window_size=(-1, -1)):
    assert window_size == (-1, 0) and (max_q, max_k) == (48, 48) and cu_q is cu_k
    return varlen(q, k, v, cu_q)


def torch_2_12(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
    assert window_size == (-1, 0) and enable_gqa
    return varlen(q, k, v, cu_q)


def put_in_place(monkeypatch, function):
    monkeypatch.setattr(masks, "varlen_attn", function)
    monkeypatch.setattr(masks, "GROUPED", {"enable_gqa": True} if function is torch_2_12 else {})


def make_model(config=CONFIG):
    return random_model(config, seed=0, scale=5.0, norm_spread=0.1)


def some_batch(seed):
    """Four rows of documents of 8 positions or so; one ends in padding, one holds one document."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 97, (4, 48), generator=generator)
    document_ids = (torch.rand(4, 48, generator=generator) < 0.12).cumsum(1)
    document_ids[0, 40:], document_ids[1] = -1, 0
    first = document_ids[:, :, None] == document_ids[:, None]
    position_ids = torch.arange(48) - first.long().argmax(-1)  # counted from the first of its own
    return ids, position_ids, document_ids


def test_starts_are_those_of_documents_of_rows_and_of_padding():
    ids = torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0], [0, 1, 2, 2]])
    starts = document_starts(ids)
    assert starts.dtype == torch.int32
    assert starts.tolist() == [0, 2, 3, 4, 8, 9, 10, 12]
    ids[1] = torch.arange(4)  # more documents: as many numbers as the next power of two
    assert document_starts(ids).tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, *[12] * 6]


@pytest.mark.parametrize("function", [torch_2_11, torch_2_12])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_varlen_attention_gives_what_the_dense_mask_gives(function, kv_heads, monkeypatch):
    put_in_place(monkeypatch, function)
    model = make_model(replace(CONFIG, n_kv_heads=kv_heads))
    ids, position_ids, document_ids = some_batch(0)
    results = []
    for documents in (
        {"document_ids": document_ids},
        {"document_starts": document_starts(document_ids)},
    ):
        model.zero_grad()
        loss = model.weighted_nll(
            ids, ids.flip(1), torch.rand(4, 48).fill_(0.01), position_ids=position_ids, **documents
        )
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters())])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["document_ids", "document_starts", "causal"])
@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_blocks_are_compiled_once_for_all_layers_and_batches(kind, autocast, monkeypatch):
    put_in_place(monkeypatch, torch_2_12)
    torch._dynamo.reset()
    compiled, model = [], make_model()

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    for block in model.model.layers:  # a graph break is an error with `fullgraph`
        block.compile(dynamic=False, fullgraph=True, backend=backend)
    for seed in range(4):
        ids, position_ids, document_ids = some_batch(seed)
        documents = {"document_ids": document_ids, "document_starts": document_starts(document_ids)}
        documents = {name: tensor for name, tensor in documents.items() if name == kind}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model.hidden_states(ids, position_ids=position_ids, **documents).sum().backward()
    assert len(compiled) == 1


def works(q, k, v, starts, *_, **__):
    return varlen(q, k, v, starts)


def sees_all(q, k, v, starts, *_, **__):
    return varlen(q, k, v, starts[[0, -1]])


def gives_nan(q, *_, **__):
    return q * math.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("function", "fine", "why"),
    [
        (works, True, r"it differs from the dense mask by 0\.\d%"),
        (sees_all, False, r"it differs from the dense mask by [5-9]\d\.\d%"),
        (gives_nan, False, "it differs from the dense mask by nan%"),
        (None, False, r"it fails \(NotImplementedError: Could not run"),
    ],
)
def test_flash_attention_is_taken_if_it_does_what_the_dense_mask_does(
    function, fine, why, dtype, monkeypatch
):
    if function:  # else torch's own, which has no kernel for a CPU
        put_in_place(monkeypatch, function)
    found, said = flash_works(HEADS, CPU, dtype)
    assert found is fine and re.match(why, said), said
