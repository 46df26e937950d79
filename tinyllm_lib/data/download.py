"""The two real corpora, fetched by the libraries of their hubs, which resume and check downloads.

The sample corpus needs nothing from here.
"""

import os
from pathlib import Path

# The dataset on its hub, ModelScope and Hugging Face, and the file in it.
SEQ_MONKEY = ("ddzhu123/seq-monkey", "mobvoi_seq_monkey_general_open_corpus.jsonl.tar.bz2")
BELLE = ("BelleGroup/train_3.5M_CN", "train_3.5M_CN.json")


def download_pretrain(raw_dir: str | os.PathLike) -> Path:
    """Fetch the seq-monkey corpus (10B tokens) into `raw_dir`, where `read_texts` reads it packed.

    A file that is there already is returned untouched, also one put there by hand. Errors
    are those of `modelscope` (`make setup EXTRAS=hub`), which goes on after a broken download.
    """
    dataset, name = SEQ_MONKEY
    target = Path(raw_dir, name)
    if not target.exists():
        from modelscope import dataset_file_download

        dataset_file_download(dataset, name, local_dir=str(raw_dir))
    return target


def download_sft(raw_dir: str | os.PathLike) -> Path:
    """Fetch BELLE's 3.5M dialogues with `huggingface_hub`, else as `download_pretrain`.

    `HF_ENDPOINT` names a mirror.
    """
    dataset, name = BELLE
    target = Path(raw_dir, name)
    if not target.exists():
        from huggingface_hub import hf_hub_download

        at = os.environ.get("HF_ENDPOINT")
        hf_hub_download(dataset, name, repo_type="dataset", local_dir=str(raw_dir), endpoint=at)
    return target
