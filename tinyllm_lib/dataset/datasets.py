"""Datasets: ids -> (X, Y, loss_mask), where Y[t] is the token after X[t] and loss_mask[t] says
whether to learn it.

`PretrainDataset` and `SFTDataset` are the padded view that a learner looks at: one sample a row,
filled up to `max_length`. `PackedDataset` is what trains: several documents share a row, nothing
(or next to nothing) is padding.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
from tinyllm_lib.tokenizer import (
    PAD_ID,
    encode_chat,
    encode_text,
    text_end,
    text_start,
    tokenizer_hash,
)


def shift_and_pad(
    ids: Sequence[int], mask: Sequence[int], max_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask of one sample -> X, Y, loss_mask, each int64 (max_length-1,), padded with
    `PAD_ID`, mask 0 there.

    The padding is masked by its position, not by its id, so `<|im_end|>` stays in the loss and the
    model learns to stop.
    """
    ids = torch.tensor([*ids[:max_length], *[PAD_ID] * (max_length - len(ids))], dtype=torch.int64)
    mask = torch.tensor([*mask[:max_length], *[0] * (max_length - len(mask))], dtype=torch.int64)
    return ids[:-1], ids[1:], mask[1:]


class PretrainDataset(Dataset):
    """One text a sample, padded: item -> (X, Y, loss_mask), int64, each (max_length-1,).
    `cut_tokens` counts what did not fit.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_length: int = 512
    ):
        start = text_start(tokenizer)
        self.samples = [
            [*start, *encode_text(tokenizer, text), text_end(tokenizer)] for text in texts
        ]
        self.max_length = max_length
        self.cut_tokens = sum(max(0, len(ids) - max_length) for ids in self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        ids = self.samples[index]
        return shift_and_pad(ids, [1] * len(ids), self.max_length)


class SFTDataset(Dataset):
    """One dialogue a sample, padded: item -> (X, Y, loss_mask), int64, each (max_length-1,); only
    replies are learned.
    """

    def __init__(
        self,
        dialogues: Sequence[list[dict[str, str]]],
        tokenizer: PreTrainedTokenizerFast,
        max_length: int = 512,
    ):
        self.samples = [
            encode_chat(tokenizer, messages, max_length=max_length) for messages in dialogues
        ]
        self.max_length = max_length
        self.cut_tokens = sum(chat.cut_tokens for chat in self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        chat = self.samples[index]
        return shift_and_pad(chat.ids, chat.loss_mask, self.max_length)


class PackedRow(NamedTuple):
    """One row of a packed batch (or, stacked, the batch): int64, each (context,) or (B, context)."""

    X: Tensor
    Y: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    document_ids: Tensor


class PackedDataset(Dataset):
    """Token shards as rows of `context` positions.

    A document of n tokens fills n-1 positions (each token but the last predicts the next), so no
    target ever lies in another document. Positions count from 0 in each document and `document_ids`
    tells them apart, which lets attention stay inside. Shards are memory-mapped: a corpus larger
    than memory works, and a copy in another process maps them anew. A row in which nothing is
    learned (the piece of a long question, say) is left out; `left_out` counts them.

    Args:
        folder: shards with a finished manifest.
        context: positions in a row.
        packing: "best_fit": whole documents, each into the row with the least room that still holds
            it (Ding et al. 2024); a document longer than the context becomes several pieces.
            "stream": documents one after the other, cut wherever a row is full; no waste and no
            memory, for corpora of billions of tokens. "none": a document a row, the rest is
            padding, to see what packing brings.
        tokenizer: checked against the manifest when given.

    Raises:
        FileNotFoundError: no manifest.  ValueError: shards made with another tokenizer, or a
            missing or shortened file.
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
        if tokenizer is not None and (found := self.manifest["tokenizer"]) != (
            expected := tokenizer_hash(tokenizer)
        ):
            raise ValueError(
                f"{folder} was written with another tokenizer (shards {found[:12]}…, tokenizer"
                f" {expected[:12]}…): write the shards again with this tokenizer (notebook 03), or"
                " pass the one they were made with."
            )
        self.shards = [self._open(entry) for entry in self.manifest["shards"]]
        self.pieces = self._pieces()  # (N, 3): shard, first token, positions
        self.rows = PACKINGS[packing](self.pieces, context)
        self.positions = min(
            int(self.pieces[:, 2].sum()), len(self) * context
        )  # a stream drops its unfinished last row
        self.left_out = self._leave_out_rows_without_a_target()

    def _leave_out_rows_without_a_target(self) -> int:
        masks = [
            np.asarray(mask) for _, mask, _ in self.shards if mask is not None
        ]  # to slice a memmap is slow
        if not masks:
            return 0
        kept = [
            row
            for row in self.rows
            if any(
                masks[shard][start + 1 : start + length + 1].any() for shard, start, length in row
            )
        ]
        if left_out := len(self) - len(kept):
            self.rows, self.positions = kept, sum(length for row in kept for *_, length in row)
        return left_out

    def __getstate__(self) -> dict:
        return self.__dict__ | {"shards": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.shards = [self._open(entry) for entry in self.manifest["shards"]]

    def _open(self, entry: dict) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        name, dtype = entry["name"], np.dtype(self.manifest["dtype"])
        masked = f"{name}.mask" in entry["sha256"]
        for file, size in (
            (f"{name}.bin", entry["tokens"] * dtype.itemsize),
            (f"{name}.mask", entry["tokens"] * masked),
            (f"{name}.offsets", 8 * (entry["documents"] + 1)),
        ):
            path = self.folder / file
            if size and (not path.is_file() or path.stat().st_size != size):
                found = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
                raise ValueError(
                    f"{path}: the manifest promises {size} bytes, found {found}. Write the shards"
                    " again (notebook 03)."
                )
        ids = np.memmap(self.folder / f"{name}.bin", dtype, "r")
        mask = np.memmap(self.folder / f"{name}.mask", np.uint8, "r") if masked else None
        return ids, mask, np.fromfile(self.folder / f"{name}.offsets", np.uint64).astype(np.int64)

    def check_content(self) -> None:
        """Reads every byte of the shards, for a file may keep its size and yet be another.

        Raises:
            ValueError: a file is not as it was written.
        """
        sums = {
            self.folder / name: expected
            for entry in self.manifest["shards"]
            for name, expected in entry["sha256"].items()
        }
        with ThreadPoolExecutor(4) as pool:  # hashing leaves Python free
            for path, found in zip(sums, pool.map(sha256, sums), strict=True):
                if found != sums[path]:
                    raise ValueError(
                        f"{path} does not match its checksum: it was changed after it was written."
                        f" Delete {self.folder} and write the shards again (notebook 03)."
                    )

    def _pieces(self) -> np.ndarray:
        parts = []
        for number, (_, _, offsets) in enumerate(self.shards):
            starts, lengths = offsets[:-1], np.diff(offsets) - 1
            if self.packing != "stream" and len(lengths) and lengths.max() > self.context:
                counts = -(-lengths // self.context)  # pieces per document, rounded up
                inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                starts = np.repeat(starts, counts) + inside * self.context
                lengths = np.minimum(
                    self.context, np.repeat(lengths, counts) - inside * self.context
                )
            parts.append(np.stack([np.full_like(starts, number), starts, lengths], 1)[lengths > 0])
        return np.concatenate(parts)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def waste(self) -> float:
        """Share of positions that are padding."""
        return 1 - self.positions / (len(self) * self.context)

    def describe(self, index: int) -> str:
        """Where a row comes from: "documents 4, 19 of shard_00000", counted from 0 in each shard."""
        documents: dict[str, list[str]] = {}
        for shard, start, _ in self.rows[index]:
            number = int(np.searchsorted(self.shards[shard][2], start, "right")) - 1
            documents.setdefault(self.manifest["shards"][shard]["name"], []).append(str(number))
        return "; ".join(
            f"documents {', '.join(numbers)} of {name}" for name, numbers in documents.items()
        )

    def __getitem__(self, index: int) -> PackedRow:
        out = np.zeros((5, self.context), np.int64)
        out[4] = -1  # padding belongs to no document
        at = 0
        for document, (shard, start, length) in enumerate(self.rows[index]):
            ids, mask, _ = self.shards[shard]
            place = slice(at, at + length)
            out[0, place], out[1, place] = (
                ids[start : start + length],
                ids[start + 1 : start + length + 1],
            )
            out[2, place] = 1 if mask is None else mask[start + 1 : start + length + 1]
            out[3, place] = np.arange(length)
            out[4, place] = document
            at += length
        return PackedRow(*torch.from_numpy(out))


def _best_fit(pieces: np.ndarray, context: int) -> list[list[tuple[int, int, int]]]:
    """Longest piece first, into the row with the least room that holds it; O(N log context)."""
    rows: list[list[tuple[int, int, int]]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of by_room, sorted
    for shard, start, length in pieces[np.argsort(-pieces[:, 2], kind="stable")].tolist():
        i = bisect.bisect_left(rooms, length)
        if i < len(rooms):
            room = rooms[i]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[i]
        else:
            room, row = context, len(rows)
            rows.append([])
        rows[row].append((shard, start, length))
        if left := room - length:
            if left not in by_room:
                by_room[left] = []
                bisect.insort(rooms, left)
            by_room[left].append(row)
    return rows


class _Stream:
    """Rows cut from the pieces laid end to end; computed when asked for, so it costs no memory."""

    def __init__(self, pieces: np.ndarray, context: int):
        self.pieces, self.context = pieces, context
        self.ends = np.cumsum(pieces[:, 2])

    def __len__(self) -> int:
        positions = int(self.ends[-1]) if len(self.ends) else 0
        return max(1, positions // self.context) if positions else 0

    def __getitem__(self, index: int) -> list[tuple[int, int, int]]:
        position, room, row = (
            range(len(self))[index] * self.context,
            self.context,
            [],
        )  # IndexError ends a `for`
        piece = int(np.searchsorted(self.ends, position, "right"))
        while room and piece < len(self.pieces):
            shard, start, length = self.pieces[piece].tolist()
            skip = position - (int(self.ends[piece]) - length)
            take = min(room, length - skip)
            row.append((shard, start + skip, take))
            position, room, piece = position + take, room - take, piece + 1
        return row


def _one_each(pieces: np.ndarray, context: int) -> list[list[tuple[int, int, int]]]:
    return [[tuple(piece)] for piece in pieces.tolist()]


PACKINGS = {"best_fit": _best_fit, "stream": _Stream, "none": _one_each}


class DataOrder:
    """Which rows make up a step: epoch after epoch, each in its own order, a pure function of
    (seed, step).
    """

    def __init__(self, rows: int, seed: int):
        self.rows, self.seed = rows, seed
        self._order = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(rows)
        )

    def step_rows(self, step: int, batch_size: int) -> list[int]:
        """Row numbers of the global batch of `step`, `batch_size` of them; the batch runs on into
        the next epoch.
        """
        places = (divmod(i, self.rows) for i in range(step * batch_size, (step + 1) * batch_size))
        return [int(self._order(epoch)[within]) for epoch, within in places]


def collate(rows: list[PackedRow]) -> PackedRow:
    """Stacks rows to a batch (B, context)."""
    return PackedRow(*(torch.stack(parts) for parts in zip(*rows, strict=True)))
