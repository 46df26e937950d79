"""Lines of raw corpora to streams of documents and dialogues, and what is done with bad lines.

Memory stays the same however large the file is, but for the hashes that find duplicates: 9 bytes
for each different document (13 million: 120 MB). `deduplicate=False` does without them.
"""

import json
import os
import re
import warnings
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

from tinyllm_lib.data.streams import MAX_LINE_BYTES, BadLine, CorpusError, Line, read_lines

SYSTEM_PROMPT = "你是一个AI助手"
ROLES = {"human": "user", "assistant": "assistant"}
LINES_BEFORE_JUDGING = 1000  # a share of fewer lines says little
# That none of so many falls to a share of 1% happens once in 500 million corpora.
DOCUMENTS_BEFORE_SPLITTING = 2000
SENTENCE_END = re.compile(r"""[。！？!?；;…\n]+[”’」』）)》"']*|\.(?=\s)""")

Message = dict[str, str]
Paths = str | os.PathLike | Iterable[str | os.PathLike]
Document = TypeVar("Document")


@dataclass
class Rejection:
    """How often one kind of bad line was met, and where first."""

    source: str
    first_line: int  # from 1, in `source`
    detail: str  # of the first
    count: int = 0

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"first: {self.source} line {self.first_line}{detail}"


@dataclass
class ReadReport:
    """What became of every line: `lines == kept + duplicates + other_split + rejected_lines`."""

    lines: int = 0  # all but blank ones
    kept: int = 0
    duplicates: int = 0
    other_split: int = 0  # documents of the split that was not asked for
    blank: int = 0
    rejected: dict[str, Rejection] = field(default_factory=dict)  # by kind

    @property
    def rejected_lines(self) -> int:
        """How many lines were bad, of all kinds."""
        return sum(rejection.count for rejection in self.rejected.values())

    def reject(self, line: Line, problem: BadLine) -> None:
        """Count a bad line."""
        new = Rejection(line.source, line.number, problem.detail)
        self.rejected.setdefault(problem.kind, new).count += 1

    def judge(self, max_rejected_share: float, rejects: str | os.PathLike | None) -> None:
        """A CorpusError if a larger share of the lines is bad."""
        bad = self.rejected_lines
        if bad <= max_rejected_share * self.lines:
            return
        kinds = "; ".join(f"{kind} {one.count:,}, {one}" for kind, one in self.rejected.items())
        copy = (
            f"They are in {rejects}."
            if rejects
            else 'rejects="rejected.jsonl" keeps a copy of them.'
        )
        raise CorpusError(
            f"{bad:,} of {self.lines:,} lines are bad ({bad / self.lines:.1%}), more than"
            f" max_rejected_share={max_rejected_share:g} allows: {kinds}. {copy} Expected is one"
            " JSON object a line (not one large JSON array). Repair it, fetch it again, or pass a"
            " larger max_rejected_share if these lines may go."
        )

    def __str__(self) -> str:
        names = ["lines", "kept", "duplicates"]
        names += [name for name in ("other_split", "blank") if getattr(self, name)]
        rows = [(name.replace("_", " "), getattr(self, name), "") for name in names]
        rows.append(("rejected", self.rejected_lines, ""))
        kinds = sorted(self.rejected.items(), key=lambda item: -item[1].count)
        rows += [(f"  {kind}", rejection.count, str(rejection)) for kind, rejection in kinds]
        width = max(len(name) for name, _, _ in rows)
        digits = len(f"{self.lines:,}")
        return "\n".join(
            f"{name:<{width}}  {count:>{digits},}  {place}".rstrip() for name, count, place in rows
        )


class ReadOptions(TypedDict, total=False):
    """What `read_texts` and `read_dialogues` take besides a path; `read_texts` explains it."""

    split: str | None
    val_share: float
    deduplicate: bool
    rejects: str | os.PathLike | None
    max_rejected_share: float
    max_line_bytes: int
    report: ReadReport | None


