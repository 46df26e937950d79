"""What a thing was made from: one record for all that one step of the course hands to the next.

    corpus -> tokenizer -> shards -> base -> chat -> exam, GGUF file, model card

Whoever makes one of them writes `made_from` with it: names, and for each a fingerprint or a
setting. Whoever uses it compares that record with what lies there now (`differences`), and says
what differs instead of using it in silence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

from tinyllm_lib.data.files import write_json

RECORD = "made_from.json"  # in a folder that has no other file of its own for it: raw/, tokenizer/


def file_fingerprint(path: str | Path) -> str:
    """Size and a hash of a file, whatever its name: of all of it, or of 64 MiB spread over it where
    it is larger.
    """
    path = Path(path)
    size, digest = path.stat().st_size, blake2b(digest_size=8)
    step = max(2**20, (size - 2**20) / 63)
    with path.open("rb") as file:
        for block in range(64):
            file.seek(int(block * step))
            digest.update(file.read(2**20))
    return f"{size:,} bytes, {digest.hexdigest()}"


def sha256(path: str | Path) -> str:
    """The checksum of a file, from every byte of it."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_fingerprint(content: object) -> str:
    """A hash of anything that JSON can hold, the order of its keys apart."""
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def differences(was: Mapping | None, now: Mapping) -> list[str]:
    """What differs between two records, a phrase for each: "weights (was 12ab, now 34cd)"; empty if
    nothing does.

    A name that only the older record has does not count: it says more than is asked.
    """
    if was is None:
        return ["there is no record of what it was made from"]
    return [
        f"{name} (was {_short(was.get(name))}, now {_short(value)})"
        for name, value in now.items()
        if was.get(name) != value
    ]


def sign(files: Iterable[str | Path], made_from: Mapping) -> None:
    """Notes beside files that we made them, from what, and how they are now: `made_by_us` knows
    them by it.
    """
    folders: dict[Path, dict] = {}
    for path in map(Path, files):
        signed = {"made_from": dict(made_from), "file": file_fingerprint(path)}
        folders.setdefault(path.parent, read_record(path.parent) or {})[path.name] = signed
    for folder, record in folders.items():
        write_json(folder / RECORD, record)


def made_by_us(path: str | Path) -> dict | None:
    """What we made a file from, or all files of a folder. None: there is none, or it is not as we
    left it. What is there and not as we left it is the learner's own, and nothing may replace
    it.
    """
    path = Path(path)
    if path.is_dir():
        names = {file.name for file in path.iterdir() if not file.name.startswith(".")} | set(
            read_record(path) or ()
        )
        made = [made_by_us(path / name) for name in sorted(names - {RECORD})]
        return made[0] if made and None not in made else None
    signed = (read_record(path.parent) or {}).get(path.name)
    return (
        signed["made_from"]
        if signed and path.is_file() and file_fingerprint(path) == signed["file"]
        else None
    )


def read_record(folder: str | Path) -> dict | None:
    """The record of a folder; None where there is none, or none that can be read: then nobody
    knows.
    """
    try:
        record = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _short(value: object) -> str:
    text = "unknown" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…"
