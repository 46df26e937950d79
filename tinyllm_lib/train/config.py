"""Every option of a training run: `TrainConfig`, its learning rate and its command line."""

import argparse
import math
import os
from contextlib import suppress
from dataclasses import Field, asdict, dataclass, field, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, Self

from tinyllm_lib.data import read_json, write_json

NUMBERS = (int, float)
GROUPS = {  # by their first options, as --help shows them
    "data_path": "data and run folder",
    "init_from": "model",
    "steps": "optimisation",
    "grad_accumulation_steps": "machine: what does not change the result, but for rounding",
    "resume": "log, evaluation, checkpoints",
}


def option(default: Any, text: str, *choices: Any, positive: bool = False) -> Any:
    """A field whose declaration is all that validation and the command line go by: its type is the
    default's; of a number `choices` are the words that may stand instead.
    """
    return field(default=default, metadata=dict(help=text, choices=choices, positive=positive))


@dataclass(frozen=True)
class TrainConfig:
    """Every option of a training run, in five groups; saved as the run's `config.json`. A
    ValueError names all values that options cannot have.
    """

    data_path: str = option("", "folder with train/ and val/ token shards")
    out_dir: str = option("", "the run folder to write")
    tokenizer_path: str = option("", "tokenizer folder; empty: the one of init_from")
    packing: str = option("best_fit", "how documents fill rows", "best_fit", "stream", "none")
    batch_size: int = option(64, "rows of one step, over all processes", positive=True)

    init_from: str = option("", "run or model folder to start from; empty: random weights")
    dim: int = option(1024, "width of the model", positive=True)
    n_layers: int = option(18, "number of layers", positive=True)
    n_heads: int = option(16, "query heads", positive=True)
    n_kv_heads: int = option(8, "key/value heads", positive=True)
    max_seq_len: int = option(512, "context: positions in a row", positive=True)
    separate_documents: bool = option(True, "attention stays within a document", True, False)

    steps: int = option(0, "optimiser steps; 0: from tokens or epochs")
    tokens: int = option(0, "train for about so many tokens; 0: from epochs")
    epochs: float = option(1.0, "passes over the data")
    optimizer: str = option("muon", "muon: for hidden matrices, AdamW else", "adamw", "muon")
    learning_rate: float = option(3e-3, "the highest learning rate", positive=True)
    warmup_steps: int = option(50, "steps of linear warm-up")
    min_lr_share: float = option(0.1, "the learning rate ends at this share of the highest")
    weight_decay: float = option(0.1, "on matrices only")
    grad_clip: float = option(1.0, "largest gradient norm; 0: no clipping")
    seed: int = option(0, "decides weights and data order")

    grad_accumulation_steps: int | str = option(
        1, "micro-batches of a process's rows; auto: as few as fit", "auto", positive=True
    )
    device: str = option("auto", "auto: a GPU where there is one", "auto", "cpu", "cuda", "mps")
    dtype: str = option("auto", "auto: the fastest here", "auto", "fp32", "bf16", "fp16")
    compile: bool | str = option("auto", "auto: where it pays back", "auto", True, False)
    deterministic: bool = option(False, "bit for bit the same again, on GPUs too", True, False)
    num_workers: int = option(1, "threads that prepare batches")

    resume: str = option("auto", "auto: if it is this very run", "auto", "never", "must")
    log_interval: int = option(10, "steps between lines of metrics.jsonl", positive=True)
    eval_interval: int = option(0, "steps between evaluations; 0: only at the end")
    eval_rows: int = option(256, "validation rows of one evaluation", positive=True)
    sample_prompts: str = option("", "texts answered at each evaluation, separated by |")
    save_interval: int = option(0, "steps between checkpoints; 0: only at the end")
    keep_last: int = option(2, "newest checkpoints to keep")
    keep_every: int = option(0, "checkpoints at multiples of this step stay; 0: none")

    def __post_init__(self) -> None:
        problems = []
        for f in fields(self):
            value, demand = _checked(f, getattr(self, f.name))
            object.__setattr__(self, f.name, value)
            if demand:
                problems.append(f"{f.name} must {demand}, is {value!r}")
        if problems:
            raise ValueError(f"TrainConfig: {'; '.join(problems)}.")

    def save(self, path: str | Path, **found: object) -> None:
        """Writes the options as JSON; a run adds what it `found`: `resolved` and `made_from`."""
        write_json(path, {**asdict(self), **found})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The config in a JSON file of options, as a run's is; a TypeError for what is none."""
        no_options = ("resolved", "made_from", "tracker")  # the last is of older runs
        return cls(**{k: v for k, v in read_json(path).items() if k not in no_options})


