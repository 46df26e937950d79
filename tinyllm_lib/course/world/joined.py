"""Facts put together: clauses about one subject, two hops, yes and no, an order.

Clauses are made from the statements of the tables (法国的首都是巴黎。 → 首都是巴黎), so that a
sentence can say several things of a subject, in any order.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import cache

from tinyllm_lib.course.world.facts import Fact
from tinyllm_lib.course.world.grammar import expand, read_lines
from tinyllm_lib.course.world.skills.base import held_out
from tinyllm_lib.course.world.skills.yes_no import denied
from tinyllm_lib.course.world.world import KIND_WORDS, Deck, World

# A statement that goes on so after its subject can do without it, behind another clause.
_CLAUSE = re.compile(
    r"\{s\}(?:的(?=首都|省会|首府|简称|货币|法定|主要|官方|都城|建立|元素|原子|叫声|传统|颜色|字是)"
    r"|(?=在|位于|是|属于|把|注入|最后流|定都|生活在|简称|由|建立于|有\{o\}))(.*\{o\}.*)。"
)
# Relations of which another object is plainly wrong (an antonym or a measure word may have two).
_PLAIN_NO = """
    country.capital country.currency province.capital province.seat province.abbreviation
    element.symbol element.number element.state city.province landmark.country landmark.province
    work.author person.courtesy festival.date science.inventor science.discoverer science.proposer
    planet.type weekday.next month.next solar_term.next animal.class
