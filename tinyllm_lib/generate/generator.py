"""A run -> text: `TextGenerator` loads a model with its tokenizer and lets it chat and go on with a
text.

    python -m tinyllm_lib.generate RUN        a chat in the terminal; --help lists the options

How tokens are chosen is in `sampling.py`; here ids become text, and text becomes prompts.
"""

from __future__ import annotations

import codecs
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import SYSTEM_PROMPT
from tinyllm_lib.generate.sampling import (
    Generated,
    Sampling,
    dice_for,
    generate,
    generate_batch,
    stream_tokens,
)
from tinyllm_lib.model import Transformer, explaining_out_of_memory, model_folder
from tinyllm_lib.tokenizer import (
    check_size,
    encode_chat,
    encode_text,
    load_tokenizer,
    stop_ids,
    text_start,
    token_bytes,
)

__all__ = [
    "ContextWarning",
    "Generated",
    "Reply",
    "TextGenerator",
    "TextStream",
    "Written",
    "generate",
]

Messages = list[dict[str, str]]

CUT = "the reply was cut: the context is full."


class ContextWarning(UserWarning):
    """A text did not fit the context, and what was left out."""


class TextStream:
    """Tokens in, text out, as soon as it is certain: never half a character, never the beginning of
    a stop string.

    A Chinese character has three bytes, which may lie in three tokens: bytes wait here until their
    character is whole. Bytes that never form a character, special tokens, and ids of the model that
    no token has, give no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str] = ()):
        if isinstance(stop, str) or "" in stop:
            raise ValueError(f"stop is {stop!r}, expected a list of strings, none of them empty.")
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.special, self.size = set(tokenizer.all_special_ids), len(tokenizer)
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self.held = ""  # text that may turn out to begin a stop string
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that this token completes, often empty; `stopped` is set when a stop string was
        found.
        """
        if self.stopped or token in self.special or token >= self.size:
            return ""
        self.held += self.decoder.decode(token_bytes(self.tokenizer, token))
        found = [at for at in map(self.held.find, self.stop) if at >= 0]
        if found:
            self.stopped = True
            return self._give(min(found))
        waiting = max(
            (n for s in self.stop for n in range(1, len(s)) if self.held.endswith(s[:n])), default=0
        )
        return self._give(len(self.held) - waiting)

    def close(self) -> str:
        """The text still held at the end; half a character is left out."""
        return "" if self.stopped else self._give(len(self.held))

    def _give(self, length: int) -> str:
        text, self.held = self.held[:length], self.held[length:]
        return text


@dataclass(frozen=True)
class Written:
    """A piece of text as soon as it is certain, and how likely the model found the tokens that it
    is made of.
    """

    text: str
    probabilities: tuple[
        float, ...
    ] = ()  # of each token, under the model itself: before temperature and filters
    note: str = ""  # what the reader should know, such as turns left out; then there is no text


@dataclass
class Reply:
    """One generated text with what there is to know about it."""

    text: str
    tokens: int  # how many the model wrote
    # "stop": the model or a stop string ended it; "length": cut at max_new_tokens or the context's
    # end
    finish: str
    note: str = ""  # what the model did not see, if anything
    logprobs: list[float] | None = None  # of each token, under the model itself


