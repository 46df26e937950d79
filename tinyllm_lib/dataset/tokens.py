"""Token shards: ids on disk, to be memory-mapped, so that training never waits for a tokenizer.

    tokens/pretrain/train/  manifest.json
                            shard_00000.bin      uint16 ids (uint32 where there are more of them)
                            shard_00000.offsets  uint64, where each document starts, and the end
    tokens/sft/train/       the same, and
                            shard_00000.mask     uint8, 1 where the token is to be learned

A folder is finished when it has a `manifest.json`, which is written last. `packed_….safetensors`
are rows that `PackedDataset` has made of the shards and keeps.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import (
    atomic_path,
    content_fingerprint,
    differences,
    read_json,
    sha256,
    write_json,
)
from tinyllm_lib.tokenizer import Sample, encode_chats, encode_documents, tokenizer_hash

BATCH_DOCUMENTS = 1024
BATCH_CHARS = 1_000_000  # at most, or one document: memory is that of a batch
SHARD_TOKENS = 100_000_000
SAME = ("kind", "tokenizer", "dtype", "source", "settings", "shard_tokens")  # else other shards
TOTALS = ("documents", "tokens", "supervised_tokens")


def write_pretrain_tokens(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    out_dir: str | Path,
    **options: Any,
) -> dict:
    """Encodes documents on all cores and writes them, each followed by `<|im_end|>`, as shards.

    Args:
        texts: documents, streamed.
        source: a name for where the texts come from (file, size, settings, replay), "". A finished
            folder of this name is left as it is; one without a name is written anew.
        shard_tokens: a shard is closed when it holds at least this many tokens, 100 million.
        replace: delete shards made from another source, tokenizer or settings, False.

    Returns the manifest. Shards made otherwise (unless `replace`), a text without bytes, and no
    text at all are a ValueError.
    """

    def encode(items: list[str], first: int) -> tuple[list[Sample], dict[str, int]]:
        return encode_documents(tokenizer, items, first=first), {}

    return _write(texts, encode, Path(out_dir), "pretrain", tokenizer, {}, **options)


def write_sft_tokens(
    dialogues: Iterable[list[dict[str, str]]],
    tokenizer: PreTrainedTokenizerFast,
    out_dir: str | Path,
    *,
    max_length: int = 512,
    replay: Iterable[str] = (),
    learn_all: bool = False,
    **options: Any,
) -> dict:
    """Encodes dialogues with their loss masks on all cores and writes them as shards.

    A dialogue longer than `max_length` tokens loses whole turns from its front (`encode_chat`), a
    replayed text its end; a dialogue without a supervised token is left out. The manifest counts
    all this. Arguments that are not named here, result and errors: `write_pretrain_tokens`.

    Args:
        replay: pretraining texts to learn whole, after the dialogues, so that less is forgotten.
        learn_all: ignore the mask and learn every token, for the comparison in notebook 06.
    """

    def encode(items: list, first: int) -> tuple[list[Sample], dict[str, int]]:
        dialogues = [item for item in items if not isinstance(item, tuple)]
        texts = [item[0] for item in items if isinstance(item, tuple)]  # to replay
        chats = encode_chats(tokenizer, dialogues, max_length=max_length, first=first)
        first += len(dialogues)
        replayed = encode_documents(tokenizer, texts, max_length=max_length, first=first)
        samples = [sample for sample in chats + replayed if any(sample.loss_mask)]
        counts = {
            "dialogues": len(chats),
            "shortened_dialogues": sum(bool(s.dropped_turns or s.cut_tokens) for s in chats),
            "dropped_messages": sum(s.dropped_turns for s in chats),
            "cut_tokens": sum(s.cut_tokens for s in chats + replayed),
            "cut_supervised_tokens": sum(s.cut_supervised for s in chats + replayed),
            "without_supervised_token": len(chats) + len(replayed) - len(samples),
            "replayed_documents": len(replayed),
            "shortened_documents": sum(s.cut_tokens > 0 for s in replayed),
        }
        if learn_all:
            samples = [Sample(sample.ids, [1] * len(sample)) for sample in samples]
        return samples, counts

    settings = {"max_length": max_length, "learn_all": learn_all}
    items = chain(map(list, dialogues), zip(replay))
    return _write(items, encode, Path(out_dir), "sft", tokenizer, settings, **options)


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a finished folder of shards; where there is none, a FileNotFoundError."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no finished token shards (see notebook 03).")
    return read_json(path)


def shards_fingerprint(manifest: dict) -> str:
    """What decides the tokens of a folder of shards, every shard of it, as 16 hex digits."""
    decisive = ("kind", "tokenizer", "dtype", "settings", "shards")
    return content_fingerprint({name: manifest[name] for name in decisive})


def remove_shards(folder: Path) -> None:
    """Deletes all that this folder of the library wrote there, the manifest first."""
    for pattern in ("manifest.json", "shard_*", "packed_*"):
        for path in folder.glob(pattern):
            path.unlink()


def _write(
    items: Iterable,
    encode: Callable,
    folder: Path,
    kind: str,
    tokenizer: PreTrainedTokenizerFast,
    settings: dict,
    source: str = "",
    shard_tokens: int = SHARD_TOKENS,
    replace: bool = False,
) -> dict:
    """Batches in, shards and a manifest out."""
    manifest: dict = {
        "version": 1,
        "kind": kind,
        "tokenizer": tokenizer_hash(tokenizer),
        "vocab_size": len(tokenizer),
        "dtype": "uint16" if len(tokenizer) <= 2**16 else "uint32",
        "source": source,
        "settings": settings,
        "shard_tokens": shard_tokens,
        **dict.fromkeys(TOTALS, 0),
        "shards": [],
        "counts": {},
    }
    finished = folder / "manifest.json"
    if finished.is_file():
        there = read_json(finished)
        changed = differences(there, {key: manifest[key] for key in SAME})
        if changed and not replace:
            raise ValueError(
                f"{folder} holds token shards made otherwise: {', '.join(changed)}. Give another"
                f" folder, or replace=True to delete these {there['tokens']:,} tokens."
            )
        if source and not changed:
            return there
    remove_shards(folder)
    for half_written in folder.glob(".tmp-*"):  # by a run that was killed
        shutil.rmtree(half_written, ignore_errors=True)
    stream, counts, read = iter(items), Counter[str](), 0
    shard: _Shard | None = None
    with ExitStack() as files:  # an error removes the unfinished ones
        while batch := _next_batch(stream):
            samples, counted = encode(batch, read + 1)
            read += len(batch)
            counts.update(counted)
            if samples:
                shard = shard or _Shard(folder, manifest, files)
                shard.add(samples)
            if shard and shard.totals["tokens"] >= shard_tokens:
                files.close()
                shard.enter_in(manifest)
                shard = None
    if shard:
        shard.enter_in(manifest)
    if not manifest["tokens"]:
        what = "document" if kind == "pretrain" else "dialogue"
        raise ValueError(
            f"{folder}: the source gave no {what} with a token to learn ({read} read)."
        )
    manifest["counts"] = dict(counts)
    write_json(finished, manifest)
    return manifest


def _next_batch(stream: Iterator) -> list:
    """Up to `BATCH_DOCUMENTS` items, fewer where they are long."""
    batch, chars = [], 0
    for item in stream:
        batch.append(item)
        chars += len(str(item))
        if len(batch) == BATCH_DOCUMENTS or chars >= BATCH_CHARS:
            break
    return batch


class _Shard:
    """The files of one shard while they grow; closing `files` gives them their names."""

    def __init__(self, folder: Path, manifest: dict, files: ExitStack):
        self.folder, self.dtype = folder, manifest["dtype"]
        self.name = f"shard_{len(manifest['shards']):05d}"
        self.totals = Counter(dict.fromkeys(TOTALS, 0))
        self.files = {}
        for suffix in ("bin", "offsets", *["mask"] * (manifest["kind"] == "sft")):
            path = files.enter_context(atomic_path(folder / f"{self.name}.{suffix}"))
            self.files[suffix] = files.enter_context(path.open("wb"))
        self.files["offsets"].write(np.zeros(1, np.uint64).data)

    def add(self, samples: list[Sample]) -> None:
        ends = np.cumsum([len(sample) for sample in samples], dtype=np.uint64)
        tokens = supervised = int(ends[-1])
        self.files["offsets"].write((ends + np.uint64(self.totals["tokens"])).data)
        ids = np.fromiter(chain(*(sample.ids for sample in samples)), self.dtype, tokens)
        self.files["bin"].write(ids.data)
        if "mask" in self.files:
            mask = np.fromiter(chain(*(sample.loss_mask for sample in samples)), np.uint8, tokens)
            self.files["mask"].write(mask.data)
            supervised = int(mask.sum())
        self.totals.update(documents=len(samples), tokens=tokens, supervised_tokens=supervised)

    def enter_in(self, manifest: dict) -> None:
        names = [f"{self.name}.{suffix}" for suffix in self.files]
        sums = {name: sha256(self.folder / name) for name in names}
        manifest["shards"].append({"name": self.name, **self.totals, "sha256": sums})
        for key, count in self.totals.items():
            manifest[key] += count
