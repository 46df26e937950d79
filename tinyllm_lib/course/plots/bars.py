"""Horizontal bars: parts of a model, distributions, exam results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tinyllm_lib.course.plots.drawing import (
    FILLS,
    GREY,
    INK,
    PALE,
    new_figure,
    picture,
    short_number,
    text_width,
)
from tinyllm_lib.course.plots.tokens import Token, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _bars(axes: Axes, rows: Iterable, values: Iterable[float], height: float, **style) -> None:
    axes.barh(list(rows), list(values), height=height, edgecolor=INK, linewidth=0.8, **style)


def _finish(axes: Axes, rows: int, right: float, title: str) -> None:
    """First row on top, no scale below: the numbers stand at the bars."""
    axes.set(xlim=(0, right), ylim=(rows - 0.5, -0.5), xticks=[])
    axes.set_title(title)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)


def _listed(values: Mapping[str, Mapping[str, str]]) -> str:
    """Alt text: "parameters: embedding 1M, norms 96; FLOPs: …"."""
    lists = (", ".join(f"{name} {value}" for name, value in row.items()) for row in values.values())
    return "; ".join(f"{what}: {row}" for what, row in zip(values, lists, strict=True))


@picture
def bar_chart(
    values: Mapping[str, float], *, unit: str = "", title: str | None = None, digits: int = 2
) -> Figure:
    """Plain bars with the number at the end of each, for a handful of named values."""
    texts = {name: f"{value:.{digits}f} {unit}" for name, value in values.items()}
    alt = _listed({title or unit: texts})
    figure = new_figure(7.5, 0.35 + 0.36 * len(values) + 0.3 * bool(title), alt)
    axes = figure.subplots()
    _bars(axes, values, values.values(), 0.65, color=PALE)
    top = max(values.values())
    for row, (name, value) in enumerate(values.items()):
        axes.text(value + top * 0.015, row, texts[name].strip(), va="center", size=9.5)
    _finish(axes, len(values), top * 1.25, title or "")
    return figure


@picture
def stacked_bars(rows: Mapping[str, Mapping[str, int]], *, title: str | None = None) -> Figure:
    """Counts of the parts of a whole, end to end in one bar for each row.

    Args:
        rows: {"fact_named": {"said": 60, "forgotten": 4}, ...}; each with the same parts in order.
    """
    listed = {row: {part: str(n) for part, n in parts.items()} for row, parts in rows.items()}
    alt = f"{title or 'Counts'}. {_listed(listed)}"
    names = [row.replace("_", " ") for row in rows]
    figure = new_figure(9.0, 0.75 + 0.36 * len(rows) + 0.3 * bool(title), alt)
    axes = figure.subplots()
    longest = max(sum(parts.values()) for parts in rows.values()) or 1
    ends = [0] * len(rows)
    for place, part in enumerate(next(iter(rows.values()))):
        fill, hatch = FILLS[place % len(FILLS)]
        values = [parts[part] for parts in rows.values()]
        _bars(axes, names, values, 0.68, left=list(ends), color=fill, hatch=hatch, label=part)
        for row, value in enumerate(values):
            if value > longest / 50:  # else there is no room for it
                label = axes.text(ends[row] + value / 2, row, str(value), va="center", ha="center")
                label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.2})
            ends[row] += value
    _finish(axes, len(rows), longest * 1.02, title or "")
    figure.legend(loc="outside lower left", ncols=len(FILLS))
    return figure


@picture
def parts_bar(parts: Mapping[str, Mapping[str, float]], *, title: str | None = None) -> Figure:
    """Which part of the model holds how much of what, as bars of share with the numbers written on.

    Args:
        parts: {"parameters": {"embedding": 786_432, ...}, "FLOPs per token": {...}}; every inner
            dict has the same parts in the same order.
    """
    names = list(next(iter(parts.values())))
    texts = {
        what: {name: short_number(number) for name, number in numbers.items()}
        for what, numbers in parts.items()
    }
    height = 0.34 * len(names) * (1 if len(parts) > 1 else 1.1)
    figure = new_figure(9.0, 0.5 + height + 0.3 * bool(title), _listed(texts))
    panels = figure.subplots(1, len(parts), squeeze=False, sharey=True)[0]
    for place, (axes, (what, numbers)) in enumerate(zip(panels, parts.items(), strict=True)):
        total = sum(numbers.values())
        shares = [number / total for number in numbers.values()]
        fill, hatch = FILLS[place % len(FILLS)]
        _bars(axes, names, shares, 0.66, color=fill, hatch=hatch)
        for row, (share, text) in enumerate(zip(shares, texts[what].values(), strict=True)):
            part = f"{share:.1%}" if share >= 0.001 or share == 0 else "<0.1%"
            axes.text(share + max(shares) * 0.02, row, f"{text}  ({part})", va="center", size=9)
        _finish(axes, len(names), max(shares) * 1.5, f"{what}: {short_number(total)}")
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
        probs: their probabilities before any filter, which need not sum to 1.
        after: filter name -> probabilities after it, 0 for a removed token, e.g. {"top-k = 3":
            [...]}.
    """
    names = [visible(token) for token in tokens]
    panels = {"before" if after else title or "": probs, **(after or {})}
    title = title if after else None
    highest = max(max(values) for values in panels.values()) or 1.0
    listed = {
        what or "probabilities": {
            name: f"{value:.1%}" for name, value in zip(names, values, strict=True)
        }
        for what, values in panels.items()
    }
    alt = f"{title or 'Next token'}. {_listed(listed)}"
    width = 1.0 + max(text_width(name, 11) for name in names) + 2.3 * len(panels)
    figure = new_figure(max(width, 4.5), 0.45 + 0.28 * len(names) + 0.3 * bool(title), alt)
    drawn = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for place, (axes, (what, values)) in enumerate(zip(drawn, panels.items(), strict=True)):
        fill, hatch = FILLS[min(place, 1)]
        _bars(axes, range(len(names)), values, 0.7, color=fill, hatch=hatch)
        for row, value in enumerate(values):
            removed = place > 0 and value == 0
            text, color = ("✗ removed", GREY) if removed else (f"{value:.1%}", INK)
            axes.text(value + highest * 0.02, row, text, va="center", size=9, color=color)
        axes.set_yticks(range(len(names)), names, size=11)
        _finish(axes, len(names), highest * 1.32, what)
    if title:
        figure.suptitle(title, size=11, x=0.01, ha="left")
    return figure


