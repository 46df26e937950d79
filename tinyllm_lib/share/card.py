"""A run -> a model card.

Everything in it is read from what the run left: configs, token manifests, metrics, exam. What is
not there is said to be missing; nothing is filled in. Paths of this machine stay out.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from tinyllm_lib.data import BELLE, SEQ_MONKEY, SYSTEM_PROMPT, read_json
from tinyllm_lib.evaluate import exam_of
from tinyllm_lib.model import ModelConfig, Transformer, model_folder, weights_fingerprint
from tinyllm_lib.share.stages import Stage, read_stages, run_of
from tinyllm_lib.tokenizer import load_tokenizer

CURVE_ROWS = 8
OPTIONS = (
    "optimizer",
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "batch_size",
    "max_seq_len",
    "packing",
    "separate_documents",
    "seed",
)
MEASURED = {
    "steps": "step",
    "tokens seen": "tokens",
    "validation loss, nats": "val_loss",
    "bits per byte": "val_bits_per_byte",
}
CARD = """\
---
language: zh
library_name: transformers
pipeline_tag: text-generation
tags: [tinyllm, llama]{license}
---

# {title}

A small Chinese language model of {parameters:,} parameters, trained from nothing with the course \
tinyllm. It is a Llama in
architecture, and was written to learn from, not to rely on.

## Use

```python
from transformers import pipeline

chat = pipeline("text-generation", "{name}")
messages = [{{"role": "system", "content": "{system}"}}, {{"role": "user", "content": "你好呀"}}]
print(chat(messages, max_new_tokens=64, return_full_text=False)[0]["generated_text"])
```

Messages are written as ChatML, `<|im_start|>role`, a line end, the text, `<|im_end|>`, a line \
end; the chat template does it. Keep
the system message: dialogues in training began with it. A reply ends with `<|im_end|>`.

## Model

| what | value |
| --- | --- |
| parameters | {parameters:,} |
| width, layers | {c.dim}, {c.n_layers} |
| heads, key/value heads | {c.n_heads}, {c.n_kv_heads} |
| SwiGLU width | {c.hidden_dim} |
| context | {c.max_seq_len} tokens |
| vocabulary | {vocabulary:,} tokens, byte-level BPE |
| first, last and padding token (id) | {ends} |
| embedding and head | {tied} |
| RoPE base, RMSNorm eps | {c.rope_base:g}, {c.norm_eps:g} |
| weights | float32 |
| checkpoint | {checkpoint} |
| fingerprint of the weights | `{fingerprint}` |

## Data

{data}

## Training

{training}

## Curve

{curve}

## Exam

{exam}

## Limits

* It reads {c.max_seq_len} tokens at the most; what is longer must be cut.
* It states falsehoods as fluently as truths. Nothing in its training makes it careful, safe or \
impartial.
{limits}

This card was written by `tinyllm_lib.model_card` from the files of the run. No number in it was \
typed by hand.
"""


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
    with torch.device("meta"):  # counted without allocating them
        parameters = Transformer(config).num_parameters()
    tokenizer, stages = load_tokenizer(folder), read_stages(folder)
    ends = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    ids = (f"`{x}` ({tokenizer.convert_tokens_to_ids(x)})" if x else "none" for x in ends)
    name = repo_id or (run_of(folder) or folder).name
    exam, limits = _exam(folder)
    return CARD.format(
        license=f"\nlicense: {license}" if license else "",
        title=name.split("/")[-1],
        name=name,
        system=SYSTEM_PROMPT,
        c=config,
        parameters=parameters,
        vocabulary=len(tokenizer),
        ends=_cell(", ".join(ids)),
        tied="tied" if config.tie_embeddings else "separate",
        checkpoint=folder.name,
        fingerprint=weights_fingerprint(folder),
        data="\n\n".join(map(_data, stages))
        or "Not recorded: this folder is a model without the run that made it.",
        training=_training(stages),
        curve="\n\n".join(filter(None, map(_curve, stages))) or "Not recorded.",
        exam=exam,
        limits="\n".join(
            limits if license else [*limits, "* No licence was chosen for the weights."]
        ),
    )


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
            text += (
                f"\n\n`{corpus.name}` is the dataset {corpus.dataset} on {corpus.hub}; its terms of"
                " use are told there."
            )
    return text


def _training(stages: list[Stage]) -> str:
    if not stages:
        return "Not recorded."
    columns = []
    for stage in stages:
        last = stage.metrics[-1] if stage.metrics else {}
        format_ = stage.config.get("resolved", {}).get("dtype", "-")
        measured = (f"{last[key]:,}" if key in last else "-" for key in MEASURED.values())
        columns.append(
            [stage.title, *(stage.config.get(n, "-") for n in OPTIONS), format_, *measured]
        )
    names = ["", *(name.replace("_", " ") for name in OPTIONS), "number format", *MEASURED]
    return _table(zip(names, *columns, strict=True)) + (
        "\n\nLoss and bits per byte are those of held-out documents; in fine-tuning, of the"
        " assistant's replies alone."
    )


def _curve(stage: Stage) -> str:
    rows = [row for row in stage.metrics if "loss" in row]  # an evaluation may have its own line
    places = sorted({round(i * (len(rows) - 1) / (CURVE_ROWS - 1)) for i in range(CURVE_ROWS)})
    cells = [
        (rows[i]["step"], f"{rows[i]['tokens']:,}", f"{rows[i]['loss']:.3f}")
        for i in places
        if rows
    ]
    head = f"**{stage.title}**, training loss in nats per token:\n\n"
    return head + _table([("step", "tokens", "loss"), *cells]) if rows else ""


def _exam(folder: Path) -> tuple[str, list[str]]:
    """The exam of these weights, and what it says of their limits."""
    try:
        exam = exam_of(folder)
    except (FileNotFoundError, ValueError) as error:
        why = f": {error}" if isinstance(error, ValueError) else "."
        return f"This checkpoint has not sat an exam{why}", ["* It was not tested beyond its loss."]
    rows = [("class", "right", "share", "95% interval")]
    text = (
        f"Questions of `{exam.exam}`, one right answer each, answered greedily by the {exam.kind}"
        " model:\n\n"
    ) + _table([*rows, *((f"`{s.class_name}`", *s.cells) for s in exam.classes)])
    if wrong := {a.class_name: a for a in reversed(exam.wrong)}:
        first = [wrong[s.class_name] for s in exam.classes if s.class_name in wrong]
        cells = [[_cell(x) for x in (a.question, a.expected, a.got)] for a in first]
        text += "\n\nA wrong answer of each class that has one:\n\n"
        text += _table([("question", "expected", "got"), *cells])
    worst = min(exam.classes, key=lambda s: s.share)
    return text, [
        "* It was tested with the exam above and with nothing else.",
        f"* Its weakest class in the exam is `{worst.class_name}`: {worst.share:.0%} right.",
    ]
