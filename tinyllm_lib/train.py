"""The trainer: token shards + TrainConfig -> a run folder. Pretraining and SFT are the same loop with other numbers.

Started through torchrun, with one process as with many (`tinyllm_lib.launch` does it from a notebook):

    torchrun --standalone --nproc_per_node 8 -m tinyllm_lib.train --data_path tokens/pretrain --out_dir runs/pretrain

Two rules make the result independent of how the work is cut up:

* **A token weighs the same wherever it lies.** An optimiser step minimises the sum over its supervised tokens divided by
  their number, counted over all micro-batches and processes before the first backward pass.
* **The order of the data is a function of (seed, step).** `batch_size` counts the rows of one step over all processes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import typing
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tinyllm_lib.checkpoint import latest_checkpoint, load_state, model_folder, save_checkpoint, step_folders
from tinyllm_lib.dataset import PackedDataset, PackedRow
from tinyllm_lib.model import ModelConfig, Transformer
from tinyllm_lib.optim import make_optimizers
from tinyllm_lib.tokenizer import load_tokenizer, token_byte_lengths
from tinyllm_lib.torchrun import Lifeline, failure_reported
from tinyllm_lib.workspace import atomic_path, write_json


def option(default, text: str):
    """A field with the sentence that `--help` shows."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """Every option of a training run; saved as the run's `config.json`."""

    data_path: str = option("", "folder with train/ and val/ token shards")
    out_dir: str = option("", "the run folder to write")
    tokenizer_path: str = option("", "tokenizer folder; empty: the one of init_from")
    init_from: str = option("", "a run or checkpoint folder to start from; empty: random weights of the size below")
    dim: int = option(1024, "width of the model")
    n_layers: int = option(18, "number of layers")
    n_heads: int = option(16, "query heads")
    n_kv_heads: int = option(8, "key/value heads")
    max_seq_len: int = option(512, "context: positions in a row")
    steps: int = option(0, "optimiser steps; 0: from tokens or epochs")
    tokens: int = option(0, "train for about so many tokens; 0: from epochs")
    epochs: float = option(1.0, "passes over the data, where neither steps nor tokens says how long")
    batch_size: int = option(64, "rows of one optimiser step, over all processes and micro-batches")
    grad_accumulation_steps: int = option(1, "micro-batches into which a process cuts its rows; the result is the same")
    packing: str = option("best_fit", "best_fit: whole documents; stream: one long tape")
    separate_documents: bool = option(True, "attention stays within a document")
    optimizer: str = option("muon", "muon (hidden matrices; AdamW for the rest) or adamw")
    learning_rate: float = option(3e-3, "the highest learning rate")
    warmup_steps: int = option(50, "steps of linear warm-up")
    min_lr_share: float = option(0.1, "the learning rate ends at this share of the highest")
    weight_decay: float = option(0.1, "on matrices only")
    grad_clip: float = option(1.0, "largest gradient norm; 0: no clipping")
    seed: int = option(0, "decides weights and data order")
    device: str = option("auto", "auto, cpu, cuda or mps")
    dtype: str = option("auto", "auto (bf16 where the hardware is good at it), fp32 or bf16; weights are fp32 always")
    compile: bool = option(False, "torch.compile; pays back in long runs on a GPU")
    num_workers: int = option(1, "threads that prepare batches")
    log_interval: int = option(10, "steps between lines of metrics.jsonl")
    eval_interval: int = option(0, "steps between evaluations; 0: only at the end")
    eval_rows: int = option(256, "validation rows of one evaluation")
    save_interval: int = option(0, "steps between checkpoints; 0: only at the end")
    keep_last: int = option(2, "newest checkpoints to keep")
    keep_every: int = option(0, "keep every checkpoint at a multiple of this step; 0: none")
    resume: str = option("auto", "auto: go on if the folder holds this very run, else start anew beside it; never; must")

    def __post_init__(self) -> None:
        positive = ("batch_size", "grad_accumulation_steps", "learning_rate", "log_interval", "max_seq_len")
        problems = [f"{name} must be positive, is {getattr(self, name)}" for name in positive if getattr(self, name) <= 0]
        for name, allowed in (("resume", ("auto", "never", "must")), ("device", ("auto", "cpu", "cuda", "mps")),
                              ("dtype", ("auto", "fp32", "bf16")), ("optimizer", ("adamw", "muon"))):
            if getattr(self, name) not in allowed:
                problems.append(f"{name} must be one of {', '.join(allowed)}, is {getattr(self, name)!r}")
        if problems:
            raise ValueError("TrainConfig: " + "; ".join(problems) + ".")


