"""Files to numbered lines, in bounded memory: plain, .gz, .bz2, .xz, .zst, and tar archives.

A file is unpacked as it is read, never to disk and never held. A line too long to hold and an
archive that is damaged or ends early come as a `Line` with a `problem`, after every good line
before them. A file that changes meanwhile is an error.
"""

import bz2
import gzip
import io
import lzma
import sys
import tarfile
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from tinyllm_lib.data.machine import allowed_cpus

MAX_LINE_BYTES = 16 * 2**20  # what is longer is no line of a corpus
CHUNK = 2**20  # bytes unpacked at a time
TAR_BLOCK = 512
MAGIC = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ", ".zst": b"\x28\xb5\x2f\xfd"}
ENDLESS = sys.maxsize


class CorpusError(ValueError):
    """The corpus as a whole cannot be used; the message says what was found and what to do."""


class BadLine(ValueError):
    """One line cannot be used. `kind` is the short name it is counted under."""

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail = kind, detail


_damaged = partial(BadLine, "damaged archive")


class Line(NamedTuple):
    """A line of a corpus, or what went wrong in its place."""

    source: str  # file name, or "archive:member"
    number: int  # from 1, counted per source
    raw: bytes  # without its newline and without marks that are no text; empty if too long
    problem: BadLine | None = None


def read_lines(
    path: Path,
    max_line_bytes: int = MAX_LINE_BYTES,
    spill: Callable[[bytes], object] = lambda piece: None,
) -> Iterator[Line]:
    """Lines of a corpus file, or of the .jsonl and .json files in a tar archive, one by one.

    Args:
        path: what it is packed with follows from its first bytes.
        max_line_bytes: a longer line is empty, with the problem "line too long".
        spill: takes the bytes of such a line piece by piece, since it is never held.

    Raises:
        CorpusError: the file is not what its name says, an archive holds no .jsonl or .json file,
            or the file is another one at the end of reading.
    """
    before = _state(path)
    stream = _Stream(_unpacked(path))
    with stream.file:
        named_tar = ".tar" in path.suffixes or path.suffix.lower() in (".tgz", ".tbz2")
        if named_tar or stream.peek(TAR_BLOCK)[257:262] == b"ustar":
            sources = _members(path.name, stream)
        else:
            sources = iter([(path.name, stream.chunks())])
        for source, chunks in sources:
            yield from _split(source, chunks, max_line_bytes, spill)
    if (after := _state(path)) != before:
        raise CorpusError(
            f"{path} was {before} when reading began, and now it is {after}: something still writes"
            " to it, such as a download. Wait for its end, then read it again."
        )


def _state(path: Path) -> str:
    if not path.exists():
        return "gone"
    stat = path.stat()
    return f"{stat.st_size:,} bytes of {datetime.fromtimestamp(stat.st_mtime)}"


def _split(
    source: str,
    chunks: Iterable[bytes | BadLine],
    max_line_bytes: int,
    spill: Callable[[bytes], object],
) -> Iterator[Line]:
    number, pending, spilling, newline = 0, b"", False, b""

    def line(end: bytes) -> Line:
        """The next line, whose end this is; all of it, unless it is too long."""
        nonlocal number, spilling
        number += 1
        if spilling or len(end) > max_line_bytes:
            spilling = False
            spill(end + b"\n")
            detail = f"more than {max_line_bytes:,} bytes"
            return Line(source, number, b"", BadLine("line too long", detail))
        while end.startswith(BOM_UTF8):  # `cat` leaves these marks inside a file
            end = end.removeprefix(BOM_UTF8)
        return Line(source, number, end.removesuffix(b"\x1a"))  # the end mark of DOS

    for chunk in chunks:
        if isinstance(chunk, BadLine):
            yield Line(source, number + 1, pending, chunk)
            return
        if not newline:  # CR alone: an old Mac's
            newline = b"\r" if b"\r" in chunk[:-1] and b"\n" not in chunk else b"\n"
        *ends, pending = (pending + chunk).split(newline)
        yield from map(line, ends)
        if spilling or len(pending) > max_line_bytes:
            spill(pending)
            pending, spilling = b"", True
    if spilling or pending:
        yield line(pending)


