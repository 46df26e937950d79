"""Notebook 08: a run becomes what other programs read, and old checkpoints come in. `python -m
tinyllm_lib.share --help`

    check_tokenizer: passes a tokenizer whose ids llama.cpp gives too
    export_gguf: writes `out` (….gguf) for llama.cpp from a run or checkpoint folder, and Ollama's
        Modelfile beside it (`modelfile_path`)
    import_checkpoint: writes a checkpoint folder from an old `.pth` state dict and the tokenizer
        it was trained with
    model_card: the README.md of a published model, in Markdown with the hub's metadata at its
        head
    modelfile_path: chat-f16.gguf -> chat-f16.Modelfile
    publish: uploads a checkpoint with its model card
    serve: starts a server for `model` on this machine alone (127.0.0.1)
    to_adjacent_pairs: the way back
    to_half_split: rows of a query or key matrix from adjacent pairs to half-split
    what_is_missing: "" if `serve` can start this program, else a sentence that says what to
        install
    IN_LAYER: names of the old layout within a layer
    OUTSIDE: names of the old layout outside of the layers
"""

from tinyllm_lib.share.card import model_card, publish
from tinyllm_lib.share.gguf_file import check_tokenizer, export_gguf, modelfile_path
from tinyllm_lib.share.old_layout import (
    IN_LAYER,
    OUTSIDE,
    import_checkpoint,
    to_adjacent_pairs,
    to_half_split,
)
from tinyllm_lib.share.server import serve, what_is_missing

__all__ = [
    "IN_LAYER",
    "OUTSIDE",
    "check_tokenizer",
    "export_gguf",
    "import_checkpoint",
    "model_card",
    "modelfile_path",
    "publish",
    "serve",
    "to_adjacent_pairs",
    "to_half_split",
    "what_is_missing",
]
