"""From logits to tokens: the filters, and the loop that extends a batch of prompts.

Each filter takes logits (B, V) and gives logits (B, V) where what it forbids is -inf. They are
applied in the order in which they stand in this file, which is also that of transformers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tinyllm_lib.model import KVCache, Transformer, explaining_out_of_memory
from tinyllm_lib.tokenizer import EOS_TEXT_ID, IM_END_ID

STOP_IDS = (
    IM_END_ID,
    EOS_TEXT_ID,
)  # of this library's own tokenizers; `tokenizer.stop_ids` knows those of any
SMALLEST = (
    1e-12  # divided by less, logits run over into infinity, and infinities cannot be told apart
)
WRITE_LESS = (
    "ask for fewer texts at once (batch_size, num_samples) or shorter ones, or load the model with"
    " device='cpu'."
)


def penalise_repetition(logits: Tensor, texts: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Makes tokens that the row's text holds already less likely (CTRL, Keskar et al. 2019).

    Positive logits are divided by `penalty`, negative ones multiplied, so that above 1 both fall.
    """
    logits = logits.clone()
    for row, text in zip(logits, texts, strict=True):
        seen = torch.tensor(sorted(set(text)), device=logits.device)
        row[seen] = torch.where(row[seen] < 0, row[seen] * penalty, row[seen] / penalty)
    return logits


