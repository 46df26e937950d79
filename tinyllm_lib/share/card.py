"""A run -> a model card, and both on a hub.

Everything in the card is read from what the run left: configs, token manifests, metrics, exam. What
is not there is said to be missing; nothing is filled in. Paths of this machine stay out.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllm_lib.data import BELLE, SEQ_MONKEY, SYSTEM_PROMPT, differences, read_json
from tinyllm_lib.dataset import read_manifest, shards_fingerprint
from tinyllm_lib.evaluate import CLASS_MEANING, ExamResult, exam_of
from tinyllm_lib.launch import read_metrics
from tinyllm_lib.model import (
    INDEX,
    STEP_FOLDER,
    ModelConfig,
    Transformer,
    model_folder,
    step_folders,
    step_of,
    weight_files,
    weights_fingerprint,
)
from tinyllm_lib.share.gguf_file import other_weights
from tinyllm_lib.tokenizer import load_tokenizer
from tinyllm_lib.train import run_config

FILES = (
    "config.json",
    "model.safetensors",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
CURVE_ROWS = 8
OPTIONS = ("optimizer", "learning_rate", "warmup_steps", "weight_decay", "batch_size", "max_seq_len", "packing", "separate_documents",
           "seed")  # fmt: skip
CARD = """\
---
{metadata}
---

# {name}

A small Chinese language model of {parameters:,} parameters, trained from nothing with the course tinyllm. It is a Llama in
architecture, and was written to learn from, not to rely on.

## Use

```python
from transformers import pipeline

chat = pipeline("text-generation", "{repo_id}")
messages = [{{"role": "system", "content": "{system}"}}, {{"role": "user", "content": "你好呀"}}]
print(chat(messages, max_new_tokens=64, return_full_text=False)[0]["generated_text"])
```

Messages are written as ChatML, `<|im_start|>role`, a line end, the text, `<|im_end|>`, a line end; the chat template does it. Keep
the system message: dialogues in training began with it. A reply ends with `<|im_end|>`.

## Model

{model}

## Data

{data}

## Training

{training}

## Curve

{curve}

## Exam

{exam}

## Limits

{limits}

