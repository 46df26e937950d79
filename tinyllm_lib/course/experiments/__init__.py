"""Notebook 09: short runs of small models, one thing changed in each.

ANSWERS: what is wrong with each curve of the gallery, by its letter
CAUSES: what can be wrong with them, in the order in which the notebook lists it
Comparison: a mean difference with its interval, and what it says
Data: what short runs read
PARTS: the model as it is and with one part taken out or exchanged, by name
Result: what a short run gave
Scale: sizes and budgets of section 3
base_config: the small model and the few steps of the notebook, by profile
compare: the differences between two variants, seed by seed
epoch_rows: some rows of the training text, drawn at random
load_data: the rows of the workspace's pretraining shards
make_model: a new model of a config, changed if asked for
numbers_of: seeds and budgets of a profile
permuted_ids: what another tokenizer would make of a batch
shape_of: parameters of a config's model, and its FLOPs for a token
short_run: trains a new model for some steps, with the losses of the library's trainer
sick_runs: the gallery: one fault in each run
steps_within: a config with as many steps as a budget of FLOPs has room for
validate: the loss on the validation rows
"""

from tinyllm_lib.course.experiments.compare import Comparison, compare
from tinyllm_lib.course.experiments.parts import PARTS
from tinyllm_lib.course.experiments.scale import Scale, numbers_of, shape_of, steps_within
from tinyllm_lib.course.experiments.sick import (
    ANSWERS,
    CAUSES,
    one_empty,
    own_target,
    permuted_ids,
    sick_runs,
)
from tinyllm_lib.course.experiments.training import (
    Data,
    Result,
    base_config,
    epoch_rows,
    load_data,
    make_model,
    short_run,
    validate,
)
