"""What notebooks hand each other through the workspace, and what makes it when it is not there yet.

Every notebook runs alone: what an earlier one makes is loaded, or made on the spot at the smallest
size, with a line that says so. Corpus, tokenizer and shards take seconds and are made as the
profile wants them; a model that takes minutes is replaced by a very small one under another name
(`pretrain_quick`), so that it is never mistaken for the real one.

Each of them has a record of what it was made from (`tinyllm_lib.provenance`). Only what is missing
is made, only what we made is made again, when what it was made from has changed, and a line says
so. What a learner put there is never replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerFast

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
    find_damage,
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
VAL_DOCUMENTS = (
    50_000  # enough to measure bits per byte; a share of 10B tokens would be far more than that
)
PATHS = {
    "data_path": "tokens",
    "tokenizer_path": "",
    "init_from": "runs",
}  # of a TrainConfig, and where in a workspace; a handout
# brings those of another machine
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
    now = sample_recipe(documents=profile.documents, dialogues=profile.dialogues)
    missing = [path.name for path in files.values() if not os.path.lexists(path)]
    changed = [
        what
        for path in files.values()
        if (made := made_by_us(path)) is not None
        for what in differences(made, now)
    ]
    if missing or changed:
        what = (
            "No corpus yet"
            if len(missing) == len(files)
            else (
                f"No {', '.join(missing)} yet"
                if missing
                else (f"The sample corpus was made otherwise, {', '.join(dict.fromkeys(changed))}")
            )
        )
        _say(
            f"{what}: writing the sample corpus ({profile.documents:,} documents,"
            f" {profile.dialogues:,} dialogues)."
        )
        write_sample_corpus(ws.raw, documents=profile.documents, dialogues=profile.dialogues)
    if profile.real_corpora:
        for kind, corpus in REAL_CORPORA.items():
            files[kind] = require(
                ws.raw / corpus.name,
                f"download_{kind} (notebook 01 has the cell; by hand, put the file into {ws.raw})",
            )
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
    made, found = made_by_us(folder), [path.name for path in folder.glob("[!.]*")]
    if found and made is None:
        if missing := [
            name for name in ("tokenizer.json", "tokenizer_config.json") if name not in found
        ]:
            raise ValueError(
                f"{folder} is no whole tokenizer: it holds {', '.join(sorted(found))}, and no"
                f" {' and no '.join(missing)}. Put the whole folder there, or remove it, and one is"
                " trained."
            )
        if remake:
            _say(
                f"The folder {folder.name}/ was not made here, or was changed since: it stays as"
                " it is."
            )
        return load_tokenizer(folder)
    if made and not remake and not corpus.exists():
        return load_tokenizer(folder)
    recipe = {
        "corpus": file_fingerprint(corpus_files(ws, profile)["pretrain"]),
        "vocab_size": profile.vocab_size,
    }
    changed = differences(made, recipe) if made else []
    if made and not changed and not remake:
        return load_tokenizer(folder)
    if changed and profile.real_corpora:
        raise ValueError(
            f"{folder} was trained on something else, {', '.join(changed)}, and token shards that"
            " take hours hang on it. Bring that corpus back; or remove the folder and tokens/, and"
            " both are made anew."
        )
    if changed:
        _say(
            f"The tokenizer was trained on something else, {', '.join(changed)}: training it again."
        )
    elif not made:
        _say(f"No tokenizer yet: training one with {profile.vocab_size:,} entries.")
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
            return islice(
                read_texts(files[kind], split=split), VAL_DOCUMENTS if split == "val" else None
            )
        # The sample corpus says hello many times in the same words, and means it.
        return read_dialogues(files[kind], split=split, deduplicate=profile.real_corpora)

    if own := [split for split in ("train", "val") if not _shards_are_ours(folder / split)]:
        _say(
            f"The token shards {folder.name}/{', '.join(own)} were not made from the corpus here:"
            " they stay as they are."
        )
        return folder
    sources = {split: _source(files, kind, split, profile) for split in ("train", "val")}
    fits = {split: _fits(folder / split, tok, source) for split, source in sources.items()}
    if not fits["val"] and next(documents("val"), None) is None:
        _say(
            f"The corpus of {folder.name} has one document: it is trained on, and there is no"
            " validation."
        )
        _remove_shards(folder / "val")
        del sources["val"], fits["val"]
    if not all(fits.values()) and not remake:
        _say(f"No {folder.name} token shards of this corpus and tokenizer yet: writing them.")
    if (
        remake or not all(fits.values())
    ) and not profile.real_corpora:  # both: no document may lie in both
        for split in sources:
            _remove_shards(folder / split)
    for split, source in sources.items():
        common = {"source": source, "replace": not profile.real_corpora}
        if kind == "pretrain":
            write_pretrain_tokens(documents(split), tok, folder / split, **common)
        else:
            replay = (
                islice(read_texts(files["pretrain"], split="train"), _replayed(profile))
                if split == "train"
                else ()
            )
            write_sft_tokens(
                documents(split),
                tok,
                folder / split,
                max_length=profile.max_length,
                replay=replay,
                learn_all=learn_all and split == "train",
                **common,
            )
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
    values = {
        "data_path": str(ws.tokens(stage, "train").parent),
        "max_seq_len": profile.max_length,
        **getattr(profile, stage),
    }
    values["out_dir"] = str(ws.run(name or {"pretrain": "pretrain", "sft": "chat"}[stage]))
    if stage == "pretrain":
        values["tokenizer_path"] = str(ws.tokenizer)
    else:
        values["init_from"] = str(
            changes.pop("init_from", None) or pretrained_run(ws, profile, if_not_ready)
        )
    return TrainConfig(**{**values, **changes})


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
    return _run(ws, "pretrain", "pretrain", profile or get_profile(), "05_pretrain", if_not_ready)


def chat_run(ws: Workspace, profile: Profile | None = None, if_not_ready: str = "stand_in") -> Path:
    """The fine-tuned run folder (notebook 06); `if_not_ready` as in `pretrained_run`."""
    return _run(ws, "sft", "chat", profile or get_profile(), "06_sft", if_not_ready)


def why_not_ready(ws: Workspace, name: str, profile: Profile | None = None) -> str:
    """Why a run of the workspace is not to be used without a word; "" where it is finished, and
    made from what lies here now.
    """
    run = ws.run(name)
    try:
        step = step_of(latest_checkpoint(run))
    except FileNotFoundError as error:
        return "all its checkpoints are damaged" if step_folders(run) else str(error)
    steps = run_config(run).get("steps", 0)
    if step < steps:
        return f"it has come to step {step:,} of {steps:,}"
    changed = _changed(ws, run, profile or get_profile())
    return f"it was not made from what lies here now: {', '.join(changed)}" if changed else ""


def _run(
    ws: Workspace, stage: str, name: str, profile: Profile, notebook: str, if_not_ready: str
) -> Path:
    if if_not_ready not in IF_NOT_READY:
        raise ValueError(
            f"if_not_ready is {if_not_ready!r}, expected one of {', '.join(IF_NOT_READY)}."
        )
    run, quick = ws.run(name), ws.run(f"{name}_quick")
    why = why_not_ready(ws, name, profile)
    if not why:
        return run
    from tinyllm_lib.launch import launch

    begun, whole = bool(step_folders(run)), not all(map(find_damage, step_folders(run)))
    if whole and if_not_ready == "use":
        _say(f"The run {name} is used as it is: {why}.")
        return run
    if if_not_ready == "go_on":
        _say(
            f"The run {name} is trained now: {why}."
            if begun
            else f"No {name} run yet: training it now."
        )
        token_shards(ws, stage, profile)
        config = _to_go_on(ws, stage, name, profile)
        return launch(config if whole or not begun else replace(config, resume="never"))
    if begun:
        as_it_is = ', "use" takes it as it is' if whole else ""
        _say(
            f'The run {name} is not used: {why}. if_not_ready="go_on" trains it to its'
            f" end{as_it_is}."
        )
    if why_not_ready(ws, quick.name, profile):
        smallest = getattr(get_profile("ci"), stage)
        _say(
            f"{'' if begun else f'No {name} run yet: '}training a very small stand-in"
            f" ({smallest['steps']} steps), so that this notebook runs alone. It will talk"
            f" nonsense; for the real one run notebook {notebook} first."
        )
        token_shards(ws, stage, profile)
        config = train_config(stage, ws, profile, name=quick.name, if_not_ready=if_not_ready)
        numbers = {
            k: v
            for k, v in smallest.items()
            if stage == "pretrain" or k not in ("dim", "n_layers", "n_heads", "n_kv_heads")
        }
        launch(
            replace(config, **{"compile": False, "epochs": 1.0, **numbers}),
            nproc_per_node=1,
            show=False,
        )
    elif begun:
        _say(f"The stand-in {quick.name} is used instead.")
    return quick


def _to_go_on(ws: Workspace, stage: str, name: str, profile: Profile) -> TrainConfig:
    """The profile's configuration, with the numbers of the run itself where it was only stopped."""
    run, own = ws.run(name), {}
    if step_folders(run) and not _changed(ws, run, profile):
        saved = run_config(run)
        for option, inside in PATHS.items():  # a copied workspace goes on with its own
            if saved.get(option) and (here := ws.root / inside / Path(saved[option]).name).exists():
                saved[option] = str(here)
        names = [
            f.name
            for f in fields(TrainConfig)
            if f.name in saved and (f.name not in PATHS or os.path.exists(saved[f.name]))
        ]
        own = {name: saved[name] for name in names} | {"out_dir": str(run), "resume": "auto"}
    return train_config(stage, ws, profile, name=name, if_not_ready="go_on", **own)


