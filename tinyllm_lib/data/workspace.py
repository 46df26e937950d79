"""Where files lie: one folder per profile."""

import os
from dataclasses import dataclass
from pathlib import Path

from tinyllm_lib.data.files import owner


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
                f"no token shards {kind!r}/{split!r}: kind is 'pretrain' or 'sft', split is 'train'"
                " or 'val'"
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
        """Which exercises are done: they belong to the learner, so the file lies beside the
        profiles.
        """
        return self.root.parent / "progress.json"


def get_workspace(profile: object = None) -> Workspace:
    """The workspace of a profile, given by its name, by an object with a `name`, or by the
    environment.

    Without an argument the name is `TINYLLM_PROFILE`, else "laptop". The folder that holds all
    profiles is `TINYLLM_WORKSPACE`, else `workspace/` beside the package, whatever the working
    directory is, so that all notebooks share it. A package installed into site-packages uses
    `workspace/` in the working directory.

    Raises:
        ValueError: a name that is none for a folder, or TINYLLM_WORKSPACE begins with ~ and there
            is no home directory.
        PermissionError: it is there, and not for this user.
    """
    name = getattr(profile, "name", profile) or os.environ.get("TINYLLM_PROFILE") or "laptop"
    base = os.environ.get("TINYLLM_WORKSPACE")
    try:
        root = (
            Path(base).expanduser().resolve()
            if base
            else _default_base(Path(__file__).resolve().parents[1])
        )
    except RuntimeError as error:
        raise ValueError(
            f"TINYLLM_WORKSPACE is {base!r}, and nobody knows whose home that is: write the whole"
            " path."
        ) from error
    workspace = Workspace(root / _single_name(name, "a profile"))
    for folder in (root, workspace.root):
        if os.path.lexists(folder) and not os.access(folder, os.X_OK):
            raise PermissionError(
                f"{workspace.root} cannot be read: the folder {folder} belongs to {owner(folder)}"
                " and is closed to this user. Set TINYLLM_WORKSPACE to a folder of your own."
            )
    return workspace


def _default_base(package: Path) -> Path:
    installed = {"site-packages", "dist-packages"} & set(package.parts)
    return (Path.cwd() if installed else package.parent) / "workspace"


def _single_name(name: object, what: str) -> str:
    if (
        not isinstance(name, str)
        or not name
        or name in (".", "..")
        or set(name) & set('/\\:*?"<>|')
    ):
        raise ValueError(
            f'{name!r} cannot name {what}: use one folder name, without / \\ : * ? " < > |'
        )
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
                f"{path} cannot be read: it belongs to {owner(path)}. Ask for it, or make your own:"
                f" set TINYLLM_WORKSPACE to a folder of yours and run {made_by}."
            )
        return path
    raise FileNotFoundError(
        f"{path} is missing. It is made by {made_by}: run that first. If you have made it already,"
        " it lies in another workspace: TINYLLM_WORKSPACE is"
        f" {os.environ.get('TINYLLM_WORKSPACE') or 'not set'}, TINYLLM_PROFILE is"
        f" {os.environ.get('TINYLLM_PROFILE') or 'not set'}."
    )
