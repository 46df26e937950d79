"""Records of what a thing was made from, for its user to compare with what lies there now."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path


def sha256(path: str | Path) -> str:
    """The checksum of a file, from every byte of it."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_fingerprint(content: object) -> str:
    """A hash of anything that JSON can hold, the order of its keys apart."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def differences(was: Mapping | None, now: Mapping) -> list[str]:
    """What of `now` is not as in an older record, as phrases: "weights (was 12ab, now 34cd)"."""
    if was is None:
        return ["there is no record of what it was made from"]
    changed = [name for name in now if was.get(name) != now[name]]
    return [f"{n} (was {was.get(n, 'unknown')!s:.60}, now {now[n]!s:.60})" for n in changed]
