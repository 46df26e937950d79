"""Every option of a training run: `TrainConfig`, its learning rate and its command line."""

import argparse
import difflib
import json
import math
import os
from dataclasses import Field, asdict, dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any, Self

from tinyllm_lib.data import read_json, write_json


def option(default: Any, text: str, *choices: Any, positive: bool = False) -> Any:
    """A field whose declaration is all that validation, `--help` and the command line go by: the
    type of its default; for numbers, that they are not negative, or `positive`, and the words that
    may stand instead (`choices`); for all else, the `choices` where there are few.
    """
    about = {"help": text, "choices": choices, "positive": positive}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class DataOptions:
    """Where the data lies and the run goes, and how data becomes rows and batches."""

    data_path: str = option("", "folder with train/ and val/ token shards")
    out_dir: str = option("", "the run folder to write")
    tokenizer_path: str = option("", "tokenizer folder; empty: the one of init_from")
    packing: str = option(
        "best_fit",
        "best_fit: whole documents; stream: one long tape; none: a document a row",
        *("best_fit", "stream", "none"),
    )
    batch_size: int = option(
        64, "rows of one optimiser step, over all processes and micro-batches", positive=True
    )


@dataclass(frozen=True)
class ModelOptions:
    """The model: a start or a size, and what it sees."""

    init_from: str = option(
        "", "a run or checkpoint folder to start from; empty: random weights of the size below"
    )
    dim: int = option(1024, "width of the model", positive=True)
    n_layers: int = option(18, "number of layers", positive=True)
    n_heads: int = option(16, "query heads", positive=True)
    n_kv_heads: int = option(8, "key/value heads", positive=True)
    max_seq_len: int = option(512, "context: positions in a row", positive=True)
    separate_documents: bool = option(True, "attention stays within a document", True, False)


@dataclass(frozen=True)
class OptimisationOptions:
    """How long, by which optimiser, at which rate."""

    steps: int = option(0, "optimiser steps; 0: from tokens or epochs")
    tokens: int = option(0, "train for about so many tokens; 0: from epochs")
    epochs: float = option(1.0, "passes over the data, where neither steps nor tokens says so")
    optimizer: str = option(
        "muon", "muon (hidden matrices; AdamW for the rest) or adamw", "adamw", "muon"
    )
    learning_rate: float = option(3e-3, "the highest learning rate", positive=True)
    warmup_steps: int = option(50, "steps of linear warm-up")
    min_lr_share: float = option(0.1, "the learning rate ends at this share of the highest")
    weight_decay: float = option(0.1, "on matrices only")
    grad_clip: float = option(1.0, "largest gradient norm; 0: no clipping")
    seed: int = option(0, "decides weights and data order")


@dataclass(frozen=True)
class MachineOptions:
    """What the run computes on; none of it changes the result, but for rounding."""

    grad_accumulation_steps: int | str = option(
        1,
        "micro-batches of a process's rows, the result is the same; auto: as few as fit on the GPU",
        "auto",
        positive=True,
    )
    device: str = option("auto", "auto: a GPU where there is one", "auto", "cpu", "cuda", "mps")
    dtype: str = option(
        "auto",
        "auto: bf16 where it is faster, and as it began where a run goes on; weights are fp32",
        *("auto", "fp32", "bf16"),
    )
    compile: bool | str = option(
        "auto", "torch.compile; auto: where it pays back within the run", "auto", True, False
    )
    num_workers: int = option(1, "threads that prepare batches")


@dataclass(frozen=True)
class LogOptions:
    """The run folder: what is written into it, and when."""

    resume: str = option(
        "auto",
        "auto: go on if the folder holds this very run, else start anew beside it; never; must",
        *("auto", "never", "must"),
    )
    log_interval: int = option(10, "steps between lines of metrics.jsonl", positive=True)
    eval_interval: int = option(0, "steps between evaluations; 0: only at the end")
    eval_rows: int = option(256, "validation rows of one evaluation", positive=True)
    sample_prompts: str = option(
        "", "texts (messages, in a run on dialogues) answered at each evaluation, separated by |"
    )
    save_interval: int = option(0, "steps between checkpoints; 0: only at the end")
    keep_last: int = option(2, "newest checkpoints to keep")
    keep_every: int = option(0, "keep every checkpoint at a multiple of this step; 0: none")
    tracker: str = option(
        "none",
        "where the numbers go besides metrics.jsonl",
        *("none", "swanlab", "tensorboard", "wandb"),
    )


NUMBERS = (int, float)
GROUPS = {  # as --help and print(config) show them
    "data and run folder": DataOptions,
    "model": ModelOptions,
    "optimisation": OptimisationOptions,
    "machine": MachineOptions,
    "log, evaluation, checkpoints": LogOptions,
}
# What may change when a run goes on, for it changes no weight, but for rounding. Of files it is
# their content that counts, of tokens and epochs the steps that they come to.
FREE_OPTIONS = {f.name for group in (MachineOptions, LogOptions) for f in fields(group)}
FREE_OPTIONS |= {"data_path", "out_dir", "tokenizer_path", "init_from", "tokens", "epochs"}


