"""The two real corpora, fetched from their hubs. The sample corpus needs nothing from here."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class DownloadError(OSError):
    """The file could not be fetched; the message says how to go on, by hand if need be."""


@dataclass(frozen=True)
class RealCorpus:
    """A file on a hub, and how much is in it: round numbers, for estimates."""

    hub: str
    dataset: str
    name: str
    url: str
    library: str
    endpoint: str  # environment variable that names a mirror
    begins: bytes  # its first bytes; those of a network's login page are others
    lines: int
    packed_bytes: int  # as it is downloaded
    text_bytes: int  # as one JSON object a line


SEQ_MONKEY = RealCorpus(
    hub="ModelScope",
    dataset="ddzhu123/seq-monkey",
    name="mobvoi_seq_monkey_general_open_corpus.jsonl.tar.bz2",
    url="https://modelscope.cn/datasets/ddzhu123/seq-monkey/resolve/master/",
    library="modelscope",
    endpoint="MODELSCOPE_ENDPOINT",
    begins=b"BZh",
    lines=13_000_000,
    packed_bytes=13_000_000_000,
    text_bytes=33_000_000_000,
)
BELLE = RealCorpus(
    hub="Hugging Face",
    dataset="BelleGroup/train_3.5M_CN",
    name="train_3.5M_CN.json",
    url="https://huggingface.co/datasets/BelleGroup/train_3.5M_CN/resolve/main/",
    library="huggingface_hub",
    endpoint="HF_ENDPOINT",
    begins=b"{",
    lines=3_600_000,
    packed_bytes=4_850_000_000,
    text_bytes=4_850_000_000,
)


def download_pretrain(raw_dir: str | os.PathLike) -> Path:
    """Fetch the seq-monkey corpus (10B tokens) into `raw_dir`, where `read_texts` reads it packed.

    A file that is there already is returned untouched, also one put there by hand. A download that
    broke off goes on where it stopped. `MODELSCOPE_ENDPOINT` names a mirror.

    Raises:
        DownloadError: no library, no network, too little disk, or another length than announced.
    """

    def size() -> int | None:
        from modelscope.hub.api import HubApi

        files = HubApi(endpoint=_mirror(SEQ_MONKEY)).get_dataset_files(repo_id=SEQ_MONKEY.dataset)
        return next((file["Size"] for file in files if file.get("Path") == SEQ_MONKEY.name), None)

    def fetch(folder: Path) -> None:
        from modelscope import dataset_file_download

        options = {"local_dir": str(folder), "endpoint": _mirror(SEQ_MONKEY)}
        dataset_file_download(SEQ_MONKEY.dataset, SEQ_MONKEY.name, **options)

    return _download(SEQ_MONKEY, Path(raw_dir), size, fetch)


def download_sft(raw_dir: str | os.PathLike) -> Path:
    """Fetch BELLE's 3.5M dialogues, as `download_pretrain`; `HF_ENDPOINT` names a mirror."""

    def ask() -> Any:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        repo = {"repo_type": "dataset", "endpoint": _mirror(BELLE)}
        return get_hf_file_metadata(hf_hub_url(BELLE.dataset, BELLE.name, **repo))

    def fetch(folder: Path) -> None:
        # hf_hub_download refuses a mirror that sends a length and no ETag.
        from huggingface_hub.file_download import http_get

        file = ask()
        version = hashlib.sha256(f"{file.etag} {file.size}".encode()).hexdigest()[:12]
        part = folder / f"{BELLE.name}.{version}.incomplete"
        part.touch()
        headers = {"Accept-Encoding": "identity"}  # so that bytes on the line are bytes of the file
        options = {"resume_size": part.stat().st_size, "expected_size": file.size}
        try:
            with part.open("ab") as out:
                http_get(file.location, out, headers=headers, **options)
        except BaseException as error:
            nothing_follows = getattr(getattr(error, "response", None), "status_code", 0) == 416
            another_file = not BELLE.begins.startswith(_begin(part, len(BELLE.begins)))
            if nothing_follows or another_file or part.stat().st_size > file.size:
                part.unlink()  # nothing to go on from
            raise
        os.replace(part, folder / BELLE.name)

    return _download(BELLE, Path(raw_dir), lambda: ask().size, fetch)


def _mirror(source: RealCorpus) -> str | None:
    """Asked at each call, since the libraries look at the environment only when imported."""
    return os.environ.get(source.endpoint) or None


def _begin(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def _download(
    source: RealCorpus,
    folder: Path,
    ask_size: Callable[[], int | None],
    fetch: Callable[[Path], object],
) -> Path:
    target = folder / source.name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not (size := ask_size()):
            raise DownloadError("it has no such file or announces no length to tell half from all.")
        parts = [part.stat().st_size for part in folder.rglob("*.incomplete")]
        missing, free = size - max(parts, default=0), shutil.disk_usage(folder).free
        if free < missing:
            raise DownloadError(
                f"it needs {missing / 1e9:.1f} GB, but the disk of {folder} has {free / 1e9:.1f} GB"
                " free. Make room, or move the workspace with TINYLLM_WORKSPACE."
            )
        fetch(folder)
        found, begin = target.stat().st_size, _begin(target, 40)
        if found != size or not begin.startswith(source.begins):
            target.unlink()
            raise DownloadError(
                f"it announced {size:,} bytes and sent {found:,}, which begin with {begin!r};"
                f" expected {source.begins!r}. They were removed; try again later. Does this"
                " network want a login first?"
            )
    except Exception as error:  # each library has its own for no network, no file, a wrong length
        advice = " The same call again goes on where this one stopped. Is there a network?"
        if isinstance(error, DownloadError):
            advice = ""
        elif isinstance(error, ImportError) and source.library in str(error):
            advice = f": pip install {source.library}."
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise DownloadError(
            f"{source.name} could not be fetched from {source.hub} ({source.dataset}):"
            f" {error}{cause}{advice} {source.endpoint} names a mirror"
            f" ({_mirror(source) or 'not set'}). By hand: get {source.url}{source.name} on any"
            f" machine and put it at {target}."
        ) from error
    return target
