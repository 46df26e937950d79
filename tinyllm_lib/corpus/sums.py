"""Small arithmetic for the sample corpus: additions of numbers from 0 to 99, some subtractions.

A share of the unordered pairs {a, b} is held out: neither ``a+b`` nor ``b+a``, in digits, in
words or as the subtraction that undoes it, stands anywhere in documents or dialogues. The exam
asks for them, so a right answer shows a rule and not a table. Pairs of two one-digit numbers
are never held out: they *are* the table from which the rule is built.
"""

from __future__ import annotations

import random

from tinyllm_lib.corpus.grammar import expand
from tinyllm_lib.corpus.world import Deck, stable_hash

LARGEST = 99
_DIGITS = "零一二三四五六七八九"

# What dialogues and the exam ask; {a} and {b} are digits.
SUM_QUESTIONS = (
    "{a}+{b}等于多少？",
    "{a}+{b}等于几？",
    "{a}加{b}等于多少？",
    "{a}加{b}等于几？",
    "{a}+{b}=？",
    "请问{a}加{b}是多少？",
    "请算一下{a}+{b}。",
    "计算：{a}+{b}",
)
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
    """

    def __init__(
        self, held_out: frozenset[tuple[int, int]], rng: random.Random, *, small_share: float = 0.2
    ) -> None:
        self._held_out = held_out
        self._rng = rng
        self._small_share = small_share
        ordered = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1) if self.may_show(a, b)]
        self._all = Deck(ordered, rng)
        self._small = Deck([(a, b) for a, b in ordered if a < 10 and b < 10], rng)

    def may_show(self, a: int, b: int) -> bool:
        """Whether the corpus may contain this sum."""
        return (min(a, b), max(a, b)) not in self._held_out

    def pair(self, *, small: bool | None = None) -> tuple[int, int]:
        """The next two numbers to add."""
        if small is None:
            small = self._rng.random() < self._small_share
        return (self._small if small else self._all).deal()

    # -- pretraining documents ---------------------------------------------------------------

    def document(self) -> str:
        """One pretraining document with several sums."""
        rng = self._rng
        writer = rng.choices(
            (self._list, self._spoken, self._both_ways, self._neighbours, self._columns,
             self._word_problem, self._in_words, self._asked),
            weights=(7, 4, 3, 2, 3, 2, 1, 3),
        )[0]  # fmt: skip
        return writer()

    def _list(self) -> str:
        rng = self._rng
        between = rng.choice(("\n", "，", "；"))
        sums = [self._equation(*self.pair()) for _ in range(rng.randint(5, 10))]
        head = rng.choice(("", "", "口算练习：", "算一算：", "今天的算术题：", "加法练习："))
        return head + between.join(sums) + ("" if between == "\n" else "。")

    def _spoken(self) -> str:
        sums = []
        for _ in range(self._rng.randint(3, 6)):
            a, b = self.pair()
            sums.append(f"{a}加{b}等于{a + b}。")
        return "".join(sums)

    def _both_ways(self) -> str:
        parts = []
        for _ in range(self._rng.randint(2, 3)):
            a, b = self.pair()
            c = a + b
            parts.append(
                self._rng.choice(
                    (
                        f"{a}+{b}={c}，{b}+{a}={c}。",
                        f"{a}+{b}={c}，所以{c}-{a}={b}。",
                        f"{c}-{b}={a}，因为{a}+{b}={c}。",
                        f"{c}减{a}等于{b}，{a}加{b}等于{c}。",
                    )
                )
            )
        return "".join(parts)

    def _neighbours(self) -> str:
        a, b = self.pair()
        step = self._rng.choice((1, 1, 10))
        seconds = [n for n in range(b, b + 6 * step, step) if n <= LARGEST and self.may_show(a, n)]
        return "，".join(self._equation(a, second) for second in seconds) + "。"

    def _columns(self) -> str:
        a, b = self.pair(small=False)
        tens_a, units_a = divmod(a, 10)
        tens_b, units_b = divmod(b, 10)
        units = units_a + units_b
        carry = units // 10
        steps = f"计算{a}+{b}。先算个位：{units_a}+{units_b}={units}，"
        steps += f"写{units % 10}，进1。" if carry else f"写{units}。"
        steps += f"再算十位：{tens_a}+{tens_b}={tens_a + tens_b}，"
        steps += f"加上进位的1，得{tens_a + tens_b + 1}。" if carry else "没有进位。"
        return steps + f"所以{a}+{b}={a + b}。"

    def _word_problem(self) -> str:
        a, b = self.pair()
        thing, measure = self._rng.choice(_THINGS)
        first, second = self._rng.sample(_PEOPLE, 2)
        c = a + b
        return expand(
            "[{p}有{a}{m}{t}，{q}有{b}{m}{t}，两个人一共有{c}{m}{t}，因为{a}+{b}={c}。"
            "|{p}原来有{a}{m}{t}，{q}又给了{b}{m}，现在{p}有{c}{m}{t}：{a}+{b}={c}。"
            "|盒子里有{a}{m}{t}，{p}又放进去{b}{m}。现在有多少{m}？{a}+{b}={c}，答：有{c}{m}。"
            "|{p}有{c}{m}{t}，送给{q}{a}{m}，还剩{b}{m}：{c}-{a}={b}。]",
            {"p": first, "q": second, "t": thing, "m": measure, "a": str(a), "b": str(b), "c": str(c)},
            self._rng,
        )

    def _in_words(self) -> str:
        sums = []
        for _ in range(self._rng.randint(4, 7)):
            a, b = self.pair(small=True)
            sums.append(f"{number_in_words(a)}加{number_in_words(b)}等于{number_in_words(a + b)}")
        return "，".join(sums) + "。"

    def _asked(self) -> str:
        ask, reply = self._rng.choice((("问：", "答："), ("老师出题：", "学生答："), ("题目：", "答案：")))
        lines = []
        for _ in range(self._rng.randint(2, 4)):
            question, answer = self.question()
            between = "" if question.endswith(("？", "。")) else "\n"
            lines.append(f"{ask}{question}{between}{reply}{answer}")
        return "\n".join(lines)

    def _equation(self, a: int, b: int) -> str:
        return f"{a}+{b}={a + b}"

    # -- dialogues ---------------------------------------------------------------------------

    def question(self, *, words: bool = False) -> tuple[str, str]:
        """A question with its reply; ``words``: one-digit numbers, written out."""
        rng = self._rng
        if words:
            a, b = self.pair(small=True)
            x, y, z = number_in_words(a), number_in_words(b), number_in_words(a + b)
            return f"{x}加{y}等于{rng.choice(('几', '多少'))}？", f"{x}加{y}等于{z}。"
        a, b = self.pair()
        if rng.random() < 0.15:
            return ask_difference(a + b, a, rng.choice(DIFFERENCE_QUESTIONS))
        return ask_sum(a, b, rng.choice(SUM_QUESTIONS))

    def chain(self) -> tuple[int, int, int]:
        """Three numbers a, b, d for a follow-up: both a+b and (a+b)+d may be shown."""
        while True:
            a, b = self.pair()
            d = self._rng.randint(1, 20)
            if a + b + d <= LARGEST and self.may_show(a + b, d):
                return a, b, d


def ask_sum(a: int, b: int, template: str) -> tuple[str, str]:
    """The question and the reply, which says ``加`` where the question does."""
    question = template.replace("{a}", str(a)).replace("{b}", str(b))
    reply = f"{a}加{b}等于{a + b}。" if "加" in template else f"{a}+{b}={a + b}。"
    return question, reply


def ask_difference(c: int, a: int, template: str) -> tuple[str, str]:
    """The same for c - a."""
    question = template.replace("{c}", str(c)).replace("{a}", str(a))
    reply = f"{c}减{a}等于{c - a}。" if "减" in template else f"{c}-{a}={c - a}。"
    return question, reply
