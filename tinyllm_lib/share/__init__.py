"""Notebook 08: a run becomes what other programs read, and old checkpoints come in. From a
terminal: `python -m tinyllm_lib.share --help`.

    IN_LAYER: old scripts' names within a layer -> ours, which are transformers'
    OUTSIDE: old scripts' names outside of the layers -> ours
    check_tokenizer: passes a tokenizer whose ids llama.cpp gives too
    export_gguf: writes a GGUF file for llama.cpp, and Ollama's Modelfile beside it
    import_checkpoint: writes a checkpoint folder from an old `.pth` state dict
    model_card: the README.md of a published model, every number read from the run's files
    publish: uploads a checkpoint with its model card
    serve: starts an OpenAI-compatible server for a model on this machine
    to_adjacent_pairs: rows of a query or key matrix as old scripts and llama.cpp have them
    to_half_split: rows of a query or key matrix as transformers and this library have them
    what_is_missing: what to install before `serve` can start, or ""
"""

from tinyllm_lib.share.card import model_card
from tinyllm_lib.share.gguf_file import check_tokenizer, export_gguf
from tinyllm_lib.share.hub import publish
from tinyllm_lib.share.old_layout import (
    IN_LAYER,
    OUTSIDE,
    import_checkpoint,
    to_adjacent_pairs,
    to_half_split,
)
from tinyllm_lib.share.server import serve, what_is_missing
