"""The state behind the sample corpus: which facts there are, and which of them dialogues may use.

The corpus is an experiment as well as teaching material. Pretraining documents state *every*
fact. Dialogues do not: each country, province and chemical element has one of three roles.

    asked    dialogues ask about all of its facts
    named    dialogues name it and may ask for other things, but never for its *held-out fact*
             (for a country: its capital), in neither direction
    unnamed  no dialogue contains its name, nor the object of its held-out fact

The roles come from a hash of the name, so they do not change when a table grows at its end
and do not depend on Python's hash randomisation.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any

from tinyllm_lib.course.world.facts import Fact, Relation, relations
from tinyllm_lib.course.world.grammar import dress, reword

# The relation that is held out for a part of the subjects of a kind.
_HELD_OUT = ("country.capital", "province.capital", "element.symbol")
HELD_OUT_RELATIONS = {name.split(".")[0]: name for name in _HELD_OUT}

# Never held out: a learner types these first, or their names are everyday words.
FAMOUS = frozenset(
    """
        中国 法国 日本 美国 英国 德国 俄罗斯 韩国 印度 意大利 西班牙 加拿大 澳大利亚 巴西 埃及 北京
        上海 天津 重庆 广东 四川 香港 澳门 台湾 氢 氦 碳 氮 氧 氟 氖 钠 镁 铝 硅 磷 硫 氯 钾 钙 铁
        铜 锌 银 锡 金 汞 铅
    """.split()
)

# What a thing is called, with its measure word. Dialogues that only *name* things need it.
KIND_WORDS = {
    "country": ("国家", "个"),
    "province": ("省级行政区", "个"),
    "element": ("化学元素", "种"),
    "city": ("城市", "座"),
    "animal": ("动物", "种"),
    "river": ("河流", "条"),
    "planet": ("行星", "颗"),
    "dynasty": ("朝代", "个"),
    "festival": ("节日", "个"),
    "solar_term": ("节气", "个"),
}

# What stands for a thing that is asked for: an asking word and, apart from it, the noun that goes
# with it unless the sentence has said it (雪的颜色是什么？ 雪呈什么颜色？). 什么 where nothing is
# given, "" where statements make no questions.
ASKING_WORDS = {
    **dict.fromkeys(("city", "province", "sea"), "哪里"),
    **{"country": "哪个 国家", "continent": "哪个 洲", "region": "哪个 地区"},
    **{"person": "谁", "number": "几", "amount": "多少", "legs": "几条腿", "days": "多少天"},
    **{"date": "哪一天", "weekday": "星期几", "month": "几月", "year": "哪一年"},
    **{"season": "什么 季节", "festival": "什么 节日", "solar_term": "什么 节气"},
    **{"dynasty": "什么 朝代", "planet": "什么 行星", "element": "什么 元素"},
    **{"color": "什么 颜色", "currency": "什么 货币", "language": "什么 语言"},
    **{"animal_class": "哪 一类", "element_class": "哪 一类", "category": "哪 一类"},
    **{"diet": "哪种 动物", "state": "什么 状态", "planet_type": "哪类 行星"},
    **{"birth": "什么 方式", "division": "哪类 行政区"},
    "weather": "",
}
# What is no good question, though it was a statement that ends with the answer: what somebody says
# or thinks of (就是什么？ 人们会想到谁？), and what wants another word (是一种什么？ 简称为什么？).
_NO_QUESTION = re.compile(
    "[书牌历]上|老师|学生|同学|孩子|我们|人们|就是|说到|想到|看到|如果|因为|知道|爷爷|奶奶|大家"
    "|一样|一说|其他|画|数一数|不多不少|象声词|这样的|为什么|叫作什么|这一天叫|生肖什么"
    "|一[种个颗条些](什么|哪|谁)|[省区]是哪里"
)

# Kinds whose members are told apart by the same few facts, and which 它 may stand for.
COMPARABLE_KINDS = frozenset("country province element animal river planet dynasty".split())


def stable_hash(*parts: object) -> int:
    """A 64-bit number from the parts; the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


