"""Notebook 07: a run becomes text.

Read `generator.py` (messages to a reply), `decoding.py` (the loop), `sampling.py` (one token).

    TextGenerator: a model with its tokenizer, ready to chat and to go on with a text
    Sampling: how a text is written: temperature, filters, seed, stop strings
    decode: the one loop under all of them: rows of ids, a new token for each in turn
    rows_of: the rows that `decode` and `TextGenerator.pieces` write on, one for each prompt of ids
    usual_dtype: the number format of weights that write on a device
    generate: extends prompts of ids token by token, all of them at once
    TextStream: tokens in, text out, as soon as it is certain
    ContextWarning: a text did not fit the context, and what was left out
    scale_temperature: below 1 the likely gets likelier, above 1 all get more alike
    keep_top_k: keeps the k likeliest tokens
    keep_top_p: keeps the fewest tokens whose probabilities sum to p (nucleus sampling)
    keep_min_p: keeps tokens at least p times as likely as the likeliest one
"""

from tinyllm_lib.generate.decoding import decode, generate, rows_of
from tinyllm_lib.generate.generator import ContextWarning, TextGenerator, usual_dtype
from tinyllm_lib.generate.sampling import (
    Sampling,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    scale_temperature,
)
from tinyllm_lib.generate.text import TextStream
