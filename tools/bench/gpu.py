"""One GPU: training and sampling, ours beside transformers' Llama in the same run; in five minutes.

    PYTHONPATH=. python -m tools.bench.gpu [--minutes 5] [--out DIR] [--save]
    PYTHONPATH=. python -m tools.bench.gpu --dry-run   # on a CPU: a tiny model, every kind of row

On a bare GPU node the first is all it takes: a checkout of the project, and torch, numpy,
transformers, tokenizers, safetensors, tqdm and regex. The most important rows come first; each is
printed and written to `gpu.json` as soon as it is there, and before each it is asked whether time
is left, so that the end of a loan of the machine loses nothing.

Training: steps whose batches lie ready (a run prepares them in a thread). The peer is
`LlamaForCausalLM` of the same shape on as many tokens, in the number format of ours, with AdamW
fused; it knows no documents. `compiler_s`: what the first step took beyond a later one. Sampling:
`generate` as every caller uses it; the peer is one sum over as many bytes as the weights have.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch

from tinyllm_lib.course import get_profile
from tinyllm_lib.course.world import write_sample_corpus
from tinyllm_lib.data import read_texts, utf8_output, write_json
from tinyllm_lib.dataset import write_pretrain_tokens
from tinyllm_lib.tokenizer import train_tokenizer
from tinyllm_lib.train import TrainConfig
from tools.bench.gpu_rows import (
    SHAPE,
    accepted,
    forget,
    fp16_rows,
    in_words,
    loss_rows,
    same_twice_rows,
    sampling_rows,
    training_rows,
)
from tools.bench.harness import FIGURES, bench_folder, machine

PRESETS = {"215M": get_profile("full"), "82.6M": get_profile("gpu")}
STREAM = {"packing": "stream", "separate_documents": False}  # as in `full`
TINY = get_profile("ci")
DRY_PRESETS = {"tiny, stream": replace(TINY, pretrain=TINY.pretrain | STREAM), "tiny": TINY}


class Size(NamedTuple):
    """How much is measured."""

    documents: int
    rows: tuple[int, int]  # of a training step, the important number first
    steps: int  # of a timed run
    small_steps: int  # of a run to its end
    tokens: int  # sampled
    prompts: int  # at once, in the second row of sampling
    pace: float = 1.0  # a case takes so many times what is expected of an H200


FULL_SIZE = Size(20_000, (128, 64), 12, 20, 256, 16)
DRY_SIZE = Size(1000, (8, 4), 2, 6, 16, 3, pace=0.1)


def main(argv: list[str] | None = None, size: Size | None = None) -> list[dict]:
    """Runs the cases that there is time for; returns what `gpu.json` holds."""
    began = time.perf_counter()
    utf8_output()
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.gpu", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=5, help="at most, in all (default 5)")
    parser.add_argument("--out", type=Path, help="where gpu.json is written; default: workspace")
    parser.add_argument("--save", action="store_true", help="renew figures/bench/gpu.json, too")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny, on a CPU, to see that it works"
    )
    options = parser.parse_args(argv)
    dry = options.dry_run
    if dry and options.save:
        parser.error("--dry-run measures nothing that is worth --save: leave one of them out.")
    if not (dry or torch.cuda.is_available()):
        parser.error("torch.cuda.is_available() is false. --dry-run tries everything on a CPU.")
    # What makes cuBLAS deterministic has to be there before its first product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    file = "gpu-dry-run.json" if dry else "gpu.json"
    paths = [folder / file for folder in (options.out or bench_folder(), *[FIGURES] * options.save)]
    rows, about = {}, about_this_machine(dry)
    size = size or (DRY_SIZE if dry else FULL_SIZE)
    # A dry run goes through the first half of compiling only, which needs no C compiler.
    half = patch.object(torch, "compile", partial(torch.compile, backend="eager"))
    with tempfile.TemporaryDirectory() as scratch, half if dry else nullcontext():
        base, spent, expected = prepare(Path(scratch), size, dry), 0.0, 0.0
        for name, seconds, case in cases(base, size, DRY_PRESETS if dry else PRESETS):
            start = time.perf_counter()
            need, left = seconds * size.pace, options.minutes * 60 - (start - began)
            if spent > expected:  # a slow machine is slow in what is to come, too
                need *= spent / expected
            if need > left:
                print(f"left out, for it takes {need:.0f} s and {left:.0f} s are left: {name}")
                continue
            try:
                for row in case():
                    rows[row["case"]] = row | about
                    print(line(row), flush=True)
                    store(paths, rows)
            except Exception as error:  # one case less, not a table less
                traceback.print_exc()
                rows[name] = {"case": name, **rows.get(name, about), "error": in_words(error)}
                store(paths, rows)
            spent, expected = spent + time.perf_counter() - start, expected + seconds * size.pace
            forget()
    print("\n".join(f"stored: {path}" for path in paths if rows))
    return [*rows.values()]


def store(paths: list[Path], rows: dict[str, dict]) -> None:
    for path in paths:
        write_json(path, [*rows.values()])


def cases(base: TrainConfig, size: Size, presets: dict) -> list[tuple[str, float, Callable]]:
    """(name, seconds by estimate, what yields its rows), the most important first."""

    def training(preset: str, rows: int, compiled: bool) -> tuple[str, float, Callable]:
        name = f"training {preset}, {rows} rows, {'compiled' if compiled else 'eager'}"
        config = config_of(base, presets[preset], rows, compiled)
        busy = (preset, rows, compiled) == (large, many, True)
        rows_of = partial(training_rows, name, config, size.steps, busy)
        return name, 100 if compiled else 20, rows_of

    def sampling(preset: str, number: int) -> tuple[str, float, Callable]:
        name = f"sampling {preset}, {number} at once"
        what = presets[preset], base.device, number, size.tokens
        return name, 8, partial(sampling_rows, name, *what)

    (large, small), (many, fewer) = presets, size.rows
    short = config_of(base, presets[small], 16, False)
    short = replace(short, n_layers=min(4, short.n_layers), steps=size.small_steps, warmup_steps=5)
    half = partial(fp16_rows, replace(short, batch_size=fewer), size.steps)
    return [
        training(large, many, True),
        *(sampling(preset, number) for preset in presets for number in (1, size.prompts)),
        ("the same twice", 20, partial(same_twice_rows, short)),
        ("losses", 15, partial(loss_rows, short)),
        training(small, many, True),
        training(large, many, False),
        training(small, many, False),
        *[("training in fp16", 20, half)] * bool(accepted(short, dtype="fp16")),
        *(training(preset, fewer, True) for preset in presets),
        *(training(preset, fewer, False) for preset in presets),
    ]


def prepare(folder: Path, size: Size, dry: bool) -> TrainConfig:
    """Tokenizer and shards of the sample corpus, and the config that all runs here share."""
    write_sample_corpus(folder, documents=size.documents, dialogues=10)
    texts, vocab_size = folder / "pretrain.jsonl", (TINY if dry else PRESETS["215M"]).vocab_size
    tokenizer = train_tokenizer(read_texts(texts), folder / "tokenizer", vocab_size=vocab_size)
    write_pretrain_tokens(read_texts(texts), tokenizer, folder / "tokens" / "train")
    return TrainConfig(
        data_path=str(folder / "tokens"),
        tokenizer_path=str(folder / "tokenizer"),
        out_dir=str(folder / "run"),
        max_seq_len=128 if dry else 512,
        device="cpu" if dry else "cuda",
        dtype="fp32" if dry else "bf16",
        resume="never",
        steps=10**6,
        log_interval=1,
    )


def config_of(base: TrainConfig, profile, rows: int, compiled: bool) -> TrainConfig:
    """As the profile trains, with so many rows in a step."""
    taken = {k: v for k, v in profile.pretrain.items() if k in (*SHAPE, *STREAM, "learning_rate")}
    return replace(base, **taken, batch_size=rows, compile=compiled)


def about_this_machine(dry: bool) -> dict:
    """What a row says of where and with what it was measured."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    versions = {package: version(package) for package in ("torch", "transformers", "numpy")}
    return {
        "hardware": machine() if dry else f"{torch.cuda.get_device_name()}, {machine()}",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit,
    }


def line(row: dict) -> str:
    """A row as it is printed."""
    beside = row["peer"] and f"; {row['peer']:,.10g} {row['peer_name']}, ratio {row['ratio']}"
    hidden = ("case", "ours", "unit", "peer", "peer_name", "ratio", "runs", "weights")
    rest = [f"{k} {v}" for k, v in row.items() if k not in hidden and v is not None]
    return ", ".join([f"{row['case']}: {row['ours']:,.10g} {row['unit']}{beside or ''}", *rest])


if __name__ == "__main__":
    main()
