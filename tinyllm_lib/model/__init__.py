"""Notebook 04: ids become logits and a loss. The model, its KV cache, and the folder in which it is
kept.

    apply_rope: rotates coordinate pairs (i, i + d/2) of x (B, T, H, d) by the angles cos, sin (B
        or 1, T, 1, d/2)
    attention_mask: which keys each of T new queries may see, (B, 1, T, S) bool, or None where
        plain causality says it all
    Batch: inputs, targets and what else `score` needs of a batch
    explaining_out_of_memory: an error for want of memory says where it came and what to change,
        in the words of the outermost, which knows why it was done
    find_damage: what is wrong with a checkpoint folder, in words, or None
    is_out_of_memory: whether a GPU or the CPU had no memory left
    KVCache: keys and values of the positions seen so far, (layers, B, K, capacity, d), written in
        place
    latest_checkpoint: the newest checkpoint of a run that is undamaged
    load_state: the trainer's state of a checkpoint
    model_folder: `folder` itself if it holds a model (a step folder, a Hugging Face folder), else
        the newest checkpoint of that run
    ModelConfig: everything that decides the shape of the model
    rope_angles: cos and sin of position x frequency, each (max_seq_len, head_dim/2)
    rope_frequencies: (head_dim/2,) how far each pair turns from one position to the next,
        base^(-2i/d), and `Llama3Rope`'s share of that
    run_folder: the run that a checkpoint folder belongs to, or the folder itself if it lies in
        none
    save_checkpoint: writes checkpoints/step_XXXXXX as a whole or not at all, then removes old
        ones
    score: the loss per token, and how many bits the model needs for a byte of text
    seal: writes checkpoint.json
    step_folders: the finished checkpoint folders of a run, oldest first
    step_of: 500 for …/step_000500
    Transformer: the language model
    weight_files: the names of a model folder's files of weights
    weights_fingerprint: what decides a model folder's outputs, its weights and its shape, as 16
        hex digits
    write_model: writes what any program reads
    INDEX: the file that lists the parts of weights in several files
    STEP_FOLDER: the name of a checkpoint
"""

from tinyllm_lib.model.checkpoint import (
    STEP_FOLDER,
    find_damage,
    latest_checkpoint,
    load_state,
    model_folder,
    run_folder,
    save_checkpoint,
    seal,
    step_folders,
    step_of,
    weights_fingerprint,
    write_model,
)
from tinyllm_lib.model.out_of_memory import explaining_out_of_memory, is_out_of_memory
from tinyllm_lib.model.scoring import Batch, score
from tinyllm_lib.model.transformer import (
    INDEX,
    KVCache,
    ModelConfig,
    Transformer,
    apply_rope,
    attention_mask,
    rope_angles,
    rope_frequencies,
    weight_files,
)

__all__ = [
    "INDEX",
    "STEP_FOLDER",
    "Batch",
    "KVCache",
    "ModelConfig",
    "Transformer",
    "apply_rope",
    "attention_mask",
    "explaining_out_of_memory",
    "find_damage",
    "is_out_of_memory",
    "latest_checkpoint",
    "load_state",
    "model_folder",
    "rope_angles",
    "rope_frequencies",
    "run_folder",
    "save_checkpoint",
    "score",
    "seal",
    "step_folders",
    "step_of",
    "weight_files",
    "weights_fingerprint",
    "write_model",
]
