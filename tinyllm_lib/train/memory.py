"""The memory that training needs, by the shapes (activations by estimate), and what to change."""

import math
from dataclasses import replace

import torch

from tinyllm_lib.data import allowed_memory
from tinyllm_lib.model import ModelConfig, Transformer
from tinyllm_lib.train.config import TrainConfig
from tinyllm_lib.train.devices import Processes
from tinyllm_lib.train.optim import hidden_matrices

ACTIVATIONS_MARGIN = 1.35  # plain PyTorch keeps so many times the estimate (counted by hooks)
USABLE_SHARE = 0.9  # of a GPU; the rest is for PyTorch's own buffers and for fragments


def train_memory(config: TrainConfig, vocab_size: int, gpus: int = 1) -> dict[str, float]:
    """Gigabytes (1e9 bytes) that each of `gpus` needs, by part; "auto" micro-batches count as 1.

    Activations, which come last, are what autograd keeps of every token and layer: the inputs of
    norms and matrices, queries, keys, values, the halves of SwiGLU; no logits (see `HeadLoss`).
    """
    shape = ModelConfig(config.dim, config.n_layers, config.n_heads, config.n_kv_heads, vocab_size)
    with torch.device("meta"):
        model = Transformer(shape)
    total = model.num_parameters()
    muon = sum(p.numel() for p in hidden_matrices(model)) * (config.optimizer == "muon")
    steps = config.grad_accumulation_steps
    tokens = config.max_seq_len * config.batch_size / gpus / (1 if steps == "auto" else int(steps))
    kept = 6 * shape.dim + 2 * shape.n_kv_heads * shape.head_dim + 4 * shape.hidden_dim
    dtype = "bf16" if config.dtype == "auto" else config.dtype
    size = 4 if dtype == "fp32" else 2
    copies = 2 if gpus > 1 and steps not in (1, "auto") else 1  # our own, and what is exchanged
    parts = {
        "weights, fp32": 4 * total,
        "gradients, fp32": 4 * total * copies,
        "Muon: one mean per weight": 4 * muon,
        "AdamW: two means per weight": 8 * (total - muon),
        f"activations, {dtype}": size * tokens * shape.n_layers * kept,
    }
    return {part: n / 1e9 for part, n in parts.items() if n}


def micro_batches_that_fit(config: TrainConfig, vocab_size: int, processes: Processes) -> int:
    """The fewest micro-batches, a power of two, with which a GPU should hold the estimate; if none
    does, one row each. Elsewhere 1.
    """
    number, rows = 1, math.ceil(config.batch_size / processes.world_size)
    while processes.device.type == "cuda" and number < rows:
        config = replace(config, grad_accumulation_steps=number)
        *rest, activations = train_memory(config, vocab_size, processes.world_size).values()
        need = sum(rest) + ACTIVATIONS_MARGIN * activations
        if need <= USABLE_SHARE * device_gigabytes(processes):
            break
        number = min(2 * number, rows)
    return number


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU or the CPU had no memory left."""
    said = any(words in str(error) for words in ("can't allocate memory", "out of memory"))
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


def memory_advice(config: TrainConfig, vocab_size: int, processes: Processes) -> str:
    """What a run needs by the estimate, and what to change where it does not fit."""
    need = sum(train_memory(config, vocab_size, processes.world_size).values())
    return (
        f"By estimate this run needs {need:.3g} of {device_gigabytes(processes):.3g} GB: double"
        f" grad_accumulation_steps (now {config.grad_accumulation_steps}; the result is the same),"
        " or take a smaller model or max_seq_len; samples need no room without sample_prompts."
    )


def device_gigabytes(processes: Processes) -> float:
    """Memory of this process's GPU (1e9 bytes); elsewhere its share of what the machine allows."""
    if processes.device.type == "cuda":
        return torch.cuda.get_device_properties(processes.device).total_memory / 1e9
    return allowed_memory() / 1e9 / math.ceil(processes.world_size / processes.machines)
