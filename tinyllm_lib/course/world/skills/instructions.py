"""Doing what is asked: sentences with a word, repeating, turning round, translating, counting."""

from __future__ import annotations

import random
from collections.abc import Callable

from tinyllm_lib.course.world.grammar import read_lines
from tinyllm_lib.course.world.skills.base import EXAM_ROWS, Row, Turns, held_out, take
from tinyllm_lib.course.world.talk import VALUES
from tinyllm_lib.course.world.world import World

_MAKE = (
    "请用“{w}”造一个句子。", "用“{w}”造句。", "用“{w}”造个句子吧。", "写一句带有“{w}”的话。",
    "请说一句有“{w}”的话。", "造句：{w}", "你会用“{w}”造句吗？", "帮我用“{w}”写一句话。",
)  # fmt: skip
_ABOUT = ("写一句关于{w}的话。", "请写一句话，说说{w}。", "用一句话说说{w}。")
_REVERSE = ("把“{w}”倒过来写。", "“{w}”倒过来怎么写？", "请把“{w}”反过来写一遍。", "倒着写“{w}”。")
_REPEAT = ("把“{w}”说{n}遍。", "请把“{w}”重复{n}遍。", "跟我念{n}遍：{w}。", "“{w}”，请写{n}遍。")
_JOIN = ("用“{x}”把“{a}”、“{b}”连起来。", "请把{a}、{b}这两个词用“{x}”连起来。")
_LENGTH = ("“{w}”有几个字？", "数一数“{w}”有几个字。", "“{w}”一共几个字？", "“{w}”是几个字？")
_TO_ENGLISH = (
    "“{w}”用英语怎么说？",
    "把“{w}”翻译成英语。",
    "{w}的英语是什么？",
    "请把“{w}”译成英语。",
)
_TO_CHINESE = (
    "{w}是什么意思？",
    "把{w}翻译成汉语。",
    "英语单词{w}是什么意思？",
    "{w}用汉语怎么说？",
)
_SORT = ("把{l}从{x}到{y}排一排。", "请把{l}从{x}到{y}排列。", "{l}，从{x}到{y}怎么排？")
_ONE = ("{q}只回答一个字。", "只用一个字回答：{q}", "{q}请用一个字回答。")
_LINES = """
    春天来了 今天天气真好 我爱我的家 小鸟在唱歌 好好学习 天天向上 月亮出来了 我们去爬山 下雨了
    早上好 白日依山尽 黄河入海流 春眠不觉晓 床前明月光 锄禾日当午 我喜欢看书 花开了 祝你生日快乐
    一路平安 万事如意 太阳升起来了 树叶变黄了 你好吗 明天见 小猫睡着了 大家一起唱歌 保护环境
    节约用水 注意安全 新年快乐 举头望明月 红掌拨清波 我有一个好朋友 弟弟在画画 火车开走了
    雪花飘下来了 门开着 谢谢你
""".split()
_TIMES = {2: "两", 3: "三"}
Made = tuple[str, str, Row]  # the question, the reply, and what a row checks


