"""Two exams side by side."""

from pathlib import Path
from typing import NamedTuple

from tinyllm_lib.evaluate.exam import exam_of
from tinyllm_lib.evaluate.results import Answer, ExamResult
from tinyllm_lib.evaluate.table import format_table

Pairs = list[tuple[Answer, Answer]]


class ExamComparison(NamedTuple):
    """What changed, as pairs of answers to the same question, and a table of both."""

    gained: Pairs
    lost: Pairs
    table: str


def compare_exams(
    a: ExamResult | str | Path, b: ExamResult | str | Path, *, print_table: bool = True
) -> ExamComparison:
    """Two results, or run folders with an `exam.json` of their weights, side by side."""
    first, second = (_result(of) for of in (a, b))
    unpaired: dict[tuple[str, str, str], list[Answer]] = {}
    for y in second.answers:
        unpaired.setdefault((y.class_name, y.question, y.expected), []).append(y)
    found = ((x, unpaired.get((x.class_name, x.question, x.expected))) for x in first.answers)
    pairs = [(x, same.pop(0)) for x, same in found if same]
    gained = [(x, y) for x, y in pairs if y.right and not x.right]
    lost = [(x, y) for x, y in pairs if x.right and not y.right]

    models = (f"{r.kind} {r.checkpoint}".strip() for r in (first, second))
    cells = [
        {s.class_name: f"{s.cells[1]} ({s.cells[0]})" for s in r.classes} for r in (first, second)
    ]
    rows = [("class", *models, "gained", "lost")]
    for name in cells[0] | cells[1]:
        changed = (sum(x.class_name == name for x, _ in of) for of in (gained, lost))
        rows.append((name, *(of.get(name, "-") for of in cells), *map(str, changed)))
    table = format_table(rows, align="<>>>>")
    if apart := len(first.answers) + len(second.answers) - 2 * len(pairs):
        table += (
            f"\n{apart} questions stand in only one of the two exams: the shares count them, gained"
            " and lost do not"
        )
    if print_table:
        print(table, flush=True)
    return ExamComparison(gained, lost, table)


def _result(of: ExamResult | str | Path) -> ExamResult:
    if isinstance(of, ExamResult):
        return of
    return exam_of(of) if Path(of).is_dir() else ExamResult.load(of)
