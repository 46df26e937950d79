"""The exam: questions with one right answer, in classes that mean something. Never trained on.

    greeting        greetings and who the assistant is, as dialogues have them: format
    fact_seen       facts that dialogues ask for, in words that they use: memory
    fact_rephrased  the same kind of facts in words that appear nowhere else: understanding
    fact_named      facts that no dialogue asks for, of entities that dialogues name
    fact_unnamed    facts that no dialogue asks for, of entities that no dialogue names
    sum_unseen      sums that appear nowhere: a rule, not a table
    follow_up       a second turn (那日本呢？) after a first one that it depends on: context

A row has "class", "question", "answer"; where it fits, "history" (earlier messages),
"completion" (a text that a base model goes on with the answer) and "relation".
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from tinyllm_lib.course.world import talk
from tinyllm_lib.course.world.dialogues import DialogueWriter, more
from tinyllm_lib.course.world.sums import SUM_QUESTIONS, Sums, ask_sum, working
from tinyllm_lib.course.world.world import HELD_OUT_RELATIONS, Deck, Question, World

CLASS_MEANING = {  # as tables show it
    "greeting": "the format of a dialogue is learnt",
    "fact_seen": "memory: asked in SFT, in these words",
    "fact_rephrased": "understanding: asked in SFT, in other words",
    "fact_named": "never asked in SFT, though its subject is named there",
    "fact_unnamed": "never asked in SFT, nor its subject named",
    "sum_unseen": "a rule, not a table: sums shown nowhere",
    "follow_up": "context: a second turn",
}
EXAM_CLASSES = tuple(CLASS_MEANING)
FACT_ROWS = 120
SUM_ROWS = 120
FOLLOW_UP_FACTS, FOLLOW_UP_SUMS = 48, 12


def write_exam(
    world: World,
    dialogues: DialogueWriter,
    sums: Sums,
    held_out_sums: frozenset[tuple[int, int]],
    rng: random.Random,
) -> list[dict[str, Any]]:
    """All rows of the exam, class by class in the order of ``EXAM_CLASSES``.

    Args:
        dialogues: the writer *after* it has written the dialogues; it knows what they asked.
    """
    answers = _answers_by_question(world)
    seen = [(q, text) for text, q in dialogues.asked.items()]
    held_out = [q for fact in (*world.named, *world.unnamed) for q in world.questions(fact)]
    by_role = defaultdict(list)
    for question in held_out:
        by_role[world.role_of(question.fact)].append(question)

    memory, rephrased = [], []
    for question, text in _spread(seen, rng):
        memory.append(_fact_row("fact_seen", question, text))
        if others := question.unseen_phrasings:
            text = question.fact.fill(rng.choice(others))
            rephrased.append(_fact_row("fact_rephrased", question, text))
    rows = _greeting_rows()
    rows += _one_answer(memory, answers)[:FACT_ROWS]
    rows += _one_answer(rephrased, answers)[:FACT_ROWS]
    for role, name in (("named", "fact_named"), ("unnamed", "fact_unnamed")):
        asked = [(q, q.fact.fill(rng.choice(q.phrasings))) for q in by_role[role]]
        rng.shuffle(asked)
        rows += _one_answer([_fact_row(name, q, text) for q, text in asked], answers)[:FACT_ROWS]
    rows += _sum_rows(held_out_sums, rng)
    rows += _follow_up_facts(dialogues, rng) + _follow_up_sums(dialogues, sums, rng)
    return rows


def _fact_row(name: str, question: Question, text: str) -> dict[str, Any]:
    row = {"class": name, "question": text, "answer": question.answer}
    if question.completion is not None:
        row["completion"] = question.completion
    row["relation"] = question.fact.relation.name
    return row


def _answers_by_question(world: World) -> dict[str, set[str]]:
    """Every way to ask for every fact, with the answers that are right."""
    answers: dict[str, set[str]] = defaultdict(set)
    for fact in world.facts:
        for reverse in (False, True):
            question = Question(fact, reverse)
            for template in (*question.phrasings, *question.unseen_phrasings):
                answers[fact.fill(template)].add(question.answer)
    return answers


def _one_answer(
    rows: Iterable[dict[str, Any]], answers: dict[str, set[str]]
) -> list[dict[str, Any]]:
    """The rows whose question has one right answer, which does not stand in the question; no
    doubles.
    """
    kept = {}
    for row in rows:
        if len(answers[row["question"]]) == 1 and row["answer"] not in row["question"]:
            kept.setdefault(row["question"], row)
    return list(kept.values())


def _spread(seen: Sequence[tuple[Question, str]], rng: random.Random) -> list[tuple[Question, str]]:
    """Each question once, in an order in which two of three are about relations held out elsewhere.

    The classes of seen and of held-out facts can then be compared, since they ask for much the
    same things. The other relations take turns.
    """
    compared: list[tuple[Question, str]] = []
    others: dict[tuple[str, bool], list[tuple[Question, str]]] = defaultdict(list)
    wordings = list(seen)
    rng.shuffle(wordings)
    done = set()
    for question, text in wordings:
        name = question.fact.relation.name
        if (name, question.fact.subject, question.reverse) in done:
            continue
        done.add((name, question.fact.subject, question.reverse))
        group = compared if name in HELD_OUT_RELATIONS.values() else others[name, question.reverse]
        group.append((question, text))
    second = _interleave(list(others.values()))
    order = []
    while compared or second:
        for source in (compared, compared, second):
            if source:
                order.append(source.pop())
    return order


def _interleave(groups: Sequence[list[Any]]) -> list[Any]:
    """One from each group in turn, as a stack (the first is at the end)."""
    queue = []
    for position in range(max(map(len, groups), default=0)):
        queue += [group[position] for group in groups if position < len(group)]
    return queue[::-1]


def _greeting_rows() -> list[dict[str, Any]]:
    rows = []
    for table in (talk.GREETINGS, talk.IDENTITY):
        for says, _, answer in table:
            rows += [{"class": "greeting", "question": text, "answer": answer} for text in says[:2]]
    return rows


def _sum_rows(held_out: frozenset[tuple[int, int]], rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    pairs = Deck(sorted(held_out), rng)
    for a, b in pairs.deal_different(SUM_ROWS):
        if rng.random() < 0.5:
            a, b = b, a
        question, _ = ask_sum(a, b, rng.choice(SUM_QUESTIONS))
        row = {"class": "sum_unseen", "question": question, "answer": str(a + b)}
        rows.append({**row, "completion": f"{a}+{b}="})
    return rows


def _follow_up_facts(dialogues: DialogueWriter, rng: random.Random) -> list[dict[str, Any]]:
    sides: dict[tuple[str, bool], list[Question]] = defaultdict(list)
    for question in dict.fromkeys(dialogues.asked.values()):
        sides[question.fact.relation.name, question.reverse].append(question)
    groups = [Deck(group, rng) for group in sides.values() if len(group) >= 2]
    rows: list[dict[str, Any]] = []
    for attempt in range(40 * FOLLOW_UP_FACTS if groups else 0):
        first, second = groups[attempt % len(groups)].deal_different(2)
        apart = frozenset((first.given, second.given)) not in dialogues.followed
        if not apart or second.answer in (first.answer, second.given, first.given):
            continue
        row = _fact_row("follow_up", second, second.follow_up)
        rows.append({**row, "history": _turn(*dialogues.ask(first))})
        if len(rows) == FOLLOW_UP_FACTS:
            break
    return rows


def _follow_up_sums(
    dialogues: DialogueWriter, sums: Sums, rng: random.Random
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while len(rows) < FOLLOW_UP_SUMS:
        a, b, d = sums.chain()
        if frozenset((f"{a}+{b}", str(d))) in dialogues.followed:
            continue
        question, _ = more(a + b, d, rng)
        row = {"class": "follow_up", "question": question, "answer": str(a + b + d)}
        rows.append({**row, "history": _turn(f"{a}+{b}等于多少？", working(a, b) + "。")})
    return rows


def _turn(question: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
