"""The memory that training needs, computed from the shapes, the activations by estimate; and what
to change where it is not there.
"""

import math
from dataclasses import dataclass, replace

import torch

from tinyllm_lib.data import allowed_memory
from tinyllm_lib.model import ModelConfig, Transformer
from tinyllm_lib.train.config import TrainConfig
from tinyllm_lib.train.devices import Processes
from tinyllm_lib.train.optim import hidden_matrices

# Plain PyTorch keeps this many times the estimate, counted on a CPU in notebook 05.
ACTIVATIONS_MARGIN = 1.35
USABLE_SHARE = 0.9  # of a GPU; the rest is for PyTorch's own buffers and for fragments


def train_memory(config: TrainConfig, vocab_size: int, gpus: int = 1) -> dict[str, float]:
    """Gigabytes (1e9 bytes) that each of `gpus` needs, by part; the activations come last.

    They are what autograd keeps of every token and layer: the inputs of norms and matrices,
    queries, keys, values, the halves of SwiGLU. The logits are not among them, `HeadLoss` never has
    all of them at once. grad_accumulation_steps="auto" counts as 1.
    """
    shape = ModelConfig(config.dim, config.n_layers, config.n_heads, config.n_kv_heads, vocab_size)
    with torch.device("meta"):
        model = Transformer(shape)
    total = model.num_parameters()
    muon = sum(p.numel() for p in hidden_matrices(model)) * (config.optimizer == "muon")
    steps = config.grad_accumulation_steps
    tokens = (
        config.max_seq_len * config.batch_size / gpus / (1 if isinstance(steps, str) else steps)
    )
    kept = 6 * shape.dim + 2 * shape.n_kv_heads * shape.head_dim + 4 * shape.hidden_dim
    dtype, size = ("fp32", 4) if config.dtype == "fp32" else ("bf16", 2)
    parts = {
        "weights, fp32": 4 * total,
        "gradients, fp32": 4 * total,
        "Muon: one mean per weight": 4 * muon,
        "AdamW: two means per weight": 8 * (total - muon),
        f"activations, {dtype}": size * tokens * shape.n_layers * kept,
    }
    return {part: n / 1e9 for part, n in parts.items() if n}


@dataclass(frozen=True)
class MemoryBudget:
    """What a run has of memory, and what by the estimate it can do with it."""

    config: TrainConfig  # with the number format that it computes in
    vocab_size: int
    gpus: int
    gigabytes: float  # of each

    def need(self, micro_batches: int) -> dict[str, float]:
        """`train_memory` with so many micro-batches."""
        config = replace(self.config, grad_accumulation_steps=micro_batches)
        return train_memory(config, self.vocab_size, self.gpus)

    def micro_batches_that_fit(self, at_least: int = 1) -> int:
        """`at_least`, doubled until the estimate fits or none has more than one row."""
        number, rows = at_least, math.ceil(self.config.batch_size / self.gpus)
        while number < rows:
            *rest, activations = self.need(number).values()
            if sum(rest) + ACTIVATIONS_MARGIN * activations <= USABLE_SHARE * self.gigabytes:
                break
            number *= 2
        return min(number, rows)

    def advice_for_rows(self, tried: int) -> str:
        """What to change so that a step or an evaluation fits that did not with `tried` rows."""
        rows = math.ceil(self.config.batch_size / self.gpus)
        size = f"of {self.config.max_seq_len} tokens at a time"
        if tried == 1:
            advice = "Take a smaller model or max_seq_len, or a device with more memory."
            return f"even one row {size} does not fit. {advice}"
        number = self.micro_batches_that_fit(at_least=math.ceil(rows / (tried // 2)))
        fewer, need = math.ceil(rows / number), sum(self.need(number).values())
        return (
            f"{tried} rows {size} do not fit. grad_accumulation_steps={number} makes it {fewer},"
            f" with which training by estimate needs {need:.3g} of the {self.gigabytes:.3g} GB; the"
            " result is the same."
        )

    def advice_for_model(self) -> str:
        """What to change where not even the model and its optimisers fit."""
        *parts, _ = self.need(1).values()
        need = f"{sum(parts):.3g} of {self.gigabytes:.3g} GB, whatever the batch"
        advice = "Take a smaller model, or a device with more memory, and see what else runs there."
        return f"weights, gradients and optimisers of this model take {need}. {advice}"


def device_gigabytes(processes: Processes) -> float:
    """Memory of this process's GPU (1e9 bytes); elsewhere its share of what the machine allows."""
    if processes.device.type == "cuda":
        return torch.cuda.get_device_properties(processes.device).total_memory / 1e9
    return allowed_memory() / 1e9 / math.ceil(processes.world_size / processes.machines)
