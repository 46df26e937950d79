"""The rows of `bench.gpu`: each function here measures one case, and yields what it has found.

A row that is yielded again under the same name has grown, by the peer beside it.
"""

from __future__ import annotations

import gc
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tinyllm_lib.generate import generate
from tinyllm_lib.model import ModelConfig, Transformer, latest_checkpoint, weights_fingerprint
from tinyllm_lib.train import (
    Processes,
    TrainConfig,
    Trainer,
    build,
    is_out_of_memory,
    peak_flops,
    prepare_run,
    train,
    train_memory,
)
from tools.bench.harness import neighbour

SHAPE = ("dim", "n_layers", "n_heads", "n_kv_heads")
Rows = Iterator[dict]


# ---- training


def training_rows(name: str, config: TrainConfig, steps: int, busy: bool) -> Rows:
    """Tokens/s of ours alone, then with a `busy` process beside it, then of the peer."""
    trainer, step = our_step(config)
    tokens, vocab_size = config.batch_size * config.max_seq_len, len(trainer.run.tokenizer)
    first, later = timed(step, steps)
    flops = trainer.model.flops_per_token(config.max_seq_len) * tokens / later
    row = {
        "case": name,
        **compared(tokens / later, None, "transformers, AdamW", "tokens/s"),
        "mfu": rounded(flops / peak_flops(trainer.run.processes.device, trainer.run.dtype)),
        "compiler_s": rounded(first - later) if config.compile else None,
        "memory_gb": memory_gb(),
        "memory_computed_gb": rounded(sum(train_memory(config, vocab_size).values())),
    }
    yield row
    if busy:
        with neighbour(busy=True):
            _, beside = timed(step, steps)
        found = compared(tokens / beside, tokens / later, "alone", "tokens/s")
        yield {"case": f"{name}, a busy process beside it", **found}
    del trainer, step
    forget()
    try:
        first, later = timed(peer_step(config, vocab_size), steps)
    except Exception as error:
        yield row | {"peer_error": in_words(error)}
        return
    row |= compared(row["ours"], tokens / later, row["peer_name"], row["unit"])
    compiler = rounded(first - later) if config.compile else None
    yield row | {"peer_compiler_s": compiler, "peer_memory_gb": memory_gb()}


def our_step(config: TrainConfig) -> tuple[Trainer, Callable[[int], None]]:
    """A trainer, and a step of it on one of four batches that lie ready."""
    trainer = build(prepare_run(config, Processes.join(config)))
    loaded = [trainer.load_step(number) for number in range(4)]

    def step(number: int) -> None:
        batches, supervised, _ = loaded[number % len(loaded)]
        trainer.accumulate_gradients(batches, supervised)
        trainer.update()
        trainer.step += 1

    return trainer, step


