"""The two real corpora, fetched by the libraries of their hubs, which resume and check downloads.

The sample corpus needs nothing from here.
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RealCorpus:
    """A file on a hub, and how much is in it: round numbers, for estimates."""

    dataset: str
    name: str
    lines: int
    packed_bytes: int  # as it is downloaded
    text_bytes: int  # as one JSON object a line


SEQ_MONKEY = RealCorpus(
    dataset="ddzhu123/seq-monkey",
    name="mobvoi_seq_monkey_general_open_corpus.jsonl.tar.bz2",
    lines=13_000_000,
    packed_bytes=13_000_000_000,
    text_bytes=33_000_000_000,
)
BELLE = RealCorpus(
    dataset="BelleGroup/train_3.5M_CN",
    name="train_3.5M_CN.json",
    lines=3_600_000,
    packed_bytes=4_850_000_000,
    text_bytes=4_850_000_000,
)


def download_pretrain(raw_dir: str | os.PathLike) -> Path:
    """Fetch the seq-monkey corpus (10B tokens) into `raw_dir`, where `read_texts` reads it packed.

    A file that is there already is returned untouched, also one put there by hand. Errors
    are those of `modelscope` (`make setup EXTRAS=hub`), which goes on after a broken download.
    """
    target = Path(raw_dir) / SEQ_MONKEY.name
    if not target.exists():
        from modelscope import dataset_file_download

        dataset_file_download(SEQ_MONKEY.dataset, SEQ_MONKEY.name, local_dir=str(raw_dir))
    return target


def download_sft(raw_dir: str | os.PathLike) -> Path:
    """Fetch BELLE's 3.5M dialogues with `huggingface_hub`, else as `download_pretrain`.

    `HF_ENDPOINT` names a mirror.
    """
    target = Path(raw_dir) / BELLE.name
    if not target.exists():
        from huggingface_hub import hf_hub_download

        hf_hub_download(
            BELLE.dataset,
            BELLE.name,
            repo_type="dataset",
            local_dir=str(raw_dir),
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    return target
