"""A run -> a model card: `card.md`, filled in with what the run left.

Configs, token manifests, metrics and exam; what is not there is said to be missing. Paths of this
machine stay out.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from tinyllm_lib.data import BELLE, SEQ_MONKEY, SYSTEM_PROMPT, differences, read_json
from tinyllm_lib.dataset import read_manifest, shards_fingerprint
from tinyllm_lib.evaluate import exam_of
from tinyllm_lib.launch import read_metrics
from tinyllm_lib.model import (
    STEP_FOLDER,
    ModelConfig,
    Transformer,
    model_folder,
    step_folders,
    step_of,
    weight_files,
    weights_fingerprint,
)
from tinyllm_lib.tokenizer import load_tokenizer
from tinyllm_lib.train import run_config

TEMPLATE = Path(__file__).with_name("card.md")
OPTIONS: tuple[str, ...] = ("optimizer", "learning_rate", "warmup_steps", "weight_decay")
OPTIONS += ("batch_size", "max_seq_len", "packing", "separate_documents", "seed")
MEASURED = {
    "steps": "step",
    "tokens seen": "tokens",
    "validation loss, nats": "val_loss",
    "bits per byte": "val_bits_per_byte",
}
CURVE_ROWS = 8
TITLES = {"pretrain": "Pretraining", "sft": "Fine-tuning on dialogues"}


def model_card(folder: str | Path, repo_id: str = "", *, license: str | None = None) -> str:
    """The README.md of a published model, in Markdown with the hub's metadata at its head.

    Args:
        folder: a run (its newest checkpoint) or a checkpoint folder.
        repo_id: owner/name on the hub, as it stands in the example; default: the run's name.
        license: of the weights, as the hub spells it, e.g. "apache-2.0"; only you can choose one.

    Raises:
        FileNotFoundError: no checkpoint there.
    """
    folder = model_folder(folder)
    config = ModelConfig.from_hf(read_json(folder / "config.json"), str(folder))
    with torch.device("meta"):  # counted without allocating them
        parameters = Transformer(config).num_parameters()
    t, stages = load_tokenizer(folder), read_stages(folder)
    ends = [
        f"`{token}` ({t.convert_tokens_to_ids(token)})" if token else "none"
        for token in (t.bos_token, t.eos_token, t.pad_token)
    ]
    name = repo_id or (run_of(folder) or folder).name
    no_run = "Not recorded: this folder is a model without the run that made it."
    exam, limits = _exam(folder)
    if not license:
        limits += "\n* No licence was chosen for the weights."
    return TEMPLATE.read_text(encoding="utf-8").format(
        license=f"\nlicense: {license}" if license else "",
        title=name.split("/")[-1],
        name=name,
        system=SYSTEM_PROMPT,
        config=config,
        parameters=parameters,
        vocabulary=len(t),
        ends=_cell(", ".join(ends)),
        tied="tied" if config.tie_embeddings else "separate",
        checkpoint=folder.name,
        fingerprint=weights_fingerprint(folder),
        data="\n\n".join(map(_data, stages)) or no_run,
        training=_training(stages) if stages else "Not recorded.",
        curve="\n\n".join(filter(None, map(_curve, stages))) or "Not recorded.",
        exam=exam,
        limits=limits,
    )


class Stage(NamedTuple):
    """One training run on the way to the weights: its metrics up to the checkpoint, and the token
    manifest of its data, or why there is none.
    """

    run: Path
    config: dict
    metrics: list[dict]
    manifest: dict
    missing: str

    @property
    def title(self) -> str:
        """What was done, or the run's name where nobody knows."""
        return TITLES.get(self.manifest.get("kind", ""), f"Run {self.run.name}")


def run_of(folder: Path) -> Path | None:
    """The run folder that a checkpoint lies in, or None for a folder that stands alone."""
    folder = folder.resolve()
    run = folder.parent.parent
    inside = STEP_FOLDER.search(folder.name) and folder.parent.name == "checkpoints"
    return run if inside and (run / "config.json").is_file() else None


