"""Searches for a fine-tuning that forgets less: recipes and their controls, each over seeds.

    python tools/forgetting.py [--recipes NAME …] [--seeds 0 1 2] [--list]

Each run starts from the workspace's base model (`make course`), sits the exam, and completes the
held-back facts as sentences: what it does not say when asked, can it still write? Seeds change the
order of the data; the base model is the same. A run is one process of one thread, about 6 minutes
at the laptop profile. Results are added to figures/data/forgetting.json after each run, from which
notebook 06 takes its numbers; what stands there is not trained again, and a run that was stopped
goes on.
"""

import argparse
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it once
REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tinyllm_lib.course import Workspace, get_profile, get_workspace, held_back, prepare  # noqa: E402
from tinyllm_lib.data import read_dialogues, read_texts, utf8_output, write_json  # noqa: E402
from tinyllm_lib.dataset import PackedDataset, write_sft_tokens  # noqa: E402
from tinyllm_lib.evaluate import Answer, bits_per_byte, load_exam, run_exam  # noqa: E402
from tinyllm_lib.generate import TextGenerator  # noqa: E402
from tinyllm_lib.launch import launch, read_metrics  # noqa: E402
from tinyllm_lib.model import (  # noqa: E402
    model_folder,
    step_folders,
    step_of,
    weights_fingerprint,
)
from tinyllm_lib.train import TrainConfig  # noqa: E402


@dataclass(frozen=True)
class Recipe:
    """What differs from the profile's own fine-tuning."""

    replay: float = 1.0  # times the profile's share of replayed documents
    filtered: bool = False  # only documents in which no held-back fact stands are replayed
    rate: float = 1.0  # times the profile's learning rate
    steps: float = 1.0  # times the profile's steps


RECIPES = {
    held_back.CONTROL: Recipe(),
    "no replay": Recipe(replay=0.0),
    "filtered replay": Recipe(filtered=True),
    "half the rate": Recipe(rate=0.5),
    "twice the replay": Recipe(replay=2.0),
    "half the steps": Recipe(steps=0.5),
    "half the rate, twice the replay": Recipe(rate=0.5, replay=2.0),
    "half the rate, no replay": Recipe(rate=0.5, replay=0.0),
    "a quarter of the rate": Recipe(rate=0.25),
}


def shards_of(recipe: Recipe, ws: Workspace, rows: list[dict]) -> Path:
    """The folder of token shards for a recipe; written where they are missing."""
    profile = get_profile()
    own = prepare.token_shards(ws, "sft", profile)
    if recipe.replay == 1 and not recipe.filtered:
        return own
    kind = "_filtered" if recipe.filtered else ""
    folder = own.with_name(f"sft_replay_{recipe.replay:g}{kind}")
    files, tokenizer = prepare.corpus_files(ws, profile), prepare.tokenizer(ws, profile)
    number = int(recipe.replay * profile.replay_share * profile.dialogues)
    pairs = held_back.pairs_of(rows)

    def documents() -> Iterator[str]:
        for text in read_texts(files["pretrain"], split="train"):
            if not (recipe.filtered and held_back.tells_one_of(text, pairs)):
                yield text

    for split in ("train", "val"):
        if not (folder / split / "manifest.json").is_file():
            write_sft_tokens(
                read_dialogues(files["sft"], split=split),
                tokenizer,
                folder / split,
                max_length=profile.max_length,
                replay=islice(documents(), number) if split == "train" else (),
            )
    return folder


def config_of(name: str, seed: int, ws: Workspace, rows: list[dict]) -> TrainConfig:
    """The options of a run."""
    recipe, profile = RECIPES[name], get_profile()
    shards = shards_of(recipe, ws, rows)
    config = prepare.train_config(
        "sft",
        ws,
        profile,
        name=f"forgetting_{name.replace(',', '').replace(' ', '_')}_{seed}",
        init_from=prepare.pretrained_run(ws, profile),
        data_path=str(shards),
        seed=seed,
    )
    packed = PackedDataset(shards / "train", profile.max_length)
    steps = config.steps or math.ceil(config.epochs * len(packed) / config.batch_size)
    steps = max(4, round(recipe.steps * steps))
    quarter = steps // 4
    return replace(
        config,
        steps=steps,
        learning_rate=recipe.rate * config.learning_rate,
        save_interval=quarter,
        keep_every=quarter,
    )


