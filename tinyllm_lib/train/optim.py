"""Muon for the hidden matrices, AdamW for the rest.

The update is that of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, which on a CPU takes 50
times as long, in bf16, and does all matrices in every process; ours are batched and shared out.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from tinyllm_lib.train.config import TrainConfig


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Pushes all singular values of each (..., m, n) matrix towards 1 (Newton-Schulz, Jordan).
    Computes and returns bf16 on a CUDA GPU, else fp32.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    x = x.reshape(-1, *matrices.shape[-2:])
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):  # a x + (b G + c G G) x
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape).contiguous()


def orthogonalize_all(matrices: list[Tensor], orthogonalize=orthogonalize) -> list[Tensor]:
    """`orthogonalize` of matrices of one shape; each process does as many of them as any other, and
    gets the rest from the others, in the format that they were computed in.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    size = math.ceil(len(matrices) / processes)
    mine = range(rank * size, (rank + 1) * size)  # behind the last matrix comes the first again
    done = share = orthogonalize(torch.stack([matrices[i % len(matrices)] for i in mine]))
    if processes > 1:
        done = share.new_empty(processes * size, *share.shape[1:])
        dist.all_gather([*done.chunk(processes)], share)
    return [*done.to(matrices[0].dtype).unbind()[: len(matrices)]]


class Muon(Optimizer):
    """SGD with Nesterov momentum whose update is orthogonalised, scaled to the size of an AdamW
    step (Liu et al. 2025), so that both share one learning rate and one weight decay.
    """

    def __init__(self, params, lr: float, momentum=0.95, weight_decay=0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.orthogonalize = orthogonalize

    def compile(self) -> None:
        """Has the compiler fuse what stands between the products of `orthogonalize`."""
        self.orthogonalize = torch.compile(orthogonalize, dynamic=False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Moves every parameter that has a gradient; does not wait for a GPU."""
        for group in self.param_groups:
            gradients = {p: p.grad for p in group["params"] if p.grad is not None}
            for p in gradients:
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            means = [self.state[p]["momentum_buffer"] for p in gradients]
            torch._foreach_lerp_(means, [*gradients.values()], 1 - group["momentum"])
            ahead = torch._foreach_lerp([*gradients.values()], means, group["momentum"])
            torch._foreach_mul_([*gradients], 1 - group["lr"] * group["weight_decay"])
            for shape in dict.fromkeys(p.shape for p in gradients):
                alike = [p for p in gradients if p.shape == shape]
                updates = [update for update in ahead if update.shape == shape]
                updates = orthogonalize_all(updates, self.orthogonalize)
                torch._foreach_add_(alike, updates, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon takes: the matrices inside the blocks."""
    return [p for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name]


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """`adamw`: one AdamW, decay on matrices only. `muon`: Muon for hidden matrices, AdamW else."""
    lr, weight_decay = config.learning_rate, config.weight_decay
    muon = hidden_matrices(model) if config.optimizer == "muon" else []
    taken = {id(p) for p in muon}
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
    return [Muon(muon, lr, weight_decay=weight_decay), adamw] if muon else [adamw]
