"""The board: who learns most from ten CPU minutes? Tokens are counted, so that machines compare.

    python -m tinyllm_lib.course.board my.json [--profile ci] [--seeds 3]

`make board CONFIG=my.json` calls this; docs/board.md says what is in such a file and in a row. What
was stopped goes on: runs lie in workspace/<profile>/board/<hash of config, data, library>/seed_N.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

from tinyllm_lib.course import prepare
from tinyllm_lib.course.experiments import shape_of
from tinyllm_lib.course.made import made_by_us
from tinyllm_lib.course.profiles import Profile, get_profile
from tinyllm_lib.course.workspace import Workspace, get_workspace
from tinyllm_lib.course.world import sample_recipe
from tinyllm_lib.data import atomic_path, content_fingerprint, read_json, sha256, utf8_output
from tinyllm_lib.evaluate import exam_of, run_exam
from tinyllm_lib.launch import LaunchError, launch, read_metrics
from tinyllm_lib.train import TrainConfig

LIBRARY = Path(__file__).resolve().parents[1]
BOARD = LIBRARY.parent / "docs" / "board.md"
# All that a config may change: the laptop profile's recipe of 2026-11-28, kept here, for rows tell
# how they differ from this, whatever becomes of the profile. Steps of 0 fill the budget.
SHAPE = {"dim": 128, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2}
BOTH = {"batch_size": 16, "steps": 0, "optimizer": "muon", "min_lr_share": 0.1, "grad_clip": 1.0}
BOTH |= {"weight_decay": 0.1, "packing": "best_fit", "separate_documents": True}
BASELINE = {
    "pretrain": {**SHAPE, **BOTH, "learning_rate": 1.2e-2, "warmup_steps": 30},
    "sft": {**BOTH, "learning_rate": 3e-3, "warmup_steps": 10},
    "replay_share": 0.5,  # pretraining texts mixed into SFT, for each of its dialogues
}
STAGES = ("pretrain", "sft")
# Ten CPU minutes: two cores of an AMD EPYC without AVX-512 train 5,100 to 5,560 positions/s of the
# laptop model, and an update takes as long as 200 positions (both measured in docs/speed.md).
BUDGET = 600 * 2_500
UPDATE = 200
PRETRAIN_SHARE = 2 / 3  # of the budget, where neither stage says its steps
SEEDS = 3
# By profile, what steps are divided by and how many questions of a class are asked: ci is to try.
SIZES = {"laptop": (1, None), "ci": (100, 2)}
KEPT = {"eval_interval": 0, "save_interval": 50, "keep_last": 1, "keep_every": 0}
FORM = re.compile(r"[\w.,+ -]{1,40} \| \d{4}-\d\d-\d\d \| [0-9a-z]{7,12}\+? \| [0-9a-f]{8}")
HEADER = "| name | date | library | data | right answers | bits per byte | reference tokens"
HEADER += " | parameters | differs from the baseline |"


def settle(config: Mapping[str, Any]) -> dict[str, Any]:
    """The baseline with what `config` changes, and as many steps as the budget has room for.

    Raises:
        ValueError: an option that is not the board's, a value that it cannot have, or a config over
            the budget: what it costs, and what to change.
    """
    full = _with_baseline(config)
    cost, steps = step_costs(full), {stage: full[stage]["steps"] for stage in STAGES}
    left = BUDGET - sum(steps[stage] * cost[stage] for stage in STAGES)
    share = 1 if any(steps.values()) else PRETRAIN_SHARE
    for stage in STAGES:
        if not steps[stage]:
            full[stage]["steps"] = steps[stage] = max(1, int(share * left / cost[stage]))
            left -= steps[stage] * cost[stage]
        share = 1
    if left < 0:
        told = " and ".join(f"{steps[s]:,} steps of {s} at {cost[s]:,.0f} each" for s in STAGES)
        what = f"this config costs {BUDGET - left:,.0f} reference tokens ({told})"
        advice = "A stage without steps gets what the other leaves; fewer rows or layers cost less."
        raise ValueError(f"{what}, the board allows {BUDGET:,}. {advice}")
    return full


def _with_baseline(config: Mapping[str, Any]) -> dict[str, Any]:
    full = {**BASELINE, **_known(config, BASELINE, "a config")}
    for stage in STAGES:
        options = {**BASELINE[stage], **_known(full[stage], BASELINE[stage], stage)}
        checked = TrainConfig(**options)  # refuses what cannot be
        full[stage] = {name: getattr(checked, name) for name in options}
    if type(share := full["replay_share"]) not in (int, float) or not 0 <= share <= 2:
        raise ValueError(f'"replay_share" is {share!r}, expected a number from 0 to 2.')
    return full


def _known(given: Any, base: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {given!r}, expected an object of options.")
    if unknown := ", ".join(sorted(given.keys() - base.keys())):
        raise ValueError(f"{where} cannot have {unknown} here. What it can: {', '.join(base)}.")
    return given


def step_costs(config: Mapping[str, Any]) -> dict[str, float]:
    """Reference tokens of one step of each stage: its positions, padding included, and its update,
    each as many times as the model has the laptop model's FLOPs.
    """
    flops = [size_of(*(options[n] for n in SHAPE))[0] for options in (config["pretrain"], SHAPE)]
    context = get_profile("laptop").max_length
    rows = {stage: config[stage]["batch_size"] for stage in STAGES}
    return {stage: (rows[stage] * context + UPDATE) * flops[0] / flops[1] for stage in STAGES}


def reference_tokens(config: Mapping[str, Any]) -> int:
    """What a settled config costs, at most `BUDGET`."""
    return round(sum(config[stage]["steps"] * cost for stage, cost in step_costs(config).items()))


@cache
def size_of(*shape: int) -> tuple[int, int]:
    """FLOPs per position in training and parameters of the laptop's model with another `SHAPE`."""
    laptop = get_profile("laptop")
    config = TrainConfig(**dict(zip(SHAPE, shape, strict=True)), max_seq_len=laptop.max_length)
    parameters, flops = shape_of(config, laptop.vocab_size)
    return flops, parameters


