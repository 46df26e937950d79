"""Notebook 04: ids become logits and a loss. The model, its KV cache, and the folder it is kept in.

Read `config.py`, `layers.py`, `transformer.py` in this order; `checkpoint.py` is the folder.

    Batch: what `score` reads: X, Y, loss_mask and where the documents of a packed row lie
    INDEX: the file that lists the parts of weights in several files
    KVCache: keys and values of the positions seen so far, written in place
    ModelConfig: everything that decides the shape of the model
    Transformer: the language model: logits, and the loss that trains it (`weighted_nll`)
    apply_rope: turns pairs of coordinates by the angles of their positions
    attention_mask: which keys each new query may see, or None for plain causality
    document_starts: where the documents of packed rows begin, as flash attention takes it
    flash_works: whether flash attention keeps packed documents apart on a device
    latest_checkpoint: the newest checkpoint of a run that is undamaged
    load_state: the trainer's state of a checkpoint
    model_folder: the folder itself if it holds a model, else the newest checkpoint of that run
    rope_angles: cos and sin for every position
    rope_frequencies: how far each pair turns from one position to the next
    run_folder: the run that a checkpoint belongs to
    save_checkpoint: writes a checkpoint as a whole or not at all, then removes old ones
    score: how well a trained model predicts: nats per token, and bits per byte of text
    snapshot: a copy of model or state in the CPU's memory, which later steps do not change
    seal: writes the checksums of a checkpoint
    step_folders: the finished checkpoints of a run, oldest first
    step_of: the step of a checkpoint
    weight_files: the names of a model folder's files of weights
    weights_fingerprint: 16 hex digits of what decides a model folder's outputs
    write_model: writes what any program reads: shape, weights, tokenizer
"""

from tinyllm_lib.model.checkpoint import (
    latest_checkpoint,
    load_state,
    model_folder,
    run_folder,
    save_checkpoint,
    seal,
    snapshot,
    step_folders,
    step_of,
    weights_fingerprint,
    write_model,
)
from tinyllm_lib.model.config import ModelConfig
from tinyllm_lib.model.layers import (
    KVCache,
    apply_rope,
    rope_angles,
    rope_frequencies,
)
from tinyllm_lib.model.masks import attention_mask, document_starts, flash_works
from tinyllm_lib.model.scoring import Batch, score
from tinyllm_lib.model.transformer import INDEX, Transformer, weight_files
