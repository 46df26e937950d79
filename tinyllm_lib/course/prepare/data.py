"""Corpus, tokenizer and token shards: loaded where they are there and fit, else made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from tinyllm_lib.course.made import file_fingerprint, made_by_us, sign
from tinyllm_lib.course.prepare.real import REAL_CORPORA
from tinyllm_lib.course.profiles import Profile, get_profile
from tinyllm_lib.course.workspace import Workspace
from tinyllm_lib.course.world import sample_recipe, write_sample_corpus
from tinyllm_lib.data import (
    atomic_path,
    differences,
    read_dialogues,
    read_texts,
    require_writable,
)
from tinyllm_lib.dataset import (
    read_manifest,
    remove_shards,
    write_pretrain_tokens,
    write_sft_tokens,
)
from tinyllm_lib.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer

SAMPLE_BYTES = 10**9  # of text for the tokenizer: more would hardly change the merges
VAL_DOCUMENTS = 50_000  # enough to measure bits per byte; a share of 10B tokens would be far more


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
        say(f"{why}: writing the sample corpus ({counts}).")
        write_sample_corpus(ws.raw, **sizes)
    if profile.real_corpora:
        for kind, corpus in REAL_CORPORA.items():
            files[kind] = ws.raw / corpus.name
            if not files[kind].exists():
                raise FileNotFoundError(
                    f"{files[kind]} is missing: download_{kind} fetches it (notebook 01 has the"
                    f" cell), or put the file into {ws.raw} by hand."
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
    made, found = made_by_us(folder), {path.name for path in folder.glob("[!.]*")}
    if found and made is None:
        if missing := sorted({"tokenizer.json", "tokenizer_config.json"} - found):
            raise ValueError(
                f"{folder} is no whole tokenizer: it holds {', '.join(sorted(found))}, and no"
                f" {' and no '.join(missing)}. Put the whole folder there, or remove it."
            )
        if remake:
            say(f"{folder.name}/ was not made here, or was changed since: it stays as it is.")
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
        say(f"The tokenizer was trained on something else, {changed}: training it again.")
    elif not made:
        say(f"No tokenizer yet: training one with {profile.vocab_size:,} entries.")
    elif not remake:
        return load_tokenizer(folder)
    packed = REAL_CORPORA["pretrain"]
    grows = packed.text_bytes / packed.packed_bytes if profile.real_corpora else 1
    every = max(1, round(grows * corpus.stat().st_size / SAMPLE_BYTES))
    sample = islice(read_texts(corpus), 0, None, every)
    with atomic_path(folder) as temporary:
        train_tokenizer(sample, temporary, vocab_size=profile.vocab_size)
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
            only who deletes the folder begins anew.
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

    if own := [split for split in ("train", "val") if not shards_are_ours(folder / split)]:
        what = f"The token shards {folder.name}/{', '.join(own)}"
        say(f"{what} were not made from the corpus here: they stay as they are.")
        return folder
    sources = {split: source_of(files, kind, split, profile) for split in ("train", "val")}
    fits = {split: _fits(folder / split, tok, source) for split, source in sources.items()}
    if not fits["val"] and next(documents("val"), None) is None:
        what = f"The corpus of {folder.name} has one document"
        say(f"{what}: it is trained on, and there is no validation.")
        _remove_shards(folder / "val")
        del sources["val"], fits["val"]
    if not all(fits.values()) and not remake:
        say(f"No {folder.name} token shards of this corpus and tokenizer yet: writing them.")
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


def source_of(files: dict[str, Path], kind: str, split: str, profile: Profile) -> str:
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


def shards_are_ours(folder: Path) -> bool:
    """Whether what is there may be written anew: of a corpus of the workspace, or nothing."""
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        return True
    kind = manifest["kind"]
    return manifest["source"].startswith((f"{kind}.jsonl, ", f"{REAL_CORPORA[kind].name}, "))


def _remove_shards(folder: Path) -> None:
    require_writable(folder)
    remove_shards(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def say(line: str) -> None:
    """What was made, or not used: never in silence."""
    print(line, flush=True)
