"""The dialogues of the sample corpus: lists of turns, each (what a person says, the reply).

The writer keeps to the hold-out of ``world.py`` (every dialogue is searched for names that it
must not contain) and remembers what it asked, so that the exam knows what was seen.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

from tinyllm_lib.course.world import talk
from tinyllm_lib.course.world.mix import CorpusMix
from tinyllm_lib.course.world.sums import Sums, working
from tinyllm_lib.course.world.world import (
    COMPARABLE_KINDS,
    KIND_WORDS,
    Deck,
    Question,
    Rotation,
    World,
)

Turns = list[tuple[str, str]]

# Dialogues that name something without telling a fact of the tables. {k}: 国家, {m}: 个.
_NAMING = (
    ("你听说过{s}吗？", "听说过，{s}是一{m}{k}。"),
    ("你知道{s}吗？", "知道，{s}是一{m}{k}。"),
    ("{s}是什么？", "{s}是一{m}{k}。"),
    ("{s}是{k}吗？", "是的，{s}是一{m}{k}。"),
    ("请问{s}是不是一{m}{k}？", "是的，{s}是一{m}{k}。"),
    ("我今天在书上看到了{s}。", "{s}是一{m}{k}，你可以多了解一些。"),
    ("请用“{s}”造一个句子。", "我在书上读到过{s}。"),
    ("请把“{s}”重复一遍。", "{s}。"),
)
_NAMING_PLACES = (
    ("我想去{s}旅行。", "真好，祝你在{s}玩得开心！"),
    ("我有一个朋友住在{s}。", "真好，你可以请朋友讲讲{s}的故事。"),
    ("我刚从{s}回来。", "欢迎回来！在{s}玩得开心吗？"),
    ("怎么在地图上找到{s}？", "看看地图上的地名，慢慢找就能找到{s}。"),
)
_NAMING_TWO = (
    ("{s}和{t}都是{k}吗？", "是的，{s}和{t}都是{k}。"),
    ("{s}和{t}是一样的东西吗？", "不一样，但{s}和{t}都是{k}。"),
    ("请把{s}和{t}写在一起。", "{s}、{t}。"),
)
_PLACES = ("country", "province", "city")
# The question that every learner tries first.
_FIRST_QUESTION = ("country.capital", "中国", "{s}的首都是哪里？")
_BLANKS = ("填空：{q}", "把句子补充完整：{q}", "{q}空格里应该填什么？", "{q}这里缺了什么？")
_MORE = ("再加{d}呢？", "再加上{d}呢？", "那再加{d}呢？")


class DialogueWriter:
    """Writes dialogues that keep to the hold-out.

    Args:
        mix: its `named_other_facts`, `name_objects`, and the shares of ways to ask and to reply.
    """

    def __init__(self, world: World, sums: Sums, rng: random.Random, mix: CorpusMix) -> None:
        self._world, self._sums, self._rng, self._mix = world, sums, rng, mix
        self._wording = Rotation(rng)
        askable = world.askable()
        if not mix.named_other_facts:
            askable = [q for q in askable if world.role_of(q.fact) == "asked"]
        self._questions = Deck(askable, rng)
        self._first = None
        sides: dict[tuple[str, bool], list[Question]] = defaultdict(list)
        subjects: dict[tuple[str, str], list[Question]] = defaultdict(list)
        for question in askable:
            fact, relation = question.fact, question.fact.relation
            if self._first is None and (relation.name, fact.subject) == _FIRST_QUESTION[:2]:
                self._first = question
            sides[relation.name, question.reverse].append(question)
            if not question.reverse and relation.subject_kind in COMPARABLE_KINDS:
                subjects[relation.subject_kind, fact.subject].append(question)
        self._sides = {key: Deck(group, rng) for key, group in sides.items() if len(group) >= 4}
        self._side_names = Deck([key for key, deck in self._sides.items() for _ in deck.items], rng)
        self._same_subject = Deck([group for group in subjects.values() if len(group) > 1], rng)
        self._set_up_names()
        # For the exam: standalone questions in the words used, and what follow-ups put together.
        self.asked: dict[str, Question] = {}
        self.followed: set[frozenset[str]] = set()

    def write(self, kind: str) -> Turns:
        """One dialogue of the kind: greetings, identity, facts, sums, follow_ups, naming, ..."""
        writers: dict[str, Callable[[], Turns]] = {
            "greetings": self._greetings,
            "identity": lambda: [talk.identity(self._rng)],
            "facts": self._facts,
            "sums": self._arithmetic,
            "follow_ups": self._follow_ups,
            "naming": self._naming,
            "everyday": lambda: [talk.everyday(self._rng)],
            "refusals": lambda: [talk.refusal(self._rng, invented_share=self._mix.invented_share)],
        }
        for _ in range(100):
            turns = writers[kind]()
            if self._world.allows("\n".join(text for turn in turns for text in turn)):
                return turns
        raise ValueError(
            f"no dialogue of kind {kind!r} keeps to the hold-out in 100 attempts; "
            "lower named_share and unnamed_share, or set the share of this kind to 0"
        )

    def ask(self, question: Question) -> tuple[str, str]:
        """The question in its next wording, and a reply."""
        return question.fact.fill(self._template(question)), self.reply(question)

    def _template(self, question: Question) -> str:
        key = (question.fact.relation.name, question.fact.subject, question.reverse)
        return self._wording.pick(key, question.phrasings)

    def reply(self, question: Question, *, full: bool | None = None) -> str:
        """A reply to the question; ``full``: one that repeats what was asked about."""
        if full is None:
            full = self._rng.random() < self._mix.full_share
        replies = question.full_replies if full else question.replies
        return question.fact.fill(self._rng.choice(replies))

    def _ask_next(self) -> tuple[str, str]:
        if self._first is not None and self._rng.random() < 0.01:
            question = self._first
            template, reply = _FIRST_QUESTION[2], self.reply(question, full=True)
        else:
            question = self._questions.deal()
            template, reply = self._template(question), self.reply(question)
        draw = self._rng.random()
        if draw < self._mix.blank_share:
            return self._blank(question), reply
        if draw < self._mix.blank_share + self._mix.varied_share:
            return question.in_other_words(template, self._rng), reply
        text = question.fact.fill(template)
        self.asked[text] = question
        return text, reply

    def _blank(self, question: Question) -> str:
        """The question as a statement with a gap (填空：法国的首都是____。)."""
        fact, rng = question.fact, self._rng
        key = ("blank", fact.relation.name, fact.subject, question.reverse)
        statement = self._wording.pick(key, fact.relation.statements)
        gap = "{s}" if question.reverse else "{o}"
        return rng.choice(_BLANKS).replace("{q}", fact.fill(statement.replace(gap, "____")))

    def _greetings(self) -> Turns:
        turns = [talk.greeting(self._rng)]
        if self._rng.random() < 0.15:
            turns.append(talk.identity(self._rng))
        elif self._rng.random() < 0.15:
            turns.append(self._ask_next())
        return turns

    def _facts(self) -> Turns:
        count = self._rng.choices((1, 2, 3), weights=(4, 3, 2))[0]
        turns = [self._ask_next() for _ in range(count)]
        if self._rng.random() < 0.04:
            thanks = (("谢谢", "不客气！"), ("谢谢你", "不客气，有问题随时问我。"))
            turns.append(self._rng.choice(thanks))
        return turns

    def _arithmetic(self) -> Turns:
        rng = self._rng
        if rng.random() < 0.02:
            return [("1+1等于多少？", "1+1=2。")]
        count = rng.choices((1, 2, 3), weights=(6, 2, 1))[0]
        return [self._sums.question(words=rng.random() < 0.06) for _ in range(count)]

    def _follow_ups(self) -> Turns:
        rng = self._rng
        draw = rng.random()
        if draw < 0.3:
            a, b, d = self._sums.chain()
            self.followed.add(frozenset((f"{a}+{b}", str(d))))
            return [(f"{a}+{b}等于多少？", working(a, b) + "。"), more(a + b, d, rng)]
        if draw < 0.45 and len(self._same_subject):
            first, second = rng.sample(self._same_subject.deal(), 2)
            template = self._wording.pick(("it", second.fact.relation.name), second.phrasings)
            return [self.ask(first), (template.replace("{s}", "它"), self.reply(second, full=True))]
        group = self._sides[self._side_names.deal()].deal_different(rng.choice((2, 2, 3)))
        turns = [self.ask(group[0])]
        for before, question in pairwise(group):
            self.followed.add(frozenset((before.given, question.given)))
            turns.append((question.follow_up, self.reply(question)))
        return turns

    def _set_up_names(self) -> None:
        world, rng = self._world, self._rng
        everything = [
            key for key in world.role if key[0] in KIND_WORDS and world.role[key] != "unnamed"
        ]
        named = [key for key in everything if world.role[key] == "named"]
        if self._mix.name_objects:
            kinds = {(fact.relation.object_kind, fact.object) for fact in world.named}
            named += sorted(key for key in kinds if key[0] in KIND_WORDS)
        self._named = Deck(named, rng)
        self._everything = Deck(everything, rng)

    def _naming(self) -> Turns:
        rng = self._rng
        use_named = len(self._named) and rng.random() < 0.6
        kind, name = (self._named if use_named else self._everything).deal()
        word, measure = KIND_WORDS[kind]
        slots = {"{s}": name, "{k}": word, "{m}": measure}
        templates = _NAMING + (_NAMING_PLACES if kind in _PLACES else ())
        if rng.random() < 0.2:
            drawn = self._everything.deal_different(8)
            others = [other for other_kind, other in drawn if other_kind == kind and other != name]
            if others:
                slots["{t}"] = others[0]
                templates = _NAMING_TWO
        says, reply = self._wording.pick(("name", len(templates), name), templates)
        for slot, text in slots.items():
            says, reply = says.replace(slot, text), reply.replace(slot, text)
        return [(says, reply)]


def more(total: int, d: int, rng: random.Random) -> tuple[str, str]:
    """The follow-up turn of a sum (再加3呢？ → 个位2+3=5，十位8+0=8，所以82+3=85。)."""
    return rng.choice(_MORE).replace("{d}", str(d)), working(total, d) + "。"