class Row(NamedTuple):
    """A line of the board: `str` writes it, `parse_row` reads it."""

    name: str
    date: str
    library: str  # the last commit that changed it; with +: and it was changed since
    data: str  # hash of what decides corpus, tokenizer and exam
    right: list[int]  # answers of the chat model: median, lowest, highest, and of how many
    bits: list[float]  # per byte of validation text, of the base model: median, lowest, highest
    config: dict  # what differs from the baseline

    def __str__(self) -> str:
        full = settle(self.config)
        right = "{:,} ({:,} to {:,}) of {:,}".format(*self.right)
        bits = "{:.4f} ({:.4f} to {:.4f})".format(*self.bits)
        parameters = size_of(*(full["pretrain"][name] for name in SHAPE))[1]
        size = f"{reference_tokens(full):,} | {parameters:,} | `{json.dumps(self.config)}`"
        return f"| {' | '.join((*self[:4], right, bits, size))} |"


def parse_row(line: str) -> Row:
    """The row in a line; a ValueError says what is wrong with it, or its config."""
    cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
    numbers = [re.findall(r"[\d.]+", cell.replace(",", "")) for cell in cells[4:6]]
    if [len(cells), *map(len, numbers)] != [9, 4, 3]:
        raise ValueError(f"expected the cells {HEADER}, as `make board` writes them")
    right, bits = [int(n) for n in numbers[0]], [float(n) for n in numbers[1]]
    row = Row(*cells[:4], right, bits, json.loads(cells[8].strip("`")))
    if str(row) != line or not FORM.fullmatch(" | ".join(row[:4])):
        raise ValueError(f"`make board` would write {row}")
    if not (right[1] <= right[0] <= right[2] <= right[3] and bits[1] <= bits[0] <= bits[2]):
        raise ValueError("a median lies between the lowest and the highest, right ones among all")
    if row.library.endswith("+"):
        raise ValueError("trained with a changed library: commit the change, and train again")
    return row


def read_board(path: Path) -> list[Row]:
    """The rows of a board, all that stands below its header; a ValueError names a wrong line."""
    lines, rows = path.read_text(encoding="utf-8").splitlines(), []
    if HEADER not in lines:
        raise ValueError(f"{path.name} lacks the line {HEADER}")
    first = lines.index(HEADER) + 2  # the rule between
    for number, line in enumerate(lines[first:], first + 1):
        try:
            rows.append(parse_row(line))
        except ValueError as error:
            raise ValueError(f"{path.name} line {number}: {error}") from error
    return rows


def append_row(row: Row, path: Path) -> str:
    """Adds a row as the last line of a board; says what was done, or why nothing was."""
    try:
        parse_row(str(row))
        rows = read_board(path)
    except (OSError, ValueError) as error:
        return f"Not appended to {path}: {error}."
    made, *others = ([r.library, r.data, settle(r.config)] for r in (row, *rows))
    if made in others:
        name = rows[others.index(made)].name
        return f"Not appended: {name} is this config of this library already; nothing is replaced."
    text = path.read_text(encoding="utf-8").rstrip("\n")
    with atomic_path(path) as temporary:
        temporary.write_text(f"{text}\n{row}\n", encoding="utf-8")
    return f"Appended to {path}: a pull request carries it to the others."


def data_of(config: Mapping[str, Any], profile: Profile) -> tuple[Workspace, Profile]:
    """The board's own corpus, tokenizer and shards for a share of replay, and the profile of them;
    a ValueError where a file is not as it was made, for then results would not compare.
    """
    profile = replace(profile, replay_share=config["replay_share"])
    ws = Workspace(get_workspace(profile).root / "board" / f"data_{config['replay_share']:g}")
    for stage in STAGES:
        prepare.token_shards(ws, stage, profile)
    for path in (*prepare.corpus_files(ws, profile).values(), ws.tokenizer):
        if made_by_us(path) is None:
            raise ValueError(f"{path} was changed by hand; all rows share one: remove {ws.root}.")
    return ws, profile


