"""What the skills share: what is held out, and the shapes of turns and exam rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Any

from tinyllm_lib.course.world.world import Question, stable_hash

Turns = list[tuple[str, str]]  # what a person says, and the reply
Row = dict[str, Any]
EXAM_ROWS = 60
ROOM = 104  # tokens for what is said: a context of 128 also holds the system's message and a reply


def held_out(skill: str, *content: object) -> bool:
    """Whether only the exam shows this content: an eighth of a skill's, by a stable hash."""
    return stable_hash("skill", skill, *content) % 8 == 0


def take(make: Callable[[], Any], fits: Callable[[Any], bool]) -> Any:
    """The first thing made that fits.

    Raises:
        ValueError: none of 2,000 does.
    """
    for _ in range(2000):
        if fits(made := make()):
            return made
    raise ValueError("nothing of 2,000 attempts fits; is nearly everything held out?")


def interleave(groups: Sequence[Sequence[Any]]) -> list[Any]:
    """One of each group in turn, until all are used up."""
    nothing = object()
    rounds = zip_longest(*groups, fillvalue=nothing)
    return [item for item in chain.from_iterable(rounds) if item is not nothing]


def is_short(turns: Turns) -> bool:
    """Whether a small context holds the dialogue: about a token a character, and five a message."""
    return sum(len(text) + 5 for turn in turns for text in turn) <= ROOM


def messages(turns: Turns) -> list[dict[str, str]]:
    """The turns as an exam row's history."""
    roles = ("user", "assistant")
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(roles, turn, strict=True)
    ]


def ask(question: Question, rng: random.Random) -> tuple[str, str]:
    """A question about a fact in one of its wordings, and a reply that repeats what it asks."""
    fact = question.fact
    return fact.fill(rng.choice(question.phrasings)), fact.fill(rng.choice(question.full_replies))
