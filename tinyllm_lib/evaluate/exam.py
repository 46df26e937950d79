"""The exam: reading one, grading a reply, and the result with its table.

An exam is a file of questions with one right answer each; `evaluate.run_exam` asks them. A result
knows its classes, their shares and its wrong answers, is saved as `exam.json`, and can be compared
with another.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from tinyllm_lib.data import (
    MAX_LINE_BYTES,
    content_fingerprint,
    differences,
    read_json,
    read_lines,
    write_json,
)
from tinyllm_lib.model import model_folder, run_folder, weights_fingerprint
from tinyllm_lib.tokenizer import ROLES, why_no_bytes

# What each class of the sample corpus's exam shows; an exam of your own may have other classes.
CLASS_MEANING = {
    "greeting": "the format of a dialogue is learnt",
    "fact_seen": "memory: asked in SFT, in these words",
    "fact_rephrased": "understanding: asked in SFT, in other words",
    "fact_named": "never asked in SFT, though its subject is named there",
    "fact_unnamed": "never asked in SFT, nor its subject named",
    "sum_unseen": "a rule, not a table: sums shown nowhere",
    "follow_up": "context: a second turn",
}


# ---- reading an exam


def load_exam(path: str | Path) -> list[dict]:
    """The rows of an exam file: one JSON object a line, of the sample corpus or your own.

    {"question": …, "answer": …} and if you like "class" (default "own"), "history" (earlier
    messages) and "completion" (a text that a base model goes on with the answer).

    Raises:
        FileNotFoundError; ValueError with file and line of the first row that is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: an exam is written with the sample corpus (notebook 01), or by"
            " you, "
            f'as lines of {{"question": …, "answer": …, "class": …}}.'
        )
    return checked_rows(json_lines(path), str(path))


def checked_rows(rows: Iterable[tuple[str, dict]], exam: str) -> list[dict]:
    """The rows of (where, row) pairs, each with a class; the errors of `load_exam`."""
    checked = []
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object {{…}}, found {type(row).__name__}.")
        for name in ("question", "answer", "class", "completion"):
            if name in ("question", "answer") and name not in row:
                raise ValueError(
                    f'{where}: no "{name}" field (found: {", ".join(row) or "nothing"}).'
                )
            value = row.get(name, "-")
            if not isinstance(value, str) or not value.strip():
                raise ValueError(
                    f'{where}: "{name}" is {value!r}, expected some text (numbers in quotes, too).'
                )
            if reason := why_no_bytes(value):
                raise ValueError(f'{where}: "{name}": {reason}')
        if not normalise(row["answer"]):
            raise ValueError(
                f'{where}: "answer" is {row["answer"]!r}, expected a letter or a digit in it.'
            )
        history = row.get("history", [])
        if not isinstance(history, list) or not all(
            isinstance(m, dict) and m.get("role") in ROLES and isinstance(m.get("content"), str)
            for m in history
        ):
            raise ValueError(
                f'{where}: "history" is not a list of {{"role": {" | ".join(ROLES)}, "content":'
                " text}."
            )
        checked.append({"class": "own", **row})
    if not checked:
        raise ValueError(f"{exam} holds no question.")
    return checked


def json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """("file line N", object) for each line that is not blank.

    Raises:
        ValueError: a line that is no object in UTF-8, or longer than any question or document.
    """
    for line in read_lines(path, MAX_LINE_BYTES, lambda skipped: None):
        where = f"{line.source} line {line.number}"
        if line.problem:
            raise ValueError(f"{where}: {line.problem}.")
        if not line.raw.strip():
            continue
        try:
            row = json.loads(line.raw.decode("utf-8"))
        except (
            ValueError,
            RecursionError,
        ) as error:  # not UTF-8, not JSON, or brackets without end
            raise ValueError(f"{where}: not a line of JSON in UTF-8 ({error}).") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object {{…}}, found {type(row).__name__}.")
        yield where, row


# ---- grading