def marks(answers: list[Answer]) -> str:
    """A digit for each answer: 1 for right, 0 for wrong."""
    return "".join(str(int(answer.right)) for answer in answers)


def bits_of_documents(model: TextGenerator, ws: Workspace) -> float:
    """Bits per byte of a hundred documents that no model has read."""
    documents = islice(read_texts(prepare.corpus_files(ws)["pretrain"], split="val"), 100)
    return round(bits_per_byte(model.model, model.tokenizer, documents), 4)


def measured(run: Path, ws: Workspace, exam: list[dict]) -> dict:
    """What a run can do: exam classes, held-back facts said and completed, bits per byte of unseen
    documents, and how many held-back facts its earlier checkpoints completed.
    """
    rows, model = held_back.rows_of(exam), TextGenerator(run)
    asked = run_exam(model, exam, kind="chat", print_table=False, save=False)
    completed = held_back.complete_sentences(model, rows)
    along = {}
    for folder in step_folders(run):
        told = held_back.complete_sentences(TextGenerator(folder), rows)
        along[str(step_of(folder))] = marks(told.answers).count("1")
    metrics = read_metrics(run)
    return {
        "classes": {score.class_name: [score.right, score.total] for score in asked.classes},
        "says": marks([a for a in asked.answers if a.class_name in held_back.CLASSES]),
        "completes": marks(completed.answers),
        "along": along,
        "bits_per_byte": bits_of_documents(model, ws),
        "val_bits_per_byte": round(metrics[-1]["val_bits_per_byte"], 4),
        "steps": metrics[-1]["step"],
        "tokens": metrics[-1]["tokens"],
    }


def beginning(ws: Workspace, exam: list[dict]) -> dict:
    """The search before its first run: the base model, and what it completes."""
    rows, base = held_back.rows_of(exam), TextGenerator(ws.run("pretrain"))
    return {
        "profile": get_profile().name,
        "base": {
            "weights": weights_fingerprint(model_folder(ws.run("pretrain"))),
            "questions": [row["class"] for row in rows],
            "completes": marks(held_back.complete_sentences(base, rows).answers),
            "bits_per_byte": bits_of_documents(base, ws),
        },
        "recipes": {},
        "runs": [],
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    utf8_output()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=held_back.SEARCH)
    parser.add_argument("--list", action="store_true", help="show what there is, and train nothing")
    given = parser.parse_args(arguments)
    if given.list:
        print(held_back.search_table(held_back.read_search(given.out)))
        return
    ws = get_workspace()
    if why := prepare.why_not_ready(ws, "pretrain"):
        raise ValueError(f"the base model is not ready: {why}. `make course` trains it.")
    exam = load_exam(prepare.corpus_files(ws)["exam"])
    search = beginning(ws, exam)
    if given.out.is_file():
        saved = held_back.read_search(given.out)
        if saved["base"]["weights"] != search["base"]["weights"]:
            raise ValueError(
                f"{given.out} was measured from another base model: choose another file with --out,"
                " or remove it to begin anew."
            )
        search = saved
    for seed in given.seeds:
        for name in given.recipes:
            if any((run["recipe"], run["seed"]) == (name, seed) for run in search["runs"]):
                continue
            began = time.perf_counter()
            run = trained(name, seed, ws, exam)
            minutes = round((time.perf_counter() - began) / 60, 1)
            search["recipes"] = {
                known: asdict(recipe)
                for known, recipe in RECIPES.items()
                if known in search["recipes"] or known == name
            }
            found = {"recipe": name, "seed": seed, "date": time.strftime("%Y-%m-%d")}
            found |= {"minutes": minutes, "machine": platform.machine()}
            search["runs"].append({**found, **measured(run, ws, exam)})
            write_json(given.out, search)
            print(held_back.search_table(search), flush=True)


def trained(name: str, seed: int, ws: Workspace, exam: list[dict]) -> Path:
    """The run of a recipe and seed: the course's own where it is that, else trained to its end."""
    own = name == held_back.CONTROL and seed == TrainConfig.seed
    if own and not prepare.why_not_ready(ws, "chat"):
        return ws.run("chat")
    config = config_of(name, seed, ws, held_back.rows_of(exam))
    return launch(config, nproc_per_node=1, show=False)


if __name__ == "__main__":
    main()
