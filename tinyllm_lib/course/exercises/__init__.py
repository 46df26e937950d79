"""The exercises at the end of each notebook: what they ask, their stubs and solutions, and the
checks.

    from tinyllm_lib.course.exercises.progress import check_exercise, show_progress

    check_exercise("02.3", stream_text)      # 02.3 not yet: …
    show_progress("02")

Each exercise is one `Exercise` in the file of its notebook: text, hint, code and check stand
together. `tools/exercises.py` writes the notebooks' cells and `notebooks/solutions/` from it.
"""

from tinyllm_lib.course.exercises import (
    data,
    masks,
    model,
    pretrain,
    sampling,
    sft,
    share,
    tokenizer,
)
from tinyllm_lib.course.exercises.exercise import EXERCISES, Exercise, NotDone, NotYet
from tinyllm_lib.course.exercises.progress import (
    check_exercise,
    progress_table,
    read_progress,
    show_progress,
)

# Notebook -> what its solutions need before the first of them.
SETUPS = {
    "01": data.SETUP,
    "02": tokenizer.SETUP,
    "03": masks.SETUP,
    "04": model.SETUP,
    "05": pretrain.SETUP,
    "06": sft.SETUP,
    "07": sampling.SETUP,
    "08": share.SETUP,
}

__all__ = [
    "EXERCISES",
    "SETUPS",
    "Exercise",
    "NotDone",
    "NotYet",
    "check_exercise",
    "progress_table",
    "read_progress",
    "show_progress",
]
