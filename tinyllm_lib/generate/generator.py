"""A run -> text: `TextGenerator` loads a model with its tokenizer and lets it chat and go on."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch.types import Device
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import SYSTEM_PROMPT
from tinyllm_lib.generate.decoding import PLAIN, Generated, decode, rows_of
from tinyllm_lib.generate.sampling import Sampling
from tinyllm_lib.generate.text import TextStream
from tinyllm_lib.model import Transformer, model_folder
from tinyllm_lib.tokenizer import (
    check_size,
    encode_chat,
    encode_text,
    load_tokenizer,
    stop_ids,
    text_start,
)

Messages = list[dict[str, str]]
CHAT = Sampling(temperature=0.7, top_k=50, max_new_tokens=256)
EXAM = Sampling(temperature=0, max_new_tokens=64)
TEXT = Sampling(top_k=300, max_new_tokens=256)
GREEDY = Sampling(temperature=0)


class ContextWarning(UserWarning):
    """A text did not fit the context, and what was left out."""


class TextGenerator:
    """A model with its tokenizer, ready to write. Every method that writes takes a `Sampling`, or
    fields of one in the place of its default's: `chat("你好", temperature=0, max_new_tokens=20)`.

    Args:
        folder: a run folder (its newest checkpoint is taken), a step folder, or any Hugging Face
            Llama folder with a ChatML tokenizer.
        device: for example "cpu" or "cuda"; default: cuda where there is one.
        dtype: of the weights; default: bfloat16 on cuda (float16 where the GPU does not multiply
            that), else float32. To compare numbers, not texts, take torch.float32.

    Raises:
        FileNotFoundError: no finished checkpoint there.
        ValueError: a damaged file, another architecture, a tokenizer that does not fit the model.
    """

    folder: Path | None = None  # of the model, if it comes from one
    batch_size = 64  # texts written at once

    def __init__(self, folder: str | Path, device: Device = None, dtype: torch.dtype | None = None):
        self.folder = model_folder(folder)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(f"device {str(device)!r} cannot be used here: {error}") from None
        model = Transformer.from_pretrained(self.folder, device=device)
        for p in model.parameters():  # not the angles: they are exact
            p.data = p.data.to(dtype or usual_dtype(p.device))
        self._use(model, load_tokenizer(self.folder))

    @classmethod
    def from_model(cls, model: Transformer, tokenizer: PreTrainedTokenizerFast) -> Self:
        """A generator over a model in memory, for example in the middle of training."""
        generator = cls.__new__(cls)
        generator._use(model, tokenizer)
        return generator

    def _use(self, model: Transformer, tokenizer: PreTrainedTokenizerFast) -> None:
        check_size(tokenizer, model.config.vocab_size, self.folder or "the model")
        self.model, self.tokenizer = model, tokenizer
        self.context = model.config.max_seq_len
        self.stop_ids = tuple(stop_ids(tokenizer))
        self._kept: dict = {}  # what a GPU recorded, for the next text

    def chat(self, messages: Messages | str, sampling: Sampling = CHAT, **fields: Any) -> str:
        """The reply to a conversation, or to one message given as text.

        Messages are [{"role": "system" | "user" | "assistant", "content": text}, …]; without a
        system message at the beginning, that of the training data is put there. Where they outgrow
        the context, the oldest turns are left out whole and a `ContextWarning` says so.
        """
        return self.replies([messages], sampling, **fields)[0]

    def stream(
        self, messages: Messages | str, sampling: Sampling = CHAT, **fields: Any
    ) -> Iterator[str]:
        """The same reply as `chat`, in pieces as they are written; joined they are equal."""
        sampling = replace(sampling, **fields)
        ids, limit, note = self.chat_prompt(messages, sampling.max_new_tokens)
        [row] = rows_of([ids], [limit], sampling.seed)
        for _, text in self.pieces([row], sampling):
            yield text
        _warn([note, row.note])

    def replies(
        self, conversations: Sequence[Messages | str], sampling: Sampling = EXAM, **fields: Any
    ) -> list[str]:
        """The reply to each conversation, the likeliest by default; many at once, as exams need."""
        sampling = replace(sampling, **fields)
        return [row.text for row in self._write(self.chat_prompt, conversations, sampling)]

    def sft_sample(
        self, start: str = "你好呀", num_samples: int = 3, sampling: Sampling = CHAT, **fields: Any
    ) -> list[str]:
        """Several replies to the same message."""
        return self.replies([start] * num_samples, sampling, **fields)

    def complete(self, prompt: str, sampling: Sampling = PLAIN, **fields: Any) -> str:
        """What follows `prompt` in a document that begins so; past the context a window slides."""
        return self.completions([prompt], sampling, **fields)[0].text

    def pretrain_sample(
        self, start: str = "从前", num_samples: int = 3, sampling: Sampling = TEXT, **fields: Any
    ) -> list[str]:
        """Several documents that begin with `start`."""
        rows = self.completions([start] * num_samples, sampling, **fields)
        return [start + row.text for row in rows]

    def completions(
        self, prompts: Sequence[str], sampling: Sampling = GREEDY, **fields: Any
    ) -> list[Generated]:
        """`complete` for many prompts at once, with what there is to know; greedy by default."""
        return self._write(self._text_prompt, prompts, replace(sampling, **fields))

    def chat_prompt(
        self, messages: Messages | str, max_new_tokens: int
    ) -> tuple[list[int], int, str]:
        """(ids of the prompt, how many tokens the reply may have, note on turns left out).

        A quarter of the context is kept free for the reply, less if fewer tokens are asked for. A
        ValueError names an empty or unknown message, or a last one that does not fit by itself.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("expected a text, or a list of {'role': …, 'content': …}.")
        if not messages or not str(messages[-1].get("content", "")).strip():
            raise ValueError("the prompt is empty: expected a message with some text in it.")
        if messages[0].get("role") != "system":
            messages = [{"role": "system", "content": SYSTEM_PROMPT}, *messages]
        room = self.context - max(1, min(max_new_tokens, self.context // 4))
        chat = encode_chat(self.tokenizer, messages, max_length=room, add_generation_prompt=True)
        if chat.cut_tokens:
            found = f"with the system prompt it is {chat.cut_tokens} tokens too long"
            raise ValueError(f"the last message does not fit: {found}. Shorten it.")
        note = f"the conversation outgrew the context of {self.context} tokens: the oldest"
        note = f"{note} {chat.dropped_turns} messages were left out." if chat.dropped_turns else ""
        return chat.ids, min(max_new_tokens, self.context - len(chat.ids)), note

    def length(self, text: str) -> int:
        """Tokens of a text, to compare with `context`."""
        return len(encode_text(self.tokenizer, text))

    def _text_prompt(self, prompt: str, max_new_tokens: int) -> tuple[list[int], int, str]:
        if not prompt:
            advice = "give the first word of a text at least, for example 从前"
            raise ValueError(f"the prompt is empty: {advice}.")
        ids = [*text_start(self.tokenizer), *encode_text(self.tokenizer, prompt)]
        if len(ids) > self.context:
            raise ValueError(f"the prompt has {len(ids)} tokens, the context holds {self.context}.")
        return ids, max_new_tokens, ""

    def _write(
        self, prompt: Callable, items: Sequence[Messages | str], sampling: Sampling
    ) -> list[Generated]:
        """A row for each item's prompt; an error says which one, a warning what did not fit."""
        made = []
        for number, item in enumerate(items, 1):
            try:
                made.append(prompt(item, sampling.max_new_tokens))
            except ValueError as error:
                which = f"prompt {number}: " if len(items) > 1 else ""
                raise ValueError(f"{which}{error}") from None
        rows = rows_of([ids for ids, _, _ in made], [limit for _, limit, _ in made], sampling.seed)
        order = sorted(rows, key=lambda row: len(row.prompt))  # so that little is padded
        for start in range(0, len(order), self.batch_size):
            for row, text in self.pieces(order[start : start + self.batch_size], sampling):
                row.text += text
        _warn(f"{note} {row.note}".strip() for (_, _, note), row in zip(made, rows, strict=True))
        return rows

    def pieces(self, rows: list[Generated], sampling: Sampling) -> Iterator[tuple[Generated, str]]:
        """Writes on all `rows`, from `rows_of`; (row, text) as soon as some text is certain."""
        streams = {id(row): TextStream(self.tokenizer, sampling.stop) for row in rows}
        for row in decode(self.model, rows, sampling, self.stop_ids, kept=self._kept):
            stream = streams[id(row)]
            if text := stream.feed(row.ids[-1]):
                yield row, text
            if stream.stopped:
                row.finish = "stop"
        for row in rows:
            if text := streams[id(row)].close():
                yield row, text


def usual_dtype(device: torch.device) -> torch.dtype:
    """Of weights that write: 16 bits on a GPU, for each token reads them all."""
    if device.type != "cuda":
        return torch.float32
    native = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if native else torch.float16


def _warn(notes: Iterable[str]) -> None:
    for note in filter(None, dict.fromkeys(notes)):
        warnings.warn(note, ContextWarning, stacklevel=4)
