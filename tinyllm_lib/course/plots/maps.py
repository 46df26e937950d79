"""Maps of positions and of matrices: attention, masks, rotary pairs."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinyllm_lib.course.plots.drawing import (
    BLUE,
    FILLS,
    GREY,
    INK,
    LINES,
    Sheet,
    new_figure,
    picture,
    text_width,
)
from tinyllm_lib.course.plots.tokens import Token, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@picture
def attention_map(
    weights: np.ndarray, tokens: Sequence[Token], *, title: str | None = None, columns: int = 4
) -> Figure:
    """How much each position (row) looks at each earlier one (column), one square per head; dark is
    much.

    Args:
        weights: (T, T) or (heads, T, T) attention weights, rows sum to 1.
        tokens: T tokens, written at the edges.
    """
    weights = np.asarray(weights, dtype=float)
    heads = weights[None] if weights.ndim == 2 else weights
    length = heads.shape[-1]
    if heads.ndim != 3 or heads.shape[1] != length or len(tokens) != length:
        raise ValueError(
            f"attention_map: weights of shape {weights.shape} and {len(tokens)} tokens; "
            "expected (T, T) or (heads, T, T) and T tokens."
        )
    names = [visible(token) for token in tokens]
    columns = min(columns, len(heads))
    while columns > 1 and 8.0 / columns / length < 0.16:
        columns = -(-columns // 2)
    rows = -(-len(heads) // columns)
    margin = max(text_width(name, 9) for name in names) + 0.15
    side = min(0.42 * length, (8.4 - margin) / columns - 0.25)
    size = max(6.0, min(10.0, 52 * side / length))
    alt = f"Attention weights of {len(heads)} head(s) over {length} tokens: {' '.join(names)}"
    width, height = (side + 0.25) * columns + margin + 0.5, (side + 0.4) * rows + margin + 0.3
    figure = new_figure(width, height, alt)
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(heads):
            axes.set_visible(False)
            continue
        image = axes.imshow(heads[number], cmap="Greys", vmin=0, vmax=1)
        axes.set_title(f"head {number}" if weights.ndim == 3 else title or "", size=10)
        _token_ticks(axes, names, size, side / length)
        lowest = number + columns >= len(heads)
        axes.tick_params(labelleft=number % columns == 0, labelbottom=lowest)
        if length <= 8 and columns == 1:
            for i, j in zip(*np.nonzero(heads[number] >= 0.005), strict=True):
                weight = heads[number, i, j]
                style = {"size": 8, "color": "white" if weight > 0.5 else INK}
                axes.text(j, i, f"{weight:.2f}", ha="center", va="center", **style)
    grid[0, 0].set_ylabel("looks from")
    figure.supxlabel("looks at", size=10)
    if title and weights.ndim == 3:
        figure.suptitle(title, size=11, x=0.01, ha="left")
    bar = figure.colorbar(image, ax=grid, fraction=0.03, pad=0.02, aspect=20, shrink=0.6)
    bar.outline.set_edgecolor(GREY)
    bar.set_ticks([0, 0.5, 1])
    return figure


@picture
def mask_map(
    mask: np.ndarray,
    *,
    document_ids: Sequence[int] | None = None,
    tokens: Sequence[Token] | None = None,
    title: str | None = None,
) -> Figure:
    """A causal or a document mask: position i (row) may look at position j (column) where it is
    filled.

    Args:
        mask: (T, T) bool, True = may look.
        document_ids: T ids; fills each document in its own colour and draws lines between
            documents.
        tokens: T tokens, written at the edges.
    """
    from matplotlib.patches import Rectangle

    mask = np.asarray(mask, dtype=bool)
    length = len(mask)
    side = min(6.0, max(2.2, 0.34 * length))
    names = [visible(token) for token in tokens or map(str, range(length))]
    size = max(6.5, min(10.0, 52 * side / length))
    width = side + max(text_width(name, size) for name in names) + 0.4
    alt = f"{title or 'Mask'}: {mask.sum()} of {mask.size} pairs of positions are open."
    figure = new_figure(width, width + (0.3 if title else 0), alt)
    axes = figure.subplots()
    documents = [0] * length if document_ids is None else list(document_ids)
    order = {document: place for place, document in enumerate(dict.fromkeys(documents))}
    for i, j in zip(*np.nonzero(mask), strict=True):
        fill, _ = FILLS[order[documents[i]] % len(FILLS)]
        style = {"facecolor": fill, "edgecolor": "white", "linewidth": 0.6}
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **style))
    axes.set(xlim=(-0.5, length - 0.5), ylim=(length - 0.5, -0.5), aspect="equal")
    for place in range(1, length):
        if documents[place] != documents[place - 1]:
            for line in (axes.axhline, axes.axvline):
                line(place - 0.5, color=INK, linewidth=1, linestyle=":")
    axes.spines[:].set_visible(True)
    if tokens is not None or length <= 24:
        _token_ticks(axes, names, size, side / length)
    axes.set(xlabel="looks at", ylabel="looks from", title=title or "")
    return figure


def _token_ticks(axes: Axes, names: Sequence[str], size: float, cell: float) -> None:
    """Names at both edges; below, what is wider than a cell (inches) runs downwards."""
    axes.set_yticks(range(len(names)), names, size=size)
    wide = [text_width(name, size) > 1.1 * cell for name in names]
    chinese = [all(unicodedata.east_asian_width(char) in "WF" for char in name) for name in names]
    stacked = [w and c for w, c in zip(wide, chinese, strict=True)]
    texts = ["\n".join(name) if s else name for name, s in zip(names, stacked, strict=True)]
    axes.set_xticks(range(len(names)), texts, size=size, linespacing=1.0)
    for tick, w, s in zip(axes.get_xticklabels(), wide, stacked, strict=True):
        tick.set_rotation(90 if w and not s else 0)
    axes.tick_params(length=0)


@picture
def rope_pairs(
    head_dim: int = 8, positions: Sequence[int] = (0, 1, 2, 3, 4, 5, 6, 7), *, base: float = 10000.0
) -> Figure:
    """Rotary position embedding: pair k of a head turns by position x base**(-2k / head_dim).

    One row per pair, one clock per position; the pale hand is position 0.
    """
    from matplotlib.patches import Circle

    pairs = head_dim // 2
    alt = (
        f"Clocks of {pairs} pairs at positions {', '.join(map(str, positions))}: "
        "the first pair turns by one radian per position, later pairs ever more slowly."
    )
    sheet = Sheet(1.75 + 0.95 * len(positions), 0.45 + 0.95 * pairs, alt)
    centres = [2.15 + 0.95 * place for place in range(len(positions))]
    for x, position in zip(centres, positions, strict=True):
        sheet.label(x, 0.25, f"position {position}", 8.5, GREY)
    arrow = {"arrowstyle": "-|>", "color": BLUE, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
    for k in range(pairs):
        turn = base ** (-2 * k / head_dim)
        y = 0.9 + 0.95 * k
        sheet.label(0.1, y - 0.1, f"pair {k}", 10.5, ha="left")
        sheet.label(0.1, y + 0.12, f"{turn:.3g} rad a step", 8.5, GREY, "left")
        for x, position in zip(centres, positions, strict=True):
            face = {"facecolor": "#fafafa", "edgecolor": "#b0b0b0", "linewidth": 0.8}
            sheet.axes.add_patch(Circle((x, y), 0.36, **face))
            sheet.line([x, x + 0.34], [y, y], 1.2, color="#c8c8c8")
            angle = position * turn
            tip = (x + 0.34 * math.cos(angle), y - 0.34 * math.sin(angle))
            sheet.axes.annotate("", tip, (x, y), arrowprops=arrow)
    return sheet.figure


@picture
def rotary_rows(head: np.ndarray, *, title: str | None = None) -> Figure:
    """What the rotary permutation does to one head of a query or key matrix: the same rows in
    another order.

    Left, pairs are neighbours (old checkpoints, llama.cpp); right, number i is paired with number i
    + d/2 (transformers, this library). A row is drawn as a strip of greys, one cell per weight, and
    joined with itself by a line: solid for the first number of a pair, dashed for the second.
    Numbers name the pair, a and b its two members.

    Args:
        head: (d, columns) weights in adjacent pairs, d even.

    Raises:
        ValueError: an odd number of rows.
    """
    d = len(head)
    if d % 2:
        told = "rows are turned in pairs, so their number must be even."
        raise ValueError(f"rotary_rows: the head has {d} rows; {told}")
    order = [*range(0, d, 2), *range(1, d, 2)]  # right row -> left row
    names = [f"{row // 2}{'ab'[row % 2]}" for row in range(d)]
    alt = (
        f"Two grey maps of the same {d} rows, joined by lines. Adjacent pairs: {' '.join(names)}."
        f" Half-split: {' '.join(names[row] for row in order)}. First members of pairs go to the"
        " upper half, second ones to the lower."
    )
    step, strip, gap, gutter, top = 0.3, 2.9, 2.3, 0.5, 0.42  # inches
    left, right = 0.08 + gutter, 0.08 + gutter + strip + gap
    width, height = right + strip + gutter + 0.08, top + step * d + 0.1
    sheet = Sheet(width, height, alt, title)
    greys = {"cmap": "Greys", "vmin": head.min(), "vmax": head.max(), "aspect": "auto"}
    for x, rows, edge, ha, name in (
        (left, range(d), left - 0.08, "right", "adjacent pairs: old files, llama.cpp"),
        (right, order, right + strip + 0.08, "left", "half-split: transformers, ours"),
    ):
        sheet.label(x + strip / 2, 0.2, name, 10)
        for place, row in enumerate(rows):
            y = top + step * place
            extent = (x, x + strip, y + step * 0.86, y + step * 0.14)
            weights = head[row : row + 1]
            sheet.axes.imshow(weights, extent=extent, interpolation="nearest", **greys)
            sheet.label(edge, y + step / 2, names[row], 9, ha=ha)
    for place, row in enumerate(order):
        color, style, _ = LINES[row % 2]
        ends = [top + step * (row + 0.5), top + step * (place + 0.5)]
        between = [left + strip + 0.06, right - 0.06]
        sheet.line(between, ends, 1.3, color=color, linestyle=style)
    for pair in range(1, d // 2):
        sheet.line([left, left + strip], [top + step * 2 * pair] * 2, 0.8, color=GREY)
    sheet.line([right, right + strip], [top + step * (d // 2)] * 2, 0.8)
    sheet.axes.set(xlim=(0, width), ylim=(height, -0.34 if title else 0.0), aspect="auto")
    return sheet.figure