@dataclass(frozen=True)
class TrainConfig(LogOptions, MachineOptions, OptimisationOptions, ModelOptions, DataOptions):
    """Every option of a training run, in five groups; saved as the run's `config.json`.

    Raises:
        ValueError: values that options cannot have, all of them named at once.
    """

    def __post_init__(self) -> None:
        problems = []
        for f in fields(self):
            value = _plain(getattr(self, f.name), _kind(f))
            object.__setattr__(self, f.name, value)
            if demand := _unmet_demand(f, value):
                problems.append(f"{f.name} must {demand}, is {value!r}")
        if problems:
            raise ValueError(f"TrainConfig: {'; '.join(problems)}.")

    def __str__(self) -> str:
        lines = []
        for title, group in GROUPS.items():
            lines.append(f"{title}:")
            lines += [f"  {f.name} = {getattr(self, f.name)!r}" for f in fields(group)]
        return "\n".join(lines)

    def save(self, path: str | Path, **found: object) -> None:
        """Writes the options as JSON; a run adds what it `found`: `resolved` and `made_from`."""
        write_json(path, {**asdict(self), **found})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The config in a JSON file of options, such as a run's config.json.

        Raises:
            ValueError: no JSON object, no such option, or a value that it cannot have.
        """
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(saved, dict):
            kind = type(saved).__name__
            raise ValueError(f"expected a JSON object of options, found a {kind}")
        options = {name: v for name, v in saved.items() if name not in ("resolved", "made_from")}
        if unknown := options.keys() - {f.name for f in fields(cls)}:
            raise ValueError(_no_such_option(sorted(unknown)))
        return cls(**options)


def _kind(f: Field) -> Any:
    return type(f.default)


def _plain(value: object, kind: type) -> object:
    """A Path as text and a whole number such as 1e9 as an int, where the option holds that."""
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if kind is int and isinstance(value, Real) and value % 1 == 0:  # numpy's, too
        return math.floor(value)
    return value


def _unmet_demand(f: Field, value: Any) -> str:
    """What the option's declaration asks of its value in vain, in words; else empty."""
    kind, choices = _kind(f), f.metadata["choices"]
    if value in choices:
        return ""
    if choices and kind not in NUMBERS:
        return f"be one of {', '.join(map(str, choices))}"
    if not isinstance(value, NUMBERS if kind is float else kind):
        named = "a number" if kind is float else f"of type {kind.__name__}"
        return f"be {' or '.join([named, *map(repr, choices)])}"
    if kind is str or value > 0 or (value == 0 and not f.metadata["positive"]):
        return ""
    return "be positive" if f.metadata["positive"] else "not be negative"


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


# ---- the command line


def parse_args(argv: list[str] | None = None) -> TrainConfig:
    """A TrainConfig from the command line: `--config FILE` first, then every option by its name.

    Raises:
        SystemExit: no such option (the nearest one is named), or a value that it cannot have.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tinyllm_lib.train",
        usage="%(prog)s [--config FILE] [--OPTION VALUE ...]",
        allow_abbrev=False,
        description="Trains on token shards and writes a run folder, in as many processes as"
        " torchrun starts.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=120),
    )
    about = "a JSON file with any of these options, such as a run's config.json"
    parser.add_argument("--config", metavar="FILE", help=about)
    for title, group in GROUPS.items():
        section = parser.add_argument_group(title)
        for f in fields(group):
            section.add_argument(f"--{f.name}", **_argument(f))
    known, rest = parser.parse_known_args(argv)
    if rest:
        names = [word.split("=")[0] for word in rest if word.startswith("-")]
        parser.error(_no_such_option(names or rest, "--"))
    try:
        if known.config:
            parser.set_defaults(**asdict(TrainConfig.load(known.config)))
            known = parser.parse_args(argv)
        return TrainConfig(**{f.name: getattr(known, f.name) for f in fields(TrainConfig)})
    except (OSError, ValueError) as error:
        parser.error(f"--config {known.config}: {error}" if known.config else str(error))


def _argument(f: Field) -> dict[str, Any]:
    """What argparse has to know of an option, from its declaration. A text that is none of its
    choices passes: `TrainConfig` refuses it.
    """
    kind, choices = _kind(f), f.metadata["choices"]
    values = {str(choice).lower(): choice for choice in choices}

    def read(text: str) -> object:
        if text.lower() in values:
            return values[text.lower()]
        return kind(text) if kind in NUMBERS else text

    read.__name__ = " or ".join([kind.__name__, *values])  # as argparse calls it in an error
    default = f" (default: {f.default})".lower() if f.default != "" else ""
    shown = values if choices and kind not in NUMBERS else [kind.__name__.upper(), *values]
    argument = {"type": read, "default": f.default, "metavar": "|".join(shown)}
    if True in choices:  # --compile alone means true
        argument |= {"nargs": "?", "const": True}
    return argument | {"help": f.metadata["help"] + default}


def _no_such_option(names: list[str], dashes: str = "") -> str:
    known, said = [f.name for f in fields(TrainConfig)], []
    for name in names:
        near = difflib.get_close_matches(name.strip("-").replace("-", "_"), known, 1)
        said.append(name + "".join(f" (did you mean {dashes}{match}?)" for match in near))
    return "no such option: " + ", ".join(said)
