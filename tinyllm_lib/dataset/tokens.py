"""Token shards: ids on disk, ready to be memory-mapped, so that training never waits for a
tokenizer.

    tokens/pretrain/train/  shard_00000.bin (uint16 ids)  shard_00000.offsets (uint64, where each
    document starts)  manifest.json tokens/sft/train/       the same, and shard_00000.mask (uint8: 1
    where the token is to be learned)

A folder is finished when it has a `manifest.json`, which is written last. A stopped run goes on
after its last whole shard; a file that exists is whole, for each is written under another name and
renamed. Memory is that of two batches, however large the corpus and the shards are; a batch is a
million characters, or one document that is longer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import atomic_path, content_fingerprint, read_json, write_json
from tinyllm_lib.tokenizer import encode_chats, encode_texts, text_end, text_start, tokenizer_hash

BATCH_DOCUMENTS = 1024
BATCH_CHARS = 1_000_000
SHARD_TOKENS = 100_000_000
SAME = (
    "kind",
    "tokenizer",
    "dtype",
    "source",
    "settings",
    "shard_tokens",
)  # or the shards are not the same ones

Messages = list[dict[str, str]]


class Encoded(NamedTuple):
    """A batch of documents: ids, loss masks where there are any, and what is to be counted."""

    ids: list[list[int]]
    masks: list[list[int]] | None = None
    counts: dict[str, int] = {}


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
    """Encodes documents on all cores and writes them, each followed by `<|im_end|>` (the eos
    token), as shards.

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
        ValueError: the folder holds shards made otherwise, and not `replace`; a text that cannot be
            encoded; no text at all.
    """
    start, eos = text_start(tokenizer), text_end(tokenizer)

    def encode(batch: list[str], first: int) -> Encoded:
        return Encoded([[*start, *ids, eos] for ids in encode_texts(tokenizer, batch, first=first)])

    return _write(
        "pretrain", texts, encode, tokenizer, out_dir, source, {}, shard_tokens, replace, progress
    )


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
    replayed text its end; a dialogue without a supervised token is left out. All this is counted in
    the manifest under `counts`.

    Args:
        replay: pretraining texts to learn whole, after the dialogues, so that fine-tuning forgets
            less.
        learn_all: ignore the mask and learn every token, the question too (for the comparison in
            notebook 06).

    The other arguments, the result and the errors are those of `write_pretrain_tokens`.
    """
    start, eos = text_start(tokenizer), text_end(tokenizer)
    nothing = dict.fromkeys(
        (
            "dialogues",
            "shortened_dialogues",
            "dropped_messages",
            "cut_tokens",
            "cut_supervised_tokens",
            "without_supervised_token",
            "replayed_documents",
            "shortened_documents",
        ),
        0,
    )

    def encode(batch: list[Messages | str], first: int) -> Encoded:
        dialogues, texts = (
            [i for i in batch if not isinstance(i, str)],
            [i for i in batch if isinstance(i, str)],
        )
        out, counts = Encoded([], [], dict(nothing)), Counter()
        for chat in encode_chats(tokenizer, dialogues, max_length=max_length, first=first):
            counts["dialogues"] += 1
            counts["shortened_dialogues"] += bool(chat.dropped_turns or chat.cut_tokens)
            counts["dropped_messages"] += chat.dropped_turns
            counts["cut_tokens"] += chat.cut_tokens
            counts["cut_supervised_tokens"] += chat.cut_supervised
            if any(chat.loss_mask):
                out.ids.append(chat.ids)
                out.masks.append([1] * len(chat) if learn_all else chat.loss_mask)
            else:
                counts["without_supervised_token"] += 1
        for ids in encode_texts(tokenizer, texts, first=first + len(dialogues)):
            ids = [*start, *ids, eos]
            cut = max(0, len(ids) - max_length)
            counts["replayed_documents"] += 1
            counts["shortened_documents"] += bool(cut)
            counts["cut_tokens"] += cut
            counts["cut_supervised_tokens"] += cut
            out.ids.append(ids[:max_length])
            out.masks.append([1] * len(out.ids[-1]))
        return out._replace(counts={**nothing, **counts})

    def no_texts() -> Iterator[Messages]:
        for number, messages in enumerate(dialogues, 1):
            if isinstance(messages, str):  # it would pass for a replayed text, and be learned whole
                raise ValueError(
                    f"dialogue {number}: expected a list of messages, found a text; texts belong in"
                    " `replay`."
                )
            yield messages

    settings = {"max_length": max_length, "learn_all": learn_all}
    return _write(
        "sft",
        chain(no_texts(), replay),
        encode,
        tokenizer,
        out_dir,
        source,
        settings,
        shard_tokens,
        replace,
        progress,
    )


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a finished folder of shards.

    Raises:
        FileNotFoundError: there is none (yet).  ValueError: it is damaged.
    """
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        begun = (
            ": writing it was begun and not finished; run the same command again"
            if (path.parent / "progress.json").is_file()
            else ""
        )
        raise FileNotFoundError(
            f"{folder} holds no finished token shards (no manifest.json){begun}. They are written"
            " by write_pretrain_tokens / write_sft_tokens, in notebook 03."
        )
    return read_json(path)


def shards_fingerprint(manifest: dict) -> str:
    """What decides the tokens of a folder of shards, every shard of it, as 16 hex digits."""
    return content_fingerprint(
        {name: manifest[name] for name in ("kind", "tokenizer", "dtype", "settings", "shards")}
    )


def _write(
    kind: str,
    items: Iterable,
    encode: Callable[[list, int], Encoded],
    tokenizer: PreTrainedTokenizerFast,
    out_dir: str | Path,
    source: str,
    settings: dict,
    shard_tokens: int,
    replace: bool,
    progress: Callable[[int], None] | None,
) -> dict:
    """Common body of the two writers: batches in, shards and a manifest out, resumable at shard
    borders.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    manifest = {
        "version": 1,
        "kind": kind,
        "tokenizer": tokenizer_hash(tokenizer),
        "vocab_size": len(tokenizer),
        "dtype": np.dtype(dtype).name,
        "source": source,
        "settings": settings,
        "shard_tokens": shard_tokens,
        "documents": 0,
        "tokens": 0,
        "supervised_tokens": 0,
        "shards": [],
    }
    done = _begun(out_dir, manifest, replace)
    if done and done["items"] is None:
        (out_dir / "progress.json").unlink(
            missing_ok=True
        )  # of a run that was killed in its very last step
        return done["manifest"]
    if not done:
        for old in (
            *out_dir.glob("manifest.json"),
            *out_dir.glob("progress.json"),
            *out_dir.glob("shard_*"),
        ):
            old.unlink()
        done = {"manifest": manifest, "items": 0, "counts": {}}
    for half_written in out_dir.glob(".tmp-*"):  # of a run that was killed while it wrote
        half_written.unlink()
    shard = None
    with ExitStack() as files:  # closed after each shard; an error removes the unfinished one
        for batch, items_done in _encoded(items, encode, done["items"]):
            if batch.ids:
                shard = shard or _Shard(
                    out_dir, len(done["manifest"]["shards"]), dtype, batch.masks is not None, files
                )
                shard.add(batch)
            counts = {
                name: done["counts"].get(name, 0) + count for name, count in batch.counts.items()
            }
            done = {**done, "items": items_done, "counts": counts}
            if shard and shard.tokens >= shard_tokens:
                files.close()
                done["manifest"], shard = _with(done["manifest"], shard), None
                write_json(out_dir / "progress.json", done)
            if progress:
                progress(items_done)
        if shard:
            files.close()
            done["manifest"] = _with(done["manifest"], shard)
    manifest = {**done["manifest"], "counts": done["counts"]}
    if not manifest["tokens"]:
        raise ValueError(
            f"{out_dir}: nothing to write, the source gave no"
            f" {'document' if kind == 'pretrain' else 'dialogue'} with a token to learn"
            f" ({done['items']} read)."
        )
    write_json(out_dir / "manifest.json", manifest)
    (out_dir / "progress.json").unlink(missing_ok=True)
    return manifest