""".split()
# Relations by whose objects things are sorted.
_SORTED_BY = {
    "thing.category": "按种类分",
    "animal.class": "按类别分",
    "country.continent": "按大洲分",
    "country.currency": "按货币分",
    "city.province": "按省区分",
    "landmark.province": "按地方分",
    "province.region": "按地区分",
    "element.class": "按类别分",
    "element.state": "按常温下的状态分",
    "work.author": "按作者分",
    "person.dynasty": "按朝代分",
    "thing.measure": "按量词分",
}
_SHARED = {"country.currency": "用{}的", "thing.measure": "用“{}”数的"}
# Relations whose objects say where in a row their subjects stand.
_ORDERED = ("solar_term.position", "zodiac.position", "planet.position", "element.number")


@cache
def plain(statements: tuple[str, ...]) -> tuple[str, ...]:
    """The statements that tell a fact in one clause, beginning with one of its two sides."""
    short = (text for text in statements if "，" not in text)
    return tuple(text for text in short if re.match("《?\\{|以\\{o", text)) or statements


@cache
def _led(statements: tuple[str, ...]) -> tuple[str, ...]:
    """The statements whose subject can be left out, so that clauses may follow one another."""
    return tuple(text for text in statements if _CLAUSE.fullmatch(text) and text.count("{s}") == 1)


def _clause(text: str) -> str:
    match = _CLAUSE.fullmatch(text)
    assert match is not None
    return match[1]


class Joiner:
    """Writes what is true of several facts together.

    Args:
        tell: states a fact in a sentence of its own, and counts it as told.
        count: counts a fact that was told in other words.
    """

    def __init__(
        self,
        world: World,
        rng: random.Random,
        tell: Callable[[Fact], str],
        count: Callable[[Fact], None],
    ) -> None:
        self._world, self._rng, self._tell, self._count = world, rng, tell, count
        self._hops = Deck(_hops(world), rng)
        known = [fact for name in _PLAIN_NO for fact in world.by_relation[name]]
        shown = (f for f in known if not held_out("yes_no", f.relation.name, f.subject))
        self._plain_no = Deck([fact for fact in shown if not world.told_only(fact)], rng)
        self._rows = {name: world.by_relation[name] for name in _ORDERED}

    def sentence(self, facts: list[Fact]) -> str:
        """What the facts say of their one subject, in one sentence that begins with it."""
        chosen = self._clauses(facts)
        if len(chosen) < 2:
            return "".join(map(self._tell, facts))
        chosen.sort(key=lambda told: told[0].startswith("{s}的"))  # 在欧洲 can follow no 货币是欧元
        (lead, first), *others = chosen
        parts = [first.fill(lead).removesuffix("。")]
        parts += [fact.fill(_clause(text)) for text, fact in others]
        return "，".join(parts) + "。"

    def riddle(self, facts: list[Fact]) -> str:
        """The facts before the name (有一个国家，首都是巴黎，货币是欧元，它就是法国。)."""
        kind, subject = facts[0].relation.subject_kind, facts[0].subject
        word, measure = KIND_WORDS.get(kind, ("", ""))
        only_one = any(q.reverse for fact in facts for q in self._world.questions(fact))
        chosen = self._clauses(facts, "是") if word and only_one else []
        parts = [fact.fill(_clause(text)) for text, fact in chosen]
        if len(parts) < 2 or any(word[-2:] in part for part in parts):
            return self.sentence(facts)
        template = "[有|我知道]一{m}{w}，{c}，[它就是|这就是]{s}。"
        slots = {"m": measure, "w": word, "c": "，".join(parts), "s": subject}
        return expand(template, slots, self._rng)

    def hops(self) -> str:
        """Two facts that share a name, and now and then what follows from them."""
        rng = self._rng
        texts = []
        for _ in range(rng.choice((1, 1, 2))):
            first, second, shared, conclusions = self._hops.deal()
            told = [self._plainly(fact) for fact in (first, second)]
            if rng.random() < 0.25:
                told.reverse()
            a = first.object if shared else first.subject
            end = rng.choice(conclusions)
            slots = {"a": a, "m": second.subject, "z": second.object}
            follows = end and second.object not in a and rng.random() < 0.6
            ending = "，" + expand(end, slots, rng) if follows else "。"
            texts.append(rng.choice(("，", "，而", "；")).join(told) + ending)
        return "".join(texts)

    def yes_no(self, ask: str, reply: str) -> str:
        """Whether something is so: it is, or it is not and something else is."""
        rng = self._rng
        lines = []
        for _ in range(rng.choice((1, 1, 2, 2, 3))):
            fact = self._plain_no.deal()
            others = [other.object for other in self._world.by_relation[fact.relation.name]]
            wrong = rng.choice([text for text in others if text != fact.object])
            lead = rng.choice(_led(fact.relation.statements) or fact.relation.answers[:1])
            lead = lead.removesuffix("。")
            true, false = fact.fill(lead), lead.replace("{s}", fact.subject).replace("{o}", wrong)
            self._count(fact)
            if lead.endswith("是{o}") and rng.random() < 0.3:
                said = false.replace("是" + wrong, "不是" + wrong)
                lines.append(f"{said}，{rng.choice(('是', '而是'))}{fact.object}。")
                continue
            right = rng.random() < 0.5
            question = true if right else false
            tail = rng.choice(("吗？", "吗？", "，对吗？", "，对不对？", "，是这样吗？"))
            verdict = "没错" if right else denied(lead, wrong)
            lines.append(f"{ask}{question}{tail}{reply}{true}，{verdict}。")
        return "\n".join(lines)

    def order(self) -> str:
        """Which comes first and which is larger: of numbers, and of things that stand in a row."""
        rng = self._rng
        if rng.random() < 0.5:
            return "".join(self._numbers() for _ in range(rng.randint(1, 3)))
        name = rng.choice(_ORDERED)
        facts = rng.sample(self._rows[name], rng.randint(2, 4))
        in_order = sorted(facts, key=lambda fact: int(fact.object))
        told = "，".join(map(self._plainly, facts))
        first, *_, last = (fact.subject for fact in in_order)
        row = "、".join(fact.subject for fact in in_order)
        far = int(in_order[-1].object) - int(in_order[0].object)
        ends = {
            "element.number": f"[所以{first}排在{last}前面|{last}的序数比{first}大{far}]",
            "planet.position": f"[所以{first}离太阳比{last}近|从里到外是{row}]",
        }
        other = f"[所以{first}在{last}前面|按先后排是{row}|{first}在前，{last}在后]"
        return f"{told}，{expand(ends.get(name, other), {}, rng)}。"

    def groups(self) -> str:
        """Things sorted by an object that some of them share (亚洲：蒙古；非洲：加纳、马里。)."""
        rng = self._rng
        name = rng.choice(list(_SORTED_BY))
        by_object: dict[str, list[Fact]] = {}
        for fact in self._world.by_relation[name]:
            by_object.setdefault(fact.object, []).append(fact)
        large = [group for group in by_object.values() if len(group) > 1]
        chosen = [
            rng.sample(group, min(len(group), rng.randint(2, 6)))
            for group in rng.sample(large, min(len(large), rng.randint(2, 4)))
        ]
        facts = [fact for group in chosen for fact in group]
        for fact in facts:
            self._count(fact)
        mark = "《{}》" if name == "work.author" else "{}"
        colon, between, after = rng.choice(
            (("：", "；", "。"), ("有", "，", "。"), ("：", "\n", "。"))
        )
        lines = [
            _SHARED.get(name, "{}").format(group[0].object)
            + colon
            + "、".join(mark.format(fact.subject) for fact in group)
            for group in chosen
        ]
        rng.shuffle(facts)
        mixed = "、".join(mark.format(fact.subject) for fact in facts)
        end = "：" if colon == "有" else "一分。"
        head = f"[把{mixed}{_SORTED_BY[name]}{end}|{_SORTED_BY[name]}{end}||]"
        return expand(head, {}, rng) + between.join(lines) + after

    def _numbers(self) -> str:
        rng = self._rng
        numbers = rng.sample(range(1, 100), rng.randint(3, 7))
        listed = "、".join(map(str, numbers))
        up = "、".join(map(str, sorted(numbers)))
        down = "、".join(map(str, sorted(numbers, reverse=True)))
        a, b = sorted(number for number in rng.sample(range(10, 100), 2))
        same = "十位一样，个位" if a // 10 == b // 10 else "十位"
        x, y = (a % 10, b % 10) if a // 10 == b // 10 else (a // 10, b // 10)
        return expand(
            f"[把{listed}从小到大排，是{up}。|{listed}从大到小是{down}。"
            f"|{listed}里，最大的是{max(numbers)}，最小的是{min(numbers)}。"
            f"|{a}和{b}比，{same}{x}比{y}小，所以{a}比{b}小。"
            f"|{b}和{a}哪个大？{same}{y}比{x}大，所以{b}大。]",
            {},
            rng,
        )

    def _plainly(self, fact: Fact) -> str:
        self._count(fact)
        return fact.fill(self._rng.choice(plain(fact.relation.statements))).removesuffix("。")

    def _clauses(self, facts: list[Fact], unlike: str = "") -> list[tuple[str, Fact]]:
        """For each fact that has one, a statement whose subject can be left out; no two of them go
        on with the same character, if it can be, and none with one of ``unlike``.
        """
        chosen = []
        for fact in facts:
            options = _led(fact.relation.statements)
            options = [text for text in options if _clause(text)[0] not in unlike] or options
            if options:
                self._count(fact)
                chosen.append((self._rng.choice(options), fact))
                unlike += _clause(chosen[-1][0])[0]
        return chosen


def _hops(world: World) -> Iterator[tuple[Fact, Fact, bool, list[str]]]:
    """Pairs of facts by ``texts/conclusions.txt``: the object of the first is the subject of the
    second, or (a relation with ``<``) both have one subject; and what follows from them. Not those
    that the exam asks for.
    """
    for line in read_lines("conclusions"):
        names, _, conclusions = line.partition(":")
        first_name, second_name = names.split()
        shared = first_name.endswith("<")
        of_subject = {fact.subject: fact for fact in world.by_relation[second_name]}
        for first in world.by_relation[first_name.removesuffix("<")]:
            second = of_subject.get(first.subject if shared else first.object)
            asked = held_out("two_hops", f"{first_name} + {second_name}", first.subject)
            if second is not None and first.subject != second.object and not asked:
                yield first, second, shared, conclusions.strip().split("/")
