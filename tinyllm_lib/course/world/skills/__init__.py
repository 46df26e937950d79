"""What a small assistant can do beyond facts and sums, shown in dialogues and asked in the exam."""

from __future__ import annotations

import random

from tinyllm_lib.course.world.skills.base import Row, Turns
from tinyllm_lib.course.world.skills.yes_no import YesNo
from tinyllm_lib.course.world.sums import Sums
from tinyllm_lib.course.world.world import World


class Skills:
    """Writes dialogues for each skill, and the exam's rows about contents that no dialogue shows.

    What is held out follows from a stable hash of the content (a pair of things, a name), so that
    writers with other generators agree about it.
    """

    def __init__(self, world: World, rng: random.Random, sums: Sums) -> None:
        self._parts = {"yes_no": YesNo(world, rng)}

    def turns(self, skill: str) -> Turns:
        """One dialogue of the skill."""
        return self._parts[skill].turns()

    def exam_rows(self, name: str, rng: random.Random) -> list[Row]:
        """The rows of an exam class, without its name; at least 60 (yes_no: pairs of rows)."""
        return self._parts[name].exam_rows(rng)
