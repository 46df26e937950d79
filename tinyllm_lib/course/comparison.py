"""Two exams side by side, as notebook 06 sets a model against its control."""

from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from tinyllm_lib.evaluate import Answer, ExamResult, format_table


class ExamComparison(NamedTuple):
    """What changed, as pairs of answers to the same question, and a table of both exams."""

    gained: list[tuple[Answer, Answer]]
    lost: list[tuple[Answer, Answer]]
    table: str


def compare_exams(a: ExamResult, b: ExamResult, *, print_table: bool = True) -> ExamComparison:
    """Two results side by side, class by class and answer by answer."""
    key = attrgetter("class_name", "question", "expected")  # several rows, after other turns
    left = {name: list(same) for name, same in groupby(sorted(b.answers, key=key), key)}
    both = [(x, left[key(x)].pop(0)) for x in a.answers if left.get(key(x))]
    changed = [(x, y) for x, y in both if x.right != y.right]
    gained = [(x, y) for x, y in changed if y.right]
    lost = [(x, y) for x, y in changed if x.right]
    rows = [("class", *(f"{r.kind} {r.checkpoint}".strip() for r in (a, b)), "gained", "lost")]
    scores = [{s.class_name: s for s in r.classes} for r in (a, b)]
    for name in scores[0] | scores[1]:
        found = (of.get(name) for of in scores)
        shares = (f"{s.share:.0%} ({s.right}/{s.total})" if s else "-" for s in found)
        counts = (sum(x.class_name == name for x, _ in of) for of in (gained, lost))
        rows.append((name, *shares, *map(str, counts)))
    table = format_table(rows, align="<>>>>")
    if apart := len(a.answers) + len(b.answers) - 2 * len(both):
        table += f"\n{apart} questions stand in only one of the two exams: shares alone count them"
    if print_table:
        print(table, flush=True)
    return ExamComparison(gained, lost, table)