def read_texts(path: Paths, **options: Unpack[ReadOptions]) -> Iterator[str]:
    """Stream the documents of a corpus: one JSON object a line with a string `text`.

    Args:
        path: one file or several, plain, .gz, .bz2 (all cores with rapidgzip), .xz, .zst, or a tar
            archive, packed or not, whose .jsonl and .json members are read in their order.
        split: "train" or "val" for that part only, None (default) for all. The part depends on the
            text alone, so a document stays where it is when the corpus grows. A small corpus may
            have none in "val": then the one with the lowest hash is (unless it is the only one).
        val_share: share of documents in "val", 0.01; 0 for none.
        deduplicate: drop exact copies of earlier documents, True (by 64-bit hash; the chance that
            any two of 13 million different documents collide is 1 in 200,000).
        rejects: file for the raw bytes of bad lines, to be repaired and read like any corpus.
        max_rejected_share: more bad lines than this, 0.01, end the reading with a CorpusError;
            judged from line 1000 on and at the end.
        max_line_bytes: longer lines, 16 MiB, are bad lines, and are skipped without being held.
        report: a `ReadReport`, filled while reading; print it afterwards.

    Raises:
        FileNotFoundError, ValueError: at the call.
        CorpusError: while reading. A damaged archive is no error but a warning and a bad line:
            every document before the damage is kept.
    """
    return _read(path, _parse_text, **options)


def read_dialogues(
    path: Paths, *, system: str | None = SYSTEM_PROMPT, **options: Unpack[ReadOptions]
) -> Iterator[list[Message]]:
    """Stream dialogues in BELLE's format as `convert_message` gives them; else as `read_texts`.

    Two dialogues are copies if all their turns are equal; neither their `id` nor `system` counts.
    """

    def parse(raw: bytes) -> tuple[list[Message], bytes]:
        messages = convert_message(_parse_object(raw), system=system)
        turns = messages if system is None else messages[1:]
        return messages, _encode(json.dumps(turns, ensure_ascii=False))

    return _read(path, parse, **options)


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
    """Check the arguments at the call, not at the first document; the rest are generators.

    Args:
        parse: makes (document, bytes that its copies share) of a line, or raises BadLine.
    """
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
        seen: dict[int, array] = defaultdict(partial(array, "Q"))
        if rejects is not None:
            Path(rejects).parent.mkdir(parents=True, exist_ok=True)
        with open(os.devnull if rejects is None else rejects, "wb") as rejected:
            for line in chain.from_iterable(
                read_lines(one, max_line_bytes, rejected.write) for one in paths
            ):
                if not line.problem and not line.raw.strip():
                    report.blank += 1
                    continue
                report.lines += 1
                try:
                    if line.problem:
                        raise line.problem
                    document, content = parse(line.raw)
                except BadLine as problem:
                    report.reject(line, problem)
                    rejected.write(line.raw + b"\n" if line.raw else b"")
                    if problem.kind == "damaged archive":
                        warnings.warn(
                            f"{line.source} is damaged or cut off in line {line.number:,}:"
                            f" {problem.detail}. Nothing after it can be read. Fetch the file again"
                            " for the rest.",
                            stacklevel=2,
                        )
                    if report.lines >= LINES_BEFORE_JUDGING:
                        report.judge(max_rejected_share, rejects)
                    continue
                digest = int.from_bytes(blake2b(content, digest_size=8).digest(), "big")
                if deduplicate and not _is_new(digest, seen):
                    report.duplicates += 1
                else:
                    yield digest, document
        report.judge(max_rejected_share, rejects)

    return _part(documents(), split, val_share, report)


def _is_new(digest: int, seen: dict[int, array]) -> bool:
    """Whether a 64-bit hash is not in `seen` yet, where it is kept: sorted arrays by its first bits.

    A tenth of the memory of Python's `set`.
    """
    hashes = seen[digest >> 50]
    place = bisect_left(hashes, digest)
    if place < len(hashes) and hashes[place] == digest:
        return False
    hashes.insert(place, digest)
    return True


def _part(
    documents: Iterator[tuple[int, Document]],
    split: str | None,
    val_share: float,
    report: ReadReport,
) -> Iterator[Document]:
    """The documents of one part.

    None is let go before one falls to "val", or so many that it need not be waited for.
    """
    below, first = val_share * 2.0**64, []
    for digest, document in documents if split and val_share else ():
        first.append((digest, document))
        if digest < below or len(first) == DOCUMENTS_BEFORE_SPLITTING:
            break
    else:
        if len(digests := {digest for digest, _ in first}) > 1:
            below = min(digests) + 1
    for digest, document in chain(first, documents):
        if split is None or (digest < below) == (split == "val"):
            report.kept += 1
            yield document
        else:
            report.other_split += 1


