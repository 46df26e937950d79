"""Small arithmetic for the sample corpus: additions of numbers from 0 to 99, some subtractions.

A share of the unordered pairs {a, b} is held out: neither ``a+b`` nor ``b+a``, in digits, in
words or as the subtraction that undoes it, stands anywhere in documents or dialogues. The exam
asks for them, so a right answer shows a rule and not a table. Pairs of two one-digit numbers
are never held out: they *are* the table from which the rule is built.

Larger sums are always shown with their working: 个位7+5=12，十位3+4+1=8，所以37+45=82.
A model writes from left to right, so without the working it would have to know the carry before it
says the first digit; with it, each token needs one entry of a small table. In our trials that was
the difference between a tenth and nearly all of the sums never shown.
"""

from __future__ import annotations

import random

from tinyllm_lib.course.world.grammar import expand
from tinyllm_lib.course.world.world import Deck, stable_hash

LARGEST = 99
_DIGITS = "零一二三四五六七八九"

# What dialogues and the exam ask; {a} and {b} are digits.
SUM_QUESTIONS = """
    {a}+{b}等于多少？ {a}+{b}等于几？ {a}加{b}等于多少？ {a}加{b}等于几？ {a}+{b}=？
    请问{a}加{b}是多少？ 请算一下{a}+{b}。 计算{a}+{b}。
""".split()
DIFFERENCE_QUESTIONS = (
    "{c}-{a}等于多少？",
    "{c}减{a}等于多少？",
    "{c}-{a}=？",
    "请算一下{c}-{a}。",
)
_PEOPLE = "小明 小红 小刚 小丽 小华 小芳 乐乐 豆豆 朵朵 明明 天天 欢欢".split()
_THINGS = (
    ("苹果", "个"), ("橘子", "个"), ("气球", "个"), ("邮票", "张"), ("卡片", "张"), ("贴纸", "张"),
    ("铅笔", "支"), ("书", "本"), ("贝壳", "个"), ("花", "朵"), ("糖", "颗"), ("石子", "颗"),
)  # fmt: skip


def number_in_words(number: int) -> str:
    """0..199 in Chinese: 7 → 七, 15 → 十五, 42 → 四十二, 105 → 一百零五."""
    if not 0 <= number <= 199:
        raise ValueError(f"number_in_words({number}): only 0 to 199 can be written in words")
    if number >= 100:
        rest = number - 100
        if rest == 0:
            return "一百"
        if rest < 10:
            return "一百零" + _DIGITS[rest]
        return "一百" + ("一" if rest < 20 else "") + number_in_words(rest)
    tens, units = divmod(number, 10)
    head = "" if tens == 0 else ("十" if tens == 1 else _DIGITS[tens] + "十")
    return head + (_DIGITS[units] if units or not tens else "")


def held_out_pairs(share: float, seed: int) -> frozenset[tuple[int, int]]:
    """The pairs (a, b), a <= b, that only the exam may show.

    Args:
        share: of all 5050 unordered pairs of 0..99.
    """
    pairs = [(a, b) for b in range(10, LARGEST + 1) for a in range(b + 1)]
    pairs.sort(key=lambda pair: stable_hash(seed, "sum", *pair))
    total = (LARGEST + 1) * (LARGEST + 2) // 2
    return frozenset(pairs[: round(share * total)])


