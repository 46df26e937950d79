"""Is a difference between two variants more than what seeds do?"""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

# Student's t, two-sided 95%, by degrees of freedom (seeds - 1).
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}


class Comparison(NamedTuple):
    """The mean difference of the losses, and the 95% interval in which the true one lies."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What it says of the second variant: better, worse, or that nobody can tell."""
        if self.low > 0:
            return "worse"
        return "better" if self.high < 0 else "not told apart"


def compare(before: Sequence[float], after: Sequence[float]) -> Comparison:
    """Differences seed by seed, after minus before: what a seed does to both of them drops out.

    Args:
        before, after: losses of two variants, those of one seed at the same place.

    Raises:
        ValueError: fewer than two seeds, more than the table knows, or not the same number of both.
    """
    if len(before) != len(after) or len(before) - 1 not in T95:
        counts = f"{len(before)} and {len(after)} losses"
        raise ValueError(f"{counts}: expected the same seeds in both, from 2 to {max(T95) + 1}.")
    differences = [b - a for a, b in zip(before, after, strict=True)]
    half = T95[len(differences) - 1] * stdev(differences) / math.sqrt(len(differences))
    return Comparison(mean(differences), mean(differences) - half, mean(differences) + half)
