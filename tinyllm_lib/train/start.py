"""A run from start to end: `prepare_run` touches the disk, `build` is pure, `Trainer.fit` loops.

With one process as with many:

    torchrun --standalone --nproc_per_node 8 -m tinyllm_lib.train --config config.json
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tinyllm_lib.dataset import DataOrder
from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.model import ModelConfig, Transformer, load_state
from tinyllm_lib.tokenizer import check_size
from tinyllm_lib.train.config import TrainConfig
from tinyllm_lib.train.devices import Processes, compile_pays
from tinyllm_lib.train.optim import make_optimizers
from tinyllm_lib.train.run_folder import Run, claimed, prepare_run
from tinyllm_lib.train.trainer import Trainer
from tinyllm_lib.train.worker import Lifeline


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
    state: dict[str, Any] = {"step": 0, "tokens": 0}
    with run.explaining_out_of_memory("while building the model", run.memory.advice_for_model):
        model = _build_model(run).to(device)
        gradients = flatten_gradients(model)
        rates = config.learning_rate, config.weight_decay
        optimizers = make_optimizers(model, config.optimizer, *rates)
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
        nll=torch.compile(model.weighted_nll) if pays else model.weighted_nll,
        about_compile=f"torch.compile is {'on' if pays else 'off'}: {why}.",
        order=DataOrder(len(run.train_data), config.seed),
        writers=_sample_writers(run, model),
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
    if (known := model.config.max_seq_len) < (wanted := config.max_seq_len):
        raise ValueError(f"{folder} knows {known} positions, max_seq_len is {wanted}: lower it.")
    return model


def flatten_gradients(model: Transformer) -> Tensor:
    """Makes all gradients views into one buffer (one all-reduce); its last number is the loss."""
    params = [*model.parameters()]
    sizes = [p.numel() for p in params]
    gradients = torch.zeros(sum(sizes) + 1, device=params[0].device)
    for p, part in zip(params, gradients[:-1].split(sizes), strict=True):
        p.grad = part.view_as(p)
    return gradients


def _sample_writers(run: Run, model: Transformer) -> dict[str, Callable[[], str]]:
    """What answers each of the `sample_prompts` later; one that does not fit is an error now."""
    generator, config = TextGenerator.from_model(model, run.tokenizer), run.config
    write = generator.complete if run.train_data.shards[0][1] is None else generator.chat
    prompts = [prompt for part in config.sample_prompts.split("|") if (prompt := part.strip())]
    for prompt in prompts:
        try:
            write(prompt, max_new_tokens=1)
        except ValueError as error:
            raise ValueError(f"sample_prompts: {prompt!r}: {error}") from error
    write = partial(write, max_new_tokens=min(64, config.max_seq_len // 4))
    write = partial(write, temperature=0.7, top_k=50, seed=config.seed)
    return {prompt: partial(write, prompt) for prompt in prompts}


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
