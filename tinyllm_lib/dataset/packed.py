"""The packed rows that train: several documents share a row, and (next to) nothing is padding."""

from collections import deque
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

PACKING_VERSION = 1  # another one where the same shards would give other rows
KEPT_PIECES = 100_000  # rows of fewer pieces are packed again, which takes no time


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
            where a row is full; no waste, for billions of tokens. "none": a row each.
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
        packed = self._packed()
        self.rows = Rows(packed["pieces"].numpy(), packed["starts"].numpy())
        self.positions = int(self.rows.pieces[:, 2].sum())
        self.left_out = int(packed["left_out"])

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

    def _packed(self) -> dict[str, Tensor]:
        """The rows, from the file beside the shards; a missing or damaged one is written anew, if
        they are many and the folder is open to us.
        """
        made_from = [shards_fingerprint(self.manifest), PACKING_VERSION]
        name = f"packed_{self.packing}_{self.context}_{content_fingerprint(made_from)}.safetensors"
        with suppress(OSError, SafetensorError):
            return load_file(self.folder / name)  # memory-mapped, its size checked
        packed = self._pack()
        if len(packed["pieces"]) >= KEPT_PIECES:
            with suppress(OSError), atomic_path(self.folder / name) as temporary:
                temporary.write_bytes(save(packed))  # save_file closes it to all others
        return packed

    def _pack(self) -> dict[str, Tensor]:
        pieces = self._pieces()
        order, row = PACKINGS[self.packing](pieces[:, 2], self.context)
        by_row = np.argsort(row, kind="stable")
        order, row = order[by_row], row[by_row]
        sizes = np.bincount(row)
        has_target = np.bincount(row, self._learned(pieces)[order]) > 0
        starts = np.cumsum(np.append(0, sizes[has_target]))
        return {
            "pieces": torch.from_numpy(pieces[order[has_target[row]]]),
            "starts": torch.from_numpy(starts),
            "left_out": torch.tensor(np.sum(~has_target)),
        }

    def _pieces(self) -> np.ndarray:
        """(N, 3) shard, first token and positions of each document, or of each part of one, cut
        where a context ends: of the document's own or, in a stream, of all laid end to end.
        """
        offsets = [offsets for _, _, offsets in self.shards]
        shard = np.repeat(np.arange(len(offsets)), [len(of) - 1 for of in offsets])
        start = np.concatenate([of[:-1] for of in offsets])
        length = np.concatenate([np.diff(of) - 1 for of in offsets])
        before = (np.cumsum(length) - length) % self.context * (self.packing == "stream")
        counts = -(-(before + length) // self.context) * (length > 0)
        document = np.repeat(np.arange(len(counts)), counts)
        nth = np.arange(len(document)) - (np.cumsum(counts) - counts)[document]
        ends_before = nth * self.context - before[document]
        begin = np.maximum(ends_before, 0)
        end = np.minimum(ends_before + self.context, length[document])
        return np.stack([shard[document], start[document] + begin, end - begin], 1)

    def _learned(self, pieces: np.ndarray) -> np.ndarray:
        """(N,) whether a piece has a target to learn; pieces in the order of `_pieces`."""
        learned = np.ones(len(pieces), bool)
        for number, (_, mask, _) in enumerate(self.shards):
            here = pieces[:, 0] == number
            if mask is not None and here.any():
                _, start, length = pieces[here].T
                bounds = np.stack([start + 1, start + length + 1], 1).ravel()
                within = np.maximum.reduceat(mask[: bounds[-1]], bounds[:-1])
                learned[here] = within[::2] > 0  # between them lie first tokens, never targets
        return learned

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


class Rows:
    """The pieces of each row, `rows[i]` as a list of (shard, first token, positions).

    Args:
        pieces: (N, 3) row after row.
        starts: (rows + 1,) the piece with which each row begins, and N.
    """

    def __init__(self, pieces: np.ndarray, starts: np.ndarray):
        self.pieces, self.starts = pieces, starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> list[tuple[int, int, int]]:
        row = range(len(self))[index]  # its IndexError ends a `for`
        return [*map(tuple, self.pieces[self.starts[row] : self.starts[row + 1]].tolist())]


# ---- lengths of the pieces (N,) -> numbers of the pieces as they are placed, and the row of each

Placed = tuple[np.ndarray, np.ndarray]


def best_fit(lengths: np.ndarray, context: int) -> Placed:
    """Longest piece first, into the row with the least room that holds it; of several such rows
    into the last that came to this room.

    All pieces of a length are placed at once, for the row with the least room keeps the least: it
    takes as many as it holds, then the next row does.
    """
    rows, placed = 0, [np.zeros(0, np.int64)]
    with_room: list[list[int]] = [[] for _ in range(context + 1)]  # the last to come at the end
    counts = np.bincount(lengths, minlength=context + 1).tolist()
    for size in range(context, 0, -1):
        for room in range(size, context + 1) if counts[size] else ():
            fit = room // size  # pieces that a row of this room takes
            wanted = -(-counts[size] // fit)
            if room == context:
                with_room[room] = [*range(rows + wanted - 1, rows - 1, -1)]
                rows += wanted
            if taken := with_room[room][: -wanted - 1 : -1]:
                del with_room[room][-len(taken) :]
                here = min(counts[size], fit * len(taken))
                placed.append(np.repeat(taken, fit)[:here])
                with_room[room - fit * size] += taken
                if short := fit * len(taken) - here:  # of the last row, which still has room
                    last = with_room[room - fit * size].pop()
                    with_room[room - (fit - short) * size].append(last)
                counts[size] -= here
                if not counts[size]:
                    break
    return np.argsort(-lengths, kind="stable"), np.concatenate(placed)


def stream(lengths: np.ndarray, context: int) -> Placed:
    """One after the other; pieces end where rows do, and a torn last row is dropped."""
    row = (np.cumsum(lengths) - lengths) // context
    row = row[row < max(1, lengths.sum() // context)]
    return np.arange(len(row)), row


PACKINGS: dict[str, Callable[[np.ndarray, int], Placed]] = {
    "best_fit": best_fit,
    "stream": stream,
    "none": lambda lengths, _: (np.arange(len(lengths)), np.arange(len(lengths))),
}
