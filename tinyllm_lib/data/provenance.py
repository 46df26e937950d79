"""What a thing was made from: one record for all that one step of the course hands to the next.

    corpus -> tokenizer -> shards -> base -> chat -> exam, GGUF file, model card

Whoever makes one of them writes `made_from` with it: names, and for each a fingerprint or a
setting. Whoever uses it compares that record with what lies there now (`differences`), and says
what differs instead of using it in silence.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tinyllm_lib.data.files import read_json, write_json

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


def sha256(path: str | Path) -> str:
    """The checksum of a file, from every byte of it."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_fingerprint(content: object) -> str:
    """A hash of anything that JSON can hold, the order of its keys apart."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def differences(was: Mapping | None, now: Mapping) -> list[str]:
    """What differs between two records, as phrases: "weights (was 12ab, now 34cd)".

    A name that only the older record has does not count: it says more than is asked.
    """
    if was is None:
        return ["there is no record of what it was made from"]
    changed = [name for name in now if was.get(name) != now[name]]
    return [f"{name} (was {_short(was.get(name))}, now {_short(now[name])})" for name in changed]


def _short(value: object) -> str:
    text = "unknown" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


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
