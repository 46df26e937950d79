"""What an exam gave: scores by class and all answers, kept as `exam.json`, shown as a table."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tinyllm_lib.data import read_json, write_json


@dataclass(frozen=True)
class Answer:
    """One question, what was expected, what the model said (`got`) and the verdict on it."""

    class_name: str
    question: str
    expected: str
    got: str
    right: bool
    why: str = ""
    pair: str | None = None  # answers of a class with the same pair are one item


class ClassScore(NamedTuple):
    """One class: `right` items of `total`; `low` and `high` bound the share that is right."""

    class_name: str
    right: int
    total: int
    share: float
    low: float
    high: float


@dataclass
class ExamResult:
    """An exam that was taken; `print(result)` shows its table."""

    kind: str  # "chat" or "base"
    checkpoint: str  # "step_000500"
    exam: str  # "exam.jsonl"
    seconds: float
    answers: list[Answer] = field(repr=False)
    made_from: dict[str, str] | None = None  # fingerprints of "weights" and "exam", if known

    @cached_property
    def classes(self) -> list[ClassScore]:
        """One score for each class, in the order of the exam file."""
        classes: dict[str, dict[object, bool]] = {}
        for i, a in enumerate(self.answers):  # an item is an answer, or a pair: right if all are
            items, item = classes.setdefault(a.class_name, {}), a.pair or i
            items[item] = items.get(item, True) and a.right
        counts = ((name, sum(of.values()), len(of)) for name, of in classes.items())
        return [ClassScore(name, n, of, n / of, *wilson(n, of)) for name, n, of in counts]

    @property
    def shares(self) -> dict[str, float]:
        """Class -> share of right answers, 0 to 1."""
        return {score.class_name: score.share for score in self.classes}

    @property
    def wrong(self) -> list[Answer]:
        """The answers to look at."""
        return [answer for answer in self.answers if not answer.right]

    def table(self, meaning: Mapping[str, str] | None = None) -> str:
        """The result as text; `meaning` adds a column: what each class shows."""
        rows: list[tuple[str, ...]] = [("class", "right", "share", "95% interval")]
        for name, right, total, share, low, high in self.classes:
            rows.append((name, f"{right}/{total}", f"{share:.0%}", f"{low:.0%} to {high:.0%}"))
        if meaning:
            shown = {**meaning, "class": "what it shows"}
            rows = [(*row, shown.get(row[0], "")) for row in rows]
        model = f"{self.kind} model {self.checkpoint}".rstrip()
        title = f"{self.exam}, answered by the {model} in {self.seconds:.1f} s\n"
        return title + format_table(rows, "<>>><"[: len(rows[0])])

    def __str__(self) -> str:
        return self.table()

    def save(self, path: str | Path) -> None:
        """Writes it as JSON: its fields, and before the answers the scores of the classes."""
        content = asdict(self) | {"seconds": round(self.seconds, 2)}
        answers = content.pop("answers")
        classes = [score._asdict() for score in self.classes]
        write_json(path, {**content, "classes": classes, "answers": answers})

    @classmethod
    def load(cls, path: str | Path) -> "ExamResult":
        """Reads an `exam.json`, or that of a run folder."""
        path = Path(path) / "exam.json" if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run_exam writes it after a whole exam.")
        content = read_json(path)
        del content["classes"]  # they follow from the answers
        return cls(**content | {"answers": [Answer(**a) for a in content["answers"]]})


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The interval (95% by default) in which the true share lies, seen from `right` of `total`.

    Unlike share ± z·sqrt(share·(1-share)/total) it stays within 0 to 1 and is honest near both
    ends (Wilson 1927).
    """
    if not total:
        return 0.0, 1.0
    share, zz = right / total, z * z / total
    middle = (share + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt(share * (1 - share) / total + zz / (4 * total))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return min(share, low), max(share, high)  # rounding must not shut the share out


def format_table(rows: Sequence[Sequence[str]], align: str) -> str:
    """Rows as columns, aligned as `align` says ("<" or ">" for each), the first row underlined."""
    widths = [max(map(text_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in (rows[0], ["-" * width for width in widths], *rows[1:]):
        cells = []
        for cell, width, side in zip(row, widths, align, strict=True):
            gap = " " * (width - text_width(cell))
            cells.append(cell + gap if side == "<" else gap + cell)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def text_width(text: str) -> int:
    """Columns that a text takes in a terminal: wide characters two, combining ones none."""
    own = (c for c in text if not unicodedata.combining(c))
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in own)
