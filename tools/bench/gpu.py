"""One GPU: training tokens/s, MFU and memory by preset, micro-batch and options; losses against
fp32; sampling; a ten-minute model.

    PYTHONPATH=. python -m tools.bench.gpu [--minutes 10] [--text corpus.jsonl] [--out DIR]
    PYTHONPATH=. python -m tools.bench.gpu --dry-run   # on a CPU, a very small model, in a minute

Needs nothing beyond torch, numpy, transformers, tokenizers, safetensors, tqdm and regex. Prints
Markdown and writes `gpu.json`.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import torch

from tinyllm_lib.course import get_profile
from tinyllm_lib.course.world import write_sample_corpus
from tinyllm_lib.data import read_texts, utf8_output, write_json
from tinyllm_lib.dataset import write_pretrain_tokens
from tinyllm_lib.generate import TextGenerator, generate
from tinyllm_lib.model import ModelConfig, Transformer
from tinyllm_lib.tokenizer import train_tokenizer
from tinyllm_lib.train import Processes, TrainConfig, Trainer, build, peak_flops, prepare_run
from tools.bench.harness import machine

SHAPE = ("dim", "n_layers", "n_heads", "n_kv_heads")
PRESETS = {"82.6M": get_profile("gpu"), "215M": get_profile("full")}
DRY_PRESETS = {"tiny": get_profile("ci")}
PROMPTS = ("春", "明月", "今天")  # spring, the bright moon, today


def main(argv: list[str] | None = None) -> dict:
    """Sweep, check, train, sample; returns what `gpu.json` holds."""
    utf8_output()
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.gpu", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=10,
        help="of training for the model that is sampled from (default 10)",
    )
    parser.add_argument(
        "--text",
        type=Path,
        help="documents to train on, as read_texts takes them; default: the sample corpus",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("."), help="where gpu.json is written (default: here)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="on a CPU with a very small model, to see that everything works",
    )
    options = parser.parse_args(argv)
    if not (torch.cuda.is_available() or options.dry_run):
        parser.error(
            "no GPU was found (torch.cuda.is_available() is false). --dry-run tries everything on a"
            " CPU."
        )
    dry, presets = options.dry_run, DRY_PRESETS if options.dry_run else PRESETS
    with tempfile.TemporaryDirectory() as scratch:
        base = prepare(
            Path(scratch), options.text, vocab_size=next(iter(presets.values())).vocab_size, dry=dry
        )
        micro_batches, compiled = (
            ((4, 8), (False,)) if dry else ((16, 32, 64, 128, 192), (False, True))
        )
        rows = [
            measure(base, name, *setting, steps=2 if dry else 20)
            for name in presets
            for setting in product(micro_batches, compiled, ("adamw", "muon"))
        ]
        fitting = [
            row
            for row in rows
            if "tokens_per_second" in row and row["preset"] == next(iter(presets))
        ]
        best = max(fitting, key=lambda row: row["tokens_per_second"])
        about = {
            "hardware": hardware(dry),
            "date": time.strftime("%Y-%m-%d"),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "dry_run": dry,
        }
        result = {
            **about,
            "sweep": rows,
            "loss_against_fp32": loss_difference(base, best, steps=3 if dry else 30),
            "sampling": [sampling_rates(base, name, 16 if dry else 256) for name in presets],
            "model": train_and_sample(base, best, 0.05 if dry else options.minutes),
        }
    write_json(options.out / "gpu.json", result)
    print(f"\n{table(rows)}\n\n{about['hardware']}, {about['date']}")
    print(f"largest difference of the loss from fp32: {result['loss_against_fp32']:.2%}")
    for row in result["sampling"]:
        print(
            f"sampling, {row['preset']}, batch 1: {row['plain']:,} tokens/s, static cache"
            f" {row['static']:,}; reading every weight once a token allows {row['memory_bound']:,};"
            f" {row['same_tokens']:.0%} of the tokens are the same"
        )
    for text in result["model"]["samples"]:
        print("  ", text.replace("\n", " "))
    return result


def prepare(folder: Path, text: Path | None, *, vocab_size: int, dry: bool) -> TrainConfig:
    """Tokenizer and shards of the text, and the config that all runs here share."""
    if text is None:
        write_sample_corpus(folder, documents=1000 if dry else 200_000, dialogues=10)
        text = folder / "pretrain.jsonl"
    tokenizer = train_tokenizer(
        islice(read_texts(text), 100_000), folder / "tokenizer", vocab_size=vocab_size
    )
    write_pretrain_tokens(read_texts(text, split="train"), tokenizer, folder / "tokens" / "train")
    write_pretrain_tokens(
        islice(read_texts(text, split="val"), 2000), tokenizer, folder / "tokens" / "val"
    )
    return TrainConfig(
        data_path=str(folder / "tokens"),
        tokenizer_path=str(folder / "tokenizer"),
        out_dir=str(folder / "run"),
        max_seq_len=128 if dry else 512,
        device="cpu" if dry else "cuda",
        dtype="bf16",
        resume="never",
        steps=10**6,
    )


def sized(
    base: TrainConfig, preset: str, micro_batch: int, compiled: bool, optimizer: str, **changes
) -> TrainConfig:
    profile = (PRESETS | DRY_PRESETS)[preset]
    return replace(
        base,
        **{k: profile.pretrain[k] for k in SHAPE},
        batch_size=micro_batch,
        compile=compiled,
        optimizer=optimizer,
        learning_rate=profile.pretrain["learning_rate"] if optimizer == "muon" else 3e-4,
        **changes,
    )


def measure(
    base: TrainConfig, preset: str, micro_batch: int, compiled: bool, optimizer: str, *, steps: int
) -> dict:
    """One line of the sweep: the rate over `steps` steps after as many to warm up; an error where
    it does not fit.
    """
    row = {
        "preset": preset,
        "micro_batch": micro_batch,
        "compile": compiled,
        "optimizer": optimizer,
    }
    config = sized(base, preset, micro_batch, compiled, optimizer)
    try:
        with torch.random.fork_rng():
            trainer = build(prepare_run(config, Processes.join(config)))
        run(trainer, steps)
        start = time.perf_counter()
        run(trainer, steps)
        seconds = time.perf_counter() - start
    except torch.OutOfMemoryError:
        row["error"] = "out of memory"
    else:
        rate = steps * micro_batch * config.max_seq_len / seconds
        dtype, device = trainer.run.dtype, trainer.run.processes.device
        row |= {
            "dtype": str(dtype).removeprefix("torch."),
            "tokens_per_second": round(rate),
            "mfu": round(
                rate
                * trainer.model.flops_per_token(config.max_seq_len)
                / peak_flops(device, dtype),
                4,
            ),
        }
        if device.type == "cuda":
            row["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    trainer = None
    forget()
    print(row, flush=True)
    return row


def run(trainer: Trainer, steps: int) -> list[float]:
    """Takes `steps` steps and waits for the device; the loss of each."""
    losses = []
    for _ in range(steps):
        batches, supervised, _ = trainer.load_step(trainer.step)
        trainer.accumulate_gradients(batches, supervised)
        trainer.update()
        losses.append(trainer.gradients[-1].clone())
        trainer.step += 1
    return torch.stack(losses).tolist()


def forget() -> None:
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def loss_difference(base: TrainConfig, best: dict, *, steps: int) -> float:
    """The largest relative difference between the losses of the fastest setting and of fp32 without
    compile, step by step.
    """
    micro_batch = min(best["micro_batch"], 16)
    losses = []
    for changes in ({"compiled": best["compile"]}, {"compiled": False, "dtype": "fp32"}):
        config = sized(
            base,
            best["preset"],
            micro_batch,
            changes.pop("compiled"),
            best["optimizer"],
            warmup_steps=steps,
            **changes,
        )
        trainer = build(prepare_run(config, Processes.join(config)))
        losses.append(run(trainer, steps))
        forget()
    return max(abs(a - b) / b for a, b in zip(*losses, strict=True))


def sampling_rates(base: TrainConfig, preset: str, new: int) -> dict:
    """Tokens/s at batch 1 in bf16, as usual and with the static cache, and what the memory's speed
    would allow.
    """
    profile, device = (PRESETS | DRY_PRESETS)[preset], base.device
    config = ModelConfig(
        **{k: profile.pretrain[k] for k in SHAPE},
        vocab_size=profile.vocab_size,
        max_seq_len=profile.max_length,
    )
    torch.manual_seed(0)
    model = Transformer(config).to(device, torch.bfloat16)
    rates, texts = {}, {}
    for name, static in (("plain", False), ("static", True)):
        for count in (4, new):  # the first call warms up
            start = time.perf_counter()
            texts[name] = generate(
                model,
                [list(range(5, 21))],
                max_new_tokens=count,
                temperature=0,
                stop_ids=(),
                static_cache=static,
            )[0].ids
            rates[name] = round(count / (time.perf_counter() - start))
    with torch.inference_mode():
        for _ in range(2):
            start = time.perf_counter()
            total = sum(p.sum() for _ in range(20) for p in model.parameters())
            total.item()
            seconds = (time.perf_counter() - start) / 20
    same = sum(a == b for a, b in zip(*texts.values(), strict=True)) / new
    return {"preset": preset, **rates, "memory_bound": round(1 / seconds), "same_tokens": same}


def train_and_sample(base: TrainConfig, best: dict, minutes: float) -> dict:
    """Trains the smaller preset for `minutes` at the fastest setting; its validation and what it
    writes.
    """
    tokens = best["tokens_per_second"] * 60 * minutes
    config = sized(
        base,
        best["preset"],
        best["micro_batch"],
        best["compile"],
        "muon",
        steps=0,
        tokens=int(tokens),
        warmup_steps=20,
    )
    trainer = build(prepare_run(config, Processes.join(config)))
    start = time.perf_counter()
    trainer.fit()
    seconds, writer = (
        time.perf_counter() - start,
        TextGenerator.from_model(trainer.model, trainer.run.tokenizer),
    )
    return {
        "preset": best["preset"],
        "minutes": round(seconds / 60, 1),
        "tokens": trainer.tokens,
        **trainer.evaluate(),
        "samples": [
            prompt + writer.complete(prompt, max_new_tokens=60, temperature=0.8, top_k=50, seed=0)
            for prompt in PROMPTS
        ],
    }


def hardware(dry: bool) -> str:
    return machine() if dry else f"{torch.cuda.get_device_name()}, {machine()}"


def table(rows: list[dict]) -> str:
    """The sweep as a Markdown table."""
    lines = [
        "| preset | micro-batch | compile | optimiser | tokens/s | MFU | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = (
            f"{row['tokens_per_second']:,} | {row['mfu']:.1%}"
            if "mfu" in row
            else f"{row['error']} |"
        )
        memory = f"{row['memory_gb']} GB" if "memory_gb" in row else ""
        compiled = "yes" if row["compile"] else "no"
        lines.append(
            f"| {row['preset']} | {row['micro_batch']} | {compiled} | {row['optimizer']} | {rate} |"
            f" {memory} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
