"""Muon for the hidden matrices, AdamW for the rest.

The update is that of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, which on a CPU takes 50
times as long, in bf16, and does all matrices in every process; ours are batched and shared out.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tinyllm_lib.train.config import TrainConfig


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Pushes all singular values of each (..., m, n) matrix towards 1 (Newton-Schulz, Jordan)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    x = x.reshape(-1, *matrices.shape[-2:])
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):  # a x + (b G + c G G) x
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape).to(matrices.dtype)


def orthogonalize_all(matrices: list[Tensor]) -> list[Tensor]:
    """`orthogonalize` of each matrix, batched by shape and shared out over the processes."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    sizes = [m.numel() for m in matrices]
    flat = matrices[0].new_zeros(sum(sizes))
    done = [part.view_as(m) for m, part in zip(matrices, flat.split(sizes), strict=True)]
    for shape in dict.fromkeys(m.shape for m in matrices):
        mine = [i for i, m in enumerate(matrices) if m.shape == shape][rank::processes]
        if mine:
            results = orthogonalize(torch.stack([matrices[i] for i in mine]))
            for i, result in zip(mine, results, strict=True):
                done[i].copy_(result)
    if processes > 1:
        dist.all_reduce(flat)  # what the others have done is 0 here
    return done


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum whose update is orthogonalised, scaled to the size of an AdamW
    step (Liu et al. 2025), so that both share one learning rate and one weight decay.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            params, updates = [p for p in group["params"] if p.grad is not None], []
            for p in params:
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                buffer = self.state[p]["momentum_buffer"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                updates.append(p.grad.lerp(buffer, group["momentum"]))
            for p, update in zip(params, orthogonalize_all(updates), strict=True):
                scale, lr = 0.2 * max(p.shape) ** 0.5, group["lr"]
                p.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr * scale)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon takes: the matrices inside the blocks."""
    return [p for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name]


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
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
