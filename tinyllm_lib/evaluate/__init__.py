"""Notebooks 06 and 07: a run becomes bits per byte and an exam's result.

From a terminal: `python -m tinyllm_lib.evaluate RUN`.

    Answer: one question of an exam, what was expected and what the model said
    ExamResult: an exam that was taken: scores by class, all answers, a table, a file
    bits_per_byte: how many bits a model needs for one byte of text, on average
    exam_of: the saved result of a run, if these weights sat this exam
    format_table: rows as aligned columns, the first underlined, Chinese counted as two wide
    grade: the verdict on a reply, by a row of an exam; its docstring states the rules
    is_right: whether a reply, usually a sentence, gives the answer
    load_exam: the rows of an exam file, checked
    run_exam: asks a model all questions and grades its replies
    wilson: the interval in which a share truly lies, seen from so many right of so many
"""

from tinyllm_lib.evaluate.bits import bits_per_byte
from tinyllm_lib.evaluate.exam import exam_of, load_exam, run_exam
from tinyllm_lib.evaluate.grading import grade, is_right
from tinyllm_lib.evaluate.results import Answer, ExamResult, format_table, wilson
