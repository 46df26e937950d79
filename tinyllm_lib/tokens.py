"""Token shards: ids on disk, ready to be memory-mapped, so that training never waits for a tokenizer.

    tokens/pretrain/train/  shard_00000.bin (uint16 ids)  shard_00000.offsets (uint64, where each document starts)  manifest.json
    tokens/sft/train/       the same, and shard_00000.mask (uint8: 1 where the token is to be learned)

A folder is finished when it has a `manifest.json`, which is written last. A stopped run goes on after its last whole
shard; a file that exists is whole, for each is written under another name and renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.tokenizer import encode_chat, text_encoder, tokenizer_hash
from tinyllm_lib.workspace import atomic_path, write_json

BATCH_DOCUMENTS = 1024
SHARD_TOKENS = 100_000_000

Document = tuple[list[int], list[int] | None]      # ids, and the loss mask where there is one


def write_pretrain_tokens(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    out_dir: str | Path,
    *,
    source: str = "",
    shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> dict:
    """Encodes documents in parallel and writes them, each followed by `<|im_end|>` (the eos token), as shards.

    Args:
        texts: documents, streamed; on a restart the same stream from its beginning.
        source: a name for where the texts come from (file, size, settings). A restart with another source starts anew.
        shard_tokens: a shard is closed when it holds at least this many tokens.
        progress: called with the number of documents done.

    Returns:
        The manifest, as written.
    """
    encoder, eos = text_encoder(tokenizer), tokenizer.eos_token_id

    def encode(batch: list[str]) -> Iterator[Document]:
        for encoding in encoder.encode_batch_fast(batch, add_special_tokens=False):
            yield [*encoding.ids, eos], None

    return _write("pretrain", texts, encode, tokenizer, out_dir, source, shard_tokens, {}, progress)


def write_sft_tokens(
    dialogues: Iterable[list[dict[str, str]]],
    tokenizer: PreTrainedTokenizerFast,
    out_dir: str | Path,
    *,
    max_length: int = 512,
    replay: Iterable[str] = (),
    learn_all: bool = False,
    source: str = "",
    shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> dict:
    """Encodes dialogues with their loss masks and writes them as shards.

    A dialogue longer than `max_length` tokens loses whole turns from its front (`encode_chat`); one without a supervised
    token is left out. Both are counted in the manifest under `counts`.

    Args:
        replay: pretraining texts to learn whole, after the dialogues, so that fine-tuning forgets less.
        learn_all: ignore the mask and learn every token, the question too (for the comparison in notebook 06).
    """
    counts = dict.fromkeys(("dialogues", "shortened_dialogues", "dropped_messages", "cut_tokens", "cut_supervised_tokens",
                            "without_supervised_token", "replayed_documents"), 0)
    encoder, eos = text_encoder(tokenizer), tokenizer.eos_token_id

    def encode(batch: list[list[dict[str, str]] | str]) -> Iterator[Document]:
        for item in batch:
            if isinstance(item, str):
                ids = [*encoder.encode(item, add_special_tokens=False).ids, eos][:max_length]
                counts["replayed_documents"] += 1
                yield ids, [1] * len(ids)
                continue
            chat = encode_chat(tokenizer, item, max_length=max_length)
            counts["dialogues"] += 1
            counts["shortened_dialogues"] += bool(chat.dropped_turns or chat.cut_tokens)
            counts["dropped_messages"] += chat.dropped_turns
            counts["cut_tokens"] += chat.cut_tokens
            counts["cut_supervised_tokens"] += chat.cut_supervised
            if any(chat.loss_mask):
                yield chat.ids, [1] * len(chat) if learn_all else chat.loss_mask
            else:
                counts["without_supervised_token"] += 1

    def items() -> Iterator[list[dict[str, str]] | str]:
        yield from dialogues
        yield from replay

    settings = f"{source} max_length={max_length} learn_all={learn_all}"
    return _write("sft", items(), encode, tokenizer, out_dir, settings, shard_tokens, counts, progress)


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a finished folder of shards.

    Raises:
        FileNotFoundError: there is none (yet).
    """
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        begun = ": writing it was begun and not finished; run the same command again" if (path.parent / "progress.json").is_file() else ""
        raise FileNotFoundError(f"{folder} holds no finished token shards (no manifest.json){begun}. They are written by "
                                f"write_pretrain_tokens / write_sft_tokens, in notebook 03.")
    return json.loads(path.read_text(encoding="utf-8"))


