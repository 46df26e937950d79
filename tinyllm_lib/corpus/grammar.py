"""A small grammar for varied text: ``[早上|傍晚]，{who}[在家|去公园]。``

Square brackets hold alternatives, of which one is drawn (an empty one is allowed; brackets
may stand inside brackets). Curly braces name a slot that is filled from a dictionary
afterwards, so that the text in a slot is never read as grammar.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

_INNERMOST = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


# What people put around a question. It changes nothing in the answer, and a model has to learn that.
_OPENINGS = ("我想知道，", "请告诉我，", "考考你：", "我有个问题，", "你好，", "帮我想想，", "小苗，", "题目：", "我忘了，")
_ENDINGS = ("你知道吗？", "请回答。", "谢谢！", "能告诉我吗？")


def expand(template: str, slots: Mapping[str, str | Sequence[str]], rng: random.Random) -> str:
    """Draw one text from the template.

    Args:
        slots: the text of each slot, or a sequence of texts from which one is drawn per call.

    Raises:
        KeyError: the template names a slot that ``slots`` does not have.
    """
    while True:
        text = _INNERMOST.sub(lambda match: rng.choice(match.group(1).split("|")), template)
        if text == template:
            break
        template = text
    chosen: dict[str, str] = {}

    def put(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in chosen:
            value = slots[name]
            chosen[name] = value if isinstance(value, str) else rng.choice(value)
        return chosen[name]

    return _SLOT.sub(put, template)


def dress(question: str, rng: random.Random) -> str:
    """The question with an opening or an ending that changes nothing about the answer."""
    if rng.random() < 0.75:
        opening = rng.choice(_OPENINGS)
        return opening + question.removeprefix("请问")
    return question + rng.choice(_ENDINGS)