class Instructions:
    """Each kind makes a question, its reply and the row's checks; the exam's contents are new."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world, self._rng = world, rng
        self._groups = self._words()
        pairs = " ".join(read_lines("english")).split()
        self._english = list(zip(pairs[::2], pairs[1::2], strict=True))
        self._short = [
            q
            for q in world.askable()
            if q.fact.relation.name in ("word.antonym", "province.abbreviation")
            and len(q.answer) == 1
            and q.answer not in q.given
        ]
        self._kinds: list[tuple[Callable[..., Made], int, int]] = [
            # its share of dialogues, and its rows of the exam
            (self._sentence, 10, 18),
            (self._translate, 9, 6),
            (self._length, 4, 6),
            (self._sort, 4, 6),
            (self._reverse, 3, 6),
            (self._repeat, 3, 7),
            (self._one, 3, 6),
            (self._join, 2, 5),
        ]

    def _words(self) -> list[tuple[list[str], list[str], bool]]:
        """Groups of words, the sentences for them, and whether one can write about them."""
        groups = {name: VALUES[name] for name in ("fruit", "job", "hobby", "dish", "subject")}
        for kind, name in self._world.by_subject:
            if kind in ("animal", "country", "city"):
                groups.setdefault(kind, []).append(name)
        for fact in self._world.by_relation.get("thing.category", ()):
            groups.setdefault(fact.object, []).append(fact.subject)
        sentences = []
        for line in read_lines("sentences"):
            name, patterns = line.split(" > ")
            words = groups.get(name[1:], []) if name.startswith("@") else [name.removeprefix("~")]
            words = [word for word in words if self._world.allows(word)]
            sentences.append((words, patterns.split("|"), name[0] in "@~"))
        return [group for group in sentences if group[0]]

    def turns(self) -> Turns:
        """One or two instructions."""
        rng = self._rng
        makers, weights, _ = zip(*self._kinds, strict=True)
        chosen = rng.choices(makers, weights, k=rng.choice((1, 1, 2)))
        return [make(rng, for_exam=False)[:2] for make in chosen]

    def exam_rows(self, rng: random.Random) -> list[Row]:
        """Words, lines and numbers that no dialogue treats so."""
        rows: dict[str, Row] = {}
        for make, _, count in self._kinds:
            most = len(rows) + count
            for _ in range(50 * count):
                question, reply, checks = make(rng, for_exam=True)
                content = "".join(checks.get("all_of", reply))
                if len(rows) < most:
                    rows.setdefault(content, {"question": question, "answer": reply, **checks})
        return list(rows.values())[:EXAM_ROWS]

    def _sentence(self, rng: random.Random, *, for_exam: bool) -> Made:
        """A sentence with a word; the exam's words are among those that share their patterns."""
        weights = [len(words) ** 0.5 for words, *_ in self._groups]

        def draw() -> tuple[str, str, bool]:
            words, patterns, topic = rng.choices(self._groups, weights)[0]
            return rng.choice(words), rng.choice(patterns), topic

        word, pattern, topic = take(draw, lambda made: _is("sentence", made[0], for_exam))
        about = _ABOUT if topic and word not in VALUES["hobby"] else ()
        question = rng.choice(_MAKE + about).replace("{w}", word)
        reply = pattern.replace("{w}", word)
        parts = [part for part in word.split("……") if part]
        checks = {"all_of": parts, "none_of": ["造句", "“"], "min_chars": len(word) + 3}
        return question, reply, {**checks, "max_chars": 40, "free": True}

    def _reverse(self, rng: random.Random, *, for_exam: bool) -> Made:
        def draw() -> str:
            digits = "".join(rng.sample("123456789", rng.choice((2, 3, 3))))
            return rng.choice((digits, rng.choice(VALUES["pet"] + VALUES["goods"] + VALUES["job"])))

        word = take(draw, lambda w: 1 < len(w) < 4 and w != w[::-1] and _is("reverse", w, for_exam))
        return rng.choice(_REVERSE).replace("{w}", word), f"{word[::-1]}。", {"answer": word[::-1]}

    def _repeat(self, rng: random.Random, *, for_exam: bool) -> Made:
        words = [*_LINES, *VALUES["fruit"], *VALUES["goods"], *VALUES["hobby"]]
        word = take(lambda: rng.choice(words), lambda w: _is("repeat", w, for_exam))
        times = rng.choice((2, 3, 3))
        question = rng.choice(_REPEAT).replace("{w}", word).replace("{n}", _TIMES[times])
        said = [between.join([word] * times) for between in ("，", "", "、", "。", "！")]
        checks = {"answer": said[0], "answers": said[1:], "max_chars": times * len(word)}
        return question, said[0] + "。", checks

    def _join(self, rng: random.Random, *, for_exam: bool) -> Made:
        def draw() -> list[str]:
            return rng.sample(VALUES[rng.choice(("fruit", "job", "goods", "dish", "color"))], 2)

        a, b = take(draw, lambda ab: _is("join", "/".join(ab), for_exam))
        link = rng.choice("和与跟")
        question = rng.choice(_JOIN).replace("{x}", link).replace("{a}", a).replace("{b}", b)
        return question, f"{a}{link}{b}。", {"answer": f"{a}{link}{b}"}

    def _length(self, rng: random.Random, *, for_exam: bool) -> Made:
        """How many characters: the reply counts them (春1，天2，一共2个字。)."""
        lines = [*_LINES, *VALUES["dish"], *VALUES["hobby"], *VALUES["wrapped"]]
        line = take(lambda: rng.choice(lines), lambda w: _is("length", w, for_exam))
        steps = "，".join(f"{char}{n}" for n, char in enumerate(line, 1))
        question = rng.choice(_LENGTH).replace("{w}", line)
        return question, f"{steps}，一共{len(line)}个字。", {"answer": str(len(line))}

    def _translate(self, rng: random.Random, *, for_exam: bool) -> Made:
        """Of an eighth of the words, dialogues show one direction and the exam asks the other."""

        def draw() -> tuple[str, str, bool]:
            return *rng.choice(self._english), rng.random() < 0.5

        def fits(drawn: tuple[str, str, bool]) -> bool:
            chinese, _, to_english = drawn
            return (held_out("english", chinese) and to_english) == for_exam

        chinese, english, to_english = take(draw, fits)
        if to_english:
            question = rng.choice(_TO_ENGLISH).replace("{w}", chinese)
            return question, f"{chinese}的英语是{english}。", {"answer": english}
        question = rng.choice(_TO_CHINESE).replace("{w}", english)
        return question, f"{english}的意思是{chinese}。", {"answer": chinese}

    def _sort(self, rng: random.Random, *, for_exam: bool) -> Made:
        numbers = take(
            lambda: rng.sample(range(1, 10), rng.choice((3, 3, 4))),
            lambda ns: ns not in (sorted(ns), sorted(ns)[::-1]) and _is("sort", f"{ns}", for_exam),
        )
        up = rng.random() < 0.5
        question = rng.choice(_SORT).replace("{l}", "、".join(map(str, numbers)))
        question = question.replace("{x}", "小大"[not up]).replace("{y}", "大小"[not up])
        said = list(map(str, sorted(numbers, reverse=not up)))
        answers = ["，".join(said), "".join(said), ("<" if up else ">").join(said)]
        return question, "、".join(said) + "。", {"answer": "、".join(said), "answers": answers}

    def _one(self, rng: random.Random, *, for_exam: bool) -> Made:
        """A question whose whole answer is one character."""
        q = take(lambda: rng.choice(self._short), lambda q: _is("one", q.given, for_exam))
        asked = f"{q.given}的{'反义词' if 'antonym' in q.fact.relation.name else '简称'}是什么？"
        question = rng.choice(_ONE).replace("{q}", asked)
        return question, f"{q.answer}。", {"answer": q.answer, "max_chars": 1}


def _is(kind: str, content: str, for_exam: bool) -> bool:
    """Whether this content is the exam's, or the dialogues'."""
    return held_out(kind, content) == for_exam