def run_seed(config: Mapping[str, Any], seed: int, profile: Profile) -> tuple[int, int, float]:
    """Trains and examines a settled config, or goes on where that was stopped; returns the chat
    model's right answers, the questions, and the base model's bits per byte.
    """
    divisor, limit = SIZES[profile.name]
    ws, profile = data_of(config, profile)
    core = (p for p in sorted(LIBRARY.rglob("*.py")) if LIBRARY / "course" not in p.parents)
    key = content_fingerprint([config, data_hash(profile), *map(sha256, core)])
    folder, start = ws.root.parent / key / f"seed_{seed}", {}
    for stage in STAGES:
        options = {**config[stage], **KEPT, **start, "out_dir": str(folder / stage), "seed": seed}
        options |= {name: -(-options[name] // divisor) for name in ("steps", "warmup_steps")}
        start = {"init_from": launch(prepare.train_config(stage, ws, profile, **options))}
    chat, exam = folder / "sft", ws.raw / "exam.jsonl"
    try:
        result = exam_of(chat, exam)
    except (FileNotFoundError, ValueError):
        result = run_exam(chat, exam, kind="chat", limit=limit)
    right, questions = (sum(s[i] for s in result.classes) for i in (1, 2))
    return right, questions, read_metrics(folder / "pretrain")[-1]["val_bits_per_byte"]


def data_hash(profile: Profile) -> str:
    """Of what decides corpus, exam and tokenizer."""
    recipe = sample_recipe(documents=profile.documents, dialogues=profile.dialogues)
    return content_fingerprint([recipe, profile.vocab_size, profile.max_length])[:8]


def row_of(name: str, config: Mapping[str, Any], seeds: Sequence[int], profile: Profile) -> Row:
    """The row of a config: each seed trained and examined."""
    full, results = settle(config), []
    steps = " and ".join(f"{full[stage]['steps']:,} steps of {stage}" for stage in STAGES)
    small = "" if profile.name == "laptop" else " Here a hundredth of the steps is trained."
    print(f"{name}: {steps}, {reference_tokens(full):,} of {BUDGET:,} reference tokens.{small}")
    for seed in seeds:
        print(f"\nSeed {seed}, {len(results) + 1} of {len(seeds)}", flush=True)
        results.append(run_seed(full, seed, profile))
    right, questions, bits = zip(*results, strict=True)
    right, bits = ([median_low(of), min(of), max(of)] for of in (right, bits))
    made = time.strftime("%Y-%m-%d"), library_commit(), data_hash(profile)
    return Row(name, *made, [*right, questions[0]], bits, differing(config, BASELINE))


def differing(config: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config is not as in `base`, within its stages too."""
    inner = {n: differing(v, base[n]) if isinstance(v, Mapping) else v for n, v in config.items()}
    return {name: value for name, value in inner.items() if value not in (base[name], {})}


def library_commit() -> str:
    """The last commit that changed the library; with + where it was changed since."""
    asked = ["log", "-1", "--abbrev=7", "--format=%h"], ["status", "--porcelain"]
    git, told = {"cwd": LIBRARY, "stderr": subprocess.DEVNULL, "text": True}, []
    try:
        told = [subprocess.check_output(["git", *ask, "--", "."], **git).strip() for ask in asked]
    except (OSError, subprocess.CalledProcessError):
        return "unknown+"  # no clone
    return told[0] + "+" * bool(told[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    utf8_output()
    told = "Train a config on three seeds, examine it, append a row to docs/board.md."
    parser = argparse.ArgumentParser("python -m tinyllm_lib.course.board", description=told)
    parser.add_argument("config", type=Path, help="a JSON file: docs/board.md says what is in it")
    default = os.environ.get("TINYLLM_PROFILE") or "laptop"
    parser.add_argument("--profile", default=default, help="ci: a hundredth of the steps, no row")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="fewer: a trial, no row")
    o = parser.parse_args(argv)
    name, seeds = re.sub(r"[^\w.,+ -]", "_", o.config.stem)[:40], range(o.seeds)
    try:
        if o.profile not in SIZES or not seeds:
            raise ValueError(f"the board's profiles are {', '.join(SIZES)}, and a seed is needed.")
        row = row_of(name, read_json(o.config), seeds, get_profile(o.profile))
    except (LaunchError, OSError, ValueError) as error:
        print(f"board: {error}\nNo row is appended.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", flush=True)
        return 130
    print(f"\n{HEADER}\n{row}\n")
    trial = f"A trial: a row takes {SEEDS} seeds at the laptop profile. Nothing is appended."
    print(append_row(row, BOARD) if (o.profile, o.seeds) == ("laptop", SEEDS) else trial)
    return 0


if __name__ == "__main__":
    sys.exit(main())
