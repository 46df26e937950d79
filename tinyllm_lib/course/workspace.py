"""Where files lie: one folder per profile."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folder of one profile: paths only, nothing is created by asking for one."""

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
        return self.root / "tokens" / kind / split

    def run(self, name: str) -> Path:
        """The folder of one training run: config, metrics, log and checkpoints."""
        return self.root / "runs" / _single_name(name)


def get_workspace(profile: object = None) -> Workspace:
    """The workspace of a profile: its name, an object with a `name`, or None.

    None stands for `TINYLLM_PROFILE`, else "laptop". `TINYLLM_WORKSPACE` is the folder that holds
    all profiles, else `workspace/` beside the package, so that all notebooks share it; where the
    package is installed into site-packages, in the working directory.

    Raises:
        ValueError: a name that is none for a folder.
    """
    given = str(getattr(profile, "name", profile or ""))
    name = given or os.environ.get("TINYLLM_PROFILE") or "laptop"
    base = os.environ.get("TINYLLM_WORKSPACE") or _default_base(Path(__file__).resolve().parents[1])
    return Workspace(Path(base).expanduser().resolve() / _single_name(name))


def find_run(name: str | Path) -> Path:
    """A run by its path or, where there is no such path, by its name in the workspace."""
    return Path(name) if Path(name).exists() else get_workspace().run(str(name))


def _default_base(package: Path) -> Path:
    installed = {"site-packages", "dist-packages"} & set(package.parts)
    return (Path.cwd() if installed else package.parent) / "workspace"


def _single_name(name: str) -> str:
    if name in ("", ".", "..") or set(name) & set('/\\:*?"<>|'):
        raise ValueError(f'{name!r}: expected one folder name, without / \\ : * ? " < > |')
    return name