class TextGenerator:
    """A model with its tokenizer, ready to write.

    Args:
        folder: a run folder (its newest checkpoint is taken), a step folder, or any Hugging Face
            Llama folder with a ChatML tokenizer.
        device: for example "cpu" or "cuda"; default: cuda where there is one.

    Raises:
        FileNotFoundError: no finished checkpoint there.
        ValueError: a damaged file, another architecture, a tokenizer that does not fit the model,
            or no such device.
    """

    def __init__(self, folder: str | Path, device: str | torch.device | None = None):
        self.folder: Path | None = model_folder(folder)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}"
            ) from None
        size = (self.folder / "model.safetensors").stat().st_size / 1e9
        advice = (
            f"the file of its weights alone has {size:.3g} GB. Take a smaller model or another"
            " device, and see what else runs there."
        )
        with explaining_out_of_memory(f"while loading {self.folder}", advice):
            model = Transformer.from_pretrained(self.folder, device=device)
        self._use(model, load_tokenizer(self.folder))

    @classmethod
    def from_model(cls, model: Transformer, tokenizer: PreTrainedTokenizerFast) -> TextGenerator:
        """A generator over a model in memory, for example in the middle of training."""
        generator = cls.__new__(cls)
        generator.folder = None
        generator._use(model, tokenizer)
        return generator

    def _use(self, model: Transformer, tokenizer: PreTrainedTokenizerFast) -> None:
        check_size(tokenizer, model.config.vocab_size, self.folder or "the model")
        self.model, self.tokenizer = model, tokenizer
        self.context = model.config.max_seq_len
        self.stop_ids = tuple(stop_ids(tokenizer))

    # ---- chat

    def chat(
        self,
        messages: Messages | str,
        *,
        max_new_tokens: int = 256,
        seed: int = 0,
        stop: Sequence[str] = (),
        temperature: float = 0.7,
        top_k: int | None = 50,
        **sampling: float | None,
    ) -> str:
        """The reply to a conversation, or to one message given as text.

        If the conversation outgrows the context, its oldest turns are left out whole and a
        `ContextWarning` says so.

        Args:
            messages: [{"role": "system" | "user" | "assistant", "content": text}, …]. Without a
                system message at its beginning, the one that the training data has is put there.
            stop: strings that end the reply; they are not part of it.
            sampling: further fields of `sampling.Sampling`: top_p, min_p, repetition_penalty.
        """
        settings = Sampling(temperature, top_k, **sampling)
        ids, limit, note = self.chat_prompt(messages, max_new_tokens)
        return self._told(
            self._texts([ids], [limit], settings, seed=seed, stop=stop, notes=[note])
        )[0].text

    def stream(
        self,
        messages: Messages | str,
        *,
        max_new_tokens: int = 256,
        seed: int = 0,
        stop: Sequence[str] = (),
        temperature: float = 0.7,
        top_k: int | None = 50,
        **sampling: float | None,
    ) -> Iterator[str]:
        """The same reply as `chat`, in pieces as they are written; joined they are equal."""
        settings = Sampling(temperature, top_k, **sampling)
        ids, limit, note = self.chat_prompt(messages, max_new_tokens)
        if note:
            warnings.warn(note, ContextWarning, stacklevel=2)
        return self.stream_ids(ids, limit, settings, seed=seed, stop=stop)

    def replies(
        self,
        conversations: Sequence[Messages | str],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 64,
    ) -> list[str]:
        """The likeliest (greedy) reply to each conversation; many at once, so fit for exams."""
        prompts, limits, notes = (
            zip(
                *_numbered(lambda c: self.chat_prompt(c, max_new_tokens), conversations),
                strict=True,
            )
            if conversations
            else ((), (), ())
        )
        replies = self._texts(
            prompts, limits, Sampling(temperature=0), batch_size=batch_size, notes=notes
        )
        return [reply.text for reply in self._told(replies)]

    def sft_sample(
        self,
        start: str = "你好呀",
        num_samples: int = 3,
        max_new_tokens: int = 256,
        temperature: float = 0.7,
        top_k: int | None = 50,
        *,
        seed: int = 0,
    ) -> list[str]:
        """Several replies to the same message, `start` (or the content of a file, as `FILE:path`)."""
        ids, limit, note = self.chat_prompt(_text_or_file(start), max_new_tokens)
        n = num_samples
        replies = self._texts(
            [ids] * n, [limit] * n, Sampling(temperature, top_k), seed=seed, notes=[note] * n
        )
        return [reply.text for reply in self._told(replies)]

    # ---- plain text

    def complete(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 128,
        seed: int = 0,
        stop: Sequence[str] = (),
        temperature: float = 1.0,
        top_k: int | None = None,
        **sampling: float | None,
    ) -> str:
        """What follows `prompt` in a document that begins so. Past the context the window slides,
        with a warning.
        """
        settings = Sampling(temperature, top_k, **sampling)
        return self._told(
            self.completions(
                [prompt], settings, max_new_tokens=max_new_tokens, seed=seed, stop=stop
            )
        )[0].text

    def pretrain_sample(
        self,
        start: str = "从前",
        num_samples: int = 3,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = 300,
        *,
        seed: int = 0,
    ) -> list[str]:
        """Several documents that begin with `start` (or the content of a file, as `FILE:path`),
        `start` included.
        """
        start = _text_or_file(start)
        replies = self.completions(
            [start] * num_samples,
            Sampling(temperature, top_k),
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        return [start + reply.text for reply in self._told(replies)]

    def completions(
        self,
        prompts: Sequence[str],
        sampling: Sampling | None = None,
        *,
        max_new_tokens: int = 128,
        seed: int = 0,
        stop: Sequence[str] = (),
        batch_size: int = 64,
        logprobs: bool = False,
    ) -> list[Reply]:
        """`complete` for many prompts at once; greedy unless `sampling` says otherwise."""
        ids = _numbered(self._text_prompt, prompts)
        return self._texts(
            ids,
            [max_new_tokens] * len(ids),
            sampling or Sampling(temperature=0),
            seed=seed,
            stop=stop,
            batch_size=batch_size,
            logprobs=logprobs,
        )

    def next_token_distribution(
        self,
        prompt: Messages | str,
        *,
        top: int = 20,
        temperature: float = 1.0,
        **sampling: float | None,
    ) -> tuple[list[str], list[float]]:
        """The `top` likeliest next tokens, likeliest first, and their probabilities after the
        filters of `sampling`.

        Args:
            prompt: a text to go on with, or messages to reply to.
        """
        settings = Sampling(temperature, **sampling)
        ids = (
            self._text_prompt(prompt) if isinstance(prompt, str) else self.chat_prompt(prompt, 1)[0]
        )
        with torch.inference_mode():
            logits = (
                self.model(torch.tensor([ids], device=self.model.lm_head.weight.device))[:, -1]
                .float()
                .cpu()
            )
            best = settings.probabilities(logits, [ids])[0].topk(
                min(top, self.model.config.vocab_size)
            )
        return [
            visible_token(self.tokenizer, i) for i in best.indices.tolist()
        ], best.values.tolist()

    # ---- prompts in, replies out

    def chat_prompt(
        self, messages: Messages | str, max_new_tokens: int
    ) -> tuple[list[int], int, str]:
        """(ids of the prompt, how many tokens the reply may have, note on turns left out).

        A quarter of the context is kept free for the reply, less if fewer tokens are asked for.

        Raises:
            ValueError: an empty or unknown message, or a last message that does not fit by itself.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not isinstance(messages, list | tuple) or not all(isinstance(m, dict) for m in messages):
            raise ValueError(
                "expected a text or a list of {'role': …, 'content': …} messages, found"
                f" {ascii(messages)[:60]}."
            )
        if not messages or not str(messages[-1].get("content", "")).strip():
            raise ValueError("the prompt is empty: expected a message with some text in it.")
        if messages[0].get("role") != "system":
            messages = [{"role": "system", "content": SYSTEM_PROMPT}, *messages]
        room = self.context - max(1, min(max_new_tokens, self.context // 4))
        chat = encode_chat(self.tokenizer, messages, max_length=room, add_generation_prompt=True)
        if chat.cut_tokens:
            what = (
                "system prompt"
                if len(encode_chat(self.tokenizer, messages[:1])) >= room
                else "last message"
            )
            raise ValueError(
                f"the {what} does not fit: it is {chat.cut_tokens} tokens too long for the context"
                f" of {self.context}, of which {self.context - room} are kept for the reply."
                " Shorten it."
            )
        note = ""
        if chat.dropped_turns:
            note = (
                f"the conversation outgrew the context of {self.context} tokens: "
                f"the oldest {chat.dropped_turns} messages were left out."
            )
        return chat.ids, min(max_new_tokens, self.context - len(chat.ids)), note

    def stream_ids(
        self,
        ids: list[int],
        max_new_tokens: int,
        sampling: Sampling,
        *,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """The text that follows the prompt `ids`, piece by piece."""
        for piece in self.write_ids(ids, max_new_tokens, sampling, seed=seed, stop=stop):
            if piece.note:
                warnings.warn(piece.note, ContextWarning, stacklevel=2)
            else:
                yield piece.text

    def write_ids(
        self,
        ids: list[int],
        max_new_tokens: int,
        sampling: Sampling,
        *,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[Written]:
        """`stream_ids` with the probability of each token; a note comes as a piece of its own."""
        text = TextStream(self.tokenizer, stop)
        dice = dice_for([ids], seed)
        written, waiting = 0, []  # `waiting`: probabilities of tokens whose text is not certain yet
        for _, token, logprob in stream_tokens(
            self.model, [ids], max_new_tokens, sampling, dice, logprobs=True
        ):
            if token in self.stop_ids:
                break
            written += 1
            waiting.append(math.exp(logprob))
            if piece := text.feed(token):
                yield Written(piece, tuple(waiting))
                waiting = []
            if text.stopped:
                return
        else:
            if len(ids) + written == self.context:
                yield Written("", note=CUT)
        if piece := text.close():
            yield Written(piece, tuple(waiting))

    def length(self, text: str) -> int:
        """Tokens of a text, to compare with `context`."""
        return len(encode_text(self.tokenizer, text))

    def _text_prompt(self, prompt: str) -> list[int]:
        ids = [*text_start(self.tokenizer), *encode_text(self.tokenizer, prompt)]
        if not prompt:
            raise ValueError(
                "the prompt is empty: give the first word of a text at least, for example 从前."
            )
        if len(ids) > self.context:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, the context holds {self.context}: shorten it."
            )
        return ids

    def _texts(
        self,
        prompts: Sequence[list[int]],
        limits: Sequence[int],
        sampling: Sampling,
        *,
        seed: int = 0,
        stop: Sequence[str] = (),
        notes: Sequence[str] = (),
        batch_size: int = 64,
        logprobs: bool = False,
    ) -> list[Reply]:
        """Generates in batches of prompts of similar length, so that little is padded; replies in
        the given order.
        """
        replies: dict[int, Reply] = {}
        is_chat = bool(
            notes
        )  # a chat's reply ends at the context's end; a plain text's window slides
        dice = dice_for(prompts, seed)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            streams = [TextStream(self.tokenizer, stop) for _ in rows]
            pieces: list[list[str]] = [[] for _ in rows]

            def read(row: int, token: int, streams=streams, pieces=pieces) -> bool:
                pieces[row].append(streams[row].feed(token))
                return streams[row].stopped

            generated = generate_batch(
                self.model,
                [prompts[i] for i in rows],
                [limits[i] for i in rows],
                sampling,
                [dice[i] for i in rows],
                stop_ids=self.stop_ids,
                logprobs=logprobs,
                on_token=read,
            )
            for i, out, stream, parts in zip(rows, generated, streams, pieces, strict=True):
                full = (
                    is_chat
                    and out.finish == "length"
                    and len(prompts[i]) + len(out.ids) == self.context
                )
                note = " ".join(
                    n for n in (notes[i] if is_chat else "", out.note, CUT if full else "") if n
                )
                text = "".join(parts) + stream.close()
                replies[i] = Reply(
                    text, len(out.ids), out.finish, note, out.logprobs if logprobs else None
                )
        return [replies[i] for i in range(len(prompts))]

    @staticmethod
    def _told(replies: list[Reply]) -> list[Reply]:
        """Warns of what did not fit; every public method that returns bare text ends with this."""
        for note in dict.fromkeys(reply.note for reply in replies if reply.note):
            warnings.warn(note, ContextWarning, stacklevel=3)
        return replies


def visible_token(tokenizer: PreTrainedTokenizerFast, token: int) -> str:
    """A token for the eye: its text, spaces and line ends made visible, or its bytes where they are
    no whole text.
    """
    if token >= len(tokenizer):
        return f"<no token {token}>"
    data = token_bytes(tokenizer, token)
    try:
        return data.decode().replace(" ", "␣").replace("\n", "⏎")
    except UnicodeDecodeError:
        return f"<{data.hex(' ')}>"


def _numbered(prompt: Callable, items: Sequence) -> list:
    """prompt(item) for each item; an error says which of several it was."""
    made = []
    for number, item in enumerate(items, 1):
        try:
            made.append(prompt(item))
        except ValueError as error:
            raise ValueError(
                f"prompt {number}: {error}" if len(items) > 1 else str(error)
            ) from None
    return made


def _text_or_file(start: str) -> str:
    if not start.startswith("FILE:"):
        return start
    path = Path(start.removeprefix("FILE:"))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is no file: after FILE: comes the path of a text file with the prompt."
        )
    return read_text_file(path).rstrip("\n")


def read_text_file(path: Path) -> str:
    """A UTF-8 file as text, without the byte order mark that some editors put at its beginning."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 from byte {error.start + 1} on: save it anew as UTF-8."
        ) from None
