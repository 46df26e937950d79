"""Training: ours against the plain recipe that most courses teach.

    python -m tools.bench.train [--runs 5] [--save]

The plain recipe: transformers' `LlamaForCausalLM` of the same shape, fp32, torch's AdamW, a
document or dialogue a row, padded to 512 positions, a loop written by hand. Ours: the trainer as it
is, in this one process, with AdamW too where rates are compared, so that both do the same
arithmetic for each position. A rate counts either all positions, padding included, or the useful
ones only; `compiled` is with `torch.compile`, its own minutes aside. Where the time to a result is
compared, ours uses its own optimiser and learning rate.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache, partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from tinyllm_lib.course import get_profile
from tinyllm_lib.course.pace import positions_per_second
from tinyllm_lib.data import allowed_cpus, read_dialogues, write_json
from tinyllm_lib.dataset import (
    DataOrder,
    PretrainDataset,
    SFTDataset,
    write_pretrain_tokens,
    write_sft_tokens,
)
from tinyllm_lib.launch import launch
from tinyllm_lib.model import ModelConfig, Transformer
from tinyllm_lib.tokenizer import load_tokenizer, token_byte_lengths, train_tokenizer
from tinyllm_lib.train import Processes, TrainConfig, Trainer, build, get_lr, prepare_run
from tools.bench.data import Work, corpora, texts_of
from tools.bench.harness import Case, bench_folder, main

PADDED = 512  # positions of a row of the plain recipe
TRAIN_CHARS, VAL_DOCUMENTS, DIALOGUES = 4_000_000, 200, 4000
PRESETS = {  # name: profile, rows of a step (ours, plain), steps of a timed run
    "laptop": (get_profile("laptop"), (16, 4), 30),
    "82.6M": (get_profile("gpu"), (4, 4), 3),
}
SHAPE = ("dim", "n_layers", "n_heads", "n_kv_heads")
GOAL_STEPS, GOAL_ROWS, GOAL_LR = 100, 8, 3e-3  # the plain run whose result ours has to reach
OUR_STEPS = 100  # of the run that reaches it; evaluated every 5


@cache
def plain_recipe(preset: str, learning_rate: float):
    """(model, optimiser) of the plain recipe, seeded."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(allowed_cpus())
    profile, _, _ = PRESETS[preset]
    shape = ModelConfig(
        **{k: profile.pretrain[k] for k in SHAPE}, vocab_size=profile.vocab_size, max_seq_len=PADDED
    )
    model = LlamaForCausalLM(LlamaConfig(**shape.to_hf()))
    return model, torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )


def plain_step(model, optimizer, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """One step of the plain recipe on X, Y and mask, each (B, 511)."""
    X, Y, mask = batch
    logits = model(input_ids=X, attention_mask=(X != 0).long(), use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), Y.masked_fill(mask == 0, -100).flatten()
    )
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def plain_rate(folder: Path, preset: str, stage: str, count: str) -> Work:
    data = padded_rows(folder, preset, stage)
    _, (_, rows), steps = PRESETS[preset]
    model, optimizer = plain_recipe(preset, 1e-3)
    batches = [
        collate(data, DataOrder(len(data), 0).step_rows(step, rows)) for step in range(steps + 1)
    ]
    plain_step(model, optimizer, batches.pop())

    def work() -> float:
        for batch in batches:
            plain_step(model, optimizer, batch)
        useful = sum(int((X != 0).sum()) for X, _, _ in batches)
        return (useful if count == "useful" else sum(X.numel() for X, _, _ in batches)) / 1e3

    return work


def products_alone(preset: str) -> Work:
    """The matrix products of our steps and nothing else, three for each matrix, attention's own
    left out: what this processor allows in fp32.
    """
    torch.set_num_threads(allowed_cpus())
    profile, (rows, _), steps = PRESETS[preset]
    shape = ModelConfig(
        **{k: profile.pretrain[k] for k in SHAPE},
        vocab_size=profile.vocab_size,
        max_seq_len=profile.max_length,
    )
    positions = rows * profile.max_length
    # the tied embedding is the head
    matrices = [p.detach() for name, p in Transformer(shape).named_parameters() if p.dim() == 2]
    inputs = {
        size: torch.randn(positions, size)
        for size in {size for matrix in matrices for size in matrix.shape}
    }

    @torch.inference_mode()
    def work() -> float:
        for _ in range(steps):
            for matrix in matrices:
                out, x = (inputs[size] for size in matrix.shape)
                # forward, gradient of the input, gradient of the matrix
                (x @ matrix.T, out @ matrix, out.T @ x)
        return steps * positions / 1e3

    return work


