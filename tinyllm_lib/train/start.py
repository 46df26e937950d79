"""A run from start to end: `prepare_run` touches the disk, `build` is pure, `Trainer.fit` loops.

torchrun --standalone --nproc_per_node 8 -m tinyllm_lib.train --config config.json
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinyllm_lib.data import is_running
from tinyllm_lib.dataset import DataOrder
from tinyllm_lib.model import ModelConfig, Transformer, flash_works, load_state
from tinyllm_lib.tokenizer import check_size
from tinyllm_lib.train.config import TrainConfig
from tinyllm_lib.train.devices import Processes
from tinyllm_lib.train.memory import is_out_of_memory, memory_advice
from tinyllm_lib.train.optim import make_optimizers
from tinyllm_lib.train.run_folder import Run, claimed, prepare_run
from tinyllm_lib.train.trainer import Trainer


def train(config: TrainConfig) -> Path:
    """Trains as `config` says, in this process (and its torchrun siblings); returns the run folder.
    SIGTERM and Ctrl-C end the run after the current step, with a checkpoint.
    """
    end_with_starter()
    folder, processes = Path(config.out_dir), Processes.join(config)
    with claimed(folder, processes):  # as it lies there: a new run may move it away
        run = prepare_run(config, processes)
    with claimed(folder, processes):
        trainer = build(run)
        with _stopped_by_signals(trainer):
            trainer.fit()
    if processes.world_size > 1:
        processes.wait_for_each_other()  # nobody leaves while another still needs it
    return folder


def build(run: Run) -> Trainer:
    """The model of a prepared run, its optimisers, and how far they are."""
    config, device = run.config, run.processes.device
    torch.manual_seed(config.seed)
    state: dict[str, Any] = {"step": 0, "tokens": 0}
    model = _build_model(run).to(device)
    flash = False
    if config.separate_documents and device.type == "cuda":
        heads = model.config.n_heads, model.config.n_kv_heads, model.config.head_dim
        flash, why = flash_works(heads, device, run.dtype)
        run.log.say(f"Flash attention within documents is {'on' if flash else 'off'}: {why}.")
    optimizers = make_optimizers(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=run.dtype == torch.float16)
    if run.checkpoint:
        state = load_state(run.checkpoint)
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        scaler.load_state_dict(state.get("scaler", {}))
        torch.set_rng_state(state["torch_rng"])
    trainer = Trainer(
        run,
        model,
        _objective(model, run.processes),
        optimizers,
        scaler,
        order=DataOrder(len(run.train_data), config.seed),
        step=state["step"],
        tokens=state["tokens"],
        skipped=state.get("skipped", 0),
        saved_step=state["step"],
        flash=flash,
        compiled=config.compile == "auto"
        and device.type == "cuda"
        and state.get("compiled", False),
    )
    if config.compile is True:
        trainer.compile()
    return trainer


class Objective(nn.Module):
    """`weighted_nll` as a module of its own, which DistributedDataParallel can wrap."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **options: Any) -> Tensor:
        """A scalar, see `Transformer.weighted_nll`."""
        return self.model.weighted_nll(*args, **options)


def _objective(model: Transformer, processes: Processes) -> nn.Module:
    """What the trainer calls. Processes sum their gradients bucket by bucket, while backward still
    computes others; DDP's own mean would weigh processes alike, not tokens.
    """
    if processes.world_size == 1:
        return Objective(model)
    objective = Objective(model)  # its buffers, RoPE's angles, are the same in all
    buffers = [name for name, _ in objective.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, buffers)
    shared = DistributedDataParallel(objective, gradient_as_bucket_view=True)

    def add_up(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        summed = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return summed.then(lambda future: future.value()[0])

    shared.register_comm_hook(None, add_up)
    return shared


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


@contextmanager
def _stopped_by_signals(trainer: Trainer) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the run after its current step. A failure is logged."""

    def ask_to_stop(*_: object) -> None:
        trainer.stop = True

    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if in_main_thread else ()  # others may set none
    before = {n: signal.signal(n, ask_to_stop) for n in numbers}
    try:
        yield
    except Exception as error:
        with suppress(Exception):
            trainer.finish_saving()
        run, what = trainer.run, (str(error).splitlines() or [type(error).__name__])[0]
        if is_out_of_memory(error):
            advice = memory_advice(run.config, len(run.tokenizer), run.processes)
            error.add_note(f"{advice} {run.log.last_good()}")
            what = f"{what} {advice}"
        run.log.say(f"Failed after step {trainer.step}: {what}")
        raise
    finally:
        for n, handler in before.items():
            signal.signal(n, handler or signal.SIG_DFL)


def end_with_starter() -> None:
    """Leaves no worker behind: SIGTERM once a file `stop` lies in TINYLLM_SCRATCH or the notebook's
    kernel is gone; without the torchrun agent it leaves at once, so that other machines notice.
    """
    if scratch := os.environ.get("TINYLLM_SCRATCH"):
        with suppress(OSError):
            Path(scratch, "started").touch()  # for the starter: somebody listens
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_listen, args=(os.getppid(),), daemon=True).start()


def _listen(agent: int) -> None:
    starter = int(os.environ.get("TINYLLM_LAUNCHER_PID", 0))
    stop, asked = Path(os.environ.get("TINYLLM_SCRATCH", os.devnull), "stop"), False
    while os.getppid() == agent:
        if not asked and (stop.exists() or (starter and not is_running(starter))):
            asked = True
            signal.raise_signal(signal.SIGTERM)
        time.sleep(0.3)
    os._exit(1)
