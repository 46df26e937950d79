"""Pictures made of boxes: tokens, ladders of X, Y and mask, batches, and byte-pair merges."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from tinyllm_lib.course.plots import drawing
from tinyllm_lib.course.plots.drawing import (
    BLUE,
    FILLS,
    GREY,
    INK,
    PALE,
    box,
    label,
    picture,
    visible,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Token = str | bytes
PAGE = 9.0  # inches; 990 pixels in a notebook
CHOSEN = "#ffe08a"


@picture
def token_strip(
    tokens: Sequence[Token],
    ids: Sequence[int] | None = None,
    *,
    show_bytes: bool = False,
    highlight: Collection[int] = (),
    title: str | None = None,
    width: float = PAGE,
) -> Figure:
    """Tokens as boxes in reading order: the text, below it the bytes and the id.

    Args:
        tokens: text, or the bytes of each token (`token_bytes`). Bytes that are only part of a
            character are shown in hex, and a bracket above them names the character they make.
        ids: one per token, drawn below the text.
        show_bytes: draw the UTF-8 bytes of every token too.
        highlight: positions in `tokens` to fill and frame.
    """
    if ids is not None and len(ids) != len(tokens):
        raise ValueError(
            f"token_strip: {len(tokens)} tokens but {len(ids)} ids; give one id per token."
        )
    lines = [[(visible(token), 13, INK)] for token in tokens]
    for index, token in enumerate(tokens):
        if show_bytes:
            data = token if isinstance(token, bytes) else token.encode("utf-8", "surrogatepass")
            lines[index].append((data.hex(" ").upper(), 8, GREY))
        if ids is not None:
            lines[index].append((str(ids[index]), 8.5, BLUE))
    widths = [
        max(drawing.text_width(text, size) for text, size, _ in rows) + 0.18 for rows in lines
    ]
    rows = drawing.wrap(widths, width - 0.16)
    brackets = shared_characters(tokens)
    above = 0.33 if brackets else 0.06
    height = 0.36 + 0.19 * (len(lines[0]) - 1 if lines else 0)
    alt = f"{len(tokens)} tokens in boxes: " + " | ".join(visible(token) for token in tokens)
    width = _shrink(width, widths, rows, title)
    page, axes = drawing.blank_axes(width, (above + height + 0.08) * max(len(rows), 1), alt, title)
    left, top = {}, {}
    for number, row in enumerate(rows):
        x, y = 0.08, (above + height + 0.08) * number + above
        for index in row:
            chosen = index in highlight
            fill = CHOSEN if chosen else "white" if index % 2 else PALE
            edge, line = (INK, 2.0) if chosen else (GREY, 0.8)
            box(axes, x, y, widths[index], height, fill=fill, edge=edge, line=line)
            for place, (text, size, color) in enumerate(lines[index]):
                label(axes, x + widths[index] / 2, y + (0.19 if place == 0 else 0.24 + 0.18 * place), text,
                      size=size, color=color)  # fmt: skip
            left[index], top[index] = x, y
            x += widths[index]
    for span, char in brackets:
        for row in rows:  # a character whose bytes wrap to a second row gets a bracket in both
            part = [index for index in span if index in row]
            if part:
                start, end = left[part[0]] + 0.04, left[part[-1]] + widths[part[-1]] - 0.04
                y = top[part[0]] - 0.05
                axes.plot(
                    [start, start, end, end], [y, y - 0.05, y - 0.05, y], color=INK, linewidth=1.0
                )
                label(axes, (start + end) / 2, y - 0.06, visible(char), size=10, va="bottom")
    return page


def _shrink(
    width: float, widths: Sequence[float], rows: Sequence[range], title: str | None
) -> float:
    """No wider than the widest row and the title need."""
    needed = max((sum(widths[index] for index in row) for row in rows), default=1.0)
    return min(width, max(needed, drawing.text_width(title or "", 11)) + 0.16)


def shared_characters(tokens: Sequence[Token]) -> list[tuple[range, str]]:
    """Spans of byte tokens that only together are valid UTF-8, with the text they make."""
    spans, start, pending = [], 0, b""
    for index, token in enumerate(tokens):
        if isinstance(token, str):
            pending = b""
            continue
        if not pending:
            start = index
        pending += token
        try:
            text = pending.decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":  # not the beginning of a character either
                pending = b""
            continue
        if index > start and text:
            spans.append((range(start, index + 1), text))
        pending = b""
    return spans


@picture
def mask_ladder(
    x_tokens: Sequence[Token],
    y_tokens: Sequence[Token],
    loss_mask: Sequence[int],
    *,
    breaks: Collection[int] = (),
    title: str | None = None,
    width: float = PAGE,
) -> Figure:
    """What the model sees (X), what it should say next (Y) and whether that is learned, column by
    column.

    A learned target is filled, framed and ticked; the others are grey and marked "–". More than
    four equal columns in a row (padding) are drawn as one, with their number.

    Args:
        x_tokens, y_tokens, loss_mask: equally long; position i of Y is the target of position i of
        X. breaks: positions that begin a new row of the picture, e.g. where a message begins.
    """
    if not len(x_tokens) == len(y_tokens) == len(loss_mask):
        raise ValueError(
            f"mask_ladder: {len(x_tokens)} X tokens, {len(y_tokens)} Y tokens, {len(loss_mask)}"
            " mask values; all three must be equally long (drop the last token for X and the first"
            " for Y)."
        )
    cells = zip(map(visible, x_tokens), map(visible, y_tokens), map(int, loss_mask), strict=True)
    columns: list[tuple[str, str, int, int]] = []  # X, Y, learned, how often
    begins, position = set(), 0  # columns that begin a row of the picture
    for cell, run in groupby(cells):
        count = len(list(run))
        merged = count > 4
        begins |= {
            len(columns) + (0 if merged else i) for i in range(count) if position + i in breaks
        }
        columns += [(*cell, count)] if merged else [(*cell, 1)] * count
        position += count
    size, gutter, step = 11, 0.62, 0.30
    widths = [
        max(drawing.text_width(x, size), drawing.text_width(y, size), 0.3 if count == 1 else 0.6)
        + 0.12
        for x, y, _, count in columns
    ]
    rows = drawing.wrap(widths, width - gutter - 0.08, begins)
    learned = sum(int(value) for value in loss_mask)
    alt = (
        f"Three rows, token by token: X, Y and loss mask. {learned} of {len(loss_mask)} targets are"
        " learned: "
        + " ".join(
            y if count == 1 else f"{y} ({count} times)" for _, y, mask, count in columns if mask
        )
    )
    width = gutter + _shrink(width - gutter, widths, rows, title)
    page, axes = drawing.blank_axes(width, (3 * step + 0.16) * max(len(rows), 1) + 0.02, alt, title)
    for number, row in enumerate(rows):
        x, y = gutter, (3 * step + 0.16) * number + 0.06
        for name, place in (("X", 0), ("Y", 1), ("learn", 2)):
            label(
                axes,
                gutter - 0.08,
                y + step * (place + 0.5),
                name,
                size=9.5,
                color=GREY,
                ha="right",
            )
        for index in row:
            x_text, y_text, mask, count = columns[index]
            box(axes, x, y, widths[index], step, fill="white")
            label(axes, x + widths[index] / 2, y + step / 2, x_text, size=size)
            box(axes, x, y + step, widths[index], step, fill="white" if mask else PALE)
            label(
                axes,
                x + widths[index] / 2,
                y + step * 1.5,
                y_text,
                size=size,
                color=INK if mask else GREY,
            )
            mark = ("✓" if mask else "–") + (f" ×{count}" if count > 1 else "")
            label(
                axes,
                x + widths[index] / 2,
                y + step * 2.5,
                mark,
                size=size,
                color=INK if mask else GREY,
            )
            x += widths[index]
        x = gutter
        for index in row:  # last, so that the heavy frames lie over the light ones
            if columns[index][2]:
                box(axes, x, y + step, widths[index], step, fill=CHOSEN, edge=INK, line=1.8)
                label(
                    axes,
                    x + widths[index] / 2,
                    y + step * 1.5,
                    columns[index][1],
                    size=size,
                    zorder=3,
                )
            x += widths[index]
    return page


@picture
def batch_blocks(
    batches: Mapping[str, np.ndarray],
    *,
    lost: Mapping[str, Sequence[int]] | None = None,
    width: float = PAGE,
) -> Figure:
    """Batches as coloured blocks, one panel each: documents are numbered, padding is white with
    hatching.

    Args:
        batches: name -> (rows, context) document ids; equal neighbours are one document, -1 is
            padding. Panels are drawn below each other at one scale, e.g. {"padded": ..., "packed":
            ...}.
        lost: name -> tokens per row that did not fit and were cut off, drawn past the right edge.
    """
    lost = lost or {}
    panels = {name: np.asarray(rows) for name, rows in batches.items()}
    longest = max(
        rows.shape[1] + max(lost.get(name, [0]), default=0) for name, rows in panels.items()
    )
    scale, step, head = (width - 0.2) / longest, 0.25, 0.34
    height = sum(head + step * len(rows) for rows in panels.values()) + 0.38
    notes = []
    for name, rows in panels.items():
        cut = sum(lost.get(name, ()))
        notes.append(
            f"{name}: {len(rows)} rows × {rows.shape[1]} positions, {(rows < 0).mean():.0%} wasted"
            " on padding" + (f", {cut} tokens cut off" if cut else "")
        )
    page, axes = drawing.blank_axes(width, height, "Batches as blocks. " + "; ".join(notes) + ".")
    y = 0.0
    for (name, rows), note in zip(panels.items(), notes, strict=True):
        label(axes, 0.1, y + head / 2 + 0.02, note, size=11, ha="left")
        y += head
        for number, row in enumerate(rows):
            start = 0
            for document, run in groupby(row.tolist()):
                length = len(list(run))
                _block(axes, 0.1 + start * scale, y, length * scale, step, document)
                start += length
            cut = list(lost.get(name, ()))[number : number + 1]
            if cut and cut[0]:
                x = 0.1 + start * scale
                box(axes, x, y, cut[0] * scale, step, fill="#f3c3b4", edge=INK, hatch="xxx")
                axes.plot([x, x], [y - 0.02, y + step + 0.02], color=INK, linewidth=2.5)
            y += step
    x = 0.1
    legend = [
        ("document (a colour and number each)", FILLS[0][0], ""),
        ("padding", "white", "////"),
    ]
    if any(map(sum, lost.values())):
        legend.append(("cut off", "#f3c3b4", "xxx"))
    for text, fill, hatch in legend:
        box(axes, x, y + 0.12, 0.26, 0.17, fill=fill, hatch=hatch)
        label(axes, x + 0.33, y + 0.205, text, size=9, color=GREY, ha="left")
        x += 0.55 + drawing.text_width(text, 9)
    return page


def _block(axes, x: float, y: float, width: float, height: float, document: int) -> None:
    if document < 0:
        box(axes, x, y, width, height, fill="white", hatch="////", edge="#a0a0a0")
        return
    box(axes, x, y, width, height, fill=FILLS[document % len(FILLS)][0], edge=INK)
    if width > drawing.text_width(str(document), 8) + 0.04:
        label(axes, x + width / 2, y + height / 2, str(document), size=8)


@picture
def merge_steps(
    symbols: Sequence[Token],
    merges: Sequence[tuple[Token, Token]],
    *,
    title: str | None = None,
    width: float = PAGE,
) -> Figure:
    """Byte-pair encoding as a tree that grows downwards: one row per merge, the new symbols filled.

    Args:
        symbols: the text before any merge, e.g. list("天天学习").
        merges: pairs in the order in which they are learned; every occurrence of a pair is joined.
    """
    rows = [
        [(symbol, 1, False) for symbol in symbols]
    ]  # text, how many symbols it spans, just made?
    for pair in merges:
        rows.append(_merge(rows[-1], pair))
    cell = max(drawing.text_width(visible(symbol), 12) for symbol in symbols) + 0.14
    gutter = max([drawing.text_width(_pair_text(pair), 9.5) for pair in merges] + [0.4]) + 0.3
    cell = min(cell, (width - gutter - 0.1) / len(symbols))
    step = 0.44
    words = " | ".join(visible(text) for text, _, _ in rows[-1])
    alt = f"{len(merges)} merges turn {len(symbols)} symbols into {len(rows[-1])} tokens: {words}"
    page, axes = drawing.blank_axes(
        gutter + cell * len(symbols) + 0.1, step * len(rows) + 0.02, alt, title
    )
    for number, row in enumerate(rows):
        y = step * number + 0.06
        name = _pair_text(merges[number - 1]) if number else "start"
        label(axes, gutter - 0.12, y + 0.16, name, size=9.5, color=GREY, ha="right")
        x = gutter
        for text, span, new in row:
            fill = CHOSEN if new else "white"
            box(
                axes,
                x,
                y,
                cell * span,
                0.32,
                fill=fill,
                edge=INK if new else GREY,
                line=1.8 if new else 0.8,
            )
            label(axes, x + cell * span / 2, y + 0.16, visible(text), size=12)
            x += cell * span
    return page


def _merge(
    row: list[tuple[Token, int, bool]], pair: tuple[Token, Token]
) -> list[tuple[Token, int, bool]]:
    merged, index = [], 0
    while index < len(row):
        text, span, _ = row[index]
        if index + 1 < len(row) and (text, row[index + 1][0]) == tuple(pair):
            merged.append((text + row[index + 1][0], span + row[index + 1][1], True))
            index += 2
        else:
            merged.append((text, span, False))
            index += 1
    return merged


def _pair_text(pair: tuple[Token, Token]) -> str:
    return f"{visible(pair[0])} + {visible(pair[1])}"


@picture
def merge_table(
    merges: Sequence[tuple[Token, Token, int]], *, title: str | None = None, columns: int = 3
) -> Figure:
    """Merges in the order in which they were learned: rank, pair, result, and how often the pair
    occurred.

    Args:
        merges: (left, right, count) in order of rank; ranks are numbered from 1.
        columns: how many merges stand beside each other; ranks run down each column.
    """
    texts = [(_pair_text((a, b)), visible(a + b), str(count)) for a, b, count in merges]
    size, step = 10.5, 0.26
    pair, result, count = (
        max(
            [drawing.text_width(text[place], size) for text in texts]
            + [drawing.text_width(head, 9)]
        )
        + 0.25
        for place, head in enumerate(("pair", "new", "seen"))
    )
    rank, height = 0.4, -(-len(texts) // columns)
    column = rank + pair + result + count + 0.15
    alt = f"The first {len(texts)} merges in order: " + ", ".join(
        f"{p} -> {r} ({c})" for p, r, c in texts
    )
    page, axes = drawing.blank_axes(column * columns + 0.1, step * (height + 1) + 0.08, alt, title)
    for index, text in enumerate(texts):
        x, y = 0.05 + column * (index // height), step * (index % height + 1)
        if index % height == 0:
            for place, head in ((rank, "pair"), (rank + pair, "new")):
                label(
                    axes, x + place, step * 0.65, head, size=9, color=GREY, ha="left", va="baseline"
                )
            label(
                axes,
                x + column - 0.25,
                step * 0.65,
                "seen",
                size=9,
                color=GREY,
                ha="right",
                va="baseline",
            )
        if index % height % 2 == 0:
            box(axes, x, y, column - 0.12, step, fill="#f4f4f4", edge="none")
        label(axes, x + rank - 0.12, y + step / 2, str(index + 1), size=9, color=GREY, ha="right")
        label(axes, x + rank, y + step / 2, text[0], size=size, ha="left")
        label(axes, x + rank + pair, y + step / 2, text[1], size=size, ha="left")
        label(axes, x + column - 0.25, y + step / 2, text[2], size=size, ha="right")
    return page
