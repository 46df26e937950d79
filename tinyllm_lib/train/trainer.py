"""The trainer: pretraining and SFT are the same loop with other numbers.

However the work is cut up, a token weighs the same (a step divides by the supervised tokens of all
micro-batches and processes), and the order of the data is a function of (seed, step).
"""

import math
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinyllm_lib.dataset import DataOrder, PackedRow, ahead, collate
from tinyllm_lib.generate import Sampling, TextGenerator
from tinyllm_lib.model import Transformer, document_starts, save_checkpoint, score, snapshot
from tinyllm_lib.tokenizer import token_byte_lengths
from tinyllm_lib.train.config import get_lr
from tinyllm_lib.train.devices import compile_pays, peak_flops
from tinyllm_lib.train.optim import Muon
from tinyllm_lib.train.run_folder import Run

EVAL_BATCH = 16  # rows, at most
LoadedStep = tuple[list[PackedRow], int, int]


@dataclass
class Trainer:
    """A run at work; `build` makes one."""

    run: Run
    model: Transformer
    objective: nn.Module  # its weighted loss, or DistributedDataParallel around that
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler  # of the loss in fp16; in other formats it does nothing
    order: DataOrder
    step: int  # steps that are done
    tokens: int
    skipped: int  # steps of these that changed nothing: in fp16 their gradient was not finite
    saved_step: int
    flash: bool = False  # attention within documents by `document_starts`
    compiled: bool = False
    stop: bool = False  # after the current step
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))  # of the last step, our share
    norm: Tensor = field(default_factory=lambda: torch.zeros(()))  # of its gradient, all shares
    saving: Future[Path] | None = None  # the checkpoint that is being written

    def fit(self) -> None:
        """Runs to the last step, or until asked to stop."""
        run, config, processes = self.run, self.run.config, self.run.processes
        if self.step == config.steps:
            return self._say_how_it_ended()
        self._check_data_and_say_what_begins()
        self._warm_up()
        flops = self.model.flops_per_token(config.max_seq_len)
        peak = peak_flops(processes.device, run.dtype) * processes.world_size
        clock, clock_tokens = time.perf_counter(), self.tokens
        steps = range(self.step, config.steps)
        for batches, supervised, positions in ahead(self.load_step, steps, config.num_workers):
            counts = torch.tensor([supervised, positions, self.stop], dtype=torch.float64)
            supervised, positions, stop = map(int, processes.all_reduce(counts).tolist())
            if stop:
                break
            self.accumulate_gradients(batches, supervised)
            self.update()
            self.step, self.tokens = self.step + 1, self.tokens + positions
            last, row = self.step == config.steps, dict[str, float](tokens=self.tokens)
            if last or self.step == 1 or self.step % config.log_interval == 0:
                loss, norm = self.check_finite()  # waits for the device, so before the clock
                rate = (self.tokens - clock_tokens) / (time.perf_counter() - clock)
                row |= {
                    "loss": round(loss, 5),
                    "lr": round(get_lr(self.step - 1, config), 8),
                    "grad_norm": round(norm, 4),
                    "tokens_per_second": round(rate, 1),
                    "mfu": round(rate * flops / peak, 4),
                }
                if self.scaler.is_enabled():
                    row |= {"skipped_steps": self.skipped, "loss_scale": self.scaler.get_scale()}
                row = {name: number for name, number in row.items() if math.isfinite(number)}
                if self.saving and self.saving.done():
                    self.finish_saving()  # a full disk ends the run here
                clock, clock_tokens = time.perf_counter(), self.tokens
            pause = time.perf_counter()
            eager = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
            with eager:  # of other shapes than a step
                if evaluated := last or self.step % (config.eval_interval or config.steps) == 0:
                    row |= self.evaluate()
                if len(row) > 1:
                    run.log.write_metrics(self.step, config.steps, row)
                if evaluated:
                    self.sample()
            if last or self.step % (config.save_interval or config.steps) == 0:
                self.save()
            clock += time.perf_counter() - pause
        self.save()
        self.finish_saving()
        self._say_how_it_ended()

    def _warm_up(self) -> None:
        """Tries a step's gradient and forgets it. Its time decides about the compiler; and in which
        order gradients come decides how processes sum them, which must not differ after a resume.
        """
        run, config, device = self.run, self.run.config, self.run.processes.device
        auto = config.compile == "auto" and device.type == "cuda"
        undecided = auto and not self.compiled
        seconds = torch.zeros(1)
        for _ in range(2 if undecided else int(run.processes.world_size > 1)):
            batches, supervised, _ = self.load_step(self.step)
            start = time.perf_counter()
            self.accumulate_gradients(batches, supervised)
            self.loss.item()
            seconds[0] = time.perf_counter() - start
        self.objective.zero_grad()
        if undecided:
            mean = run.processes.all_reduce(seconds).item() / run.processes.world_size
            self.compiled, why = compile_pays(mean * (config.steps - self.step))
            run.log.say(f"torch.compile is {'on' if self.compiled else 'off'}: {why}.")
        if auto and self.compiled:
            self.compile()

    def compile(self) -> None:
        """Compiles the blocks for training; they are alike, so the compiler works once."""
        if self.run.config.compile == "auto":
            torch._dynamo.config.suppress_errors = True  # without a C compiler it goes on as it is
        torch._dynamo.config.optimize_ddp = False  # it would cut blocks into DDP's buckets
        for block in self.model.model.layers:
            block.compile(dynamic=False)
        for optimizer in self.optimizers:
            if isinstance(optimizer, Muon) and self.run.processes.device.type == "cuda":
                optimizer.compile()
        self.compiled = True

    # ---- one step

    def load_step(self, step: int) -> LoadedStep:
        """This process's micro-batches of a step, their supervised tokens, and all but padding."""
        run, rows = self.run, self.order.step_rows(step, self.run.config.batch_size)
        share = np.array_split(rows, run.processes.world_size)[run.processes.rank]
        parts = [part for part in np.array_split(share, run.micro_batches) if len(part)]
        batches = [collate([run.train_data[i] for i in part]) for part in parts]
        if not batches:  # more processes than rows: all must take part, so with one that is padding
            X, Y, mask, positions, documents = collate([run.train_data[rows[0]]])
            batches = [PackedRow(X, Y, 0 * mask, positions, documents.fill_(-1))]
        supervised = sum(int(b.loss_mask.sum()) for b in batches)
        used = sum(int((b.document_ids >= 0).sum()) for b in batches)
        if self.flash:
            batches = [b._replace(document_ids=document_starts(b.document_ids)) for b in batches]
        if run.processes.device.type == "cuda":  # pinned, a batch travels while the GPU computes
            batches = [PackedRow(*(t.pin_memory() for t in batch)) for batch in batches]
        return batches, supervised, used

    def accumulate_gradients(self, batches: list[PackedRow], supervised_tokens: int) -> None:
        """Sums the gradient of nll / supervised_tokens over micro-batches and processes."""
        run, device = self.run, self.run.processes.device
        # Of several processes, they exchange their gradients with the last micro-batch only.
        alone = getattr(self.objective, "no_sync", nullcontext)
        self.objective.zero_grad()
        self.loss = torch.zeros((), device=device)
        for number, batch in enumerate(batches, 1):
            batch = PackedRow(*(t.to(device, non_blocking=True) for t in batch))
            # The weights are scaled, not the loss, or what they multiply would vanish in fp16.
            weights = self.scaler.scale(batch.loss_mask.float() / max(supervised_tokens, 1))
            with alone() if number < len(batches) else nullcontext():
                with run.autocast():
                    loss = self.objective(batch.X, batch.Y, weights, **run.documents_of(batch))
                loss.backward()
            self.loss += loss.detach()
        self.loss /= self.scaler.get_scale()

    def update(self) -> None:
        """Clips and steps the optimisers; waits for the device in fp16 only. There a step whose
        gradient is not finite is skipped, and the next ones are scaled by less.
        """
        config = self.run.config
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        limit = config.grad_clip or math.inf
        self.norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        if skip := self.scaler.is_enabled() and not self.norm.isfinite():
            self.skipped += 1
        for optimizer in () if skip else self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = get_lr(self.step, config)
            optimizer.step()
        self.scaler.update()
        if skip:
            why = f"not finite; the loss is now scaled by {self.scaler.get_scale()}"
            self.run.log.say(f"Step {self.step + 1} is skipped: its gradient was {why}.")

    def check_finite(self) -> tuple[float, float]:
        """Loss and gradient norm of the last step, for which it waits; a RuntimeError where they
        are no numbers any more, in fp16 at whatever scale.
        """
        loss = self.run.processes.all_reduce(self.loss.clone()).item()
        norm, skips = self.norm.item(), self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        if not (math.isfinite(loss + norm) or skips):
            self.finish_saving()
            raise RuntimeError(
                f"The loss is {loss} at step {self.step}, the gradient norm {norm}."
                f" {self.run.log.last_good()} Lower learning_rate or raise warmup_steps."
            )
        return loss, norm

    # ---- between steps

    def evaluate(self) -> dict[str, float]:
        """Validation loss in nats per supervised token, and bits per byte of text (`score`)."""
        run, data = self.run, self.run.val_data
        if data is None:
            return {}
        share = run.processes.world_size * run.micro_batches
        size = min(EVAL_BATCH, math.ceil(run.config.batch_size / share))  # it fits in training
        rows = self.eval_rows()[run.processes.rank :: run.processes.world_size]
        starts = range(0, len(rows), size)
        batches = (collate([data[i] for i in rows[start : start + size]]) for start in starts)
        scored = ((b.X, b.Y, b.loss_mask, run.documents_of(b)) for b in batches)
        lengths = torch.tensor(token_byte_lengths(run.tokenizer))
        with run.autocast():
            found = score(self.model, scored, lengths, all_reduce=run.processes.all_reduce)
        numbers = {"val_loss": found.nats_per_token, "val_bits_per_byte": found.bits_per_byte}
        return {name: round(number, 5) for name, number in numbers.items()}

    def eval_rows(self) -> list[int]:
        """A sample of all rows (best fit sorts them), the same in every run; more contain fewer."""
        order = np.random.default_rng(0).permutation(len(self.run.val_data or ()))
        return sorted(order[: self.run.config.eval_rows].tolist())

    def sample(self) -> None:
        """Writes how the model answers the `sample_prompts` now; draws no number of torch's."""
        run, config, log = self.run, self.run.config, self.run.log
        generator = TextGenerator.from_model(self.model, run.tokenizer)
        write = generator.complete if run.train_data.shards[0][1] is None else generator.chat
        length = min(64, config.max_seq_len // 4)
        sampling = Sampling(max_new_tokens=length, temperature=0.7, top_k=50, seed=config.seed)
        prompts = filter(None, map(str.strip, config.sample_prompts.split("|")))
        for prompt in prompts if log.speaks else ():
            try:
                with warnings.catch_warnings(action="ignore"):  # of a reply that fills the context
                    text = write(prompt, sampling)
            except ValueError as error:  # too long, for example
                text = f"({error})"
            log.append("samples.jsonl", {"step": self.step, "prompt": prompt, "text": text})
            log.say(f"sample  {prompt} → {text}".replace("\n", "⏎"))

    def save(self) -> None:
        """Has this step written as a checkpoint, once, while training goes on."""
        run, config = self.run, self.run.config
        if self.step == self.saved_step:
            return
        self.check_finite()
        self.finish_saving()  # of the one before
        if run.processes.rank == 0:
            state = {
                "step": self.step,
                "tokens": self.tokens,
                "skipped": self.skipped,
                "compiled": self.compiled,
                "optimizers": [o.state_dict() for o in self.optimizers],
                "scaler": self.scaler.state_dict(),
                "torch_rng": torch.get_rng_state(),
            }
            what = run.log.folder, self.step, snapshot(self.model), run.tokenizer, snapshot(state)
            kept: Any = {"keep_last": config.keep_last, "keep_every": config.keep_every}
            self.saving = ThreadPoolExecutor(1).submit(save_checkpoint, *what, **kept)
        self.saved_step = self.step

    def finish_saving(self) -> None:
        """Waits until the last checkpoint is on the disk; an OSError says why it is not."""
        if self.saving:
            self.saving.result()

    # ---- what is said

    def _check_data_and_say_what_begins(self) -> None:
        run, data, processes = self.run, self.run.train_data, self.run.processes
        for rows in filter(None, (data, run.val_data) if processes.rank == 0 else ()):
            rows.check_content()
        processes.wait_for_each_other()
        run.log.say(
            f"{self.model.num_parameters():,} parameters, {len(data):,} rows of {data.context}"
            f" ({data.waste:.1%} padding; {data.left_out:,} without a token to learn left out),"
            f" {len(run.val_data or ()):,} for validation, steps {self.step} to {run.config.steps},"
            f" {processes.world_size} x {processes.device.type},"
            f" {run.config.dtype}{', compiled' if self.compiled else ''}"
        )

    def _say_how_it_ended(self) -> None:
        log, steps = self.run.log, self.run.config.steps
        if self.step < steps:
            saved = f"{'the checkpoint' if self.step else 'nothing'} is saved"
            said = f"Stopped after step {self.step} of {steps}; {saved}."
            return log.say(f"{said} The same command goes on from here.")
        log.say(f"Finished: {log.folder.name}, {steps} steps, {self.tokens:,} tokens.")
