"""The trainer: pretraining and SFT are the same loop with other numbers.

Two rules make the result independent of how the work is cut up:

* **A token weighs the same wherever it lies.** An optimiser step minimises the sum over its
  supervised tokens divided by their number, counted over all micro-batches and processes before
  the first backward pass.
* **The order of the data is a function of (seed, step).** `batch_size` counts the rows of one step
  over all processes.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tinyllm_lib.dataset import DataOrder, PackedRow, collate
from tinyllm_lib.model import Transformer, save_checkpoint, score
from tinyllm_lib.tokenizer import token_byte_lengths
from tinyllm_lib.train.config import get_lr
from tinyllm_lib.train.devices import dtype_name, peak_flops
from tinyllm_lib.train.log import tracked
from tinyllm_lib.train.run_folder import Run
from tinyllm_lib.train.worker import meet, meeting_host

EVAL_BATCH = 16  # rows, at most
SAMPLE_ADVICE = "leave sample_prompts empty."
LoadedStep = tuple[list[PackedRow], int, int]


@dataclass
class Trainer:
    """A run at work; `build` makes one."""

    run: Run
    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    gradients: Tensor  # of all parameters, flat, and the loss
    nll: Callable[..., Tensor]  # the model's weighted loss, compiled where that pays
    about_compile: str
    order: DataOrder
    writers: dict[str, Callable[[], str]]  # by prompt
    first_bad: Tensor  # step, loss and gradient norm where one was no number, else 0
    step: int  # steps that are done
    tokens: int
    saved_step: int
    stop: bool = False  # after the current step

    def fit(self) -> None:
        """Runs from the current step to the last, or until asked to stop."""
        run, config, processes = self.run, self.run.config, self.run.processes
        if self.step == config.steps:
            return self._say_how_it_ended()
        self._check_data_and_say_what_begins()
        flops = self.model.flops_per_token(config.max_seq_len)
        peak = peak_flops(processes.device, run.dtype) * processes.world_size
        steps, rows = range(self.step, config.steps), self._rows_at_once()
        with tracked(config, run.log, self.step + 1) as send:
            clock, clock_tokens = time.perf_counter(), self.tokens
            for batches, supervised, positions in _ahead(self.load_step, steps, config.num_workers):
                counts = torch.tensor([supervised, positions, self.stop], dtype=torch.float64)
                supervised, positions, stop = map(int, processes.all_reduce(counts).tolist())
                if stop:
                    break
                with self._explaining_out_of_memory(f"in step {self.step + 1}", rows):
                    self.accumulate_gradients(batches, supervised)
                    norm = self.update()
                self.step, self.tokens = self.step + 1, self.tokens + positions
                last, row = self.step == config.steps, dict[str, float](tokens=self.tokens)
                if last or self.step == 1 or self.step % config.log_interval == 0:
                    self.check_finite()  # waits for the device, so it stands before the clock
                    rate = (self.tokens - clock_tokens) / (time.perf_counter() - clock)
                    row |= {
                        "loss": round(self.gradients[-1].item(), 5),
                        "lr": round(get_lr(self.step - 1, config), 8),
                        "grad_norm": round(norm.item(), 4),
                        "tokens_per_second": round(rate, 1),
                        "mfu": round(rate * flops / peak, 4),
                    }
                    clock, clock_tokens = time.perf_counter(), self.tokens
                pause = time.perf_counter()
                if evaluated := last or self._is_due(config.eval_interval):
                    row |= self.evaluate()
                if len(row) > 1:
                    run.log.write_metrics(self.step, config.steps, row)
                    send(self.step, row)
                if evaluated:
                    self.sample()
                if last or self._is_due(config.save_interval):
                    self.save()
                clock += time.perf_counter() - pause
        self.save()
        self._say_how_it_ended()

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0

    # ---- one step

    def load_step(self, step: int) -> LoadedStep:
        """This process's micro-batches of a step, their supervised tokens, and all but padding."""
        run, rows = self.run, self.order.step_rows(step, self.run.config.batch_size)
        share = np.array_split(rows, run.processes.world_size)[run.processes.rank]
        parts = [part for part in np.array_split(share, run.micro_batches) if len(part)]
        batches = [collate([run.train_data[i] for i in part]) for part in parts]
        if run.processes.device.type == "cuda":  # pinned, a batch travels while the GPU computes
            batches = [PackedRow(*(t.pin_memory() for t in batch)) for batch in batches]
        supervised = sum(int(b.loss_mask.sum()) for b in batches)
        return batches, supervised, sum(int((b.document_ids >= 0).sum()) for b in batches)

    def accumulate_gradients(self, batches: list[PackedRow], supervised_tokens: int) -> None:
        """Sums the gradient of nll / supervised_tokens over micro-batches and processes."""
        device = self.run.processes.device
        self.gradients.zero_()
        for batch in batches:
            batch = PackedRow(*(t.to(device, non_blocking=True) for t in batch))
            weights = batch.loss_mask.float() / max(supervised_tokens, 1)
            with self._autocast():
                loss = self.nll(batch.X, batch.Y, weights, **self._documents_of(batch))
            loss.backward()
            self.gradients[-1] += loss.detach()
        self.run.processes.all_reduce(self.gradients)

    def _autocast(self) -> AbstractContextManager:
        device, dtype = self.run.processes.device.type, self.run.dtype
        return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)

    def _documents_of(self, batch: PackedRow) -> dict[str, Tensor]:
        """What keeps attention inside each document, where the config asks for it."""
        documents = {"position_ids": batch.position_ids, "document_ids": batch.document_ids}
        return documents if self.run.config.separate_documents else {}

    def update(self) -> Tensor:
        """Clips, and steps the optimisers; returns the gradient norm before. Never waits for the
        device: a loss that is no number is noted there, and read at the next line of the log.
        """
        config, norm = self.run.config, self.gradients[:-1].norm()
        now = torch.stack([torch.full_like(norm, self.step + 1), self.gradients[-1], norm])
        fine = now.isfinite().all() | (self.first_bad[0] > 0)
        self.first_bad = torch.where(fine, self.first_bad, now)
        if config.grad_clip:
            self.gradients[:-1].mul_((config.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = get_lr(self.step, config)
            optimizer.step()
        return norm

    def check_finite(self) -> None:
        """Waits for the device; a RuntimeError where a loss or a gradient was no number."""
        step, loss, norm = self.first_bad.tolist()
        if step:
            data = self.run.train_data
            rows = self.order.step_rows(int(step) - 1, self.run.config.batch_size)
            more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
            raise RuntimeError(
                f"The loss is {loss} and the gradient norm {norm} at step {int(step)}. Its batch:"
                f" rows {', '.join(map(str, rows[:3]))}{more} of {data.folder}."
                f" {self.run.log.last_good()} Lower learning_rate or raise warmup_steps and run"
                " again."
            )

    # ---- between steps

    def evaluate(self) -> dict[str, float]:
        """Validation loss in nats per supervised token, and bits per byte of text (`score`)."""
        run, data, size = self.run, self.run.val_data, self._rows_at_once(EVAL_BATCH)
        if data is None:
            return {}
        rows = self.eval_rows()[run.processes.rank :: run.processes.world_size]
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        batches = (collate([data[i] for i in part]) for part in parts)
        with self._explaining_out_of_memory(f"in the evaluation after step {self.step}", size):
            found = score(
                self.model,
                ((b.X, b.Y, b.loss_mask, self._documents_of(b)) for b in batches),
                torch.tensor(token_byte_lengths(run.tokenizer)),
                autocast=self._autocast(),
                all_reduce=run.processes.all_reduce,
            )
        numbers = {"val_loss": found.nats_per_token, "val_bits_per_byte": found.bits_per_byte}
        return {name: round(number, 5) for name, number in numbers.items()}

    def eval_rows(self) -> list[int]:
        """A sample of all rows (best fit sorts them), the same in every run; more contain fewer."""
        order = np.random.default_rng(0).permutation(len(self.run.val_data or ()))
        return sorted(order[: self.run.config.eval_rows].tolist())

    def sample(self) -> None:
        """Writes how the model answers the `sample_prompts` now; draws no number of torch's."""
        log, where = self.run.log, f"in the samples after step {self.step}"
        for prompt, write in self.writers.items() if log.speaks else ():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a reply that fills the context
                with self.run.explaining_out_of_memory(where, lambda: SAMPLE_ADVICE):
                    text = write()
            log.append("samples.jsonl", {"step": self.step, "prompt": prompt, "text": text})
            log.say(f"sample  {prompt} → {text}".replace("\n", "⏎"))

    def save(self) -> None:
        """Writes a checkpoint of this step, once; none after a loss that was no number."""
        run, config = self.run, self.run.config
        if self.step == self.saved_step:
            return
        self.check_finite()
        if run.processes.rank == 0:
            state = {
                "step": self.step,
                "tokens": self.tokens,
                "optimizers": [o.state_dict() for o in self.optimizers],
                "torch_rng": torch.get_rng_state(),
                "config": asdict(config),
            }
            keep = {"keep_last": config.keep_last, "keep_every": config.keep_every}
            save_checkpoint(run.log.folder, self.step, self.model, run.tokenizer, state, **keep)
        self.saved_step = self.step
        if run.processes.world_size > 1:
            dist.barrier()

    # ---- what is said

    def _rows_at_once(self, most: int | None = None) -> int:
        """Rows of a micro-batch, or `most`: evaluations have to fit where training does."""
        share = math.ceil(self.run.config.batch_size / self.run.processes.world_size)
        rows = math.ceil(share / self.run.micro_batches)
        return min(rows, most or rows)

    def _explaining_out_of_memory(self, where: str, rows: int) -> AbstractContextManager:
        run = self.run
        return run.explaining_out_of_memory(where, lambda: run.memory.advice_for_rows(rows))

    def _check_data_and_say_what_begins(self) -> None:
        run, data, processes = self.run, self.run.train_data, self.run.processes
        for rows in filter(None, (data, run.val_data) if processes.rank == 0 else ()):
            rows.check_content()
        run.log.say(self.about_compile)
        if data.left_out:
            run.log.say(f"{data.left_out:,} rows hold no token to learn and are left out.")
        if run.val_data is None:
            where = run.config.data_path
            run.log.say(f"{where} holds no validation documents: the run is not evaluated.")
        run.log.say(
            f"{self.model.num_parameters():,} parameters, {len(data):,} rows of {data.context}"
            f" ({data.waste:.1%} padding), steps {self.step} to {run.config.steps},"
            f" {processes.world_size} x {processes.device.type}, {dtype_name(run.dtype)}"
        )

    def _say_how_it_ended(self) -> None:
        run, steps = self.run, self.run.config.steps
        said = f"Finished: {run.log.folder.name}, {steps} steps, {self.tokens:,} tokens."
        if self.step < steps:
            said = f"Stopped after step {self.step} of {steps}; the checkpoint is saved."
            said += " The same command goes on from here"
            command = resume_command(run.log.folder, run.processes.world_size)
            said += f", or: {command}" if run.processes.machines == 1 else ", on each machine."
        if not self.step:
            said = "Stopped before the first step, nothing is saved. The same command begins again."
        run.log.say(said)


def _ahead(load: Callable[[int], LoadedStep], steps: range, threads: int) -> Iterator[LoadedStep]:
    """What `load` gives for each step, in order, prepared by threads while the caller computes."""
    futures: deque[Future[LoadedStep]] = deque()
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for step in steps:
            futures.append(pool.submit(load, step))
            if len(futures) > max(1, threads):
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()


def resume_command(run: Path, processes: int) -> str:
    """The shell command that goes on with a run of this machine from its last checkpoint."""
    agent = ["tinyllm_lib.launch.torchrun", "agent", *meeting_host(True), *meet(processes), "-m"]
    options = ["--config", str(run / "config.json"), "--resume", "must"]
    many = agent if processes > 1 else []
    return shlex.join([sys.executable, "-m", *many, "tinyllm_lib.train", *options])