def scale_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divides by `temperature` > 0: below 1 the likely gets likelier, above 1 the distribution
    flattens.
    """
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k likeliest tokens (and what ties with the last of them)."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Nucleus sampling: keeps the fewest tokens whose probabilities sum to at least p (Holtzman et
    al. 2019).
    """
    ascending, order = logits.sort()
    below = ascending.softmax(-1).cumsum(-1)  # probability of a token and all less likely ones
    drop = below <= 1 - p
    drop[:, -1] = False
    return logits.masked_fill(drop.scatter(1, order, drop), -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps tokens at least p times as likely as the likeliest one: strict where the model is sure,
    lax where not.
    """
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -math.inf)


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The defaults sample from the model's own distribution.

    Raises:
        ValueError: a number outside its range.
    """

    temperature: float = 1.0  # 0: always the likeliest token (greedy)
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature is {self.temperature}, expected 0 (greedy) or more, for example 0.7."
            )
        if 0 < self.temperature < SMALLEST or 0 < self.repetition_penalty < SMALLEST:
            raise ValueError(
                f"temperature {self.temperature} and repetition_penalty {self.repetition_penalty}"
                f" divide the logits: expected {SMALLEST} or more; temperature 0 is greedy."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, expected 1 or more; None keeps every token.")
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if value is not None and not 0 < value <= 1:
                raise ValueError(
                    f"{name} is {value}, expected more than 0 and at most 1; None turns it off."
                )
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}, expected more than 0; 1 turns it"
                " off."
            )

    def probabilities(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """What is drawn from: (B, V) float64 of rows that sum to 1, from logits (B, V) and the
        texts so far.
        """
        if self.repetition_penalty != 1:
            logits = penalise_repetition(logits, texts, self.repetition_penalty)
        if self.temperature == 0:
            return torch.zeros_like(logits, dtype=torch.float64).scatter(
                1, logits.argmax(-1, keepdim=True), 1.0
            )
        if self.temperature != 1:
            logits = scale_temperature(logits, self.temperature)
        for keep, limit in (
            (keep_top_k, self.top_k),
            (keep_top_p, self.top_p),
            (keep_min_p, self.min_p),
        ):
            if limit is not None:
                logits = keep(logits, limit)
        return logits.double().softmax(-1)

    def choose(
        self, logits: Tensor, texts: Sequence[Sequence[int]], dice: Sequence[np.random.Generator]
    ) -> list[int]:
        """One token for each row of logits (B, V); row i draws from dice[i] alone, so no row
        disturbs another.

        Every token waits for a random time, exponentially distributed with its probability as the
        rate, and the first one is chosen: token i with probability p_i. Where rounding differs
        (another batch, no cache), a token at the edge of a filter may come or go; here that matters
        only if this very token is chosen. On the usual way, looking a number up among summed
        probabilities, it would shift all tokens behind it.
        """
        if self.temperature == 0:
            if self.repetition_penalty != 1:
                logits = penalise_repetition(logits, texts, self.repetition_penalty)
            return logits.argmax(-1).tolist()
        rates = self.probabilities(logits, texts)  # (B, V)
        waiting = -torch.from_numpy(
            np.stack([die.random(logits.shape[-1]) for die in dice])
        ).log()  # (B, V)
        return (rates / waiting).argmax(-1).tolist()


@dataclass
class Generated:
    """What one prompt grew into."""

    ids: list[int] = field(default_factory=list)  # the new tokens, without the one that stopped it
    finish: str = "length"  # "stop": a stop token or `on_token`; "length": max_new_tokens reached
    note: str = ""  # what the reader should know, e.g. that the window slid
    logprobs: list[float] = field(
        default_factory=list
    )  # log p(token) under the model itself, at temperature 1


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop_ids: Sequence[int] = STOP_IDS,
    use_cache: bool = True,
    static_cache: bool = False,
    logprobs: bool = False,
    on_token: Callable[[int, int], bool | None] | None = None,
) -> list[Generated]:
    """Extends each prompt token by token, all of them at once.

    A row's text depends on its prompt, the settings and the seed alone, not on what else is in the
    batch. If a prompt stands in the batch several times, each copy draws its own numbers: the n-th
    copy is the n-th sample.

    Where a text outgrows the context, its oldest quarter is left out, again and again, and the
    row's `note` says so.

    Args:
        prompts: token ids, each at least one and at most `max_seq_len` long.
        max_new_tokens: for all prompts, or one number each.
        temperature, top_k, top_p, min_p, repetition_penalty: see `Sampling`; temperature 0 takes
        the likeliest token. stop_ids: a row ends before any of these. use_cache: keep keys and
        values of earlier positions; False computes them anew each time (same text, slower).
        static_cache: steps whose shapes stay the same; on a GPU they are recorded as a CUDA graph
        and replayed. logprobs: also note each token's log-probability. on_token: called as
        on_token(row, token id) for each new token; True ends the row after it.

    Returns:
        One `Generated` for each prompt, in their order.

    Raises:
        ValueError: no token in a prompt, a prompt longer than the context, a setting outside its
            range.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    dice = dice_for(prompts, seed)
    return generate_batch(
        model,
        prompts,
        max_new_tokens,
        sampling,
        dice,
        stop_ids=stop_ids,
        use_cache=use_cache,
        static_cache=static_cache,
        logprobs=logprobs,
        on_token=on_token,
    )


def generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    sampling: Sampling,
    dice: Sequence[np.random.Generator],
    *,
    stop_ids: Sequence[int] = STOP_IDS,
    use_cache: bool = True,
    static_cache: bool = False,
    logprobs: bool = False,
    on_token: Callable[[int, int], bool | None] | None = None,
) -> list[Generated]:
    """`generate` with settings and random generators (one for each prompt) made before."""
    results = [Generated() for _ in prompts]
    ended: set[int] = set()
    stream = stream_tokens(
        model,
        prompts,
        max_new_tokens,
        sampling,
        dice,
        use_cache=use_cache,
        static_cache=static_cache,
        logprobs=logprobs,
        ended=ended,
    )
    for row, token, logprob in stream:
        result = results[row]
        if token not in stop_ids:
            result.ids.append(token)
            if logprobs:
                result.logprobs.append(logprob)
        if token in stop_ids or (on_token is not None and on_token(row, token)):
            result.finish = "stop"
            ended.add(row)
    for prompt, result in zip(prompts, results, strict=True):
        result.note = window_note(len(prompt) + len(result.ids), model.config.max_seq_len)
    return results


def stream_tokens(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    sampling: Sampling,
    dice: Sequence[np.random.Generator],
    *,
    use_cache: bool = True,
    static_cache: bool = False,
    logprobs: bool = False,
    ended: set[int] | None = None,
) -> Iterator[tuple[int, int, float]]:
    """Yields (row, token id, log-probability or 0) as tokens come; a row added to `ended` gets no
    more of them.
    """
    context = model.config.max_seq_len
    limits = (
        [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    )
    for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True), 1):
        if not len(prompt):
            raise ValueError(
                f"prompt {number} is empty: a model needs at least one token to go on from."
            )
        if len(prompt) > context:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens and the context holds {context}:"
                " shorten it."
            )
        if limit < 0:
            raise ValueError(f"max_new_tokens is {limit}, expected 0 or more.")
    texts = [list(prompt) for prompt in prompts]
    ended = set() if ended is None else ended
    ends = [len(text) + limit for text, limit in zip(texts, limits, strict=True)]
    reader = _Reader(model, texts, ends, use_cache, static_cache)
    while rows := [
        row for row in range(len(texts)) if row not in ended and len(texts[row]) < ends[row]
    ]:
        with explaining_out_of_memory("while writing", WRITE_LESS):
            logits = reader.next_logits(rows).float().cpu()  # (rows, V)
        if not logits.amax(-1).isfinite().all():
            raise ValueError(
                "the model's logits are not finite: its weights hold NaN or infinity. Use an"
                " earlier checkpoint."
            )
        tokens = sampling.choose(logits, [texts[row] for row in rows], [dice[row] for row in rows])
        logs = (
            logits.log_softmax(-1)[range(len(rows)), tokens].tolist()
            if logprobs
            else [0.0] * len(rows)
        )
        for row, token, log in zip(rows, tokens, logs, strict=True):
            texts[row].append(token)
            yield row, token, log


def dice_for(texts: Sequence[Sequence[int]], seed: int) -> list[np.random.Generator]:
    """A random generator for each row: a function of the seed and of how many equal prompts stand
    before it.
    """
    before: Counter[tuple[int, ...]] = Counter()
    dice = []
    for text in map(tuple, texts):
        dice.append(np.random.default_rng((seed % 2**64, before[text])))
        before[text] += 1
    return dice


def window_start(length: int, context: int) -> int:
    """First token that is still read of a text of `length` tokens: 0, or a multiple of a quarter of
    the context.
    """
    step = max(1, context // 4)
    return math.ceil(max(0, length - context) / step) * step


def window_note(length: int, context: int) -> str:
    """What to tell the reader of a text of `length` tokens; empty where all of it was in view to
    the end.
    """
    start = window_start(max(0, length - 1), context)
    return (
        f"the text outgrew the context of {context} tokens: its end was written without its first"
        f" {start}."
        if start
        else ""
    )


class _Reader:
    """Shows a batch of growing texts to the model, each position once as long as the cache has
    room.

    Texts are padded on the left, so that the newest token of every row stands in the last column;
    padding is masked out and positions count from each text's first token in view. Rows that ended
    leave the batch.
    """

    def __init__(
        self,
        model: Transformer,
        texts: list[list[int]],
        ends: list[int],
        use_cache: bool,
        static: bool,
    ):
        self.model, self.texts, self.ends, self.use_cache, self.static = (
            model,
            texts,
            ends,
            use_cache,
            static and use_cache,
        )
        self.device = model.model.embed_tokens.weight.device
        self.rows: list[int] = []
        self.cache: KVCache | None = None
        self.step: _StaticStep | None = None

    @torch.inference_mode()
    def next_logits(self, rows: list[int]) -> Tensor:
        """Logits (len(rows), V) of the token that follows each text."""
        if self.cache is None or self.cache.length == self.cache.capacity:
            return self._read_anew(rows)
        if self.static:  # rows that ended stay, so that the shapes do
            self.step = self.step or _StaticStep(self.model, self.cache, self.padding, self.real)
            return self.step.next_logits([self.texts[row][-1] for row in self.rows])[
                [self.rows.index(row) for row in rows]
            ]
        if rows != self.rows:
            self._keep(rows)
        ids = torch.tensor([[self.texts[row][-1]] for row in rows], device=self.device)
        S = self.cache.length + 1
        x = self.model.hidden_states(
            ids,
            position_ids=(S - 1) - self.padding[:, None],
            kv_cache=self.cache,
            key_mask=self.real[:, :S] if self.padded else None,
        )
        return self.model.lm_head(x[:, -1])

    def _read_anew(self, rows: list[int]) -> Tensor:
        context = self.model.config.max_seq_len
        windows = [self.texts[row][window_start(len(self.texts[row]), context) :] for row in rows]
        T = max(map(len, windows))
        to_come = (
            max(self.ends[row] - len(self.texts[row]) for row in rows) - 1
        )  # the last token is not read again
        capacity = min(context, T + to_come)
        self.rows, self.step = rows, None
        self.padding = torch.tensor(
            [T - len(window) for window in windows], device=self.device
        )  # (B,)
        self.real = (
            torch.arange(capacity, device=self.device) >= self.padding[:, None]
        )  # (B, capacity)
        self.padded = bool(self.padding.any())
        ids = torch.tensor(
            [[0] * (T - len(window)) + window for window in windows], device=self.device
        )  # (B, T)
        positions = (torch.arange(T, device=self.device) - self.padding[:, None]).clamp(min=0)
        if self.use_cache:
            dtype = self.model.model.embed_tokens.weight.dtype
            self.cache = KVCache(
                self.model.config, len(rows), capacity, device=self.device, dtype=dtype
            )
        x = self.model.hidden_states(
            ids,
            position_ids=positions,
            kv_cache=self.cache,
            key_mask=self.real[:, :T] if self.padded else None,
        )
        return self.model.lm_head(x[:, -1])

    def _keep(self, rows: list[int]) -> None:
        kept = torch.tensor([self.rows.index(row) for row in rows], device=self.device)
        self.cache.keys, self.cache.values = self.cache.keys[:, kept], self.cache.values[:, kept]
        self.padding, self.real, self.rows = self.padding[kept], self.real[kept], rows
        self.padded = bool(self.padding.any())


class _StaticStep:
    """One decoding step whose tensors keep their shapes and places, so that a GPU can record it and
    replay it.

    One token of a small model needs some hundred short kernels, and starting them one by one from
    Python takes longer than they run; a CUDA graph starts them together. The cache is read at its
    full capacity, and `seen` masks what is not filled yet. Where there is no GPU the step is
    computed like any other, with the same result.
    """

    def __init__(self, model: Transformer, cache: KVCache, padding: Tensor, real: Tensor):
        self.model, self.cache = model, cache
        self.ids = torch.zeros_like(padding)[:, None]  # (B, 1)
        self.positions = cache.length - padding[:, None]  # (B, 1)
        self.seen = real & (
            torch.arange(cache.capacity, device=padding.device) <= cache.length
        )  # (B, capacity)
        cache.slot = torch.tensor([cache.length], device=padding.device)
        self.replay = self._record() if padding.is_cuda else self._compute

    def next_logits(self, tokens: list[int]) -> Tensor:
        """Logits (B, V) of what follows each row's newest token; overwritten by the next call."""
        self.ids.copy_(torch.tensor(tokens)[:, None])
        self.replay()
        self.cache.length += 1
        self.positions += 1
        self.cache.slot += 1
        self.seen[:, self.cache.length : self.cache.length + 1] = True
        return self.logits

    def _compute(self) -> None:
        length = self.cache.length  # hidden_states counts on, and a replay does not
        hidden = self.model.hidden_states(
            self.ids, position_ids=self.positions, kv_cache=self.cache, key_mask=self.seen
        )
        self.logits = self.model.lm_head(hidden[:, -1])  # (B, V)
        self.cache.length = length

    def _record(self) -> Callable[[], None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            side
        ):  # a few runs before the recording, in a stream of their own, as CUDA asks for
            for _ in range(3):
                self._compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._compute()
        return graph.replay
