"""Which of two is larger, earlier, nearer, and how many there are: the reply shows the steps."""

from __future__ import annotations

import random
from typing import NamedTuple

from tinyllm_lib.course.world.skills.base import EXAM_ROWS, Row, Turns, held_out, take
from tinyllm_lib.course.world.talk import VALUES, person
from tinyllm_lib.course.world.world import Deck, World

_NUMBERS = {
    "大": (
        "{a}和{b}哪个大？",
        "{a}和{b}相比，哪个更大？",
        "{a}大还是{b}大？",
        "比较{a}和{b}，哪个数大？",
    ),
    "小": (
        "{a}和{b}哪个小？",
        "{a}和{b}相比，哪个更小？",
        "{a}小还是{b}小？",
        "比较{a}和{b}，哪个数小？",
    ),
}
_HAVE = {
    "多": "{p}有{a}{m}{t}，{q}有{b}{m}，谁的{t}多？",
    "少": "{p}有{a}{m}{t}，{q}有{b}{m}，谁的{t}少？",
    "大": "{p}{a}岁，{q}{b}岁，谁年纪大？",
    "小": "{p}{a}岁，{q}{b}岁，谁年纪小？",
    "高": "{p}身高1{a}厘米，{q}身高1{b}厘米，谁更高？",
    "矮": "{p}身高1{a}厘米，{q}身高1{b}厘米，谁更矮？",
}
_COUNTED = (
    "个苹果",
    "本书",
    "支铅笔",
    "张邮票",
    "颗糖",
    "朵花",
    "个气球",
    "块饼干",
    "只风筝",
    "枚贝壳",
)


class _Order(NamedTuple):
    """Things in a row: the relation that numbers them, and how one speaks of first and last."""

    relation: str
    place: str  # 水星排第1
    first: tuple[tuple[str, ...], str]  # questions, and the words before the answer
    last: tuple[tuple[str, ...], str]
    opening: str = ""


_BEFORE = (("{a}和{b}哪个在前？", "{a}和{b}，哪个排在前面？", "{a}在前还是{b}在前？"), "在前的是")
_AFTER = (("{a}和{b}哪个在后？", "{a}和{b}，哪个排在后面？", "{a}在后还是{b}在后？"), "在后的是")
_ORDERS = (
    _Order(
        "planet.position",
        "{x}是第{n}颗",
        (("{a}和{b}哪个离太阳近？", "{a}和{b}相比，哪颗离太阳更近？"), "离太阳近的是"),
        (("{a}和{b}哪个离太阳远？", "{a}和{b}相比，哪颗离太阳更远？"), "离太阳远的是"),
    ),
    _Order("solar_term.position", "{x}是第{n}个节气", _BEFORE, _AFTER),
    _Order("zodiac.position", "{x}排第{n}", _BEFORE, _AFTER, "十二生肖里，"),
    _Order(
        "element.number",
        "{x}是{n}",
        (("{a}和{b}，哪个的原子序数小？", "{a}和{b}，谁的原子序数更小？"), "原子序数小的是"),
        (("{a}和{b}，哪个的原子序数大？", "{a}和{b}，谁的原子序数更大？"), "原子序数大的是"),
    ),
    _Order(
        "dynasty.founded",
        "{x}建立于{n}",
        (("{a}和{b}哪个早？", "{a}和{b}，哪个朝代更早？", "先有{a}还是先有{b}？"), "更早的是"),
        (("{a}和{b}哪个晚？", "{a}和{b}，哪个朝代更晚？"), "更晚的是"),
    ),
    _Order("month", "{x}是第{n}个月", _BEFORE, _AFTER),
)  # fmt: skip
# What is counted, and its measure word.
_LISTS = {
    "fruit": "种",
    "job": "种",
    "hobby": "样",
    "dish": "样",
    "subject": "门",
    "goods": "样",
    "color": "种",
}
Exchange = tuple[str, str]  # a question and its reply
Answered = tuple[Exchange, str]
_COUNTING = (
    "{l}，一共有几{m}？", "数一数，{l}，一共几{m}？", "{l}，这里说了几{m}？", "数数有几{m}：{l}。",
)  # fmt: skip


