"""The pictures of the README and of `figures/`: python -m tinyllm_lib.course.figures [--out
figures]

`make figures` calls this. Everything is drawn from the library's own data at a small size, made in
a temporary folder, so that a changed file means a changed library. Two pictures show results that
took a training run; they are drawn where the numbers have been saved:

    figures/data/exam.json      {"base": {"greeting": [3, 40], ...}, "chat": {...}}      [right, total]
    figures/data/metrics.json   {"runs": {"pretrain": [a row of metrics.jsonl, ...]},
                                 "marks": {"100": "sample A"}}                           step: text
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyllm_lib.course import plots
from tinyllm_lib.course.plots import drawing
from tinyllm_lib.course.plots.drawing import BLUE, FILLS, GREY, INK, box, label
from tinyllm_lib.course.profiles import Profile, get_profile
from tinyllm_lib.data import utf8_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerFast

SENTENCE = "法国的首都是巴黎。"  # The capital of France is Paris.
DIALOGUE = [
    {"role": "system", "content": "你是一个AI助手"},
    {"role": "user", "content": "法国的首都是哪里？"},
    {"role": "assistant", "content": "是巴黎。"},
    {"role": "user", "content": "那日本呢？"},
    {"role": "assistant", "content": "是东京。"},
]


def draw_all(data: Path) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of every picture; `data` is the folder with saved results."""
    from tinyllm_lib.course.world import write_sample_corpus
    from tinyllm_lib.data import read_texts
    from tinyllm_lib.tokenizer import train_tokenizer

    profile = get_profile("laptop")
    with tempfile.TemporaryDirectory(prefix="tinyllm-figures-") as temporary:
        raw = Path(temporary, "raw")
        write_sample_corpus(raw, documents=6000, dialogues=100)
        texts = list(read_texts(raw / "pretrain.jsonl"))
        tokenizer = train_tokenizer(
            texts, Path(temporary, "tokenizer"), vocab_size=profile.vocab_size
        )
        yield "pipeline", pipeline(*_tokens(tokenizer, SENTENCE))
        tokens, ids = _tokens(tokenizer, "我爱喝豆汁 😀")
        yield "tokens", plots.token_strip(tokens, ids, show_bytes=True)
        yield "masks", masks(tokenizer)
        yield "packing", packing(texts[:12], tokenizer, Path(temporary, "tokens"))
    yield "learning_rate", learning_rate(get_profile("laptop"))
    yield "parameters", parameters()
    for name, draw in (("exam", exam), ("loss", loss)):
        saved = data / {"exam": "exam.json", "loss": "metrics.json"}[name]
        if saved.is_file():
            yield name, draw(json.loads(saved.read_text(encoding="utf-8")))


def _tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[bytes], list[int]]:
    from tinyllm_lib.tokenizer import encode_text, token_bytes

    ids = encode_text(tokenizer, text)
    return [token_bytes(tokenizer, token_id) for token_id in ids], ids


def masks(tokenizer: PreTrainedTokenizerFast) -> Figure:
    """X, Y and loss mask of one dialogue with two turns."""
    from tinyllm_lib.dataset import SFTDataset
    from tinyllm_lib.tokenizer import PAD_ID, token_bytes

    x, y, loss_mask = SFTDataset([DIALOGUE], tokenizer, max_length=64)[0]
    names = [
        [
            "padding" if token_id == PAD_ID else token_bytes(tokenizer, token_id)
            for token_id in row.tolist()
        ]
        for row in (x, y)
    ]
    starts = (x == tokenizer.convert_tokens_to_ids("<|im_start|>")).nonzero().flatten().tolist()
    title = "One dialogue, a message a row: only the replies are learned"
    return plots.mask_ladder(*names, loss_mask.tolist(), breaks=starts, title=title)


