"""The model with one part taken out or exchanged: each change alters a new model in place."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm_lib.model import Transformer


def as_it_is(model: Transformer) -> None:
    """Changes nothing: the control."""


def no_norm(model: Transformer) -> None:
    """No RMSNorm, neither in the blocks nor at the end."""
    for block in model.model.layers:
        block.input_layernorm = nn.Identity()
        block.post_attention_layernorm = nn.Identity()
    model.model.norm = nn.Identity()


def no_position(model: Transformer) -> None:
    """RoPE turns by an angle of 0: scores no longer know how far apart two words stand."""
    model.rope_cos.fill_(1.0)
    model.rope_sin.fill_(0.0)


def no_residual_scaling(model: Transformer) -> None:
    """What writes into the residual stream starts as large as all other matrices."""
    scale = math.sqrt(2 * model.config.n_layers)
    for block in model.model.layers:
        block.self_attn.o_proj.weight *= scale
        block.mlp.down_proj.weight *= scale


def untied_head(model: Transformer) -> None:
    """The head gets a matrix of its own, as large as the embedding."""
    model.lm_head.weight = nn.Parameter(0.02 * torch.randn_like(model.lm_head.weight))


class GeluMLP(nn.Module):
    """down(gelu(up(x))): two matrices, half as wide again, so as many weights as three."""

    def __init__(self, swiglu: nn.Module):
        super().__init__()
        hidden, dim = swiglu.up_proj.weight.shape
        self.up_proj = nn.Linear(dim, 3 * hidden // 2, bias=False)
        self.down_proj = nn.Linear(3 * hidden // 2, dim, bias=False)
        for mine, its in ((self.up_proj, swiglu.up_proj), (self.down_proj, swiglu.down_proj)):
            nn.init.normal_(mine.weight, std=its.weight.std().item())

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) from x (..., D)."""
        return self.down_proj(F.gelu(self.up_proj(x)))


def gelu_mlp(model: Transformer) -> None:
    """GELU instead of SwiGLU, with the same number of weights."""
    for block in model.model.layers:
        block.mlp = GeluMLP(block.mlp)


PARTS = {
    "as it is": as_it_is,
    "no norm": no_norm,
    "no position": no_position,
    "no residual scaling": no_residual_scaling,
    "untied head": untied_head,
    "GELU for SwiGLU": gelu_mlp,
}
