"""Files to numbered lines, in bounded memory: plain, .gz, .bz2, .xz, and tar archives.

A file is unpacked as it is read, never to disk and never held. A line too long to hold and an
archive that is damaged or ends early come as a `Line` with a `problem`, after every good line
before them.
"""

import bz2
import gzip
import io
import lzma
import tarfile
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tinyllm_lib.data.machine import allowed_cpus

MAX_LINE_BYTES = 16 * 2**20  # what is longer is no line of a corpus
CHUNK = 2**20  # bytes unpacked at a time
OPENERS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}  # by first bytes


class CorpusError(ValueError):
    """The corpus as a whole cannot be used; the message says what was found and what to do."""


class BadLine(ValueError):
    """One line cannot be used. `kind` is the short name it is counted under."""

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail = kind, detail


class Line(NamedTuple):
    """A line of a corpus, or what went wrong in its place."""

    source: str  # file name, or "archive:member"
    number: int  # from 1, counted per source
    raw: bytes  # without its newline and without marks that are no text; empty if too long
    problem: BadLine | None = None


def read_lines(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Lines of a corpus file, or of the .jsonl and .json files in a tar archive, one by one.

    Args:
        path: what it is packed with follows from its first bytes.
        max_line_bytes: a longer line is empty, with the problem "line too long", and never held.

    Raises:
        CorpusError: an archive without such a file.
    """
    with _unpacked(path) as file:
        good = _UpToDamage(file)
        stream = io.BufferedReader(good, CHUNK)
        is_tar = ".tar" in path.suffixes or stream.peek()[257:262] == b"ustar"
        files = _members(path.name, stream) if is_tar else [(path.name, stream)]
        source, number, raw = path.name, 0, b""
        try:
            for source, lines in files:
                number = 0
                while raw := lines.readline(max_line_bytes + 1):
                    if good.damage and not is_tar and not raw.endswith(b"\n"):
                        break
                    number += 1
                    if len(raw) > max_line_bytes and not raw.endswith(b"\n"):
                        while raw and not raw.endswith(b"\n"):
                            raw = lines.readline(CHUNK)
                        problem = BadLine("line too long", f"more than {max_line_bytes:,} bytes")
                        yield Line(source, number, b"", problem)
                    else:
                        text = raw.removeprefix(BOM_UTF8)  # `cat` leaves these marks inside a file
                        yield Line(source, number, text.removesuffix(b"\n"))
        except tarfile.TarError as error:
            good.damage, raw = good.damage or BadLine("damaged archive", str(error)), b""
        if good.damage:
            yield Line(source, number + 1, raw, good.damage)


def _unpacked(path: Path) -> Any:
    """The unpacked file: what packed it stands in its first bytes."""
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"BZh"):
        with suppress(ImportError):  # the same bytes on all cores, on one without it
            from rapidgzip import IndexedBzip2File

            return IndexedBzip2File(str(path), parallelization=allowed_cpus())
    openers = (opener for magic, opener in OPENERS.items() if head.startswith(magic))
    return next(openers, open)(path, "rb")


class _UpToDamage(io.RawIOBase):
    """An unpacked file that ends after its last good byte; `damage` says why, if it broke there."""

    def __init__(self, file: Any):
        self.file, self.step = file, CHUNK
        self.position = 0  # bytes unpacked
        self.damage: BadLine | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills as much as one `read1` gives: `read` would lose up to a chunk at a break.

        rapidgzip's `read1` loses it too, but can go back and take single bytes.
        """
        if self.damage:
            return 0
        try:
            data = self.file.read1(min(len(buffer), self.step))
        except Exception as error:  # each format has its own: EOFError, zlib.error, ...
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the data
            if type(self.file).__name__ == "IndexedBzip2File" and self.step > 1:
                self.file.seek(self.position)
                self.step = 1
                return self.readinto(buffer)
            found = f"{error} (after {self.position:,} unpacked bytes)"
            self.damage = BadLine("damaged archive", found)
            return 0
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


class _Member(io.RawIOBase):
    """A file in a tar archive, with the last bytes before a break, which tarfile throws away."""

    def __init__(self, archive: Any, size: int):
        self.archive, self.left = archive, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.archive.read(min(len(buffer), self.left))
        if self.left and not data:
            raise tarfile.ReadError("unexpected end of data")
        buffer[: len(data)] = data
        self.left -= len(data)
        return len(data)


def _members(archive: str, stream: Any) -> Iterator[tuple[str, io.BufferedReader]]:
    """(name, file) of each .jsonl and .json file; a TarError where the archive is damaged."""
    found, skipped = False, []
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            name = member.name.rsplit("/", 1)[-1]
            if not member.isfile() or name.startswith("._"):  # folders, links, macOS companions
                continue
            if name.lower().endswith((".jsonl", ".json")):
                found = True
                file = _Member(tar.fileobj, member.size)
                yield f"{archive}:{member.name}", io.BufferedReader(file, CHUNK)
            else:
                skipped.append(name)
        while stream.read(CHUNK):  # on to the end, where a checksum may be
            pass
        if stream.raw.position < tar.offset + tarfile.BLOCKSIZE:  # neither header nor zeros
            raise tarfile.ReadError("the archive has no end mark, so files may be missing")
    if not found and not stream.raw.damage:
        names = ", ".join(skipped[:5]) or "nothing"
        raise CorpusError(f"{archive}: no .jsonl or .json file inside, found {names}.")
