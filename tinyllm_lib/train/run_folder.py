"""A run folder before its first step: `prepare_run` is what touches the disk.

It opens what a run is made from, settles the numbers that follow from it, and finds the checkpoint
to go on from, or else makes the folder anew.
"""

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager as ContextManager
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import differences, read_json
from tinyllm_lib.dataset import PackedDataset, shards_fingerprint
from tinyllm_lib.model import (
    ModelConfig,
    explaining_out_of_memory,
    latest_checkpoint,
    model_folder,
    step_folders,
    step_of,
    weight_files,
    weights_fingerprint,
)
from tinyllm_lib.tokenizer import load_tokenizer
from tinyllm_lib.train.config import FREE_OPTIONS, TrainConfig, run_config
from tinyllm_lib.train.devices import DTYPES, Processes, choose_dtype, dtype_name
from tinyllm_lib.train.log import RunLog
from tinyllm_lib.train.memory import MemoryBudget, device_gigabytes

if sys.platform != "win32":
    import fcntl

CLAIM_SECONDS = 120.0  # for a step and a checkpoint of another process


@dataclass(frozen=True)
class Run:
    """A run whose folder is ready: all that `build` needs."""

    config: TrainConfig  # as it runs: steps, size, dtype and micro-batches are settled
    processes: Processes
    log: RunLog
    tokenizer: PreTrainedTokenizerFast
    train_data: PackedDataset
    val_data: PackedDataset | None
    start: Path | None  # the folder of the weights to begin with; None: random ones
    checkpoint: Path | None  # the folder to go on from

    @property
    def dtype(self) -> torch.dtype:
        """To compute in; weights are fp32."""
        return DTYPES[self.config.dtype]

    @property
    def micro_batches(self) -> int:
        """Into which a process cuts its rows of a step."""
        return int(self.config.grad_accumulation_steps)

    @property
    def memory(self) -> MemoryBudget:
        """What there is of it, and how far it reaches."""
        sizes = len(self.tokenizer), self.processes.world_size
        return MemoryBudget(self.config, *sizes, device_gigabytes(self.processes))

    def explaining_out_of_memory(self, where: str, advice: Callable[[], str]) -> ContextManager:
        """An error for want of memory says where it came, what to change and what is saved."""
        return explaining_out_of_memory(where, lambda: f"{advice()} {self.log.last_good()}")


def prepare_run(config: TrainConfig, processes: Processes) -> Run:
    """Makes the run folder, or finds in it the checkpoint to go on from.

    Raises:
        ValueError: options, data, tokenizer and start that do not go together; resume='must', and
            the folder holds another run; a folder that holds what no run wrote.
        FileNotFoundError: data or start are missing; resume='must', and there is no checkpoint.
    """
    folder = Path(config.out_dir)
    log = RunLog(folder, speaks=processes.rank == 0)
    start, start_is_lost = _find_start(config)
    if not (tokenizer_folder := config.tokenizer_path or start):
        raise ValueError("TrainConfig: tokenizer_path is empty, and so is init_from: set one.")
    tokenizer = load_tokenizer(tokenizer_folder)
    train_data, val_data = _open_data(config, tokenizer)
    config = replace(config, steps=_count_steps(config, train_data), **_size_of(start))
    shards = train_data.manifest
    made_from = {"shards": shards_fingerprint(shards), "tokenizer": shards["tokenizer"]}
    if not start_is_lost:
        made_from["init_from"] = weights_fingerprint(start) if start else None
    settled: list = [None, {}, ""]  # checkpoint, what `auto` became, why: the same in all processes
    if processes.rank == 0:
        other = _how_it_differs(config, made_from)
        if other is None:
            found = run_config(folder)
            made_from = found["made_from"] | made_from  # knows a start that is lost, too
            settled = [latest_checkpoint(folder), found["resolved"], "so the run began"]
        elif start_is_lost:
            raise start_is_lost
        else:
            dtype, why = _choose_dtype(config, processes)
            settled = [None, {"dtype": dtype_name(dtype), "device": processes.device.type}, why]
            _set_aside(config, other)
            (folder / "checkpoints").mkdir(parents=True)
        # Anew where a run goes on, too: it may have been moved, or do some things otherwise now.
        config.save(folder / "config.json", resolved=settled[1], made_from=made_from)
    if processes.world_size > 1:
        dist.broadcast_object_list(settled, src=0)
    checkpoint, resolved, why = settled
    log.say(f"The number format is {resolved['dtype']}: {why}.")
    if checkpoint:
        log.forget_after(step_of(checkpoint))
        log.say(f"Going on from {checkpoint.name}.")
    config = replace(config, dtype="bf16" if resolved["dtype"] == "bfloat16" else "fp32")
    run = Run(config, processes, log, tokenizer, train_data, val_data, start, checkpoint)
    return replace(run, config=replace(config, grad_accumulation_steps=count_micro_batches(run)))


