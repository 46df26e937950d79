"""Checking an exercise, and keeping what a learner has done."""

from __future__ import annotations

import inspect
import json
import re
import traceback
from datetime import datetime
from pathlib import Path

from tinyllm_lib.course.exercises.exercise import EXERCISES, NotDone, NotYet
from tinyllm_lib.course.workspace import get_workspace
from tinyllm_lib.data import write_json
from tinyllm_lib.evaluate import format_table


def check_exercise(number: str, *answers: object, record: bool = True) -> None:
    """Compares an answer with the library, prints what is off, and notes the outcome (`record`).

    Never raises for a wrong answer, so that the cells after it still run.

    Raises:
        ValueError: no such exercise. TypeError: another number of answers than the exercise has.
    """
    if number not in EXERCISES:
        there = ", ".join(sorted(EXERCISES))
        raise ValueError(f"There is no exercise {number!r}. There are: {there}.")
    check = EXERCISES[number].check
    inspect.signature(check).bind(*answers)
    right = False
    try:
        outcome, right = f"right: {check(*answers)}", True
    except NotDone:
        print(number, "not done yet")
        return
    except NotYet as problem:
        outcome = f"not yet: {problem}"
    except Exception as error:  # whatever a learner's code may do
        outcome = f"not yet: {_where(error)} {type(error).__name__}: {error}"
    print(number, outcome)
    if record:
        _note(number, right)


def read_progress() -> dict[str, dict]:
    """What was tried so far: {"02.3": {"right": bool, "tries": int, "last": ISO time}}.

    Raises:
        ValueError: progress.json cannot be read.
    """
    path = _file()
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        told = f"{path} is damaged ({error}). Delete it to begin with an empty table."
        raise ValueError(told) from error


def show_progress(notebook: str | None = None) -> None:
    """Prints the exercises of a notebook ("02"), or of all, and how far the learner has come."""
    print(progress_table(read_progress(), notebook))


def progress_table(progress: dict[str, dict], notebook: str | None = None) -> str:
    """What `show_progress` prints."""
    rows = [("exercise", "state", "minutes", "difficulty", "title")]
    for number, task in sorted(EXERCISES.items()):
        if notebook in (None, task.notebook):
            state = _state(progress.get(number))
            rows.append((number, state, str(task.minutes), task.difficulty, task.title))
    right = sum(row[1] == "right" for row in rows)
    return f"{format_table(rows, '<<><<')}\n\n{right} of {len(rows) - 1} right"


def _file() -> Path:
    """It belongs to the learner, so it lies beside the profiles."""
    return get_workspace().root.parent / "progress.json"


def _state(entry: dict | None) -> str:
    if entry is None:
        return "open"
    return "right" if entry["right"] else f"tried {entry['tries']} time{'s' * (entry['tries'] > 1)}"


def _note(number: str, right: bool) -> None:
    """Once right stays right: who tries something else afterwards has still solved it."""
    progress = read_progress()
    before = progress.get(number, {"right": False, "tries": 0})
    progress[number] = {
        "right": right or before["right"],
        "tries": before["tries"] + 1,
        "last": datetime.now().isoformat(timespec="seconds"),
    }
    write_json(_file(), dict(sorted(progress.items())))


def _where(error: Exception) -> str:
    """Where the learner's own code stopped: the files of cells are named after the kernel."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if re.search(r"ipykernel_|^<ipython|^<string>", frame.filename):
            return f"line {frame.lineno} of your cell ({frame.name}) stopped with"
    return "this is no answer of the kind that was asked for:"
