"""Pretraining documents that state facts: cards, mixed notes, lists, comparisons, questions.

Every writer takes its facts from a deck, which deals each one before it deals any twice, and
its wording from a rotation; so after a while every fact has been stated in every phrasing, in
both directions, and none is starved by chance.
"""

from __future__ import annotations

import random
from collections import Counter

from tinyllm_lib.course.world.facts import Fact
from tinyllm_lib.course.world.grammar import expand
from tinyllm_lib.course.world.joined import Joiner, plain
from tinyllm_lib.course.world.mix import CorpusMix
from tinyllm_lib.course.world.reading import ASK_MARKS
from tinyllm_lib.course.world.stories import SCENES, scene_slots
from tinyllm_lib.course.world.world import (
    COMPARABLE_KINDS,
    HELD_OUT_RELATIONS,
    Deck,
    Question,
    Rotation,
    World,
)

# How a list of facts of one relation may be announced.
LIST_TITLES = {
    "country.capital": ("一些国家的首都：", "国家和首都：", "各国首都小抄：", "记一记这些首都："),
    "country.continent": ("这些国家在哪个大洲：", "国家和大洲："),
    "country.currency": ("一些国家的货币：", "国家和货币："),
    "country.language": ("一些国家的官方语言：", "国家和官方语言："),
    "country.spoken": ("不同的国家说什么语言：", "一些国家的主要语言："),
    "province.capital": ("一些省区的省会：", "省会小抄：", "记一记这些省会："),
    "province.abbreviation": ("各地的简称：", "记一记这些简称："),
    "element.symbol": ("元素和符号：", "元素符号小抄：", "记一记这些元素符号："),
    "element.number": ("元素的原子序数：", "原子序数小抄："),
}
SMALL_RELATION = 140  # a relation of 46 facts is told three times as often
_CARD_HEADS = (
    "", "", "说说{s}。", "关于{s}，我们知道这些：", "{s}小档案：", "今天来认识{s}。",
    "知识卡片：{s}\n", "你知道{s}吗？", "书上是这样介绍{s}的：", "下面介绍{s}。",
)  # fmt: skip
_MIXED_HEADS = (
    "", "", "", "小知识：", "知识小抄：", "今天学到的：", "读书笔记：", "记一记：",
    "你知道吗？",
)  # fmt: skip
_COMPARE_HEADS = (
    "", "把{x}和{y}比一比。", "{x}和{y}有什么不同？", "比较{x}与{y}：", "先看{x}，再看{y}。",
    "{x}和{y}，你分得清吗？",
)  # fmt: skip
_BETWEEN = ("，", "，", "；", "。", "。")