def _begun(out_dir: Path, fresh: dict, replace: bool) -> dict | None:
    """What an earlier call has done of the same work: its progress, with `items` None if all of it;
    None if nothing.

    Raises:
        ValueError: the folder holds other work, and not `replace`.
    """
    progress, finished = out_dir / "progress.json", out_dir / "manifest.json"
    if finished.is_file():
        done = {"manifest": read_json(finished), "items": None}
    elif progress.is_file():
        done = read_json(progress)
    else:
        return None
    changed = [key for key in SAME if done["manifest"].get(key) != fresh[key]]
    if changed and not replace:
        was, now = (
            ", ".join(f"{key} {shards.get(key)!r:.80}" for key in changed)
            for shards in (done["manifest"], fresh)
        )
        raise ValueError(
            f"{out_dir} holds token shards made with {was}; now it is {now}. Give another folder,"
            f" or replace=True to delete these {done['manifest']['tokens']:,} tokens and write them"
            " anew."
        )
    return done if fresh["source"] and not changed else None


def _encoded(
    items: Iterable, encode: Callable[[list, int], Encoded], done: int
) -> Iterator[tuple[Encoded, int]]:
    """(batch, number of items up to its end), from item `done` on. One batch is encoded while the
    one before it is written and the next one is read; the tokenizer works on all cores and leaves
    Python free.
    """
    stream, waiting = islice(iter(items), done, None), None
    with ThreadPoolExecutor(1) as pool:
        while batch := _next_batch(stream):
            ahead = pool.submit(encode, batch, done + 1), done + len(batch)
            if waiting:
                yield waiting[0].result(), waiting[1]
            waiting, done = ahead, ahead[1]
        if waiting:
            yield waiting[0].result(), waiting[1]


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
    """The files of one shard while they grow. They get their names when `files` is closed."""

    def __init__(self, out_dir: Path, number: int, dtype: type, masked: bool, files: ExitStack):
        self.name, self.dtype = f"shard_{number:05d}", dtype
        self.documents = self.tokens = self.supervised_tokens = 0
        self.files, self.hashes = {}, {}
        for suffix in ("bin", "offsets", *["mask"] * masked):
            temporary = files.enter_context(atomic_path(out_dir / f"{self.name}.{suffix}"))
            self.files[suffix], self.hashes[suffix] = (
                files.enter_context(open(temporary, "wb")),
                hashlib.sha256(),
            )
        self._append("offsets", np.zeros(1, np.uint64))

    def add(self, batch: Encoded) -> None:
        ends = np.cumsum([len(ids) for ids in batch.ids], dtype=np.uint64)
        tokens = supervised = int(ends[-1])
        self._append("offsets", ends + np.uint64(self.tokens))
        self._append("bin", np.fromiter(chain.from_iterable(batch.ids), self.dtype, tokens))
        if batch.masks is not None:
            mask = np.fromiter(chain.from_iterable(batch.masks), np.uint8, tokens)
            self._append("mask", mask)
            supervised = int(mask.sum())
        self.documents += len(batch.ids)
        self.tokens += tokens
        self.supervised_tokens += supervised

    def _append(self, suffix: str, array: np.ndarray) -> None:
        self.files[suffix].write(array.data)
        self.hashes[suffix].update(array.data)


def _with(manifest: dict, shard: _Shard) -> dict:
    """The manifest with one shard more."""
    totals = {key: getattr(shard, key) for key in ("documents", "tokens", "supervised_tokens")}
    checksums = {
        f"{shard.name}.{suffix}": digest.hexdigest() for suffix, digest in shard.hashes.items()
    }
    entry = {"name": shard.name, **totals, "sha256": checksums}
    return {
        **manifest,
        **{key: manifest[key] + n for key, n in totals.items()},
        "shards": [*manifest["shards"], entry],
    }