def _changed(ws: Workspace, run: Path, profile: Profile) -> list[str]:
    """What a run was made from and what lies in the workspace now: where they differ. What is no
    longer there is not compared.
    """
    config = run_config(run)
    was, now = config.get("made_from"), {"tokenizer": tokenizer_hash(tokenizer(ws, profile))}
    data = Path(config.get("data_path") or "-").name
    try:
        manifest = read_manifest(ws.root / "tokens" / data / "train")
        now["shards"] = shards_fingerprint(manifest)
        files = corpus_files(ws, profile)
        if was and _shards_are_ours(ws.root / "tokens" / data / "train"):
            was, now["corpus"] = (
                {**was, "corpus": manifest["source"]},
                _source(files, manifest["kind"], "train", profile),
            )
    except FileNotFoundError:
        pass
    start = Path(config.get("init_from") or "")
    if start.name:
        # The real run takes the place of its stand-in; paths may be those of the machine that a
        # handout comes from.
        names = ["pretrain", start.name] if start.name == "pretrain_quick" else [start.name]
        runs = [ws.root / "runs" / name for name in names]
        here = [folder for folder in (*runs, start) if step_folders(folder) or weight_files(folder)]
        if here:
            now["init_from"] = weights_fingerprint(model_folder(here[0]))
    return differences(was, now)


