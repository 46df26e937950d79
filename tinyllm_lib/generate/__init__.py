"""Notebook 07: a run becomes text. `python -m tinyllm_lib.generate RUN` chats in the terminal.

Chat: A conversation and how its replies are made
ContextWarning: A text did not fit the context, and what was left out
dice_for: A random generator for each row
generate: extends each prompt token by token, all of them at once
keep_min_p: keeps tokens at least p times as likely as the likeliest one
keep_top_k: keeps the k likeliest tokens (and what ties with the last of them)
keep_top_p: nucleus sampling
read_text_file: A UTF-8 file as text, without the byte order mark that some editors put at its
    beginning
Sampling: how a token is chosen
scale_temperature: divides by `temperature` > 0: below 1 the likely gets likelier, above 1 the
    distribution flattens
TextGenerator: A model with its tokenizer, ready to write
TextStream: tokens in, text out, as soon as it is certain
Written: A piece of text as soon as it is certain, and how likely the model found the tokens
    that it is made of
"""

from tinyllm_lib.generate.generator import (
    ContextWarning,
    TextGenerator,
    TextStream,
    Written,
    read_text_file,
)
from tinyllm_lib.generate.sampling import (
    Sampling,
    dice_for,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    scale_temperature,
)
from tinyllm_lib.generate.terminal import Chat

__all__ = [
    "Chat",
    "ContextWarning",
    "Sampling",
    "TextGenerator",
    "TextStream",
    "Written",
    "dice_for",
    "generate",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "read_text_file",
    "scale_temperature",
]