def _write(kind: str, items: Iterable, encode: Callable[[list], Iterator[Document]], tokenizer: PreTrainedTokenizerFast,
           out_dir: str | Path, source: str, shard_tokens: int, counts: dict, progress: Callable[[int], None] | None) -> dict:
    """Common body of the two writers: batches in, shards and a manifest out, resumable at shard borders."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    manifest = {"version": 1, "kind": kind, "tokenizer": tokenizer_hash(tokenizer), "vocab_size": len(tokenizer),
                "dtype": np.dtype(dtype).name, "source": source, "shard_tokens": shard_tokens,
                "documents": 0, "tokens": 0, "supervised_tokens": 0, "shards": []}
    for half_written in out_dir.glob(".tmp-*"):                # of a run that was killed while it wrote
        half_written.unlink()
    done = _unfinished(out_dir, manifest)
    items_done = 0
    if done:
        manifest, items_done = done["manifest"], done["items"]
        counts.update(done["counts"])
    else:
        for old in (*out_dir.glob("shard_*"), *out_dir.glob("manifest.json"), *out_dir.glob("progress.json")):
            old.unlink()
    shard = _Shard(dtype)
    stream = islice(iter(items), items_done, None)
    while batch := list(islice(stream, BATCH_DOCUMENTS)):
        for ids, mask in encode(batch):
            shard.add(ids, mask)
        items_done += len(batch)
        if shard.tokens >= shard_tokens:
            manifest = _close(out_dir, manifest, shard)
            write_json(out_dir / "progress.json", {"manifest": manifest, "items": items_done, "counts": counts})
            shard = _Shard(dtype)
        if progress:
            progress(items_done)
    if shard.tokens:
        manifest = _close(out_dir, manifest, shard)
    if not manifest["tokens"]:
        raise ValueError(f"{out_dir}: nothing to write, the source gave no {'document' if kind == 'pretrain' else 'dialogue'} "
                         f"with a token to learn ({items_done} read).")
    manifest["counts"] = dict(counts)
    write_json(out_dir / "manifest.json", manifest)
    (out_dir / "progress.json").unlink(missing_ok=True)
    return manifest


class _Shard:
    """Documents collected for one shard."""

    def __init__(self, dtype: type):
        self.dtype, self.ids, self.masks, self.lengths, self.tokens = dtype, [], [], [], 0

    def add(self, ids: list[int], mask: list[int] | None) -> None:
        self.ids.append(np.asarray(ids, self.dtype))
        if mask is not None:
            self.masks.append(np.asarray(mask, np.uint8))
        self.lengths.append(len(ids))
        self.tokens += len(ids)


def _close(out_dir: Path, manifest: dict, shard: _Shard) -> dict:
    """Writes the shard's files; returns the manifest with it."""
    name = f"shard_{len(manifest['shards']):05d}"
    offsets = np.concatenate(([0], np.cumsum(shard.lengths))).astype(np.uint64)
    files = {f"{name}.bin": np.concatenate(shard.ids), f"{name}.offsets": offsets}
    supervised = shard.tokens
    if shard.masks:
        files[f"{name}.mask"] = np.concatenate(shard.masks)
        supervised = int(files[f"{name}.mask"].sum())
    checksums = {}
    for file, array in files.items():
        data = array.tobytes()
        with atomic_path(out_dir / file) as temporary:
            Path(temporary).write_bytes(data)
        checksums[file] = hashlib.sha256(data).hexdigest()
    entry = {"name": name, "documents": len(shard.lengths), "tokens": shard.tokens, "supervised_tokens": supervised, "sha256": checksums}
    totals = {key: manifest[key] + entry[key] for key in ("documents", "tokens", "supervised_tokens")}
    return {**manifest, **totals, "shards": [*manifest["shards"], entry]}


def _unfinished(out_dir: Path, fresh: dict) -> dict | None:
    """The state of a stopped run with the same tokenizer, source and settings, else None."""
    path = out_dir / "progress.json"
    if not path.is_file():
        return None
    state = json.loads(path.read_text(encoding="utf-8"))
    same = all(state["manifest"][key] == fresh[key] for key in ("kind", "tokenizer", "dtype", "source", "shard_tokens"))
    return state if same else None
