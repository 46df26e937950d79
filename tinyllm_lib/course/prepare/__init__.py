"""What notebooks hand each other through the workspace, and what makes it when it is not there yet.

Every notebook runs alone: what an earlier one makes is loaded, or made on the spot at the smallest
size, with a line that says so. Corpus, tokenizer and shards take seconds and are made as the
profile wants them; a model that takes minutes is replaced by a very small one under another name
(`pretrain_quick`), so that it is never mistaken for the real one.

Each of them has a record of what it was made from. What is there but not finished, or older than
what it was made from, is never used in silence: we make it again if we made it, and a line says so.
What a learner put there is never replaced.
"""

from tinyllm_lib.course.prepare.data import (
    SAMPLE_BYTES,
    corpus_files,
    token_shards,
    tokenizer,
)
from tinyllm_lib.course.prepare.real import REAL_CORPORA
from tinyllm_lib.course.prepare.runs import chat_run, pretrained_run, train_config, why_not_ready
