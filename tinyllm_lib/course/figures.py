"""The pictures of the README and of `figures/`.

    python -m tinyllm_lib.course.figures [--out figures]

`make figures` calls this. Everything is drawn from the library's own data at a small size, made in
a temporary folder, so that a changed file means a changed library. Two pictures show results that
took a training run; they are drawn where the numbers have been saved, in `figures/data/`:

    exam.json       {"base": {"greeting": [3, 40], …}, "chat": {…}}: right, total
    metrics.json    {"runs": {"pretrain": [a row of metrics.jsonl, …]}, "marks": {"100": "end"}}
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyllm_lib.course import plots
from tinyllm_lib.course.plots import drawing
from tinyllm_lib.course.plots.drawing import BLUE, FILLS, GREY, INK, Sheet
from tinyllm_lib.course.profiles import Profile, get_profile
from tinyllm_lib.data import utf8_output

if TYPE_CHECKING:
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
WIDTH = 1.75  # of a station of the pipeline, in inches


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
        folder = Path(temporary, "tokenizer")
        tokenizer = train_tokenizer(texts, folder, vocab_size=profile.vocab_size)
        yield "pipeline", pipeline(*_tokens(tokenizer, SENTENCE))
        tokens, ids = _tokens(tokenizer, "我爱喝豆汁 😀")
        yield "tokens", plots.token_strip(tokens, ids, show_bytes=True)
        yield "masks", masks(tokenizer)
        yield "packing", packing(texts[:12], tokenizer, Path(temporary, "tokens"))
    yield "learning_rate", learning_rate(profile)
    yield "parameters", parameters()
    for name, draw, file in (("exam", exam, "exam.json"), ("loss", loss, "metrics.json")):
        if (data / file).is_file():
            yield name, draw(json.loads((data / file).read_text(encoding="utf-8")))


def _tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[bytes], list[int]]:
    from tinyllm_lib.tokenizer import encode_text, token_bytes

    ids = encode_text(tokenizer, text)
    return [token_bytes(tokenizer, token_id) for token_id in ids], ids


def masks(tokenizer: PreTrainedTokenizerFast) -> Figure:
    """X, Y and loss mask of one dialogue with two turns."""
    from tinyllm_lib.dataset import SFTDataset
    from tinyllm_lib.tokenizer import PAD_ID, token_bytes

    x, y, loss_mask = SFTDataset([DIALOGUE], tokenizer, max_length=64)[0]

    def name(token_id: int) -> str | bytes:
        return "padding" if token_id == PAD_ID else token_bytes(tokenizer, token_id)

    names = [list(map(name, row.tolist())) for row in (x, y)]
    starts = (x == tokenizer.convert_tokens_to_ids("<|im_start|>")).nonzero().flatten().tolist()
    title = "One dialogue, a message a row: only the replies are learned"
    return plots.mask_ladder(*names, loss_mask.tolist(), breaks=starts, title=title)


def packing(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, folder: Path, context: int = 128
) -> Figure:
    """The same documents as padded and as packed rows, each with one number in both."""
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
        padded[number, : size - 1] = number  # each token but the last predicts the next
    lost = [max(0, size - 1 - context) for size in sizes]
    return plots.batch_blocks({"padded": padded, "packed": rows}, lost={"padded": lost})


def learning_rate(profile: Profile) -> Figure:
    """The schedule of a pretraining run."""
    from tinyllm_lib.train import TrainConfig, get_lr

    config = TrainConfig(**profile.pretrain)
    steps = range(config.steps)
    rates = [get_lr(step, config) for step in steps]
    marks = {config.warmup_steps: f"warm-up ends at step {config.warmup_steps}"}
    title = f"Learning rate of the {profile.name} profile"
    return plots.learning_rate_curve(steps, rates, marks=marks, title=title)


def parameters() -> Figure:
    """Where the parameters and the training FLOPs of the 215M model lie."""
    import torch

    from tinyllm_lib.model import ModelConfig, Transformer

    numbers, names = get_profile("full").pretrain, ("dim", "n_layers", "n_heads", "n_kv_heads")
    config = ModelConfig(**{name: numbers[name] for name in names}, vocab_size=6144)
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


def exam(runs: Mapping[str, Mapping[str, tuple[int, int]]]) -> Figure:
    """The saved exam of each run."""
    return plots.exam_bars(runs, title="The exam: the line is the 95% interval")


def loss(saved: Mapping[str, Mapping]) -> Figure:
    """Validation loss of the saved runs in bits per byte."""
    marks = {int(step): text for step, text in saved.get("marks", {}).items()}
    title = "法国的首都是… (the capital of France is …)" if marks else None
    return plots.loss_curve(saved["runs"], y="val_bits_per_byte", marks=marks, title=title)


@drawing.picture
def pipeline(tokens: Sequence[bytes], ids: Sequence[int]) -> Figure:
    """From text to chat: five stations with what flows between them, the notebooks below."""
    alt = (
        "Five stations from left to right: text, tokens with their ids, token shards on disk, the"
        " model, and a chat: asked 法国的首都是哪里？ (what is the capital of France?), it says"
        " 是巴黎。 (Paris)."
    )
    stations = [
        ("text", "01_data", _draw_text),
        ("tokens", "02_tokenizer", partial(_draw_tokens, tokens=tokens, ids=ids)),
        ("shards", "03_dataset_masks", partial(_draw_shards, ids=ids)),
        ("model", "04_model  05_pretrain  06_sft", _draw_model),
        ("chat", "07_sampling  08_share", _draw_chat),
    ]
    gap = 0.4
    sheet = Sheet(len(stations) * (WIDTH + gap) - gap + 0.3, 2.75, alt)
    arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
    for place, (name, notebooks, draw) in enumerate(stations):
        x = 0.15 + place * (WIDTH + gap)
        sheet.label(x + WIDTH / 2, 0.25, name, 14)
        draw(sheet, x)
        sheet.label(x + WIDTH / 2, 2.55, notebooks, 9, GREY)
        if place:
            sheet.axes.annotate("", (x - 0.06, 1.35), (x - gap + 0.06, 1.35), arrowprops=arrow)
    return sheet.figure


def _draw_text(sheet: Sheet, x: float) -> None:
    sheet.box(x, 0.55, WIDTH, 1.65, edge=INK)
    for row, line in enumerate((SENTENCE, "水的化学式是H₂O。", "三加四等于七。", "小猫在院子里…")):
        sheet.label(x + 0.14, 0.83 + 0.36 * row, line, 11, ha="left")


def _draw_tokens(sheet: Sheet, x: float, tokens: Sequence[bytes], ids: Sequence[int]) -> None:
    words = [(plots.visible(token), str(number)) for token, number in zip(tokens, ids, strict=True)]
    widths = [
        max(drawing.text_width(name, 12), drawing.text_width(number, 8.5)) + 0.12
        for name, number in words
    ]
    rows = drawing.wrap(widths, WIDTH)
    for place, row in enumerate(rows):
        left = x + (WIDTH - sum(widths[index] for index in row)) / 2
        y = 1.38 - 0.32 * len(rows) + 0.64 * place
        for index in row:
            middle, fill = left + widths[index] / 2, FILLS[0][0] if index % 2 else "white"
            sheet.box(left, y, widths[index], 0.52, fill, INK)
            sheet.label(middle, y + 0.19, words[index][0], 12)
            sheet.label(middle, y + 0.41, words[index][1], 8.5, BLUE)
            left += widths[index]


def _draw_shards(sheet: Sheet, x: float, ids: Sequence[int]) -> None:
    cell = WIDTH / 4
    numbers = iter([*ids, 2] * 4)
    for shard in range(2):
        y = 0.55 + 0.88 * shard
        sheet.label(x, y + 0.1, f"shard_{shard:05d}.bin", 9, GREY, "left")
        for place, number in enumerate(islice(numbers, 8)):
            left, top = x + cell * (place % 4), y + 0.22 + 0.27 * (place // 4)
            sheet.cell(left, top, cell, 0.27, str(number), 8.5, FILLS[2][0], INK)


def _draw_model(sheet: Sheet, x: float) -> None:
    sheet.box(x + 0.05, 0.93, WIDTH - 0.1, 0.9, "#f6f6f6", INK)
    for name, y, color, left, right in (
        ("head", 0.55, 0, 0.05, 0.05),
        ("feed-forward", 1.0, 1, 0.15, 0.45),
        ("attention", 1.4, 3, 0.15, 0.45),
        ("embedding", 1.91, 0, 0.05, 0.05),
    ):
        sheet.cell(x + left, y, WIDTH - left - right, 0.3, name, 10, FILLS[color][0], INK)
    sheet.label(x + WIDTH - 0.24, 1.38, "× N", 11)


def _draw_chat(sheet: Sheet, x: float) -> None:
    for text, left, right, y, fill in (
        ("法国的首都是哪里？", 0.0, 0.1, 0.75, "white"),
        ("是巴黎。", 0.75, 0.0, 1.2, FILLS[1][0]),
        ("那日本呢？", 0.0, 0.7, 1.65, "white"),
    ):
        sheet.cell(x + left, y, WIDTH - left - right, 0.34, text, 11, fill, INK)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw everything into a folder; one printed line per picture."""
    utf8_output()
    program = "python -m tinyllm_lib.course.figures"
    parser = argparse.ArgumentParser(prog=program, description="Draw the pictures in figures/.")
    default = Path(__file__).resolve().parents[2] / "figures"
    parser.add_argument("--out", type=Path, default=default, help="folder (default: figures/)")
    out = parser.parse_args(argv).out
    for name, figure in draw_all(default / "data"):
        print(plots.save(figure, out / f"{name}.svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
