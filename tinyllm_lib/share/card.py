"""A run -> a model card: `card.md`, filled in with what the run left."""

from pathlib import Path

from tinyllm_lib.data import SYSTEM_PROMPT, differences
from tinyllm_lib.dataset import read_manifest, shards_fingerprint
from tinyllm_lib.evaluate import exam_of
from tinyllm_lib.launch import read_metrics
from tinyllm_lib.model import Transformer, model_folder, step_folders, step_of, weights_fingerprint
from tinyllm_lib.tokenizer import load_tokenizer
from tinyllm_lib.train import run_config

OPTIONS: tuple[str, ...] = ("optimizer", "learning_rate", "warmup_steps", "weight_decay")
OPTIONS += ("batch_size", "max_seq_len", "packing", "separate_documents", "seed", "dtype")
MEASURED = ("step", "tokens", "loss", "val_loss", "val_bits_per_byte")


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
    model, stages = Transformer.from_pretrained(folder), read_stages(folder)
    told = [_told(*stage) for stage in stages]
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return template.format(
        license=f"\nlicense: {license}" if license else "",
        name=repo_id or (stages[-1][0] if stages else folder).name,
        system=SYSTEM_PROMPT,
        config=model.config,
        parameters=model.num_parameters(),
        vocabulary=len(load_tokenizer(folder)),
        fingerprint=weights_fingerprint(folder),
        training="\n\n".join(told) or "Not recorded: a model without the run that made it.",
        exam=_exam(folder),
        limits="" if license else " No licence was chosen for the weights.",
    )


def read_stages(folder: Path) -> list[tuple[Path, dict, list[dict]]]:
    """(run, config, metrics) of the runs that made a checkpoint, first pretraining, then what
    started from it; a base that is gone, or was trained anew since, is left out.
    """
    folder = folder.resolve()
    run = folder.parent.parent
    if folder not in step_folders(run) or not (run / "config.json").is_file():
        return []
    config = run_config(run)
    rows = read_metrics(run) if (run / "metrics.jsonl").is_file() else []
    stage = (run, config, [row for row in rows if row["step"] <= step_of(folder)])
    start = Path(config.get("init_from") or "-")
    made = config.get("made_from", {}).get("init_from")
    for step in reversed(step_folders(start) or [start]):
        if (step / "config.json").is_file() and weights_fingerprint(step) == made:
            return [*read_stages(step), stage]
    return [stage]


def _told(run: Path, config: dict, metrics: list[dict]) -> str:
    try:
        m = read_manifest(Path(config.get("data_path") or "-") / "train")
        changed = "".join(differences(config.get("made_from"), {"shards": shards_fingerprint(m)}))
        data = (
            f"{m['documents']:,} documents, {m['tokens']:,} tokens, of which"
            f" {m['supervised_tokens']:,} are learned ({m['kind']}), from {m['source'] or '-'}"
        )
    except FileNotFoundError:
        changed = "they are no longer where they were"
    if changed:  # other shards may lie in their place now
        data = f"not recorded, for its token shards changed: {changed}"
    chosen = config | config.get("resolved", {})
    last = metrics[-1] if metrics else {}
    options = ", ".join(f"{name} {chosen.get(name, '-')}" for name in OPTIONS)
    measured = ", ".join(f"{name} {last[name]:,}" for name in MEASURED if name in last)
    return f"**{run.name}**\n\n* Data: {data}.\n* Options: {options}.\n* Measured: {measured}."


def _exam(folder: Path) -> str:
    """The exam of these weights, with a wrong answer of each class that has one."""
    try:
        exam = exam_of(folder)
    except (FileNotFoundError, ValueError) as error:
        return "Not taken." if isinstance(error, FileNotFoundError) else f"Not taken: {error}"
    first = {a.class_name: a for a in reversed(exam.wrong)}
    wrong = [f"{a.question} {a.got!r}, expected {a.expected!r}" for a in reversed(first.values())]
    return "\n".join(["```", str(exam), *wrong, "```"])