class Sums:
    """Draws sums that may be shown, and writes documents and dialogues about them.

    Args:
        held_out: pairs (a, b), a <= b, that never appear.
        small_share: how often both numbers have one digit.
        uneven_share: how often one number is made to have one digit and the other two, where a
            model is most tempted to write a digit twice (8+55 as 88+55).
    """

    def __init__(
        self,
        held_out: frozenset[tuple[int, int]],
        rng: random.Random,
        *,
        small_share: float = 0.2,
        uneven_share: float = 0.2,
    ) -> None:
        self._held_out = held_out
        self._rng = rng
        self._small_share, self._uneven_share = small_share, uneven_share
        numbers = range(LARGEST + 1)
        ordered = [(a, b) for a in numbers for b in numbers if self.may_show(a, b)]
        self._all = Deck(ordered, rng)
        self._small = Deck([(a, b) for a, b in ordered if a < 10 and b < 10], rng)
        self._uneven = Deck([(a, b) for a, b in ordered if (a < 10) != (b < 10)], rng)

    def may_show(self, a: int, b: int) -> bool:
        """Whether the corpus may contain this sum."""
        return (min(a, b), max(a, b)) not in self._held_out

    def pair(self, *, small: bool | None = None) -> tuple[int, int]:
        """The next two numbers to add."""
        draw = self._rng.random()
        if small is None:
            small = draw < self._small_share
        if small:
            return self._small.deal()
        return (self._uneven if draw > 1 - self._uneven_share else self._all).deal()

    # -- pretraining documents

    def document(self) -> str:
        """One pretraining document with several sums."""
        rng = self._rng
        few = (self._list, self._spoken, self._both_ways, self._worked)
        others = (self._word_problem, self._in_words, self._asked, self._running)
        return rng.choices((*few, *others), weights=(3, 2, 2, 6, 2, 2, 5, 4))[0]()

    def _list(self) -> str:
        rng = self._rng
        between = rng.choice(("\n", "，", "；"))
        sums = [equation(*self.pair(small=True)) for _ in range(rng.randint(5, 10))]
        head = rng.choice(("", "", "口算练习：", "算一算：", "今天的算术题：", "加法练习："))
        return head + between.join(sums) + ("" if between == "\n" else "。")

    def _spoken(self) -> str:
        sums = []
        for _ in range(self._rng.randint(3, 6)):
            a, b = self.pair(small=True)
            sums.append(f"{a}加{b}等于{a + b}。")
        return "".join(sums)

    def _both_ways(self) -> str:
        parts = []
        for _ in range(self._rng.randint(2, 3)):
            a, b = self.pair(small=True)
            c = a + b
            ways = (
                f"{a}+{b}={c}，{b}+{a}={c}。",
                f"{a}+{b}={c}，所以{c}-{a}={b}。",
                f"{c}-{b}={a}，因为{a}+{b}={c}。",
                f"{c}减{a}等于{b}，{a}加{b}等于{c}。",
            )
            parts.append(self._rng.choice(ways))
        return "".join(parts)

    def _worked(self) -> str:
        heads = ("", "", "计算{a}+{b}。", "{a}+{b}怎么算？", "列竖式算{a}+{b}：", "算{a}加{b}：")
        head = self._rng.choice(heads)
        parts = []
        for _ in range(self._rng.randint(2, 3)):
            a, b = self.pair(small=False)
            parts.append(head.replace("{a}", str(a)).replace("{b}", str(b)) + working(a, b) + "。")
        return "".join(parts)

    def _word_problem(self) -> str:
        a, b = self.pair()
        while not (a and b):  # nobody has 0 apples
            a, b = self.pair()
        thing, measure = self._rng.choice(_THINGS)
        first, second = self._rng.sample(_PEOPLE, 2)
        c = a + b
        return expand(
            "[{p}有{a}{m}{t}，{q}有{b}{m}{t}，一共有多少{m}？{w}，一共有{c}{m}。"
            "|{p}原来有{a}{m}{t}，{q}又送来{b}{m}。{w}，现在{p}有{c}{m}{t}。"
            "|盒子里有{a}{m}{t}，{p}又放进去{b}{m}。现在有多少{m}？{w}，答：有{c}{m}。]",
            {"p": first, "q": second, "t": thing, "m": measure}
            | {"a": str(a), "b": str(b), "c": str(c), "w": working(a, b)},
            self._rng,
        )

    def _in_words(self) -> str:
        sums = []
        for _ in range(self._rng.randint(4, 7)):
            a, b = self.pair(small=True)
            sums.append(f"{number_in_words(a)}加{number_in_words(b)}等于{number_in_words(a + b)}")
        return "，".join(sums) + "。"

    def _asked(self) -> str:
        marks = (("问：", "答："), ("老师出题：", "学生答："), ("题目：", "答案："))
        ask, reply = self._rng.choice(marks)
        lines = []
        for _ in range(self._rng.randint(2, 4)):
            question, answer = self.question()
            lines.append(f"{ask}{question}{reply}{answer}")
        return "\n".join(lines)

    def _running(self) -> str:
        """A sum to which a third number is added."""
        a, b, d = self.chain()
        while not (a and b):
            a, b, d = self.chain()
        first, then = working(a, b), working(a + b, d)
        return expand(
            "[先算{a}+{b}，{w}。再加{d}，{v}。|{a}+{b}等于多少？{w}。再加上{d}呢？{v}。"
            "|问：{a}加{b}等于多少？答：{w}。问：再加{d}呢？答：{v}。|{p}有{a}{m}{t}，"
            "又得到{b}{m}，{w}。后来又得到{d}{m}，{v}。]",
            {"p": self._rng.choice(_PEOPLE), "a": str(a), "b": str(b), "d": str(d)}
            | {"w": first, "v": then, **dict(zip("tm", self._rng.choice(_THINGS), strict=True))},
            self._rng,
        )

    # -- dialogues

    def question(self, *, words: bool = False) -> tuple[str, str]:
        """A question with its reply; ``words``: one-digit numbers, written out."""
        rng = self._rng
        if words:
            a, b = self.pair(small=True)
            x, y, z = number_in_words(a), number_in_words(b), number_in_words(a + b)
            return f"{x}加{y}等于{rng.choice(('几', '多少'))}？", f"{x}加{y}等于{z}。"
        if rng.random() < 0.08:
            a, b = self.pair(small=True)
            return ask_difference(a + b, a, rng.choice(DIFFERENCE_QUESTIONS))
        return ask_sum(*self.pair(), rng.choice(SUM_QUESTIONS))

    def chain(self) -> tuple[int, int, int]:
        """Three numbers a, b, d for a follow-up: both a+b and (a+b)+d may be shown."""
        while True:
            a, b = self.pair()
            d = self._rng.randint(1, 20)
            if a + b + d <= LARGEST and self.may_show(a + b, d):
                return a, b, d


def equation(a: int, b: int) -> str:
    """The sum in digits (3+5=8)."""
    return f"{a}+{b}={a + b}"


def working(a: int, b: int) -> str:
    """The sum with its working (个位7+5=12，十位3+4+1=8，所以37+45=82), which small ones lack."""
    if a < 10 and b < 10:
        return equation(a, b)
    units, carry = a % 10 + b % 10, (a % 10 + b % 10) // 10
    tens = f"{a // 10}+{b // 10}{'+1' if carry else ''}={a // 10 + b // 10 + carry}"
    return f"个位{a % 10}+{b % 10}={units}，十位{tens}，所以{equation(a, b)}"


def ask_sum(a: int, b: int, template: str) -> tuple[str, str]:
    """The question and the reply; of one-digit numbers it says ``加`` where the question does."""
    question = template.replace("{a}", str(a)).replace("{b}", str(b))
    spoken = "加" in template and a < 10 and b < 10
    return question, (f"{a}加{b}等于{a + b}" if spoken else working(a, b)) + "。"


def ask_difference(c: int, a: int, template: str) -> tuple[str, str]:
    """The same for c - a."""
    question = template.replace("{c}", str(c)).replace("{a}", str(a))
    reply = f"{c}减{a}等于{c - a}。" if "减" in template else f"{c}-{a}={c - a}。"
    return question, reply
