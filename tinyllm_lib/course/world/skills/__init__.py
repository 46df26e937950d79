"""What a small assistant can do beyond facts and sums, shown in dialogues and asked in the exam."""

from __future__ import annotations

import random

from tinyllm_lib.course.world.skills.base import Row, Turns, is_short
from tinyllm_lib.course.world.skills.hops import TwoHops
from tinyllm_lib.course.world.skills.instructions import Instructions
from tinyllm_lib.course.world.skills.invented import Refusals
from tinyllm_lib.course.world.skills.memory import Memory
from tinyllm_lib.course.world.skills.order import Comparison
from tinyllm_lib.course.world.skills.yes_no import YesNo
from tinyllm_lib.course.world.sums import Sums
from tinyllm_lib.course.world.world import World


class Skills:
    """Writes dialogues for each skill, and the exam's rows about contents that no dialogue shows.

    What is held out follows from a stable hash of the content (a pair of things, a name), so that
    writers with other generators agree about it.

    Args:
        invented_share: how often refusals are about invented names; as often they come with, or
            give way to, a question about a rare real name.
    """

    def __init__(
        self, world: World, rng: random.Random, sums: Sums, *, invented_share: float = 0.4
    ) -> None:
        instructions = Instructions(world, rng)
        others = (instructions.turns, instructions.turns, lambda: [sums.question()])
        memory = Memory(world, rng, lambda: rng.choice(others)())
        yes_no, hops = YesNo(world, rng), TwoHops(world, rng)
        comparison, refusals = Comparison(world, rng), Refusals(world, rng, invented_share)
        self._turns = {
            "yes_no": yes_no.turns,
            "memory": memory.turns,
            "two_hops": hops.turns,
            "comparison": comparison.turns,
            "refusals": refusals.turns,
            "instructions": instructions.turns,
        }
        self._rows = {
            "yes_no": yes_no.exam_rows,
            "memory": memory.exam_rows,
            "two_hops": hops.exam_rows,
            "comparison": comparison.exam_rows,
            "refusal_due": refusals.due_rows,
            "refusal_undue": refusals.undue_rows,
            "instruction": instructions.exam_rows,
        }

    def turns(self, skill: str) -> Turns:
        """One dialogue of the skill: yes_no, memory, two_hops, comparison, refusals, ..."""
        return self._turns[skill]()

    def exam_rows(self, name: str, rng: random.Random) -> list[Row]:
        """The rows of an exam class, without its name; at least 60 (yes_no: pairs of rows)."""
        return self._rows[name](rng)
