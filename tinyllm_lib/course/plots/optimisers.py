"""What an optimiser does: paths through a valley, and what a matrix makes of the unit circle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from tinyllm_lib.course.plots.drawing import GREY, INK, LINES, PALE, new_figure, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@picture
def valley_paths(
    height: Callable[[np.ndarray, np.ndarray], np.ndarray],
    paths: Mapping[str, np.ndarray],
    *,
    title: str | None = None,
) -> Figure:
    """The steps of optimisers over the contour lines of a loss of two weights, a panel for each.

    Args:
        height: the loss at arrays of both weights.
        paths: name -> (steps + 1, 2) points, the start first.
    """
    points = {name: np.asarray(path, dtype=float) for name, path in paths.items()}
    told = (
        f"{name}: {len(path) - 1} steps from ({path[0, 0]:.3g}, {path[0, 1]:.3g}) to"
        f" ({path[-1, 0]:.3g}, {path[-1, 1]:.3g}), loss {height(*path[-1]):.2g}, way of"
        f" {np.linalg.norm(np.diff(path, axis=0), axis=1).sum():.3g}"
        for name, path in points.items()
    )
    figure = new_figure(9.5, 2.9, f"{title + '. ' if title else ''}{'; '.join(told)}.")
    every = np.concatenate([*points.values()])
    low, high = every.min(0), every.max(0)
    margin = 0.12 * (high - low)
    xs, ys = (np.linspace(a, b, 80) for a, b in zip(low - margin, high + margin, strict=True))
    grid = height(*np.meshgrid(xs, ys))
    levels = np.quantile(grid, [0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
    panels = figure.subplots(1, len(points), sharex=True, sharey=True, squeeze=False)[0]
    for place, (axes, (name, path)) in enumerate(zip(panels, points.items(), strict=True)):
        color, dash, marker = LINES[place % len(LINES)]
        axes.contour(xs, ys, grid, levels, colors=GREY, linewidths=0.6)
        axes.plot(*path.T, dash, color=color, marker=marker, markersize=3, linewidth=1.1)
        axes.plot(*path[0], "o", color=INK, markersize=6)
        axes.set(title=name, xlabel="first weight")
    panels[0].set_ylabel("second weight")
    if title:
        figure.suptitle(title, size=11, x=0.01, ha="left")
    return figure


@picture
def circle_images(matrices: Mapping[str, np.ndarray], *, title: str | None = None) -> Figure:
    """The ellipse that each 2x2 matrix makes of the unit circle, and where it sends both axes; its
    half axes are the singular values.

    Args:
        matrices: name -> (2, 2).
    """
    arrays = {name: np.asarray(matrix, dtype=float) for name, matrix in matrices.items()}
    sizes = {name: np.linalg.svd(matrix, compute_uv=False) for name, matrix in arrays.items()}
    told = "; ".join(f"{name}: half axes {a:.2f} and {b:.2f}" for name, (a, b) in sizes.items())
    figure = new_figure(2.4 * len(arrays), 2.9, f"{title + '. ' if title else ''}{told}.")
    angles = np.linspace(0, 2 * np.pi, 121)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    reach = 1.15 * max(1.0, *(long for long, _ in sizes.values()))
    panels = figure.subplots(1, len(arrays), squeeze=False)[0]
    for axes, (name, matrix) in zip(panels, arrays.items(), strict=True):
        axes.plot(*circle, ":", color=GREY, linewidth=1)
        axes.fill(*(matrix @ circle), facecolor=PALE, edgecolor=INK, linewidth=1.4)
        for place, (end, dash) in enumerate(zip(matrix.T, ("-", "--"), strict=True)):
            color, _, marker = LINES[place]
            axes.plot([0, end[0]], [0, end[1]], dash, color=color, linewidth=1.8)
            axes.plot(*end, marker, color=color, markersize=5)
        long, short = sizes[name]
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axes.set_axis_off()
        axes.set_title(f"{name}\n{long:.2f} and {short:.2f}", size=10)
    if title:
        figure.suptitle(title, size=11, x=0.01, ha="left")
    return figure