class Comparison:
    """Numbers, things in order, and short lists; pairs and lists of the exam are shown nowhere."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._rng = rng
        self._places = {order: _places(world, order.relation) for order in _ORDERS}
        numbers, people = (self._numbers,) * 4, (self._people,) * 3
        ordered, counted = (self._ordered,) * 6, (self._counted,) * 3
        self._kinds = Deck((*numbers, *people, *ordered, *counted), rng)

    def turns(self) -> Turns:
        """One or two questions, of several kinds."""
        rng = self._rng
        return [self._kinds.deal()(rng, for_exam=False)[0][0] for _ in range(rng.choice((1, 1, 2)))]

    def exam_rows(self, rng: random.Random) -> list[Row]:
        """Pairs of rows, one for each way round (which is larger, which is smaller); and lists."""
        kinds = (self._numbers, self._ordered, self._people, self._ordered, self._ordered)
        made: list[tuple[Answered, ...]] = []
        seen: set[frozenset[str]] = set()
        while len(made) < EXAM_ROWS // 2:
            both = kinds[len(made) % len(kinds)](rng, for_exam=True)
            if (things := frozenset(answer for _, answer in both)) not in seen:
                seen.add(things)
                made.append(both)
        rows: list[Row] = []
        for number, both in enumerate(made, 1):
            pair = f"comparison {number}"
            rows += [{"question": q, "answer": answer, "pair": pair} for (q, _), answer in both]
        counted = [self._counted(rng, for_exam=True)[0] for _ in range(10)]
        return rows + [{"question": q, "answer": answer} for (q, _), answer in counted]

    # Each gives one question and its turn round, as ((question, reply), answer).

    def _numbers(self, rng: random.Random, *, for_exam: bool) -> tuple[Answered, ...]:
        def draw() -> tuple[int, int]:
            top = rng.choice((9, 99, 99, 99))
            a = rng.randint(0, top)
            near = a // 10 * 10 + rng.randint(0, 9)  # the same tens, one time in three
            return a, near if rng.random() < 0.33 else rng.randint(0, top)

        a, b = take(draw, lambda ab: ab[0] != ab[1] and _fits("number", *ab, for_exam))
        steps = _digits(a, b)
        larger, smaller = max(a, b), min(a, b)
        made = [
            ((_put(rng.choice(_NUMBERS[word]), a, b), f"{steps}更{word}的是{n}。"), str(n))
            for word, n in (("大", larger), ("小", smaller))
        ]
        return _shuffled(made, rng)

    def _people(self, rng: random.Random, *, for_exam: bool) -> tuple[Answered, ...]:
        words = rng.choice((("多", "少"), ("大", "小"), ("高", "矮")))
        low, high = (20, 79) if words[0] == "高" else (6, 60)

        def draw() -> tuple[str, str, int, int]:
            return person(rng), person(rng), rng.randint(low, high), rng.randint(low, high)

        def fits(drawn: tuple[str, str, int, int]) -> bool:
            p, q, a, b = drawn
            return p not in q and q not in p and a != b and _fits("people", p, q, for_exam)

        p, q, a, b = take(draw, fits)
        thing = rng.choice(_COUNTED)
        slots = {"{p}": p, "{q}": q, "{m}": thing[0], "{t}": thing[1:]}
        made = []
        for word, wanted in zip(words, (max(a, b), min(a, b)), strict=True):
            question = _put(_HAVE[word], a, b)
            for slot, text in slots.items():
                question = question.replace(slot, text)
            who = p if wanted == a else q
            shown = [100 + n if words[0] == "高" else n for n in (max(a, b), min(a, b))]
            made.append(
                ((question, f"{shown[0]}比{shown[1]}大，{_ending(word, thing)}{who}。"), who)
            )
        return _shuffled(made, rng)

    def _ordered(self, rng: random.Random, *, for_exam: bool) -> tuple[Answered, ...]:
        order = rng.choice([order for order, places in self._places.items() if len(places) > 4])
        places = self._places[order]
        names = list(places)

        def fits(pair: list[str]) -> bool:
            a, b = pair
            return a not in b and b not in a and _fits(order.relation, a, b, for_exam)

        a, b = take(lambda: rng.sample(names, 2), fits)
        steps = "，".join(_said(order, x, places[x][1]) for x in (a, b))
        earlier, later = sorted((a, b), key=lambda x: places[x][0])
        made = [
            ((_put(order.opening + rng.choice(questions), a, b), f"{steps}，{words}{name}。"), name)
            for (questions, words), name in ((order.first, earlier), (order.last, later))
        ]
        return _shuffled(made, rng)

    def _counted(self, rng: random.Random, *, for_exam: bool) -> tuple[Answered, ...]:
        """How many are named (苹果、梨、桃子，一共有几种？ → 苹果1，梨2，桃子3，一共3种。)."""
        name = rng.choice(list(_LISTS))
        measure = _LISTS[name]

        def draw() -> list[str]:
            return rng.sample(VALUES[name], rng.randint(2, 6))

        things = take(draw, lambda things: _fits("list", "、".join(things), "", for_exam))
        question = rng.choice(_COUNTING).replace("{l}", "、".join(things)).replace("{m}", measure)
        steps = "，".join(f"{thing}{n}" for n, thing in enumerate(things, 1))
        return (((question, f"{steps}，一共{len(things)}{measure}。"), str(len(things))),)


def _fits(what: str, a: object, b: object, for_exam: bool) -> bool:
    """Whether this pair, in whatever order, is the exam's or the dialogues'."""
    return held_out("comparison", what, *sorted((str(a), str(b)))) == for_exam


def _put(question: str, a: object, b: object) -> str:
    return question.replace("{a}", str(a)).replace("{b}", str(b))


def _shuffled(made: list[Answered], rng: random.Random) -> tuple[Answered, ...]:
    return tuple(rng.sample(made, len(made)))


def _digits(a: int, b: int) -> str:
    """How the digits decide, up to the verdict (十位3比4小，)."""
    if (a < 10) != (b < 10):
        return f"{max(a, b)}是两位数，{min(a, b)}是一位数，"
    if a // 10 != b // 10:
        return f"十位{a // 10}比{b // 10}{'大' if a > b else '小'}，"
    same = f"十位都是{a // 10}，个位" if a > 9 else ""
    return f"{same}{a % 10}比{b % 10}{'大' if a > b else '小'}，"


def _ending(word: str, thing: str) -> str:
    ends = {
        "多": f"{thing[1:]}多的是",
        "少": f"{thing[1:]}少的是",
        "高": "更高的是",
        "矮": "更矮的是",
    }
    return ends.get(word, f"年纪{word}的是")


def _said(order: _Order, name: str, place: str) -> str:
    return order.place.replace("{x}", name).replace("{n}", place)


def _places(world: World, relation: str) -> dict[str, tuple[int, str]]:
    """Where each thing stands: a number to sort by, and as the facts say it."""
    if relation == "month":
        months = [f.subject for f in world.by_relation.get("month.next", ())]
        return {name: (n, str(n)) for n, name in enumerate(months, 1)}
    places = {}
    for question in world.askable():
        fact = question.fact
        if fact.relation.name == relation and world.allows(fact.subject):
            digits = int("".join(c for c in fact.object if c.isdigit()))
            places[fact.subject] = (-digits if "前" in fact.object else digits, fact.object)
    return places
