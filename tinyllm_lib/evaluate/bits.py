"""Bits per byte of a text: how well a model predicts, comparable between tokenizers."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import read_texts
from tinyllm_lib.generate import read_text_file
from tinyllm_lib.model import Batch, Transformer, explaining_out_of_memory, score
from tinyllm_lib.tokenizer import encode_text, token_byte_lengths


def bits_per_byte(
    model: Transformer,
    tokenizer: PreTrainedTokenizerFast,
    texts: str | Path | Iterable[str],
    *,
    max_documents: int | None = None,
    batch_size: int = 16,
) -> float:
    """How many bits the model needs for one byte of text, on average; 8 is no model at all.

    `score` says what counts. A document longer than the context is read in windows; each but the
    first repeats half a context, which is not counted again.

    Args:
        texts: documents, or a file: a corpus (`.jsonl`), else one document. (One text: [text].)
        max_documents: read only so many.

    Raises:
        ValueError: nothing to score, or a line of the corpus that is no document.
    """
    context = model.config.max_seq_len
    documents = islice(_documents(texts), max_documents)
    windows = (w for text in documents for w in _windows(encode_text(tokenizer, text), context))
    lengths = torch.tensor(token_byte_lengths(tokenizer))
    advice = f"give a smaller batch_size than {batch_size}, or load the model with device='cpu'."
    with explaining_out_of_memory("while evaluating", advice):
        found = score(model, _batches(windows, batch_size), lengths)
    if not found.text_bytes:
        raise ValueError("no text of two tokens or more to score: is the file or list empty?")
    return found.bits_per_byte


def _documents(texts: str | Path | Iterable[str]) -> Iterable[str]:
    if not isinstance(texts, str | Path):
        return texts
    if not os.path.isfile(texts):  # Path.is_file fails where a text is too long for a name
        found = str(texts)[:200]
        raise FileNotFoundError(f"{found!r} is no file; a text itself: pass it in a list: [text].")
    if Path(texts).suffix == ".jsonl":
        return read_texts(texts, deduplicate=False, max_rejected_share=0)
    return [read_text_file(Path(texts))]


def _windows(ids: list[int], context: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Up to context + 1 ids at a time, and the mask of the targets to score there: once each."""
    first = 1
    while first < len(ids):
        start = 0 if first == 1 else max(0, first - context // 2)
        window = torch.tensor(ids[start : start + context + 1])
        yield window, (torch.arange(1, len(window)) >= first - start).long()
        first = start + len(window)


def _batches(windows: Iterator[tuple[Tensor, Tensor]], batch_size: int) -> Iterator[Batch]:
    while batch := list(islice(windows, batch_size)):
        ids, mask = (
            pad_sequence(list(part), batch_first=True) for part in zip(*batch, strict=True)
        )
        yield ids[:, :-1], ids[:, 1:], mask, {}