def _source(files: dict[str, Path], kind: str, split: str, profile: Profile) -> str:
    """What shards are made from, as their manifest says it."""

    def named(name: str) -> str:
        return f"{files[name].name}, {file_fingerprint(files[name])}"

    replay = (
        f"; replay of {_replayed(profile):,} from {named('pretrain')}" if _replayed(profile) else ""
    )
    return named(kind) + (replay if (kind, split) == ("sft", "train") else "")


def _replayed(profile: Profile) -> int:
    return int(profile.replay_share * profile.dialogues)


def _fits(folder: Path, tok: PreTrainedTokenizerFast, source: str) -> bool:
    try:
        manifest = read_manifest(folder)
        return (manifest["tokenizer"], manifest["source"]) == (tokenizer_hash(tok), source)
    except FileNotFoundError:
        return False


def _shards_are_ours(folder: Path) -> bool:
    """Whether what lies in a folder may be written anew: its manifest names a corpus of the
    workspace, or there is none.
    """
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        return True
    kind = manifest["kind"]
    return manifest["source"].startswith((f"{kind}.jsonl, ", f"{REAL_CORPORA[kind].name}, "))


def _remove_shards(folder: Path) -> None:
    require_writable(folder)
    for path in (
        *folder.glob("manifest.json"),
        *folder.glob("progress.json"),
        *folder.glob("shard_*"),
    ):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _say(line: str) -> None:
    print(line, flush=True)


__all__ = [
    "chat_run",
    "corpus_files",
    "pretrained_run",
    "token_shards",
    "tokenizer",
    "train_config",
    "why_not_ready",
]
