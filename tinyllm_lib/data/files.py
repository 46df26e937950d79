"""Files that are whole or not there at all."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROKEN_OR_FULL = (errno.EIO, errno.ENOSPC, errno.EDQUOT)  # else: a network disk that cannot flush


def require_writable(path: str | os.PathLike) -> None:
    """A PermissionError that names the folder in the way, if `path` cannot be written."""
    path = Path(path).absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{path} cannot be written: the folder {there} is closed to this user, or lies on a"
            " disk that is only read. Set TINYLLM_WORKSPACE to a folder of your own."
        )


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file or a folder so that it is whole or absent, also after a crash or a power cut.

    Yields a path of the same name in a temporary folder beside `path`: create a file or a folder
    there. On leaving the block it is flushed to disk and replaces `path`; after an exception it is
    removed, and `path` stays as it was.

    Raises:
        FileNotFoundError: the block ended without writing anything.
        PermissionError: its folder is closed to this user.
    """
    path = Path(path)
    require_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".tmp-", dir=path.parent, ignore_cleanup_errors=True
    ) as scratch:
        temporary, old = Path(scratch, path.name), Path(scratch, f"{path.name}.old")
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"{path} was not written: atomic_path's block made nothing")
        for file in filter(Path.is_file, (temporary, *temporary.rglob("*"))):
            with file.open("rb") as written:
                try:
                    os.fsync(written.fileno())
                except OSError as error:
                    if error.errno in BROKEN_OR_FULL:
                        raise
        if path.is_dir():
            os.replace(path, old)  # a full folder cannot be renamed over
        try:
            os.replace(temporary, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise


def write_json(path: Path | str, content: object) -> None:
    """Write `content` as indented JSON in UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        text = json.dumps(content, ensure_ascii=False, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path | str, unknown: dict | None = None) -> dict[str, Any]:
    """The JSON object in a file; where there is none, `unknown`, or an OSError or ValueError."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, expected an object")
    except (OSError, ValueError) as error:
        if unknown is not None:
            return unknown
        if isinstance(error, OSError):
            raise
        raise ValueError(
            f"{path} is damaged ({error}): bring back the file as it was, or remove it."
        ) from error
    return content
