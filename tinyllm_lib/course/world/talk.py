"""Talk that needs no table of facts: greetings, who the assistant is, everyday things, refusals.

The assistant is called 小苗, a seedling: small, and still growing. The exam grades replies of
``GREETINGS`` and ``IDENTITY`` by the string that all of a row hold. The tables lie in ``texts/``, a
row a line; the other two are written in the grammar of ``grammar.py``.
"""

from __future__ import annotations

import random

from tinyllm_lib.course.world.grammar import expand, read_lines
from tinyllm_lib.course.world.world import stable_hash

Rows = tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...]


def _rows(name: str) -> Rows:
    rows = (line.split(" > ") for line in read_lines(name))
    return tuple((tuple(says.split()), tuple(replies.split()), key) for says, replies, key in rows)


def _pairs(name: str) -> tuple[tuple[str, str], ...]:
    return tuple(tuple(line.split(" > ")) for line in read_lines(name))


# (what people say, replies, the string that every reply holds)
GREETINGS, IDENTITY = _rows("greetings"), _rows("identity")
# (what people say, the reply), and (what the assistant cannot know, how it says so)
EVERYDAY, REFUSALS = _pairs("everyday"), _pairs("refusals")

# Countries that do not exist; no part of a real name.
INVENTED_COUNTRIES = "云朵国 糖果国 月亮国 风车国 蘑菇国 玻璃国 彩虹国 影子国 棉花国 雪人国".split()
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
    return rng.choice([text for text in says if not held_out_wording(text)]), rng.choice(replies)


def everyday(rng: random.Random) -> tuple[str, str]:
    """A remark or question of every day, and a reply."""
    says, reply = rng.choice(EVERYDAY)
    return expand(says, {}, rng), expand(reply, {}, rng)


def refusal(rng: random.Random, *, invented_share: float = 0.0) -> tuple[str, str]:
    """A question that cannot be answered, and a polite refusal.

    Args:
        invented_share: how often it is the capital of a country that does not exist. Teaching a
            model to refuse names it has not met in dialogues also makes it refuse real ones.
    """
    if rng.random() < invented_share:
        name = rng.choice(INVENTED_COUNTRIES)
        return f"{name}的首都是哪里？", f"抱歉，我没有听说过{name}。"
    says, reply = rng.choice(REFUSALS)
    return expand(says, {"city": _CITIES}, rng), expand(reply, {}, rng)
