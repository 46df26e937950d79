"""A text that grows by one token at a time, and the settings that choose it."""

from __future__ import annotations

from html import escape

import numpy as np
import torch
from torch import Tensor

from tinyllm_lib.course.views import html
from tinyllm_lib.course.views.html import Candidate
from tinyllm_lib.generate import Sampling, TextGenerator
from tinyllm_lib.tokenizer import encode_text, token_bytes

TIPS = {
    "temperature": "0: always the likeliest; 1: the model's own; above: flatter",
    "top_k": "keep the k likeliest tokens",
    "top_p": "keep the fewest tokens that together have this probability",
    "min_p": "keep tokens at least this many times as likely as the likeliest",
    "repetition_penalty": "above 1: what stands in the text already gets less likely",
}
RANGES = {
    "temperature": ("Temperature", 0.0, 2.0, 0.05),
    "top_k": ("Top-k (0: off)", 0, 100, 1),
    "top_p": ("Top-p (1: off)", 0.05, 1.0, 0.05),
    "min_p": ("Min-p (0: off)", 0.0, 1.0, 0.02),
    "repetition_penalty": ("Repetition (1: off)", 1.0, 2.0, 0.05),
}
# name: label, low, high, step, tooltip; both ends included
SLIDERS = {name: (*row, TIPS[name]) for name, row in RANGES.items()}
CANDIDATES = 10  # next tokens that are shown


class Steps:
    """A prompt, the tokens chosen after it, and the distribution of the next one.

    Args:
        prompt: a text to go on with, or a message to reply to.
        chat: whether it is a message.
        chosen: ids of tokens that stand behind the prompt already.

    Raises:
        ValueError: an empty prompt, or one that does not fit the context.
    """

    def __init__(
        self,
        generator: TextGenerator,
        prompt: str,
        *,
        chat: bool = False,
        chosen: list[int] | None = None,
        seed: int = 0,
    ):
        self.generator = generator
        if chat:
            self.prompt_ids = generator.chat_prompt(prompt, 1)[0]
        else:
            self.prompt_ids = encode_text(generator.tokenizer, prompt)
        if not self.prompt_ids:
            raise ValueError("the prompt is empty: give a first word at least, for example 从前.")
        self.chosen = list(chosen or [])
        self.rng = np.random.default_rng(seed)
        self._logits: tuple[list[int], Tensor] | None = None  # a text, and what was computed for it
        if (size := len(self.ids)) > generator.context:
            told = f"the text has {size} tokens, the context holds {generator.context}."
            raise ValueError(told)

    @property
    def ids(self) -> list[int]:
        """The whole text."""
        return self.prompt_ids + self.chosen

    @property
    def end(self) -> str:
        """Why no token can follow, or nothing."""
        if self.chosen and self.chosen[-1] in self.generator.stop_ids:
            return "The model has ended the text here."
        return "The context is full." if len(self.ids) == self.generator.context else ""

    def pieces(self) -> list[bytes]:
        """The bytes of the chosen tokens."""
        return [token_bytes(self.generator.tokenizer, token) for token in self.chosen]

    def chances(self) -> list[float]:
        """How likely the model found each chosen token, after all that stood before it."""
        before = self._all_logits()[:-1].softmax(-1)  # (chosen, V)
        return before[range(len(self.chosen)), self.chosen].tolist()

    def candidates(self, sampling: Sampling, top: int = 10) -> list[Candidate]:
        """The likeliest next tokens under the model, each before and after the settings."""
        before, after = self._distributions(sampling)
        return [
            Candidate(token, token_bytes(self.generator.tokenizer, token), p, after[token].item())
            for p, token in zip(
                *map(Tensor.tolist, before.topk(min(top, len(before)))), strict=True
            )
        ]

    def kept(self, sampling: Sampling) -> int:
        """How many tokens the settings leave in the game."""
        return int((self._distributions(sampling)[1] > 0).sum())

    def draw(self, sampling: Sampling) -> int:
        """Draws the next token as the settings say and puts it behind the text; returns its id."""
        self._check_room()
        return self.take(int(sampling.choose(self._next_logits(), [self.ids], [self.rng])[0]))

    def take(self, token: int) -> int:
        """Puts this token behind the text."""
        self._check_room()
        size = len(self.generator.tokenizer)
        if not 0 <= token < size:
            raise ValueError(f"token id {token} is not in the vocabulary of {size}.")
        self.chosen.append(int(token))
        return int(token)

    def undo(self) -> None:
        """Takes the last chosen token back, if there is one."""
        del self.chosen[-1:]

    def _check_room(self) -> None:
        if self.end:
            raise ValueError(f"{self.end} Undo a step, or begin anew.")

    def _distributions(self, sampling: Sampling) -> tuple[Tensor, Tensor]:
        logits = self._next_logits()
        return logits[0].double().softmax(-1), sampling.probabilities(logits, [self.ids])[0]

    def _next_logits(self) -> Tensor:
        """(1, V): of the next token."""
        return self._all_logits()[-1:]

    @torch.inference_mode()
    def _all_logits(self) -> Tensor:
        """(chosen + 1, V) logits of each chosen token and of the next, computed once for a text."""
        ids = self.ids
        if self._logits is None or self._logits[0] != ids:
            batch = torch.tensor([ids], device=self.generator.model.lm_head.weight.device)
            hidden = self.generator.model.hidden_states(batch)[0, len(self.prompt_ids) - 1 :]
            self._logits = ids, self.generator.model.lm_head(hidden).float().cpu()
        return self._logits[1]


def settings(
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Sampling:
    """`Sampling` from the numbers of sliders, whose ends mean off: top_k 0, top_p 1, min_p 0,
    repetition_penalty 1.

    Raises:
        ValueError: a number outside its range.
    """
    top_p = None if top_p == 1 else top_p
    return Sampling(temperature, int(top_k) or None, top_p, min_p or None, repetition_penalty)


def in_words(sampling: Sampling) -> str:
    """For example "temperature 0.7, top-k 50"."""
    values = {"top-k": sampling.top_k, "top-p": sampling.top_p, "min-p": sampling.min_p}
    if sampling.repetition_penalty != 1:
        values["repetition"] = sampling.repetition_penalty
    filters = [f"{name} {value:g}" for name, value in values.items() if value]
    return ", ".join([f"temperature {sampling.temperature:g}", *filters])


def steps_html(steps: Steps, prompt: str, kept: int) -> str:
    """The text so far, its tokens with their probability, and how many the settings leave."""
    pieces, vocabulary = steps.pieces(), len(steps.generator.tokenizer)
    notes = [f"{p:.0%}" for p in steps.chances()]
    strip = html.token_strip(pieces, steps.chosen, notes=notes) if pieces else ""
    after = f'<span class="note">and {len(pieces)} tokens after it:</span>'
    said = steps.end or f"The settings leave {kept:,} of {vocabulary:,} tokens for the next step."
    said = f'<p class="note" role="status">{said}</p>'
    return html.frame(f"<p><b>{escape(prompt)}</b> {after}</p>{strip}{said}")
