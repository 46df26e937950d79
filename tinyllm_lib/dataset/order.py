"""The order in which rows are trained on."""

from functools import lru_cache

import numpy as np


class DataOrder:
    """Which rows make up a step: each epoch in an order of its own, by (seed, step) alone."""

    def __init__(self, rows: int, seed: int):
        self.rows = rows
        self._order = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(rows)
        )

    def step_rows(self, step: int, batch_size: int) -> list[int]:
        """The rows of the global batch of `step`, which may run on into the next epoch."""
        places = (divmod(i, self.rows) for i in range(step * batch_size, (step + 1) * batch_size))
        return [int(self._order(epoch)[within]) for epoch, within in places]