def padded_rows(folder: Path, preset: str, stage: str):
    tokenizer = load_tokenizer(folder / preset / "tokenizer")
    documents, dialogues = corpora(folder)
    if stage == "pretrain":
        return PretrainDataset(texts_of(documents, 500_000), tokenizer, PADDED)
    return SFTDataset(list(islice(read_dialogues(dialogues), 1000)), tokenizer, PADDED)


def collate(data, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.stack(parts) for parts in zip(*(data[i] for i in rows), strict=True))


def our_config(folder: Path, preset: str, stage: str, out_dir: str, **changes) -> TrainConfig:
    profile, (rows, _), steps = PRESETS[preset]
    values = {
        "data_path": str(folder / preset / stage),
        "tokenizer_path": str(folder / preset / "tokenizer"),
        "out_dir": out_dir,
        "max_seq_len": profile.max_length,
        "batch_size": rows,
        "steps": steps + 1,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "device": "cpu",
        **{k: profile.pretrain[k] for k in SHAPE},
    }
    return TrainConfig(**{**values, **changes})


def our_rate(folder: Path, preset: str, stage: str, count: str, **changes) -> Work:
    scratch = tempfile.TemporaryDirectory()
    config = our_config(folder, preset, stage, str(Path(scratch.name, "run")), **changes)
    trainer = build(prepare_run(config, Processes.join(config)))
    one_step(trainer)

    def work() -> float:
        useful, steps = trainer.tokens, config.steps - trainer.step
        while trainer.step < config.steps:
            one_step(trainer)
        scratch.cleanup()
        return (
            trainer.tokens - useful
            if count == "useful"
            else steps * config.batch_size * config.max_seq_len
        ) / 1e3

    return work


def one_step(trainer: Trainer) -> None:
    batches, supervised, positions = trainer.load_step(trainer.step)
    trainer.accumulate_gradients(batches, supervised)
    trainer.update()
    trainer.step, trainer.tokens = trainer.step + 1, trainer.tokens + positions


def launched_rate(folder: Path, preset: str) -> Work:
    """All positions of ours in the processes that `launch` starts: one for each core, of a thread.

    Their start has a row of its own, so the amount is what the logged rate makes in all the time.
    """

    def work() -> float:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            out = str(Path(scratch, "run"))
            config = our_config(folder, preset, "pretrain", out, log_interval=1)
            rate = positions_per_second(launch(config, show=False), warm=1)
        return rate * (time.perf_counter() - start) / 1e3

    return work


# The time to a result: laptop preset, until the validation text costs no more bits per byte than
# after the plain run.


def plain_goal(folder: Path) -> Work:
    data = padded_rows(folder, "laptop", "pretrain")
    model, optimizer = plain_recipe("laptop", GOAL_LR)
    order = DataOrder(len(data), 0)
    schedule = TrainConfig(steps=GOAL_STEPS, warmup_steps=10, learning_rate=GOAL_LR)

    def work() -> float:
        for step in range(GOAL_STEPS):
            for group in optimizer.param_groups:
                group["lr"] = get_lr(step, schedule)
            plain_step(model, optimizer, collate(data, order.step_rows(step, GOAL_ROWS)))
        return 60

    return work


def plain_bits_per_byte(folder: Path) -> float:
    """What the validation documents cost after the plain run."""
    plain_goal(folder)()
    tokenizer = load_tokenizer(folder / "laptop" / "tokenizer")
    model, _ = plain_recipe("laptop", GOAL_LR)
    data, sizes = (
        PretrainDataset(validation_texts(folder), tokenizer, PADDED),
        torch.tensor(token_byte_lengths(tokenizer)),
    )
    nats = size = 0.0
    for start in range(0, len(data), 16):
        X, Y, mask = collate(data, list(range(start, min(start + 16, len(data)))))
        with torch.no_grad():
            logits = model(input_ids=X, attention_mask=(X != 0).long(), use_cache=False).logits
        mask = mask * (sizes[Y] > 0)  # as in `score`: what has no bytes costs no nats
        nats += float(
            (
                torch.nn.functional.cross_entropy(logits.transpose(1, 2), Y, reduction="none")
                * mask
            ).sum()
        )
        size += int((sizes[Y] * mask).sum())
    return nats / math.log(2) / size


def our_goal(folder: Path) -> Work:
    goal = json.loads((folder / "goal.json").read_text(encoding="utf-8"))["bits_per_byte"]
    scratch = tempfile.TemporaryDirectory()
    laptop = get_profile("laptop").pretrain
    config = our_config(
        folder,
        "laptop",
        "pretrain",
        str(Path(scratch.name, "run")),
        steps=OUR_STEPS,
        optimizer="muon",
        eval_rows=10**6,
        learning_rate=laptop["learning_rate"],
        warmup_steps=10,
    )
    trainer = build(prepare_run(config, Processes.join(config)))

    def work() -> float:
        while trainer.step < OUR_STEPS:
            one_step(trainer)
            if trainer.step % 5 == 0 and trainer.evaluate()["val_bits_per_byte"] <= goal:
                scratch.cleanup()
                return 60
        raise RuntimeError(
            f"{goal:.3f} bits per byte were not reached in {OUR_STEPS} steps: {trainer.evaluate()}"
        )

    return work