def peer_step(config: TrainConfig, vocab_size: int) -> Callable[[int], None]:
    """A step of transformers' Llama on random ids, by the book."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = ModelConfig(**{k: getattr(config, k) for k in SHAPE}, vocab_size=vocab_size)
    model = LlamaForCausalLM(LlamaConfig(**shape.to_hf())).to(config.device)
    forward = torch.compile(model, dynamic=False) if config.compile else model
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
    size = config.batch_size, config.max_seq_len + 1
    ids = torch.randint(vocab_size, size, device=config.device)
    context = partial(torch.autocast, config.device, torch.bfloat16)

    def step(_: int) -> None:
        with context() if config.dtype == "bf16" else nullcontext():
            logits = forward(input_ids=ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()

    return step


def timed(step: Callable[[int], None], steps: int) -> tuple[float, float]:
    """Seconds of the first step, and of one of `steps` later ones."""
    found = []
    for numbers in (range(1), range(1, 4), range(4, 4 + steps)):
        start = time.perf_counter()
        for number in numbers:
            step(number)
        wait()
        found.append((time.perf_counter() - start) / len(numbers))
    return found[0], found[-1]


def fp16_rows(config: TrainConfig, steps: int) -> Rows:
    """Small model, eager: fp16 with its loss scaling against the format of all other rows."""
    seconds = []
    for dtype in ("fp16", config.dtype):
        _, step = our_step(replace(config, dtype=dtype))
        seconds.append(timed(step, steps)[1])
        forget()
    tokens = config.batch_size * config.max_seq_len
    rates = [tokens / each for each in seconds]
    yield {"case": "training in fp16", **compared(*rates, config.dtype, "tokens/s")}


def loss_rows(config: TrainConfig) -> Rows:
    """The largest relative difference between the losses in bf16 and in fp32, step by step."""
    bf16, fp32 = (losses(run_to_end(config, dtype, dtype=dtype)) for dtype in ("bf16", "fp32"))
    largest = max(abs(a - b) / b for a, b in zip(bf16, fp32, strict=True))
    found = compared(largest, None, "fp32", "of the loss in fp32")
    yield {"case": "losses in bf16, largest difference", **found}


def same_twice_rows(config: TrainConfig) -> Rows:
    """How many of two runs, one begun anew and one stopped half-way, end with the first's bytes."""
    exact = accepted(config, deterministic=True)
    config = replace(exact or config, save_interval=config.steps // 2, keep_last=2)
    first, again = (run_to_end(config, name) for name in ("first", "again"))
    stopped = shutil.copytree(first, first.with_name("stopped"))
    shutil.rmtree(latest_checkpoint(stopped))
    stopped = run_to_end(config, "stopped", resume="must")
    ends = [weights_fingerprint(latest_checkpoint(run)) for run in (first, again, stopped)]
    same = sum(end == ends[0] for end in ends[1:])
    found = compared(same, 2, "asked for", "runs with the same bytes")
    yield {"case": "the same twice", **found, "deterministic": bool(exact), "weights": ends}


def run_to_end(config: TrainConfig, name: str, **changes) -> Path:
    """The folder `name` of a finished run, beside the config's own; says nothing."""
    folder = Path(config.out_dir).with_name(name)
    with redirect_stdout(io.StringIO()):
        return train(replace(config, out_dir=str(folder), **changes))


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


# ---- sampling


@torch.inference_mode()
def sampling_rows(name: str, profile, device: str, number: int, new: int) -> Rows:
    """Tokens/s of random weights in bf16, and whether the text is that without a cache."""
    shape = {k: profile.pretrain[k] for k in SHAPE}
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**shape, vocab_size=profile.vocab_size, max_seq_len=512))
    model = model.to(device, torch.bfloat16)
    prompts = [list(range(5 + row, 21 + row)) for row in range(number)]
    write = partial(generate, model, prompts, temperature=0, stop_ids=(), kept={})
    write(max_new_tokens=new)  # warms up
    start = time.perf_counter()
    texts = [row.ids for row in write(max_new_tokens=new)]
    rate = number * new / (time.perf_counter() - start)
    prefix = min(new, 32)
    plain = [row.ids for row in write(max_new_tokens=prefix, use_cache=False)]
    weights = torch.ones(model.num_parameters(), device=device, dtype=torch.bfloat16)
    bound = compared(rate, number / seconds_to_read(weights), "weights read once", "tokens/s")
    same = sum(text[:prefix] == other for text, other in zip(texts, plain, strict=True))
    yield {"case": name, **bound, "texts_as_without_cache": f"{same} of {number}"}


def seconds_to_read(numbers: torch.Tensor) -> float:
    """The best of twenty sums, each one kernel, by the device's own clock."""
    best = float("inf")
    for _ in range(20):
        if numbers.is_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            numbers.sum()
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            numbers.sum()
            best = min(best, time.perf_counter() - start)
    return best


# ---- what they share


def accepted(config: TrainConfig, **options) -> TrainConfig | None:
    """The config with these options, or None where this version does not have them."""
    try:
        return replace(config, **options)
    except (TypeError, ValueError):
        return None


def compared(ours: float, peer: float | None, peer_name: str, unit: str) -> dict:
    ratio = rounded(ours / peer) if peer else None
    numbers = {"ours": rounded(ours), "peer": peer and rounded(peer), "ratio": ratio}
    return {**numbers, "peer_name": peer_name, "unit": unit, "runs": 1}


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory_gb() -> float | None:
    """The most that tensors took since `forget`; None on a CPU."""
    found = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return rounded(found / 1e9) if found else None


def forget() -> None:
    """Leaves the device to the next case as the first one found it."""
    gc.collect()
    torch.use_deterministic_algorithms(False)  # what the case of the same twice has switched
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch._inductor.config.deterministic = False
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def in_words(error: Exception) -> str:
    return "out of memory" if is_out_of_memory(error) else repr(error)