@picture
def exam_bars(
    runs: Mapping[str, Mapping[str, tuple[int, int]]], *, title: str | None = None
) -> Figure:
    """Exam results per class and run, with right/total beside each bar and its 95% interval as a
    line.

    Args:
        runs: {"base": {"greeting": (3, 40), ...}, "chat": {...}}; (right, total) per class.
    """
    from tinyllm_lib.evaluate import wilson  # here, for it brings transformers along

    classes = list(dict.fromkeys(name for results in runs.values() for name in results))
    listed = {
        run: {name: f"{right} of {total}" for name, (right, total) in results.items()}
        for run, results in runs.items()
    }
    thick, height = 0.8 / len(runs), len(classes) * max(0.34, 0.24 * len(runs))
    figure = new_figure(9.0, 0.8 + height + 0.3 * bool(title), f"Exam. {_listed(listed)}")
    axes = figure.subplots()
    for place, (run, results) in enumerate(runs.items()):
        fill, hatch = FILLS[place % len(FILLS)]
        rows = [classes.index(name) - 0.4 + thick * (place + 0.5) for name in results]
        shares = [right / max(total, 1) for right, total in results.values()]
        _bars(axes, rows, shares, thick * 0.92, color=fill, hatch=hatch, label=run)
        for row, (right, total) in zip(rows, results.values(), strict=True):
            ends = wilson(right, total)
            axes.plot(ends, [row, row], color=INK, linewidth=1.6, marker="|", markersize=5)
            axes.text(1.03, row, f"{right}/{total}", va="center", size=9 if thick > 0.25 else 8)
    axes.set(xlim=(0, 1.14), ylim=(len(classes) - 0.5, -0.5), title=title or "")
    axes.set_xlabel("share of right answers")
    axes.set_yticks(range(len(classes)), [name.replace("_", " ") for name in classes])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
    axes.spines["bottom"].set_bounds(0, 1)
    axes.tick_params(axis="y", length=0)
    if len(runs) > 1:
        figure.legend(loc="outside upper right", ncols=len(runs))
    return figure
