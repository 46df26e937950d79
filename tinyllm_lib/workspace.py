"""Where files lie: one folder per profile, and writes that are whole or not there at all."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folder of one profile. Properties are paths only: nothing is created by asking for one."""

    root: Path

    @property
    def raw(self) -> Path:
        """Corpora as their sources give them: `pretrain.jsonl`, `sft.jsonl`, `exam.jsonl`."""
        return self.root / "raw"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer folder, loadable with `AutoTokenizer.from_pretrained`."""
        return self.root / "tokenizer"

    def tokens(self, kind: str, split: str) -> Path:
        """Token shards of `kind` ("pretrain" or "sft") and `split` ("train" or "val")."""
        if kind not in ("pretrain", "sft") or split not in ("train", "val"):
            raise ValueError(
                f"no token shards {kind!r}/{split!r}: kind is 'pretrain' or 'sft', split is 'train' or 'val'"
            )
        return self.root / "tokens" / kind / split

    def run(self, name: str) -> Path:
        """The folder of one training run: config, metrics, log and checkpoints."""
        return self.root / "runs" / _single_name(name, "a run")

    @property
    def bench(self) -> Path:
        """Benchmark results: they belong to the machine, so they lie beside the profiles."""
        return self.root.parent / "bench"

    @property
    def progress(self) -> Path:
        """Which exercises are done: they belong to the learner, so the file lies beside the profiles."""
        return self.root.parent / "progress.json"


def get_workspace(profile: object = None) -> Workspace:
    """The workspace of a profile, given by its name, by an object with a `name`, or by the environment.

    Without an argument the name is `TINYLLM_PROFILE`, else "laptop". The folder that holds all profiles is
    `TINYLLM_WORKSPACE`, else `workspace/` beside the package, whatever the working directory is, so that all
    notebooks share it. A package installed into site-packages uses `workspace/` in the working directory.

    Raises:
        ValueError: a name that is none for a folder, or TINYLLM_WORKSPACE begins with ~ and there is no home directory.
        PermissionError: it is there, and not for this user.
    """
    name = getattr(profile, "name", profile) or os.environ.get("TINYLLM_PROFILE") or "laptop"
    base = os.environ.get("TINYLLM_WORKSPACE")
    try:
        root = Path(base).expanduser().resolve() if base else _default_base(Path(__file__).resolve().parent)
    except RuntimeError as error:
        raise ValueError(f"TINYLLM_WORKSPACE is {base!r}, and nobody knows whose home that is: write the whole path.") from error
    workspace = Workspace(root / _single_name(name, "a profile"))
    for folder in (root, workspace.root):
        if os.path.lexists(folder) and not os.access(folder, os.X_OK):
            raise PermissionError(
                f"{workspace.root} cannot be read: the folder {folder} belongs to {owner(folder)} and is closed to this user. "
                "Set TINYLLM_WORKSPACE to a folder of your own."
            )
    return workspace


def _default_base(package: Path) -> Path:
    installed = {"site-packages", "dist-packages"} & set(package.parts)
    return (Path.cwd() if installed else package.parent) / "workspace"


def _single_name(name: object, what: str) -> str:
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set('/\\:*?"<>|'):
        raise ValueError(f'{name!r} cannot name {what}: use one folder name, without / \\ : * ? " < > |')
    return name


def require(path: str | os.PathLike, made_by: str) -> Path:
    """`path` if it exists, else a FileNotFoundError that says what makes it.

    Args:
        made_by: what to run, for example "notebook 01_data" or "make course".

    Raises:
        PermissionError: it is there, and not for this user.
    """
    path = Path(path)
    if path.exists():
        if not os.access(path, os.R_OK):
            raise PermissionError(
                f"{path} cannot be read: it belongs to {owner(path)}. Ask for it, or make your own: set "
                f"TINYLLM_WORKSPACE to a folder of yours and run {made_by}."
            )
        return path
    raise FileNotFoundError(
        f"{path} is missing. It is made by {made_by}: run that first. If you have made it already, it lies "
        f"in another workspace: TINYLLM_WORKSPACE is {os.environ.get('TINYLLM_WORKSPACE') or 'not set'}, "
        f"TINYLLM_PROFILE is {os.environ.get('TINYLLM_PROFILE') or 'not set'}."
    )


def require_writable(path: str | os.PathLike) -> None:
    """Nothing if `path` can be written, its folders made where they are missing.

    Raises:
        PermissionError: it cannot; whose folder stands in the way, and what to do.
    """
    path = Path(path).absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{path} cannot be written: the folder {there} belongs to {owner(there)} and is closed to this user, or "
            "lies on a disk that is only read. Set TINYLLM_WORKSPACE to a folder of your own, or choose another path."
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

    Yields a temporary path in the same folder (same file name at its end, so that writers which look at the
    suffix are content). Create a file or a folder there. On leaving the block it is flushed to disk and
    renamed to `path`, replacing what was there; after an exception it is removed and `path` stays as it was.

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
            raise FileNotFoundError(f"{path} was not written: nothing was put at the path atomic_path gave")
        _flush(temporary)
        _replace(temporary, path)
    finally:
        _remove(temporary)
    _flush_folder(path.parent)


def write_json(path: Path | str, content: object) -> None:
    """Write `content` as indented JSON in UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> dict:
    """The JSON object in a file.

    Raises:
        ValueError: there is something else in it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): bring back the file as it was, or remove it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected an object: bring back the file as it was, or remove it.")
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
    """Wait until a file or folder lies on the disk, as far as its file system (NFS, SMB, FUSE) can promise that."""
    try:
        os.fsync(descriptor)
    except OSError as error:  # a broken or full disk is an error, one that knows no sync is not
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EBADF):
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
    """Rename `new` to `path`. A full folder cannot be renamed over, so the old one steps aside first."""
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
