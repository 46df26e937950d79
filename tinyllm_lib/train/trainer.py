"""The trainer: token shards + TrainConfig -> a run folder. Pretraining and SFT are the same loop
with other numbers.

Started through torchrun, with one process as with many (`tinyllm_lib.launch` does it from a
notebook):

    torchrun --standalone --nproc_per_node 8 -m tinyllm_lib.train --data_path tokens/pretrain
    --out_dir runs/pretrain

Two rules make the result independent of how the work is cut up:

* **A token weighs the same wherever it lies.** An optimiser step minimises the sum over its
  supervised tokens divided by their number, counted over all micro-batches and processes before the
  first backward pass.
* **The order of the data is a function of (seed, step).** `batch_size` counts the rows of one step
over all processes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tinyllm_lib.data import atomic_path, differences, read_json, utf8_output, write_json
from tinyllm_lib.dataset import DataOrder, PackedDataset, PackedRow, collate, shards_fingerprint
from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.model import (
    ModelConfig,
    Transformer,
    explaining_out_of_memory,
    latest_checkpoint,
    load_state,
    model_folder,
    save_checkpoint,
    score,
    step_folders,
    weight_files,
    weights_fingerprint,
)
from tinyllm_lib.tokenizer import check_size, load_tokenizer, token_byte_lengths
from tinyllm_lib.train.config import (
    FREE_OPTIONS,
    TrainConfig,
    get_lr,
    parse_args,
    resume_command,
    run_config,
)
from tinyllm_lib.train.devices import DTYPES, Processes, choose_dtype, compile_pays, peak_flops
from tinyllm_lib.train.memory import (
    accumulation_that_fits,
    advice_for_model,
    advice_for_rows,
    device_gigabytes,
)
from tinyllm_lib.train.optim import make_optimizers
from tinyllm_lib.train.trackers import open_tracker
from tinyllm_lib.train.worker import Lifeline, failure_reported

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CLAIM_SECONDS = 120.0  # for a step and a checkpoint
EVAL_BATCH = 16  # rows, at most

__all__ = [
    "DataOrder",
    "Processes",
    "TrainConfig",
    "Trainer",
    "choose_dtype",
    "get_lr",
    "parse_args",
    "peak_flops",
    "train",
]


class Trainer:
    """One run: what `train` sets up, steps and saves."""

    def __init__(self, config: TrainConfig, processes: Processes):
        self.processes = processes
        self.main, self.device = processes.rank == 0, processes.device
        self.run = Path(config.out_dir)
        self.differing: list[str] = []  # what in an older run of this name differs
        self.start_is_gone: FileNotFoundError | None = None
        start = self._start(config)
        if not (config.tokenizer_path or start):
            raise ValueError(
                "TrainConfig: tokenizer_path is empty, and so is init_from, which could bring a"
                " tokenizer: set one of them."
            )
        self.tokenizer = load_tokenizer(config.tokenizer_path or start)
        self.train_data, self.val_data = self._open_data(config)
        self.config = config = replace(config, steps=self._steps(config), **self._size(start))
        self.made_from = {
            "shards": shards_fingerprint(self.train_data.manifest),
            "tokenizer": self.train_data.manifest["tokenizer"],
        }
        if not self.start_is_gone:
            self.made_from["init_from"] = weights_fingerprint(start) if start else None
        resume_from = self._prepare_folder()
        self.autocast = (
            torch.autocast(self.device.type, torch.bfloat16)
            if self.dtype == torch.bfloat16
            else nullcontext()
        )
        self.byte_lengths = torch.tensor(token_byte_lengths(self.tokenizer))
        self.micro_batches = self._micro_batches()
        torch.manual_seed(config.seed)
        with self._explaining_out_of_memory("while building the model", self._advice_for_model):
            self.model = self._build_model(config, resume_from or start).to(self.device)
            self.params = [p for p in self.model.parameters() if p.requires_grad]
            self._flatten_gradients()
            self.optimizers = make_optimizers(
                self.model, config.optimizer, config.learning_rate, config.weight_decay
            )
        self.nats = self._maybe_compile()
        self.order = DataOrder(len(self.train_data), config.seed)
        self.writer = self._sample_writer()
        self.step = self.tokens = 0
        self.stop = False
        self.saved_step = -1
        self.first_bad = torch.zeros(
            3, device=self.device
        )  # step, loss and gradient norm where one was no number
        if resume_from:
            with self._explaining_out_of_memory(
                "while loading the checkpoint", self._advice_for_model
            ):
                self._load(resume_from)
        self.tracker = None
        if self.main and config.tracker != "none" and self.step < config.steps:
            self.tracker = open_tracker(config.tracker, self.run, asdict(config), self.step + 1)

    # -- setting up

    def _start(self, config: TrainConfig) -> Path | None:
        """The model folder to start from. Where it is gone, the checkpoint of this run that knows
        the rest, if there is one.
        """
        if not config.init_from:
            return None
        try:
            return model_folder(config.init_from)
        except FileNotFoundError as error:
            if config.resume == "never" or not step_folders(self.run):
                raise
            self.start_is_gone = error
            return latest_checkpoint(self.run)

    def _open_data(self, config: TrainConfig) -> tuple[PackedDataset, PackedDataset | None]:
        folder = Path(config.data_path)
        if (folder / "manifest.json").is_file():
            train, val = self._dataset(folder, config), None
        else:
            train, val = self._dataset(folder / "train", config), folder / "val"
            # However training packs: a stream cuts documents and drops its end, and its number
            # would be of other text.
            val = (
                self._dataset(val, replace(config, packing="best_fit"))
                if val.is_dir() and any(val.iterdir())
                else None
            )
        if not len(train):
            raise ValueError(
                f"{train.folder} holds nothing to learn: no document of two tokens or more"
                + (
                    f", and no token to learn in any of {train.left_out:,} rows."
                    if train.left_out
                    else "."
                )
            )
        return train, val if val and len(val) else None

    def _dataset(self, folder: Path, config: TrainConfig) -> PackedDataset:
        return PackedDataset(
            folder, config.max_seq_len, packing=config.packing, tokenizer=self.tokenizer
        )

    def _steps(self, config: TrainConfig) -> int:
        if config.steps:
            return config.steps
        per_step = config.batch_size * config.max_seq_len * (1 - self.train_data.waste)
        return max(
            1,
            math.ceil(
                config.tokens / per_step
                if config.tokens
                else config.epochs * len(self.train_data) / config.batch_size
            ),
        )

    def _size(self, start: Path | None) -> dict[str, int]:
        """The options of the model's size where they follow from the model to start from."""
        if start is None:
            return {}
        shape = ModelConfig.from_hf(read_json(start / "config.json"), str(start / "config.json"))
        return {name: getattr(shape, name) for name in ("dim", "n_layers", "n_heads", "n_kv_heads")}

    def _micro_batches(self) -> int:
        """grad_accumulation_steps as a number."""
        config = self.config
        if config.grad_accumulation_steps != "auto":
            return config.grad_accumulation_steps
        if self.device.type != "cuda":
            return 1
        number = accumulation_that_fits(
            self._as_it_runs(1), len(self.tokenizer), self.processes.world_size, self._gigabytes()
        )
        self._log(
            f"grad_accumulation_steps is {number}, by what should fit into"
            f" {self._gigabytes():.3g} GB."
        )
        return number

    def _gigabytes(self) -> float:
        return device_gigabytes(
            self.device, math.ceil(self.processes.world_size / self.processes.machines)
        )

    def _as_it_runs(self, micro_batches: int) -> TrainConfig:
        """The config as the estimates of memory take it."""
        return replace(
            self.config,
            dtype="fp32" if self.dtype == torch.float32 else "bf16",
            grad_accumulation_steps=micro_batches,
        )

    def _build_model(self, config: TrainConfig, folder: Path | None) -> Transformer:
        if folder is None:
            return Transformer(
                ModelConfig(
                    config.dim,
                    config.n_layers,
                    config.n_heads,
                    config.n_kv_heads,
                    len(self.tokenizer),
                    config.max_seq_len,
                )
            )
        model = Transformer.from_pretrained(folder)
        check_size(self.tokenizer, model.config.vocab_size, folder)
        if model.config.max_seq_len < config.max_seq_len:
            raise ValueError(
                f"{folder} knows {model.config.max_seq_len} positions, max_seq_len is"
                f" {config.max_seq_len}: lower it."
            )
        return model

    def _maybe_compile(self):
        config = self.config
        tokens = config.steps * config.batch_size * config.max_seq_len / self.processes.world_size
        flops = tokens * self.model.flops_per_token(config.max_seq_len)
        pays, why = compile_pays(config.compile, flops, self.device, self.dtype)
        self._log(f"torch.compile is {'on' if pays else 'off'}: {why}.")
        return torch.compile(self.model.weighted_nll) if pays else self.model.weighted_nll

    def _sample_writer(self):
        """Prompt -> text, by the model as it stands: a reply where the run learns dialogues, else
        how the text goes on.

        Raises:
            ValueError: a prompt that does not fit the context; better now than at the first
                evaluation.
        """
        generator = TextGenerator.from_model(self.model, self.tokenizer)
        length, dialogues = (
            min(64, self.config.max_seq_len // 4),
            self.train_data.shards[0][1] is not None,
        )
        write = generator.chat if dialogues else generator.complete
        for prompt in self._sample_prompts():
            try:
                write(prompt, max_new_tokens=1)
            except ValueError as error:
                raise ValueError(f"sample_prompts: {prompt!r}: {error}") from error
        return lambda prompt: write(
            prompt, max_new_tokens=length, temperature=0.7, top_k=50, seed=self.config.seed
        )

    def _sample_prompts(self) -> list[str]:
        return [
            prompt for part in self.config.sample_prompts.split("|") if (prompt := part.strip())
        ]

    def _flatten_gradients(self) -> None:
        """All gradients are views into one buffer (the last number is the loss): one all-reduce,
        one norm, one zeroing.
        """
        sizes = [p.numel() for p in self.params]
        self.gradients = torch.zeros(sum(sizes) + 1, device=self.device)
        for p, part in zip(self.params, self.gradients[:-1].split(sizes), strict=True):
            p.grad = part.view_as(p)

    def _prepare_folder(self) -> Path | None:
        """Finds the checkpoint to go on from and returns it, or makes the run folder. Settles the
        number format, for all processes.
        """
        found = [None, None, ""]  # checkpoint, number format and why
        if self.main:
            found = self._find_resume() or self._begin()
        if self.processes.world_size > 1:
            dist.broadcast_object_list(found, src=0)
        resume_from, self.resolved, why = found
        self.dtype = getattr(torch, self.resolved["dtype"])
        self._log(f"The number format is {self.resolved['dtype']}: {why}.")
        return resume_from

    def _begin(self) -> list:
        if self.start_is_gone:
            raise self.start_is_gone
        rows = math.ceil(self.config.batch_size / self.processes.world_size)
        c = ModelConfig(
            self.config.dim, self.config.n_layers, self.config.n_heads, self.config.n_kv_heads
        )
        dtype, why = choose_dtype(
            self.config.dtype, self.device, (rows * self.config.max_seq_len, c.dim, c.hidden_dim)
        )
        resolved = {"dtype": _name(dtype), "device": self.device.type}
        self._set_aside()
        (self.run / "checkpoints").mkdir(parents=True)
        self._write_config(resolved)
        return [None, resolved, why]

    def _write_config(self, resolved: dict[str, str]) -> None:
        """Where a run goes on, anew: it may have been moved, and what it may do otherwise from here
        on stands there, too.
        """
        write_json(
            self.run / "config.json",
            {**asdict(self.config), "resolved": resolved, "made_from": self.made_from},
        )

    def _find_resume(self) -> list | None:
        """The checkpoint to go on from, what `auto` became when the run began, and why; None where
        there is none of this very run.
        """
        found = run_config(self.run)
        if self.config.resume == "never" or not step_folders(self.run):
            if self.config.resume == "must":
                raise FileNotFoundError(
                    f"resume='must', but {self.run} holds no checkpoint to go on from."
                )
            return None
        saved = {
            f.name: f.default for f in fields(TrainConfig)
        }  # an option that came after this run was as its default
        saved |= found
        now = {
            name: value for name, value in asdict(self.config).items() if name not in FREE_OPTIONS
        }
        asked = (
            {} if self.config.dtype == "auto" else {"dtype": _name(DTYPES[self.config.dtype])}
        )  # auto goes on as it began
        self.differing = (
            differences(saved, now) + differences(saved.get("resolved"), asked) if found else []
        )
        self.differing += differences(found.get("made_from"), self.made_from)
        if not self.differing:
            self.made_from = (
                found["made_from"] | self.made_from
            )  # knows the start that is gone, too
            self._write_config(found["resolved"])
            return [latest_checkpoint(self.run), found["resolved"], "so the run began"]
        if self.config.resume == "must":
            raise ValueError(
                f"resume='must', but {self.run} is another run; different:"
                f" {', '.join(self.differing)}."
            )
        return None

    def _set_aside(self) -> None:
        """An older run of this name is renamed, never overwritten; an empty one is removed. What no
        run wrote is left alone.
        """
        if not self.run.exists():
            return
        source = self.config.init_from and Path(self.config.init_from).resolve()
        if weight_files(self.run) or (source and source.is_relative_to(self.run.resolve())):
            raise ValueError(
                f"out_dir {self.run} holds the model to start from, or another one; a new run would"
                " begin by moving it away: choose another out_dir."
            )
        checkpoints = self.run / "checkpoints"
        for stray in checkpoints.glob(".tmp-*"):  # of one that was killed while it saved its first
            shutil.rmtree(stray, ignore_errors=True)
        if checkpoints.is_dir() and any(checkpoints.iterdir()):
            number = 1
            while (old := self.run.with_name(f"{self.run.name}.old{number}")).exists():
                number += 1
            self.run.rename(old)
            why = f" (different: {', '.join(self.differing)})" if self.differing else ""
            print(f"An older run lay in {self.run.name}; it is now {old.name}{why}.", flush=True)
        else:
            written = [
                path
                for name in ("metrics.jsonl", "samples.jsonl", "config.json")
                if (path := self.run / name).exists()
            ]
            if written and "data_path" not in run_config(self.run):
                raise ValueError(
                    f"out_dir {self.run} is no run, and holds"
                    f" {', '.join(path.name for path in written)}, which a run would write anew:"
                    " choose another out_dir."
                )
            for path in written:
                path.unlink()
            if checkpoints.is_dir():
                checkpoints.rmdir()

    # -- one step

    def load_step(self, step: int) -> tuple[list[PackedRow], int, int]:
        """This process's micro-batches of a step, their supervised tokens and their positions that
        are not padding.
        """
        share = np.array_split(
            self.order.step_rows(step, self.config.batch_size), self.processes.world_size
        )[self.processes.rank]
        parts = [part for part in np.array_split(share, self.micro_batches) if len(part)]
        batches = [collate([self.train_data[i] for i in part]) for part in parts]
        if self.device.type == "cuda":  # from pinned memory a batch travels while the GPU computes
            batches = [PackedRow(*(t.pin_memory() for t in batch)) for batch in batches]
        return (
            batches,
            sum(int(b.loss_mask.sum()) for b in batches),
            sum(int((b.document_ids >= 0).sum()) for b in batches),
        )

    def accumulate_gradients(self, batches: list[PackedRow], supervised_tokens: int) -> None:
        """Adds up the gradient of (sum of nats) / supervised_tokens over the micro-batches and all
        processes.
        """
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
        return (
            {"position_ids": batch.position_ids, "document_ids": batch.document_ids}
            if self.config.separate_documents
            else {}
        )

    def update(self) -> Tensor:
        """Clips, sets the learning rate, steps the optimisers; returns the gradient norm before
        clipping.

        Nothing here waits for the device: a loss that is no number is noted there, and read at the
        next line of the log.
        """
        norm = self.gradients[:-1].norm()
        now = torch.stack([torch.full_like(norm, self.step + 1), self.gradients[-1], norm])
        self.first_bad = torch.where(
            now.isfinite().all() | (self.first_bad[0] > 0), self.first_bad, now
        )
        if self.config.grad_clip:
            self.gradients[:-1].mul_((self.config.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = get_lr(self.step, self.config)
            optimizer.step()
        return norm

    # -- the loop

    def fit(self) -> None:
        """Runs from the current step to the last, or until asked to stop."""
        config, processes = self.config, self.processes
        flops = self.model.flops_per_token(config.max_seq_len)
        if self.step == config.steps:
            return self._log(self._finished())
        for data in filter(None, (self.train_data, self.val_data) if self.main else ()):
            data.check_content()
        peak = peak_flops(self.device, self.dtype)
        if self.train_data.left_out:
            self._log(f"{self.train_data.left_out:,} rows hold no token to learn and are left out.")
        if self.val_data is None:
            self._log(
                f"{config.data_path} holds no validation documents: the run is not evaluated."
            )
        self._log(
            f"{self.model.num_parameters():,} parameters, {len(self.train_data):,} rows of"
            f" {config.max_seq_len} ({self.train_data.waste:.1%} padding), steps {self.step} to"
            f" {config.steps}, {processes.world_size} x {self.device.type},"
            f" {self.resolved['dtype']}"
        )
        clock, clock_tokens = time.perf_counter(), self.tokens
        with ThreadPoolExecutor(max(1, config.num_workers)) as pool, self._tracking():
            first = range(self.step, min(self.step + max(1, config.num_workers), config.steps))
            ahead = deque(pool.submit(self.load_step, step) for step in first)
            while self.step < config.steps:
                batches, supervised, positions = ahead.popleft().result()
                if (later := self.step + 1 + len(ahead)) < config.steps:
                    ahead.append(pool.submit(self.load_step, later))
                counts = processes.add_up(
                    torch.tensor([supervised, positions, int(self.stop)], dtype=torch.float64)
                ).tolist()
                if counts[2]:
                    break
                with self._explaining_out_of_memory(
                    f"in step {self.step + 1}", self._advice_for_rows
                ):
                    self.accumulate_gradients(batches, int(counts[0]))
                    norm = self.update()
                self.step, self.tokens = self.step + 1, self.tokens + int(counts[1])
                last, row = self.step == config.steps, {}
                if self.step % config.log_interval == 0 or last or self.step == 1:
                    self._check_finite()  # waits for the device, so it stands before the clock
                    rate = (self.tokens - clock_tokens) / (time.perf_counter() - clock)
                    row = {
                        "loss": round(self.gradients[-1].item(), 5),
                        "lr": round(get_lr(self.step - 1, config), 8),
                        "grad_norm": round(norm.item(), 4),
                        "tokens_per_second": round(rate, 1),
                        "mfu": round(rate * flops / (peak * processes.world_size), 4),
                    }
                    clock, clock_tokens = time.perf_counter(), self.tokens
                pause = time.perf_counter()
                if evaluated := last or bool(
                    config.eval_interval and self.step % config.eval_interval == 0
                ):
                    row |= self.evaluate()
                if row:
                    self._log_metrics({"step": self.step, "tokens": self.tokens, **row})
                if evaluated:
                    self.sample()
                if last or (config.save_interval and self.step % config.save_interval == 0):
                    self.save()
                clock += time.perf_counter() - pause
        if self.step < config.steps:
            self.save()
            self._log(self._how_to_go_on())
        else:
            self._log(self._finished())

    def _finished(self) -> str:
        return f"Finished: {self.run.name}, {self.config.steps} steps, {self.tokens:,} tokens."

    def _how_to_go_on(self) -> str:
        if not self.step:
            return (
                "Stopped before the first step; there is nothing to save. The same command begins"
                " again."
            )
        one_machine = self.processes.machines == 1
        return (
            f"Stopped after step {self.step} of {self.config.steps}; the checkpoint is saved. The"
            " same command goes on from here"
            + (
                f", or: {resume_command(self.run, self.processes.world_size)}"
                if one_machine
                else ", on each machine."
            )
        )

    def evaluate(self) -> dict:
        """Validation loss in nats per supervised token, and bits per byte of text (`score`)."""
        if self.val_data is None:
            return {}
        rows = self._eval_rows()[self.processes.rank :: self.processes.world_size]
        size = self._rows_at_once(EVAL_BATCH)
        batches = (
            collate([self.val_data[i] for i in rows[start : start + size]])
            for start in range(0, len(rows), size)
        )
        with self._explaining_out_of_memory(
            f"in the evaluation after step {self.step}", lambda: self._advice_for_rows(EVAL_BATCH)
        ):
            found = score(
                self.model,
                ((b.X, b.Y, b.loss_mask, self._documents_of(b)) for b in batches),
                self.byte_lengths,
                autocast=self.autocast,
                all_reduce=self.processes.add_up,
            )
        return {
            "val_loss": round(found.nats_per_token, 5),
            "val_bits_per_byte": round(found.bits_per_byte, 5),
        }

    def _eval_rows(self) -> list[int]:
        """A sample of all rows (best fit sorts them by length), the same in every run on these
        shards; more rows contain fewer.
        """
        order = np.random.default_rng(0).permutation(len(self.val_data))
        return sorted(order[: self.config.eval_rows].tolist())

    def _rows_at_once(self, most: int | None = None) -> int:
        """Rows of a micro-batch, or `most`; what memory does not hold in training it shall not have
        to hold in an evaluation.
        """
        rows = math.ceil(
            math.ceil(self.config.batch_size / self.processes.world_size) / self.micro_batches
        )
        return min(rows, most or rows)

    def sample(self) -> None:
        """Writes how the model answers the `sample_prompts` now to train.log and samples.jsonl.
        Draws no number of torch's.
        """
        for prompt in self._sample_prompts() if self.main else ():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a reply that fills the context
                with self._explaining_out_of_memory(
                    f"in the samples after step {self.step}", lambda: "leave sample_prompts empty."
                ):
                    text = self.writer(prompt)
            self._append("samples.jsonl", {"step": self.step, "prompt": prompt, "text": text})
            self._log(f"sample  {prompt} → {text}".replace("\n", "⏎"))

    # -- what can go wrong

    def _check_finite(self) -> None:
        step, loss, norm = self.first_bad.tolist()
        if step:
            rows = self.order.step_rows(int(step) - 1, self.config.batch_size)
            places = [f"row {i} ({self.train_data.describe(i)})" for i in rows[:3]]
            more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
            raise RuntimeError(
                f"The loss is {loss} and the gradient norm {norm} at step {int(step)}. Its batch:"
                f" {', '.join(places)}{more} of {self.train_data.folder}. Last good checkpoint:"
                f" {self._last_good()}. Lower learning_rate or raise warmup_steps and run again."
            )

    def _last_good(self) -> str:
        return folders[-1].name if (folders := step_folders(self.run)) else "none"

    def _explaining_out_of_memory(self, where: str, advice: Callable[[], str]):
        return explaining_out_of_memory(
            where, lambda: f"{advice()} Last good checkpoint: {self._last_good()}."
        )

    def _advice_for_rows(self, most: int | None = None) -> str:
        return advice_for_rows(
            self._as_it_runs(self.micro_batches),
            len(self.tokenizer),
            self.processes.world_size,
            self._gigabytes(),
            self._rows_at_once(most),
        )

    def _advice_for_model(self) -> str:
        return advice_for_model(self._as_it_runs(1), len(self.tokenizer), self._gigabytes())

    # -- saving

    def save(self) -> None:
        if (
            self.saved_step != self.step and self.step
        ):  # after a loss that is no number no weights are worth keeping
            self._check_finite()
        if self.main and self.saved_step != self.step and self.step:
            state = {
                "step": self.step,
                "tokens": self.tokens,
                "optimizers": [o.state_dict() for o in self.optimizers],
                "torch_rng": torch.get_rng_state(),
                "config": asdict(self.config),
            }
            save_checkpoint(
                self.run,
                self.step,
                self.model,
                self.tokenizer,
                state,
                keep_last=self.config.keep_last,
                keep_every=self.config.keep_every,
            )
        self.saved_step = self.step
        if self.processes.world_size > 1:
            dist.barrier()

    def _load(self, folder: Path) -> None:
        state = load_state(folder)
        self.step, self.tokens, self.saved_step = state["step"], state["tokens"], state["step"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["torch_rng"])
        for path in (self.run / "metrics.jsonl", self.run / "samples.jsonl") if self.main else ():
            if path.is_file():
                kept = [
                    line
                    for line in path.read_bytes().splitlines()
                    if _step_of_line(line) <= self.step
                ]
                with atomic_path(path) as temporary:
                    temporary.write_bytes(b"".join(line + b"\n" for line in kept))
        self._log(f"Going on from {folder.name}.")

    def _log_metrics(self, row: dict) -> None:
        if self.main:
            self._append("metrics.jsonl", row)
            names = {"val_bits_per_byte": "val bits/byte", "tokens_per_second": "tokens/s"}
            shown = {
                k: v
                for k, v in row.items()
                if k in ("loss", "lr", "tokens_per_second", "val_loss", "val_bits_per_byte")
            }
            self._log(
                f"step {row['step']:>6}/{self.config.steps}  "
                + "  ".join(f"{names.get(k, k)} {v:.6g}" for k, v in shown.items())
            )
            self._track(
                lambda: self.tracker.log(row["step"], {k: v for k, v in row.items() if k != "step"})
            )

    def _track(self, send) -> None:
        """The tracker must not stop the training: where it fails, the run goes on without it and
        says so, once.
        """
        try:
            if self.tracker:
                send()
        except Exception as error:
            self.tracker = None
            self._log(
                f"Warning: tracker={self.config.tracker!r} failed after step {self.step}"
                f" ({type(error).__name__}: {error}). The run goes on without it; metrics.jsonl has"
                " every number."
            )

    @contextmanager
    def _tracking(self):
        try:
            yield
        finally:
            self._track(lambda: self.tracker.close())

    def _append(self, name: str, row: dict) -> None:
        try:
            with (self.run / name).open("a", encoding="utf-8") as f:
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise OSError(
                f"{self.run / name} cannot be written: {error}. Last good checkpoint:"
                f" {self._last_good()}. Where the disk is full, make room; the same command goes on"
                " from that checkpoint."
            ) from error

    def _log(self, line: str) -> None:
        if self.main:
            with suppress(
                BrokenPipeError
            ):  # the launcher is gone; the log file still takes the line
                print(line, flush=True)
            with suppress(OSError), (self.run / "train.log").open("a", encoding="utf-8") as f:
                f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _step_of_line(line: bytes) -> float:
    """The step of a line of JSON; infinity where the line was broken off, be it within a character."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def train(config: TrainConfig) -> Path:
    """Trains as `config` says, in this process (and its torchrun siblings); returns the run folder.

    SIGTERM and Ctrl-C end the run after the current step, with a checkpoint.
    """
    lifeline = Lifeline()
    processes = Processes.join(config)
    lifeline.mark("met")
    with ExitStack() as claims:
        if processes.rank == 0:  # the folder as it is, which a new run may move away
            _claim(Path(config.out_dir), claims, processes)
        trainer = Trainer(config, processes)
        if processes.rank == 0:
            claims.close()
            _claim(trainer.run, claims, processes)
        return _fit(trainer, lifeline)


def _claim(run: Path, claims: ExitStack, processes: Processes) -> None:
    """Locks the log of a run as long as this process works on it, so that two at once never mix
    their checkpoints.

    The other one may be about to end (a kernel that was restarted, workers that still save), so it
    is waited for.

    Raises:
        RuntimeError: it does not end.
    """
    if fcntl is None or processes.machines > 1 or not (run / "train.log").is_file():
        return  # many machines: the lock of one that is lost may outlive it
    log, end, said = (
        claims.enter_context((run / "train.log").open("a")),
        time.monotonic() + CLAIM_SECONDS,
        False,
    )
    while True:
        try:
            return fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise RuntimeError(
                    f"Another process trains in {run}: stop that one first (watch(run) shows it),"
                    " or choose another out_dir."
                ) from None
        except OSError:
            return  # a file system without locks
        if not said:
            said = True
            print(f"Another process still works in {run.name}; waiting for its end …", flush=True)
        time.sleep(0.3)


def _fit(trainer: Trainer, lifeline: Lifeline) -> Path:
    def ask_to_stop(*_) -> None:
        trainer.stop = True

    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {
            number: signal.signal(number, ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)
        }
    lifeline.end = ask_to_stop
    try:
        trainer.fit()
    except Exception as error:
        trainer._log(
            f"Failed after step {trainer.step}:"
            f" {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        )
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
    if trainer.processes.world_size > 1:
        dist.barrier()  # nobody leaves while another still needs it
    return trainer.run


def main() -> None:
    """`python -m tinyllm_lib.train`; leaves the traceback where `launch` finds it when it fails."""
    with failure_reported():
        utf8_output()  # a terminal that cannot show a sample must not end the run
        config = parse_args()
        if not config.data_path or not config.out_dir:
            raise SystemExit("tinyllm_lib.train: --data_path and --out_dir are needed; see --help.")
        train(config)
    if dist.is_initialized():
        # Seen about once in 25 runs with gloo: a finished worker aborts while its threads are taken
        # down
        # ("terminate called without an active exception"), and a good run counts as failed. All is
        # saved: leave.
        sys.stdout.flush()
        os._exit(0)
