"""The packed rows that train: several documents share a row, and (next to) nothing is padding."""

import bisect
import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import atomic_path, content_fingerprint, sha256
from tinyllm_lib.dataset.tokens import read_manifest, shards_fingerprint
from tinyllm_lib.tokenizer import tokenizer_hash

PACKINGS = ("best_fit", "stream", "none")
PACKING_VERSION = 2  # another one where the same shards would give other rows
KEPT_PIECES = 100_000  # rows of fewer pieces are packed again, which takes no time

Piece = tuple[int, int, int]  # shard, first token, positions
Places = range | np.ndarray  # on the tape of all pieces, laid end to end


class PackedRow(NamedTuple):
    """A row of a packed batch, or, stacked, the batch: int64, each (context,) or (B, context)."""

    X: Tensor
    Y: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    document_ids: Tensor


class PackedDataset(Dataset):
    """Token shards as rows of `context` positions.

    A document of n tokens fills n-1 positions (each token but the last predicts the next), so no
    target lies in another document. `position_ids` count from 0 in each document and `document_ids`
    tell them apart (-1: padding), which lets attention stay inside. Shards are memory-mapped, and
    so are the rows of large ones: who packs first writes `packed_….safetensors` beside them. A row
    in which nothing is learned is left out; `left_out` counts them.

    Args:
        context: positions in a row.
        packing: "best_fit": each document into the row with the least room that holds it (Ding et
            al. 2024), one longer than the context in pieces. "stream": one after the other, cut
            where a row is full; no waste, no file, for billions of tokens. "none": a row each.
        tokenizer: checked against the manifest when given.

    Raises:
        FileNotFoundError: no manifest, or one of its files is missing.
        ValueError: shards made with another tokenizer, or a shortened file.
    """

    def __init__(
        self,
        folder: str | Path,
        context: int,
        *,
        packing: str = "best_fit",
        tokenizer: PreTrainedTokenizerFast | None = None,
    ):
        if packing not in PACKINGS:
            raise ValueError(f"packing={packing!r}: expected one of {', '.join(PACKINGS)}.")
        self.folder, self.context, self.packing = Path(folder), context, packing
        self.manifest = read_manifest(folder)
        made_with = self.manifest["tokenizer"]
        if tokenizer is not None and made_with != (given := tokenizer_hash(tokenizer)):
            raise ValueError(
                f"{folder} was written with another tokenizer (shards {made_with[:12]}…, tokenizer"
                f" {given[:12]}…): write the shards again with this tokenizer (notebook 03), or"
                " pass the one they were made with."
            )
        self.shards = [self._open(entry) for entry in self.manifest["shards"]]
        self.packed = packed = self._packed()
        self.rows = Rows(packed["pieces"], packed["begins"], packed["ends"])
        self.left_out = int(packed["left_out"])
        self.positions = int(np.sum(self.rows.ends) - np.sum(self.rows.begins))

    def _open(self, entry: dict) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Ids, loss mask (None: all is learned) and where each document starts, of one shard."""

        def array(suffix: str, dtype: str, count: int) -> np.ndarray:
            path = self.folder / f"{entry['name']}.{suffix}"
            size, found = count * np.dtype(dtype).itemsize, path.stat().st_size
            if found != size:
                raise ValueError(f"{path}: the manifest promises {size} bytes, found {found}.")
            return np.asarray(np.memmap(path, dtype, "r"))  # to slice a memmap itself is slow

        tokens = entry["tokens"]
        ids = array("bin", self.manifest["dtype"], tokens)
        mask = array("mask", "uint8", tokens) if self.manifest["kind"] == "sft" else None
        return ids, mask, array("offsets", "uint64", entry["documents"] + 1).astype(np.int64)

    def _packed(self) -> dict[str, Any]:
        """The rows, from the file beside the shards; a missing or damaged one is written anew, if
        they are many and the folder is open to us.
        """
        if self.packing == "stream":
            return self._pack()
        made_from = [shards_fingerprint(self.manifest), PACKING_VERSION]
        name = f"packed_{self.packing}_{self.context}_{content_fingerprint(made_from)}.safetensors"
        with suppress(OSError, SafetensorError):  # memory-mapped, its size checked
            return {key: kept.numpy() for key, kept in load_file(self.folder / name).items()}
        packed = self._pack()
        if len(packed["pieces"]) >= KEPT_PIECES:
            packed["sha256"] = _digest(packed)
            with suppress(OSError), atomic_path(self.folder / name) as temporary:
                raw = save({key: torch.as_tensor(array) for key, array in packed.items()})
                temporary.write_bytes(raw)  # save_file closes it to all others
        return packed

    def _pack(self) -> dict[str, Any]:
        """The pieces, and where each row begins and ends."""
        pieces = self._pieces()
        lengths = pieces[:, 2]
        begins: Places
        ends: Places
        if self.packing == "stream":  # a torn last row is dropped
            tape = int(lengths.sum())
            size = max(1, min(self.context, tape))
            begins, ends = range(0, tape - size + 1, size), range(size, tape + 1, size)
        else:
            fits = self.packing == "best_fit"
            row = best_fit(lengths, self.context) if fits else np.arange(len(pieces))
            pieces = pieces[np.lexsort((-lengths, row))]  # row by row, the longest first
            sizes = np.bincount(row, lengths).astype(np.int64)
            ends = np.cumsum(sizes)
            begins = ends - sizes
        rows = Rows(pieces, begins, ends)
        if self.manifest["kind"] == "sft":  # else everything is learned
            learned = np.array([self._has_target(rows[i]) for i in range(len(rows))], bool)
            begins, ends = np.array(begins)[learned], np.array(ends)[learned]
        left_out = len(rows) - len(begins)
        return {"pieces": pieces, "begins": begins, "ends": ends, "left_out": left_out}

    def _pieces(self) -> np.ndarray:
        """(N, 3) shard, first token and positions of each document, or of each part that fits."""
        parts = []
        for number, (_, _, offsets) in enumerate(self.shards):
            lengths = np.diff(offsets) - 1
            most = max(1, lengths.max()) if self.packing == "stream" else self.context
            counts = -(-lengths // most)  # pieces of each document, rounded up
            document = np.repeat(np.arange(len(counts)), counts)
            at = (np.arange(len(document)) - (np.cumsum(counts) - counts)[document]) * most
            left = np.minimum(most, lengths[document] - at)
            parts.append(np.stack([np.full_like(at, number), offsets[document] + at, left], 1))
        return np.concatenate(parts)

    def _has_target(self, row: list[Piece]) -> bool:
        parts = ((self.shards[shard][1], start + 1, start + n + 1) for shard, start, n in row)
        return any(mask is None or mask[start:end].any() for mask, start, end in parts)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PackedRow:
        out = np.zeros((5, self.context), np.int64)
        out[4] = -1  # padding belongs to no document
        at = 0
        for document, (shard, start, length) in enumerate(self.rows[index]):
            ids, mask, _ = self.shards[shard]
            place = slice(at, at + length)
            out[0, place] = ids[start : start + length]
            out[1, place] = ids[start + 1 : start + length + 1]
            out[2, place] = 1 if mask is None else mask[start + 1 : start + length + 1]
            out[3, place] = np.arange(length)
            out[4, place] = document
            at += length
        return PackedRow(*torch.from_numpy(out))

    @property
    def waste(self) -> float:
        """Share of positions that are padding."""
        return 1 - self.positions / (len(self) * self.context)

    def check_content(self) -> None:
        """Reads every byte of shards and rows; a ValueError says what is not as it was written."""
        kept = self.packed.get("sha256")
        if kept is not None and not np.array_equal(kept, _digest(self.packed)):
            raise ValueError(f"{self.folder}/packed_….safetensors is damaged: delete it.")
        for shard in self.manifest["shards"]:
            for name, checksum in shard["sha256"].items():
                if sha256(path := self.folder / name) != checksum:
                    raise ValueError(f"{path} does not match its checksum: write the shards again.")


class DataOrder:
    """Which rows make up a step: each epoch in an order of its own, by (seed, step) alone."""

    def __init__(self, rows: int, seed: int):
        self.rows = rows
        self._order = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(rows)
        )

    def step_rows(self, step: int, batch_size: int) -> list[int]:
        """The rows of the global batch of `step`, which may run on into the next epoch."""
        places = (divmod(i, self.rows) for i in range(step * batch_size, (step + 1) * batch_size))
        return [int(self._order(epoch)[within]) for epoch, within in places]


def collate(rows: list[PackedRow]) -> PackedRow:
    """Stacks rows to a batch (B, context)."""
    return PackedRow(*(torch.stack(parts) for parts in zip(*rows, strict=True)))


def ahead(make: Callable[[int], Any], steps: range, threads: int) -> Iterator[Any]:
    """What `make` gives for each step, in order, prepared by threads while the caller computes."""
    futures: deque[Future] = deque()
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for step in steps:
            futures.append(pool.submit(make, step))
            if len(futures) > max(1, threads):
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()


def _digest(packed: dict[str, Any]) -> np.ndarray:
    content = b"".join(packed[key].tobytes() for key in ("pieces", "begins", "ends"))
    return np.array([*hashlib.sha256(content).digest()], np.uint8)


class Rows:
    """Rows, cut from `pieces` (N, 3) when asked for: `rows[i]` is a list of pieces."""

    def __init__(self, pieces: np.ndarray, begins: Places, ends: Places):
        self.pieces, self.begins, self.ends = pieces, begins, ends
        self.piece_ends = np.cumsum(pieces[:, 2])

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, index: int) -> list[Piece]:
        begin, end = int(self.begins[index]), int(self.ends[index])  # an IndexError ends a `for`
        first = np.searchsorted(self.piece_ends, begin, "right")
        last = np.searchsorted(self.piece_ends, end, "left")
        shard, start, length = self.pieces[first : last + 1].T
        stop = self.piece_ends[first : last + 1]
        skipped = np.maximum(begin - (stop - length), 0)  # of the first piece
        read = length - skipped - np.maximum(stop - end, 0)
        return [*zip(shard.tolist(), (start + skipped).tolist(), read.tolist(), strict=True)]


def best_fit(lengths: np.ndarray, context: int) -> np.ndarray:
    """(N,) the row of each piece: longest piece first, into the row with the least room that holds
    it; of several such rows into the last that came to this room.
    """
    rows, placed = 0, []
    with_room: dict[int, list[int]] = defaultdict(list)
    rooms: list[int] = []  # those of which there is a row, sorted
    order = np.argsort(-lengths, kind="stable")
    for length in lengths[order].tolist():
        i = bisect.bisect_left(rooms, length)
        if i < len(rooms):
            room = rooms[i]
            row = with_room[room].pop()
            if not with_room[room]:
                del rooms[i]
        else:
            room, row = context, rows
            rows += 1
        placed.append(row)
        if left := room - length:
            if not with_room[left]:
                bisect.insort(rooms, left)
            with_room[left].append(row)
    row_of = np.empty(len(lengths), np.int64)
    row_of[order] = placed
    return row_of
