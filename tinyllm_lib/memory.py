"""How much memory a GPU needs for training: computed from the shapes, the activations by estimate.

python -m tinyllm_lib.memory        the table by profile, micro-batch and number format, as README shows it
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from tinyllm_lib.config import TrainConfig
from tinyllm_lib.machine import utf8_output
from tinyllm_lib.model import ModelConfig, Transformer
from tinyllm_lib.profiles import get_profile

ACTIVATIONS_MARGIN = 1.35   # plain PyTorch keeps this many times the estimate, counted on a CPU in notebook 05
USABLE_SHARE = 0.9          # of a GPU; the rest is for PyTorch's own buffers and for fragments


def train_memory(config: TrainConfig, vocab_size: int, gpus: int = 1) -> dict[str, float]:
    """Gigabytes (1e9 bytes) that each of `gpus` needs, by part.

    The activations are what autograd keeps of every token and layer: the inputs of norms and matrices, queries, keys,
    values, the halves of SwiGLU. The logits are not among them, `HeadLoss` never has all of them at once.
    """
    shape = ModelConfig(config.dim, config.n_layers, config.n_heads, config.n_kv_heads, vocab_size)
    with torch.device("meta"):
        model = Transformer(shape)
    total = model.num_parameters()
    hidden = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and ".layers." in n) * (config.optimizer == "muon")
    tokens = config.max_seq_len * config.batch_size / gpus / config.grad_accumulation_steps
    values = 6 * shape.dim + 2 * shape.n_kv_heads * shape.head_dim + 4 * shape.hidden_dim    # kept per token and layer
    dtype, size = ("fp32", 4) if config.dtype == "fp32" else ("bf16", 2)
    parts = {
        "weights, fp32": 4 * total,
        "gradients, fp32": 4 * total,
        "Muon: one mean per weight": 4 * hidden,
        "AdamW: two means per weight": 8 * (total - hidden),
        f"activations, {dtype}": size * tokens * shape.n_layers * values,
    }
    return {part: n / 1e9 for part, n in parts.items() if n}


def accumulation_that_fits(config: TrainConfig, vocab_size: int, gpus: int, gigabytes: float | None) -> int:
    """The next `grad_accumulation_steps` to try after the present one was too few: doubled until the estimate fits.

    Args:
        gigabytes: of each GPU; None: not known, doubled once.
    """
    steps = 2 * config.grad_accumulation_steps
    while gigabytes and steps < config.batch_size / gpus:
        *rest, activations = train_memory(replace(config, grad_accumulation_steps=steps), vocab_size, gpus).values()
        if sum(rest) + ACTIVATIONS_MARGIN * activations <= USABLE_SHARE * gigabytes:
            break
        steps *= 2
    return min(steps, math.ceil(config.batch_size / gpus))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU or the CPU had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error)


def advice_after_out_of_memory(config: TrainConfig, vocab_size: int, processes: int, gigabytes: float | None) -> str:
    """What to change so that a step fits, in words. Arguments as in `accumulation_that_fits`."""
    rows = math.ceil(config.batch_size / processes)
    tried = math.ceil(rows / config.grad_accumulation_steps)
    if tried == 1:
        return (f"even one row of {config.max_seq_len} tokens per micro-batch does not fit. Take a smaller model or a smaller "
                f"max_seq_len, or a device with more memory.")
    steps = accumulation_that_fits(config, vocab_size, processes, gigabytes)
    fewer = math.ceil(rows / steps)
    need = sum(train_memory(replace(config, grad_accumulation_steps=steps), vocab_size, processes).values())
    known = f", which by estimate need {need:.3g} of the {gigabytes:.3g} GB" if gigabytes else ""
    return (f"{tried} rows of {config.max_seq_len} tokens per micro-batch do not fit. grad_accumulation_steps={steps} makes "
            f"micro-batches of {fewer}{known}; the result is the same.")


def memory_table(micro_batches: tuple[int, ...] = (8, 16, 32, 64, 128)) -> str:
    """Markdown: gigabytes of one GPU by profile, rows of a micro-batch and number format."""
    lines = ["| profile | format | " + " | ".join(f"{rows} rows" for rows in micro_batches) + " |",
             "|---|---|" + "---|" * len(micro_batches)]
    for name in ("laptop", "gpu", "full"):
        profile = get_profile(name)
        for dtype in ("bf16", "fp32"):
            config = TrainConfig(**{**profile.pretrain, "max_seq_len": profile.max_length, "dtype": dtype})
            sizes = [sum(train_memory(replace(config, batch_size=rows), profile.vocab_size).values()) for rows in micro_batches]
            cells = " | ".join(f"{size:.2f}" if size < 1 else f"{size:.1f}" for size in sizes)
            lines.append(f"| `{name}`, {profile.max_length} tokens a row | {dtype} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    utf8_output()
    print(memory_table())
