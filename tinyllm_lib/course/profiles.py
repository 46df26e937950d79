"""Profiles: named sizes. A profile changes numbers, never code: the same cells run on a laptop and
on a cluster.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field

# The numbers of each profile, by field of `Profile`; None: the field's own default.
NAMES = ("ci", "laptop", "gpu", "full")
SIZES = {
    "documents": (1500, 50_000, 600_000, 200_000),
    "dialogues": (400, 24_000, 120_000, 60_000),
    "vocab_size": (1024, 4096, 6144, 6144),
    "max_length": (128, 128, 512, 512),
    "replay_share": (None, 0.5, None, 0.0),
    "real_corpora": (None, None, None, True),
}
# And by option of `TrainConfig`.
PRETRAIN = {
    "dim": (64, 128, 768, 1024),
    "n_layers": (2, 4, 12, 18),
    "n_heads": (4, 4, 12, 16),
    "n_kv_heads": (2, 2, 6, 8),
    "batch_size": (16, 16, 128, 1024),
    "grad_accumulation_steps": (None, None, None, "auto"),
    "steps": (40, 1900, None, None),
    "epochs": (None, None, 3.0, 1.0),
    "warmup_steps": (5, 30, 200, 1000),
    "learning_rate": (1e-2, 1.2e-2, 2e-3, 1e-3),
    "packing": (None, None, None, "stream"),
    "separate_documents": (None, None, None, False),
    "eval_interval": (None, 100, 250, 1000),
    "save_interval": (20, 100, 500, 1000),
    "keep_every": (20, 100, None, 10_000),
    "log_interval": (5, 10, None, None),
}
SFT = {
    "batch_size": (16, 16, 64, 256),
    "grad_accumulation_steps": (None, None, None, "auto"),
    "steps": (30, None, None, None),
    "epochs": (None, 1.0, 1.0, 1.0),
    "warmup_steps": (3, 10, 50, 200),
    "learning_rate": (5e-3, 3e-3, 3e-4, 2e-4),
    "log_interval": (5, 10, None, None),
}
PURPOSES = {
    "ci": "every notebook in under a minute, to see that it runs",
    "laptop": "the whole course on two CPU cores in a quarter to half an hour",
    "gpu": "the 82.6M model on one GPU",
    "full": "the 215M model on 10B tokens and 3.5M dialogues, over many GPUs",
}


@dataclass(frozen=True)
class Profile:
    """The numbers of one size of the course. `pretrain` and `sft` are options of `TrainConfig`."""

    name: str
    purpose: str
    documents: int  # of the sample corpus
    dialogues: int
    vocab_size: int
    max_length: int  # context, in tokens
    pretrain: dict = field(default_factory=dict)
    sft: dict = field(default_factory=dict)
    replay_share: float = 0.25  # pretraining texts mixed into SFT, for each of its dialogues
    real_corpora: bool = False  # seq-monkey and BELLE instead of the sample corpus
    minutes: float | None = None  # the course is to take here: fewer steps, if need be


def _column(table: dict[str, tuple], name: str) -> dict:
    values = {option: row[NAMES.index(name)] for option, row in table.items()}
    return {option: value for option, value in values.items() if value is not None}


PROFILES = {
    name: Profile(
        name,
        PURPOSES[name],
        **_column(SIZES, name),
        pretrain=_column(PRETRAIN, name),
        sft=_column(SFT, name),
    )
    for name in NAMES
}


def get_profile(name: str | None = None) -> Profile:
    """The profile called `name`, else the one of TINYLLM_PROFILE, else `laptop`.

    Without a name, its steps are those that fit into TINYLLM_MINUTES, or the profile's `minutes`:
    see `pace.py`, which measures this machine the first time.

    Raises:
        ValueError: no such profile; the message names the nearest. Or minutes that are none.
    """
    if not name:
        profile = get_profile(os.environ.get("TINYLLM_PROFILE") or "laptop")
        minutes = os.environ.get("TINYLLM_MINUTES") or profile.minutes
        return _within(profile, minutes) if minutes else profile
    if name not in PROFILES:
        near = difflib.get_close_matches(name.lower(), PROFILES, 1, cutoff=0.0)[0]
        raise ValueError(
            f"There is no profile {name!r}; did you mean {near!r}? Profiles: {', '.join(PROFILES)}."
            " Set TINYLLM_PROFILE or pass a name to get_profile."
        )
    return PROFILES[name]


def _within(profile: Profile, minutes: str | float) -> Profile:
    from tinyllm_lib.course.pace import profile_within  # loads torch, which is not always wanted

    try:
        minutes = float(minutes)
    except ValueError:
        raise ValueError(f"TINYLLM_MINUTES is {minutes!r}: expected a number.") from None
    return profile_within(profile, minutes)
