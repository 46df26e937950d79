"""Raw files to streams: the generated sample corpus, the two real corpora, and what reads all of them."""

from .download import BELLE, SEQ_MONKEY, DownloadError, RealCorpus, download_pretrain, download_sft
from .readers import (
    BadLine,
    CorpusError,
    ReadReport,
    Rejection,
    convert_message,
    read_dialogues,
    read_texts,
    split_text,
)
from .sample import write_sample_corpus

__all__ = [
    "BELLE",
    "SEQ_MONKEY",
    "BadLine",
    "CorpusError",
    "DownloadError",
    "ReadReport",
    "RealCorpus",
    "Rejection",
    "convert_message",
    "download_pretrain",
    "download_sft",
    "read_dialogues",
    "read_texts",
    "split_text",
    "write_sample_corpus",
]