# What may change when a run goes on, for it changes no weight, but for rounding. Of files it is
# their content that counts, of tokens and epochs the steps that they come to.
NAMES = [f.name for f in fields(TrainConfig)]
FREE_OPTIONS = {"data_path", "out_dir", "tokenizer_path", "init_from", "tokens", "epochs"}
FREE_OPTIONS |= {*NAMES[NAMES.index("grad_accumulation_steps") :]}  # machine and log


def _checked(f: Field, value: Any) -> tuple[Any, str]:
    """The value, a Path as text and 1e9 as an int; and what its option asks of it in vain."""
    kind: Any = type(f.default)
    choices, positive = f.metadata["choices"], f.metadata["positive"]
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if kind is int and isinstance(value, Real) and value % 1 == 0:
        value = math.floor(value)
    if value in choices:
        return value, ""
    if choices and kind not in NUMBERS:
        return value, f"be one of {', '.join(map(str, choices))}"
    if not isinstance(value, NUMBERS if kind is float else kind):
        return value, f"be of type {' or '.join([kind.__name__, *map(repr, choices)])}"
    if kind in NUMBERS and not (value > 0 or (value == 0 and not positive)):
        return value, "be positive" if positive else "not be negative"
    return value, ""


def get_lr(step: int, config: TrainConfig) -> float:
    """Learning rate of optimiser step `step` (from 0): linear warm-up, then a cosine down to
    `min_lr_share` of the highest.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    low = config.min_lr_share
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def run_config(run: str | Path) -> dict:
    """The `config.json` of a run as it is; empty where there is none that can be read."""
    return read_json(Path(run) / "config.json", unknown={})


def parse_args(argv: list[str] | None = None) -> TrainConfig:
    """A TrainConfig from the command line, `--config FILE` and options that replace what it says;
    SystemExit where one is unknown, or has a value that it cannot have.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tinyllm_lib.train",
        usage="%(prog)s [--config FILE] [--OPTION VALUE ...]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="JSON of options, as a run's config.json")
    for f in fields(TrainConfig):
        if f.name in GROUPS:
            section = parser.add_argument_group(GROUPS[f.name])
        kind, choices = type(f.default), f.metadata["choices"]
        said: dict[str, Any] = {"help": f"{f.metadata['help']} (default: {f.default!r})"}
        said["metavar"] = "|".join(map(str, choices)) or kind.__name__.upper()
        alone: dict[str, Any] = {"nargs": "?", "const": True} if True in choices else {}
        read = str if kind is str and not alone else _number_or_word
        section.add_argument(f"--{f.name}", type=read, **said, **alone)
    given = vars(parser.parse_args(argv))
    file = given.pop("config", None)
    try:
        return replace(TrainConfig.load(file) if file else TrainConfig(), **given)
    except (OSError, TypeError, ValueError) as error:
        parser.error(f"--config {file}: {error}" if file else str(error))


def _number_or_word(text: str) -> Any:
    """9, .5, true or a word; `TrainConfig` says what an option cannot be."""
    for number in NUMBERS:
        with suppress(ValueError):
            return number(text)
    return {"true": True, "false": False}.get(text.lower(), text)
