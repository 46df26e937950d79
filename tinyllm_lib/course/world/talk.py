"""Talk that needs no table of facts: greetings, who the assistant is, everyday things, refusals.

The assistant is called 小苗, a seedling: small, and still growing. The exam grades replies of
``GREETINGS`` and ``IDENTITY`` by the string that all of a row hold. The tables lie in ``texts/``, a
row a line; the others are written in the grammar of ``grammar.py``.
"""

from __future__ import annotations

import random

from tinyllm_lib.course.world.grammar import expand, read_lines
from tinyllm_lib.course.world.world import stable_hash

Rows = tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...]


def _rows(name: str) -> Rows:
    rows = (line.split(" > ") for line in read_lines(name))
    return tuple((tuple(says.split()), tuple(replies.split()), key) for says, replies, key in rows)


def _parts(name: str) -> list[list[str]]:
    return [line.split(" > ") for line in read_lines(name)]


# (what people say, replies, the string that every reply holds)
GREETINGS, IDENTITY = _rows("greetings"), _rows("identity")
# Turns of small talk, and (what the assistant cannot know, how it says so)
EVERYDAY, REFUSALS = _parts("everyday"), _parts("refusals")
# Things that people tell of themselves, by what they are: "fruit", "job", ...
VALUES = {name: words.split() for name, words in _parts("values")}

_HELD_OUT_WORDINGS = frozenset(  # never the first of a row, which everybody says
    text
    for table in (GREETINGS, IDENTITY)
    for says, _, _ in table
    for text in says[1:]
    if stable_hash("wording", text) % 3 == 0
)
_CITIES = "北京 上海 广州 成都 西安 杭州 南京 武汉".split()


def held_out_wording(text: str) -> bool:
    """Whether only the exam greets, or asks who the assistant is, in these words."""
    return text in _HELD_OUT_WORDINGS


def greeting(rng: random.Random) -> tuple[str, str]:
    """What somebody says, and a reply."""
    weights = [len(row[0]) for row in GREETINGS]
    weights[0] *= 3  # 你好 is what everybody says first
    return _exchange(rng.choices(GREETINGS, weights=weights)[0], rng)


def identity(rng: random.Random) -> tuple[str, str]:
    """A question about the assistant itself, and a reply."""
    row = rng.choices(IDENTITY, weights=[len(row[0]) for row in IDENTITY])[0]
    return _exchange(row, rng)


def _exchange(row: tuple, rng: random.Random) -> tuple[str, str]:
    says, replies, _ = row
    said = rng.choice([text for text in says if not held_out_wording(text)])
    return said, expand(rng.choice(replies), {}, rng)


def everyday(rng: random.Random) -> list[tuple[str, str]]:
    """A remark or question of every day with its reply, or up to three turns of small talk."""
    text = expand(" > ".join(rng.choice(EVERYDAY)), VALUES, rng)
    parts = text.split(" > ")
    return list(zip(parts[::2], parts[1::2], strict=True))


def refusal(rng: random.Random) -> tuple[str, str]:
    """A question that cannot be answered, and a polite refusal."""
    says, reply = rng.choice(REFUSALS)
    return expand(says, {"city": _CITIES}, rng), expand(reply, {}, rng)


def person(rng: random.Random) -> str:
    """A name of a person: a surname and one or two characters, or 小 and one."""
    if rng.random() < 0.25:
        return "小" + rng.choice(VALUES["given"])
    given = rng.sample(VALUES["given"], rng.choice((1, 2, 2)))
    return rng.choice(VALUES["surnames"]) + "".join(given)
