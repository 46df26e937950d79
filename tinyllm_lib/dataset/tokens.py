"""Token shards: ids on disk, to be memory-mapped, so that training never waits for a tokenizer.

    tokens/pretrain/train/  manifest.json
                            shard_00000.bin      uint16 ids (uint32 where there are more of them)
                            shard_00000.offsets  uint64, where each document starts, and the end
    tokens/sft/train/       the same, and
                            shard_00000.mask     uint8, 1 where the token is to be learned

A folder is finished when it has a `manifest.json`, which is written last. A stopped run goes on
after its last whole shard. Memory is that of a batch, however large the corpus and the shards are;
a batch is a million characters, or one document that is longer.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import atomic_path, content_fingerprint, read_json, sha256, write_json
from tinyllm_lib.tokenizer import Sample, encode_chats, encode_documents, tokenizer_hash

BATCH_DOCUMENTS = 1024
BATCH_CHARS = 1_000_000
SHARD_TOKENS = 100_000_000
SAME = ("kind", "tokenizer", "dtype", "source", "settings", "shard_tokens")  # else other shards
TOTALS = ("documents", "tokens", "supervised_tokens")
Messages = list[dict[str, str]]
Encode = Callable[[list, int], tuple[list[Sample], dict[str, int]]]  # items, number of the first


def write_pretrain_tokens(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    out_dir: str | Path,
    *,
    source: str = "",
    shard_tokens: int = SHARD_TOKENS,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict:
    """Encodes documents on all cores and writes them, each followed by `<|im_end|>`, as shards.

    Args:
        texts: documents, streamed; on a restart the same stream from its beginning.
        source: a name for where the texts come from (file, size, settings, replay). A finished
            folder of this name is left as it is, and a stopped run goes on; without a name nobody
            knows of which texts they are, and all is written anew.
        shard_tokens: a shard is closed when it holds at least this many tokens.
        replace: delete shards in the folder that were made from another source, with another
            tokenizer or other settings.
        progress: called with the number of documents done.

    Returns:
        The manifest, as written.

    Raises:
        ValueError: shards made otherwise and not `replace`, a text without bytes, or no text.
    """

    def encode(items: list[str], first: int) -> tuple[list[Sample], dict[str, int]]:
        return encode_documents(tokenizer, items, first=first), {}

    fresh = _manifest("pretrain", tokenizer, source, {}, shard_tokens)
    return _write(texts, encode, Path(out_dir), fresh, replace, progress)


def write_sft_tokens(
    dialogues: Iterable[Messages],
    tokenizer: PreTrainedTokenizerFast,
    out_dir: str | Path,
    *,
    max_length: int = 512,
    replay: Iterable[str] = (),
    learn_all: bool = False,
    source: str = "",
    shard_tokens: int = SHARD_TOKENS,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict:
    """Encodes dialogues with their loss masks on all cores and writes them as shards.

    A dialogue longer than `max_length` tokens loses whole turns from its front (`encode_chat`), a
    replayed text its end; a dialogue without a supervised token is left out. The manifest counts
    all this. Arguments that are not named here, result and errors: `write_pretrain_tokens`.

    Args:
        replay: pretraining texts to learn whole, after the dialogues, so that less is forgotten.
        learn_all: ignore the mask and learn every token, for the comparison in notebook 06.
    """

    def encode(items: list[Messages | str], first: int) -> tuple[list[Sample], dict[str, int]]:
        dialogues = [item for item in items if not isinstance(item, str)]
        texts = [item for item in items if isinstance(item, str)]
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

    def no_texts() -> Iterator[Messages]:
        for number, messages in enumerate(dialogues, 1):
            if isinstance(messages, str):  # it would pass for a replayed text, and be learned whole
                found = "expected a list of messages, found a text; texts belong in `replay`"
                raise ValueError(f"dialogue {number}: {found}.")
            yield messages

    settings = {"max_length": max_length, "learn_all": learn_all}
    fresh = _manifest("sft", tokenizer, source, settings, shard_tokens)
    return _write(chain(no_texts(), replay), encode, Path(out_dir), fresh, replace, progress)


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a finished folder of shards.

    Raises:
        FileNotFoundError: there is none (yet).
        ValueError: it is damaged.
    """
    path = Path(folder) / "manifest.json"
    if path.is_file():
        return read_json(path)
    advice = "write_pretrain_tokens and write_sft_tokens write them, in notebook 03"
    if (path.parent / "progress.json").is_file():
        advice = "writing it was begun and not finished; run the same command again"
    raise FileNotFoundError(f"{folder} holds no finished token shards yet: {advice}.")


