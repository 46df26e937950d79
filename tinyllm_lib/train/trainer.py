"""The trainer: pretraining and SFT are the same loop with other numbers.

However the work is cut up, a token weighs the same (a step divides by the supervised tokens of all
micro-batches and processes), and the order of the data is a function of (seed, step).
"""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tinyllm_lib.dataset import DataOrder, PackedRow, collate
from tinyllm_lib.generate import Sampling, TextGenerator
from tinyllm_lib.model import Transformer, save_checkpoint, score
from tinyllm_lib.tokenizer import token_byte_lengths
from tinyllm_lib.train.config import get_lr
from tinyllm_lib.train.devices import peak_flops
from tinyllm_lib.train.run_folder import Run

EVAL_BATCH = 16  # rows, at most
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
    step: int  # steps that are done
    tokens: int
    saved_step: int
    stop: bool = False  # after the current step

    def fit(self) -> None:
        """Runs to the last step, or until asked to stop."""
        run, config, processes = self.run, self.run.config, self.run.processes
        if self.step == config.steps:
            return self._say_how_it_ended()
        self._check_data_and_say_what_begins()
        flops = self.model.flops_per_token(config.max_seq_len)
        peak = peak_flops(processes.device, run.dtype) * processes.world_size
        clock, clock_tokens = time.perf_counter(), self.tokens
        steps = range(self.step, config.steps)
        for batches, supervised, positions in _ahead(self.load_step, steps, config.num_workers):
            counts = torch.tensor([supervised, positions, self.stop], dtype=torch.float64)
            supervised, positions, stop = map(int, processes.all_reduce(counts).tolist())
            if stop:
                break
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
        self._say_how_it_ended()

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
        """Clips, steps the optimisers and never waits for the device; returns the norm before."""
        config, norm = self.run.config, self.gradients[:-1].norm()
        if config.grad_clip:
            self.gradients[:-1].mul_((config.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = get_lr(self.step, config)
            optimizer.step()
        return norm

    def check_finite(self) -> None:
        """Waits for the device; a RuntimeError where loss or gradient are no numbers any more."""
        loss, norm = self.gradients[-1].item(), self.gradients[:-1].norm().item()
        if not math.isfinite(loss + norm):
            raise RuntimeError(
                f"The loss is {loss} at step {self.step}, the gradient norm {norm}."
                f" {self.run.log.last_good()} Lower learning_rate or raise warmup_steps."
            )

    # ---- between steps

    def evaluate(self) -> dict[str, float]:
        """Validation loss in nats per supervised token, and bits per byte of text (`score`)."""
        run, data = self.run, self.run.val_data
        if data is None:
            return {}
        share = run.processes.world_size * run.micro_batches
        size = min(EVAL_BATCH, math.ceil(run.config.batch_size / share))  # it fits in training
        rows = self.eval_rows()[run.processes.rank :: run.processes.world_size]
        parts = (rows[start : start + size] for start in range(0, len(rows), size))
        batches = (collate([data[i] for i in part]) for part in parts)
        scored = ((b.X, b.Y, b.loss_mask, self._documents_of(b)) for b in batches)
        lengths = torch.tensor(token_byte_lengths(run.tokenizer))
        with self._autocast():
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
            }
            keep = {"keep_last": config.keep_last, "keep_every": config.keep_every}
            save_checkpoint(run.log.folder, self.step, self.model, run.tokenizer, state, **keep)
        self.saved_step = self.step
        if run.processes.world_size > 1:
            dist.barrier()

    # ---- what is said

    def _check_data_and_say_what_begins(self) -> None:
        run, data, processes = self.run, self.run.train_data, self.run.processes
        for rows in filter(None, (data, run.val_data) if processes.rank == 0 else ()):
            rows.check_content()
        run.log.say(self.about_compile)
        run.log.say(
            f"{self.model.num_parameters():,} parameters, {len(data):,} rows of {data.context}"
            f" ({data.waste:.1%} padding; {data.left_out:,} without a token to learn left out),"
            f" {len(run.val_data or ()):,} for validation, steps {self.step} to {run.config.steps},"
            f" {processes.world_size} x {processes.device.type}, {run.config.dtype}"
        )

    def _say_how_it_ended(self) -> None:
        log, steps = self.run.log, self.run.config.steps
        if self.step < steps:
            saved = f"{'the checkpoint' if self.step else 'nothing'} is saved"
            said = f"Stopped after step {self.step} of {steps}; {saved}."
            return log.say(f"{said} The same command goes on from here.")
        log.say(f"Finished: {log.folder.name}, {steps} steps, {self.tokens:,} tokens.")


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
