"""The packed rows that train: several documents share a row, and (next to) nothing is padding."""

import bisect
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import sha256
from tinyllm_lib.dataset.tokens import read_manifest
from tinyllm_lib.tokenizer import tokenizer_hash

Row = list[tuple[int, int, int]]  # of pieces: shard, first token, positions


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
    tell them apart (-1: padding), which lets attention stay inside. Shards are memory-mapped. A row
    in which nothing is learned is left out; `left_out` counts them.

    Args:
        context: positions in a row.
        packing: "best_fit": each document into the row with the least room that holds it (Ding et
            al. 2024), one longer than the context in pieces. "stream": one after the other, cut
            where a row is full; no waste and no memory, for billions of tokens. "none": a row each.
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
        pieces = self._pieces()
        self.rows = rows = PACKINGS[packing](pieces, context)
        self.positions = min(int(pieces[:, 2].sum()), len(rows) * context)  # a torn row is dropped
        if self.manifest["kind"] == "sft":  # else everything is learned
            self.rows = [row for i in range(len(rows)) if self._has_target(row := rows[i])]
            self.positions = sum(length for row in self.rows for *_, length in row)
        self.left_out = len(rows) - len(self.rows)

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

    def _has_target(self, row: Row) -> bool:
        parts = ((self.shards[i][1], start + 1, start + n + 1) for i, start, n in row)
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
        """Reads every byte of the shards; a ValueError says which file is not as it was written."""
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


def best_fit(pieces: np.ndarray, context: int) -> list[Row]:
    """Longest piece first, into the row with the least room that holds it; O(N log context)."""
    rows: list[Row] = []
    with_room: dict[int, list[Row]] = defaultdict(list)
    rooms: list[int] = []  # those of which there is a row, sorted
    for shard, start, length in pieces[np.argsort(-pieces[:, 2], kind="stable")].tolist():
        i = bisect.bisect_left(rooms, length)
        if i < len(rooms):
            room = rooms[i]
            row = with_room[room].pop()
            if not with_room[room]:
                del rooms[i]
        else:
            room, row = context, []
            rows.append(row)
        row.append((shard, start, length))
        if left := room - length:
            if not with_room[left]:
                bisect.insort(rooms, left)
            with_room[left].append(row)
    return rows


class Stream:
    """Rows cut from the pieces laid end to end; computed when asked for, so it costs no memory."""

    def __init__(self, pieces: np.ndarray, context: int):
        self.pieces, self.context = pieces, context
        self.ends = np.cumsum(pieces[:, 2])
        positions = int(pieces[:, 2].sum())
        self.rows = min(positions, max(1, positions // context))  # a torn last row is dropped

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Row:
        begin = range(self.rows)[index] * self.context  # its IndexError ends a `for`
        row = []
        for i in range(int(np.searchsorted(self.ends, begin, "right")), len(self.pieces)):
            shard, start, length = self.pieces[i].tolist()
            at = int(self.ends[i]) - length - begin  # of the piece in the row
            if at >= self.context:
                break
            skip = max(0, -at)
            row.append((shard, start + skip, min(self.context - at, length) - skip))
        return row


PACKINGS: dict[str, Callable[[np.ndarray, int], list[Row] | Stream]] = {
    "best_fit": best_fit,
    "stream": Stream,
    "none": lambda pieces, context: [[tuple(piece)] for piece in pieces.tolist()],
}
