"""What a tokenizer trains on: an even sample of the corpus, in pieces so short and so few that it
ends and fits into memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from heapq import heappop, heappush

import regex

# different ones that BPE training may hold of either kind: up to 1.5 kB of its memory for each
MAX_PIECES = 1_000_000
BYTES_A_BYTE = 100  # of memory that BPE training takes for a byte of a different piece, counted
PIECES_A_LINE = 10_000
MAX_RUN = 80  # characters; the time of BPE training grows with the square of a piece's length
BORDER = "\uffff"  # between two pieces: it is no character, so no text needs it
UP_TO = f"{{1,{MAX_RUN}}}"
# GPT-2's pattern, which byte-level tokenizers encode with, but for the limit:
RUNS = regex.compile(
    rf"'(?:s|t|re|ve|m|ll|d)| ?\p{{L}}{UP_TO}| ?\p{{N}}{UP_TO}|"
    rf" ?[^\s\p{{L}}\p{{N}}]{UP_TO}|\s{UP_TO}(?!\S)|\s{UP_TO}"
)


def even_sample(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """At most `max_bytes` (in UTF-8) of the texts, drawn evenly from the whole stream; all of them
    where they fit.

    The texts with the smallest hashes are kept, so the sample depends on the texts alone and not on
    their order. Memory is that of the sample, which is given back while it is read.

    Raises:
        ValueError: half of a surrogate pair in a text, or no text.
    """
    kept: list[tuple[int, str]] = []  # a heap, the largest hash first
    size, bar = 0, 2**64  # texts whose hash is not below the bar have no place any more
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


def count_pieces(
    texts: Iterable[str], words: str | None, max_pieces: int = MAX_PIECES
) -> Counter[str]:
    """The pieces that BPE training may merge within, and how often each stands in the texts.

    `words` cuts out its own, if given; then all is cut as GPT-2 does, and after `MAX_RUN`
    characters.

    BPE training keeps every different piece, and text has ever new ones: for verse it takes 64
    bytes of memory for a byte of text. So when there are more than `max_pieces` of either kind, the
    rarest of them are cut in two, again and again, which costs next to nothing (verse, 45 MB,
    400,000 instead of 2 million pieces: a sixth of the memory, 0.1% more tokens). Where there are
    fewer, training learns what it would learn from the texts themselves, for pieces are all it
    looks at.
    """
    pattern = regex.compile(f"({words or '(?!)'})", regex.V1)  # (?!) is found nowhere
    if pattern.groups > 1:
        raise ValueError(
            f"words={words!r} has a capturing group, which would be counted as a piece: write (?:…)"
            " instead of (…)."
        )
    cut_out, counts = Counter(), Counter()
    for text in texts:
        parts = pattern.split(text)  # between, cut out, between, ..., between
        cut_out.update(parts[1::2])
        for part in parts[::2]:
            counts.update(RUNS.findall(part))
        for kind in (cut_out, counts):
            if len(kind) > max_pieces:
                _halve_rare(kind, max_pieces // 2)
    while cut_out:
        piece, count = cut_out.popitem()
        for run in RUNS.findall(piece):
            counts[run] += count
    return counts


def training_memory(counts: Counter[str]) -> int:
    """Bytes of memory that BPE training takes for these pieces, by estimate."""
    return BYTES_A_BYTE * sum(len(piece.encode()) for piece in counts)


def in_lines(counts: Counter[str]) -> Iterator[str]:
    """Each piece as often as it was counted, with `BORDER` between any two. `counts` is emptied,
    for it is large.
    """
    while counts:
        piece, count = counts.popitem()
        for start in range(0, count, PIECES_A_LINE):
            yield BORDER.join([piece] * min(PIECES_A_LINE, count - start))


def _halve_rare(counts: Counter[str], keep: int) -> None:
    """Cut the rarest pieces in two until at most `keep` different ones are left, or nothing is left
    to cut.
    """
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
        return (
            f"character {error.start + 1} is {text[error.start]!a}, half of a surrogate pair, which"
            " is no character. read_texts and read_dialogues reject such lines; elsewhere, mend"
            " the text or leave it out."
        )
    return None