def get_lr(step: int, config: TrainConfig) -> float:
    """Learning rate of optimiser step `step` (from 0): linear warm-up, then a cosine down to `min_lr_share` of the highest."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    low = config.min_lr_share
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


class DataOrder:
    """Which rows make up a step: epoch after epoch, each in its own order, a pure function of (seed, step)."""

    def __init__(self, rows: int, seed: int):
        self.rows, self.seed, self._epoch, self._order = rows, seed, -1, np.empty(0)

    def step_rows(self, step: int, batch_size: int) -> list[int]:
        """Row numbers of the global batch of `step`, `batch_size` of them; the batch runs on into the next epoch."""
        return [self._row(i) for i in range(step * batch_size, (step + 1) * batch_size)]

    def _row(self, i: int) -> int:
        epoch, within = divmod(i, self.rows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        return int(self._order[within])


def collate(rows: list[PackedRow]) -> PackedRow:
    """Stacks rows to a batch (B, context)."""
    return PackedRow(*(torch.stack(parts) for parts in zip(*rows, strict=True)))


@dataclass
class Processes:
    """The torchrun processes this one belongs to."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @classmethod
    def join(cls, config: TrainConfig) -> Processes:
        rank, local, world = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
        kind = config.device
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() and world == 1 else "cpu"
        device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(device)
        elif kind == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        if world > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
        return cls(rank, local, world, device)

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place. A CPU tensor travels over gloo and never waits for a GPU."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """fp32 or bf16. `auto` takes bf16 where it is faster: on GPUs that multiply it natively and on CPUs with matrix tiles (AMX).
    A CPU that has only AVX-512's bf16 instructions gains too little to pay for the casts, or multiplies at half the speed."""
    if wanted != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        native = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165, "3090": 71, "A10": 125}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s this process could reach: from the data sheet of a known GPU, else the best of a few matrix products."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        if known := next((v for k, v in PEAK_TFLOPS.items() if k in name), None):
            return known * 1e12
    best = 0.0
    for n in (256, 1024) if device.type == "cpu" else (4096,):
        a = torch.randn(n, n, device=device, dtype=dtype)
        for _ in range(4):
            start = time.perf_counter()
            (a @ a)[0, 0].item()
            seconds = time.perf_counter() - start
            best = max(best, 2 * n**3 / seconds)
            if seconds > 0.2:                                  # bf16 on a CPU without it: a larger product takes minutes
                return best
    return best


