"""Notebook 07: a run becomes bits per byte and exam results. `python -m tinyllm_lib.evaluate RUN`

Answer: one question, what was expected and what the model said (`got`)
bits_per_byte: how many bits the model needs for one byte of text, on average
compare_exams: two results, or run folders with an `exam.json` of their weights, side by side
exam_of: the saved result of a run (its newest checkpoint) or of a checkpoint, if it was these
    weights that sat this exam
ExamResult: an exam that was taken
format_table: rows as aligned columns, the first row underlined
is_right: whether a reply, usually a sentence, gives the answer
load_exam: the rows of an exam file
run_exam: asks all questions, greedily and in batches, and grades the replies with `is_right`
wilson: the interval (95% by default) in which the true share lies, seen from `right` of
    `total` (Wilson 1927)
CLASS_MEANING: in words, what the classes of the sample's exam ask
"""

from tinyllm_lib.evaluate.evaluation import bits_per_byte, run_exam
from tinyllm_lib.evaluate.exam import (
    CLASS_MEANING,
    Answer,
    ExamResult,
    compare_exams,
    exam_of,
    format_table,
    is_right,
    load_exam,
    wilson,
)

__all__ = [
    "CLASS_MEANING",
    "Answer",
    "ExamResult",
    "bits_per_byte",
    "compare_exams",
    "exam_of",
    "format_table",
    "is_right",
    "load_exam",
    "run_exam",
    "wilson",
]
