"""The trainer: token shards and a TrainConfig become a run folder. Pretraining and SFT are the same
loop with other numbers.

Started through torchrun, with one process as with many (`tinyllm_lib.launch` does it from a
notebook):

    torchrun --standalone --nproc_per_node 8 -m tinyllm_lib.train --config config.json

`train` is all of it: `prepare_run` touches the disk, `build` makes model and optimisers,
`Trainer.fit` loops. Two rules make the result independent of how the work is cut up:

* **A token weighs the same wherever it lies.** An optimiser step minimises the sum over its
  supervised tokens divided by their number, counted over all micro-batches and processes before
  the first backward pass.
* **The order of the data is a function of (seed, step).** `batch_size` counts the rows of one step
  over all processes.
"""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tinyllm_lib.dataset import DataOrder, PackedRow, collate
from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.model import ModelConfig, Transformer, load_state, save_checkpoint, score
from tinyllm_lib.tokenizer import check_size, token_byte_lengths
from tinyllm_lib.train.config import TrainConfig, get_lr
from tinyllm_lib.train.devices import Processes, compile_pays, dtype_name, peak_flops
from tinyllm_lib.train.optim import make_optimizers
from tinyllm_lib.train.run_folder import Run, claimed, prepare_run
from tinyllm_lib.train.trackers import tracked
from tinyllm_lib.train.worker import Lifeline, resume_command

EVAL_BATCH = 16  # rows, at most
LoadedStep = tuple[list[PackedRow], int, int]


def train(config: TrainConfig) -> Path:
    """Trains as `config` says, in this process (and its torchrun siblings); returns the run folder.

    SIGTERM and Ctrl-C end the run after the current step, with a checkpoint.
    """
    lifeline, folder = Lifeline(), Path(config.out_dir)
    processes = Processes.join(config)
    lifeline.mark("met")
    with claimed(folder, processes):  # as it lies there: a new run may move it away
        run = prepare_run(config, processes)
    with claimed(folder, processes):
        trainer = build(run)
        with _stopped_by_signals(trainer, lifeline):
            trainer.fit()
    if processes.world_size > 1:
        dist.barrier()  # nobody leaves while another still needs it
    return folder


def build(run: Run) -> Trainer:
    """The model of a prepared run, its optimisers, and how far they are; writes nothing."""
    config, device = run.config, run.processes.device
    torch.manual_seed(config.seed)
    with run.explaining_out_of_memory("while building the model", run.memory.advice_for_model):
        model = _build_model(run).to(device)
        gradients = flatten_gradients(model)
        rates = config.learning_rate, config.weight_decay
        optimizers = make_optimizers(model, config.optimizer, *rates)
        state: dict[str, Any] = {"step": 0, "tokens": 0}
        if run.checkpoint:
            state = load_state(run.checkpoint)
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            torch.set_rng_state(state["torch_rng"])
    tokens = config.steps * config.batch_size * config.max_seq_len / run.processes.world_size
    flops = tokens * model.flops_per_token(config.max_seq_len)
    pays, why = compile_pays(config.compile, flops, device, run.dtype)
    return Trainer(
        run,
        model,
        optimizers,
        gradients,
        nats=torch.compile(model.nats) if pays else model.nats,
        about_compile=f"torch.compile is {'on' if pays else 'off'}: {why}.",
        order=DataOrder(len(run.train_data), config.seed),
        write=_sample_writer(run, model),
        first_bad=torch.zeros(3, device=device),
        step=state["step"],
        tokens=state["tokens"],
        saved_step=state["step"],
    )


def _build_model(run: Run) -> Transformer:
    config, folder = run.config, run.checkpoint or run.start
    if folder is None:
        size = config.dim, config.n_layers, config.n_heads, config.n_kv_heads
        return Transformer(ModelConfig(*size, len(run.tokenizer), config.max_seq_len))
    model = Transformer.from_pretrained(folder)
    check_size(run.tokenizer, model.config.vocab_size, folder)
    if (known := model.config.max_seq_len) < config.max_seq_len:
        wanted = config.max_seq_len
        raise ValueError(f"{folder} knows {known} positions, max_seq_len is {wanted}: lower it.")
    return model


def flatten_gradients(model: Transformer) -> Tensor:
    """Makes all gradients views into one buffer, whose last number is the loss: one all-reduce, one
    norm, one zeroing.
    """
    params = [*model.parameters()]
    sizes = [p.numel() for p in params]
    gradients = torch.zeros(sum(sizes) + 1, device=params[0].device)
    for p, part in zip(params, gradients[:-1].split(sizes), strict=True):
        p.grad = part.view_as(p)
    return gradients