def _find_start(config: TrainConfig) -> tuple[Path | None, FileNotFoundError | None]:
    """The model to start from; where it is lost, the run's own checkpoint, and the error of it."""
    if not config.init_from:
        return None, None
    try:
        return model_folder(config.init_from), None
    except FileNotFoundError as error:
        if config.resume == "never" or not step_folders(config.out_dir):
            raise
        return latest_checkpoint(config.out_dir), error


def _open_data(
    config: TrainConfig, tokenizer: PreTrainedTokenizerFast
) -> tuple[PackedDataset, PackedDataset | None]:
    def rows_of(folder: Path, packing: str) -> PackedDataset:
        return PackedDataset(folder, config.max_seq_len, packing=packing, tokenizer=tokenizer)

    folder, val_data = Path(config.data_path), None
    split = not (folder / "manifest.json").is_file()
    train_data = rows_of(folder / "train" if split else folder, config.packing)
    if not len(train_data):
        nothing = f"{train_data.folder} holds nothing to learn: no document of two tokens or more"
        left_out = f", and no token to learn in any of {train_data.left_out:,} rows"
        raise ValueError(f"{nothing}{left_out if train_data.left_out else ''}.")
    if split and (folder / "val").is_dir() and any((folder / "val").iterdir()):
        # However training packs: a stream cuts documents and drops its end.
        val_data = rows_of(folder / "val", "best_fit")
    return train_data, val_data if val_data and len(val_data) else None


def _count_steps(config: TrainConfig, data: PackedDataset) -> int:
    if config.steps:
        return config.steps
    steps = config.epochs * len(data) / config.batch_size
    if config.tokens:
        steps = config.tokens / (config.batch_size * config.max_seq_len * (1 - data.waste))
    return max(1, math.ceil(steps))


def _size_of(start: Path | None) -> dict[str, Any]:
    """The options of the model's size, where a model brings them along."""
    if start is None:
        return {}
    shape = ModelConfig.from_hf(read_json(start / "config.json"), str(start / "config.json"))
    return {name: getattr(shape, name) for name in ("dim", "n_layers", "n_heads", "n_kv_heads")}


def count_micro_batches(run: Run) -> int:
    """grad_accumulation_steps as a number."""
    if run.config.grad_accumulation_steps != "auto":
        return run.micro_batches
    if run.processes.device.type != "cuda":
        return 1
    number, room = run.memory.micro_batches_that_fit(), f"{run.memory.gigabytes:.3g} GB"
    run.log.say(f"grad_accumulation_steps is {number}, by what should fit into {room}.")
    return number


def _choose_dtype(config: TrainConfig, processes: Processes) -> tuple[torch.dtype, str]:
    """The number format of a new run, and why."""
    shape = ModelConfig(config.dim, config.n_layers, config.n_heads, config.n_kv_heads)
    positions = math.ceil(config.batch_size / processes.world_size) * config.max_seq_len
    return choose_dtype(config.dtype, processes.device, (positions, shape.dim, shape.hidden_dim))


