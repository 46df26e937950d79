"""What was said earlier in the dialogue (我叫小红。 … 我叫什么？), and what was not."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from tinyllm_lib.course.world import talk
from tinyllm_lib.course.world.grammar import expand, read_lines
from tinyllm_lib.course.world.skills.base import (
    EXAM_ROWS,
    Row,
    Turns,
    ask,
    held_out,
    is_short,
    messages,
    take,
)
from tinyllm_lib.course.world.talk import VALUES, person
from tinyllm_lib.course.world.world import Deck, World

# Topic: how one tells it, what the assistant says to that, the question, the reply, and the reply
# when nothing was told.
_TOPICS = {
    topic: tuple(parts) for topic, *parts in (line.split(" > ") for line in read_lines("memory"))
}
_UNTOLD = ["不知道", "没告诉", "没有告诉", "没说", "没有说"]
_CORRECTED = ("age", "home", "birthday")  # what a person may say wrongly first
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _birthday(rng: random.Random) -> str:
    month = rng.randint(1, 12)
    return f"{month}月{rng.randint(1, _DAYS[month - 1])}日"


def _bought(rng: random.Random) -> str:
    some = f"{rng.choice(VALUES['count'])}个{rng.choice(VALUES['goods'])}"
    return rng.choice((some, rng.choice(VALUES["wrapped"])))


def _listed(name: str, rng: random.Random) -> str:
    return rng.choice(VALUES[name])


class Memory:
    """Tells one or two things about the person, talks of something else, and asks for one.

    Args:
        others: makes turns about something else.
    """

    def __init__(self, world: World, rng: random.Random, others: Callable[[], Turns]) -> None:
        self._rng, self._others = rng, others
        self._questions = Deck([q for q in world.askable() if not q.reverse], rng)
        facts = world.by_relation.get("city.province", ())
        cities = [f.subject for f in facts if world.allows(f.subject) and f.object != "台湾"]
        self._topics = Deck(_TOPICS, rng)
        self._makers: dict[str, Callable[[random.Random], str]] = {
            "name": person,
            "friend": person,
            "age": lambda rng: str(rng.randint(5, 19)),
            "home": lambda rng: rng.choice(cities or ["北京"]),
            "dog": partial(_listed, "pet"),
            "cat": partial(_listed, "pet"),
            "number": lambda rng: str(rng.randint(10, rng.choice((99, 999, 9999)))),
            "bought": _bought,
            "birthday": _birthday,
            "keys": partial(_listed, "place"),
            "meeting": lambda rng: _listed("day", rng) + _listed("hour", rng),
        }

    def _value(self, topic: str, rng: random.Random, *, for_exam: bool = False) -> str:
        make = self._makers.get(topic) or partial(_listed, topic)
        return take(lambda: make(rng), lambda value: held_out("memory", value) == for_exam)

    def turns(self) -> Turns:
        """Told and asked for; in one of six dialogues asked for what was not told."""
        rng = self._rng
        asked, other = self._topics.deal_different(2)
        value = self._value(asked, rng)
        draw = rng.random()
        if draw < 0.12:
            told = self._told({other: self._value(other, rng)}, rng) if draw < 0.08 else []
            return [*told, *self._between(rng.choice((0, 1)), rng), _unknown(asked, rng)]
        things = {asked: value}
        if draw < 0.5:
            things = self._shuffled({**things, other: self._value(other, rng)}, rng)
        told = self._told(things, rng)
        if asked in _CORRECTED and rng.random() < 0.15:
            told += self._told({asked: (value := self._value(asked, rng))}, rng, "我说错了，")
        count = rng.choices((0, 1, 2), weights=(2, 5, 2))[0]
        turns = [*told, *self._between(count, rng), _asked(asked, value, rng)]
        if other in things and rng.random() < 0.3:
            turns.append(_asked(other, things[other], rng))
        return turns

    @staticmethod
    def _shuffled(things: dict[str, str], rng: random.Random) -> dict[str, str]:
        return dict(rng.sample(list(things.items()), len(things)))

    def _told(self, things: dict[str, str], rng: random.Random, before: str = "") -> Turns:
        """Each thing told in a turn of its own, or two in one."""
        told = [
            tuple(expand(part, {"v": value}, rng) for part in _TOPICS[topic][:2])
            for topic, value in things.items()
        ]
        if len(told) == 2 and rng.random() < 0.4 and list(things)[1] != "name":
            return [
                (told[0][0] + told[1][0], rng.choice(("好的，我都记住了。", "好的，我记住了。")))
            ]
        return [(before + says, reply) for says, reply in told]

    def _between(self, count: int, rng: random.Random) -> Turns:
        """Turns about something else."""
        makers = (
            lambda: ask(self._questions.deal(), rng),
            lambda: take(lambda: talk.everyday(rng), lambda turns: len(turns) == 1)[0],
            lambda: self._others()[0],
        )
        return [rng.choice(makers)() for _ in range(count)]

    def exam_rows(self, rng: random.Random) -> list[Row]:
        """Values that no dialogue tells; one row in five asks for what was not told."""
        rows: list[Row] = []
        topics = [topic for topic in _TOPICS if self._has_exam_value(topic, rng)]
        deck = Deck(topics, rng)
        while len(rows) < EXAM_ROWS:
            asked, other = deck.deal_different(2)
            things = {topic: self._value(topic, rng, for_exam=True) for topic in (asked, other)}
            if len(rows) % 5 == 4:
                last = _unknown(asked, rng)
                answer = {"answer": "还没有告诉我", "answers": _UNTOLD}
                del things[asked]
            else:
                last = _asked(asked, things[asked], rng)
                answer = {"answer": things[asked]}
                if rng.random() < 0.5:
                    del things[other]
            history = self._before(last, self._shuffled(things, rng), rng)
            rows.append({"question": last[0], **answer, "history": messages(history)})
        return rows

    def _before(self, last: tuple[str, str], things: dict[str, str], rng: random.Random) -> Turns:
        """Turns that tell the things, and something else after a single one; short enough."""

        def draw() -> Turns:
            return [*self._told(things, rng), *self._between(2 - len(things), rng)]

        return take(draw, lambda turns: is_short([*turns, last]))

    def _has_exam_value(self, topic: str, rng: random.Random) -> bool:
        try:
            return bool(self._value(topic, rng, for_exam=True))
        except ValueError:
            return False


def _asked(topic: str, value: str, rng: random.Random) -> tuple[str, str]:
    _, _, question, reply, _ = _TOPICS[topic]
    return expand(question, {}, rng), expand(reply, {"v": value}, rng)


def _unknown(topic: str, rng: random.Random) -> tuple[str, str]:
    _, _, question, _, unknown = _TOPICS[topic]
    return expand(question, {}, rng), unknown
