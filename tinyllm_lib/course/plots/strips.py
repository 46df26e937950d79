"""Tokens in boxes: a strip, a ladder of X, Y and loss mask, and batches as blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from tinyllm_lib.course.plots.drawing import (
    BLUE,
    FILLS,
    GREY,
    INK,
    PALE,
    Sheet,
    picture,
    text_width,
    wrap,
)
from tinyllm_lib.course.plots.tokens import Token, shared_characters, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = 9.0  # inches; 990 pixels in a notebook
CHOSEN = "#ffe08a"
LOST = "#f3c3b4"


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
        told = f"{len(tokens)} tokens but {len(ids)} ids; give one id per token."
        raise ValueError(f"token_strip: {told}")
    lines = [[(visible(token), 13, INK)] for token in tokens]
    for index, token in enumerate(tokens):
        if show_bytes:
            data = token if isinstance(token, bytes) else token.encode("utf-8", "surrogatepass")
            lines[index].append((data.hex(" ").upper(), 8, GREY))
        if ids is not None:
            lines[index].append((str(ids[index]), 8.5, BLUE))
    widths = [max(text_width(text, size) for text, size, _ in rows) + 0.18 for rows in lines]
    rows = wrap(widths, width - 0.16)
    brackets = shared_characters(tokens)
    above = 0.33 if brackets else 0.06
    height = 0.36 + 0.19 * (len(lines[0]) - 1 if lines else 0)
    step = above + height + 0.08
    alt = f"{len(tokens)} tokens in boxes: " + " | ".join(visible(token) for token in tokens)
    sheet = Sheet(_shrink(width, widths, rows, title), step * max(len(rows), 1), alt, title)
    left, top = {}, {}
    for number, row in enumerate(rows):
        x, y = 0.08, step * number + above
        for index in row:
            if index in highlight:
                sheet.box(x, y, widths[index], height, CHOSEN, INK, 2.0)
            else:
                sheet.box(x, y, widths[index], height, "white" if index % 2 else PALE)
            for place, (text, size, color) in enumerate(lines[index]):
                below = 0.24 + 0.18 * place if place else 0.19
                sheet.label(x + widths[index] / 2, y + below, text, size, color)
            left[index], top[index] = x, y
            x += widths[index]
    for span, char in brackets:
        for row in rows:  # a character whose bytes wrap to a second row gets a bracket in both
            part = [index for index in span if index in row]
            if part:
                start, end = left[part[0]] + 0.04, left[part[-1]] + widths[part[-1]] - 0.04
                y = top[part[0]] - 0.05
                sheet.line([start, start, end, end], [y, y - 0.05, y - 0.05, y])
                sheet.label((start + end) / 2, y - 0.06, visible(char), 10, va="bottom")
    return sheet.figure


def _shrink(
    width: float, widths: Sequence[float], rows: Sequence[range], title: str | None
) -> float:
    """No wider than the widest row and the title need."""
    needed = max((sum(widths[index] for index in row) for row in rows), default=1.0)
    return min(width, max(needed, text_width(title or "", 11)) + 0.16)


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
            X.
        breaks: positions that begin a new row of the picture, e.g. where a message begins.
    """
    if not len(x_tokens) == len(y_tokens) == len(loss_mask):
        raise ValueError(
            f"mask_ladder: {len(x_tokens)} X tokens, {len(y_tokens)} Y tokens, {len(loss_mask)}"
            " mask values; all three must be equally long."
        )
    columns, begins = _columns(x_tokens, y_tokens, loss_mask, breaks)
    size, gutter, step = 11, 0.62, 0.30
    widths = [
        max(text_width(x, size), text_width(y, size), 0.3 if count == 1 else 0.6) + 0.12
        for x, y, _, count in columns
    ]
    rows = wrap(widths, width - gutter - 0.08, begins)
    learned = [y if n == 1 else f"{y} ({n} times)" for _, y, mask, n in columns if mask]
    alt = (
        "Three rows, token by token: X, Y and loss mask."
        f" {sum(map(int, loss_mask))} of {len(loss_mask)} targets are learned: {' '.join(learned)}"
    )
    width = gutter + _shrink(width - gutter, widths, rows, title)
    sheet = Sheet(width, (3 * step + 0.16) * max(len(rows), 1) + 0.02, alt, title)
    for number, row in enumerate(rows):
        x, y = gutter, (3 * step + 0.16) * number + 0.06
        for place, name in enumerate(("X", "Y", "learn")):
            sheet.label(gutter - 0.08, y + step * (place + 0.5), name, 9.5, GREY, "right")
        framed = []
        for index in row:
            x_text, y_text, mask, count = columns[index]
            ink = INK if mask else GREY
            sheet.cell(x, y, widths[index], step, x_text, size)
            if mask:
                framed.append((x, y + step, widths[index], step, y_text, size))
            else:
                sheet.cell(x, y + step, widths[index], step, y_text, size, PALE, color=ink)
            mark = ("✓" if mask else "–") + (f" ×{count}" if count > 1 else "")
            sheet.label(x + widths[index] / 2, y + step * 2.5, mark, size, ink)
            x += widths[index]
        for cell in framed:  # last, so that the heavy frames lie over the light ones
            sheet.cell(*cell, CHOSEN, INK, 1.8)
    return sheet.figure