# ---- an older run in the folder


def _how_it_differs(config: TrainConfig, made_from: dict) -> list[str] | None:
    """None: the folder holds a checkpoint of this very run. Else how its run differs, in words."""
    folder = Path(config.out_dir)
    if config.resume == "never" or not step_folders(folder):
        if config.resume == "must":
            missing = f"{folder} holds no checkpoint to go on from."
            raise FileNotFoundError(f"resume='must', but {missing}")
        return []
    found = run_config(folder)
    # An option that came after that run was as its default; dtype="auto" goes on as it began.
    saved = {f.name: f.default for f in fields(TrainConfig)} | found
    now = {name: value for name, value in asdict(config).items() if name not in FREE_OPTIONS}
    dtype = {} if config.dtype == "auto" else {"dtype": dtype_name(DTYPES[config.dtype])}
    different = differences(saved, now) + differences(saved.get("resolved"), dtype) if found else []
    different += differences(found.get("made_from"), made_from)
    if different and config.resume == "must":
        said = f"{folder} is another run; different: {', '.join(different)}."
        raise ValueError(f"resume='must', but {said}")
    return different or None


def _set_aside(config: TrainConfig, other: list[str]) -> None:
    """Renames an older run, and removes one without a checkpoint; what no run wrote stays."""
    folder = Path(config.out_dir)
    if not folder.exists():
        return
    source = config.init_from and Path(config.init_from).resolve()
    if weight_files(folder) or (source and source.is_relative_to(folder.resolve())):
        holds = f"out_dir {folder} holds the model to start from, or another one"
        raise ValueError(f"{holds}, which a new run would move away: choose another out_dir.")
    checkpoints = folder / "checkpoints"
    for stray in checkpoints.glob(".tmp-*"):  # of one that was killed while it saved its first
        shutil.rmtree(stray, ignore_errors=True)
    if checkpoints.is_dir() and any(checkpoints.iterdir()):
        number = 1
        while (old := folder.with_name(f"{folder.name}.old{number}")).exists():
            number += 1
        folder.rename(old)
        why = f" (different: {', '.join(other)})" if other else ""
        print(f"An older run lay in {folder.name}; it is now {old.name}{why}.", flush=True)
        return
    names = ("metrics.jsonl", "samples.jsonl", "config.json")
    written = [folder / name for name in names if (folder / name).exists()]
    if written and "data_path" not in run_config(folder):
        found = ", ".join(path.name for path in written)
        holds = f"out_dir {folder} is no run, and holds {found}, which a run would write anew"
        raise ValueError(f"{holds}: choose another out_dir.")
    for path in written:
        path.unlink()
    if checkpoints.is_dir():
        checkpoints.rmdir()


@contextmanager
def claimed(folder: Path, processes: Processes) -> Iterator[None]:
    """Locks a run's log, so that no two processes mix their checkpoints. Another one may be about
    to end (a kernel that was restarted, workers that still save): for `CLAIM_SECONDS` it may.
    """
    log = folder / "train.log"
    # Of many machines one may be lost, and its lock outlive it.
    if sys.platform == "win32" or processes.rank or processes.machines > 1 or not log.is_file():
        yield
        return
    with log.open("a", encoding="utf-8") as file:
        end = time.monotonic() + CLAIM_SECONDS
        if not _lock(file):
            print(
                f"Another process still works in {folder.name}; waiting for its end …", flush=True
            )
        while not _lock(file):
            if time.monotonic() > end:
                other = f"Another process trains in {folder}: stop that one first (watch(run) shows"
                raise RuntimeError(f"{other} it), or choose another out_dir.")
            time.sleep(0.3)
        yield


def _lock(file: TextIO) -> bool:
    with suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
