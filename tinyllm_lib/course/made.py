"""Which files of a workspace we made, and from what: those may be made again. All else is the
learner's own, and nothing may replace it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from tinyllm_lib.data import read_json, write_json

RECORD = "made_from.json"  # in a folder that has no other file of its own for it: raw/, tokenizer/


def file_fingerprint(path: str | Path) -> str:
    """Size and a hash of a file: of all of it, or of 64 MiB spread over it where it is larger."""
    path = Path(path)
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=8)
    step = max(2**20, (size - 2**20) / 63)
    with path.open("rb") as file:
        for block in range(64):
            file.seek(int(block * step))
            digest.update(file.read(2**20))
    return f"{size:,} bytes, {digest.hexdigest()}"


def sign(files: Iterable[str | Path], made_from: Mapping) -> None:
    """Note beside files that we made them, from what, and how they are now, for `made_by_us`."""
    records: dict[Path, dict] = {}
    for path in map(Path, files):
        record = records.setdefault(path.parent / RECORD, read_json(path.parent / RECORD, {}))
        record[path.name] = {"made_from": dict(made_from), "file": file_fingerprint(path)}
    for path, record in records.items():
        write_json(path, record)


def made_by_us(path: str | Path) -> dict | None:
    """What we made a file from, or all files of a folder; None if it is not as we left it.

    Such a file is the learner's own, and nothing may replace it.
    """
    path = Path(path)
    if path.is_dir():
        names = {file.name for file in path.iterdir() if not file.name.startswith(".")}
        names |= read_json(path / RECORD, {}).keys()
        made = [made_by_us(path / name) for name in sorted(names - {RECORD})]
        return made[0] if made and None not in made else None
    signed = read_json(path.parent / RECORD, {}).get(path.name)
    if not signed or not path.is_file() or file_fingerprint(path) != signed["file"]:
        return None
    return signed["made_from"]