This card was written by `tinyllm_lib.model_card` from the files of the run. No number in it was typed by hand.
"""


@dataclass(frozen=True)
class Stage:
    """One training run on the way to the weights: its config, its metrics up to the checkpoint, its
    token manifest if it is there.
    """

    run: Path
    config: dict
    metrics: list[dict]
    manifest: dict | None
    note: str  # why there is no manifest

    @property
    def title(self) -> str:
        kind = self.manifest["kind"] if self.manifest else None
        return {"pretrain": "Pretraining", "sft": "Fine-tuning on dialogues"}.get(
            kind, f"Run {self.run.name}"
        )


def model_card(folder: str | Path, repo_id: str = "", *, license: str | None = None) -> str:
    """The README.md of a published model, in Markdown with the hub's metadata at its head.

    Args:
        folder: a run (its newest checkpoint) or a checkpoint folder.
        repo_id: owner/name on the hub, as it stands in the example; default: the run's name.
        license: of the weights, as the hub spells it, e.g. "apache-2.0"; only you can choose one,
            so without it none is named.

    Raises:
        FileNotFoundError: no checkpoint there.
    """
    folder = model_folder(folder)
    config = ModelConfig.from_hf(read_json(folder / "config.json"), str(folder))
    stages = read_stages(folder)
    exam, no_exam = read_exam(folder)
    metadata = {
        "language": "zh",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": "[tinyllm, llama]",
    }
    metadata |= {"license": license} if license else {}
    name = repo_id or (run_of(folder).name if run_of(folder) else folder.name)
    head = "\n".join(f"{key}: {value}" for key, value in metadata.items())
    return CARD.format(
        system=SYSTEM_PROMPT, metadata=head, name=name.split("/")[-1], repo_id=name,
        parameters=count_parameters(config), model=_model(config, folder), data=_data(stages), training=_training(stages),
        curve=_curve(stages), exam=_exam(exam) if exam else no_exam, limits=_limits(config, exam, license),
    )  # fmt: skip


def run_of(folder: Path) -> Path | None:
    """The run folder that a checkpoint lies in, or None for a folder that stands alone."""
    folder = folder.resolve()
    inside = STEP_FOLDER.search(folder.name) and folder.parent.name == "checkpoints"
    return (
        folder.parent.parent
        if inside and (folder.parent.parent / "config.json").is_file()
        else None
    )


def read_stages(folder: Path) -> list[Stage]:
    """The runs that made a checkpoint, the first one first: pretraining, then what started from it."""
    stages: list[Stage] = []
    while run := run_of(folder):
        config = run_config(run)
        rows = read_metrics(run) if (run / "metrics.jsonl").is_file() else []
        metrics = [row for row in rows if row["step"] <= step_of(folder)]
        stages.insert(0, Stage(run, config, metrics, *_manifest(config)))
        start = Path(config["init_from"]) if config.get("init_from") else None
        if (
            start is None
            or not start.is_dir()
            or any(stage.run == start.resolve() for stage in stages)
        ):
            break
        made = config.get("made_from", {}).get("init_from")
        held = [
            step
            for step in step_folders(start) or [start]
            if made in (None, weights_fingerprint(step))
        ]
        if not held:  # another base lies there now
            break
        folder = model_folder(held[-1])
    return stages


def _manifest(config: dict) -> tuple[dict | None, str]:
    """The manifest of the shards that a run was trained on; not of others that lie in their place
    now.
    """
    try:
        manifest = read_manifest(Path(config.get("data_path") or "-") / "train")
    except FileNotFoundError:
        return None, "its token shards are no longer where they were"
    changed = differences(config.get("made_from"), {"shards": shards_fingerprint(manifest)})
    return (
        (None, f"its token shards are not those that lie there now: {', '.join(changed)}")
        if changed
        else (manifest, "")
    )


def read_exam(folder: Path) -> tuple[ExamResult | None, str]:
    """The exam of these weights; else None, and why."""
    try:
        return exam_of(folder), ""
    except FileNotFoundError:
        return None, "This checkpoint has not sat an exam."
    except ValueError as error:
        return None, f"This checkpoint has not sat an exam: {error}"


def count_parameters(config: ModelConfig) -> int:
    """Learned numbers, counted without allocating them."""
    import torch

    with torch.device("meta"):
        return Transformer(config).num_parameters()


# ---- the sections


def _table(rows: Sequence[Sequence[object]]) -> str:
    head, *body = [[str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def _model(c: ModelConfig, folder: Path) -> str:
    t = load_tokenizer(folder)
    ends = ", ".join(
        f"`{x}` ({t.convert_tokens_to_ids(x)})" if x else "none"
        for x in (t.bos_token, t.eos_token, t.pad_token)
    )
    tied = "tied" if c.tie_embeddings else "separate"
    return _table([
        ("what", "value"), ("parameters", f"{count_parameters(c):,}"), ("width, layers", f"{c.dim}, {c.n_layers}"),
        ("heads, key/value heads", f"{c.n_heads}, {c.n_kv_heads}"), ("SwiGLU width", c.hidden_dim), ("context", f"{c.max_seq_len} tokens"),
        ("vocabulary", f"{len(t):,} tokens, byte-level BPE"), ("first, last and padding token (id)", _cell(ends)),
        ("embedding and head", tied),
        ("RoPE base, RMSNorm eps", f"{c.rope_base:g}, {c.norm_eps:g}"), ("weights", "float32"), ("checkpoint", folder.name),
        ("fingerprint of the weights", f"`{weights_fingerprint(folder)}`"),
    ])  # fmt: skip


def _data(stages: list[Stage]) -> str:
    if not stages:
        return "Not recorded: this folder is a model without the run that made it."
    parts = []
    for stage in stages:
        if not stage.manifest:
            parts.append(f"**{stage.title}.** Not recorded: {stage.note}.")
            continue
        m = stage.manifest
        parts.append(
            f"**{stage.title}.** {m['documents']:,} documents, {m['tokens']:,} tokens, of which"
            f" {m['supervised_tokens']:,} are learned. Made from: {m['source'] or 'not named'}."
        )
        for corpus in (SEQ_MONKEY, BELLE):
            if corpus.name in m["source"]:
                parts.append(
                    f"`{corpus.name}` is the dataset {corpus.dataset} on {corpus.hub}; its terms of"
                    " use are told there."
                )
    return "\n\n".join(parts)


def _training(stages: list[Stage]) -> str:
    if not stages:
        return "Not recorded."
    rows = [("", *(stage.title for stage in stages))]
    rows += [
        (name.replace("_", " "), *(stage.config.get(name, "-") for stage in stages))
        for name in OPTIONS
    ]
    last = [stage.metrics[-1] if stage.metrics else {} for stage in stages]
    rows.append(
        ("number format", *(stage.config.get("resolved", {}).get("dtype", "-") for stage in stages))
    )
    measured = {
        "steps": "step",
        "tokens seen": "tokens",
        "validation loss, nats": "val_loss",
        "bits per byte": "val_bits_per_byte",
    }
    for title, key in measured.items():
        rows.append((title, *(f"{row[key]:,}" if key in row else "-" for row in last)))
    return (
        _table(rows)
        + "\n\nLoss and bits per byte are those of held-out documents; in fine-tuning, of the"
        " assistant's replies alone."
    )


def _curve(stages: list[Stage]) -> str:
    parts = []
    for stage in stages:
        if rows := [
            row for row in stage.metrics if "loss" in row
        ]:  # an evaluation may have a line of its own
            chosen = sorted(
                {round(i * (len(rows) - 1) / (CURVE_ROWS - 1)) for i in range(CURVE_ROWS)}
            )
            parts.append(f"**{stage.title}**, training loss in nats per token:\n\n" + _table([
                ("step", "tokens", "loss"), *((rows[i]["step"], f"{rows[i]['tokens']:,}", f"{rows[i]['loss']:.3f}") for i in chosen)
            ]))  # fmt: skip
    return "\n\n".join(parts) or "Not recorded."


def _exam(exam: ExamResult) -> str:
    rows = [("class", "right", "share", "95% interval", "what it shows")]
    rows += [(f"`{s.class_name}`", f"{s.right}/{s.total}", f"{s.share:.0%}", f"{s.low:.0%} to {s.high:.0%}",
              CLASS_MEANING.get(s.class_name, "")) for s in exam.classes]  # fmt: skip
    text = (
        f"Questions of `{exam.exam}`, one right answer each, answered greedily by the {exam.kind}"
        " model:\n\n" + _table(rows)
    )
    seen = dict.fromkeys(a.class_name for a in exam.wrong)
    wrong = [next(a for a in exam.wrong if a.class_name == name) for name in seen]
    if wrong:
        text += "\n\nA wrong answer of each class that has one:\n\n" + _table([
            ("question", "expected", "got"), *(tuple(_cell(x) for x in (a.question, a.expected, a.got)) for a in wrong)
        ])  # fmt: skip
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ⏎ ")[:120]


def _limits(config: ModelConfig, exam: ExamResult | None, license: str | None) -> str:
    points = [
        f"It reads {config.max_seq_len} tokens at the most; what is longer must be cut.",
        (
            "It states falsehoods as fluently as truths. Nothing in its training makes it careful,"
            " safe or impartial."
        ),
        (
            "It was tested with the exam above and with nothing else."
            if exam
            else "It was not tested beyond its loss."
        ),
    ]
    if exam:
        worst = min(exam.classes, key=lambda s: s.share)
        points.append(
            f"Its weakest class in the exam is `{worst.class_name}`: {worst.share:.0%} right."
        )
    if not license:
        points.append("No licence was chosen for the weights.")
    return "\n".join(f"* {point}" for point in points)


# ---- on a hub


class PublishError(OSError):
    """The model could not be published; the message says why and what to do."""


def publish(folder: str | Path, repo_id: str, hub: str = "huggingface", *, private: bool = True, license: str | None = None,
            extra_files: Sequence[str | Path] = ()) -> str:  # fmt: skip
    """Uploads a checkpoint with its model card; the trainer's own state stays here. Returns the
    model's address.

    The key is the one you logged in with (`hf auth login`, `modelscope login`) or HF_TOKEN /
    MODELSCOPE_API_TOKEN. HF_ENDPOINT and MODELSCOPE_ENDPOINT name a mirror.

    Args:
        repo_id: owner/name; it is made if it does not exist.
        hub: "huggingface" or "modelscope".
        private: nobody else sees a new repository until you say so on its page; False makes it
            public at once.
        extra_files: more files to put beside, for example a GGUF and its Modelfile.

    Raises:
        ValueError: an unknown hub, a repo_id that is not owner/name, a GGUF file of other weights.
        FileNotFoundError: no checkpoint, or no such extra file.
        PublishError: no library, no key, no network, or the hub said no.
    """
    uploaders = {"huggingface": _to_huggingface, "modelscope": _to_modelscope}
    if hub not in uploaders:
        raise ValueError(f"hub is {hub!r}, expected one of {', '.join(uploaders)}.")
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ValueError(
            f"repo_id is {repo_id!r}, expected owner/name, for example your-name/tinyllm-chat."
        )
    folder = model_folder(folder)
    if missing := [str(path) for path in extra_files if not Path(path).is_file()]:
        raise FileNotFoundError(f"no such file: {', '.join(missing)}.")
    for path in extra_files:
        if Path(path).suffix == ".gguf" and (reason := other_weights(path, folder)):
            raise ValueError(reason)
    card = model_card(folder, repo_id, license=license)
    with tempfile.TemporaryDirectory(prefix="tinyllm-publish-") as staged:
        names = dict.fromkeys((*FILES, INDEX, *weight_files(folder)))
        for path in (
            *(folder / name for name in names if (folder / name).is_file()),
            *map(Path, extra_files),
        ):
            shutil.copyfile(path, Path(staged) / path.name)
        (Path(staged) / "README.md").write_text(card, encoding="utf-8")
        try:
            return uploaders[hub](staged, repo_id, private, license)
        except ImportError as error:
            raise PublishError(
                f"Publishing on {hub} needs its library ({error}): make setup EXTRAS=hub."
            ) from error
        except (
            Exception
        ) as error:  # each library has kinds of its own for no key, no network, no right
            login = {"huggingface": "hf auth login", "modelscope": "modelscope login"}[hub]
            said = " ".join(str(error).split()).rstrip(".")  # in one line
            raise PublishError(
                f"{repo_id} could not be published on {hub}: {said}. Are you logged in ({login}),"
                f" with a key that may write to {repo_id.split('/')[0]}? Is there a network?"
            ) from error


def _to_huggingface(
    staged: str, repo_id: str, private: bool, license: str | None
) -> str:  # its licence stands in the card
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(
        folder_path=staged, repo_id=repo_id, commit_message="Model with its card, from tinyllm"
    )
    return str(url)


def _to_modelscope(staged: str, repo_id: str, private: bool, license: str | None) -> str:
    from modelscope.hub.api import HubApi

    api = HubApi(endpoint=os.environ.get("MODELSCOPE_ENDPOINT") or None)
    # Its library writes Apache-2.0 where none is given, and nobody but the owner can choose that.
    api.create_repo(
        repo_id,
        visibility="private" if private else "public",
        license=license or "Other",
        exist_ok=True,
    )
    api.upload_folder(
        repo_id=repo_id,
        folder_path=staged,
        commit_message="Model with its card, from tinyllm",
        use_cache=False,
    )
    return f"{api.endpoint}/models/{repo_id}"
