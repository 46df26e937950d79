"""Bytes on disk to numbered lines, in bounded memory: plain, .gz, .bz2, .xz, .zst, and tar archives
of these.

A file is decompressed as it is read, never unpacked to disk and never held. Two things can go wrong
on the way, and neither is passed over: a line too long to hold, and an archive that ends early or
is damaged. Both come as a `Line` with a `problem`, after every good line before them. A file that
changes meanwhile is an error.
"""

import bz2
import gzip
import lzma
import tarfile
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tinyllm_lib.data.machine import allowed_cpus

CHUNK = 1 << 20  # bytes decompressed at a time
TAR_BLOCK = 512
MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
SUFFIXES = {
    ".gz": ".gz",
    ".tgz": ".gz",
    ".bz2": ".bz2",
    ".tbz2": ".bz2",
    ".xz": ".xz",
    ".zst": ".zst",
}


class CorpusError(ValueError):
    """The corpus as a whole cannot be used; the message says what was found and what to do."""


class BadLine(ValueError):
    """One line cannot be used. `kind` is the short name it is counted under."""

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail


class Line(NamedTuple):
    source: str  # file name, or "archive:member"
    number: int  # from 1, counted per source
    raw: bytes  # without its newline and without marks that are no text; empty if too long
    problem: BadLine | None


class _Damaged(Exception):
    """The compressed stream cannot be read past here."""


def read_lines(path: Path, max_line_bytes: int, spill: Callable[[bytes], object]) -> Iterator[Line]:
    """Lines of a corpus file, or of the .jsonl and .json files inside a tar archive, one after the
    other.

    Args:
        max_line_bytes: a longer line is not held. Its bytes go to `spill` piece by piece, and what
            is yielded is an empty line with the problem "line too long".

    Raises:
        CorpusError: the file is not what its name says, an archive holds no .jsonl or .json file,
            or the file is another one at the end of reading.
    """
    before = _state(path)
    for source, chunks in _sources(path):
        yield from _split(source, chunks, max_line_bytes, spill)
    if (after := _state(path)) != before:
        raise CorpusError(
            f"{path} was {before} when reading began, and now it is {after}: something still writes"
            " to it, such as a download. What was read belongs together nowhere: wait for its end,"
            " then read it again."
        )


def _state(path: Path) -> str:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return "gone"
    return f"{stat.st_size:,} bytes of {datetime.fromtimestamp(stat.st_mtime)}"


def _without_marks(line: bytes) -> bytes:
    """A line without byte order marks (`cat` leaves them inside a file) and without the end mark of
    DOS.
    """
    while line.startswith(BOM_UTF8):
        line = line.removeprefix(BOM_UTF8)
    return line.removesuffix(b"\x1a")


def _split(
    source: str, chunks: Iterator[bytes], limit: int, spill: Callable[[bytes], object]
) -> Iterator[Line]:
    too_long = BadLine("line too long", f"more than {limit:,} bytes")
    number, pending, spilling, end = 1, b"", False, None
    try:
        for chunk in chunks:
            end = end or (
                b"\r" if b"\r" in chunk[:-1] and b"\n" not in chunk else b"\n"
            )  # CR alone: an old Mac's
            pieces = (pending + chunk).split(end)
            pending = pieces.pop()
            for piece in pieces:
                if spilling or len(piece) > limit:
                    spill(piece + b"\n")
                    spilling = False
                    yield Line(source, number, b"", too_long)
                else:
                    yield Line(source, number, _without_marks(piece), None)
                number += 1
            if spilling or len(pending) > limit:
                spill(pending)
                pending, spilling = b"", True
    except _Damaged as damage:
        yield Line(source, number, pending, BadLine("damaged archive", str(damage)))
        return
    if spilling:
        spill(b"\n")
        yield Line(source, number, b"", too_long)
    elif pending:
        yield Line(source, number, _without_marks(pending), None)