def packing(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, folder: Path, context: int = 128
) -> Figure:
    """The same documents as padded rows and as packed rows, each document with one number in both."""
    from tinyllm_lib.dataset import PackedDataset, write_pretrain_tokens

    write_pretrain_tokens(texts, tokenizer, folder)
    packed = PackedDataset(folder, context)
    sizes = [int(size) for _, _, offsets in packed.shards for size in np.diff(offsets)]  # in tokens
    ends = np.cumsum(sizes)
    rows = np.full((len(packed), context), -1)
    for row, pieces in zip(rows, packed.rows, strict=True):
        at = 0
        for _, start, length in pieces:
            row[at : at + length] = np.searchsorted(ends, start, side="right")
            at += length
    padded = np.full((len(ends), context), -1)
    for number, size in enumerate(sizes):
        padded[number, : size - 1] = (
            number  # n tokens give n-1 positions: each but the last predicts the next
        )
    lost = [max(0, size - 1 - context) for size in sizes]
    return plots.batch_blocks({"padded": padded, "packed": rows}, lost={"padded": lost})


def learning_rate(profile: Profile) -> Figure:
    """The schedule of a pretraining run."""
    from tinyllm_lib.train import TrainConfig, get_lr

    config = TrainConfig(**profile.pretrain)
    steps = range(config.steps)
    marks = {config.warmup_steps: f"warm-up ends at step {config.warmup_steps}"}
    title = f"Learning rate of the {profile.name} profile"
    return plots.learning_rate_curve(
        steps, [get_lr(step, config) for step in steps], marks=marks, title=title
    )


def parameters() -> Figure:
    """Where the parameters and the training FLOPs of the 215M model lie."""
    import torch

    from tinyllm_lib.model import ModelConfig, Transformer

    config = ModelConfig(**{name: get_profile("full").pretrain[name] for name in
                            ("dim", "n_layers", "n_heads", "n_kv_heads")}, vocab_size=6144)  # fmt: skip
    with torch.device("meta"):
        model = Transformer(config)
    kinds = {
        "embed_tokens": "embedding = head",
        "self_attn": "attention weights",
        "mlp": "feed-forward",
        "norm": "norms",
    }
    held = dict.fromkeys(kinds.values(), 0) | {"attention scores": 0}
    flops = dict(held)
    for name, weight in model.named_parameters():
        kind = next(text for part, text in kinds.items() if part in name)
        held[kind] += weight.numel()
        flops[kind] += 6 * weight.numel() if weight.dim() == 2 else 0
    flops["attention scores"] = model.flops_per_token() - sum(flops.values())
    return plots.parts_bar({"parameters": held, "training FLOPs per token": flops})


def exam(runs: Mapping[str, Mapping[str, Sequence[int]]]) -> Figure:
    """The saved exam of each run."""
    scores = {
        run: {name: tuple(score) for name, score in classes.items()}
        for run, classes in runs.items()
    }
    return plots.exam_bars(scores, title="The exam: the line is the 95% interval")


def loss(saved: Mapping[str, Mapping]) -> Figure:
    """Validation loss of the saved runs in bits per byte."""
    marks = {int(step): text for step, text in saved.get("marks", {}).items()}
    title = "法国的首都是… (the capital of France is …)" if marks else None
    return plots.loss_curve(saved["runs"], y="val_bits_per_byte", marks=marks, title=title)


# ---------------------------------------------------------------- the overview


@drawing.picture
def pipeline(tokens: Sequence[bytes], ids: Sequence[int]) -> Figure:
    """From text to chat: five stations with what flows between them, the notebooks below."""
    alt = (
        "Five stations from left to right: text, tokens with their ids, token shards on disk, the"
        " model, and a chat: asked 法国的首都是哪里？ (what is the capital of France?), it says"
        " 是巴黎。 (Paris)."
    )
    stations: list[tuple[str, str, Callable[[Axes, float, float], None]]] = [
        ("text", "01_data", _draw_text),
        (
            "tokens",
            "02_tokenizer",
            lambda axes, x, width: _draw_tokens(axes, x, width, tokens, ids),
        ),
        ("shards", "03_dataset_masks", lambda axes, x, width: _draw_shards(axes, x, width, ids)),
        ("model", "04_model  05_pretrain  06_sft", _draw_model),
        ("chat", "07_sampling  08_share", _draw_chat),
    ]
    width, gap = 1.75, 0.4
    figure, axes = drawing.blank_axes(len(stations) * (width + gap) - gap + 0.3, 2.75, alt)
    for place, (name, notebooks, draw) in enumerate(stations):
        x = 0.15 + place * (width + gap)
        label(axes, x + width / 2, 0.25, name, size=14)
        draw(axes, x, width)
        label(axes, x + width / 2, 2.55, notebooks, size=9, color=GREY)
        if place:
            arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (x - 0.06, 1.35), (x - gap + 0.06, 1.35), arrowprops=arrow)
    return figure


