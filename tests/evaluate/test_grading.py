"""Grading: what a fair reader would call right, and the reason given where a reply is not."""

from pathlib import Path

import pytest

from tinyllm_lib.evaluate import grade, is_right
from tinyllm_lib.evaluate.grading import goes_on_with
from tinyllm_lib.evaluate.plain import plain

FIELDS = ("question", "answer", "answers", "others", "none_of")


def hard_replies():
    """(row, reply, right, whether the row's other fields are needed)."""
    row = {}
    text = Path(__file__).with_name("hard_replies.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line[:1] in ("+", "-"):
            mark, _, reply = line.partition(" ")
            yield pytest.param(
                row, reply.replace("\\n", "\n"), mark[0] == "+", "*" in mark,
                id=f"{row['question']} {line}",
            )
        elif line and line[0] != "#":
            cells = [cell.strip() for cell in line.split("|")]
            row = dict(zip(FIELDS, cells, strict=False))
            row |= {name: row[name].split() for name in FIELDS[2:] if name in row}


@pytest.mark.parametrize(("row", "reply", "right", "needs_row"), hard_replies())
def test_hard_replies(row, reply, right, needs_row):
    assert grade(reply, row).right == right, grade(reply, row).why
    if not needs_row:
        assert is_right(reply, row["answer"], row["question"]) == right