class FactWriter:
    """Writes documents about the facts of a world and counts how often each was told.

    Args:
        mix: its `pronoun_share`, `focus` and `varied_share`. Relations of few facts (the months,
            the planets) are dealt up to four times as often, since few have taught the model what
            is asked there.
    """

    def __init__(self, world: World, rng: random.Random, mix: CorpusMix) -> None:
        self._world, self._rng, self._mix = world, rng, mix
        self._wording = Rotation(rng)
        self.told: Counter[tuple[str, str, str]] = Counter()
        subjects = list(world.by_subject)
        self._rich = Deck([key for key in subjects if len(world.by_subject[key]) > 1], rng)
        comparable = [key for key in self._rich.items if key[0] in COMPARABLE_KINDS]
        self._comparable = Deck(comparable, rng)
        self._about = {key: Deck(facts, rng) for key, facts in world.by_subject.items()}
        held_out = HELD_OUT_RELATIONS.values()
        sizes = {name: len(group) for name, group in world.by_relation.items()}
        times = {
            name: mix.focus if name in held_out else max(1, min(4, SMALL_RELATION // size))
            for name, size in sizes.items()
        }
        dealt = [f for f in world.facts for _ in range(times[f.relation.name])]
        told_only = [fact for fact in world.facts if world.told_only(fact)]
        self._facts = Deck(dealt + told_only * mix.focus, rng)
        asked = [fact for fact in dealt if not world.told_only(fact)]
        self._questions = Deck([q for fact in asked for q in world.questions(fact)], rng)
        self._joiner = Joiner(world, rng, self._tell, self._count)
        self._of_relation = {name: Deck(facts, rng) for name, facts in world.by_relation.items()}
        # A relation comes up as often as it has facts.
        self._relations = Deck([fact.relation.name for fact in dealt], rng)
        kinds = dict.fromkeys(kind for kind, _ in subjects)
        self._groups = {
            kind: Deck([key for key in subjects if key[0] == kind], rng) for kind in kinds
        }

    def card(self) -> str:
        """Several facts about one subject."""
        rng = self._rng
        key = self._rich.deal() if len(self._rich) else rng.choice(list(self._about))
        facts = self._about[key].deal_different(rng.randint(2, 4))
        head = rng.choice(_CARD_HEADS).replace("{s}", key[1])
        form = rng.random()
        if form < 0.5:
            return head + self._joiner.sentence(facts)
        if form < 0.7:
            return self._joiner.riddle(facts)
        parts = [head]
        subject_led = False  # 它 is clear only after a sentence that begins with the subject
        for fact in facts:
            sentence = self._tell(fact)
            # 科威特第纳尔可以在科威特使用。 begins with its object.
            begins = sentence.startswith(fact.subject) and not fact.object.startswith(fact.subject)
            if subject_led and begins and rng.random() < self._mix.pronoun_share:
                sentence = "它" + sentence[len(fact.subject) :]
            subject_led = begins and key[0] in COMPARABLE_KINDS
            parts.append(sentence)
        return "".join(parts)

    def mixed(self) -> str:
        """Facts that have nothing to do with one another."""
        rng = self._rng
        sentences = [self._tell(self._facts.deal()) for _ in range(rng.randint(4, 7))]
        text = sentences[0]
        for sentence in sentences[1:]:
            if rng.random() < 0.6:
                text = text.removesuffix("。") + "；"
            text += sentence
        return rng.choice(_MIXED_HEADS) + text

    def listing(self) -> str:
        """Facts of one relation, all in the same words."""
        rng = self._rng
        name = self._relations.deal()
        if name.endswith(".next") and rng.random() < 0.5:
            return self._sequence(name)
        facts = self._of_relation[name].deal_different(rng.randint(3, 7))
        template = self._plain(facts[0])
        between = rng.choice(_BETWEEN)
        sentences = []
        for fact in facts:
            self._count(fact)
            sentences.append(fact.fill(template).removesuffix("。"))
        return rng.choice(("", *LIST_TITLES.get(name, ()))) + between.join(sentences) + "。"

    def _sequence(self, name: str) -> str:
        """Things that follow one another, in their order (从三月开始，依次是三月、四月、五月。)."""
        after = {fact.subject: fact for fact in self._world.by_relation[name]}
        chain = [self._rng.choice(list(after))]
        for _ in range(self._rng.randint(3, 7)):
            fact = after.get(chain[-1])
            if fact is None:
                break
            self._count(fact)
            chain.append(fact.object)
        heads = ("从{a}开始，依次是", "从{a}往后数：", "按顺序，从{a}数到{z}：", "顺着数下去：")
        head = self._rng.choice(heads).replace("{a}", chain[0]).replace("{z}", chain[-1])
        return head + self._rng.choice("、，").join(chain) + "。"

    def comparison(self) -> str:
        """The same relations of two subjects of one kind."""
        rng = self._rng
        if not len(self._comparable):
            return self.card()
        kind, first = self._comparable.deal()
        others = [key for key in self._groups[kind].deal_different(2) if key[1] != first]
        if not others:
            return self.card()
        second = others[0][1]
        facts = {fact.relation.name: fact for fact in self._world.by_subject[kind, first]}
        partner = {fact.relation.name: fact for fact in self._world.by_subject[kind, second]}
        shared = [name for name in facts if name in partner]
        if not shared:
            return self.card()
        parts = [rng.choice(_COMPARE_HEADS).replace("{x}", first).replace("{y}", second)]
        for name in rng.sample(shared, min(len(shared), rng.randint(1, 3))):
            template = self._plain(facts[name])
            one, other = facts[name], partner[name]
            self._count(one)
            self._count(other)
            same = "这一点两者相同。" if one.object == other.object else ""
            link = rng.choice(("，", "，而")) if not same else "，"
            parts.append(one.fill(template).removesuffix("。") + link + other.fill(template) + same)
        return "".join(parts)

    def notes(self) -> str:
        """Questions with their answers, as in a notebook (问：…答：…)."""
        rng = self._rng
        ask, reply = rng.choice(ASK_MARKS)
        lines = []
        for _ in range(rng.randint(1, 4)):
            question, answer = self._ask(varied_share=self._mix.varied_share)
            lines.append(f"{ask}{question}{rng.choice(('', chr(10)))}{reply}{answer}")
        return "\n".join(lines)

    def hops(self) -> str:
        """Two facts that share a name, and what follows from them."""
        return self._joiner.hops()

    def yes_no(self) -> str:
        """Questions whose answer is yes, or no and what is so instead."""
        return self._joiner.yes_no(*self._rng.choice(ASK_MARKS))

    def groups(self) -> str:
        """Things sorted by what they have in common."""
        return self._joiner.groups()

    def order(self) -> str:
        """Numbers, and things that stand in a row, compared and put in order."""
        return self._joiner.order()

    def scene(self) -> str:
        """A story in which somebody asks for one or two facts and is told."""
        first, second = self._ask(), self._ask()
        template = self._rng.choice(SCENES)
        return expand(template, scene_slots(first, second, self._rng), self._rng)

    def _tell(self, fact: Fact) -> str:
        self._count(fact)
        key = (fact.relation.name, fact.subject, fact.object)
        return fact.fill(self._wording.pick(key, fact.relation.statements))

    def _plain(self, fact: Fact) -> str:
        """A phrasing that can be said of one subject after another: it begins with the subject."""
        relation = fact.relation
        plain = tuple(text for text in relation.statements if text.startswith("{s}"))
        options = plain if len(plain) > 1 else relation.statements
        return self._wording.pick(("plain", relation.name), options)

    def _ask(self, varied_share: float = 0.0) -> tuple[str, str]:
        question: Question = self._questions.deal()
        fact = question.fact
        self._count(fact)
        key = (fact.relation.name, fact.subject, question.reverse)
        wording = self._wording.pick(key, question.phrasings)
        replies = question.full_replies if self._rng.random() < 0.75 else question.replies
        if self._rng.random() < 0.4:
            replies = plain(fact.relation.statements)
        varied = varied_share and self._rng.random() < varied_share
        text = question.in_other_words(wording, self._rng) if varied else fact.fill(wording)
        return text, fact.fill(self._rng.choice(replies))

    def _count(self, fact: Fact) -> None:
        self.told[fact.relation.name, fact.subject, fact.object] += 1