def _sources(path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    with _open(path) as file:
        feed = _Feed(_chunks(file))
        named_tar = ".tar" in path.suffixes or path.suffix.lower() in (".tgz", ".tbz2")
        if feed.peek(TAR_BLOCK)[257:262] == b"ustar" or named_tar:
            yield from _members(path.name, feed)
        else:
            yield path.name, feed.rest()


def _open(path: Path) -> BinaryIO:
    """The decompressed file. What it is follows from its first bytes, and must agree with its name."""
    with open(path, "rb") as file:
        head = file.read(8)
    found = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    expected = SUFFIXES.get(path.suffix.lower())
    if expected and found != expected:
        raise CorpusError(
            f"{path}: the name promises {expected} data, but the file starts with {head!r}. It may"
            " be an error page or an empty file saved by a failed download: look at it, then fetch"
            " it again."
        )
    if found == ".gz":
        return gzip.open(path)
    if found == ".bz2":
        return _open_bz2(path)
    if found == ".xz":
        return lzma.open(path)
    if found == ".zst":
        return _open_zst(path)
    return open(path, "rb")


def _open_bz2(path: Path) -> BinaryIO:
    """All cores with rapidgzip, one core without it. The bytes are the same."""
    try:
        from rapidgzip import IndexedBzip2File
    except ImportError:
        return bz2.open(path)
    return IndexedBzip2File(str(path), parallelization=allowed_cpus())


def _open_zst(path: Path) -> BinaryIO:
    try:
        from compression import zstd  # Python 3.14
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise CorpusError(
                f"{path}: reading .zst before Python 3.14 needs a package: pip install"
                " backports.zstd"
            ) from None
    return zstd.open(path)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    """Decompressed bytes up to the last good one, then `_Damaged` if the stream is broken there.

    `read1` returns what it has, where `read` would lose up to a chunk at the break. rapidgzip's
    `read1` loses it too, but can go back and take single bytes.
    """
    size, position = CHUNK, 0
    while True:
        try:
            chunk = file.read1(size)
        except Exception as error:  # each format has its own: EOFError, zlib.error, ZstdError, ...
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the data
            if type(file).__name__ == "IndexedBzip2File" and size > 1:
                file.seek(position)
                size = 1
                continue
            raise _Damaged(f"{error} (after {position:,} unpacked bytes)") from error
        if not chunk:
            return
        position += len(chunk)
        yield chunk


class _Feed:
    """Chunks as a file that can only go forward, for `tarfile`. A break shows as the end, and is
    kept in `damage`.
    """

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks = chunks
        self._held = b""
        self._position = 0
        self.damage: _Damaged | None = None
        self.damage_told = (
            False  # a break is met when its chunk is read, before what was read is used up
        )

    def peek(self, size: int) -> bytes:
        head = self.read(size)
        self._held = head + self._held
        self._position -= len(head)
        return head

    def read(self, size: int) -> bytes:
        parts, have = [self._held], len(self._held)
        while have < size and (chunk := self._next()):
            parts.append(chunk)
            have += len(chunk)
        data = b"".join(parts)
        self._held = data[size:]
        self._position += min(size, have)
        return data[:size]

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        while position > self._position and self.read(min(CHUNK, position - self._position)):
            pass

    def rest(self) -> Iterator[bytes]:
        yield self._held
        self._held = b""
        while chunk := self._next():
            yield chunk
        if self.damage:
            raise self.damage

    def _next(self) -> bytes:
        try:
            return next(self._chunks, b"")
        except _Damaged as damage:
            self.damage = damage
            return b""


def _members(archive: str, feed: _Feed) -> Iterator[tuple[str, Iterator[bytes]]]:
    found, skipped = False, []
    try:
        with tarfile.open(fileobj=feed, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile would collect the headers of a long archive
                name = member.name.rsplit("/", 1)[-1]
                if not member.isfile() or name.startswith("._"):  # folders, links, macOS companions
                    continue
                if not name.lower().endswith((".jsonl", ".json")):
                    skipped.append(name)
                    continue
                found = True
                yield f"{archive}:{member.name}", _member_chunks(member.size, feed)
                if feed.damage_told:
                    return
            if (
                feed.tell() < tar.offset + TAR_BLOCK
            ):  # neither another header nor the block of zeros that ends an archive
                feed.damage = feed.damage or _Damaged(
                    "the archive has no end mark, so files may be missing"
                )
    except tarfile.TarError as error:
        feed.damage = feed.damage or _Damaged(str(error))
    if not feed.damage and any(chunk.strip(b"\0") for chunk in _until_damage(feed)):
        feed.damage = _Damaged("data after the last readable member")
    if feed.damage:
        yield archive, feed.rest()
    elif not found:
        raise CorpusError(
            f"{archive}: no .jsonl or .json file inside (found:"
            f" {', '.join(skipped[:5]) or 'nothing'}). Expected one JSON object a line in a file"
            " with such a name: unpack the archive and rename it."
        )


def _until_damage(feed: _Feed) -> Iterator[bytes]:
    while chunk := feed.read(CHUNK):
        yield chunk


def _member_chunks(size: int, feed: _Feed) -> Iterator[bytes]:
    """The content of a member whose header `tarfile` has just read.

    Not `tar.extractfile`: at a break it throws away the last piece, up to a whole chunk of good
    documents.
    """
    while size:
        chunk = feed.read(min(CHUNK, size))
        if not chunk:
            feed.damage = feed.damage or _Damaged(
                f"the archive ends {size:,} bytes before the file in it"
            )
            feed.damage_told = True
            raise feed.damage
        size -= len(chunk)
        yield chunk