def _sample_writer(run: Run, model: Transformer) -> Callable[[str], str]:
    """Prompt -> text, by the model as it stands: a reply where the run learns dialogues, else how
    the text goes on.

    Raises:
        ValueError: one of `sample_prompts` does not fit the context.
    """
    generator, length = TextGenerator.from_model(model, run.tokenizer), run.config.max_seq_len // 4
    write = generator.complete if run.train_data.shards[0][1] is None else generator.chat
    for prompt in run.prompts:
        try:
            write(prompt, max_new_tokens=1)
        except ValueError as error:
            raise ValueError(f"sample_prompts: {prompt!r}: {error}") from error
    return lambda prompt: write(
        prompt, max_new_tokens=min(64, length), temperature=0.7, top_k=50, seed=run.config.seed
    )


@dataclass
class Trainer:
    """A run at work; `build` makes one."""

    run: Run
    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    gradients: Tensor  # of all parameters, flat, and the loss
    nats: Callable[..., Tensor]  # the model's, compiled where that pays
    about_compile: str
    order: DataOrder
    write: Callable[[str], str]  # prompt -> sample
    first_bad: Tensor  # step, loss and gradient norm where one was no number, else 0
    step: int = 0  # that are done
    tokens: int = 0
    saved_step: int = 0
    stop: bool = False  # after the current step

    def fit(self) -> None:
        """Runs from the current step to the last, or until asked to stop."""
        run, config, processes = self.run, self.run.config, self.run.processes
        if self.step == config.steps:
            return self._say_how_it_ended()
        self._check_data_and_say_what_begins()
        flops = self.model.flops_per_token(config.max_seq_len)
        peak = peak_flops(processes.device, run.dtype) * processes.world_size
        loaded = _ahead(self.load_step, range(self.step, config.steps), config.num_workers)
        clock, clock_tokens = time.perf_counter(), self.tokens
        with tracked(config, run.log, self.step + 1) as send:
            for batches, supervised, positions in loaded:
                counts = torch.tensor([supervised, positions, self.stop], dtype=torch.float64)
                supervised, positions, stop = map(int, processes.all_reduce(counts).tolist())
                if stop:
                    break
                with self._explaining_out_of_memory(f"in step {self.step + 1}"):
                    self.accumulate_gradients(batches, supervised)
                    norm = self.update()
                self.step, self.tokens = self.step + 1, self.tokens + positions
                last, row = self.step == config.steps, {}
                if last or self.step == 1 or self.step % config.log_interval == 0:
                    self.check_finite()  # waits for the device, so it stands before the clock
                    rate = (self.tokens - clock_tokens) / (time.perf_counter() - clock)
                    row = {
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
                if row:
                    row = {"tokens": self.tokens, **row}
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
        """This process's micro-batches of a step, their supervised tokens and their positions that
        are not padding.
        """
        run, rows = self.run, self.order.step_rows(step, self.run.config.batch_size)
        share = np.array_split(rows, run.processes.world_size)[run.processes.rank]
        parts = [part for part in np.array_split(share, run.micro_batches) if len(part)]
        batches = [collate([run.train_data[i] for i in part]) for part in parts]
        if run.processes.device.type == "cuda":  # pinned, a batch travels while the GPU computes
            batches = [PackedRow(*(t.pin_memory() for t in batch)) for batch in batches]
        supervised = sum(int(b.loss_mask.sum()) for b in batches)
        return batches, supervised, sum(int((b.document_ids >= 0).sum()) for b in batches)

    def accumulate_gradients(self, batches: list[PackedRow], supervised_tokens: int) -> None:
        """Sums the gradient of (sum of nats) / supervised_tokens over the micro-batches and all
        processes.
        """
        self.gradients.zero_()
        for batch in batches:
            device = self.run.processes.device
            batch = PackedRow(*(t.to(device, non_blocking=True) for t in batch))
            weights = batch.loss_mask.float() / max(supervised_tokens, 1)
            with self.run.autocast():
                loss = self.nats(batch.X, batch.Y, weights, **self._documents_of(batch))
            loss.backward()
            self.gradients[-1] += loss.detach()
        self.run.processes.all_reduce(self.gradients)

    def _documents_of(self, batch: PackedRow) -> dict[str, Tensor]:
        """What keeps attention inside each document, where the config asks for it."""
        if not self.run.config.separate_documents:
            return {}
        return {"position_ids": batch.position_ids, "document_ids": batch.document_ids}

    def update(self) -> Tensor:
        """Clips, sets the learning rate, steps the optimisers; returns the gradient norm before
        clipping.

        Nothing here waits for the device: a loss that is no number is noted there, and read at the
        next line of the log.
        """
        norm, clip = self.gradients[:-1].norm(), self.run.config.grad_clip
        now = torch.stack([torch.full_like(norm, self.step + 1), self.gradients[-1], norm])
        fine = now.isfinite().all() | (self.first_bad[0] > 0)
        self.first_bad = torch.where(fine, self.first_bad, now)
        if clip:
            self.gradients[:-1].mul_((clip / (norm + 1e-6)).clamp(max=1.0))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = get_lr(self.step, self.run.config)
            optimizer.step()
        return norm

    def check_finite(self) -> None:
        """Reads whether all was finite until now; waits for the device.

        Raises:
            RuntimeError: a loss or a gradient was not; says in which step, and on which rows.
        """
        step, loss, norm = self.first_bad.tolist()
        if step:
            data = self.run.train_data
            rows = self.order.step_rows(int(step) - 1, self.run.config.batch_size)
            places = ", ".join(f"row {i} ({data.describe(i)})" for i in rows[:3])
            more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
            raise RuntimeError(
                f"The loss is {loss} and the gradient norm {norm} at step {int(step)}. Its batch:"
                f" {places}{more} of {data.folder}. {self.run.log.last_good()} Lower learning_rate"
                " or raise warmup_steps and run again."
            )

    # ---- between steps

    def evaluate(self) -> dict[str, float]:
        """Validation loss in nats per supervised token, and bits per byte of text (`score`)."""
        run, data = self.run, self.run.val_data
        if data is None:
            return {}
        rows = self.eval_rows()[run.processes.rank :: run.processes.world_size]
        size = min(EVAL_BATCH, self._rows_at_once())  # no more than fits in training
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        batches = (collate([data[i] for i in part]) for part in parts)
        with self._explaining_out_of_memory(
            f"in the evaluation after step {self.step}", EVAL_BATCH
        ):
            found = score(
                self.model,
                ((b.X, b.Y, b.loss_mask, self._documents_of(b)) for b in batches),
                torch.tensor(token_byte_lengths(run.tokenizer)),
                autocast=run.autocast(),
                add_up=run.processes.all_reduce,
            )
        return {
            "val_loss": round(found.nats_per_token, 5),
            "val_bits_per_byte": round(found.bits_per_byte, 5),
        }

    def eval_rows(self) -> list[int]:
        """A sample of all rows (best fit sorts them by length), the same in every run on these
        shards; more rows contain fewer.
        """
        order = np.random.default_rng(0).permutation(len(self.run.val_data or ()))
        return sorted(order[: self.run.config.eval_rows].tolist())

    def sample(self) -> None:
        """Writes how the model answers the `sample_prompts` now to train.log and samples.jsonl.
        Draws no number of torch's.
        """
        run, where = self.run, f"in the samples after step {self.step}"
        for prompt in run.prompts if run.log.speaks else ():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a reply that fills the context
                with run.explaining_out_of_memory(where, lambda: "leave sample_prompts empty."):
                    text = self.write(prompt)
            run.log.append("samples.jsonl", {"step": self.step, "prompt": prompt, "text": text})
            run.log.say(f"sample  {prompt} → {text}".replace("\n", "⏎"))

    def save(self) -> None:
        """Writes a checkpoint, unless there is one of this step; none with a loss that was no
        number.
        """
        run, config = self.run, self.run.config
        if self.step != self.saved_step:
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

    def _rows_at_once(self) -> int:
        share = math.ceil(self.run.config.batch_size / self.run.processes.world_size)
        return math.ceil(share / self.run.micro_batches)

    def _explaining_out_of_memory(self, where: str, most: int = 2**31):
        rows = min(self._rows_at_once(), most)
        return self.run.explaining_out_of_memory(
            where, lambda: self.run.memory.advice_for_rows(rows)
        )

    def _check_data_and_say_what_begins(self) -> None:
        run, data = self.run, self.run.train_data
        if run.log.speaks:
            data.check_content()
            if run.val_data is not None:
                run.val_data.check_content()
        run.log.say(self.about_compile)
        if data.left_out:
            run.log.say(f"{data.left_out:,} rows hold no token to learn and are left out.")
        if run.val_data is None:
            where = run.config.data_path
            run.log.say(f"{where} holds no validation documents: the run is not evaluated.")
        run.log.say(
            f"{self.model.num_parameters():,} parameters, {len(data):,} rows of {data.context}"
            f" ({data.waste:.1%} padding), steps {self.step} to {run.config.steps},"
            f" {run.processes.world_size} x {run.processes.device.type}, {dtype_name(run.dtype)}"
        )

    def _say_how_it_ended(self) -> None:
        run, steps = self.run, self.run.config.steps
        said = f"Finished: {run.log.folder.name}, {steps} steps, {self.tokens:,} tokens."
        if self.step < steps:
            go_on = ", on each machine."
            if run.processes.machines == 1:
                go_on = f", or: {resume_command(run.log.folder, run.processes.world_size)}"
            said = (
                f"Stopped after step {self.step} of {steps}; the checkpoint is saved. The same"
                f" command goes on from here{go_on}"
            )
        if not self.step:
            said = (
                "Stopped before the first step; there is nothing to save. The same command begins"
                " again."
            )
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


@contextmanager
def _stopped_by_signals(trainer: Trainer, lifeline: Lifeline) -> Iterator[None]:
    """SIGTERM, Ctrl-C and the starter end the run after its current step. A failure is logged."""

    def ask_to_stop(*_: object) -> None:
        trainer.stop = True

    lifeline.end = ask_to_stop
    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if in_main_thread else ()
    handlers = {number: signal.signal(number, ask_to_stop) for number in numbers}
    try:
        yield
    except Exception as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        trainer.run.log.say(f"Failed after step {trainer.step}: {what}")
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