def _draw_text(axes: Axes, x: float, width: float) -> None:
    box(axes, x, 0.55, width, 1.65, edge=INK)
    for row, line in enumerate((SENTENCE, "水的化学式是H₂O。", "三加四等于七。", "小猫在院子里…")):
        label(axes, x + 0.14, 0.83 + 0.36 * row, line, size=11, ha="left")


def _draw_tokens(
    axes: Axes, x: float, width: float, tokens: Sequence[bytes], ids: Sequence[int]
) -> None:
    names = [plots.visible(token) for token in tokens]
    widths = [
        max(drawing.text_width(name, 12), drawing.text_width(str(i), 8.5)) + 0.12
        for name, i in zip(names, ids, strict=True)
    ]
    rows = drawing.wrap(widths, width)
    for number, row in enumerate(rows):
        left = x + (width - sum(widths[index] for index in row)) / 2
        y = 1.38 - 0.32 * len(rows) + 0.64 * number
        for index in row:
            box(
                axes,
                left,
                y,
                widths[index],
                0.52,
                fill=FILLS[0][0] if index % 2 else "white",
                edge=INK,
            )
            label(axes, left + widths[index] / 2, y + 0.19, names[index], size=12)
            label(axes, left + widths[index] / 2, y + 0.41, str(ids[index]), size=8.5, color=BLUE)
            left += widths[index]


def _draw_shards(axes: Axes, x: float, width: float, ids: Sequence[int]) -> None:
    cell = width / 4
    numbers = [*ids, 2] * 4
    for shard in range(2):
        y = 0.55 + 0.88 * shard
        label(axes, x, y + 0.1, f"shard_{shard:05d}.bin", size=9, color=GREY, ha="left")
        for place, number in enumerate(islice(numbers, 8 * shard, 8 * shard + 8)):
            left, top = x + cell * (place % 4), y + 0.22 + 0.27 * (place // 4)
            box(axes, left, top, cell, 0.27, fill=FILLS[2][0], edge=INK)
            label(axes, left + cell / 2, top + 0.135, str(number), size=8.5)


def _draw_model(axes: Axes, x: float, width: float) -> None:
    box(axes, x + 0.05, 0.93, width - 0.1, 0.9, fill="#f6f6f6", edge=INK)
    parts = (
        ("head", 0.55, FILLS[0]),
        ("feed-forward", 1.0, FILLS[1]),
        ("attention", 1.4, FILLS[3]),
        ("embedding", 1.91, FILLS[0]),
    )
    for name, y, (fill, _) in parts:
        inside = name in ("feed-forward", "attention")
        box(
            axes,
            x + (0.15 if inside else 0.05),
            y,
            width - (0.6 if inside else 0.1),
            0.3,
            fill=fill,
            edge=INK,
        )
        label(axes, x + (width - 0.3 if inside else width) / 2, y + 0.15, name, size=10)
    label(axes, x + width - 0.24, 1.38, "× N", size=11)


def _draw_chat(axes: Axes, x: float, width: float) -> None:
    for text, left, right, y, fill in (
        ("法国的首都是哪里？", 0.0, 0.1, 0.75, "white"),
        ("是巴黎。", 0.75, 0.0, 1.2, FILLS[1][0]),
        ("那日本呢？", 0.0, 0.7, 1.65, "white"),
    ):
        box(axes, x + left, y, width - left - right, 0.34, fill=fill, edge=INK)
        label(axes, x + (left + width - right) / 2, y + 0.17, text, size=11)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw everything into a folder; one printed line per picture."""
    utf8_output()
    parser = argparse.ArgumentParser(
        prog="python -m tinyllm_lib.course.figures", description="Draw the pictures in figures/."
    )
    default = Path(__file__).resolve().parents[2] / "figures"
    parser.add_argument(
        "--out", type=Path, default=default, help="folder to write to (default: figures/)"
    )
    out = parser.parse_args(argv).out
    for name, figure in draw_all(default / "data"):
        print(plots.save(figure, out / f"{name}.svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
