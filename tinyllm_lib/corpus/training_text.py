"""What a tokenizer trains on: an even sample of the corpus, whose rare runs of characters are cut so that it fits into memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from heapq import heappop, heappush

import regex

MAX_PIECES = 1_000_000       # different pieces that BPE training may hold: up to 1.5 kB of its memory for each
PIECES_A_LINE = 10_000


def even_sample(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """At most `max_bytes` (in UTF-8) of the texts, drawn evenly from the whole stream; all of them where they fit.

    The texts with the smallest hashes are kept, so the sample depends on the texts alone and not on their order. Memory is
    that of the sample, which is given back while it is read.

    Raises:
        ValueError: half of a surrogate pair in a text, or no text.
    """
    kept: list[tuple[int, str]] = []             # a heap, the largest hash first
    size, bar = 0, 2**64                         # texts whose hash is not below the bar have no place any more
    for number, text in enumerate(texts, 1):
        if reason := why_no_bytes(text):
            raise ValueError(f"text {number}: {reason}")
        data = text.encode()
        rank = int.from_bytes(blake2b(data, digest_size=8).digest(), "big")
        if rank >= bar:
            continue
        heappush(kept, (-rank, text))
        size += len(data)
        while size > max_bytes and len(kept) > 1:
            worst, dropped = heappop(kept)
            size, bar = size - len(dropped.encode()), -worst
    while kept:
        yield kept.pop()[1]


def bounded_pieces(texts: Iterable[str], words: str, max_pieces: int = MAX_PIECES) -> Iterator[str]:
    """The texts for BPE training, in another order: first what lies between the pieces that `words` cuts out, then these.

    BPE training keeps every different piece, and text has ever new ones: for verse it takes 64 bytes of memory for a byte of
    text. So when there are more than `max_pieces`, the rarest of them are cut in two, again and again, which costs next to
    nothing (verse, 45 MB, 400,000 instead of 2 million pieces: a sixth of the memory, 0.1% more tokens). Where there are
    fewer, training learns what it would learn from the texts themselves, for pieces are all it looks at.
    """
    pattern = regex.compile(f"({words})", regex.V1)
    if pattern.groups > 1:
        raise ValueError(f"words={words!r} has a capturing group, which would be counted as a piece: write (?:…) instead of (…).")
    counts: Counter[str] = Counter()
    for text in texts:
        parts = pattern.split(text)              # rest, piece, rest, piece, ..., rest
        counts.update(parts[1::2])
        yield "\n".join(filter(None, parts[::2]))
        if len(counts) > max_pieces:
            _halve_rare(counts, max_pieces // 2)
    for piece, count in counts.items():
        for start in range(0, count, PIECES_A_LINE):
            yield "\n".join([piece] * min(PIECES_A_LINE, count - start))


def _halve_rare(counts: Counter[str], keep: int) -> None:
    """Cut the rarest pieces in two until at most `keep` different ones are left, or nothing is left to cut."""
    rare, longest = 1, max(map(len, counts))
    while len(counts) > keep and longest > 1:
        for piece in [piece for piece, count in counts.items() if count <= rare and len(piece) > 1]:
            count, middle = counts.pop(piece), (len(piece) + 1) // 2
            counts[piece[:middle]] += count
            counts[piece[middle:]] += count
        rare, longest = rare * 2, max(map(len, counts))


def why_no_bytes(text: object) -> str | None:
    """Why a text cannot be encoded, or None where it can. tokenizers says only "must be str"."""
    if not isinstance(text, str):
        return f"expected text, found {type(text).__name__}."
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (f"character {error.start + 1} is {text[error.start]!a}, half of a surrogate pair, which is no character. "
                "read_texts and read_dialogues reject such lines; elsewhere, mend the text or leave it out.")
    return None
