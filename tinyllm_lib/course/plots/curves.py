"""Lines over steps, sizes and lengths, and the histogram of lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinyllm_lib.course.plots.drawing import (
    FILLS,
    GREY,
    INK,
    LINES,
    new_figure,
    picture,
    short_number,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIELD_NAMES = {
    "loss": "loss, nats per token",
    "val_loss": "validation loss, nats per token",
    "val_bits_per_byte": "validation loss, bits per byte",
    "tokens_per_second": "tokens per second",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
}


@picture
def line_chart(
    lines: Mapping[str, tuple[Iterable[float], Iterable[float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    log_x: bool = False,
    dots: bool = True,
    zero: bool = False,
    marks: Mapping[float, str] | None = None,
) -> Figure:
    """Lines that differ in colour, dash and marker.

    Args:
        lines: name -> (x values, y values); the name "" gets no legend entry.
        log_x: logarithmic x axis, labelled at the values of the first line.
        dots: draw a marker at each point, for few points.
        zero: let the y axis begin at 0.
        marks: x -> text, a dotted upright line there with the text on top, e.g. the moments of
            samples.
    """
    series = {name: (list(x), list(y)) for name, (x, y) in lines.items()}
    alt = f"{title + ': ' if title else ''}{ylabel} against {xlabel}. " + "; ".join(
        f"{name + ': ' if name else ''}from {y[0]:.4g} at {x[0]:.4g} to {y[-1]:.4g} at {x[-1]:.4g},"
        f" lowest {min(y):.4g}, highest {max(y):.4g}"
        for name, (x, y) in series.items()
    )
    figure = new_figure(7.5, 3.2, alt)
    axes = figure.subplots()
    for place, (name, (x, y)) in enumerate(series.items()):
        color, dash, marker = LINES[place % len(LINES)]
        style = {"marker": marker if dots or len(x) == 1 else None, "markersize": 5}
        axes.plot(x, y, dash, color=color, linewidth=1.8, label=name or None, **style)
    if log_x:
        axes.set_xscale("log")
        ticks = next(iter(series.values()))[0]
        names = [f"{value:,.4g}" if value < 1e4 else short_number(value) for value in ticks]
        axes.set_xticks(ticks, names)
        axes.minorticks_off()
    if zero:
        axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if marks:
        _mark(axes, marks)
    axes.set_title(title or "", pad=20 if marks else None)
    if any(series) and len(series) > 1:
        axes.legend()
    return figure


def _mark(axes: Axes, marks: Mapping[float, str]) -> None:
    for x, text in marks.items():
        axes.axvline(x, color=GREY, linestyle=":", linewidth=1.2)
        above = axes.get_xaxis_transform()  # x in data, y in shares of the height
        axes.text(x, 1.015, text, transform=above, ha="center", va="bottom", size=9, color=INK)


def learning_rate_curve(
    steps: Sequence[int],
    rates: Sequence[float],
    *,
    marks: Mapping[float, str] | None = None,
    title: str | None = None,
) -> Figure:
    """The learning rate at each optimiser step."""
    names = {"xlabel": "step", "ylabel": "learning rate", "title": title}
    return line_chart({"": (steps, rates)}, dots=False, zero=True, marks=marks, **names)


def loss_curve(
    runs: Mapping[str, Sequence[Mapping[str, float]]] | Sequence[Mapping[str, float]],
    *,
    y: str = "loss",
    x: str = "step",
    marks: Mapping[float, str] | None = None,
    title: str | None = None,
) -> Figure:
    """One curve per run from the rows of `metrics.jsonl`.

    Args:
        runs: name -> rows, or the rows of one run; rows without `y` are skipped,
            since not every step is evaluated.
        y: "loss" (nats per token), "val_bits_per_byte", "lr", ... any field of the rows.
        x: "step" or "tokens".
        marks: x -> text, e.g. the steps at which samples were taken.

    Raises:
        ValueError: when no row of a run holds `y`.
    """
    runs = runs if isinstance(runs, Mapping) else {"": runs}
    lines = {}
    for name, rows in runs.items():
        points = [(row[x], row[y]) for row in rows if row.get(y) is not None]
        if not points:
            found = ", ".join(sorted({key for row in rows for key in row})) or "no rows"
            raise ValueError(f"loss_curve: no row of run {name!r} holds {y!r} (found: {found}).")
        lines[name] = tuple(zip(*points, strict=True))
    few = max(len(points[0]) for points in lines.values()) <= 30
    names = {"xlabel": x, "ylabel": FIELD_NAMES.get(y, y), "title": title}
    return line_chart(lines, dots=few, marks=marks, **names)


def compression_curve(
    vocab_sizes: Sequence[int],
    characters_per_token: Mapping[str, Sequence[float]] | Sequence[float],
) -> Figure:
    """Characters per token against vocabulary size, for one text or several."""
    texts = characters_per_token
    texts = texts if isinstance(texts, Mapping) else {"": texts}
    lines = {name: (vocab_sizes, values) for name, values in texts.items()}
    return line_chart(lines, xlabel="vocabulary size", ylabel="characters per token", log_x=True)


def cache_timing(
    lengths: Sequence[int], with_cache: Sequence[float], without_cache: Sequence[float]
) -> Figure:
    """Milliseconds per new token against the length so far, with and without the KV cache."""
    lines = {"without KV cache": (lengths, without_cache), "with KV cache": (lengths, with_cache)}
    return line_chart(lines, xlabel="tokens so far", ylabel="milliseconds per new token", zero=True)


@picture
def lengths_histogram(
    lengths: Sequence[int],
    *,
    limit: int | None = None,
    unit: str = "tokens",
    what: str = "documents",
) -> Figure:
    """How long documents are; with `limit`, where they are cut and how many that touches."""
    lengths = np.asarray(lengths)
    over = "" if limit is None else f", {(lengths > limit).mean():.1%} longer than {limit}"
    title = f"{len(lengths):,} {what}, median {np.median(lengths):.0f} {unit}{over}"
    figure = new_figure(7.5, 2.8, f"Histogram of lengths: {title}.")
    axes = figure.subplots()
    edges = np.histogram_bin_edges(lengths, bins=min(40, max(5, len(np.unique(lengths)))))
    axes.hist(lengths, bins=edges, color=FILLS[0][0], edgecolor=INK, linewidth=0.6)
    axes.grid(axis="y")
    axes.set(xlabel=unit, ylabel=what)
    if limit is not None:
        _mark(axes, {limit: f"limit {limit}"})
    axes.set_title(title, pad=20 if limit is not None else None)
    return figure