def _unpacked(path: Path) -> io.BufferedIOBase:
    """The unpacked file. What its first bytes say it is must agree with its name."""
    with path.open("rb") as file:
        head = file.read(8)
    kind = next((kind for kind, magic in MAGIC.items() if head.startswith(magic)), "")
    promised = path.suffix.lower().replace(".t", ".")  # .tgz is .tar.gz
    if promised in MAGIC and promised != kind:
        raise CorpusError(
            f"{path}: the name promises {promised} data, but the file starts with {head!r}. It may"
            " be an error page or an empty file saved by a failed download: look at it, then fetch"
            " it again."
        )
    if kind == ".gz":
        return gzip.open(path)
    if kind == ".xz":
        return lzma.open(path)
    if kind == ".zst":
        for name in ("compression.zstd", "backports.zstd"):  # the first from Python 3.14 on
            with suppress(ImportError):
                return import_module(name).open(path)
        raise CorpusError(f"{path}: reading .zst needs a package: pip install backports.zstd")
    if kind == ".bz2":
        with suppress(ImportError):  # the same bytes on all cores, on one without it
            from rapidgzip import IndexedBzip2File

            return IndexedBzip2File(str(path), parallelization=allowed_cpus())
        return bz2.open(path)
    return path.open("rb")


class _Stream(io.BufferedIOBase):
    """An unpacked file that only goes forward. It ends where it breaks; `damage` says why."""

    def __init__(self, file: io.BufferedIOBase):
        self.file = file
        self.damage: BadLine | None = None
        self._held, self._position, self._step = bytearray(), 0, CHUNK

    def peek(self, size: int) -> bytes:
        while len(self._held) < size and (piece := self._unpack()):
            self._held += piece
        return bytes(self._held[:size])

    def read(self, size: int | None = -1, /) -> bytes:
        data = self.peek(ENDLESS if size is None or size < 0 else size)
        del self._held[: len(data)]
        self._position += len(data)
        return data

    def seek(self, position: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_CUR:  # `tell` asks so
            position += self._position
        while position > self._position and self.read(min(CHUNK, position - self._position)):
            pass
        return self._position

    def chunks(self, size: int = ENDLESS) -> Iterator[bytes | BadLine]:
        """The next `size` bytes; where they end before, the damage is the last item."""
        left = size
        while left and (chunk := self.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk
        if left and (self.damage or size != ENDLESS):
            yield self.damage or _damaged(f"the archive ends {left:,} bytes before the file in it")

    def _unpack(self) -> bytes:
        """Up to the last good byte: `read` would lose up to a chunk at a break, `read1` does not.

        rapidgzip's `read1` loses it too, but can go back and take single bytes.
        """
        if self.damage:
            return b""
        position = self._position + len(self._held)
        try:
            return self.file.read1(self._step)
        except Exception as error:  # each format has its own: EOFError, zlib.error, ZstdError, ...
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the data
            if type(self.file).__name__ == "IndexedBzip2File" and self._step > 1:
                self.file.seek(position)
                self._step = 1
                return self._unpack()
            self.damage = _damaged(f"{error} (after {position:,} unpacked bytes)")
            return b""


def _members(archive: str, stream: _Stream) -> Iterator[tuple[str, Iterable[bytes | BadLine]]]:
    """(name, chunks) of each .jsonl and .json file; of the archive itself where it is damaged.

    The chunks are not those of `tar.extractfile`, which throws away the last of them at a break.
    """
    found, skipped, problem = False, [], ""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                vars(tar)["members"].clear()  # it would collect the headers of a long archive
                name = member.name.rsplit("/", 1)[-1]
                if not member.isfile() or name.startswith("._"):  # folders, links, macOS companions
                    continue
                if not name.lower().endswith((".jsonl", ".json")):
                    skipped.append(name)
                    continue
                found = True
                yield f"{archive}:{member.name}", stream.chunks(member.size)
                if stream.tell() < member.offset_data + member.size:
                    return  # it broke in this member, which has said so
            if stream.tell() < tar.offset + TAR_BLOCK:  # neither a header nor a block of zeros
                problem = "the archive has no end mark, so files may be missing"
    except tarfile.TarError as error:
        problem = str(error)
    while not problem and (rest := stream.read(CHUNK)):
        problem = "data after the last readable member" if rest.strip(b"\0") else ""
    if problem or stream.damage:
        yield archive, chain(stream.chunks(), [_damaged(problem)])
    elif not found:
        raise CorpusError(
            f"{archive}: no .jsonl or .json file inside (found:"
            f" {', '.join(skipped[:5]) or 'nothing'}). Expected one JSON object a line in a file"
            " with such a name: unpack the archive and rename it."
        )
