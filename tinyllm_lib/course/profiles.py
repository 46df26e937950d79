"""Profiles: named sizes. A profile changes numbers, never code: the same cells run on a laptop and
on a cluster.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Profile:
    """The numbers of one size of the course. `pretrain` and `sft` are fields of `TrainConfig`."""

    name: str
    purpose: str
    documents: int  # of the sample corpus
    dialogues: int
    vocab_size: int
    max_length: int  # context, in tokens
    pretrain: dict = field(default_factory=dict)
    sft: dict = field(default_factory=dict)
    replay_share: float = (
        0.25  # pretraining texts mixed into SFT, as a share of the number of dialogues
    )
    real_corpora: bool = False  # seq-monkey and BELLE instead of the sample corpus


PROFILES = {
    "ci": Profile(
        "ci",
        "every notebook in under a minute, to see that it runs",
        documents=1500,
        dialogues=400,
        vocab_size=1024,
        max_length=128,
        pretrain={
            "dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 2,
            "batch_size": 16,
            "steps": 40,
            "warmup_steps": 5,
            "learning_rate": 1e-2,
            "save_interval": 20,
            "keep_every": 20,
            "log_interval": 5,
        },
        sft={
            "batch_size": 16,
            "steps": 30,
            "warmup_steps": 3,
            "learning_rate": 5e-3,
            "log_interval": 5,
        },
    ),
    "laptop": Profile(
        "laptop",
        "the whole course on two CPU cores in about ten minutes",
        documents=50_000,
        dialogues=17_000,
        vocab_size=4096,
        max_length=128,
        pretrain={
            "dim": 128,
            "n_layers": 4,
            "n_heads": 4,
            "n_kv_heads": 2,
            "batch_size": 16,
            "steps": 2200,
            "warmup_steps": 30,
            "learning_rate": 1.2e-2,
            "eval_interval": 100,
            "save_interval": 100,
            "keep_every": 100,
            "log_interval": 10,
        },
        sft={
            "batch_size": 16,
            "epochs": 1.0,
            "warmup_steps": 10,
            "learning_rate": 4e-3,
            "log_interval": 10,
        },
    ),
    "gpu": Profile(
        "gpu",
        "the 82.6M model on one GPU",
        documents=200_000,
        dialogues=60_000,
        vocab_size=6144,
        max_length=512,
        pretrain={
            "dim": 768,
            "n_layers": 12,
            "n_heads": 16,
            "n_kv_heads": 8,
            "batch_size": 128,
            "epochs": 10.0,
            "warmup_steps": 200,
            "learning_rate": 2e-3,
            "eval_interval": 250,
            "save_interval": 500,
        },
        sft={"batch_size": 64, "epochs": 2.0, "warmup_steps": 50, "learning_rate": 3e-4},
    ),
    "full": Profile(
        "full",
        "the 215M model on 10B tokens and 3.5M dialogues, over many GPUs",
        documents=200_000,
        dialogues=60_000,
        vocab_size=6144,
        max_length=512,
        real_corpora=True,
        replay_share=0.0,
        pretrain={
            "dim": 1024,
            "n_layers": 18,
            "n_heads": 16,
            "n_kv_heads": 8,
            "batch_size": 1024,
            "grad_accumulation_steps": "auto",
            "epochs": 1.0,
            "warmup_steps": 1000,
            "learning_rate": 1e-3,
            "packing": "stream",
            "separate_documents": False,
            "eval_interval": 1000,
            "save_interval": 1000,
            "keep_every": 10_000,
        },
        sft={
            "batch_size": 256,
            "grad_accumulation_steps": "auto",
            "epochs": 1.0,
            "warmup_steps": 200,
            "learning_rate": 2e-4,
        },
    ),
}


def get_profile(name: str | None = None) -> Profile:
    """The profile called `name`, else the one of TINYLLM_PROFILE, else `laptop`.

    Raises:
        ValueError: no such profile; the message names the nearest.
    """
    name = name or os.environ.get("TINYLLM_PROFILE") or "laptop"
    if name not in PROFILES:
        near = difflib.get_close_matches(name.lower(), PROFILES, 1, cutoff=0.0)[0]
        raise ValueError(
            f"There is no profile {name!r}; did you mean {near!r}? Profiles: {', '.join(PROFILES)}."
            " Set TINYLLM_PROFILE or pass a name to get_profile."
        )
    return PROFILES[name]
