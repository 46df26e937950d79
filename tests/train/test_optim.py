"""The optimisers: what Muon does to a matrix, and which parameters it gets."""

from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.distributed as dist
from helpers.tiny import start_python
from torch import nn

from tinyllm_lib.model import ModelConfig, Transformer
from tinyllm_lib.train import TrainConfig
from tinyllm_lib.train.optim import Muon, make_optimizers, orthogonalize, orthogonalize_all


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Transformer(
        ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=40, max_seq_len=8)
    )


def names_of(model, group):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in group["params"]}


def with_gradient(gradient):
    p = nn.Parameter(torch.zeros_like(gradient))
    p.grad = gradient
    return p


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16), (3, 16, 24)])
def test_orthogonalize_brings_singular_values_near_one_and_keeps_the_directions(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * 100
    result = orthogonalize(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.4 and values.max() < 1.4
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    between = U.mT @ result @ Vh.mT  # diagonal where the singular vectors are the same
    off_diagonal = between - torch.diag_embed(between.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-3


@pytest.mark.parametrize("number", [1, 3, 4])
def test_each_process_does_as_many_matrices_and_they_are_gathered_in_order(number, monkeypatch):
    torch.manual_seed(0)
    matrices, shares = [torch.randn(8, 16) for _ in range(number)], []
    alone = orthogonalize_all(matrices)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)

    def gather(parts, share):
        shares.append(share.clone())
        for part, theirs in zip(parts, shares, strict=False):
            part.copy_(theirs)

    monkeypatch.setattr(dist, "all_gather", gather)
    for rank in range(2):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        gathered = orthogonalize_all(matrices)
    assert [len(share) for share in shares] == [(number + 1) // 2] * 2
    torch.testing.assert_close(gathered, alone)


THREE_STEPS = """
import sys
import torch
import torch.distributed as dist
from tinyllm_lib.train.optim import Muon

rank, processes, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if processes > 1:
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=processes)
torch.manual_seed(0)
params = [torch.nn.Parameter(torch.randn(s)) for s in [(8, 16)] * 3 + [(16, 8)] * 2 + [(8, 8)]]
muon = Muon(params, lr=0.1)
for _ in range(3):
    for p in params:
        p.grad = torch.randn(p.shape)
    muon.step()
torch.save([p.detach() for p in params], out)
"""


def test_two_processes_end_with_the_same_bits_and_as_one_process_does(tmp_path):
    def run(rank, processes):
        out = tmp_path / f"{rank}_of_{processes}.pt"
        command = "-c", THREE_STEPS, rank, processes, tmp_path / "store", out
        return out, start_python(*command, OMP_NUM_THREADS="1")

    weights = {}
    for out, process in [run(0, 2), run(1, 2), run(0, 1)]:
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0 and "deprecated" not in output, output
        weights[out.stem] = torch.load(out, weights_only=True)
    one, first, second = (weights[name] for name in ("0_of_1", "0_of_2", "1_of_2"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(first, one)


def test_a_zero_gradient_stays_zero():
    assert torch.equal(orthogonalize(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_a_muon_step_is_about_as_large_as_an_adamw_step():
    torch.manual_seed(0)
    p = with_gradient(torch.randn(64, 32) * 1e-4)  # the size of the gradient does not matter
    Muon([p], lr=0.1, weight_decay=0.0).step()
    # AdamW's steps: 0.2 to 0.4 x lr
    assert 0.1 * 0.1 < p.detach().square().mean().sqrt() < 0.1 * 0.3


def test_muon_decays_weights_and_leaves_parameters_without_gradient_alone():
    still, decayed = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    decayed.grad = torch.zeros(4, 4)
    Muon([still, decayed], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(decayed.detach(), torch.full((4, 4), 1 - 0.1 * 0.5))
    assert torch.equal(still.detach(), torch.ones(4, 4))


def test_matrices_of_one_shape_do_not_influence_each_other():
    torch.manual_seed(0)
    gradients = torch.randn(3, 8, 16)
    together, alone = [with_gradient(g) for g in gradients], [with_gradient(g) for g in gradients]
    shared = Muon(together, lr=0.1)
    single = [Muon([p], lr=0.1) for p in alone]
    for _ in range(3):
        shared.step()
        for optimizer in single:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(32, 32), (16, 48), (48, 16)])
def test_muon_is_torchs_own_but_for_rounding(shape):
    """torch.optim.Muon with the learning rate scaled to AdamW's; it orthogonalises in bf16, which
    has 8 bits.
    """
    torch.manual_seed(0)
    start, gradients = torch.randn(shape) * 0.02, torch.randn(4, *shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        Muon([ours], lr=0.01, momentum=0.95, weight_decay=0.1),
        torch.optim.Muon(
            [theirs], lr=0.01, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
        ),
    ]
    for gradient in gradients:
        before = ours.detach().clone(), theirs.detach().clone()
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
        update, expected = ours.detach() - before[0], theirs.detach() - before[1]
        assert (update - expected).norm() < 0.02 * expected.norm()
    buffers = [
        optimizer.state[p]["momentum_buffer"]
        for optimizer, p in zip(optimizers, (ours, theirs), strict=True)
    ]
    assert torch.equal(*buffers)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_adamw_is_fused_with_the_means_of_language_models(model, kind):
    adamw = make_optimizers(model, TrainConfig(optimizer=kind))[-1]
    assert isinstance(adamw, torch.optim.AdamW)
    assert all(group["fused"] and group["betas"] == (0.9, 0.95) for group in adamw.param_groups)


def test_only_matrices_decay(model):
    adamw = make_optimizers(model, TrainConfig(optimizer="adamw", learning_rate=0.5))[0]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adamw.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if p.dim() == 2 else 1.0))


def test_muon_gets_the_matrices_inside_the_blocks_and_adamw_the_rest(model):
    muon, adamw = make_optimizers(model, TrainConfig(optimizer="muon"))
    hidden = names_of(model, muon.param_groups[0])
    assert len(hidden) == 2 * 7  # q, k, v, o, gate, up, down of two layers
    assert all(".layers." in name and "norm" not in name for name in hidden)
    decayed, not_decayed = adamw.param_groups
    assert names_of(model, decayed) == {"model.embed_tokens.weight"}
    assert all("norm" in name for name in names_of(model, not_decayed))
    assert (decayed["weight_decay"], not_decayed["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_has_exactly_one_optimizer(model, kind):
    params = [
        p
        for o in make_optimizers(model, TrainConfig(optimizer=kind))
        for group in o.param_groups
        for p in group["params"]
    ]
    assert sorted(map(id, params)) == sorted(map(id, model.parameters()))


def test_a_step_is_bit_for_bit_that_of_one_matrix_after_the_other():
    torch.manual_seed(0)
    start, gradients = torch.randn(2, 48, 16), torch.randn(3, 2, 48, 16)
    params = [nn.Parameter(p.clone()) for p in start]
    muon, mean = Muon(params, lr=0.1, weight_decay=0.5), torch.zeros(2, 48, 16)
    for gradient in gradients:
        for p, g in zip(params, gradient, strict=True):
            p.grad = g.clone()
        muon.step()
        mean.lerp_(gradient, 0.05)
        update = orthogonalize(gradient.lerp(mean, 0.95))
        start.mul_(1 - 0.1 * 0.5).add_(update, alpha=-0.1 * 0.2 * 48**0.5)
    assert torch.equal(torch.stack([p.detach() for p in params]), start)


def test_a_saved_state_goes_on_with_the_same_bits():
    torch.manual_seed(0)
    p = with_gradient(torch.randn(8, 16))
    muon = Muon([p], lr=0.1)
    muon.step()
    q = with_gradient(p.grad.clone())
    q.data.copy_(p.data)
    again = Muon([q], lr=0.1)
    again.load_state_dict(deepcopy(muon.state_dict()))
    assert muon.state_dict()["state"][0].keys() == {"momentum_buffer"}
    muon.step()
    again.step()
    assert torch.equal(p.detach(), q.detach())


def test_a_step_reads_nothing_back_from_the_device():
    p = nn.Parameter(torch.zeros(8, 16, device="meta"))  # which has no numbers to read
    p.grad = torch.zeros(8, 16, device="meta")
    Muon([p], lr=0.1).step()


def test_muon_moves_alike_with_newton_schulz_compiled(monkeypatch):
    compile_it = partial(torch.compile, backend="aot_eager")  # which needs no C compiler
    monkeypatch.setattr(torch, "compile", compile_it)
    torch.manual_seed(0)
    gradient = torch.randn(8, 16)
    p, plain = with_gradient(gradient.clone()), with_gradient(gradient.clone())
    optimizers = Muon([p], lr=0.1), Muon([plain], lr=0.1)
    optimizers[0].compile()
    assert optimizers[0].orthogonalize is not orthogonalize
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(p, plain)


def test_a_step_of_muon_makes_its_buffers_once(monkeypatch):
    torch.manual_seed(0)
    muon = Muon([with_gradient(torch.randn(4, 4)) for _ in range(3)], lr=0.1)
    muon.step()
    made, zeros_like = [], torch.zeros_like
    monkeypatch.setattr(
        torch, "zeros_like", lambda tensor: made.append(tensor) or zeros_like(tensor)
    )
    muon.step()
    assert not made
