"""Runs: used where they are ready, else trained to their end, or replaced by a small stand-in."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path

from tinyllm_lib import launch
from tinyllm_lib.course.prepare.data import (
    corpus_files,
    say,
    shards_are_ours,
    source_of,
    token_shards,
    tokenizer,
)
from tinyllm_lib.course.profiles import Profile, get_profile
from tinyllm_lib.course.workspace import Workspace
from tinyllm_lib.data import differences
from tinyllm_lib.dataset import read_manifest, shards_fingerprint
from tinyllm_lib.model import (
    latest_checkpoint,
    model_folder,
    step_folders,
    step_of,
    weight_files,
    weights_fingerprint,
)
from tinyllm_lib.tokenizer import tokenizer_hash
from tinyllm_lib.train import TrainConfig, run_config

# Paths of a TrainConfig, and where in a workspace: a handout brings those of another machine.
PATHS = {"data_path": "tokens", "tokenizer_path": "", "init_from": "runs"}
IF_NOT_READY = ("stand_in", "go_on", "use")


def train_config(
    stage: str,
    ws: Workspace,
    profile: Profile | None = None,
    *,
    name: str | None = None,
    if_not_ready: str = "stand_in",
    **changes,
) -> TrainConfig:
    """The profile's TrainConfig for "pretrain" or "sft": its data, start and numbers; `changes`
    win.

    Args:
        name: of the run folder; default "pretrain" and "chat".
        if_not_ready: of the run that "sft" starts from, see `pretrained_run`.
    """
    profile = profile or get_profile()
    name = name or {"pretrain": "pretrain", "sft": "chat"}[stage]
    if stage == "pretrain":
        start = {"tokenizer_path": str(ws.tokenizer)}
    else:
        base = changes.pop("init_from", None) or pretrained_run(ws, profile, if_not_ready)
        start = {"init_from": str(base)}
    paths = {"data_path": str(ws.tokens(stage, "train").parent), "out_dir": str(ws.run(name))}
    numbers = {"max_seq_len": profile.max_length, **getattr(profile, stage)}
    return TrainConfig(**{**paths, **start, **numbers, **changes})


def pretrained_run(
    ws: Workspace, profile: Profile | None = None, if_not_ready: str = "stand_in"
) -> Path:
    """The pretrained run folder (notebook 05).

    Args:
        if_not_ready: what to do where it is missing, not at its end, or made from another corpus,
            tokenizer or base than lie here now. "stand_in": say so, and train a very small one
            instead; "go_on": train it to its end, or anew where it was made from something else;
            "use": take it as it is, if there is a checkpoint.
    """
    return _run(ws, "pretrain", "pretrain", profile, "05_pretrain", if_not_ready)


def chat_run(ws: Workspace, profile: Profile | None = None, if_not_ready: str = "stand_in") -> Path:
    """The fine-tuned run folder (notebook 06); `if_not_ready` as in `pretrained_run`."""
    return _run(ws, "sft", "chat", profile, "06_sft", if_not_ready)


def why_not_ready(ws: Workspace, name: str, profile: Profile | None = None) -> str:
    """Why a run is not to be used without a word; "": it is finished, and of what lies here now."""
    return _Run(ws, name, profile or get_profile()).why_not_ready


class _Run:
    """A run of the workspace, as it stands; each question costs hashes, and is answered once."""

    def __init__(self, ws: Workspace, name: str, profile: Profile):
        self.ws, self.name, self.profile, self.folder = ws, name, profile, ws.run(name)

    @cached_property
    def begun(self) -> bool:
        """Whether it has checkpoints, whole or not."""
        return bool(step_folders(self.folder))

    @cached_property
    def newest(self) -> Path | None:
        """The newest checkpoint that is whole."""
        try:
            return latest_checkpoint(self.folder)
        except FileNotFoundError:
            return None

    @cached_property
    def why_not_ready(self) -> str:
        """See `why_not_ready`: it must be there, at its end, and of what lies here now."""
        if self.newest is None:
            what = "has no finished checkpoint" if self.folder.is_dir() else "does not exist"
            return "all its checkpoints are damaged" if self.begun else f"{self.folder} {what}"
        step, steps = step_of(self.newest), run_config(self.folder).get("steps", 0)
        if step < steps:
            return f"it has come to step {step:,} of {steps:,}"
        changed = ", ".join(self.changed)
        return f"it was not made from what lies here now: {changed}" if changed else ""

    @property  # asked again, for shards may have been made since
    def changed(self) -> list[str]:
        """Where what it was made from and what lies here now differ, as far as both are known."""
        ws, config = self.ws, run_config(self.folder)
        now = {"tokenizer": tokenizer_hash(tokenizer(ws, self.profile))}
        was = config.get("made_from")
        shards = ws.root / "tokens" / Path(config.get("data_path") or "-").name / "train"
        try:
            manifest = read_manifest(shards)
            now["shards"] = shards_fingerprint(manifest)
            files = corpus_files(ws, self.profile)
            if was and shards_are_ours(shards):
                was = {**was, "corpus": manifest["source"]}
                now["corpus"] = source_of(files, manifest["kind"], "train", self.profile)
        except FileNotFoundError:
            pass
        start = Path(config.get("init_from") or "")
        if start.name:
            # The real run takes the place of its stand-in; paths may be those of the machine that
            # a handout comes from.
            runs, name = ws.root / "runs", start.name
            real = "pretrain" if name == "pretrain_quick" else name
            for folder in (runs / real, runs / name, start):
                if step_folders(folder) or weight_files(folder):
                    now["init_from"] = weights_fingerprint(model_folder(folder))
                    break
        return differences(was, now)


def _run(
    ws: Workspace, stage: str, name: str, profile: Profile | None, notebook: str, if_not_ready: str
) -> Path:
    """A run that is ready; or another, or this one as it is, after a line that says so."""
    if if_not_ready not in IF_NOT_READY:
        expected = ", ".join(IF_NOT_READY)
        raise ValueError(f"if_not_ready is {if_not_ready!r}, expected one of {expected}.")
    profile = profile or get_profile()
    run = _Run(ws, name, profile)
    if not (why := run.why_not_ready):
        return run.folder
    if if_not_ready == "use" and run.newest:
        say(f"The run {name} is used as it is: {why}.")
        return run.folder
    if if_not_ready == "go_on":
        now = f"The run {name} is trained now: {why}."
        say(now if run.begun else f"No {name} run yet: training it now.")
        return _go_on(run, stage)
    quick = _Run(ws, f"{name}_quick", profile)
    missing = f"No {name} run yet: "
    if run.begun:
        missing, use = "", ', "use" takes it as it is' if run.newest else ""
        go_on = f'if_not_ready="go_on" trains it to its end{use}'
        say(f"The run {name} is not used: {why}. {go_on}.")
        if not quick.why_not_ready:
            say(f"The stand-in {quick.name} is used instead.")
    if quick.why_not_ready:
        steps = getattr(get_profile("ci"), stage)["steps"]
        say(
            f"{missing}training a very small stand-in ({steps} steps), so that this notebook runs"
            f" alone. It will talk nonsense; for the real one run notebook {notebook} first."
        )
        _train_stand_in(quick, stage, if_not_ready)
    return quick.folder


def _go_on(run: _Run, stage: str) -> Path:
    """Trains a run to its end, with its own numbers where it was only stopped, else anew."""
    ws, own = run.ws, {}
    token_shards(ws, stage, run.profile)  # first, so that what was missing is compared, too
    if run.begun and not run.changed:
        saved = run_config(run.folder)
        for option, inside in PATHS.items():  # a copied workspace goes on with its own
            if saved.get(option) and (here := ws.root / inside / Path(saved[option]).name).exists():
                saved[option] = str(here)
        options = {f.name for f in fields(TrainConfig)} & set(saved)
        gone = {option for option in PATHS if not os.path.exists(saved.get(option) or "")}
        own = {option: saved[option] for option in options - gone}
        own |= {"out_dir": str(run.folder), "resume": "auto"}
    if run.begun and not run.newest:
        own["resume"] = "never"
    return launch.launch(
        train_config(stage, ws, run.profile, name=run.name, if_not_ready="go_on", **own)
    )


def _train_stand_in(run: _Run, stage: str, if_not_ready: str) -> None:
    """Trains a run with the numbers of the smallest profile; SFT keeps the size of its base."""
    token_shards(run.ws, stage, run.profile)
    config = train_config(stage, run.ws, run.profile, name=run.name, if_not_ready=if_not_ready)
    numbers = {"compile": False, "epochs": 1.0, **getattr(get_profile("ci"), stage)}
    launch.launch(replace(config, **numbers), nproc_per_node=1, show=False)
