"""The exam of a run from a terminal: `python -m tinyllm_lib.evaluate RUN [EXAM]`."""

import argparse
import sys
from collections.abc import Sequence

from tinyllm_lib.data import utf8_output
from tinyllm_lib.evaluate.exam import run_exam
from tinyllm_lib.evaluate.results import format_table


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    utf8_output()
    parser = argparse.ArgumentParser(
        prog="python -m tinyllm_lib.evaluate",
        description="Ask a model the exam and print the table.",
    )
    add = parser.add_argument
    add("run", help="the folder of a run or checkpoint, or of a Hugging Face model")
    add(
        "exam",
        nargs="?",
        help="a file of your own; default: that beside the run, kept as exam.json",
    )
    add("--kind", choices=("auto", "chat", "base"), default="auto", help="default: %(default)s")
    add("--limit", type=int, help="at most so many questions of each class")
    add("--wrong", action="store_true", help="list the wrong answers too")
    o = parser.parse_args(argv)
    try:
        # A few questions of one's own must not replace the result of the whole exam.
        result = run_exam(o.run, o.exam, kind=o.kind, limit=o.limit, save=o.exam is None)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if o.wrong:
        rows = [("class", "question", "expected", "got", "why")]
        rows += [(a.class_name, a.question, a.expected, a.got, a.why) for a in result.wrong]
        one_line = [[" ".join(cell.split()) for cell in row] for row in rows]
        print("\n" + format_table(one_line, align="<<<<<"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
