"""tinyllm_lib: from raw text to a chat model that you trained yourself.

The modules stand in the order of the notebooks and are named after what flows through them:
`corpus` (documents and dialogues), `tokenizer`, `tokens` and `dataset` (ids and masks), `model`,
`train` with `checkpoint` and `launch`, and last `generate`, `evaluate` and `convert`.
Nothing is imported here, so that a program loads only the part that it uses.
"""

__version__ = "0.1.0"
