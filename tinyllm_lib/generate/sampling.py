"""From logits to a token: filters, applied in the order of this file and of transformers, and
`Sampling`, which draws. Each takes logits (B, V) and gives some where what it forbids is -inf.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def penalise_repetition(logits: Tensor, texts: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Makes tokens that the row's text holds already less likely (CTRL, Keskar et al. 2019).

    Positive logits are divided by `penalty`, negative ones multiplied, so that above 1 both fall.
    """
    if penalty == 1:
        return logits
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for row, text in zip(seen, texts, strict=True):
        row[torch.tensor(text)] = True
    less = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(sent(seen, logits.device), less, logits)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU's on `device`; a GPU gets it without a wait."""
    cuda = device.type == "cuda"
    return (tensor.pin_memory() if cuda else tensor).to(device, non_blocking=cuda)


def scale_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divides by `temperature` > 0: below 1 the likely gets likelier, above 1 all draw near."""
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k likeliest tokens (and what ties with the last of them)."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest tokens whose probabilities sum to p (nucleus, Holtzman et al. 2019)."""
    ascending, order = logits.sort()
    below = ascending.softmax(-1).cumsum(-1)  # probability of a token and all less likely ones
    drop = below <= 1 - p
    drop[:, -1] = False
    return logits.masked_fill(drop.scatter(1, order, drop), -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps tokens at least p times as likely as the likeliest: strict where the model is sure."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -math.inf)


@dataclass(frozen=True)
class Sampling:
    """How a text is written. The defaults draw from the model's own distribution; a ValueError
    names a number outside its range.
    """

    temperature: float = 1.0  # 0: always the likeliest token (greedy)
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0  # the same seed, the same text
    stop: Sequence[str] = ()  # strings that end a text and are no part of it

    def __post_init__(self) -> None:
        temperature, penalty = self.temperature, self.repetition_penalty
        is_fine = temperature is not None and (temperature == 0 or 1e-12 <= temperature < math.inf)
        share = "more than 0 and at most 1; None turns it off"
        for name, fine, expected in (
            ("temperature", is_fine, "0 (greedy), or such as 0.7"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more; None keeps every token"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, share),
            ("min_p", self.min_p is None or 0 < self.min_p <= 1, share),
            ("repetition_penalty", 1e-12 <= penalty < math.inf, "1e-12 or more; 1 is none"),
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
        ):
            if not fine:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {expected}.")

    def probabilities(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """What is drawn from, (B, V) float64, given logits (B, V) and each row's ids so far."""
        logits = penalise_repetition(logits, texts, self.repetition_penalty)
        if self.temperature == 0:
            likeliest = logits.argmax(-1, keepdim=True)
            return torch.zeros_like(logits, dtype=torch.float64).scatter(1, likeliest, 1.0)
        logits = scale_temperature(logits, self.temperature)
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits.double().softmax(-1)

    def choose(
        self, logits: Tensor, texts: Sequence[Sequence[int]], rngs: Sequence[np.random.Generator]
    ) -> Tensor:
        """One token (B,) for each row of logits (B, V), on their device; row i draws from rngs[i].

        Every token waits for a random time, exponentially distributed with its probability as the
        rate, and the first is chosen: token i with probability p_i. A token that rounding puts in
        or out of a filter disturbs no other, as it would in a look-up among summed probabilities.
        """
        if self.temperature == 0:
            return penalise_repetition(logits, texts, self.repetition_penalty).argmax(-1)
        uniform = torch.from_numpy(np.stack([rng.random(logits.shape[-1]) for rng in rngs]))
        rates = self.probabilities(logits, texts)  # (B, V)
        return (rates / -sent(uniform, logits.device).log()).argmax(-1)
