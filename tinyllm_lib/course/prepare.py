"""What notebooks hand each other through the workspace, and what makes it when it is not there yet.

Every notebook runs alone: what an earlier one makes is loaded, or made on the spot at the smallest
size, with a line that says so. Corpus, tokenizer and shards take seconds and are made as the
profile wants them; a model that takes minutes is replaced by a very small one under another name
(`pretrain_quick`), so that it is never mistaken for the real one.

Each of them has a record of what it was made from. What is there but not finished, or older than
what it was made from, is never used in silence: we make it again if we made it, and a line says so.
What a learner put there is never replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from tinyllm_lib import launch
from tinyllm_lib.course.profiles import Profile, get_profile
from tinyllm_lib.course.world import sample_recipe, write_sample_corpus
from tinyllm_lib.data import (
    BELLE,
    SEQ_MONKEY,
    Workspace,
    atomic_path,
    differences,
    file_fingerprint,
    made_by_us,
    read_dialogues,
    read_texts,
    require,
    require_writable,
    sign,
)
from tinyllm_lib.dataset import (
    read_manifest,
    shards_fingerprint,
    write_pretrain_tokens,
    write_sft_tokens,
)
from tinyllm_lib.model import (
    latest_checkpoint,
    model_folder,
    step_folders,
    step_of,
    weight_files,
    weights_fingerprint,
)
from tinyllm_lib.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from tinyllm_lib.train import TrainConfig, run_config

REAL_CORPORA = {"pretrain": SEQ_MONKEY, "sft": BELLE}
VAL_DOCUMENTS = 50_000  # enough to measure bits per byte; a share of 10B tokens would be far more
# Paths of a TrainConfig, and where in a workspace: a handout brings those of another machine.
PATHS = {"data_path": "tokens", "tokenizer_path": "", "init_from": "runs"}
IF_NOT_READY = ("stand_in", "go_on", "use")


def corpus_files(ws: Workspace, profile: Profile | None = None) -> dict[str, Path]:
    """Paths of the raw files {"pretrain", "sft", "exam"}; those of the sample corpus are written
    where they are missing.

    They are written again where the profile's sizes or the generator have changed. A file that is
    not ours stays.

    Raises:
        FileNotFoundError: the profile wants the real corpora and they have not been downloaded.
    """
    profile = profile or get_profile()
    files = {name: ws.raw / f"{name}.jsonl" for name in ("pretrain", "sft", "exam")}
    sizes = {"documents": profile.documents, "dialogues": profile.dialogues}
    missing = [path.name for path in files.values() if not os.path.lexists(path)]
    made = [recipe for path in files.values() if (recipe := made_by_us(path)) is not None]
    changed = [what for recipe in made for what in differences(recipe, sample_recipe(**sizes))]
    if missing or changed:
        why = f"The sample corpus was made otherwise, {', '.join(dict.fromkeys(changed))}"
        if missing:
            why = f"No {'corpus' if len(missing) == 3 else ', '.join(missing)} yet"
        counts = ", ".join(f"{count:,} {name}" for name, count in sizes.items())
        _say(f"{why}: writing the sample corpus ({counts}).")
        write_sample_corpus(ws.raw, **sizes)
    if profile.real_corpora:
        for kind, corpus in REAL_CORPORA.items():
            cell = f"notebook 01 has the cell; by hand, put the file into {ws.raw}"
            files[kind] = require(ws.raw / corpus.name, f"download_{kind} ({cell})")
    return files


def tokenizer(
    ws: Workspace, profile: Profile | None = None, *, remake: bool = False
) -> PreTrainedTokenizerFast:
    """The workspace's tokenizer, trained on the pretraining corpus where it is missing, or that
    corpus has changed since.

    A tokenizer folder that is not ours is loaded as it is.

    Args:
        remake: train it again in any case, if it is ours.

    Raises:
        ValueError: a folder that is no whole tokenizer, or one of another corpus where the shards
            of the real corpora, which take hours, hang on it.
    """
    profile, folder = profile or get_profile(), ws.tokenizer
    corpus = ws.raw / (REAL_CORPORA["pretrain"].name if profile.real_corpora else "pretrain.jsonl")
    made, found = made_by_us(folder), {path.name for path in folder.glob("[!.]*")}
    if found and made is None:
        if missing := sorted({"tokenizer.json", "tokenizer_config.json"} - found):
            raise ValueError(
                f"{folder} is no whole tokenizer: it holds {', '.join(sorted(found))}, and no"
                f" {' and no '.join(missing)}. Put the whole folder there, or remove it."
            )
        if remake:
            _say(f"{folder.name}/ was not made here, or was changed since: it stays as it is.")
        return load_tokenizer(folder)
    if made and not remake and not corpus.exists():
        return load_tokenizer(folder)
    fingerprint = file_fingerprint(corpus_files(ws, profile)["pretrain"])
    recipe = {"corpus": fingerprint, "vocab_size": profile.vocab_size}
    changed = ", ".join(differences(made, recipe)) if made else ""
    if changed and profile.real_corpora:
        raise ValueError(
            f"{folder} was trained on something else, {changed}, and token shards that take hours"
            " hang on it. Bring that corpus back; or remove the folder and tokens/."
        )
    if changed:
        _say(f"The tokenizer was trained on something else, {changed}: training it again.")
    elif not made:
        _say(f"No tokenizer yet: training one with {profile.vocab_size:,} entries.")
    elif not remake:
        return load_tokenizer(folder)
    with atomic_path(folder) as temporary:
        train_tokenizer(read_texts(corpus), temporary, vocab_size=profile.vocab_size)
        sign(list(temporary.iterdir()), recipe)
    return load_tokenizer(folder)


def token_shards(
    ws: Workspace,
    kind: str,
    profile: Profile | None = None,
    *,
    remake: bool = False,
    learn_all: bool = False,
) -> Path:
    """Folder with train/ and val/ shards of "pretrain" or "sft"; written where missing, or where
    their corpus or tokenizer changed.

    A corpus of a single document has no val/, and a line says so.

    Args:
        remake: write them again in any case. Not those of the real corpora, which take hours:
            writing them goes on where it stopped, and only who deletes the folder begins anew.
        learn_all: SFT shards whose mask learns every token (folder `sft_no_mask`), for the
            comparison in notebook 06.

    Raises:
        ValueError: the real corpora have shards of another corpus or tokenizer.
    """
    profile, tok = profile or get_profile(), tokenizer(ws, profile)
    folder = ws.tokens(kind, "train").parent
    if learn_all:
        folder = folder.with_name(f"{kind}_no_mask")
    files = corpus_files(ws, profile)

    def documents(split: str) -> Iterator:
        if kind == "pretrain":
            most = VAL_DOCUMENTS if split == "val" else None
            return islice(read_texts(files[kind], split=split), most)
        # The sample corpus says hello many times in the same words, and means it.
        return read_dialogues(files[kind], split=split, deduplicate=profile.real_corpora)

    if own := [split for split in ("train", "val") if not _shards_are_ours(folder / split)]:
        what = f"The token shards {folder.name}/{', '.join(own)}"
        _say(f"{what} were not made from the corpus here: they stay as they are.")
        return folder
    sources = {split: _source(files, kind, split, profile) for split in ("train", "val")}
    fits = {split: _fits(folder / split, tok, source) for split, source in sources.items()}
    if not fits["val"] and next(documents("val"), None) is None:
        what = f"The corpus of {folder.name} has one document"
        _say(f"{what}: it is trained on, and there is no validation.")
        _remove_shards(folder / "val")
        del sources["val"], fits["val"]
    if not all(fits.values()) and not remake:
        _say(f"No {folder.name} token shards of this corpus and tokenizer yet: writing them.")
    if (remake or not all(fits.values())) and not profile.real_corpora:
        for split in sources:  # both: no document may lie in both
            _remove_shards(folder / split)
    for split, source in sources.items():
        options = {"source": source, "replace": not profile.real_corpora}
        if kind == "pretrain":
            write_pretrain_tokens(documents(split), tok, folder / split, **options)
            continue
        if split == "train":
            texts = read_texts(files["pretrain"], split="train")
            options |= {"replay": islice(texts, _replayed(profile)), "learn_all": learn_all}
        options["max_length"] = profile.max_length
        write_sft_tokens(documents(split), tok, folder / split, **options)
    return folder


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
    """Why a run of the workspace is not to be used without a word; "" where it is finished, and
    made from what lies here now.
    """
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

    @cached_property
    def changed(self) -> list[str]:
        """Where what it was made from and what lies here now differ. What is gone is not compared."""
        ws, config = self.ws, run_config(self.folder)
        now = {"tokenizer": tokenizer_hash(tokenizer(ws, self.profile))}
        was = config.get("made_from")
        shards = ws.root / "tokens" / Path(config.get("data_path") or "-").name / "train"
        try:
            manifest = read_manifest(shards)
            now["shards"] = shards_fingerprint(manifest)
            files = corpus_files(ws, self.profile)
            if was and _shards_are_ours(shards):
                was = {**was, "corpus": manifest["source"]}
                now["corpus"] = _source(files, manifest["kind"], "train", self.profile)
        except FileNotFoundError:
            pass
        start = Path(config.get("init_from") or "")
        if start.name:
            # The real run takes the place of its stand-in; paths may be those of the machine that
            # a handout comes from.
            names = dict.fromkeys((start.name.removesuffix("_quick"), start.name))
            for folder in (*map(ws.run, names), start):
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
        _say(f"The run {name} is used as it is: {why}.")
        return run.folder
    if if_not_ready == "go_on":
        now = f"The run {name} is trained now: {why}."
        _say(now if run.begun else f"No {name} run yet: training it now.")
        return _go_on(run, stage)
    quick = _Run(ws, f"{name}_quick", profile)
    missing = f"No {name} run yet: "
    if run.begun:
        missing, use = "", ', "use" takes it as it is' if run.newest else ""
        go_on = f'if_not_ready="go_on" trains it to its end{use}'
        _say(f"The run {name} is not used: {why}. {go_on}.")
        if not quick.why_not_ready:
            _say(f"The stand-in {quick.name} is used instead.")
    if quick.why_not_ready:
        steps = getattr(get_profile("ci"), stage)["steps"]
        _say(
            f"{missing}training a very small stand-in ({steps} steps), so that this notebook runs"
            f" alone. It will talk nonsense; for the real one run notebook {notebook} first."
        )
        _train_stand_in(quick, stage, if_not_ready)
    return quick.folder


def _go_on(run: _Run, stage: str) -> Path:
    """Trains a run to its end, with its own numbers where it was only stopped, else anew."""
    ws, own = run.ws, {}
    token_shards(ws, stage, run.profile)
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


def _source(files: dict[str, Path], kind: str, split: str, profile: Profile) -> str:
    """What shards are made from, as their manifest says it."""

    def named(name: str) -> str:
        return f"{files[name].name}, {file_fingerprint(files[name])}"

    if (kind, split) != ("sft", "train") or not _replayed(profile):
        return named(kind)
    return f"{named(kind)}; replay of {_replayed(profile):,} from {named('pretrain')}"


def _replayed(profile: Profile) -> int:
    return int(profile.replay_share * profile.dialogues)


def _fits(folder: Path, tok: PreTrainedTokenizerFast, source: str) -> bool:
    try:
        manifest = read_manifest(folder)
        return (manifest["tokenizer"], manifest["source"]) == (tokenizer_hash(tok), source)
    except FileNotFoundError:
        return False


def _shards_are_ours(folder: Path) -> bool:
    """Whether what is there may be written anew: of a corpus of the workspace, or nothing."""
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        return True
    kind = manifest["kind"]
    return manifest["source"].startswith((f"{kind}.jsonl, ", f"{REAL_CORPORA[kind].name}, "))


def _remove_shards(folder: Path) -> None:
    require_writable(folder)
    for pattern in ("manifest.json", "progress.json", "shard_*"):
        for path in folder.glob(pattern):
            path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _say(line: str) -> None:
    print(line, flush=True)
