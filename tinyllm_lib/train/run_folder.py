"""A run folder before its first step: `prepare_run` is what touches the disk."""

import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import differences, read_json
from tinyllm_lib.dataset import PackedDataset, PackedRow, shards_fingerprint
from tinyllm_lib.model import (
    ModelConfig,
    latest_checkpoint,
    model_folder,
    step_folders,
    step_of,
    weight_files,
    weights_fingerprint,
)
from tinyllm_lib.tokenizer import load_tokenizer
from tinyllm_lib.train.config import FREE_OPTIONS, TrainConfig, run_config
from tinyllm_lib.train.devices import DTYPE_NAMES, Processes, choose_dtype
from tinyllm_lib.train.log import RunLog
from tinyllm_lib.train.memory import micro_batches_that_fit

if sys.platform != "win32":
    import fcntl

SIZE = ("dim", "n_layers", "n_heads", "n_kv_heads")  # what a model to start from brings along


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
        return getattr(torch, DTYPE_NAMES[self.config.dtype])

    @property
    def micro_batches(self) -> int:
        """Into which a process cuts its rows of a step."""
        return int(self.config.grad_accumulation_steps)

    def autocast(self) -> AbstractContextManager:
        """In which the model computes in `dtype`."""
        on = self.dtype != torch.float32
        return torch.autocast(self.processes.device.type, self.dtype) if on else nullcontext()

    def documents_of(self, batch: PackedRow) -> dict[str, Tensor]:
        """What keeps attention inside each document, where the config asks for it."""
        if not self.config.separate_documents:
            return {}
        kind = "document_ids" if batch.document_ids.dim() == 2 else "document_starts"
        return {"position_ids": batch.position_ids, kind: batch.document_ids}


def prepare_run(config: TrainConfig, processes: Processes) -> Run:
    """Opens what a run is made from; makes its folder, or finds there the checkpoint to go on from.

    Raises:
        ValueError: what does not go together; another run, with resume='must'; another's folder.
        FileNotFoundError: data or start are missing, or with resume='must' a checkpoint.
    """
    folder = Path(config.out_dir)
    log = RunLog(folder, speaks=processes.rank == 0)
    start = model_folder(config.init_from) if config.init_from else None
    if not (tokenizer_folder := config.tokenizer_path or start):
        raise ValueError("TrainConfig: tokenizer_path is empty, and so is init_from: set one.")
    tokenizer = load_tokenizer(tokenizer_folder)
    if processes.rank:
        processes.wait_for_each_other()
    train_data, val_data = _open_data(config, tokenizer)
    if not processes.rank:
        processes.wait_for_each_other()  # the first one has packed the rows for all
    config = replace(config, steps=_count_steps(config, train_data))
    if start:
        shape = ModelConfig.from_hf(read_json(start / "config.json"), str(start / "config.json"))
        config = replace(config, **{name: getattr(shape, name) for name in SIZE})
    made_from = {
        "shards": shards_fingerprint(train_data.manifest),
        "tokenizer": train_data.manifest["tokenizer"],
        "init_from": weights_fingerprint(start) if start else None,
    }
    settled: list = [None, {}, ""]  # checkpoint, what `auto` became, why: rank 0 says it to all
    if processes.rank == 0:
        other = _how_it_differs(config, made_from)
        if other is None:
            settled = [latest_checkpoint(folder), run_config(folder)["resolved"], "so it began"]
        else:
            shape = ModelConfig(**{name: getattr(config, name) for name in SIZE})
            dtype, why = choose_dtype(config.dtype, processes.device, shape)
            settled = [None, {"dtype": DTYPE_NAMES[dtype], "device": processes.device.type}, why]
            _set_aside(config, log, other)
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        # Anew where a run goes on, too: it may have been moved, or do some things otherwise now.
        config.save(folder / "config.json", resolved=settled[1], made_from=made_from)
    if processes.world_size > 1:
        dist.broadcast_object_list(settled, src=0)
    checkpoint, resolved, why = settled
    if resolved["dtype"] == "float32" and processes.device.type == "cuda":
        why += "; products run on tensor cores (TF32)"
    log.say(f"The number format is {resolved['dtype']}: {why}.")
    if checkpoint:
        log.forget_after(step_of(checkpoint))
        log.say(f"Going on from {checkpoint.name}.")
    names = {theirs: ours for ours, theirs in DTYPE_NAMES.items()}
    config = replace(config, dtype=names[resolved["dtype"]])
    if config.grad_accumulation_steps == "auto":
        number = micro_batches_that_fit(config, len(tokenizer), processes)
        log.say(f"grad_accumulation_steps is {number}, to fit into memory.")
        config = replace(config, grad_accumulation_steps=number)
    return Run(config, processes, log, tokenizer, train_data, val_data, start, checkpoint)


