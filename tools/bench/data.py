"""Reading, tokenizer training, encoding: each against the bare library that does the work.

    python -m tools.bench.data [--runs 5] [--save]

Real text of ../shared/data where it is there, else the sample corpus. Every rate is in millions of
characters a second, so that rows can be compared and added up: the seq-monkey corpus has about
11,500 of them.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from tinyllm_lib.course.world import write_sample_corpus
from tinyllm_lib.data import allowed_cpus, read_dialogues, read_texts
from tinyllm_lib.dataset import write_pretrain_tokens, write_sft_tokens
from tinyllm_lib.tokenizer import SPECIAL_TOKENS, WORDS, load_tokenizer, train_tokenizer
from tools.bench.harness import Case, bench_folder, main

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
VOCAB_SIZE = 6144
BATCH = 1024  # texts at once, as the shards are written
TRAIN_CHARS, ENCODE_CHARS = 1_000_000, 5_000_000

Work = Callable[[], float]


def corpora(folder: Path) -> tuple[Path, Path]:
    """(documents as .jsonl.tar.bz2, dialogues as .json): the real ones, else sample ones written
    into `folder`.
    """
    real = REAL_DATA / "pretrain_corpus.jsonl.tar.bz2", REAL_DATA / "dialogues.json"
    if all(path.is_file() for path in real):
        return real
    packed = folder / "pretrain.jsonl.tar.bz2"
    if not packed.is_file():
        write_sample_corpus(folder, documents=40_000, dialogues=12_000)
        with tarfile.open(packed, "w:bz2") as tar:
            tar.add(folder / "pretrain.jsonl", "pretrain.jsonl")
    return packed, folder / "sft.jsonl"


def texts_of(path: Path, chars: int) -> list[str]:
    """The first documents, `chars` characters of them."""
    texts, room = [], chars
    for text in read_texts(path):
        texts.append(text)
        if (room := room - len(text)) <= 0:
            break
    return texts


def mega(texts: Iterable[str]) -> float:
    """Millions of characters."""
    return sum(map(len, texts)) / 1e6


def contents(dialogues: Iterable[list[dict[str, str]]]) -> Iterator[str]:
    return (message["content"] for messages in dialogues for message in messages)


# Each function below prepares a run and returns the work that is timed.


def read_ours(path: Path) -> Work:
    return lambda: mega(read_texts(path))


def read_bare(path: Path) -> Work:
    from rapidgzip import IndexedBzip2File

    def work() -> float:
        with tarfile.open(
            fileobj=IndexedBzip2File(str(path), parallelization=allowed_cpus()), mode="r|"
        ) as tar:
            return mega(
                json.loads(line)["text"] for member in tar for line in tar.extractfile(member)
            )

    return work


def dialogues_ours(path: Path) -> Work:
    return lambda: mega(contents(read_dialogues(path, system=None)))


def dialogues_bare(path: Path) -> Work:
    def work() -> float:
        with open(path, encoding="utf-8") as file:
            return mega(
                turn["value"] for line in file for turn in json.loads(line)["conversations"]
            )

    return work


def train_ours(path: Path) -> Work:
    texts = texts_of(path, TRAIN_CHARS)

    def work() -> float:
        with tempfile.TemporaryDirectory() as folder:
            train_tokenizer(texts, folder, vocab_size=VOCAB_SIZE)
        return mega(texts)

    return work


def train_bare(path: Path) -> Work:
    texts = texts_of(path, TRAIN_CHARS)
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), byte_level]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )

    def work() -> float:
        tokenizer.train_from_iterator(texts, trainer)
        return mega(texts)

    return work


def encode_ours(path: Path, tokenizer_folder: Path) -> Work:
    texts, tokenizer = texts_of(path, ENCODE_CHARS), load_tokenizer(tokenizer_folder)

    def work() -> float:
        with tempfile.TemporaryDirectory() as folder:
            write_pretrain_tokens(texts, tokenizer, folder)
        return mega(texts)

    return work


def encode_bare(path: Path, tokenizer_folder: Path) -> Work:
    texts = texts_of(path, ENCODE_CHARS)
    encoder = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))

    def work() -> float:
        for start in range(0, len(texts), BATCH):
            encoder.encode_batch(texts[start : start + BATCH], add_special_tokens=False)
        return mega(texts)

    return work


def chat_ours(path: Path, tokenizer_folder: Path) -> Work:
    dialogues, tokenizer = (
        list(islice(read_dialogues(path), 4000)),
        load_tokenizer(tokenizer_folder),
    )

    def work() -> float:
        with tempfile.TemporaryDirectory() as folder:
            write_sft_tokens(dialogues, tokenizer, folder)
        return mega(contents(dialogues))

    return work


def chat_bare(path: Path, tokenizer_folder: Path) -> Work:
    dialogues, tokenizer = (
        list(islice(read_dialogues(path), 4000)),
        load_tokenizer(tokenizer_folder),
    )
    template = tokenizer.chat_template.replace("{#", "{%").replace("#}", "%}")

    def work() -> float:
        for messages in dialogues:
            tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
        return mega(contents(dialogues))

    return work


def cases() -> list[Case]:
    """Every case, on the corpora at hand and a tokenizer trained on a part of them."""
    folder = bench_folder() / "text"
    documents, dialogues = corpora(folder)
    print(f"text: {documents.name} and {dialogues.name} of {documents.parent}")
    tokenizer = folder / "tokenizer"
    train_tokenizer(texts_of(documents, ENCODE_CHARS), tokenizer, vocab_size=VOCAB_SIZE)
    rows = [
        ("read documents", read_ours, read_bare, (documents,), "rapidgzip + tarfile + json"),
        ("read dialogues", dialogues_ours, dialogues_bare, (dialogues,), "json"),
        ("train a tokenizer", train_ours, train_bare, (documents,), "tokenizers.BpeTrainer"),
        (
            "encode and write documents",
            encode_ours,
            encode_bare,
            (documents, tokenizer),
            "tokenizers.encode_batch",
        ),
        (
            "encode and write dialogues",
            chat_ours,
            chat_bare,
            (dialogues, tokenizer),
            "transformers.apply_chat_template",
        ),
    ]
    return [
        Case(name, "Mchar/s", partial(ours, *args), partial(peer, *args), peer_name)
        for name, ours, peer, args, peer_name in rows
    ]


if __name__ == "__main__":
    main("data", cases, packages=("tokenizers", "transformers", "rapidgzip", "numpy"))