# Start-up: a launch of one step until it returns, the checkpoint included, against processes of
# torchrun that only import torch.


def our_start(folder: Path) -> Work:
    def work() -> float:
        with tempfile.TemporaryDirectory() as scratch:
            launch(
                our_config(folder, "laptop", "pretrain", str(Path(scratch, "run")), steps=1),
                show=False,
            )
        return 60

    return work


def bare_start(folder: Path) -> Work:
    script = folder / "only_torch.py"
    script.write_text(
        "import torch.distributed as dist\n\ndist.init_process_group('gloo')\ndist.barrier()\n",
        encoding="utf-8",
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(allowed_cpus()),
        str(script),
    ]

    def work() -> float:
        subprocess.run(command, check=True, capture_output=True)
        return 60

    return work


def validation_texts(folder: Path) -> list[str]:
    """Documents behind those that are trained on."""
    texts = texts_of(corpora(folder)[0], TRAIN_CHARS + 10**6)
    return texts[len(texts_of(corpora(folder)[0], TRAIN_CHARS)) :][:VAL_DOCUMENTS]


def prepare_text(folder: Path) -> None:
    """Tokenizer and shards of each preset, and the bits per byte to reach."""
    documents, dialogues = corpora(folder)
    texts, chats = (
        texts_of(documents, TRAIN_CHARS),
        list(islice(read_dialogues(dialogues), DIALOGUES)),
    )
    for preset, (profile, _, _) in PRESETS.items():
        tokenizer = train_tokenizer(
            texts, folder / preset / "tokenizer", vocab_size=profile.vocab_size
        )
        for split, some in (("train", texts), ("val", validation_texts(folder))):
            write_pretrain_tokens(
                some, tokenizer, folder / preset / "pretrain" / split, replace=True
            )
        write_sft_tokens(
            chats,
            tokenizer,
            folder / preset / "sft" / "train",
            max_length=profile.max_length,
            replace=True,
        )
    write_json(folder / "goal.json", {"bits_per_byte": plain_bits_per_byte(folder)})


def cases() -> list[Case]:
    """Every case, on the corpora at hand."""
    folder = bench_folder() / "train"
    print("preparing text, tokenizers and the plain run's result", flush=True)
    prepare_text(folder)
    rows = []
    for preset in PRESETS:
        for stage, count in (("pretrain", "all"), ("pretrain", "useful"), ("sft", "useful")):
            what = (folder, preset, stage, count)
            rows.append(
                Case(
                    f"{preset}, {stage}, {count} positions",
                    "k/s",
                    partial(our_rate, *what),
                    partial(plain_rate, *what),
                    "plain",
                )
            )
            # what torch.compile gives, where it finds a compiler
            if count == "all" and shutil.which("g++"):
                rows.append(
                    Case(
                        f"{preset}, {stage}, {count} positions, compiled",
                        "k/s",
                        partial(our_rate, *what, compile=True),
                        partial(plain_rate, *what),
                        "plain",
                    )
                )
        for how in ("", ", compiled") if shutil.which("g++") else ("",):
            rows.append(
                Case(
                    f"{preset}, pretrain, all positions{how}, against products alone",
                    "k/s",
                    partial(our_rate, folder, preset, "pretrain", "all", compile=bool(how)),
                    partial(products_alone, preset),
                    "matrix products, fp32",
                )
            )
    for name, ours in (
        ("", partial(our_rate, folder, "laptop", "pretrain", "all")),
        (", launched", partial(launched_rate, folder, "laptop")),
    ):
        for busy in (False, True) if name else (True,):
            rows.append(
                Case(
                    f"laptop, pretrain, all positions{name}{', a busy neighbour' * busy}",
                    "k/s",
                    ours,
                    partial(plain_rate, folder, "laptop", "pretrain", "all"),
                    "plain",
                    busy=busy,
                )
            )
    rows.append(
        Case(
            "laptop, pretrain, all positions, launched, against products alone",
            "k/s",
            partial(launched_rate, folder, "laptop"),
            partial(products_alone, "laptop"),
            "matrix products, fp32",
        )
    )
    rows.append(
        Case(
            "laptop, runs to the plain run's bits per byte",
            "runs/min",
            partial(our_goal, folder),
            partial(plain_goal, folder),
            "plain",
        )
    )
    rows.append(
        Case(
            "start-up of a launch",
            "starts/min",
            partial(our_start, folder),
            partial(bare_start, folder),
            "torchrun of import torch",
        )
    )
    return rows


if __name__ == "__main__":
    main("train", cases, packages=("torch", "transformers", "numpy"))
