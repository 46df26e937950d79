"""Maps and bars: attention, masks, rotary pairs, parts of a model, distributions, exam results."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinyllm_lib.course.plots import drawing
from tinyllm_lib.course.plots.drawing import (
    BLUE,
    FILLS,
    GREY,
    INK,
    PALE,
    natural,
    new_figure,
    picture,
    short_number,
    visible,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Token = str | bytes


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
    margin = max(drawing.text_width(name, 9) for name in names) + 0.15
    side = min(0.42 * length, (8.4 - margin) / columns - 0.25)
    size = max(6.0, min(10.0, 52 * side / length))
    alt = f"Attention weights of {len(heads)} head(s) over {length} tokens: {' '.join(names)}"
    figure = new_figure(
        (side + 0.25) * columns + margin + 0.5, (side + 0.4) * rows + margin + 0.3, alt
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(heads):
            axes.set_visible(False)
            continue
        image = axes.imshow(heads[number], cmap="Greys", vmin=0, vmax=1)
        axes.set_title(f"head {number}" if weights.ndim == 3 else title or "", size=10)
        _token_ticks(axes, names, size, side / length)
        axes.tick_params(
            labelleft=number % columns == 0, labelbottom=number + columns >= len(heads)
        )
        if length <= 8 and columns == 1:
            for i, j in zip(*np.nonzero(heads[number] >= 0.005), strict=True):
                shade = "white" if heads[number, i, j] > 0.5 else INK
                axes.text(
                    j,
                    i,
                    f"{heads[number, i, j]:.2f}",
                    ha="center",
                    va="center",
                    size=8,
                    color=shade,
                )
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
    mask = np.asarray(mask, dtype=bool)
    length = len(mask)
    side = min(6.0, max(2.2, 0.34 * length))
    names = (
        [visible(token) for token in tokens]
        if tokens is not None
        else [str(i) for i in range(length)]
    )
    size = max(6.5, min(10.0, 52 * side / length))
    margin = max(drawing.text_width(name, size) for name in names) + 0.4
    open_share = f"{mask.sum()} of {mask.size} pairs of positions are open"
    figure = new_figure(
        side + margin, side + margin + (0.3 if title else 0), f"{title or 'Mask'}: {open_share}."
    )
    axes = figure.subplots()
    from matplotlib.patches import Rectangle

    documents = [0] * length if document_ids is None else list(document_ids)
    order = {document: place for place, document in enumerate(dict.fromkeys(documents))}
    for i, j in zip(*np.nonzero(mask), strict=True):
        fill, _ = FILLS[order[documents[i]] % len(FILLS)]
        axes.add_patch(
            Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=fill, edgecolor="white", linewidth=0.6)
        )
    axes.set(xlim=(-0.5, length - 0.5), ylim=(length - 0.5, -0.5), aspect="equal")
    for place in range(1, length):
        if documents[place] != documents[place - 1]:
            axes.axhline(place - 0.5, color=INK, linewidth=1, linestyle=":")
            axes.axvline(place - 0.5, color=INK, linewidth=1, linestyle=":")
    axes.spines[:].set_visible(True)
    if tokens is not None or length <= 24:
        _token_ticks(axes, names, size, side / length)
    axes.set(xlabel="looks at", ylabel="looks from", title=title or "")
    return figure


def _token_ticks(axes: Axes, names: Sequence[str], size: float, cell: float) -> None:
    """Names at both edges; below, what is wider than a cell (inches) runs downwards, Chinese as
    columns.
    """
    places = range(len(names))
    axes.set_yticks(places, names, size=size)
    chinese = [all(unicodedata.east_asian_width(char) in "WF" for char in name) for name in names]
    wide = [drawing.text_width(name, size) > 1.1 * cell for name in names]
    texts = [
        "\n".join(name) if w and c else name
        for name, w, c in zip(names, wide, chinese, strict=True)
    ]
    axes.set_xticks(places, texts, size=size, linespacing=1.0)
    for tick, w, c in zip(axes.get_xticklabels(), wide, chinese, strict=True):
        tick.set_rotation(90 if w and not c else 0)
    axes.tick_params(length=0)


@picture
def rope_pairs(
    head_dim: int = 8, positions: Sequence[int] = (0, 1, 2, 3, 4, 5, 6, 7), *, base: float = 10000.0
) -> Figure:
    """Rotary position embedding: pair k of a head turns by position x base**(-2k / head_dim).

    One row per pair, one clock per position; the pale hand is position 0.
    """
    pairs = head_dim // 2
    alt = (
        f"Clocks of {pairs} pairs at positions {natural(map(str, positions))}: "
        "the first pair turns by one radian per position, later pairs ever more slowly."
    )
    figure, axes = drawing.blank_axes(1.75 + 0.95 * len(positions), 0.45 + 0.95 * pairs, alt)
    for place, position in enumerate(positions):
        drawing.label(axes, 2.15 + 0.95 * place, 0.25, f"position {position}", size=8.5, color=GREY)
    from matplotlib.patches import Circle

    for k in range(pairs):
        turn = base ** (-2 * k / head_dim)
        y = 0.9 + 0.95 * k
        drawing.label(axes, 0.1, y - 0.1, f"pair {k}", size=10.5, ha="left")
        drawing.label(
            axes, 0.1, y + 0.12, f"{turn:.3g} rad a step", size=8.5, color=GREY, ha="left"
        )
        for place, position in enumerate(positions):
            x, angle = 2.15 + 0.95 * place, position * turn
            axes.add_patch(
                Circle((x, y), 0.36, facecolor="#fafafa", edgecolor="#b0b0b0", linewidth=0.8)
            )
            axes.plot([x, x + 0.34], [y, y], color="#c8c8c8", linewidth=1.2)
            tip = (x + 0.34 * math.cos(angle), y - 0.34 * math.sin(angle))
            style = {
                "arrowstyle": "-|>",
                "color": BLUE,
                "linewidth": 1.8,
                "shrinkA": 0,
                "shrinkB": 0,
            }
            axes.annotate("", tip, (x, y), arrowprops=style)
    return figure


@picture
def parts_bar(parts: Mapping[str, Mapping[str, float]], *, title: str | None = None) -> Figure:
    """Which part of the model holds how much of what, as bars of share with the numbers written on.

    Args:
        parts: {"parameters": {"embedding": 786_432, ...}, "FLOPs per token": {...}}; every inner
            dict has the same parts in the same order.
    """
    names = list(next(iter(parts.values())))
    alt = "; ".join(
        f"{what}: "
        + ", ".join(f"{name} {short_number(number)}" for name, number in numbers.items())
        for what, numbers in parts.items()
    )
    figure = new_figure(
        9.0, 0.5 + 0.34 * len(names) * (1 if len(parts) > 1 else 1.1) + 0.3 * bool(title), alt
    )
    for place, (axes, (what, numbers)) in enumerate(
        zip(
            figure.subplots(1, len(parts), squeeze=False, sharey=True)[0],
            parts.items(),
            strict=True,
        )
    ):
        total = sum(numbers.values())
        shares = [number / total for number in numbers.values()]
        fill, hatch = FILLS[place % len(FILLS)]
        axes.barh(names, shares, color=fill, hatch=hatch, edgecolor=INK, linewidth=0.8, height=0.66)
        for row, (share, number) in enumerate(zip(shares, numbers.values(), strict=True)):
            part = f"{share:.1%}" if share >= 0.001 or share == 0 else "<0.1%"
            axes.text(
                share + max(shares) * 0.02,
                row,
                f"{short_number(number)}  ({part})",
                va="center",
                size=9,
            )
        axes.set(xlim=(0, max(shares) * 1.5), ylim=(len(names) - 0.5, -0.5), xticks=[])
        axes.set_title(f"{what}: {short_number(total)}")
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
    if title:
        figure.suptitle(title, size=11, x=0.01, ha="left")
    return figure


@picture
def next_token_bars(
    tokens: Sequence[Token],
    probs: Sequence[float],
    *,
    after: Mapping[str, Sequence[float]] | None = None,
    title: str | None = None,
) -> Figure:
    """The next-token distribution before and after each filter; what a filter removes is marked so.

    Args:
        tokens: the candidates, likeliest first.
        probs: their probabilities before any filter; they need not sum to 1 (only the top ones
            shown).
        after: filter name -> probabilities after it, 0 for a removed token, e.g. {"top-k = 3":
            [...]}.
    """
    names = [visible(token) for token in tokens]
    panels = {
        "before" if after else title or "": list(probs),
        **{name: list(values) for name, values in (after or {}).items()},
    }
    title = title if after else None
    highest = max(max(values) for values in panels.values()) or 1.0
    alt = f"{title or 'Next token'}. " + "; ".join(
        f"{what or 'probabilities'}: "
        + ", ".join(f"{name} {value:.1%}" for name, value in zip(names, values, strict=True))
        for what, values in panels.items()
    )
    width = 1.0 + max(drawing.text_width(name, 11) for name in names) + 2.3 * len(panels)
    figure = new_figure(max(width, 4.5), 0.45 + 0.28 * len(names) + 0.3 * bool(title), alt)
    for place, (axes, (what, values)) in enumerate(
        zip(
            figure.subplots(1, len(panels), squeeze=False, sharey=True)[0],
            panels.items(),
            strict=True,
        )
    ):
        fill, hatch = (FILLS[0][0], "") if place == 0 else ("#fdd9a0", "//")
        axes.barh(
            range(len(names)),
            values,
            color=fill,
            hatch=hatch,
            edgecolor=INK,
            linewidth=0.8,
            height=0.7,
        )
        for row, value in enumerate(values):
            removed = place > 0 and value == 0
            text, color = ("✗ removed", GREY) if removed else (f"{value:.1%}", INK)
            axes.text(value + highest * 0.02, row, text, va="center", size=9, color=color)
        axes.set(xlim=(0, highest * 1.32), ylim=(len(names) - 0.5, -0.5), xticks=[], title=what)
        axes.set_yticks(range(len(names)), names, size=11)
        axes.tick_params(length=0)
        axes.spines["bottom"].set_visible(False)
    if title:
        figure.suptitle(title, size=11, x=0.01, ha="left")
    return figure


def wilson_interval(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927): unlike share ± 2σ it stays in [0, 1] and works at
    0 of n.
    """
    from tinyllm_lib.evaluate import wilson  # here, for it brings transformers along

    return wilson(right, total, z)