def _columns(
    x: Sequence[Token], y: Sequence[Token], loss_mask: Sequence[int], breaks: Collection[int]
) -> tuple[list[tuple[str, str, int, int]], set[int]]:
    """(X, Y, learned, how often) for each column drawn, and which columns begin a row."""
    columns, begins, position = [], set(), 0
    for cell, run in groupby(
        zip(map(visible, x), map(visible, y), map(int, loss_mask), strict=True)
    ):
        count = len(list(run))
        merged = count > 4
        here = (i for i in range(count) if position + i in breaks)
        begins |= {len(columns) + (0 if merged else i) for i in here}
        columns += [(*cell, count)] if merged else [(*cell, 1)] * count
        position += count
    return columns, begins


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
            padding. Panels are drawn below each other at one scale.
        lost: name -> tokens per row that did not fit and were cut off, drawn past the right edge.
    """
    lost = lost or {}
    panels = {name: np.asarray(rows) for name, rows in batches.items()}
    longest = max(
        rows.shape[1] + max(lost.get(name, [0]), default=0) for name, rows in panels.items()
    )
    scale, step, head = (width - 0.2) / longest, 0.25, 0.34
    notes = {}
    for name, rows in panels.items():
        notes[name] = f"{name}: {len(rows)} rows × {rows.shape[1]} positions, "
        notes[name] += f"{(rows < 0).mean():.0%} wasted on padding"
        if cut := sum(lost.get(name, ())):
            notes[name] += f", {cut} tokens cut off"
    height = sum(head + step * len(rows) for rows in panels.values()) + 0.38
    sheet = Sheet(width, height, "Batches as blocks. " + "; ".join(notes.values()) + ".")
    y = 0.0
    for name, rows in panels.items():
        sheet.label(0.1, y + head / 2 + 0.02, notes[name], 11, ha="left")
        y += head
        for number, row in enumerate(rows):
            x = 0.1
            for document, run in groupby(row.tolist()):
                length = len(list(run)) * scale
                _block(sheet, x, y, length, step, document)
                x += length
            for cut in list(lost.get(name, ()))[number : number + 1]:
                if cut:
                    sheet.box(x, y, cut * scale, step, LOST, INK, hatch="xxx")
                    sheet.line([x, x], [y - 0.02, y + step + 0.02], 2.5)
            y += step
    x = 0.1
    legend = [
        ("document (a colour and number each)", FILLS[0][0], ""),
        ("padding", "white", "////"),
    ]
    if any(map(sum, lost.values())):
        legend.append(("cut off", LOST, "xxx"))
    for text, fill, hatch in legend:
        sheet.box(x, y + 0.12, 0.26, 0.17, fill, hatch=hatch)
        sheet.label(x + 0.33, y + 0.205, text, 9, GREY, "left")
        x += 0.55 + text_width(text, 9)
    return sheet.figure


def _block(sheet: Sheet, x: float, y: float, width: float, height: float, document: int) -> None:
    if document < 0:
        sheet.box(x, y, width, height, "white", "#a0a0a0", hatch="////")
        return
    name = str(document) if width > text_width(str(document), 8) + 0.04 else ""
    sheet.cell(x, y, width, height, name, 8, FILLS[document % len(FILLS)][0], INK)
