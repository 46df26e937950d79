"""Pretraining documents to be read rather than known: stories and papers with questions about
them, causes and effects, and lines of poems.

Their words lie in ``texts/``. ``words.txt`` holds lists, from which slots are drawn: {fruit} and
{fruit2} are two different words of ``fruit``; where a word has fields (铅笔/支/2), {goods_1} is the
field after that of {goods}.
"""

from __future__ import annotations

import random
import re
from functools import cache

from tinyllm_lib.course.world.grammar import expand, read_lines

ASK_MARKS = (
    ("问：", "答："),
    ("问：", "答："),
    ("问题：", "回答："),
    ("提问：", "回答："),
    ("甲：", "乙："),
)
_SLOT = re.compile(r"([a-z]+)(\d*)(?:_(\d))?")
_REASONS = (
    "[因为{cause}，所以{then_effect}。|{effect}，是因为{then_cause}。|{cause}，所以{then_effect}。"
    "|为什么{effect}？因为{then_cause}。|由于{then_cause}，{effect}。|{effect}，这是因为{cause}。]"
)


@cache
def _words() -> dict[str, tuple[tuple[str, ...], ...]]:
    lists = (line.split(": ") for line in read_lines("words"))
    return {name: tuple(tuple(word.split("/")) for word in words.split()) for name, words in lists}


@cache
def _rows(name: str) -> tuple[dict[str, str], ...]:
    """The lines of a table in ``texts/``, by the columns that its first line names."""
    columns, *lines = (line.split("\t") for line in read_lines(name))
    return tuple(dict(zip(columns, line, strict=True)) for line in lines)


@cache
def _told(name: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The lines of a text: a template, and after > questions about it with their answers."""
    parts = (line.partition(">") for line in read_lines(name))
    return tuple((text, tuple(asked.split("/")) if asked else ()) for text, _, asked in parts)


class Draws(dict[str, str]):
    """Slots that are drawn from the lists of words when first named, and then stay."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self._drawn: dict[str, dict[str, tuple[str, ...]]] = {}

    def __missing__(self, slot: str) -> str:
        match = _SLOT.fullmatch(slot)
        if match is None or match[1] not in _words():
            raise KeyError(slot)
        name, number, field = match.groups()
        drawn = self._drawn.setdefault(name, {})
        if number not in drawn:
            taken = {word[0] for word in drawn.values()}
            drawn[number] = self._rng.choice([w for w in _words()[name] if w[0] not in taken])
        self[slot] = drawn[number][int(field or 0)]
        return self[slot]

    def fill(self, template: str) -> str:
        """The template with its alternatives chosen and its slots drawn."""
        return expand(template, self, self._rng)


def story(rng: random.Random) -> str:
    """A wish, what stood in its way, what was tried and how it came out; then what one may ask."""
    draws = Draws(rng)
    quest = rng.choice(_rows("quests"))
    draws.update({name: draws.fill(text) for name, text in quest.items() if name != "hero"})
    draws["hero"] = draws[quest["hero"]]
    text = draws.fill(rng.choice(read_lines("plots")))
    return text + _questions(draws, read_lines("quest_questions"), rng)


def everyday(rng: random.Random) -> str:
    """A few sentences of everyday life, and questions about them."""
    return _told_and_asked("readings", rng)


def paper(rng: random.Random) -> str:
    """A notice, a letter, a shop, a doctor, a recipe; and questions about it."""
    return _told_and_asked("papers", rng)


def reasons(rng: random.Random) -> str:
    """Causes with their effects, and conditions with what follows."""
    count = rng.choice((1, 2, 2, 3))
    texts = [
        _reason(row, Draws(rng)) if rng.random() < 0.75 else _condition(other, Draws(rng))
        for row, other in zip(
            rng.sample(_rows("reasons"), count), rng.sample(_rows("conditions"), count), strict=True
        )
    ]
    return "".join(texts)


def _reason(row: dict[str, str], draws: Draws) -> str:
    """A subject that both cells begin with (a stroke parts it off) is named once, if it can be."""
    for name, text in row.items():
        subject, _, rest = text.rpartition("/")
        draws[f"then_{name}"] = draws.fill(rest)
        draws[name] = draws.fill(subject) + draws[f"then_{name}"]
    return draws.fill(_REASONS)


def _condition(row: dict[str, str], draws: Draws) -> str:
    return draws.fill(f"[如果|要是|假如]{row['condition']}，{row['result']}。")


def poem(rng: random.Random) -> str:
    """Lines of a poem, with its title and its author, or what comes before and after a line."""
    row = rng.choice(_rows("poems"))
    lines = row["lines"].split()
    pairs = [f"{a}，{b}。" for a, b in zip(lines[::2], lines[1::2], strict=True)]
    at = rng.randrange(len(lines) - 1)
    slots = {
        "title": row["title"],
        "author": row["author"],
        "pair": pairs,
        "four": "".join(pairs),
        "first": lines[0],
        "last": lines[-1],
        "this": lines[at],
        "next": lines[at + 1],
    }
    return expand(rng.choice(read_lines("poem_forms")), slots, rng)


def _told_and_asked(name: str, rng: random.Random) -> str:
    template, asked = rng.choice(_told(name))
    draws = Draws(rng)
    return draws.fill(template) + _questions(draws, asked, rng)


def _questions(draws: Draws, asked: tuple[str, ...], rng: random.Random) -> str:
    """None to three of the questions, each on a line of its own, with their answers."""
    ask, reply = rng.choice(ASK_MARKS)
    between = rng.choice(("\n", ""))
    count = min(len(asked), rng.choices((0, 1, 2, 3), weights=(3, 4, 3, 2))[0])
    pairs = [draws.fill(pair).split("=") for pair in rng.sample(asked, count)]
    return "".join(f"\n{ask}{question}{between}{reply}{answer}" for question, answer in pairs)
