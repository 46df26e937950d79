"""The exam: questions whose answers can be checked, in classes that mean something. Never trained
on.

``CLASSES`` says what each class shows, and what chance would give. Held-out facts come in three
classes, since a question that stands in a document with its answer is recalled, not understood:
documents ask for those of ``fact_named`` and ``fact_unnamed`` too, and only state those of
``fact_told_only``.

A row has "class", "question", "answer"; where it fits, "answers" (other right forms), "history"
(earlier messages), "completion" (a text that a base model goes on with the answer), "relation", and
what ``tinyllm_lib.evaluate.grade`` checks besides. The last lines of the file are no rows: they
list the names that each relation joins, so that a reply with another one is wrong.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from tinyllm_lib.course.world import talk
from tinyllm_lib.course.world.dialogues import DialogueWriter, more
from tinyllm_lib.course.world.facts import aliases
from tinyllm_lib.course.world.grammar import bare, rewordings
from tinyllm_lib.course.world.skills import Skills
from tinyllm_lib.course.world.skills.base import interleave, messages
from tinyllm_lib.course.world.sums import SUM_QUESTIONS, Sums, ask_sum, working
from tinyllm_lib.course.world.world import HELD_OUT_RELATIONS, KIND_WORDS, Deck, Question, World

CLASSES = {  # what it shows, and what chance, or always the same reply, would give
    "greeting": ("the format of a dialogue is learned", "0%"),
    "fact_seen": ("memory: asked in SFT, in these words", "1%"),
    "fact_rephrased": ("understanding: asked in SFT, in other words", "1%"),
    "fact_named": ("never asked in SFT, though its subject is named there", "1%"),
    "fact_unnamed": ("never asked in SFT, nor its subject named", "1%"),
    "fact_told_only": ("never asked anywhere: documents state it", "1%"),
    "sum_unseen": ("a rule, not a table: sums shown nowhere", "1%"),
    "follow_up": ("context: a second turn", "1%"),
    "yes_no": ("judging: one true and one false claim, both right", "25%"),
    "memory": ("context: what was said earlier in the dialogue", "20%"),
    "two_hops": ("joining two facts, each told apart", "5%"),
    "comparison": ("order: which of two is larger, or first; both ways", "25%"),
    "refusal_due": ("a name that does not exist is refused", "0%"),
    "refusal_undue": ("a rare name that does exist is not", "1%"),
    "instruction": ("doing what was asked, checked by its form", "0%"),
}
CLASS_MEANING = {name: f"{shows} (chance {chance})" for name, (shows, chance) in CLASSES.items()}
EXAM_CLASSES = tuple(CLASSES)
SKILLS = EXAM_CLASSES[EXAM_CLASSES.index("yes_no") :]
# Right forms of a greeting's answer that its own replies do not hold.
GREETING_FORMS = {
    "我很好": ["挺好的", "很好", "还不错"],
    "不客气": ["不用谢", "别客气"],
    "没关系": ["没事"],
    "再见": ["拜拜", "下次见", "回头见"],
}
NOT_ASKED = "台湾"  # delicate: stated as the tables have it, and no question of an exam
FACT_ROWS = 100
SUM_ROWS = 100
FOLLOW_UP_FACTS, FOLLOW_UP_SUMS = 48, 12


def write_exam(
    world: World,
    dialogues: DialogueWriter,
    sums: Sums,
    held_out_sums: frozenset[tuple[int, int]],
    rng: random.Random,
) -> list[dict[str, Any]]:
    """All lines of the exam: rows, class by class in the order of ``CLASSES``, then relations.

    Args:
        dialogues: the writer *after* it has written the dialogues; it knows what they asked.
    """
    answers = _answers_by_question(world)
    seen = [(q, text) for text, q in dialogues.asked.items()]
    memory, rephrased = [], []
    for question, text in _spread(seen, rng):
        memory.append(_fact_row("fact_seen", question, text))
        if others := [text for text in question.unseen_phrasings if is_far(text, question)]:
            text = question.fact.fill(rng.choice(others))
            rephrased.append(_fact_row("fact_rephrased", question, text))
    rows = _greeting_rows()
    rows += _one_answer(memory, answers)[:FACT_ROWS]
    rows += _one_answer(rephrased, answers)[:FACT_ROWS]
    told_only = [f for f in (*world.named, *world.unnamed) if world.told_only(f)]
    for name, held_out in (
        ("fact_named", [f for f in world.named if not world.told_only(f)]),
        ("fact_unnamed", [f for f in world.unnamed if not world.told_only(f)]),
        ("fact_told_only", told_only),
    ):
        asked = [q for fact in held_out for q in world.questions(fact)]
        rng.shuffle(asked)
        facts = [_fact_row(name, q, q.fact.fill(rng.choice(q.phrasings))) for q in asked]
        rows += _one_answer(facts, answers)[:FACT_ROWS]
    rows += _sum_rows(held_out_sums, rng)
    rows += _follow_up_facts(dialogues, rng) + _follow_up_sums(dialogues, sums, rng)
    skills = Skills(world, rng, sums)
    for name in SKILLS:
        rows += [{"class": name, **row} for row in skills.exam_rows(name, rng)]
    return rows + list(_relation_lines(world, {row.get("relation") for row in rows}))


def _relation_lines(world: World, names: set[str | None]) -> Iterator[dict[str, Any]]:
    """The names that each relation joins, each once."""
    for name, facts in world.by_relation.items():
        if name in names:
            joined = dict.fromkeys(text for f in facts for text in (f.subject, f.object))
            yield {"relation": name, "objects": list(joined)}


def _fact_row(name: str, question: Question, text: str) -> dict[str, Any]:
    relation = question.fact.relation.name
    row: dict[str, Any] = {"class": name, "question": text, "answer": question.answer}
    if others := aliases(relation, question.answer):
        row["answers"] = list(others)
    if question.completion is not None:
        row["completion"] = question.completion
    return {**row, "relation": relation}


# ---- really other words

_KINDS = re.compile(  # 这个国家
    "|".join(f"这{measure}{word}" for word, measure in KIND_WORDS.values()).replace("化学", "")
)


def is_far(unseen: str, question: Question) -> bool:
    """Whether a wording is another one than all that dialogues and documents may use: at least five
    edits away, or a third of its length, after what stands around a question is taken off.
    """
    return _is_far(unseen, question.phrasings + question.asked_statements)


@cache
def _is_far(unseen: str, shown: tuple[str, ...]) -> bool:
    core = _core(unseen)
    edits = min(5, max(1, round(len(core) / 3)))
    used = {_core(text) for one in shown for text in (one, *rewordings(one))}
    return all(distance(core, text) >= edits for text in used)


def _core(question: str) -> str:
    return _KINDS.sub("", bare(question))


def distance(a: str, b: str) -> int:
    """How many characters to put in, take out or change (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


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
        told = row["question"] + row.get("completion", "")
        fair = row["answer"] not in told and NOT_ASKED not in told + row["answer"]
        if fair and len(answers[row["question"]]) == 1:
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
    second = interleave(list(others.values()))[::-1]  # a stack: the first is at the end
    order = []
    while compared or second:
        for source in (compared, compared, second):
            if source:
                order.append(source.pop())
    return order


def _greeting_rows() -> list[dict[str, Any]]:
    """Of each row of talk its first wording and one that dialogues never use."""
    rows = []
    for table in (talk.GREETINGS, talk.IDENTITY):
        for says, _, answer in table:
            texts = [says[0], *[text for text in says if talk.held_out_wording(text)][:1]]
            row = {"answer": answer, "answers": GREETING_FORMS.get(answer, [])}
            rows += [{"class": "greeting", "question": text, **row} for text in texts]
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
        row = _fact_row("follow_up", second, second.follow_up)
        asked, said = dialogues.ask(first)
        apart = frozenset((first.given, second.given)) not in dialogues.followed
        told = asked + said + second.follow_up
        if not apart or any(form in told for form in (row["answer"], *row.get("answers", ()))):
            continue
        rows.append({**row, "history": messages([(asked, said)])})
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
        history = messages([(f"{a}+{b}等于多少？", working(a, b) + "。")])
        rows.append({**row, "history": history})
    return rows
