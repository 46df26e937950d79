"""A picture of how numbers lie in a matrix: the two orders of rotary pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinyllm_lib.course.plots import drawing
from tinyllm_lib.course.plots.drawing import GREY, INK, LINES, label, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 0.3  # inches
STRIP, GAP, GUTTER = 2.9, 2.3, 0.5


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
        raise ValueError(
            f"rotary_rows: the head has {d} rows; rows are turned in pairs, so their number must be"
            " even."
        )
    order = [*range(0, d, 2), *range(1, d, 2)]  # right row -> left row
    names = [f"{row // 2}{'ab'[row % 2]}" for row in range(d)]
    alt = (
        f"Two grey maps of the same {d} rows, joined by lines. Adjacent pairs: {' '.join(names)}."
        f" Half-split: {' '.join(names[row] for row in order)}. First members of pairs go to the"
        " upper half, second ones to the lower."
    )
    width, top = 2 * (STRIP + GUTTER) + GAP + 0.16, 0.42
    page, axes = drawing.blank_axes(width, top + ROW * d + 0.1, alt, title)
    x_left, x_right = 0.08 + GUTTER, 0.08 + GUTTER + STRIP + GAP
    scale = {
        "cmap": "Greys",
        "vmin": head.min(),
        "vmax": head.max(),
        "aspect": "auto",
        "interpolation": "nearest",
    }
    for x, rows, name in (
        (x_left, range(d), "adjacent pairs: old files, llama.cpp"),
        (x_right, order, "half-split: transformers, ours"),
    ):
        label(axes, x + STRIP / 2, 0.2, name, size=10)
        for place, row in enumerate(rows):
            y = top + ROW * place
            axes.imshow(
                head[row : row + 1], extent=(x, x + STRIP, y + ROW * 0.86, y + ROW * 0.14), **scale
            )
            edge = x - 0.08 if x == x_left else x + STRIP + 0.08
            label(
                axes, edge, y + ROW / 2, names[row], size=9, ha="right" if x == x_left else "left"
            )
    for place, row in enumerate(order):
        color, style, _ = LINES[row % 2]
        ends = [top + ROW * (row + 0.5), top + ROW * (place + 0.5)]
        axes.plot(
            [x_left + STRIP + 0.06, x_right - 0.06],
            ends,
            color=color,
            linestyle=style,
            linewidth=1.3,
        )
    borders = [(x_left, 2 * pair) for pair in range(1, d // 2)] + [
        (x_right, d // 2)
    ]  # between pairs, and between the halves
    for x, place in borders:
        axes.plot(
            [x, x + STRIP],
            [top + ROW * place] * 2,
            color=INK if x == x_right else GREY,
            linewidth=0.8,
        )
    axes.set(xlim=(0, width), ylim=(top + ROW * d + 0.1, -0.34 if title else 0.0), aspect="auto")
    return page