def _parse_object(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadLine("invalid UTF-8", f"byte {error.start + 1} of the line") from None
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of too many digits
        raise BadLine("malformed JSON", str(error)) from None
    if not isinstance(record, dict):
        raise BadLine("not an object", f"found {_type(record)}")
    return record


def _parse_text(raw: bytes) -> tuple[str, bytes]:
    record = _parse_object(raw)
    if "text" not in record:
        raise BadLine("missing text", _found(record))
    text = record["text"]
    if not isinstance(text, str):
        raise BadLine("text not a string", f"found {_type(text)}")
    if not text.strip():
        raise BadLine("empty document")
    return text, _encode(text)


def convert_message(
    conversations: dict[str, Any] | list[dict[str, str]], system: str | None = SYSTEM_PROMPT
) -> list[Message]:
    """Turn BELLE's `conversations` (or the whole record) into messages with roles.

    `[{"from": "human", "value": "你好"}, {"from": "assistant", "value": "你好！"}]` becomes
    `[{"role": "system", "content": system}, {"role": "user", …}, {"role": "assistant", …}]`;
    without a system message if `system` is None.

    Raises:
        BadLine: unknown speaker, empty message, a dialogue that ends on the user (nothing to learn:
            only replies are supervised), or another shape than the above.
    """
    if isinstance(conversations, dict):
        if "conversations" not in conversations:
            raise BadLine("missing conversations", _found(conversations))
        conversations = conversations["conversations"]
    if not isinstance(conversations, list):
        raise BadLine("malformed conversations", f"expected a list, found {_type(conversations)}")
    if not conversations:
        raise BadLine("empty dialogue")
    messages = [] if system is None else [{"role": "system", "content": system}]
    for number, message in enumerate(conversations, 1):
        where = f"message {number}"
        if not isinstance(message, dict) or not {"from", "value"} <= message.keys():
            raise BadLine(
                "malformed conversations", f'{where} is no object with "from" and "value"'
            )
        speaker, value = message["from"], message["value"]
        if not isinstance(speaker, str) or speaker not in ROLES:
            expected = " or ".join(ROLES)
            raise BadLine("unknown speaker", f"{where}: {speaker!r:.40}, expected {expected}")
        if not isinstance(value, str):
            raise BadLine("malformed conversations", f"{where}: value is {_type(value)}, no string")
        if not value.strip():
            raise BadLine("empty message", f"{where}, from {speaker}")
        messages.append({"role": ROLES[speaker], "content": value})
    if messages[-1]["role"] == "user":
        raise BadLine("ends on the user", f"{len(conversations)} messages, the last from human")
    return messages


def split_text(text: str, max_chars: int = 512) -> list[str]:
    """Cut a text into chunks of at most `max_chars` characters, at sentence ends where there are.

    Older recipes train on such chunks. No character is lost, but each chunk becomes a document of
    its own: the model never sees a sentence after what led to it, and learns that texts begin in
    the middle. A longer sentence is cut anywhere, perhaps inside a word or an emoji of several code
    points. Token shards with `PackedDataset` need no cutting.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars is {max_chars}, expected 1 or more")
    chunks: list[str] = []
    start = last_end = 0
    for end in [*(match.end() for match in SENTENCE_END.finditer(text)), len(text)]:
        while end - start > max_chars:
            cut = last_end if last_end > start else start + max_chars
            chunks.append(text[start:cut])
            start = cut
        last_end = end
    return [*chunks, text[start:]] if start < len(text) else chunks


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can write what UTF-8 and tokenizers cannot
        raise BadLine("lone surrogate", "half of a surrogate pair, such as \\ud83d alone") from None


def _found(record: dict[str, Any]) -> str:
    return f"found: {', '.join(list(record)[:5])}"[:80] if record else "found: no fields"


def _type(value: object) -> str:
    return "null" if value is None else type(value).__name__
