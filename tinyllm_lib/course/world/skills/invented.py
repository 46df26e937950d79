"""Names that do not exist are refused, rare ones that do exist are not.

Invented names are put together from syllables, thousands of them, so that none can be learned by
heart; they are asked about in the words in which real things of the kind are.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from tinyllm_lib.course.world import talk
from tinyllm_lib.course.world.facts import Fact, aliases
from tinyllm_lib.course.world.grammar import read_lines
from tinyllm_lib.course.world.skills.base import (
    EXAM_ROWS,
    Row,
    Turns,
    ask,
    held_out,
    interleave,
    take,
)
from tinyllm_lib.course.world.talk import VALUES
from tinyllm_lib.course.world.world import FAMOUS, KIND_WORDS, Deck, Question, World


class _Kind(NamedTuple):
    kind: str
    word: str
    syllables: list[str]
    count: int
    endings: list[str]


_KINDS = [
    _Kind(kind, word, syllables.split(), int(count), endings.split())
    for kind, word, syllables, count, endings in (
        line.split(" > ") for line in read_lines("invented")
    )
]
_NAMED = ("你听说过{n}吗？", "你知道{n}吗？", "{n}是什么？", "请介绍一下{n}。", "跟我说说{n}吧。")
_REPLIES = (
    "抱歉，我没有听说过{n}。", "抱歉，我没有听说过{n}。", "抱歉，我没有听说过{n}，所以不知道。",
    "抱歉，我没有听说过叫{n}的{k}。", "我没有听说过{n}，没法回答，抱歉。",
)  # fmt: skip
_REFUSED = ["没听说过", "不知道", "不清楚", "不认识", "不了解", "没有这个", "不存在"]
_FALSE_REFUSAL = ["没有听说过", "没听说过", "不知道", "抱歉"]
_EVERYDAY = ("animal", "planet")  # kinds of which few names are rare


class Refusals:
    """Questions about invented names and about rare real ones, and what nobody can know."""

    def __init__(self, world: World, rng: random.Random, invented_share: float) -> None:
        self._rng, self._invented_share = rng, invented_share
        self._names = [name for _, name in world.by_subject]
        self._names += [fact.object for fact in world.facts]
        self._names = sorted({name for name in self._names if len(name) > 1})
        self._all_names = "\n".join(self._names)
        kinds = {kind.kind for kind in _KINDS}
        rare: dict[str, list[Question]] = {}
        for q in world.askable():
            kind, name = q.fact.relation.subject_kind, q.fact.relation.name
            if kind in kinds and q.fact.subject not in FAMOUS and not q.reverse:
                rare.setdefault(name, []).append(q)
        self._relations = {
            kind: [group[0].fact.relation for group in rare.values() if _kind(group[0]) == kind]
            for kind in kinds
        }
        self._invented = Deck([kind for kind in _KINDS if self._relations[kind.kind]], rng)
        self._rare = {name: Deck(group, rng) for name, group in rare.items()}
        self._rare_names = Deck([name for name, group in rare.items() for _ in range(20)], rng)

    def turns(self) -> Turns:
        """Invented and rare real names, one or both, or what nobody can know."""
        rng = self._rng
        if rng.random() >= 2 * self._invented_share:
            return [talk.refusal(rng)]
        turns = [self._unknown(rng), self._known(rng)]
        return rng.sample(turns, rng.choice((1, 2)))

    def _unknown(self, rng: random.Random) -> tuple[str, str]:
        kind = self._invented.deal()
        return self._ask_unknown(kind, self._invent(kind, rng, for_exam=False), rng)

    def _ask_unknown(self, kind: _Kind, name: str, rng: random.Random) -> tuple[str, str]:
        shown = f"《{name}》" if kind.kind == "work" else name
        if rng.random() < 0.2:
            question = rng.choice(_NAMED).replace("{n}", shown)
            if kind.kind == "person":
                question = question.replace("是什么", "是谁")
        else:
            made_up = Question(Fact(rng.choice(self._relations[kind.kind]), name, ""))
            question = _asked(made_up, rng)
        reply = rng.choice(_REPLIES).replace("{n}", shown).replace("{k}", kind.word)
        return question, reply

    def _known(self, rng: random.Random) -> tuple[str, str]:
        question = take(
            lambda: self._rare[self._rare_names.deal()].deal(),
            lambda q: not held_out("rare", q.fact.subject),
        )
        kind = _kind(question)
        if kind in KIND_WORDS and rng.random() < 0.2:
            word, measure = KIND_WORDS[kind]
            name = question.fact.subject
            return f"你听说过{name}吗？", f"听说过，{name}是一{measure}{word}。"
        return _asked(question, rng), ask(question, rng)[1]

    def _invent(self, kind: _Kind, rng: random.Random, *, for_exam: bool) -> str:
        """A name that is no part of a real one, nor has one as a part."""

        def draw() -> str:
            name = "".join(rng.sample(kind.syllables, kind.count))
            if kind.kind == "person":
                return rng.choice(VALUES["surnames"]) + name
            return name + rng.choice(kind.endings)

        def fits(name: str) -> bool:
            real = name in self._all_names or any(known in name for known in self._names)
            return not real and held_out("invented", name) == for_exam

        return take(draw, fits)

    def due_rows(self, rng: random.Random) -> list[Row]:
        """Invented names that no dialogue has."""
        kinds = [kind for kind in _KINDS if self._relations[kind.kind]]
        rows: list[Row] = []
        for number in range(EXAM_ROWS):
            kind = kinds[number % len(kinds)]
            question, _ = self._ask_unknown(kind, self._invent(kind, rng, for_exam=True), rng)
            rows.append({"question": question, "answer": "没有听说过", "answers": _REFUSED})
        return rows

    def undue_rows(self, rng: random.Random) -> list[Row]:
        """Rare real names that no dialogue sets beside invented ones, asked about in the
        words of the relations: the control of ``due_rows``.
        """
        decks = [deck for deck in self._rare.values() if _kind(deck.items[0]) not in _EVERYDAY]
        groups = [[q for q in deck.items if held_out("rare", q.fact.subject)] for deck in decks]
        rows: list[Row] = []
        for question in interleave([rng.sample(group, len(group)) for group in groups]):
            fact, relation = question.fact, question.fact.relation.name
            asked = _asked(question, rng)
            if question.answer in asked or "台湾" in (fact.subject, fact.object):
                continue
            row: Row = {"question": asked, "answer": question.answer, "none_of": _FALSE_REFUSAL}
            if forms := aliases(relation, question.answer):
                row["answers"] = list(forms)
            rows.append({**row, "relation": relation})
            if len(rows) == EXAM_ROWS:
                break
        return rows


def _asked(question: Question, rng: random.Random) -> str:
    return question.in_other_words(rng.choice(question.phrasings), rng)


def _kind(question: Question) -> str:
    return question.fact.relation.subject_kind
