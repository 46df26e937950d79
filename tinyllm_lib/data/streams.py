"""Files to numbered lines, in bounded memory: plain, .gz, .bz2, .xz, and tar archives.

A file is unpacked as it is read. What cannot be read comes as a `Line` with a `problem`.
"""

import bz2
import gzip
import lzma
import tarfile
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from tinyllm_lib.data.machine import allowed_cpus

MAX_LINE_BYTES = 16 * 2**20  # what is longer is no line of a corpus
CHUNK = 2**20  # bytes at a time of what is skipped
LARGE = 64 * 2**20  # packed bytes from which unpacking on all cores pays
OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


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
        path: what it is packed with follows from its first bytes. A damaged archive ends with the
            problem "damaged archive"; the last lines before the damage may be lost.
        max_line_bytes: a longer line is empty, with the problem "line too long", and never held.

    Raises:
        CorpusError: an archive without such a file.
    """
    source, number = path.name, 0
    try:
        with _unpacked(path) as stream:
            is_tar = ".tar" in path.suffixes or stream.peek(512)[257:262] == b"ustar"
            files = _members(path.name, stream) if is_tar else [(path.name, stream)]
            for source, lines in files:
                number = 0
                while raw := lines.readline(max_line_bytes + 1):
                    number += 1
                    if len(raw) > max_line_bytes and not raw.endswith(b"\n"):
                        while raw and not raw.endswith(b"\n"):
                            raw = lines.readline(CHUNK)
                        problem = BadLine("line too long", f"more than {max_line_bytes:,} bytes")
                        yield Line(source, number, b"", problem)
                    else:
                        text = raw.removeprefix(BOM_UTF8)  # `cat` leaves these marks inside a file
                        yield Line(source, number, text.removesuffix(b"\n"))
    except CorpusError:
        raise
    except Exception as error:  # each format has its own: EOFError, zlib.error, ...
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the data
        yield Line(source, number + 1, b"", BadLine("damaged archive", str(error)))


def _unpacked(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"BZh") and path.stat().st_size >= LARGE:
        with suppress(ImportError):  # the same bytes on all cores, on one without it
            from rapidgzip import IndexedBzip2File

            return IndexedBzip2File(str(path), parallelization=allowed_cpus())
    openers = (opener for magic, opener in OPENERS.items() if head.startswith(magic))
    return next(openers, open)(path, "rb")


def _members(archive: str, stream: Any) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, file) of each .jsonl and .json file; an error where the archive is damaged."""
    found, skipped = False, []
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            name = member.name.rsplit("/", 1)[-1]
            file = tar.extractfile(member) if member.isfile() else None
            if file is None or name.startswith("._"):  # folders, links, macOS companions
                continue
            if name.lower().endswith((".jsonl", ".json")):
                found = True
                yield f"{archive}:{member.name}", file
            else:
                skipped.append(name)
        if tar.fileobj.tell() < tar.offset + tarfile.BLOCKSIZE:  # neither header nor zeros
            raise tarfile.ReadError("the archive has no end mark, so files may be missing")
        while rest := tar.fileobj.read(CHUNK):  # on to the end, where a checksum may be
            if rest.strip(b"\0"):
                raise tarfile.ReadError("data after the last readable member")
    if not found:
        names = ", ".join(skipped[:5]) or "nothing"
        raise CorpusError(f"{archive}: no .jsonl or .json file inside, found {names}.")
