"""Exercises of notebook 08: sharing."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tinyllm_lib.course.exercises.echo import UNSEEN, echo_loss, echo_model, echo_rows, learn
from tinyllm_lib.course.exercises.exercise import NotYet, close, done, exercise, require

SETUP = """
import json
import struct

import numpy as np
import torch

from tinyllm_lib.course.exercises import check_exercise
"""


@exercise('''
08.1 Four bits with an offset (15 minutes, medium)

`q8_0` spends its levels on both sides of zero alike. The format `q4_1` has 16 levels, evenly spread
from the smallest of 32 weights to the largest, and stores with each 32 whole numbers from 0 to 15
two numbers of 16 bits: the distance of two levels, and the smallest weight. Write `q4_1(row)`, the
row as it comes back from such a file (leave the two numbers in fp32), and say how many bits a
weight takes, all counted.

# hint:
`low = blocks.min(1, keepdims=True)`, and one fifteenth of the way up to the largest is the
distance. Where all 32 weights are equal it is 0: `np.where` keeps you from dividing by it.

# code for q4_1, my_bits:
# stub:
my_bits = None  # a number
# solution:
my_bits = (32 * 4 + 16 + 16) / 32
# both:


def q4_1(row: np.ndarray) -> np.ndarray:
    """Each 32 numbers of the row, moved to the nearest of 16 levels."""
    # stub:
    return None  # your turn
    # solution:
    blocks = row.reshape(-1, 32)
    low = blocks.min(1, keepdims=True)
    distance = (blocks.max(1, keepdims=True) - low) / 15
    whole = np.round((blocks - low) / np.where(distance == 0, 1, distance))
    return (low + whole * distance).reshape(-1)
''')
def _check_four_bits(q4_1, my_bits) -> str:
    rng = np.random.default_rng(0)
    row = np.concatenate([rng.normal(0.1, 1, 64), np.full(32, 0.25)]).astype(np.float32)
    found = q4_1(row)
    done(found)
    if found.shape != row.shape:
        raise NotYet(f"wanted is a row of {row.shape}, as it came, not of {found.shape}")
    require(np.isfinite(found).all(), "32 equal weights have the distance 0: do not divide by it")
    for number, (old, new) in enumerate(
        zip(row.reshape(-1, 32), found.reshape(-1, 32), strict=True)
    ):
        levels, half = len(np.unique(new.round(5))), (old.max() - old.min()) / 30
        require(
            levels <= 16, f"block {number} holds {levels} different numbers; 4 bits tell 16 apart"
        )
        if max(abs(new.min() - old.min()), abs(new.max() - old.max())) > 1e-4:
            raise NotYet(f"block {number}: the smallest and the largest weight should stay exact")
        off = float(np.abs(new - old).max())
        require(
            off <= half + 1e-4,
            f"block {number}: off by up to {off:.3f}, half a level is {half:.3f}",
        )
    done(my_bits)
    require(not close(my_bits, 4, 1e-6), "4 bits is the weight alone; 32 of them share two numbers")
    require(not close(my_bits, 4.5, 1e-6), "two numbers of 16 bits are shared, not one")
    if not close(my_bits, 5, 1e-6):
        raise NotYet(f"count the bits of one block, and divide by 32; that is not {my_bits}")
    return "a model of 7 billion weights takes 4.4 GB so, and 28 GB in fp32."


@exercise('''
08.2 Rounded, and repaired (25 minutes, hard)

One bit a weight, plus or minus one number for the whole matrix, ruins a model. Training can repair
it, if the loss is computed with the *rounded* weights and what moves are the exact ones behind
them. But rounding is a staircase, and its slope is 0: no gradient gets through. The usual remedy is
called *straight-through*: forward the rounded weight, backward as if nothing had been rounded.
Write it. The check trains a small model for 100 steps, rounds its matrices, trains these alone for
60 more steps with your function, and rounds for good. It takes some seconds.

# hint:
`x.detach()` has the value of x and no gradient. Write the rounded weight as the weight plus
something that is detached.

# code for straight_through:
def straight_through(weight: torch.Tensor, rounding) -> torch.Tensor:
    """The value of rounding(weight), with the gradient of weight."""
    # stub:
    return None  # your turn
    # solution:
    return weight + (rounding(weight) - weight).detach()
''')
def _check_straight_through(straight_through) -> str:
    weight = torch.linspace(-1, 1, 64, requires_grad=True).reshape(2, 32)
    done(straight_through(weight, one_bit))
    exact, plain, rounded = trained_and_rounded()
    model = echo_model()
    model.load_state_dict(exact)
    model.requires_grad_(False)
    for matrix in matrices(model):
        matrix.weight.requires_grad_(True)
        parametrize.register_parametrization(matrix, "weight", _Rounded(straight_through))
    learn(model, 60, lr=3e-3, rows=lambda step: echo_rows(32, 10_000 + step))
    repaired = rounded_loss(model)
    told = f"exact {plain:.2f} nats, rounded {rounded:.2f}, after your repair {repaired:.2f}"
    if not torch.allclose(straight_through(weight, one_bit), one_bit(weight)):
        raise NotYet(f"{told}. Forward it must give the rounded weight, and does not")
    (gradient,) = torch.autograd.grad(straight_through(weight, one_bit).sum(), weight)
    if not torch.allclose(gradient, torch.ones_like(weight)):
        raise NotYet(f"{told}. Backward the gradient must come through as it is, and does not")
    require(repaired < plain + 0.3 * (rounded - plain), f"{told}: most of it is still ruined")
    return f"{told}. Networks of one or two bits are trained so."


def one_bit(weight: Tensor) -> Tensor:
    """Each weight becomes plus or minus the mean size of all."""
    size = weight.abs().mean()
    return torch.where(weight < 0, -size, size)


class _Rounded(nn.Module):
    """What a matrix is read through while it is repaired."""

    def __init__(self, straight_through: Callable):
        super().__init__()
        self.straight_through = straight_through

    def forward(self, weight: Tensor) -> Tensor:
        return self.straight_through(weight, one_bit)


def matrices(model: nn.Module) -> list[nn.Linear]:
    """The layers whose weights are rounded: those inside the blocks."""
    return [part for part in model.model.layers.modules() if isinstance(part, nn.Linear)]


@torch.no_grad()
def rounded_loss(model: nn.Module) -> float:
    """Nats on new rows, once the matrices are rounded for good."""
    for matrix in matrices(model):
        if parametrize.is_parametrized(matrix):
            exact = matrix.parametrizations.weight.original.clone()
            parametrize.remove_parametrizations(matrix, "weight")
            matrix.weight = nn.Parameter(exact)
        matrix.weight.copy_(one_bit(matrix.weight))
    return echo_loss(model, echo_rows(256, UNSEEN)).item()


@cache
def trained_and_rounded() -> tuple[dict[str, Tensor], float, float]:
    """The weights of a model that has learned the echoes, its loss, and that once rounded."""
    model = echo_model()
    plain = learn(model, 100)
    exact = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return exact, plain, rounded_loss(model)


@exercise('''
08.3 A file of weights, read by hand (15 minutes, medium)

Why can a `.safetensors` file do no harm? Because reading it takes ten lines, and none of them runs
anything. It begins with 8 bytes: a number n, least significant byte first. Then come n bytes of
JSON, `{name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, …}`. All that is left
is numbers, and the offsets count from where these begin. Write `read_tensor(path, name)` for
tensors of type F32.

# hint:
`struct.unpack("<Q", data[:8])` reads the number, `json.loads` the header, and
`np.frombuffer(data[begin:end], dtype="<f4")` the weights; `reshape` gives them their shape.

# code for read_tensor:
def read_tensor(path, name: str) -> np.ndarray:
    """One tensor of a .safetensors file."""
    # stub:
    return None  # your turn
    # solution:
    with open(path, "rb") as file:
        data = file.read()
    (n,) = struct.unpack("<Q", data[:8])
    entry = json.loads(data[8 : 8 + n])[name]
    begin, end = entry["data_offsets"]
    numbers = np.frombuffer(data[8 + n + begin : 8 + n + end], dtype="<f4")
    return numbers.reshape(entry["shape"])
''')
def _check_read_tensor(read_tensor) -> str:
    rng = torch.Generator().manual_seed(8)
    stored = {f"layer.{i}": torch.randn(i + 1, 5, generator=rng) for i in range(3)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(stored, path, metadata={"format": "pt"})
        (size,) = struct.unpack("<Q", path.read_bytes()[:8])
        offsets = {
            name: entry["data_offsets"]
            for name, entry in json.loads(path.read_bytes()[8 : 8 + size]).items()
            if name in stored
        }
        for name, tensor in stored.items():
            found = read_tensor(path, name)
            done(found)
            found = np.asarray(found)
            if found.shape != tuple(tensor.shape):
                raise NotYet(f"{name} has the shape {tuple(tensor.shape)}, yours has {found.shape}")
            if not np.array_equal(found, tensor.numpy()):
                begins = f"its numbers begin {offsets[name][0]} bytes behind the header"
                raise NotYet(f"{name} has other numbers: {begins}, which ends at byte {8 + size}")
    return "try it on the model.safetensors of your run: nothing in it is ever executed."
