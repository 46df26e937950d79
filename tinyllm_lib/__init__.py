"""tinyllm_lib: from raw text to a chat model that you trained yourself.

A folder for each notebook: `data`, `tokenizer`, `dataset`, `model`, `generate`, `train`, `launch`,
`evaluate`, `share`, and `course` for what only the teaching needs (docs/contributing.md has the
table). Each folder's docstring lists what it offers. Nothing is imported here, so that a program
loads only the part that it uses.
"""

__version__ = "0.1.0"
