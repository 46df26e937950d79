"""Panels for the notebooks (ipywidgets), each a thin skin over plain functions and classes.

    from tinyllm_lib.course import widgets
    widgets.tokenizer_playground(tok)        # the last line of a cell

All can be used with the keyboard alone, keep their height, and fit a light and a dark page. Where
nobody can press a button (GitHub, nbval, `make course`) a picture stands in their place. What they
show is drawn in `views`; the classes `Steps`, `Ladder`, `Attention`, `Talk` and `Control` do the
work.
"""

from tinyllm_lib.course.widgets.dashboard import training_dashboard
from tinyllm_lib.course.widgets.sampling import chat, sampling_explorer
from tinyllm_lib.course.widgets.text import attention_explorer, mask_explorer, tokenizer_playground
