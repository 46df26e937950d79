"""A small grammar for varied text, such as ``[早上|傍晚]，{who}[在家|去公园]。``.

Square brackets hold alternatives, of which one is drawn (an empty one is allowed; brackets
may stand inside brackets). Curly braces name a slot that is filled from a dictionary
afterwards, so that the text in a slot is never read as grammar.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

_INNERMOST = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


# What people put around a question. It changes nothing in the answer, and a model has to learn
# that.
_OPENINGS = (
    "我想知道， 请告诉我， 考考你， 我想请教一下， 你好， 帮我想想， 小苗， 我忘了，".split()
)
_ENDINGS = ("你知道吗？", "请回答。", "谢谢！", "能告诉我吗？")
_POLITE = "请问 想问一下， 你知道 你知不知道 请告诉我 告诉我，? 跟我说说 说出 说一说".split()
_BEFORE, _AFTER = "|".join([*_OPENINGS, *_POLITE]), "|".join(_ENDINGS)
_AROUND = re.compile(f"^(?:{_BEFORE})+|(?:{_AFTER}|[呢吗啊呀？！。，])+$")
# A question with one of these is dressed already.
_DRESSED = re.compile("你知|请|想问|吗？")
# Words of a question that mean the same; the text after the arrow may stand for the one before it.
_SAME = tuple(
    pair.split(">")
    for pair in """
        哪里>哪儿 哪座城市>什么城市 哪个>哪一个 是哪个朝代>是什么朝代 在哪个朝代>在什么朝代
        是哪个季节>是什么季节 属于哪个季节>属于什么季节 哪种>哪一种 哪种元素>什么元素
        哪类>哪一类 属于哪一类>算哪一类 谁发明>什么人发明 谁发现>什么人发现 谁写>什么人写
        谁提出>什么人提出 谁建立>什么人建立 者是谁>者是哪一位 的人是谁>的人是哪一位
        什么？>什么呢？ 谁？>谁呢？ 哪里？>哪里呢？ 多少？>多少呢？ 几？>几呢？ 请问>想问一下，
        你知道>你知不知道 有多少>一共有多少 {s}吃什么>{s}都吃什么 换成>换算成 说出>告诉我
        的下一个>后面的那个 的上一个>前面的那个 之后>过后 哪一年>哪年 哪个月>几月
        怎样繁殖>怎么繁殖 主人公>主角 号元素是什么>号元素叫什么 说什么语言>讲什么语言
        意思相反>意思正好相反 流入>注入 建立于>开始于 是谁写的>出自谁的笔下
        排第几>排在第几位 用什么货币>用哪种货币 简称是什么>简称是哪个字 天气怎么样>天气如何
        要看>想看 应该去>得去 用什么符号表示>用哪个符号表示 用什么量词>该用什么量词
        什么颜色的>哪种颜色的 有几条腿>一共有几条腿
    """.split()
)


def read_lines(name: str) -> list[str]:
    """The lines of a file in ``texts/``."""
    path = files("tinyllm_lib.course.world") / "texts" / f"{name}.txt"
    return path.read_text(encoding="utf-8").splitlines()


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
    """The question with an opening or an ending that changes nothing about the answer.

    What is no plain question (写出…。) or has such words already (你知道…吗？) stays as it is.
    """
    if not question.endswith("？") or _DRESSED.search(question):
        return question
    if rng.random() < 0.75:
        return rng.choice(_OPENINGS) + question
    return question + rng.choice(_ENDINGS)


def bare(question: str) -> str:
    """The question without what stands around it and asks nothing."""
    return _AROUND.sub("", question)


def reword(question: str, rng: random.Random) -> str:
    """The question with one of its words, if it can be, replaced by one that means the same."""
    return rng.choice(rewordings(question) or [question])


def rewordings(question: str) -> list[str]:
    """All texts that `reword` can make of a question, beside the question itself."""
    fitting = [(old, new) for old, new in _SAME if old in question and new not in question]
    texts = [(question.replace(old, new, 1), new) for old, new in fitting]
    return [text.replace("吗？", "？") if new == "你知不知道" else text for text, new in texts]
