"""Lines of raw corpora to streams of documents and dialogues, and what is done with bad lines.

Memory stays the same however large the file is, but for the hashes that find duplicates: about 80
bytes for each different document (13 million: 1 GB). `deduplicate=False` does without them.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from tinyllm_lib.data.documents import SYSTEM_PROMPT, Message, parse_dialogue, parse_text
from tinyllm_lib.data.streams import MAX_LINE_BYTES, BadLine, CorpusError, Line, read_lines

LINES_BEFORE_JUDGING = 1000  # a share of fewer lines says little
# That none of so many falls to a share of 1% happens once in 500 million corpora.
DOCUMENTS_BEFORE_SPLITTING = 2000

Paths = str | os.PathLike | Iterable[str | os.PathLike]
Document = TypeVar("Document")


@dataclass
class ReadReport:
    """What became of every line: `lines == kept + duplicates + other_split + rejected_lines`."""

    lines: int = 0  # all but blank ones
    kept: int = 0
    duplicates: int = 0
    other_split: int = 0  # documents of the split that was not asked for
    blank: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # by kind
    first: dict[str, str] = field(default_factory=dict)  # of each kind: its place, what was found

    @property
    def rejected_lines(self) -> int:
        """How many lines were bad, of all kinds."""
        return self.rejected.total()

    def reject(self, line: Line, problem: BadLine) -> None:
        """Count a bad line; warn where an archive is damaged."""
        self.rejected[problem.kind] += 1
        detail = f" ({problem.detail})" if problem.detail else ""
        self.first.setdefault(problem.kind, f"first: {line.source} line {line.number}{detail}")
        if problem.kind == "damaged archive":
            place = f"{line.source} is damaged or cut off in line {line.number:,}"
            advice = "Nothing after it can be read. Fetch the file again for the rest."
            warnings.warn(f"{place}: {problem.detail}. {advice}", stacklevel=3)

    def judge(self, max_rejected_share: float) -> None:
        """A CorpusError if a larger share of the lines is bad."""
        bad = self.rejected_lines
        if bad <= max_rejected_share * self.lines:
            return
        kinds = "; ".join(f"{kind} {n:,}, {self.first[kind]}" for kind, n in self.rejected.items())
        raise CorpusError(
            f"{bad:,} of {self.lines:,} lines are bad ({bad / self.lines:.1%}), more than"
            f" max_rejected_share={max_rejected_share:g} allows: {kinds}."
            ' rejects="rejected.jsonl" keeps a copy of them. Expected is one JSON object a line'
            " (not one large JSON array). Repair it, fetch it again, or pass a larger"
            " max_rejected_share if these lines may go."
        )

    def __str__(self) -> str:
        names = ["lines", "kept", "duplicates"]
        names += [name for name in ("other_split", "blank") if getattr(self, name)]
        rows = [(name.replace("_", " "), getattr(self, name), "") for name in names]
        rows.append(("rejected", self.rejected_lines, ""))
        rows += [(f"  {kind}", n, self.first[kind]) for kind, n in self.rejected.most_common()]
        width = max(len(name) for name, _, _ in rows)
        digits = max(len(f"{count:,}") for _, count, _ in rows)
        return "\n".join(
            f"{name:<{width}}  {count:>{digits},}  {place}".rstrip() for name, count, place in rows
        )


def read_texts(path: Paths, **options: Any) -> Iterator[str]:
    """Stream the documents of a corpus: one JSON object a line with a string `text`.

    Args:
        path: one file or several, plain, .gz, .bz2 (all cores with rapidgzip), .xz, or a tar
            archive, packed or not, whose .jsonl and .json members are read in their order.
        split: "train" or "val" for that part only, None (default) for all. The part depends on the
            text alone, so a document stays where it is when the corpus grows. A small corpus may
            have none in "val": then the one with the lowest hash is (unless it is the only one).
        val_share: share of documents in "val", 0.01; 0 for none.
        deduplicate: drop exact copies of earlier documents, True (by 64-bit hash; the chance that
            any two of 13 million different documents collide is 1 in 200,000).
        rejects: file for the raw bytes of bad lines that are not too long, to be repaired and read
            like any corpus.
        max_rejected_share: more bad lines than this, 0.01, end the reading with a CorpusError;
            judged from line 1000 on and at the end.
        max_line_bytes: longer lines, 16 MiB, are bad lines, and are skipped without being held.
        report: a `ReadReport`, filled while reading; print it afterwards.

    Raises:
        FileNotFoundError, ValueError: at the call.
        CorpusError: while reading. A damaged archive is no error but a warning and a bad line:
            the documents before the damage are kept, but for the last few.
    """
    return _read(path, parse_text, **options)


def read_dialogues(
    path: Paths, *, system: str | None = SYSTEM_PROMPT, **options: Any
) -> Iterator[list[Message]]:
    """Stream dialogues in BELLE's format as `convert_message` gives them; else as `read_texts`."""
    return _read(path, partial(parse_dialogue, system=system), **options)