def _open_data(
    config: TrainConfig, tokenizer: PreTrainedTokenizerFast
) -> tuple[PackedDataset, PackedDataset | None]:
    folder, context = Path(config.data_path), config.max_seq_len
    train = folder if (folder / "manifest.json").is_file() else folder / "train"
    train_data = PackedDataset(train, context, packing=config.packing, tokenizer=tokenizer)
    if not len(train_data):
        raise ValueError(f"{train}: none of {train_data.left_out:,} rows has a token to learn.")
    if train == folder or not any(folder.glob("val/*")):
        return train_data, None
    # Best fit, however training packs: a stream cuts documents and drops its end.
    val_data = PackedDataset(folder / "val", context, packing="best_fit", tokenizer=tokenizer)
    return train_data, val_data if len(val_data) else None


def _count_steps(config: TrainConfig, data: PackedDataset) -> int:
    if config.steps:
        return config.steps
    steps = config.epochs * len(data) / config.batch_size
    if config.tokens:
        steps = config.tokens / (config.batch_size * config.max_seq_len * (1 - data.waste))
    return max(1, math.ceil(steps))


# ---- an older run in the folder


def _how_it_differs(config: TrainConfig, made_from: dict) -> list[str] | None:
    """None: the folder holds a checkpoint of this very run. Else how its run differs, in words."""
    folder = Path(config.out_dir)
    if config.resume == "never" or not step_folders(folder):
        if config.resume == "must":
            raise FileNotFoundError(f"resume='must', but {folder} holds no checkpoint.")
        return []
    found = run_config(folder)
    # An option that came after that run was as its default; dtype="auto" goes on as it began.
    saved = {f.name: f.default for f in fields(TrainConfig)} | found
    now = {name: value for name, value in asdict(config).items() if name not in FREE_OPTIONS}
    dtype = {} if config.dtype == "auto" else {"dtype": DTYPE_NAMES[config.dtype]}
    different = differences(saved, now) + differences(saved.get("resolved"), dtype) if found else []
    different += differences(found.get("made_from"), made_from)
    if different and config.resume == "must":
        what = ", ".join(different)
        raise ValueError(f"resume='must', but {folder} is another run; different: {what}.")
    return different or None


def _set_aside(config: TrainConfig, log: RunLog, other: list[str]) -> None:
    """Renames an older run, and empties one without a checkpoint; what no run wrote stays."""
    folder = Path(config.out_dir)
    source = config.init_from and Path(config.init_from).resolve()
    if weight_files(folder) or (source and source.is_relative_to(folder.resolve())):
        raise ValueError(f"out_dir {folder} holds a model that would be moved: choose another one.")
    if any(folder.glob("checkpoints/step_*")):
        number = 1
        while (old := folder.with_name(f"{folder.name}.old{number}")).exists():
            number += 1
        folder.rename(old)
        why = f" (different: {', '.join(other)})" if other else ""
        print(f"An older run lay in {folder.name}; it is now {old.name}{why}.", flush=True)
        return
    names = ("metrics.jsonl", "samples.jsonl", "config.json")
    found = [name for name in names if (folder / name).exists()]
    if found and "data_path" not in run_config(folder):
        raise ValueError(f"out_dir {folder} is no run, but holds {found}: choose another out_dir.")
    log.forget_after(0)


@contextmanager
def claimed(folder: Path, processes: Processes) -> Iterator[None]:
    """Locks a run's log, so that no two trainers mix their checkpoints; the second is refused."""
    log = folder / "train.log"
    # Of many machines one may be lost, and its lock outlive it.
    if sys.platform == "win32" or processes.rank or processes.machines > 1 or not log.is_file():
        yield
        return
    with log.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            what = f"Another process trains in {folder}, or still saves its last checkpoint"
            raise RuntimeError(f"{what}: wait for its end, or take another out_dir.") from error
        except OSError:  # a file system without locks
            pass
        yield