def normalise(text: str) -> str:
    """NFKC, lower case, no spaces, no punctuation at either end: what two answers may differ in."""
    text = "".join(unicodedata.normalize("NFKC", text).lower().split()).replace("−", "-")
    kept = [i for i, c in enumerate(text) if unicodedata.category(c)[0] not in "PS"]
    if not kept:
        return ""
    start = kept[0]
    minus = start and text[start - 1] == "-" and text[start].isdigit()
    return text[start - 1 if minus else start : kept[-1] + 1]


NUMBER = re.compile(r"(?<![\d.])-?\d+(?:\.\d+)?")


def is_right(
    reply: str, answer: str, question: str = "", other_answers: Iterable[str] = ()
) -> bool:
    """Whether a reply, usually a sentence, gives the answer.

    * Spaces, outer punctuation, case and full width do not matter.
    * A number: the last number of the reply must equal it.
    * Otherwise the answer must stand in the reply, but not merely in words repeated from the
      question (西藏的简称是湘 does not give 藏), nor as a part of a longer answer of the same exam (几内亚比绍
      does not give 几内亚).

    Args:
        other_answers: all answers of the exam; those that do not contain `answer` play no role.
    """
    said, wanted = normalise(reply), normalise(answer)
    if not wanted:
        raise ValueError(
            f"the answer {answer!r} holds neither a letter nor a digit: nothing to compare a reply"
            " with."
        )
    if said == wanted:
        return True
    if NUMBER.fullmatch(wanted):
        numbers = NUMBER.findall(said)
        return bool(numbers) and float(numbers[-1]) == float(wanted)
    repeated = _repeated(said, question)
    longer = [
        other for other in map(normalise, other_answers) if wanted in other and wanted != other
    ]
    covered = [span for other in longer for span in _spans(other, said)]
    return any(
        end > repeated and not any(a <= start and end <= b for a, b in covered)
        for start, end in _spans(wanted, said)
    )


def _repeated(said: str, question: str) -> int:
    """How many characters at the reply's beginning merely repeat the question's.

    None if they make up a sentence of their own: 你好！ and 你好呀！ are replies to 你好.
    """
    asked = normalise(question)
    n = 0
    while n < min(len(said), len(asked)) and said[n] == asked[n]:
        n += 1
    whole_question = n == len(asked) and question.rstrip().endswith(("?", "？"))
    own_sentence = n == len(said) or said[n] in "。.!！,，;；~呀啊"
    return 0 if own_sentence and not whole_question else n


