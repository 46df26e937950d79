"""Every option of a training run: `TrainConfig`, the learning rate that follows from it, and its
command line.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import shlex
import sys
import typing
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path

from tinyllm_lib.train.worker import meet, meeting_host


def option(default, text: str, *, choices: tuple = (), word: str = ""):
    """A field with the sentence that `--help` shows and, where there are few, the values it may
    have; or a word instead of a number.
    """
    return field(default=default, metadata={"help": text, "choices": choices, "word": word})


@dataclass(frozen=True)
class TrainConfig:
    """Every option of a training run; saved as the run's `config.json`.

    Raises:
        ValueError: a value that an option cannot have; all of them are named at once.
    """

    data_path: str = option("", "folder with train/ and val/ token shards")
    out_dir: str = option("", "the run folder to write")
    tokenizer_path: str = option("", "tokenizer folder; empty: the one of init_from")
    init_from: str = option(
        "", "a run or checkpoint folder to start from; empty: random weights of the size below"
    )
    dim: int = option(1024, "width of the model")
    n_layers: int = option(18, "number of layers")
    n_heads: int = option(16, "query heads")
    n_kv_heads: int = option(8, "key/value heads")
    max_seq_len: int = option(512, "context: positions in a row")
    steps: int = option(0, "optimiser steps; 0: from tokens or epochs")
    tokens: int = option(0, "train for about so many tokens; 0: from epochs")
    epochs: float = option(
        1.0, "passes over the data, where neither steps nor tokens says how long"
    )
    batch_size: int = option(64, "rows of one optimiser step, over all processes and micro-batches")
    grad_accumulation_steps: int | str = option(
        1,
        "micro-batches into which a process cuts its rows, the result is the same; auto: as "
        "few as fit on the GPU",
        word="auto",
    )
    packing: str = option(
        "best_fit",
        "best_fit: whole documents; stream: one long tape; none: a document a row",
        choices=("best_fit", "stream", "none"),
    )
    separate_documents: bool = option(True, "attention stays within a document")
    optimizer: str = option(
        "muon", "muon (hidden matrices; AdamW for the rest) or adamw", choices=("adamw", "muon")
    )
    learning_rate: float = option(3e-3, "the highest learning rate")
    warmup_steps: int = option(50, "steps of linear warm-up")
    min_lr_share: float = option(0.1, "the learning rate ends at this share of the highest")
    weight_decay: float = option(0.1, "on matrices only")
    grad_clip: float = option(1.0, "largest gradient norm; 0: no clipping")
    seed: int = option(0, "decides weights and data order")
    device: str = option(
        "auto", "auto: a GPU where there is one", choices=("auto", "cpu", "cuda", "mps")
    )
    dtype: str = option(
        "auto",
        "auto: bf16 where it is faster, and as it began where a run goes on; weights are fp32"
        " always",
        choices=("auto", "fp32", "bf16"),
    )
    compile: bool | str = option(
        "auto",
        "torch.compile; auto: where it pays back within the run",
        choices=("auto", True, False),
    )
    num_workers: int = option(1, "threads that prepare batches")
    log_interval: int = option(10, "steps between lines of metrics.jsonl")
    eval_interval: int = option(0, "steps between evaluations; 0: only at the end")
    eval_rows: int = option(256, "validation rows of one evaluation")
    sample_prompts: str = option(
        "",
        "prompts answered at each evaluation, separated by |; in a run on dialogues they are"
        " messages",
    )
    save_interval: int = option(0, "steps between checkpoints; 0: only at the end")
    keep_last: int = option(2, "newest checkpoints to keep")
    keep_every: int = option(0, "keep every checkpoint at a multiple of this step; 0: none")
    tracker: str = option(
        "none",
        "where the numbers go besides metrics.jsonl",
        choices=("none", "swanlab", "tensorboard", "wandb"),
    )
    resume: str = option(
        "auto",
        "auto: go on if the folder holds this very run, else start anew beside it; never; must",
        choices=("auto", "never", "must"),
    )

    def __post_init__(self) -> None:
        positive = (
            "batch_size",
            "grad_accumulation_steps",
            "learning_rate",
            "log_interval",
            "max_seq_len",
            "dim",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "eval_rows",
        )
        problems = []
        for f in fields(self):
            kind, needed = (
                type(f.default),
                "be positive" if f.name in positive else "not be negative",
            )
            value = _plain(getattr(self, f.name), kind)
            object.__setattr__(self, f.name, value)
            if (word := f.metadata["word"]) and value == word:
                continue
            if (choices := f.metadata["choices"]) and value not in choices:
                problems.append(
                    f"{f.name} must be one of {', '.join(map(str, choices))}, is {value!r}"
                )
            elif not (choices or isinstance(value, Real if kind is float else kind)):
                named = "a number" if kind is float else f"of type {kind.__name__}"
                problems.append(
                    f"{f.name} must be {named}{f.metadata['word'] and f' or {word!r}'}, is"
                    f" {value!r}"
                )
            elif kind in (int, float) and not (
                value > 0 or (value == 0 and needed != "be positive")
            ):
                problems.append(f"{f.name} must {needed}, is {value}")
        if problems:
            raise ValueError("TrainConfig: " + "; ".join(problems) + ".")


def _plain(value: object, kind: type) -> object:
    """A Path as text and a whole number such as 1e9 as an int, where the option holds that."""
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    return int(value) if kind is int and isinstance(value, Real) and value % 1 == 0 else value


# Options that may change when a run goes on: none of them changes its weights, but for rounding. Of
# files it is their content that
# counts, which the run's record `made_from` holds; of tokens and epochs the steps that they come
# to; of dtype what it became.
FREE_OPTIONS = {
    "out_dir",
    "resume",
    "log_interval",
    "eval_interval",
    "eval_rows",
    "sample_prompts",
    "save_interval",
    "keep_last",
    "keep_every",
    "num_workers",
    "grad_accumulation_steps",
    "compile",
    "tracker",
    "device",
    "dtype",
    "data_path",
    "tokenizer_path",
    "init_from",
    "tokens",
    "epochs",
}


def get_lr(step: int, config: TrainConfig) -> float:
    """Learning rate of optimiser step `step` (from 0): linear warm-up, then a cosine down to
    `min_lr_share` of the highest.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    low = config.min_lr_share
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


