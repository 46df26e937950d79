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
    "我想知道， 请告诉我， 考考你： 我有个问题， 你好， 帮我想想， 小苗， 题目： 我忘了，".split()
)
_ENDINGS = ("你知道吗？", "请回答。", "谢谢！", "能告诉我吗？")
# Words of a question that mean the same; the text after the arrow may stand for the one before it.
_SAME = tuple(
    pair.split(">")
    for pair in """
        哪里>哪儿 什么地方>哪儿 哪座城市>什么城市 哪座城市>哪座城 哪个>哪一个 哪个国家>什么国家
        哪个省>什么省 哪个洲>什么洲 哪个朝代>什么朝代 哪个季节>什么季节 哪种>哪一种 哪种>什么
        哪类>哪一类 谁发明>什么人发明 谁发现>什么人发现 谁写>什么人写 谁提出>什么人提出
        谁建立>什么人建立 是谁>是哪一位 谁>哪位 什么？>什么呢？ 谁？>谁呢？ 哪里？>哪里呢？
        多少？>多少呢？ 几？>几呢？ 属于哪>算哪 属于哪>归在哪 属于什么>算什么 请问>想问一下，
        你知道>你知不知道 有多少>一共有多少 买东西用什么>买东西要用什么 前面用什么>前面该用什么
        吃什么>该吃什么 换成>换算成 说出>说一说 请告诉我>跟我说说 的下一个>后面的那个
        的上一个>前面的那个 之后>过后 哪一年>哪年 哪个月>几月 从吃的东西来看>从食物上看
        按照食物来分>按吃什么来分类 属于哪个季节>算哪一季 是哪个季节>是哪一季
        在元素的分类里>在化学里 怎样繁殖后代>怎么繁殖 主人公>主要人物 之后是>过后接着是
        的下一个>后面紧跟着的 号元素是什么>号元素叫什么 元素周期表>周期表 说什么语言>讲什么话
        反义词>相反词 意思相反>意思正好相反 流入>注入 建立于>开始于 是谁写的>出自谁的笔下
        日期是什么>日子是几月几日 换算一下是多少>换算一下得多少 排第几>排在第几位
        用什么货币>用哪一种货币 是哪个洲的>是哪一洲的 简称是什么>简称怎么写 天气怎么样>天气如何
        在公历的哪个月>在公历哪个月份 要看>想看 应该去>得去 用什么符号表示>用哪个符号来表示
        代表什么>代表哪种元素 的元素符号>在周期表上的符号 量词是什么>量词该用哪个
        是什么颜色>是哪一种颜色 有几条腿>一共有几条腿 属于哪一类>该归哪一类 是哪一类>算是哪一类
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
    """The question with an opening or an ending that changes nothing about the answer."""
    if rng.random() < 0.75:
        opening = rng.choice(_OPENINGS)
        return opening + question.removeprefix("请问").removeprefix("想问一下，")
    return question + rng.choice(_ENDINGS)


def reword(question: str, rng: random.Random) -> str:
    """The question with one of its words, if it can be, replaced by one that means the same."""
    return rng.choice(rewordings(question) or [question])


def rewordings(question: str) -> list[str]:
    """All texts that `reword` can make of a question, beside the question itself."""
    fitting = [(old, new) for old, new in _SAME if old in question and new not in question]
    texts = [(question.replace(old, new, 1), new) for old, new in fitting]
    return [text.replace("吗？", "？") if new == "你知不知道" else text for text, new in texts]
