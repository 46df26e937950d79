"""Byte-pair encoding: merges as a tree, and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyllm_lib.course.plots.drawing import GREY, INK, Sheet, picture, text_width
from tinyllm_lib.course.plots.strips import CHOSEN, PAGE
from tinyllm_lib.course.plots.tokens import Token, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    # A symbol is its text, how many of the first symbols it spans, and whether it was just made.
    rows = [[(symbol, 1, False) for symbol in symbols]]
    for pair in merges:
        rows.append(_merge(rows[-1], pair))
    names = ["start", *map(_pair_text, merges)]
    gutter = max([text_width(name, 9.5) for name in names[1:]] + [0.4]) + 0.3
    cell = max(text_width(visible(symbol), 12) for symbol in symbols) + 0.14
    cell = min(cell, (width - gutter - 0.1) / len(symbols))
    step = 0.44
    words = " | ".join(visible(text) for text, _, _ in rows[-1])
    alt = f"{len(merges)} merges turn {len(symbols)} symbols into {len(rows[-1])} tokens: {words}"
    sheet = Sheet(gutter + cell * len(symbols) + 0.1, step * len(rows) + 0.02, alt, title)
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        x, y = gutter, step * number + 0.06
        sheet.label(gutter - 0.12, y + 0.16, name, 9.5, GREY, "right")
        for text, span, new in row:
            style = (CHOSEN, INK, 1.8) if new else ()
            sheet.cell(x, y, cell * span, 0.32, visible(text), 12, *style)
            x += cell * span
    return sheet.figure


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
    heads, size, step, rank = ("pair", "new", "seen"), 10.5, 0.26, 0.4
    pair, result, count = (
        max([text_width(text[place], size) for text in texts] + [text_width(head, 9)]) + 0.25
        for place, head in enumerate(heads)
    )
    height, column = -(-len(texts) // columns), rank + pair + result + count + 0.15
    listed = ", ".join(f"{p} -> {r} ({c})" for p, r, c in texts)
    alt = f"The first {len(texts)} merges in order: {listed}"
    sheet = Sheet(column * columns + 0.1, step * (height + 1) + 0.08, alt, title)
    for index, text in enumerate(texts):
        x, y = 0.05 + column * (index // height), step * (index % height + 1)
        places = ((x + rank, "left"), (x + rank + pair, "left"), (x + column - 0.25, "right"))
        if index % height == 0:
            for (place, side), head in zip(places, heads, strict=True):
                sheet.label(place, step * 0.65, head, 9, GREY, side, "baseline")
        if index % height % 2 == 0:
            sheet.box(x, y, column - 0.12, step, "#f4f4f4", "none")
        sheet.label(x + rank - 0.12, y + step / 2, str(index + 1), 9, GREY, "right")
        for (place, side), word in zip(places, text, strict=True):
            sheet.label(place, y + step / 2, word, size, ha=side)
    return sheet.figure