def shards_fingerprint(manifest: dict) -> str:
    """What decides the tokens of a folder of shards, every shard of it, as 16 hex digits."""
    decisive = ("kind", "tokenizer", "dtype", "settings", "shards")
    return content_fingerprint({name: manifest[name] for name in decisive})


def _manifest(
    kind: str, tokenizer: PreTrainedTokenizerFast, source: str, settings: dict, shard_tokens: int
) -> dict:
    """What is to be written, before anything is."""
    return {
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
        "items": 0,  # of the source that are done; in progress.json alone
    }


def _write(
    items: Iterable,
    encode: Encode,
    folder: Path,
    fresh: dict,
    replace: bool,
    progress: Callable[[int], None] | None,
) -> dict:
    """Batches in, shards and a manifest out; a stopped run goes on after its last whole shard."""
    finished, begun = folder / "manifest.json", folder / "progress.json"
    there = next((path for path in (finished, begun) if path.is_file()), None)
    manifest = read_json(there) if there else fresh
    changed = [key for key in SAME if manifest.get(key) != fresh[key]]
    if changed and not replace:
        was, now = (
            ", ".join(f"{key} {made.get(key)!r:.80}" for key in changed)
            for made in (manifest, fresh)
        )
        raise ValueError(
            f"{folder} holds token shards made with {was}; now it is {now}. Give another folder, or"
            f" replace=True to delete these {manifest['tokens']:,} tokens and write them anew."
        )
    anew = not there or changed or not fresh["source"]
    if there == finished and not anew:
        return manifest
    if anew:
        manifest = fresh
        for path in (finished, begun, *folder.glob("shard_*")):
            path.unlink(missing_ok=True)
    for half_written in folder.glob(".tmp-*"):  # by a run that was killed
        shutil.rmtree(half_written)
    stream, counts = islice(items, manifest["items"], None), Counter(manifest["counts"])
    shard: _Shard | None = None
    with ExitStack() as files:  # an error removes the unfinished ones
        while batch := _next_batch(stream):
            samples, counted = encode(batch, manifest["items"] + 1)
            if samples:
                shard = shard or _Shard(folder, manifest, files)
                shard.add(samples)
            counts.update(counted)
            manifest |= {"items": manifest["items"] + len(batch), "counts": dict(counts)}
            if shard and shard.totals["tokens"] >= manifest["shard_tokens"]:
                files.close()
                shard.enter_in(manifest)
                shard = None
                write_json(begun, manifest)
            if progress:
                progress(manifest["items"])
    if shard:
        shard.enter_in(manifest)
    read = manifest.pop("items")
    if not manifest["tokens"]:
        what = "document" if manifest["kind"] == "pretrain" else "dialogue"
        found = f"the source gave no {what} with a token to learn ({read} read)"
        raise ValueError(f"{folder}: nothing to write, {found}.")
    write_json(finished, manifest)
    begun.unlink(missing_ok=True)
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
        self.totals = dict.fromkeys(TOTALS, 0)
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
        for key, count in zip(TOTALS, (len(samples), tokens, supervised), strict=True):
            self.totals[key] += count

    def enter_in(self, manifest: dict) -> None:
        names = [f"{self.name}.{suffix}" for suffix in self.files]
        sums = {name: sha256(self.folder / name) for name in names}
        manifest["shards"].append({"name": self.name, **self.totals, "sha256": sums})
        for key, count in self.totals.items():
            manifest[key] += count