# ---- the command line

SECTIONS = {  # of --help, each with the option it begins with
    "data_path": "files",
    "dim": "model",
    "steps": "length and batches",
    "optimizer": "optimisation",
    "device": "machine",
    "log_interval": "log, evaluation, checkpoints",
}


def parse_args(argv: list[str] | None = None) -> TrainConfig:
    """A TrainConfig from the command line: `--config FILE` first, then every field as an option.

    Raises:
        SystemExit: an option that there is not (the nearest one is named) or a value that it cannot
            have.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tinyllm_lib.train",
        usage="%(prog)s [--config FILE] [--OPTION VALUE ...]",
        allow_abbrev=False,
        description=(
            "Trains on token shards and writes a run folder; under torchrun with as many processes"
            " as it starts."
        ),
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=120),
    )
    parser.add_argument(
        "--config",
        default="",
        metavar="FILE",
        help="a JSON file with any of these options, such as a run's config.json",
    )
    section, types = parser, typing.get_type_hints(TrainConfig)
    for f in fields(TrainConfig):
        if f.name in SECTIONS:
            section = parser.add_argument_group(SECTIONS[f.name])
        kind, choices, flag = types[f.name], f.metadata["choices"], {}
        if kind is bool or bool in typing.get_args(kind):  # --compile alone means true
            kind, choices = (
                _true_false_or([c for c in choices if isinstance(c, str)]),
                choices or (True, False),
            )
            flag = {"nargs": "?", "const": True}
        elif word := f.metadata["word"]:
            kind, choices = _int_or(word), ("INT", word)
        metavar = (
            "|".join(str(c) if c == "INT" else str(c).lower() for c in choices)
            or kind.__name__.upper()
        )
        default = "" if f.default == "" else f" (default: {str(f.default).lower()})"
        section.add_argument(
            f"--{f.name}",
            type=kind,
            default=f.default,
            metavar=metavar,
            help=f.metadata["help"] + default,
            **flag,
        )
    known, rest = parser.parse_known_args(argv)
    if rest:
        parser.error(
            _no_such_option(
                [word.split("=")[0] for word in rest if word.startswith("-")] or rest, "--"
            )
        )
    if known.config:
        parser.set_defaults(**_read_config(Path(known.config), parser))
        known = parser.parse_args(argv)
    try:
        return TrainConfig(**{f.name: getattr(known, f.name) for f in fields(TrainConfig)})
    except ValueError as error:
        parser.error(str(error))


def _read_config(path: Path, parser: argparse.ArgumentParser) -> dict:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"--config {path}: {error}")
    if not isinstance(saved, dict):
        parser.error(
            f"--config {path}: expected a JSON object of options, found a {type(saved).__name__}"
        )
    for found in ("resolved", "made_from"):  # what a run adds to its config.json
        saved.pop(found, None)
    if unknown := [name for name in saved if name not in {f.name for f in fields(TrainConfig)}]:
        parser.error(f"{path}: {_no_such_option(unknown)}")
    return saved


def _no_such_option(names: list[str], dashes: str = "") -> str:
    known, said = [f.name for f in fields(TrainConfig)], []
    for name in names:
        near = difflib.get_close_matches(name.strip("-").replace("-", "_"), known, 1)
        said.append(name + "".join(f" (did you mean {dashes}{match}?)" for match in near))
    return "no such option: " + ", ".join(said)


def _true_false_or(words: list[str]):
    """Reads true and false (yes/no, on/off, 1/0), or one of `words` as it is."""
    values = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }

    def convert(text: str) -> bool | str:
        if (word := text.lower()) in words:
            return word
        if word not in values:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not one of {', '.join([*words, 'true', 'false'])}"
            )
        return values[word]

    return convert


def _int_or(word: str):
    """Reads a whole number, or `word` as it is."""

    def convert(text: str) -> int | str:
        return word if text.lower() == word else int(text)

    convert.__name__ = f"int or {word}"  # as argparse calls it in an error
    return convert


def run_config(run: str | Path) -> dict:
    """The `config.json` of a run; empty where there is none, or none that can be read: then nobody
    knows.
    """
    try:
        found = json.loads((Path(run) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def resume_command(run: Path, processes: int) -> str:
    """The shell command that goes on with a run from its last checkpoint, whatever the machine is
    called.
    """
    torchrun = (
        ["-m", "tinyllm_lib.launch.torchrun", "agent", *meeting_host(True), *meet(processes)]
        if processes > 1
        else []
    )
    return shlex.join(
        [
            sys.executable,
            *torchrun,
            "-m",
            "tinyllm_lib.train",
            "--config",
            str(run / "config.json"),
            "--resume",
            "must",
        ]
    )
