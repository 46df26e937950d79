"""The loop that extends a batch of prompts, and how the model reads it: `decode` and `generate`."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyllm_lib.generate.sampling import Sampling
from tinyllm_lib.model import KVCache, Transformer
from tinyllm_lib.tokenizer import EOS_TEXT_ID, IM_END_ID

STOP_IDS = (IM_END_ID, EOS_TEXT_ID)  # of our tokenizers; `tokenizer.stop_ids` knows those of any
PLAIN = Sampling()


@dataclass
class Generated:
    """A prompt and what it grows into."""

    prompt: list[int]
    limit: int  # of new tokens
    rng: np.random.Generator = field(repr=False, compare=False)
    ids: list[int] = field(default_factory=list)  # the new tokens, without the one that stopped it
    finish: str = "length"  # "stop": a stop token or a stop string; "length": the limit was reached
    note: str = ""  # what the reader should know, e.g. that the window slid
    logprobs: list[float] = field(default_factory=list, compare=False)  # under the model itself
    text: str = ""  # of `ids`, where a `TextGenerator` wrote them

    @property
    def all_ids(self) -> list[int]:
        """The prompt and what follows it."""
        return self.prompt + self.ids

    @property
    def ended(self) -> bool:
        """Whether no token will follow."""
        return self.finish == "stop" or len(self.ids) >= self.limit


def rows_of(prompts: Sequence[Sequence[int]], limits: Sequence[int], seed: int) -> list[Generated]:
    """A row for each prompt; the n-th copy of a prompt has the n-th random generator of its own."""
    copies: Counter[tuple[int, ...]] = Counter()
    rows = []
    for prompt, limit in zip(map(tuple, prompts), limits, strict=True):
        rng = np.random.default_rng((seed % 2**64, copies[prompt]))
        copies[prompt] += 1
        rows.append(Generated(list(prompt), limit, rng))
    return rows


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling = PLAIN,
    limits: Sequence[int] | None = None,
    *,
    stop_ids: Sequence[int] = STOP_IDS,
    use_cache: bool = True,
    static_cache: bool = False,
    **fields: Any,
) -> list[Generated]:
    """Extends each prompt of token ids, all of them at once; options as in `decode` and `Sampling`.

    A row's text depends on its prompt, the settings and the seed alone, not on what else is in the
    batch; the n-th copy of a prompt is its n-th sample. `limits` says how many tokens may follow
    each prompt, if not `max_new_tokens`.
    """
    sampling = replace(sampling, **fields)
    limits = limits or [sampling.max_new_tokens] * len(prompts)
    rows = rows_of(prompts, limits, sampling.seed)
    for _ in decode(model, rows, sampling, stop_ids, use_cache, static_cache):
        pass
    return rows


def decode(
    model: Transformer,
    rows: Sequence[Generated],
    sampling: Sampling,
    stop_ids: Sequence[int] = STOP_IDS,
    use_cache: bool = True,
    static_cache: bool = False,
) -> Iterator[Generated]:
    """Extends all rows by a token, again and again; yields each row that has a new one.

    Who has read enough of a row ends it: `row.finish = "stop"`. Where a text outgrows the context,
    its oldest quarter is left out, again and again, and the row's `note` says so.

    Args:
        stop_ids: a row ends before any of these.
        use_cache: False computes keys and values of earlier positions anew (same text, slower).
        static_cache: steps of one shape, which a GPU records as a CUDA graph and replays.
    """
    context = model.config.max_seq_len
    for number, length in enumerate((len(row.prompt) for row in rows), 1):
        if not 0 < length <= context:
            raise ValueError(f"prompt {number} has {length} tokens, expected 1 to {context}.")
    reader = _Reader(model, use_cache, static_cache)
    while going := [row for row in rows if not row.ended]:
        logits = reader.next_logits(going).float().cpu()  # (rows, V)
        if not logits.amax(-1).isfinite().all():
            raise ValueError("the logits are not finite: the weights hold NaN.")
        texts = [row.all_ids for row in going]
        tokens = sampling.choose(logits, texts, [row.rng for row in going])
        logprobs = logits.log_softmax(-1)[range(len(going)), tokens].tolist()
        for row, text, token, logprob in zip(going, texts, tokens, logprobs, strict=True):
            if token in stop_ids:
                row.finish = "stop"
                continue
            row.ids.append(token)
            row.logprobs.append(logprob)
            if start := window_start(len(text), context):
                outgrew = f"the text outgrew the context of {context} tokens"
                row.note = f"{outgrew}: its end was written without its first {start}."
            yield row
    for row in rows:
        full = len(row.all_ids) == context and row.limit != sampling.max_new_tokens
        if full and row.finish == "length":
            row.note = "the text was cut: the context is full."


def window_start(length: int, context: int) -> int:
    """First token of `length` that is still read: 0, or a multiple of a quarter of the context."""
    step = max(1, context // 4)
    return math.ceil(max(0, length - context) / step) * step


class _Reader:
    """Shows growing texts to the model, each position once as long as the cache has room.

    Texts are padded on the left, so that the newest tokens stand in one column; positions count
    from each text's first token in view. Rows that ended leave the batch, unless it is `static`:
    then all tensors keep their shapes and places for a CUDA graph (kernels are short, and starting
    each from Python takes longer), and `seen` masks what the cache does not hold yet.
    """

    rows: list[Generated]
    padding: Tensor  # (B,) how far each text begins to the right
    real: Tensor  # (B, capacity) False where there is padding
    cache: KVCache | None = None

    def __init__(self, model: Transformer, use_cache: bool, static: bool):
        self.model, self.use_cache, self.static = model, use_cache, static
        self.device, self.dtype = model.lm_head.weight.device, model.lm_head.weight.dtype

    @torch.inference_mode()
    def next_logits(self, going: list[Generated]) -> Tensor:
        """Logits (B, V) of the token that follows each text of `going`, the rows not ended yet."""
        if self.cache is None or self.cache.length == self.cache.capacity:
            return self._read_anew(going)
        kept = [i for i, row in enumerate(self.rows) if not row.ended]
        if len(kept) < len(self.rows) and not self.static:
            self.rows, self.padding, self.real = going, self.padding[kept], self.real[kept]
            self.padded = bool(self.padding.any())
            self.cache.keys = self.cache.keys[:, kept]
            self.cache.values = self.cache.values[:, kept]
        past = self.cache.length
        newest = torch.tensor([row.all_ids[-1:] for row in self.rows], device=self.device)  # (B, 1)
        if self.static:
            return self._static_logits(self.cache, newest)[kept]
        mask = self.real[:, : past + 1] if self.padded else None
        return self._logits(newest, past - self.padding[:, None], mask)

    def _read_anew(self, going: list[Generated]) -> Tensor:
        """The last window of each text as a whole, into a cache with room for what is to come."""
        self.rows, config = going, self.model.config
        texts = [row.all_ids for row in going]
        windows = [text[window_start(len(text), config.max_seq_len) :] for text in texts]
        T = max(map(len, windows))
        to_read = max(row.limit - len(row.ids) for row in going) - 1  # the last one is never read
        capacity = min(config.max_seq_len, T + to_read)
        padding = [T - len(window) for window in windows]
        self.padding = torch.tensor(padding, device=self.device)
        self.padded = any(padding)  # asking the tensor would wait for the GPU
        positions = torch.arange(capacity, device=self.device) - self.padding[:, None]
        self.real = positions >= 0
        if self.use_cache:
            self.cache = KVCache(config, len(going), capacity, device=self.device, dtype=self.dtype)
        padded = [[0] * n + window for n, window in zip(padding, windows, strict=True)]
        ids = torch.tensor(padded, device=self.device)  # (B, T)
        mask = self.real[:, :T] if self.padded else None
        return self._logits(ids, positions[:, :T].clamp(min=0), mask)

    def _logits(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        hidden_states, cache = self.model.hidden_states, self.cache
        x = hidden_states(ids, position_ids=positions, key_mask=mask, kv_cache=cache)
        return self.model.lm_head(x[:, -1])

    def _static_logits(self, cache: KVCache, newest: Tensor) -> Tensor:
        """Logits (B, V) of what follows `newest` (B, 1); overwritten by the next call."""
        if cache.slot is None:  # the first step
            self.ids, self.positions = newest, cache.length - self.padding[:, None]  # (B, 1)
            filled = torch.arange(cache.capacity, device=self.device) <= cache.length
            self.seen = self.real & filled  # (B, capacity)
            cache.slot = torch.tensor([cache.length], device=self.device)
            step = partial(self._static_step, cache)
            self.replay = recorded(step) if newest.is_cuda else step
        self.ids.copy_(newest)
        self.replay()
        cache.length += 1
        cache.slot += 1
        self.positions += 1
        self.seen[:, cache.length : cache.length + 1] = True
        return self.logits

    def _static_step(self, cache: KVCache) -> None:
        self.logits = self._logits(self.ids, self.positions, self.seen)
        cache.length -= 1  # hidden_states counts on, and a replay does not


def recorded(step: Callable[[], None]) -> Callable[[], None]:
    """`step` as a CUDA graph, to be replayed with what then stands in the same tensors."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # CUDA asks for a few runs before, in another stream
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
