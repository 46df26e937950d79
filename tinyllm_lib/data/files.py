"""Files that are whole or not there at all, and errors that say whose folder is in the way."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_writable(path: str | os.PathLike) -> None:
    """Nothing if `path` can be written, its folders made where they are missing.

    Raises:
        PermissionError: it cannot; whose folder stands in the way, and what to do.
    """
    path = Path(path).absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{path} cannot be written: the folder {there} belongs to {owner(there)} and is closed"
            " to this user, or lies on a disk that is only read. Set TINYLLM_WORKSPACE to a folder"
            " of your own, or choose another path."
        )


def owner(path: Path) -> str:
    """Whose file it is: a name, or a number where the system knows none."""
    try:
        return path.owner()
    except (KeyError, NotImplementedError, OSError):
        return f"user {path.stat().st_uid}"


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file or a folder so that it is whole or absent, also after a crash or a power cut.

    Yields a temporary path in the same folder (same file name at its end, so that writers which
    look at the suffix are content). Create a file or a folder there. On leaving the block it is
    flushed to disk and renamed to `path`, replacing what was there; after an exception it is
    removed and `path` stays as it was.

    Raises:
        FileNotFoundError: the block ended without writing anything.
        PermissionError: its folder is closed to this user.
    """
    path = Path(path)
    require_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(
                f"{path} was not written: nothing was put at the path atomic_path gave"
            )
        _flush(temporary)
        _replace(temporary, path)
    finally:
        _remove(temporary)
    _flush_folder(path.parent)


def write_json(path: Path | str, content: object) -> None:
    """Write `content` as indented JSON in UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )


def read_json(path: Path | str) -> dict:
    """The JSON object in a file.

    Raises:
        ValueError: there is something else in it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): bring back the file as it was, or remove it."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a JSON {type(content).__name__}, expected an object: bring back the file"
            " as it was, or remove it."
        )
    return content


def _flush(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _flush(child)
        _flush_folder(path)
    else:
        with open(path, "rb+") as file:  # Windows flushes only what is open for writing
            _sync(file.fileno())


def _sync(descriptor: int) -> None:
    """Wait until a file or folder lies on the disk, as far as its file system (NFS, SMB, FUSE) can
    promise that.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:  # a broken or full disk is an error, one that knows no sync is not
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
            errno.ENOSYS,
            errno.EPERM,
            errno.EACCES,
            errno.EBADF,
        ):
            raise


def _flush_folder(path: Path) -> None:
    """Make a rename in `path` survive a power cut; Windows has no such call and needs none."""
    if os.name == "posix":
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:  # a folder that may be written and not listed
            return
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)


def _replace(new: Path, path: Path) -> None:
    """Rename `new` to `path`. A full folder cannot be renamed over, so the old one steps aside
    first.
    """
    if not path.is_dir() and not new.is_dir():
        os.replace(new, path)
        return
    old = path.with_name(f".tmp-{secrets.token_hex(4)}-old-{path.name}")
    existed = path.exists()
    if existed:
        os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        if existed:
            os.replace(old, path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
