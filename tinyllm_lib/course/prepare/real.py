"""The two real corpora, and how much is in them."""

from dataclasses import dataclass

from tinyllm_lib.data import BELLE, SEQ_MONKEY


@dataclass(frozen=True)
class RealCorpus:
    """A file on a hub, and how much is in it: round numbers, for estimates."""

    dataset: str
    name: str
    lines: int
    packed_bytes: int  # as it is downloaded
    text_bytes: int  # as one JSON object a line


REAL_CORPORA = {
    "pretrain": RealCorpus(
        *SEQ_MONKEY, lines=13_000_000, packed_bytes=13_000_000_000, text_bytes=33_000_000_000
    ),
    "sft": RealCorpus(
        *BELLE, lines=3_600_000, packed_bytes=4_850_000_000, text_bytes=4_850_000_000
    ),
}