@picture
def exam_bars(
    runs: Mapping[str, Mapping[str, tuple[int, int]]], *, title: str | None = None
) -> Figure:
    """Exam results per class and run, with right/total beside each bar and its 95% interval as a
    line.

    Args:
        runs: {"base": {"greeting": (3, 40), ...}, "chat": {...}}; (right, total) per class.
    """
    classes = list(dict.fromkeys(name for results in runs.values() for name in results))
    alt = "Exam. " + "; ".join(
        f"{run}: "
        + ", ".join(f"{name} {right} of {total}" for name, (right, total) in results.items())
        for run, results in runs.items()
    )
    thick = 0.8 / len(runs)
    figure = new_figure(
        9.0, 0.8 + len(classes) * max(0.34, 0.24 * len(runs)) + 0.3 * bool(title), alt
    )
    axes = figure.subplots()
    for place, (run, results) in enumerate(runs.items()):
        fill, hatch = FILLS[place % len(FILLS)]
        rows = [classes.index(name) - 0.4 + thick * (place + 0.5) for name in results]
        shares = [right / max(total, 1) for right, total in results.values()]
        axes.barh(
            rows,
            shares,
            height=thick * 0.92,
            color=fill,
            hatch=hatch,
            edgecolor=INK,
            linewidth=0.8,
            label=run,
        )
        for row, (right, total) in zip(rows, results.values(), strict=True):
            low, high = wilson_interval(right, total)
            axes.plot([low, high], [row, row], color=INK, linewidth=1.6, marker="|", markersize=5)
            axes.text(1.03, row, f"{right}/{total}", va="center", size=9 if thick > 0.25 else 8)
    axes.set(
        xlim=(0, 1.14),
        ylim=(len(classes) - 0.5, -0.5),
        xlabel="share of right answers",
        title=title or "",
    )
    axes.set_yticks(range(len(classes)), [name.replace("_", " ") for name in classes])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
    axes.spines["bottom"].set_bounds(0, 1)
    axes.tick_params(axis="y", length=0)
    if len(runs) > 1:
        figure.legend(loc="outside upper right", ncols=len(runs))
    return figure


@picture
def bar_chart(
    values: Mapping[str, float], *, unit: str = "", title: str | None = None, digits: int = 2
) -> Figure:
    """Plain bars with the number at the end of each, for a handful of named values."""
    alt = f"{title or unit}: " + ", ".join(
        f"{name} {value:.{digits}f} {unit}" for name, value in values.items()
    )
    figure = new_figure(7.5, 0.35 + 0.36 * len(values) + 0.3 * bool(title), alt)
    axes = figure.subplots()
    axes.barh(
        list(values), list(values.values()), color=PALE, edgecolor=INK, linewidth=0.8, height=0.65
    )
    top = max(values.values())
    for row, value in enumerate(values.values()):
        axes.text(
            value + top * 0.015, row, f"{value:.{digits}f} {unit}".strip(), va="center", size=9.5
        )
    axes.set(xlim=(0, top * 1.25), ylim=(len(values) - 0.5, -0.5), xticks=[], title=title or "")
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    return figure
