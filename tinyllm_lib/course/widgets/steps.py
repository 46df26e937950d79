"""A text that grows by one token at a time: what the sampling explorer shows, without Jupyter."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tinyllm_lib.course.widgets.views import Candidate
from tinyllm_lib.generate import Sampling, TextGenerator
from tinyllm_lib.tokenizer import encode_text, token_bytes


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
        self.prompt_ids = (
            generator.chat_prompt(prompt, 1)[0]
            if chat
            else encode_text(generator.tokenizer, prompt)
        )
        if not self.prompt_ids:
            raise ValueError(
                "the prompt is empty: give the first word of a text at least, for example 从前."
            )
        self.chosen = list(chosen or [])
        self.rng = np.random.default_rng(seed)
        self._logits: tuple[list[int], Tensor] | None = (
            None  # (text, what _all_logits gives for it)
        )
        if len(self.prompt_ids) + len(self.chosen) > generator.context:
            raise ValueError(
                f"the text has {len(self.prompt_ids) + len(self.chosen)} tokens, the context holds"
                f" {generator.context}."
            )

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
        """The likeliest next tokens under the model, likeliest first, each before and after the
        settings.
        """
        before, after = self._distributions(sampling)
        best = before.topk(min(top, len(before)))
        pieces = [token_bytes(self.generator.tokenizer, token) for token in best.indices.tolist()]
        rows = zip(
            best.indices.tolist(),
            pieces,
            best.values.tolist(),
            after[best.indices].tolist(),
            strict=True,
        )
        return [Candidate(*row) for row in rows]

    def kept(self, sampling: Sampling) -> int:
        """How many tokens the settings leave in the game."""
        return int((self._distributions(sampling)[1] > 0).sum())

    def draw(self, sampling: Sampling) -> int:
        """Draws the next token as the settings say and puts it behind the text; returns its id."""
        self._check_room()
        return self.take(sampling.choose(self._next_logits(), [self.ids], [self.rng])[0])

    def take(self, token: int) -> int:
        """Puts this token behind the text."""
        self._check_room()
        if not 0 <= token < len(self.generator.tokenizer):
            raise ValueError(
                f"token id {token} is not in the vocabulary of {len(self.generator.tokenizer)}."
            )
        self.chosen.append(int(token))
        return int(token)

    def undo(self) -> None:
        """Takes the last chosen token back; the next draw throws the dice again. Nothing happens
        before the first.
        """
        del self.chosen[-1:]

    def _check_room(self) -> None:
        if self.end:
            raise ValueError(f"{self.end} Undo a step, or begin anew.")

    def _distributions(self, sampling: Sampling) -> tuple[Tensor, Tensor]:
        logits = self._next_logits()
        return logits[0].double().softmax(-1), sampling.probabilities(logits, [self.ids])[0]

    def _next_logits(self) -> Tensor:
        """(1, V)"""
        return self._all_logits()[-1:]

    @torch.inference_mode()
    def _all_logits(self) -> Tensor:
        """(chosen + 1, V) logits of each chosen token and of the next; computed once for each text,
        so sliders move freely.
        """
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
    return Sampling(
        temperature,
        int(top_k) or None,
        None if top_p == 1 else top_p,
        min_p or None,
        repetition_penalty,
    )