def read_stages(folder: Path) -> list[Stage]:
    """The runs that made a checkpoint, first pretraining, then what started from it; a base that
    is gone, or was trained anew since, is left out.
    """
    run = run_of(folder)
    if run is None:
        return []
    config = run_config(run)
    rows = read_metrics(run) if (run / "metrics.jsonl").is_file() else []
    metrics = [row for row in rows if row["step"] <= step_of(folder)]
    stage = Stage(run, config, metrics, *_manifest(config))
    start = Path(config.get("init_from") or "-")
    made = config.get("made_from", {}).get("init_from")
    for step in reversed(step_folders(start) or [start]):
        if weight_files(step) and weights_fingerprint(step) == made:
            return [*read_stages(step), stage]
    return [stage]


def _manifest(config: dict) -> tuple[dict, str]:
    """The manifest of a run's shards, and why there is none: others may lie in their place now."""
    try:
        manifest = read_manifest(Path(config.get("data_path") or "-") / "train")
    except FileNotFoundError:
        return {}, "its token shards are no longer where they were"
    now = {"shards": shards_fingerprint(manifest)}
    if changed := ", ".join(differences(config.get("made_from"), now)):
        return {}, f"its token shards are not those that lie there now: {changed}"
    return manifest, ""


def _table(rows: Iterable[Sequence[object]]) -> str:
    head, *body = [[str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ⏎ ")[:120]


def _data(stage: Stage) -> str:
    m = stage.manifest
    if not m:
        return f"**{stage.title}.** Not recorded: {stage.missing}."
    text = (
        f"**{stage.title}.** {m['documents']:,} documents, {m['tokens']:,} tokens, of which"
        f" {m['supervised_tokens']:,} are learned. Made from: {m['source'] or 'not named'}."
    )
    for corpus in (SEQ_MONKEY, BELLE):
        if corpus.name in m["source"]:
            where = f"the dataset {corpus.dataset} on {corpus.hub}"
            text += f"\n\n`{corpus.name}` is {where}; its terms of use are told there."
    return text


def _training(stages: list[Stage]) -> str:
    columns = [["", *(name.replace("_", " ") for name in OPTIONS), "number format", *MEASURED]]
    for stage in stages:
        last = stage.metrics[-1] if stage.metrics else {}
        dtype = stage.config.get("resolved", {}).get("dtype", "-")
        measured = [f"{last[key]:,}" if key in last else "-" for key in MEASURED.values()]
        chosen = [stage.config.get(name, "-") for name in OPTIONS]
        columns.append([stage.title, *chosen, dtype, *measured])
    return _table(zip(*columns, strict=True)) + (
        "\n\nLoss and bits per byte are those of held-out documents; in fine-tuning, of the"
        " assistant's replies alone."
    )


def _curve(stage: Stage) -> str:
    rows = [row for row in stage.metrics if "loss" in row]  # an evaluation may have its own line
    if not rows:
        return ""
    places = {round(i * (len(rows) - 1) / (CURVE_ROWS - 1)) for i in range(CURVE_ROWS)}
    shown = [rows[i] for i in sorted(places)]
    cells = [(row["step"], f"{row['tokens']:,}", f"{row['loss']:.3f}") for row in shown]
    head = f"**{stage.title}**, training loss in nats per token:\n\n"
    return head + _table([("step", "tokens", "loss"), *cells])


def _exam(folder: Path) -> tuple[str, str]:
    """The exam of these weights, and what it says of their limits."""
    try:
        exam = exam_of(folder)
    except (FileNotFoundError, ValueError) as error:
        why = f": {error}" if isinstance(error, ValueError) else "."
        return f"This checkpoint has not sat an exam{why}", "* It was not tested beyond its loss."
    scores = [(f"`{s.class_name}`", *s.cells) for s in exam.classes]
    text = (
        f"Questions of `{exam.exam}`, one right answer each, answered greedily by the {exam.kind}"
        f" model:\n\n{_table([('class', 'right', 'share', '95% interval'), *scores])}"
    )
    first = {a.class_name: a for a in reversed(exam.wrong)}
    wrong = [first[s.class_name] for s in exam.classes if s.class_name in first]
    if wrong:
        cells = [[_cell(x) for x in (a.question, a.expected, a.got)] for a in wrong]
        text += "\n\nA wrong answer of each class that has one:\n\n"
        text += _table([("question", "expected", "got"), *cells])
    worst = min(exam.classes, key=lambda s: s.share)
    return text, (
        "* It was tested with the exam above and with nothing else.\n"
        f"* Its weakest class in the exam is `{worst.class_name}`: {worst.share:.0%} right."
    )
