"""Two facts, one after the other: the reply says what joins them (合肥在安徽，安徽的简称是皖。)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tinyllm_lib.course.world.facts import aliases
from tinyllm_lib.course.world.grammar import read_lines
from tinyllm_lib.course.world.skills.base import EXAM_ROWS, Row, Turns, held_out, interleave
from tinyllm_lib.course.world.sums import number_in_words
from tinyllm_lib.course.world.world import Deck, World


@dataclass(frozen=True)
class Hop:
    """A question from ``start`` over ``middle`` to ``end``.

    The first fact is about ``first``, the second about ``second``; mostly these are start and
    middle.
    """

    relations: str  # "city.province + province.abbreviation"
    questions: tuple[str, ...]
    template: str
    start: str
    middle: str
    end: str
    first: str
    second: str

    def fill(self, text: str) -> str:
        """The text with this chain's names in its slots."""
        slots = {"{a}": self.start, "{b}": self.middle, "{c}": self.end}
        for slot, name in {**slots, "{f}": self.first, "{g}": self.second}.items():
            text = text.replace(slot, name)
        return text

    @property
    def reply(self) -> str:
        """Both facts, the answer last."""
        return self.fill(self.template)


class TwoHops:
    """Chains whose two facts dialogues may ask for; the exam's chains are shown in no dialogue."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._rng = rng
        steps = _steps(world)
        groups = []
        for line in read_lines("chains"):
            relations, questions, reply = line.split(" > ")
            first, second = (steps.get(name, {}) for name in relations.split(" + "))
            template = (relations, tuple(questions.split("/")), reply)
            group = [Hop(*template, *names) for names in _joined(first, second)]
            groups.append([hop for hop in group if world.allows(hop.fill("{a}{b}{c}"))])
        self._exam = [[hop for hop in group if _is_held_out(hop)] for group in groups]
        shown = [[hop for hop in group if not _is_held_out(hop)] for group in groups]
        self._decks = [Deck(group, rng) for group in shown if group]
        # A chain comes up as often as the root of its number, so that short ones are learned, too.
        self._weights = [len(deck) ** 0.5 for deck in self._decks]

    def turns(self) -> Turns:
        """One or two questions."""
        rng = self._rng
        hops = [
            rng.choices(self._decks, self._weights)[0].deal() for _ in range(rng.choice((1, 1, 2)))
        ]
        return [(hop.fill(rng.choice(hop.questions)), hop.reply) for hop in hops]

    def exam_rows(self, rng: random.Random) -> list[Row]:
        """Chains that no dialogue shows, though it may show each of their parts."""
        rows: list[Row] = []
        for hop in interleave([rng.sample(group, len(group)) for group in self._exam])[:EXAM_ROWS]:
            row: Row = {"question": hop.fill(rng.choice(hop.questions)), "answer": hop.end}
            relation = hop.relations.split(" + ")[1]
            if forms := aliases(relation, hop.end):
                row["answers"] = list(forms)
            rows.append(row)
        return rows


def _is_held_out(hop: Hop) -> bool:
    return held_out("two_hops", hop.relations, hop.start)


def _steps(world: World) -> dict[str, dict[str, str]]:
    """For each relation, and backwards as ~relation, what leads to what in dialogues."""
    steps: dict[str, dict[str, str]] = {}
    for question in world.askable():
        name = question.fact.relation.name
        if "台湾" not in (question.given, question.answer):
            steps.setdefault("~" + name if question.reverse else name, {})[question.given] = (
                question.answer
            )
    for festival, date in steps.get("festival.date", {}).items():
        if month := re.match(r"(\d+)月", date):
            in_words = number_in_words(int(month[1])) + "月"
            steps.setdefault("festival.month", {})[festival] = in_words
    return steps


def _joined(
    first: dict[str, str], second: dict[str, str]
) -> Iterator[tuple[str, str, str, str, str]]:
    """start, middle, end, first and second subject of all chains that make sense."""
    for start, middle in first.items():
        if middle in second:
            chain = (start, middle, second[middle], start, middle)
            if chain[2] not in start + middle:
                yield chain
        for subject, end in second.items():  # 爸爸的哥哥 is 伯伯, and so 爸爸的哥哥的妻子 is 伯母
            if subject.startswith(middle + "的"):
                yield start + subject.removeprefix(middle), middle, end, start, subject
