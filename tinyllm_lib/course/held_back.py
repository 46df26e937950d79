"""Facts that no dialogue tells, and what fine-tuning made of them (notebook 06 and
`tools/forgetting.py`): said, known and not reached by a question, or forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tinyllm_lib.course.comparison import mcnemar, p_value
from tinyllm_lib.course.world import facts
from tinyllm_lib.course.world.facts import Fact
from tinyllm_lib.data import read_json
from tinyllm_lib.evaluate import Answer, ExamResult, format_table, run_exam
from tinyllm_lib.generate import TextGenerator

CLASSES = ("fact_named", "fact_unnamed", "fact_told_only")  # of the exam
FATES = ("said", "not reached", "forgotten")
CONTROL = "default"  # the recipe that tools/forgetting.py sets all others against
# What tools/forgetting.py has measured; it goes on where the file ends.
SEARCH = Path(__file__).resolve().parents[2] / "figures" / "data" / "forgetting.json"


def rows_of(exam: Iterable[dict]) -> list[dict]:
    """The rows of an exam that ask for a held-back fact, each with a sentence to complete."""
    return [row for row in exam if row["class"] in CLASSES and "completion" in row]


def fact_of(row: dict) -> Fact | None:
    """The fact a row asks for: the answer is its object or, asked backwards, its subject."""
    for fact in facts():
        pair = {fact.subject, fact.object}
        told = all(name == row["answer"] or name in row["question"] for name in pair)
        if fact.relation.name == row["relation"] and row["answer"] in pair and told:
            return fact
    return None


def pairs_of(rows: Iterable[dict]) -> set[tuple[str, str]]:
    """Subject and object of the facts that rows ask for, each fact once."""
    found = (fact_of(row) for row in rows)
    return {(fact.subject, fact.object) for fact in found if fact}


def tells_one_of(text: str, pairs: Iterable[tuple[str, str]]) -> bool:
    """Whether subject and object of one of these facts both stand in a text."""
    return any(subject in text and object_ in text for subject, object_ in pairs)


def complete_sentences(model: TextGenerator, rows: Sequence[dict]) -> ExamResult:
    """What a model, base or chat, completes as plain sentences, without a dialogue around them."""
    return run_exam(model, rows, kind="base", print_table=False, save=False)


def fate_of(said: bool, completed: bool) -> str:
    """What became of a fact that the base model knew, one of `FATES`."""
    return "said" if said else "not reached" if completed else "forgotten"


def fates(
    base: Sequence[Answer], chat: Sequence[Answer], completed: Sequence[Answer]
) -> dict[str, dict[str, int]]:
    """Of the facts that the base model completed, by class: how many are now in each of `FATES`.

    Args:
        base, chat, completed: the answers to the same rows: of the base model, of the chat model
            when asked, and of the chat model when it completes the sentence.
    """
    counts: dict[str, dict[str, int]] = {}
    for before, asked, told in zip(base, chat, completed, strict=True):
        fate = fate_of(asked.right, told.right)
        of_class = counts.setdefault(before.class_name, dict.fromkeys(FATES, 0))
        of_class[fate] += before.right
    return counts


def names_another(row: dict, reply: str) -> bool:
    """Whether a reply holds another name of the relation that a row asks for, right or not.

    A name in Latin letters must be a word of its own: the I of AI is no iodine.
    """
    latin = "".join(char if char.isascii() else " " for char in reply).split()
    for fact in facts():
        if fact.relation.name != row["relation"]:
            continue
        for name in (fact.subject, fact.object):
            among = latin if name.isascii() else reply
            if name in among and name not in row["question"] and name != row["answer"]:
                return True
    return False


def states_fact(row: dict, reply: str) -> bool:
    """Whether a reply to a claim, before its verdict, states the fact that was asked about."""
    known = [fact for fact in facts() if fact.relation.name == row["relation"]]
    asked = (fact for fact in known if fact.subject in row["question"])
    fact = max(asked, key=lambda fact: len(fact.subject))
    said = reply.rpartition("，")[0] or reply
    return bool(re.search(rf"(?<!\d){re.escape(fact.object)}(?!\d)", said))


# ---- what tools/forgetting.py has measured


def read_search(path: Path = SEARCH) -> dict:
    """The saved search: "base", "recipes" and "runs"; without runs where there is no such file."""
    if not path.is_file():
        print(f"{path.name} is not there: tools/forgetting.py makes it.", flush=True)
    return read_json(path, {"base": {}, "recipes": {}, "runs": []})


def fates_of_run(search: dict, run: dict) -> dict[str, int]:
    """`fates` of a saved run, over all classes."""
    counts = dict.fromkeys(FATES, 0)
    marks = zip(search["base"]["completes"], run["says"], run["completes"], strict=True)
    for known, says, completes in marks:
        fate = fate_of(says == "1", completes == "1")
        counts[fate] += known == "1"
    return counts


def search_table(search: dict) -> str:
    """One line for each saved run: its fates, other classes of the exam, bits per byte, minutes.

    `p` sets it against the control of the same seed: `mcnemar` of the held-back facts that the one
    says and the other does not.
    """
    rows = [("recipe", "seed", *FATES, "p", "seen", "sums", "documents", "minutes")]
    controls = {run["seed"]: run for run in search["runs"] if run["recipe"] == CONTROL}
    order = list(search["recipes"])
    for run in sorted(search["runs"], key=lambda run: (order.index(run["recipe"]), run["seed"])):
        fate = fates_of_run(search, run)
        control = controls.get(run["seed"])
        p = "-"
        if control and control is not run:
            p = p_value(paired_p(control["says"], run["says"]))
        right = (run["classes"][name][0] for name in ("fact_seen", "sum_unseen"))
        bits = f"{run['bits_per_byte']:.3f}"
        minutes = f"{run['minutes']:.1f}" if run["minutes"] else "-"
        counts = (str(fate[name]) for name in FATES)
        cells = (run["recipe"], str(run["seed"]), *counts, p, *map(str, right), bits, minutes)
        rows.append(cells)
    return format_table(rows, "<" + ">" * (len(rows[0]) - 1))


def paired_p(before: str, after: str) -> float:
    """`mcnemar` of two rows of marks, "1" for right and "0" for wrong, question by question."""
    pairs = list(zip(before, after, strict=True))
    return mcnemar(pairs.count(("0", "1")), pairs.count(("1", "0")))


def medians(search: dict) -> dict[str, dict[str, int]]:
    """Recipe -> fate -> the count of the run in the middle, by how many facts it says, of those
    that were made with this recipe.
    """
    found = {}
    for recipe in search["recipes"]:
        runs = [fates_of_run(search, run) for run in search["runs"] if run["recipe"] == recipe]
        if runs:
            runs.sort(key=lambda fate: fate["said"])
            found[f"{recipe}, {len(runs)} run{'s' * (len(runs) > 1)}"] = runs[(len(runs) - 1) // 2]
    return found