def _read(
    path: Paths,
    parse: Callable[[bytes], tuple[Document, bytes]],
    split: str | None = None,
    val_share: float = 0.01,
    deduplicate: bool = True,
    rejects: str | os.PathLike | None = None,
    max_rejected_share: float = 0.01,
    max_line_bytes: int = MAX_LINE_BYTES,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """The documents that `parse` makes of lines; it also returns the bytes that copies share."""
    paths = [Path(one) for one in ([path] if isinstance(path, str | os.PathLike) else path)]
    if not paths:
        raise ValueError("no corpus file given")
    for one in paths:
        if not one.is_file():
            raise FileNotFoundError(f"{one} is missing or no file; expected one JSON object a line")
        if rejects is not None and Path(rejects).resolve() == one.resolve():
            raise ValueError(f"rejects would overwrite the corpus {one}: give it another name")
    if split not in (None, "train", "val"):
        raise ValueError(f"split is {split!r}, expected 'train', 'val' or None")
    if not 0 <= val_share <= 1 or not 0 <= max_rejected_share <= 1:
        raise ValueError(f"shares lie between 0 and 1; found {val_share=}, {max_rejected_share=}")
    report = ReadReport() if report is None else report

    def documents() -> Iterator[tuple[int, Document]]:
        """(hash, document) for each document that is kept, of either part."""
        seen: set[int] = set()
        if rejects is not None:
            Path(rejects).parent.mkdir(parents=True, exist_ok=True)
        with open(os.devnull if rejects is None else rejects, "wb") as out:
            for line in chain(*(read_lines(one, max_line_bytes) for one in paths)):
                if not line.problem and not line.raw.strip():
                    report.blank += 1
                    continue
                report.lines += 1
                try:
                    if line.problem:
                        raise line.problem
                    document, content = parse(line.raw)
                except BadLine as problem:
                    out.write(line.raw + b"\n" if line.raw else b"")
                    report.reject(line, problem)
                    if report.lines >= LINES_BEFORE_JUDGING:
                        report.judge(max_rejected_share)
                    continue
                digest = int.from_bytes(blake2b(content, digest_size=8).digest(), "big")
                if digest in seen:
                    report.duplicates += 1
                    continue
                if deduplicate:
                    seen.add(digest)
                yield digest, document
        report.judge(max_rejected_share)

    def part() -> Iterator[Document]:
        """Those of the part asked for; a small corpus that has none in "val" gets one there."""
        found, below = documents(), val_share * 2.0**64
        first = list(islice(found, DOCUMENTS_BEFORE_SPLITTING)) if split and val_share else []
        digests = {digest for digest, _ in first}
        if len(first) < DOCUMENTS_BEFORE_SPLITTING and len(digests) > 1:
            below = max(below, min(digests) + 1)
        for digest, document in chain(first, found):
            if split is None or (digest < below) == (split == "val"):
                report.kept += 1
                yield document
            else:
                report.other_split += 1

    return part()