class Deck:
    """Deals its items in shuffled order, over and over: after n·len deals each came n times."""

    def __init__(self, items: Iterable[Any], rng: random.Random) -> None:
        self.items = tuple(items)
        self._rng = rng
        self._left: list[Any] = []

    def __len__(self) -> int:
        return len(self.items)

    def deal(self) -> Any:
        """The next item. An empty deck raises IndexError."""
        if not self._left:
            self._left = list(self.items)
            self._rng.shuffle(self._left)
        return self._left.pop()

    def deal_different(self, count: int) -> list[Any]:
        """Up to ``count`` items, no two alike (fewer when the deck holds fewer)."""
        hand: list[Any] = []
        held_back: list[Any] = []
        while len(hand) < min(count, len(self.items)):
            item = self.deal()
            (held_back if item in hand else hand).append(item)
        self._left.extend(held_back)
        return hand


class Rotation:
    """Walks through the phrasings of each key in turn, so that none is left out by chance."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._next: dict[object, int] = {}

    def pick(self, key: object, options: Sequence[str]) -> str:
        """The next option for this key; the first one is drawn by chance.

        A step of about half the options goes back and forth between the two halves, since tables
        list the phrasings of one direction before those of the other.
        """
        position = self._next.get(key)
        if position is None:
            position = self._rng.randrange(len(options))
        step = len(options) // 2 + 1
        while gcd(step, len(options)) > 1:
            step += 1
        self._next[key] = (position + step) % len(options)
        return options[position % len(options)]


@cache
def _ambiguous() -> frozenset[str]:
    """Statements that several relations share ({s}在{o}。): questions with several answers."""
    uses = Counter(text for relation in relations() for text in relation.statements)
    return frozenset(text for text, count in uses.items() if count > 1)


def _asking_words(text: str, asking: str, noun: str) -> str:
    """What asks for the end of the text: 什么 for a name (首都叫), the noun only once."""
    if text.endswith(("叫", "叫作", "称为")):
        return "什么"
    return asking if noun and text.endswith(noun + "是") else asking + noun


@dataclass(frozen=True)
class Question:
    """A fact seen from one side. ``reverse``: the object is given and the subject is asked for."""

    fact: Fact
    reverse: bool = False

    @property
    def given(self) -> str:
        """What the question names."""
        return self.fact.object if self.reverse else self.fact.subject

    @property
    def answer(self) -> str:
        """The string that a right reply must contain."""
        return self.fact.subject if self.reverse else self.fact.object

    @property
    def phrasings(self) -> tuple[str, ...]:
        """The ways to ask it in dialogues and documents."""
        relation = self.fact.relation
        return relation.reverse_questions if self.reverse else relation.questions

    @property
    def unseen_phrasings(self) -> tuple[str, ...]:
        """Those that only the exam uses."""
        relation = self.fact.relation
        return relation.reverse_unseen_questions if self.reverse else relation.unseen_questions

    @property
    def asked_statements(self) -> tuple[str, ...]:
        """Statements that end with the answer, as questions (法国定都{o}。 → 法国定都哪里？)."""
        gap, kind = self._side(asked_for=True)
        asking, _, noun = ASKING_WORDS.get(kind, "什么").partition(" ")
        questions = []
        for statement in self.fact.relation.statements if asking else ():
            text = statement.removesuffix(gap + "。")
            if text == statement or statement in _ambiguous() or gap in text:
                continue
            question = text + _asking_words(text, asking, noun) + "？"
            if not _NO_QUESTION.search(question):
                questions.append(question)
        return tuple(questions)

    def _side(self, *, asked_for: bool) -> tuple[str, str]:
        """Slot and kind of what is asked for, or of what is given."""
        relation = self.fact.relation
        if asked_for == self.reverse:
            return "{s}", relation.subject_kind
        return "{o}", relation.object_kind

    def in_other_words(self, template: str, rng: random.Random) -> str:
        """The question in a phrasing, varied: another word of the same meaning, a statement turned
        into a question, something around it. Never in a wording that only the exam uses.
        """
        draw = rng.random()
        varied = reword(template, rng)
        if draw < 0.3 and self.asked_statements:
            varied = rng.choice(self.asked_statements)
        text = self.fact.fill(self._with_kind(template if draw > 0.7 else varied, rng))
        if draw > 0.45:
            text = dress(text, rng)
        kept_for_exam = any(self.fact.fill(unseen) in text for unseen in self.unseen_phrasings)
        return self.fact.fill(template) if kept_for_exam else text

    def _with_kind(self, template: str, rng: random.Random) -> str:
        """Now and then, what is asked about with the word for its kind: 法国 → 法国这个国家."""
        slot, kind = self._side(asked_for=False)
        if kind not in KIND_WORDS or kind == "province" or rng.random() > 0.3:
            return template
        word, measure = KIND_WORDS[kind]
        word = word.removeprefix("化学")
        begins = template.startswith(slot) and template.count(slot) == 1
        if not begins or slot + "这" in template or word in template:
            return template
        return template.replace(slot, f"{slot}这{measure}{word}")

    @property
    def replies(self) -> tuple[str, ...]:
        """The ways to answer it."""
        relation = self.fact.relation
        return relation.reverse_answers if self.reverse else relation.answers

    @property
    def full_replies(self) -> tuple[str, ...]:
        """The replies that repeat what was asked about (法国的首都是巴黎。, not 是巴黎。)."""
        given = "{o}" if self.reverse else "{s}"
        return tuple(reply for reply in self.replies if given in reply) or self.replies

    @property
    def follow_up(self) -> str:
        """The question as a second turn (那日本呢？ where a number is given: 那第5个呢？)."""
        relation = self.fact.relation
        if not self.reverse:
            return self.fact.fill(relation.follow_up)
        if relation.object_kind == "number":
            measure = "号" if relation.subject_kind == "element" else "个"
            return f"那第{self.fact.object}{measure}呢？"
        return self.fact.fill(relation.follow_up.replace("{s}", "{o}"))

    @property
    def completion(self) -> str | None:
        """A text that a base model goes on with ``answer``; None when no phrasing gives one."""
        relation = self.fact.relation
        if not self.reverse:
            return self.fact.fill(relation.completion)
        for template in (*relation.statements, *relation.reverse_answers):
            if template.endswith("{s}。") and "{o}" in template:
                return self.fact.fill(template[: -len("{s}。")])
        return None


class World:
    """All facts, with the role of every entity. Read-only after construction.

    Args:
        facts: every fact of the world.
        named_share, unnamed_share: the shares of a kind that get these roles.
        seed: another seed draws other entities.
    """

    def __init__(
        self, facts: Sequence[Fact], *, named_share: float, unnamed_share: float, seed: int
    ) -> None:
        self.facts = tuple(facts)
        self.relations: tuple[Relation, ...] = tuple(
            {fact.relation.name: fact.relation for fact in self.facts}.values()
        )
        self.by_subject: dict[tuple[str, str], list[Fact]] = defaultdict(list)
        self.by_relation: dict[str, list[Fact]] = defaultdict(list)
        for fact in self.facts:
            self.by_subject[fact.relation.subject_kind, fact.subject].append(fact)
            self.by_relation[fact.relation.name].append(fact)
        self._objects_of = Counter((fact.relation.name, fact.subject) for fact in self.facts)
        self._subjects_of = Counter((fact.relation.name, fact.object) for fact in self.facts)
        # Each name once, and by how many subjects' facts it is used.
        self._uses: Counter[str] = Counter()
        for group in self.by_subject.values():
            self._uses.update({name for fact in group for name in (fact.subject, fact.object)})
        self._all_names = "\n".join(self._uses)
        self.role: dict[tuple[str, str], str] = {}
        self._draw_roles(named_share, unnamed_share, seed)

        names = HELD_OUT_RELATIONS.values()
        held_out = [fact for fact in self.facts if fact.relation.name in names]
        self.named = tuple(fact for fact in held_out if self.role_of(fact) == "named")
        self.unnamed = tuple(fact for fact in held_out if self.role_of(fact) == "unnamed")
        self._told_only = {  # every other one of a relation
            fact
            for group in (self.named, self.unnamed)
            for fact in sorted(
                group, key=lambda f: (f.relation.name, stable_hash(seed, "told", f.subject))
            )[::2]
        }
        self._hidden = {text for fact in self.unnamed for text in (fact.subject, fact.object)}
        self._apart = {frozenset((fact.subject, fact.object)) for fact in self.named}
        parts = self._hidden.union(*self._apart)
        longest_first = sorted(parts, key=lambda text: (-len(text), text))
        # Eligible names are no part of one another, so that one scan finds them all.
        self._watched = re.compile("|".join(map(re.escape, longest_first)))

    def role_of(self, fact: Fact) -> str:
        """The role of the subject of the fact: "asked", "named" or "unnamed"."""
        return self.role[fact.relation.subject_kind, fact.subject]

    def held_out(self, fact: Fact) -> bool:
        """Whether no dialogue may tell this fact."""
        role, relation = self.role_of(fact), fact.relation
        if role == "named":
            return HELD_OUT_RELATIONS[relation.subject_kind] == relation.name
        return role == "unnamed"

    def told_only(self, fact: Fact) -> bool:
        """Whether documents state this held-out fact and never ask for it: half of them are so.

        What a model answers for the other half may be a question that it read with its answer.
        """
        return fact in self._told_only

    def allows(self, dialogue_text: str) -> bool:
        """Whether a dialogue with this text keeps to the hold-out."""
        found = set(self._watched.findall(dialogue_text))
        return not found & self._hidden and not any(pair <= found for pair in self._apart)

    def questions(self, fact: Fact) -> list[Question]:
        """The sides from which a fact can be asked for with one right answer: none, one or two."""
        relation = fact.relation
        sides = []
        if self._objects_of[relation.name, fact.subject] == 1:
            sides.append(Question(fact))
        if relation.reverse_questions and self._subjects_of[relation.name, fact.object] == 1:
            sides.append(Question(fact, reverse=True))
        return sides

    def askable(self) -> list[Question]:
        """Every question that dialogues may ask."""
        return [
            question
            for fact in self.facts
            if not self.held_out(fact) and self.allows(fact.subject + "\n" + fact.object)
            for question in self.questions(fact)
        ]

    def _draw_roles(self, named_share: float, unnamed_share: float, seed: int) -> None:
        for subject in self.by_subject:
            self.role[subject] = "asked"
        for kind, relation_name in HELD_OUT_RELATIONS.items():
            facts = self.by_relation.get(relation_name, [])
            eligible = sorted(
                (fact for fact in facts if self._eligible(fact)),
                key=lambda fact: stable_hash(seed, "role", kind, fact.subject),
            )
            unnamed, named = (round(share * len(facts)) for share in (unnamed_share, named_share))
            for rank, fact in enumerate(eligible[: unnamed + named]):
                self.role[kind, fact.subject] = "unnamed" if rank < unnamed else "named"

    def _eligible(self, fact: Fact) -> bool:
        """Whether leaving this fact out of the dialogues can be done, and checked, by a search.

        Not so for famous names, for facts whose answer stands in the question (新加坡), and for
        names that are part of another name or have one as a part (几内亚 in 赤道几内亚). The same
        name in another fact is no obstacle: ``askable`` leaves out every fact with a hidden name.
        """
        if fact.subject in FAMOUS or fact.object in FAMOUS or len(self.questions(fact)) != 2:
            return False
        if fact.subject in fact.object or fact.object in fact.subject:
            return False
        own_facts = self.by_subject[fact.relation.subject_kind, fact.subject]
        own = {name for other in own_facts for name in (other.subject, other.object)}
        for mine in (fact.subject, fact.object):
            # The number of names that are or contain mine, against those among its own facts.
            allowed = {name for name in own if self._uses[name] == 1} | {mine}
            if self._all_names.count(mine) != sum(name.count(mine) for name in allowed):
                return False
            parts = {mine[i:j] for i in range(len(mine)) for j in range(i + 2, len(mine) + 1)}
            if any(part in self._uses and not part.isascii() for part in parts - allowed):
                return False
        return True
