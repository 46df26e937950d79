"""Many short runs at once: a panel for each curve, a row of dots for each variant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tinyllm_lib.course.plots.drawing import BLUE, GREY, INK, PALE, RED, new_figure, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@picture
def curve_panels(
    panels: Mapping[str, tuple[Sequence[float], Mapping[int, float]]],
    *,
    reference: Sequence[float],
    level: float,
    columns: int = 4,
) -> Figure:
    """A panel for each run, all with the same axes: its training loss as a line, its validation
    loss as dots, and behind them another run in grey. A cross stands where a curve breaks off.

    Args:
        panels: name -> (loss of each step, {steps done: validation loss}).
        reference: the losses of the run in grey.
        level: a dotted line across, here the loss of a model that knows nothing.
    """
    rows = math.ceil(len(panels) / columns)
    alt = "; ".join(f"{name}: {_told(*curves)}" for name, curves in panels.items())
    figure = new_figure(9.0, 0.5 + 2.0 * rows, f"Loss against step. In grey a healthy run. {alt}.")
    drawn = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in drawn.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, (losses, validation)) in zip(drawn.flat, panels.items(), strict=False):
        whole = [loss for loss in losses if math.isfinite(loss)]
        axes.axhline(level, color=GREY, linestyle=":", linewidth=1)
        axes.plot(range(1, len(reference) + 1), reference, color=GREY, linewidth=1)
        axes.plot(range(1, len(losses) + 1), losses, color=BLUE, linewidth=1.8)
        if len(whole) < len(losses):
            axes.plot([len(whole)], whole[-1:], "x", color=INK, markersize=9, markeredgewidth=2)
        axes.plot(list(validation), list(validation.values()), "o", color=RED, markersize=4)
        axes.set_title(name)
        axes.grid(axis="y")
        axes.set_ylim(0, 1.45 * level)
        if whole and max(whole) > 1.45 * level:
            axes.text(len(losses), 1.4 * level, f"up to {max(whole):.3g}", ha="right", va="top")
    for axes in drawn.flat[max(0, len(panels) - columns) : len(panels)]:
        axes.tick_params(labelbottom=True)  # what stands below it may be empty
    figure.supxlabel("step", size=10)
    figure.supylabel("loss, nats per token", size=10)
    return figure


def _told(losses: Sequence[float], validation: Mapping[int, float]) -> str:
    whole = [loss for loss in losses if math.isfinite(loss)]
    ends = f"from {losses[0]:.3g} to {whole[-1]:.3g}" if whole else "no numbers"
    broken = f", no number from step {len(whole) + 1} on" if len(whole) < len(losses) else ""
    dots = ", ".join(f"{value:.3g}" for value in validation.values())
    return f"{ends}, highest {max(whole, default=math.nan):.3g}{broken}, validation {dots}"


@picture
def seed_dots(
    values: Mapping[str, Sequence[float]], *, xlabel: str, title: str | None = None
) -> Figure:
    """A row for each variant: a dot for each seed and a bar at their mean. The grey band is what
    the seeds of the first variant span.
    """
    listed = "; ".join(
        f"{name} {', '.join(f'{value:.3f}' for value in found)}" for name, found in values.items()
    )
    alt = f"{title + ': ' if title else ''}{xlabel}, a number for each seed. {listed}."
    figure = new_figure(7.5, 0.9 + 0.36 * len(values), alt)
    axes = figure.subplots()
    first = next(iter(values.values()))
    axes.axvspan(min(first), max(first), color=PALE)
    for row, found in enumerate(values.values()):
        mean = sum(found) / len(found)
        axes.plot(found, [row] * len(found), "o", color=BLUE, markersize=6, markeredgecolor=INK)
        axes.plot([mean, mean], [row - 0.3, row + 0.3], color=INK, linewidth=1.6)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=xlabel, title=title or "")
    return figure