def _spans(part: str, text: str) -> list[tuple[int, int]]:
    return [(m.start(), m.start() + len(part)) for m in re.finditer(f"(?={re.escape(part)})", text)]


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The interval (95% by default) in which the true share lies, seen from `right` of `total`
    (Wilson 1927).

    Unlike share ± z·sqrt(share·(1-share)/total) it stays within 0 to 1 and is honest near both
    ends.
    """
    if not total:
        return 0.0, 1.0
    share, zz = right / total, z * z / total
    middle = (share + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt(share * (1 - share) / total + zz / (4 * total))
    return max(0.0, min(share, middle - half)), min(
        1.0, max(share, middle + half)
    )  # rounding must not shut the share out


def goes_on_with(text: str, answer: str, longer: Iterable[str] = ()) -> bool:
    """Whether a base model's text begins with the answer, and not with a longer one or a longer
    number.
    """
    text, answer = normalise(text), normalise(answer)
    if NUMBER.fullmatch(answer):
        number = NUMBER.match(text)
        return bool(number) and float(number[0]) == float(answer)
    return text.startswith(answer) and not any(
        text.startswith(other) for other in map(normalise, longer) if other != answer
    )


# ---- results


@dataclass(frozen=True)
class Answer:
    """One question, what was expected and what the model said (`got`)."""

    class_name: str
    question: str
    expected: str
    got: str
    right: bool

    @property
    def exact(self) -> bool:
        """Right, and the expected text stands in the reply character by character (`right` allows
        for `normalise`).
        """
        number = NUMBER.fullmatch(self.expected)
        return self.right and self.expected in (NUMBER.findall(self.got) if number else self.got)


@dataclass(frozen=True)
class ClassScore:
    """The result of one class: `right` answers, of which `exact` as written; `low` and `high` bound
    the share (Wilson, 95%).
    """

    class_name: str
    right: int
    total: int
    share: float
    low: float
    high: float
    exact: int


@dataclass
class ExamResult:
    """An exam that was taken. `print(result)` shows the table; saved as `exam.json` it is this
    object's fields:

    {"kind": "chat" | "base", "checkpoint": "step_000500", "exam": "exam.jsonl", "seconds": 4.1,
     "made_from": {"weights": fingerprint, "exam": fingerprint},
     "classes": [{"class_name", "right", "total", "share", "low", "high", "exact"}, …],
     "answers": [{"class_name", "question", "expected", "got", "right"}, …]}
    """

    kind: str
    checkpoint: str
    exam: str
    seconds: float
    answers: list[Answer] = field(repr=False)
    made_from: dict[str, str] | None = (
        None  # fingerprints of the weights and of the questions; None where nobody knows
    )

    @cached_property
    def classes(self) -> list[ClassScore]:
        """One score for each class, in the order of the exam file."""
        scores = []
        for name in dict.fromkeys(a.class_name for a in self.answers):
            of_class = [a for a in self.answers if a.class_name == name]
            right, exact, total = (
                sum(a.right for a in of_class),
                sum(a.exact for a in of_class),
                len(of_class),
            )
            scores.append(
                ClassScore(name, right, total, right / total, *wilson(right, total), exact)
            )
        return scores

    @property
    def shares(self) -> dict[str, float]:
        """Class -> share of right answers, 0 to 1."""
        return {score.class_name: score.share for score in self.classes}

    @property
    def wrong(self) -> list[Answer]:
        """The answers to look at."""
        return [answer for answer in self.answers if not answer.right]

    def __str__(self) -> str:
        rows = [("class", "right", "share", "95% interval", "what it shows")]
        rows += [
            (
                s.class_name,
                f"{s.right}/{s.total}",
                f"{s.share:.0%}",
                f"{s.low:.0%} to {s.high:.0%}",
                CLASS_MEANING.get(s.class_name, ""),
            )
            for s in self.classes
        ]
        title = (
            f"{self.exam}, answered by the {self.kind} model {self.checkpoint} in"
            f" {self.seconds:.1f} s".replace("  ", " ")
        )
        unlike = {s.class_name: s.right - s.exact for s in self.classes if s.right > s.exact}
        note = (
            "\nright only when normalised (case, width, spaces):"
            f" {', '.join(f'{n} in {c}' for c, n in unlike.items())}"
        )
        return title + "\n" + format_table(rows, align="<>>><") + (note if unlike else "")

    def save(self, path: str | Path) -> None:
        """Writes the JSON file described above."""
        content = {
            "kind": self.kind,
            "checkpoint": self.checkpoint,
            "exam": self.exam,
            "seconds": round(self.seconds, 2),
            "made_from": self.made_from,
            "classes": [asdict(s) for s in self.classes],
            "answers": [asdict(a) for a in self.answers],
        }
        write_json(path, content)

    @classmethod
    def load(cls, path: str | Path) -> ExamResult:
        """Reads an `exam.json`, or that of a run folder."""
        path = Path(path)
        path = path / "exam.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: run_exam writes it when it has asked the whole exam."
            )
        content = read_json(path)
        return cls(
            content["kind"],
            content["checkpoint"],
            content["exam"],
            content["seconds"],
            [Answer(**a) for a in content["answers"]],
            content.get("made_from"),
        )


def exam_of(folder: str | Path, exam: str | Path | None = None) -> ExamResult:
    """The saved result of a run (its newest checkpoint) or of a checkpoint, if it was these weights
    that sat this exam.

    Args:
        exam: the file with the questions; None: whichever it was.

    Raises:
        FileNotFoundError: no checkpoint, or no result.  ValueError: it is of other weights or
            another exam.
    """
    folder = model_folder(folder)
    path = run_folder(folder) / "exam.json"
    result = ExamResult.load(path)
    now = {"weights": weights_fingerprint(folder)} | (
        {"exam": content_fingerprint(load_exam(exam))} if exam else {}
    )
    if changed := differences(result.made_from, now):
        raise ValueError(
            f"{path.parent.name}/{path.name} is not the exam of these weights,"
            f" {', '.join(changed)}: run_exam takes it again."
        )
    return result


# ---- two exams side by side


@dataclass(frozen=True)
class ExamComparison:
    """What changed from exam `a` to exam `b`; `print(comparison)` shows it."""

    a: ExamResult
    b: ExamResult

    @property
    def gained(self) -> list[tuple[Answer, Answer]]:
        """(answer of a, answer of b) where a was wrong and b is right."""
        return [(x, y) for x, y in self._pairs() if y.right and not x.right]

    @property
    def lost(self) -> list[tuple[Answer, Answer]]:
        """(answer of a, answer of b) where a was right and b is wrong."""
        return [(x, y) for x, y in self._pairs() if x.right and not y.right]

    def _pairs(self) -> list[tuple[Answer, Answer]]:
        second: dict[tuple[str, str, str], list[Answer]] = {}
        for y in self.b.answers:
            second.setdefault((y.class_name, y.question, y.expected), []).append(y)
        return [
            (x, found.pop(0))
            for x in self.a.answers
            if (found := second.get((x.class_name, x.question, x.expected)))
        ]

    def __str__(self) -> str:
        names = [f"{r.kind} {r.checkpoint}".strip() for r in (self.a, self.b)]
        a, b = ({s.class_name: s for s in r.classes} for r in (self.a, self.b))
        gained, lost = ([x.class_name for x, _ in pairs] for pairs in (self.gained, self.lost))
        rows = [("class", *names, "gained", "lost")]
        for name in dict.fromkeys([*a, *b]):
            shares = [
                f"{s[name].share:.0%} ({s[name].right}/{s[name].total})" if name in s else "-"
                for s in (a, b)
            ]
            rows.append((name, *shares, str(gained.count(name)), str(lost.count(name))))
        apart = len(self.a.answers) + len(self.b.answers) - 2 * len(self._pairs())
        note = (
            f"\n{apart} questions stand in only one of the two exams: the shares count them, gained"
            " and lost do not"
        )
        return format_table(rows, align="<>>>>") + (note if apart else "")


def compare_exams(
    a: ExamResult | str | Path, b: ExamResult | str | Path, *, print_table: bool = True
) -> ExamComparison:
    """Two results, or run folders with an `exam.json` of their weights, side by side; `.gained` and
    `.lost` hold what changed.
    """
    comparison = ExamComparison(
        *(
            (
                r
                if isinstance(r, ExamResult)
                else exam_of(r)
                if Path(r).is_dir()
                else ExamResult.load(r)
            )
            for r in (a, b)
        )
    )
    if print_table:
        print(comparison, flush=True)
    return comparison


def format_table(rows: Sequence[Sequence[str]], align: str) -> str:
    """Rows as aligned columns, the first row underlined; a Chinese character counts as two columns.

    Args:
        align: "<" or ">" for each column.
    """
    widths = [max(text_width(row[i]) for row in rows) for i in range(len(align))]
    lines = []
    for row in rows:
        cells = [
            (cell, " " * (width - text_width(cell)))
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append(
            "  ".join(
                cell + gap if side == "<" else gap + cell
                for (cell, gap), side in zip(cells, align, strict=True)
            )
        )
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def text_width(text: str) -> int:
    """Columns that a text takes in a terminal: two for a wide character, none for a combining one."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
