"""Packs what a class needs so that nobody waits: corpus, tokenizer, token shards, and the newest
checkpoint of both runs.

    python tools/handout.py [FILE.zip]

Run it where `make course` has run. The class unpacks the file in the folder of its clone; every
notebook then finds what the ones before it make, and the cells that train say within seconds that
the run is finished. TINYLLM_PROFILE chooses the profile, as everywhere.
"""

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tinyllm_lib.course import Workspace, get_profile, get_workspace, prepare  # noqa: E402
from tinyllm_lib.data import atomic_path, utf8_output  # noqa: E402
from tinyllm_lib.model import latest_checkpoint  # noqa: E402

RUNS = "pretrain", "chat"


def files_to_pack(ws: Workspace) -> Iterator[Path]:
    """Every file of the handout.

    Raises:
        FileNotFoundError: the course has not been run here.
        ValueError: a run that the class's notebooks would not use: stopped, or made from something
            else than lies here.
    """
    for folder in (ws.raw, ws.tokenizer, ws.root / "tokens"):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} does not exist: run `make course` first.")
        yield from (
            path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.parent.name.startswith(".tmp-")
        )
    for name in RUNS:
        run = ws.run(name)
        newest = latest_checkpoint(run)
        if why := prepare.why_not_ready(ws, name):
            raise ValueError(f"the run {name} is not for a class: {why}. `make course` mends that.")
        yield from (path for path in sorted(run.iterdir()) if path.is_file())
        yield from sorted(newest.iterdir())


def pack(ws: Workspace, out: Path) -> int:
    """Writes the handout to `out`, whole or not at all; returns its size in bytes."""
    paths = list(files_to_pack(ws))
    with (
        atomic_path(out) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as handout,
    ):
        for path in paths:
            handout.write(path, Path("workspace", ws.root.name, path.relative_to(ws.root)))
    return out.stat().st_size


def main() -> int:
    """Command line."""
    utf8_output()
    profile = get_profile()
    ws = get_workspace(profile)
    out = Path(sys.argv[1] if len(sys.argv) > 1 else f"tinyllm-{profile.name}.zip")
    try:
        size = pack(ws, out)
    except (OSError, ValueError) as error:
        print(f"handout: {error}", file=sys.stderr)
        return 2
    print(
        f"{out}: {size / 1e6:.0f} MB. Unpack it in the folder of the clone, where it makes"
        f" workspace/{ws.root.name}/."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
