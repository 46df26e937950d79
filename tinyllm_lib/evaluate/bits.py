"""Bits per byte of texts: how well a model predicts, comparable between tokenizers."""

import copy
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.model import Batch, Transformer, score
from tinyllm_lib.tokenizer import encode_text, token_byte_lengths


def bits_per_byte(
    model: Transformer,
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str],
    *,
    batch_size: int = 16,
) -> float:
    """How many bits the model needs for one byte of text, on average; 8 is no model at all.

    `score` says what counts. A document longer than the context is read in windows; each but the
    first repeats half a context, which is not counted again. All is computed in fp32, whatever the
    weights are kept in (bf16, where `TextGenerator` loaded them to a GPU).

    Args:
        texts: documents, as `read_texts` gives them. (One text: pass [text].)

    Raises:
        ValueError: nothing to score.
    """
    if isinstance(texts, str | Path):
        raise TypeError(f"expected texts, found {str(texts)!r:.40}: pass [text].")
    context = model.config.max_seq_len
    windows = (w for text in texts for w in _windows(encode_text(tokenizer, text), context))
    lengths = torch.tensor(token_byte_lengths(tokenizer))
    if model.lm_head.weight.dtype != torch.float32:
        model = copy.deepcopy(model).float()
    found = score(model, _batches(windows, batch_size), lengths)
    if not found.text_bytes:
        raise ValueError("no text of two tokens or more to score: are there any texts?")
    return found.bits_per_byte


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
        ids, mask = (pad_sequence(list(of), batch_first=True) for of in zip(*batch, strict=True))
        yield ids[:, :-1], ids[:, 1:], mask, {}
