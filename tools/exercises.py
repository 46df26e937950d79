"""Writes the exercise cells of the notebooks and notebooks/solutions/ from course/exercises/.

    python tools/exercises.py

In a notebook the cells whose id begins with "ex-" are this tool's, and what is changed there by
hand is lost; the heading before them and the text after them are the author's. Solutions that have
changed are run at the ci profile, so that they are stored with what they print; one that is not
right is not stored.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tinyllm_lib.course.exercises import EXERCISES, SETUPS, Exercise, progress_table  # noqa: E402
from tinyllm_lib.data import utf8_output  # noqa: E402

NOTEBOOKS = {
    path.name[:2]: path
    for path in sorted((REPOSITORY / "notebooks").glob("0*.ipynb"))
    if path.name[:2] in SETUPS
}
SOLUTIONS = REPOSITORY / "notebooks" / "solutions"


def markdown(cell_id: str, text: str) -> dict:
    """A text cell, its keys in the order of the notebooks' files."""
    return {
        "cell_type": "markdown",
        "id": cell_id,
        "metadata": {},
        "source": text.splitlines(keepends=True),
    }


def code(cell_id: str, text: str, printed: str = "", number: int | None = None) -> dict:
    """A code cell that has printed something."""
    outputs = (
        [{"name": "stdout", "output_type": "stream", "text": printed.splitlines(keepends=True)}]
        if printed
        else []
    )
    return {
        "cell_type": "code",
        "execution_count": number,
        "id": cell_id,
        "metadata": {},
        "outputs": outputs,
        "source": text.splitlines(keepends=True),
    }


def task(exercise: Exercise) -> str:
    """Heading, minutes, difficulty and what is asked."""
    return (
        f"### {exercise.number} · {exercise.title}\n\n*{exercise.minutes} minutes,"
        f" {exercise.difficulty}.* {exercise.task}"
    )


def of_notebook(notebook: str) -> list[Exercise]:
    """Its exercises, in order."""
    return [exercise for _, exercise in sorted(EXERCISES.items()) if exercise.notebook == notebook]


def exercise_cells(notebook: str, number: int) -> list[dict]:
    """The block of a notebook: the table, then text and stub of each exercise. Code cells count on
    from `number`.
    """
    start = (
        "from tinyllm_lib.course.exercises import check_exercise, show_progress\n\n"
        f'show_progress("{notebook}")'
    )
    cells = [code(f"ex-{notebook}", start, progress_table({}, notebook) + "\n", number + 1)]
    for place, exercise in enumerate(of_notebook(notebook), 1):
        hint = (
            f"{task(exercise)}\n\n<details><summary>Hint</summary>\n\n{exercise.hint}\n\n</details>"
        )
        cells.append(markdown(f"ex-{notebook}-{place}", hint))
        cells.append(
            code(
                f"ex-{notebook}-{place}-code",
                exercise.cell("stub"),
                f"{exercise.number} not done yet\n",
                number + 1 + place,
            )
        )
    return cells


def with_exercises(content: dict, notebook: str) -> dict:
    """A notebook with its block of exercises as the library has it.

    Raises:
        ValueError: no cell says where the block stands.
    """
    cells = content["cells"]
    places = [i for i, cell in enumerate(cells) if cell["id"].startswith("ex-")]
    if not places:
        raise ValueError(
            f'notebook {notebook} has no cell whose id begins with "ex-": add one where the'
            " exercises shall stand"
        )
    before, after = cells[: places[0]], cells[places[-1] + 1 :]
    number = max(
        (cell["execution_count"] or 0 for cell in before if cell["cell_type"] == "code"), default=0
    )
    return {**content, "cells": [*before, *exercise_cells(notebook, number), *after]}


def solutions(notebook: str) -> dict:
    """The notebook of solutions, not run yet."""
    name = NOTEBOOKS[notebook].name
    title = (
        f"# {notebook} · Solutions\n\nTry first: [{name}](../{name}). This notebook is made by"
        " `tools/exercises.py` from `tinyllm_lib/course/exercises/`, like the stubs; changes belong"
        " there."
    )
    cells = [markdown("title", title), code("setup", SETUPS[notebook].strip())]
    for place, exercise in enumerate(of_notebook(notebook), 1):
        cells += [
            markdown(f"task-{place}", task(exercise)),
            code(f"solution-{place}", exercise.cell("solution")),
        ]
    metadata = {
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def sources(content: dict) -> list:
    """What a notebook says, whatever it has printed."""
    return [(cell["id"], cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]


def run(content: dict) -> dict:
    """The notebook with its outputs, run at the ci profile in an empty workspace.

    Raises:
        ValueError: a solution does not pass its check.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.reads(json.dumps(content), 4)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as workspace:
        os.environ.update(TINYLLM_PROFILE="ci", TINYLLM_WORKSPACE=workspace)
        NotebookClient(
            notebook,
            kernel_name="python3",
            resources={"metadata": {"path": workspace}},
            record_timing=False,
        ).execute()
    done = {**content, "cells": []}
    for before, cell in zip(content["cells"], notebook.cells, strict=True):
        if cell.cell_type == "markdown":
            done["cells"].append(before)
            continue
        printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        if cell.id.startswith("solution") and " right: " not in printed:
            raise ValueError(f"{cell.id}: {printed or cell.outputs}")
        done["cells"].append(code(cell.id, cell.source, printed, cell.execution_count))
    return done


def read(path: Path) -> dict:
    """A notebook, or an empty one where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cells": []}


def write(path: Path, content: dict) -> None:
    """In the form of the notebooks' files."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Writes what differs."""
    utf8_output()
    for notebook, path in NOTEBOOKS.items():
        stored, made = read(path), with_exercises(read(path), notebook)
        if made != stored:
            write(path, made)
            print("written:", path.name)
        solved = SOLUTIONS / path.name
        if sources(solutions(notebook)) != sources(read(solved)):
            write(solved, run(solutions(notebook)))
            print("written:", solved.relative_to(REPOSITORY))
    return 0


if __name__ == "__main__":
    sys.exit(main())
