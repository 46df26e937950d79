"""The exercises at the end of each notebook: what they ask, stubs, solutions and checks.

    check_exercise("02.3", stream_text)      # 02.3 not yet: …
    show_progress("02")

Each is one text with its check, in the file of its notebook. `tools/exercises.py` writes the
notebooks' cells and `notebooks/solutions/` from it.
"""

from tinyllm_lib.course.exercises import (
    data,
    experiments,
    masks,
    model,
    pretrain,
    sampling,
    sft,
    share,
    tokenizer,
)
from tinyllm_lib.course.exercises.exercise import EXERCISES, Exercise
from tinyllm_lib.course.exercises.progress import (
    check_exercise,
    progress_table,
    read_progress,
    show_progress,
)

_IN_ORDER = (data, tokenizer, masks, model, pretrain, sft, sampling, share, experiments)
# Notebook -> what its solutions need before the first of them.
SETUPS = {f"{number:02}": module.SETUP for number, module in enumerate(_IN_ORDER, 1)}
