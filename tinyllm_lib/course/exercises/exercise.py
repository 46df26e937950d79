"""What an exercise is, and how its code becomes a stub or a solution."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

TEXT = re.compile(
    r"(\d\d\.\d) (.+?) \((\d+) minutes, (\w+)\)\n\n"
    r"(.+?)\n\n# hint:\n(.+?)\n\n# code for (.+?):\n(.+)",
    re.DOTALL,
)
MARKS = {"# both:": ("stub", "solution"), "# stub:": ("stub",), "# solution:": ("solution",)}
EXERCISES: dict[str, Exercise] = {}  # by number; the files of the notebooks fill it


class NotDone(Exception):
    """The stub is still there."""


class NotYet(Exception):
    """An answer that is not right; the message says what is off, in the learner's terms."""


@dataclass(frozen=True)
class Exercise:
    """One exercise, as the decorator `exercise` reads it from its text.

    Attributes:
        number: notebook and place in it, "02.3".
        difficulty: easy, medium or hard.
        task, hint: Markdown. The hint is shown folded.
        answer: what the cell hands to the check, as it stands in the call: "worst, held_out".
        code: stub and solution in one text. Lines after `# stub:` are the stub's alone, lines after
            `# solution:` the solution's alone, all others stand in both (`# both:` goes back).
        check: takes these values; returns praise, or raises NotDone or NotYet.
    """

    number: str
    title: str
    minutes: int
    difficulty: str
    task: str = field(repr=False)
    hint: str = field(repr=False)
    answer: str = field(repr=False)
    code: str = field(repr=False)
    check: Callable[..., str] = field(repr=False)

    @property
    def notebook(self) -> str:
        """The number of its notebook: "02"."""
        return self.number.split(".")[0]

    def cell(self, part: str) -> str:
        """The code cell with the "stub" or the "solution", and the call of its check."""
        lines, wanted = [], True
        for line in self.code.splitlines():
            if line.strip() in MARKS:
                wanted = part in MARKS[line.strip()]
            elif wanted:
                lines.append(line)
        is_function = lines[-1].startswith(" ")
        # Who runs the solutions has not solved anything.
        kept = ", record=False" if part == "solution" else ""
        call = f'check_exercise("{self.number}", {self.answer}{kept})'
        return "\n".join([*lines, *[""] * (1 + is_function), call])


def exercise(text: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Decorates the check of an exercise; `text` holds the rest of it, in the form of `TEXT`."""
    number, title, minutes, *rest = TEXT.fullmatch(text.strip("\n")).groups()

    def register(check: Callable[..., str]) -> Callable[..., str]:
        EXERCISES[number] = Exercise(number, title, int(minutes), *rest, check)
        return check

    return register


def done(*values: object) -> None:
    """Raises NotDone where a value is still the stub's: None."""
    if any(value is None for value in values):
        raise NotDone


def require(condition: object, otherwise: str) -> None:
    """Raises NotYet(otherwise) where the condition does not hold."""
    if not condition:
        raise NotYet(otherwise)


def close(found: object, expected: float, tolerance: float) -> bool:
    """Whether a learner's number is near enough."""
    return isinstance(found, (int, float)) and abs(found - expected) <= tolerance
