"""How fast this machine trains, how long the course takes here, and how many steps fit into the
minutes one has.
"""

import random
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from tinyllm_lib.course.profiles import PROFILES, Profile
from tinyllm_lib.course.workspace import get_workspace
from tinyllm_lib.data import read_json, write_json
from tinyllm_lib.dataset import write_pretrain_tokens
from tinyllm_lib.launch import launch, read_metrics
from tinyllm_lib.tokenizer import train_tokenizer
from tinyllm_lib.train import TrainConfig, run_config

# Of the profiles that are measured: steps of an epoch of SFT; and all of the course that is not
# training, in positions that train in the same time. A course of 29.2 minutes held 20.6 minutes of
# training steps at 7,300 tokens/s (EPYC, two cores, 2026-11-27); the other 8.6 are 3.8M positions.
MEASURED = {"laptop": (1002, 3_800_000)}
SFT_RUNS = 1.75  # notebook 06: one whole run and three of a quarter of the steps
# Measured, see docs/speed.md.
COST = "Of 100 facts in its exam the chat model said 34 with a third of the steps, 91 with two"
COST += " thirds, 95 with all."
LEAST_SHARE = 0.05  # of the steps: with fewer the warm-up would be most of a run
WARM, COUNTED = 5, 20  # steps
TEXTS, CHARACTERS = 1600, 50  # as long as the sample's documents


def course_minutes(profile: Profile, rate: float) -> float:
    """Minutes that the whole course takes where training makes `rate` tokens/s."""
    return (_trained(profile) + MEASURED[profile.name][1]) / rate / 60


def fit_to_minutes(profile: Profile, rate: float, minutes: float) -> Profile:
    """The profile with as many steps of pretraining and SFT as fit into the minutes of a course.

    Both stages keep the same share of their steps, at least `LEAST_SHARE`, never more than all; the
    learning rate's schedule follows the steps, and the warm-up takes at most a tenth of them.

    Args:
        rate: tokens/s of pretraining, from `measure_rate`.

    Raises:
        ValueError: no positive number of minutes, or a profile whose course nobody has measured.
    """
    if not minutes > 0:
        raise ValueError(f"The course is to take {minutes:g} minutes: expected more than 0.")
    if profile.name not in MEASURED:
        known = ", ".join(MEASURED)
        raise ValueError(
            f"Minutes can be given for the profile {known}, whose course is measured, not for"
            f" {profile.name}: leave MINUTES out, or change TINYLLM_PROFILE."
        )
    room = 60 * minutes * rate - MEASURED[profile.name][1]
    share = min(1.0, max(LEAST_SHARE, room / _trained(profile)))
    steps = int(share * profile.pretrain["steps"])
    warmup = min(profile.pretrain["warmup_steps"], max(1, steps // 10))
    pretrain = {**profile.pretrain, "steps": steps, "warmup_steps": warmup}
    sft_steps = int(share * profile.sft["epochs"] * MEASURED[profile.name][0])
    sft = {**profile.sft, "epochs": round(share * profile.sft["epochs"], 4)}
    # A quarter of them is the shortest run of notebook 06.
    sft["warmup_steps"] = min(profile.sft["warmup_steps"], max(1, sft_steps // 40))
    return replace(profile, minutes=minutes, pretrain=pretrain, sft=sft)


def _trained(profile: Profile) -> float:
    """Positions of all training steps of the course."""
    sft_steps = SFT_RUNS * profile.sft["epochs"] * MEASURED[profile.name][0]
    rows = profile.pretrain["steps"] * profile.pretrain["batch_size"]
    return profile.max_length * (rows + sft_steps * profile.sft["batch_size"])


def profile_within(profile: Profile, minutes: float) -> Profile:
    """`fit_to_minutes` at the rate that was measured when these minutes were first asked for.

    The rate is kept in the workspace's pace.json, so that a course that goes on, and a notebook
    alone, have the same steps: with others it would be another run. Without the file it is measured
    anew.
    """
    fit_to_minutes(profile, 1.0, minutes)  # what cannot be is said before anything is measured
    rate = kept_rate(replace(profile, minutes=minutes))
    if not rate:
        rate, path = measure_rate(profile), get_workspace(profile).root / "pace.json"
        write_json(path, {**read_json(path, {}), f"{minutes:g}": rate})
    return fit_to_minutes(profile, rate, minutes)


def kept_rate(profile: Profile) -> float:
    """The rate by which the steps of a profile with `minutes` were decided; 0: not yet."""
    kept = read_json(get_workspace(profile).root / "pace.json", {})
    rate = kept.get(f"{profile.minutes:g}") if profile.minutes else 0
    return rate if type(rate) in (int, float) and 0 < rate < 1e12 else 0


def measure_rate(profile: Profile) -> float:
    """Tokens/s of the profile's pretraining in the processes that `launch` starts here: 20 steps on
    random text.
    """
    print(f"Measuring this machine: {COUNTED} steps of training.", flush=True)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="tinyllm_") as scratch:
        tokenizer, tokens = Path(scratch, "tokenizer"), Path(scratch, "tokens")
        texts = ["".join(chr(rng.randrange(0x4E00, 0x5000)) for _ in range(CHARACTERS))
                 for _ in range(TEXTS)]  # fmt: skip
        tok = train_tokenizer(texts, tokenizer, vocab_size=profile.vocab_size)
        write_pretrain_tokens(texts, tok, tokens / "train")
        paths = {"data_path": str(tokens), "tokenizer_path": str(tokenizer)}
        paths["out_dir"] = str(Path(scratch, "run"))
        few = {"steps": WARM + COUNTED, "log_interval": 1, "eval_interval": 0, "save_interval": 0}
        numbers = {**profile.pretrain, **few, "max_seq_len": profile.max_length}
        return round(positions_per_second(launch(TrainConfig(**paths, **numbers), show=False)))


def positions_per_second(run: Path, warm: int = WARM) -> float:
    """Positions/s, padding included, of a run that logged every step: by the median of its steps
    but for the first `warm`, for one that a neighbour held up says nothing.
    """
    rows, config = read_metrics(run), run_config(run)
    seconds = median(
        (row["tokens"] - before["tokens"]) / row["tokens_per_second"]
        for before, row in zip(rows[warm - 1 :], rows[warm:], strict=False)
    )
    return config["batch_size"] * config["max_seq_len"] / seconds


def print_forecast(profile: Profile) -> None:
    """Say how long the course takes on this machine, where the profile's is known."""
    if profile.name not in MEASURED:
        return
    rate = kept_rate(profile) or measure_rate(profile)
    minutes = course_minutes(profile, rate)
    print(f"Training makes {rate:,.0f} tokens/s here: the whole course takes about {minutes:.0f}")
    print("minutes, less where runs are finished already.", end=" ")
    if profile.minutes is None:
        print("`make course MINUTES=12` takes fewer steps.\n", flush=True)
        return
    steps, all_steps = (p.pretrain["steps"] for p in (profile, PROFILES[profile.name]))
    print(f"Of pretraining it takes {steps:,} of {all_steps:,} steps,")
    print(f"of fine-tuning the same share. {COST}")
    if steps < all_steps / 3:
        print(f"With {steps / all_steps:.0%} of the steps expect far less.")
    if minutes > profile.minutes + 1:
        print(f"{profile.minutes:g} minutes are not enough here: this is the least that trains.")
    kept = get_workspace(profile).root / "pace.json"
    print(f"The same minutes are the same steps from now on; delete {kept} to measure anew.")
    print(flush=True)