class Trainer:
    """One run: what `train` sets up, steps and saves."""

    def __init__(self, config: TrainConfig, processes: Processes):
        self.processes = processes
        self.main, self.device = processes.rank == 0, processes.device
        self.run = Path(config.out_dir)
        self.differing: list[str] = []                                           # options in which an older run of this name differs
        start = model_folder(config.init_from) if config.init_from else None
        if not (config.tokenizer_path or start):
            raise ValueError("TrainConfig: tokenizer_path is empty, and so is init_from, which could bring a tokenizer: set one of them.")
        self.tokenizer = load_tokenizer(config.tokenizer_path or start)
        self.train_data, self.val_data = self._open_data(config)
        self.config = config = replace(config, steps=self._steps(config))
        self.resolved = {
            "dtype": str(choose_dtype(config.dtype, self.device)).removeprefix("torch."), "device": self.device.type,
            "data": self.train_data.manifest["shards"][0]["sha256"], "tokenizer": self.train_data.manifest["tokenizer"]}
        self.autocast = (torch.autocast(self.device.type, torch.bfloat16) if self.resolved["dtype"] == "bfloat16" else nullcontext())
        self.byte_lengths = torch.tensor(token_byte_lengths(self.tokenizer))
        resume_from = self._prepare_folder()
        torch.manual_seed(config.seed)
        self.model = self._build_model(config, resume_from or start).to(self.device)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self._flatten_gradients()
        self.optimizers = make_optimizers(self.model, config.optimizer, config.learning_rate, config.weight_decay)
        self.nats = torch.compile(self.model.nats) if config.compile else self.model.nats
        self.order = DataOrder(len(self.train_data), config.seed)
        self.step = self.tokens = 0
        self.stop = False
        self.saved_step = -1
        if resume_from:
            self._load(resume_from)

    # -- setting up ------------------------------------------------------------------------------------------------

    def _open_data(self, config: TrainConfig) -> tuple[PackedDataset, PackedDataset | None]:
        folder = Path(config.data_path)
        if (folder / "manifest.json").is_file():
            return self._dataset(folder, config), None
        val = folder / "val"
        return self._dataset(folder / "train", config), self._dataset(val, config) if val.is_dir() else None

    def _dataset(self, folder: Path, config: TrainConfig) -> PackedDataset:
        return PackedDataset(folder, config.max_seq_len, packing=config.packing, tokenizer=self.tokenizer)

    def _steps(self, config: TrainConfig) -> int:
        if config.steps:
            return config.steps
        per_step = config.batch_size * config.max_seq_len * (1 - self.train_data.waste)
        return max(1, math.ceil(config.tokens / per_step if config.tokens else config.epochs * len(self.train_data) / config.batch_size))

    def _build_model(self, config: TrainConfig, folder: Path | None) -> Transformer:
        size = len(self.tokenizer)
        if folder is None:
            return Transformer(ModelConfig(config.dim, config.n_layers, config.n_heads, config.n_kv_heads, size, config.max_seq_len))
        model = Transformer.from_pretrained(folder)
        if model.config.vocab_size != size:
            raise ValueError(f"{folder} has a vocabulary of {model.config.vocab_size}, the tokenizer one of {size}: a checkpoint "
                             f"works with its own tokenizer only. Leave tokenizer_path empty to use it.")
        if model.config.max_seq_len < config.max_seq_len:
            raise ValueError(f"{folder} knows {model.config.max_seq_len} positions, max_seq_len is {config.max_seq_len}: lower it.")
        return model

    def _flatten_gradients(self) -> None:
        """All gradients are views into one buffer (the last number is the loss): one all-reduce, one norm, one zeroing."""
        sizes = [p.numel() for p in self.params]
        self.gradients = torch.zeros(sum(sizes) + 1, device=self.device)
        for p, part in zip(self.params, self.gradients[:-1].split(sizes), strict=True):
            p.grad = part.view_as(p)

    def _prepare_folder(self) -> Path | None:
        """Makes the run folder; returns the checkpoint to go on from, if any."""
        resume_from = None
        if self.main:
            resume_from = self._find_resume()
            if resume_from is None:
                self._set_aside()
                (self.run / "checkpoints").mkdir(parents=True)
                saved = {**asdict(self.config), "resolved": self.resolved}
                write_json(self.run / "config.json", saved)
        if self.processes.world_size > 1:
            message = [str(resume_from) if resume_from else None]
            dist.broadcast_object_list(message, src=0)
            resume_from = Path(message[0]) if message[0] else None
        return resume_from

    def _find_resume(self) -> Path | None:
        path = self.run / "config.json"
        if self.config.resume == "never" or not path.is_file() or not step_folders(self.run):
            if self.config.resume == "must":
                raise FileNotFoundError(f"resume='must', but {self.run} holds no checkpoint to go on from.")
            return None
        saved, now = json.loads(path.read_text(encoding="utf-8")), {**asdict(self.config), "resolved": self.resolved}
        free = {"out_dir", "resume", "log_interval", "eval_interval", "eval_rows", "save_interval", "keep_last", "keep_every",
                "num_workers", "grad_accumulation_steps", "compile", "device", "data_path", "tokenizer_path", "init_from"}
        differing = sorted(k for k in now if k not in free and saved.get(k) != now[k])
        if not differing:
            return latest_checkpoint(self.run)
        if self.config.resume == "must":
            raise ValueError(f"resume='must', but {self.run} was made with another configuration; different: {', '.join(differing)}.")
        self.differing = differing
        return None

    def _set_aside(self) -> None:
        """An older run of this name is renamed, never overwritten; an empty one is removed."""
        if not self.run.exists():
            return
        if step_folders(self.run):
            number = 1
            while (old := self.run.with_name(f"{self.run.name}.old{number}")).exists():
                number += 1
            self.run.rename(old)
            why = f" (different: {', '.join(self.differing)})" if self.differing else ""
            print(f"An older run lay in {self.run.name}; it is now {old.name}{why}.", flush=True)
        else:
            for path in (self.run / "metrics.jsonl", self.run / "config.json"):
                path.unlink(missing_ok=True)
            shutil.rmtree(self.run / "checkpoints", ignore_errors=True)

    # -- one step --------------------------------------------------------------------------------------------------

    def load_step(self, step: int) -> tuple[list[PackedRow], int, int]:
        """This process's micro-batches of a step, their supervised tokens and their positions that are not padding."""
        share = np.array_split(self.order.step_rows(step, self.config.batch_size), self.processes.world_size)[self.processes.rank]
        parts = [part for part in np.array_split(share, self.config.grad_accumulation_steps) if len(part)]
        batches = [collate([self.train_data[i] for i in part]) for part in parts]
        return batches, sum(int(b.loss_mask.sum()) for b in batches), sum(int((b.document_ids >= 0).sum()) for b in batches)

    def accumulate_gradients(self, batches: list[PackedRow], supervised_tokens: int) -> None:
        """Adds up the gradient of (sum of nats) / supervised_tokens over the micro-batches and all processes."""
        self.gradients.zero_()
        for batch in batches:
            batch = PackedRow(*(t.to(self.device, non_blocking=True) for t in batch))
            weights = batch.loss_mask.float() / max(supervised_tokens, 1)
            with self.autocast:
                loss = self.nats(batch.X, batch.Y, weights, **self._documents_of(batch))
            loss.backward()
            self.gradients[-1] += loss.detach()
        self.processes.add_up(self.gradients)

    def _documents_of(self, batch: PackedRow) -> dict[str, Tensor]:
        """What keeps attention inside each document, where the config asks for it."""
        return {"position_ids": batch.position_ids, "document_ids": batch.document_ids} if self.config.separate_documents else {}

    def update(self) -> Tensor:
        """Clips, sets the learning rate, steps the optimisers; returns the gradient norm before clipping."""
        norm = self.gradients[:-1].norm()
        if self.config.grad_clip:
            self.gradients[:-1].mul_((self.config.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = get_lr(self.step, self.config)
            optimizer.step()
        return norm

    # -- the loop --------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Runs from the current step to the last, or until asked to stop."""
        config, processes = self.config, self.processes
        flops = self.model.flops_per_token(config.max_seq_len)
        peak = peak_flops(self.device, getattr(torch, self.resolved["dtype"]))
        self._log(f"{self.model.num_parameters():,} parameters, {len(self.train_data):,} rows of {config.max_seq_len} "
                  f"({self.train_data.waste:.1%} padding), steps {self.step} to {config.steps}, "
                  f"{processes.world_size} x {self.device.type}, {self.resolved['dtype']}")
        clock, clock_tokens, losses = time.perf_counter(), self.tokens, 0
        with ThreadPoolExecutor(max(1, config.num_workers)) as pool:
            ahead = pool.submit(self.load_step, self.step) if self.step < config.steps else None
            while self.step < config.steps:
                batches, supervised, positions = ahead.result()
                if self.step + 1 < config.steps:
                    ahead = pool.submit(self.load_step, self.step + 1)
                counts = processes.add_up(torch.tensor([supervised, positions, int(self.stop)], dtype=torch.float64)).tolist()
                if counts[2]:
                    break
                self.accumulate_gradients(batches, int(counts[0]))
                norm = self.update()
                self.step, self.tokens, losses = self.step + 1, self.tokens + int(counts[1]), losses + 1
                last = self.step == config.steps
                if self.step % config.log_interval == 0 or last or self.step == 1:
                    loss, norm = self.gradients[-1].item(), norm.item()
                    self._check_finite(loss, norm)
                    seconds = time.perf_counter() - clock
                    rate = (self.tokens - clock_tokens) / seconds
                    row = {"step": self.step, "tokens": self.tokens, "loss": round(loss, 5), "lr": round(get_lr(self.step - 1, config), 8),
                           "grad_norm": round(norm, 4), "tokens_per_second": round(rate, 1),
                           "mfu": round(rate * flops / (peak * processes.world_size), 4)}
                    if last or (config.eval_interval and self.step % config.eval_interval == 0):
                        row |= self.evaluate()
                    self._log_metrics(row)
                    clock, clock_tokens = time.perf_counter(), self.tokens
                elif config.eval_interval and self.step % config.eval_interval == 0:
                    self._log_metrics({"step": self.step, "tokens": self.tokens, **self.evaluate()})
                if last or (config.save_interval and self.step % config.save_interval == 0):
                    self.save()
        if self.step < config.steps:
            self.save()
            self._log(f"Stopped after step {self.step} of {config.steps}; the checkpoint is saved. The same command goes on from here.")
        else:
            self._log(f"Finished: {self.run.name}, {config.steps} steps, {self.tokens:,} tokens.")

    @torch.no_grad()
    def evaluate(self) -> dict:
        """Validation loss in nats per supervised token, and the same in bits per byte of text."""
        if self.val_data is None or not len(self.val_data):
            return {}
        rows = range(self.processes.rank, min(len(self.val_data), self.config.eval_rows), self.processes.world_size)
        sums = torch.zeros(3, dtype=torch.float64)                               # nats, tokens, bytes
        for start in range(0, len(rows), 16):
            batch = collate([self.val_data[i] for i in rows[start:start + 16]])
            mask = batch.loss_mask
            on_device = PackedRow(*(t.to(self.device) for t in batch))
            with self.autocast:
                nats = self.model.nats(on_device.X, on_device.Y, on_device.loss_mask.float(), **self._documents_of(on_device))
            size = (self.byte_lengths[batch.Y] * mask).sum()
            sums += torch.tensor([nats.item(), mask.sum().item(), size.item()], dtype=torch.float64)
        nats, tokens, size = self.processes.add_up(sums).tolist()
        return {"val_loss": round(nats / max(tokens, 1), 5), "val_bits_per_byte": round(nats / math.log(2) / max(size, 1), 5)}

    def _check_finite(self, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            good = step_folders(self.run)
            raise RuntimeError(
                f"The loss is {loss} and the gradient norm {norm} at step {self.step} (batch {self.step - 1} of {self.config.batch_size} "
                f"rows in the order of seed {self.config.seed}). Last good checkpoint: {good[-1].name if good else 'none'}. "
                f"Lower learning_rate or raise warmup_steps and run again.")

    # -- saving ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        if self.saved_step != self.step and self.step:          # after a loss that is no number no weights are worth keeping
            self._check_finite(self.gradients[-1].item(), self.gradients[:-1].norm().item())
        if self.main and self.saved_step != self.step and self.step:
            state = {"step": self.step, "tokens": self.tokens, "optimizers": [o.state_dict() for o in self.optimizers],
                     "torch_rng": torch.get_rng_state()}
            save_checkpoint(self.run, self.step, self.model, self.tokenizer, state,
                            keep_last=self.config.keep_last, keep_every=self.config.keep_every)
        self.saved_step = self.step
        if self.processes.world_size > 1:
            dist.barrier()

    def _load(self, folder: Path) -> None:
        state = load_state(folder)
        self.step, self.tokens, self.saved_step = state["step"], state["tokens"], state["step"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["torch_rng"])
        if self.main:
            path = self.run / "metrics.jsonl"
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
            with atomic_path(path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._log(f"Going on from {folder.name}.")

    def _log_metrics(self, row: dict) -> None:
        if self.main:
            with (self.run / "metrics.jsonl").open("a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
            names = {"val_bits_per_byte": "val bits/byte", "tokens_per_second": "tokens/s"}
            shown = {k: v for k, v in row.items() if k in ("loss", "lr", "tokens_per_second", "val_loss", "val_bits_per_byte")}
            self._log(f"step {row['step']:>6}/{self.config.steps}  " + "  ".join(f"{names.get(k, k)} {v:.6g}" for k, v in shown.items()))

    def _log(self, line: str) -> None:
        if self.main:
            with suppress(BrokenPipeError):                      # the launcher is gone; the log file still takes the line
                print(line, flush=True)
            with (self.run / "train.log").open("a", encoding="utf-8") as f:
                f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


def train(config: TrainConfig) -> Path:
    """Trains as `config` says, in this process (and its torchrun siblings); returns the run folder.

    SIGTERM and Ctrl-C end the run after the current step, with a checkpoint.
    """
    lifeline = Lifeline()
    processes = Processes.join(config)
    trainer = Trainer(config, processes)

    def ask_to_stop(*_) -> None:
        trainer.stop = True

    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    lifeline.end = ask_to_stop
    try:
        trainer.fit()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
    if processes.world_size > 1:
        dist.barrier()                                           # nobody leaves while another still needs it
    return trainer.run


def parse_args(argv: list[str] | None = None) -> TrainConfig:
    """A TrainConfig from the command line: `--config FILE` first, then every field as an option."""
    parser = argparse.ArgumentParser(prog="python -m tinyllm_lib.train", description=__doc__.split("\n\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--config", default="", help="a JSON file with any of these options, such as a run's config.json")
    types = typing.get_type_hints(TrainConfig)
    for f in fields(TrainConfig):
        assert f.default is not MISSING
        kind = types[f.name]
        convert = (lambda text: text.lower() in ("1", "true", "yes", "on")) if kind is bool else kind
        parser.add_argument(f"--{f.name}", type=convert, default=f.default, metavar=kind.__name__.upper(), help=f.metadata["help"])
    known = parser.parse_args(argv)
    if known.config:
        saved = json.loads(Path(known.config).read_text(encoding="utf-8"))
        saved.pop("resolved", None)
        if unknown := sorted(set(saved) - set(types)):
            parser.error(f"{known.config}: no such option: {', '.join(unknown)}")
        parser.set_defaults(**saved)
        known = parser.parse_args(argv)
    return TrainConfig(**{f.name: getattr(known, f.name) for f in fields(TrainConfig)})


def main() -> None:
    """`python -m tinyllm_lib.train`; leaves the traceback where `launch` finds it when it fails."""
    with failure_reported():
        config = parse_args()
        if not config.data_path or not config.out_dir:
            raise SystemExit("tinyllm_lib.train: --data_path and --out_dir are needed; see --help.")
        train(config)
    if dist.is_initialized():
        # Seen about once in 25 runs with gloo: a finished worker aborts while its threads are taken down
        # ("terminate called without an active exception"), and a good run counts as failed. All is saved: leave.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
