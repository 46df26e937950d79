"""The loop that extends a batch of prompts, and how the model reads it: `decode` and `generate`."""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tinyllm_lib.generate.sampling import Sampling, sent
from tinyllm_lib.model import KVCache, Transformer
from tinyllm_lib.tokenizer import EOS_TEXT_ID, IM_END_ID

STOP_IDS = (IM_END_ID, EOS_TEXT_ID)  # of our tokenizers; `tokenizer.stop_ids` knows those of any
PLAIN = Sampling()
# cuDNN's attention makes a plan of some 50 ms for every new length (pytorch issue 155958).
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
ONE_AT_A_TIME = threading.Lock()  # PyTorch's choice of kernels, and a recording, are the process's
RECORDED_ON = ("cuda",)  # devices on which starting kernels takes longer than running them


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
    for ids, limit in zip(prompts, limits, strict=True):
        prompt = tuple(map(index, ids))  # a tensor's or NumPy's numbers, too
        rng = np.random.default_rng((index(seed) % 2**64, copies[prompt]))
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
    kept: dict[str, "_Reader"] | None = None,
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
    for _ in decode(model, rows, sampling, stop_ids, use_cache, kept):
        pass
    return rows


def decode(
    model: Transformer,
    rows: Sequence[Generated],
    sampling: Sampling,
    stop_ids: Sequence[int] = STOP_IDS,
    use_cache: bool = True,
    kept: dict[str, "_Reader"] | None = None,
) -> Iterator[Generated]:
    """Extends all rows by a token, again and again; yields each row that has a new one.

    Who has read enough of a row ends it: `row.finish = "stop"`. Where a text outgrows the context,
    its oldest quarter is left out, again and again, and the row's `note` says so.

    Args:
        stop_ids: a row ends before any of these.
        use_cache: False computes keys and values of earlier positions anew (same text, slower).
        kept: an empty dict, where what a GPU recorded waits for the next call with this dict.
    """
    context = model.config.max_seq_len
    for number, length in enumerate((len(row.prompt) for row in rows), 1):
        if not 0 < length <= context:
            raise ValueError(f"prompt {number} has {length} tokens, expected 1 to {context}.")
    made_for = (model, use_cache, [t.data_ptr() for t in (*model.parameters(), *model.buffers())])
    reader = kept.pop("reader", None) if kept else None
    if reader is None or reader.made_for != made_for:  # its recording knows where the weights lie
        reader = _Reader(*made_for)
    reader.rows = []
    try:
        while going := [row for row in rows if not row.ended]:
            logits = reader.next_logits(going)  # (rows, V)
            texts = [row.all_ids for row in going]
            chosen = sampling.choose(logits, texts, [row.rng for row in going])[:, None]
            logprobs = logits.log_softmax(-1).gather(1, chosen)
            found = torch.cat([chosen.double(), logprobs.double()], 1).tolist()  # a GPU's one wait
            if not all(math.isfinite(logprob) for _, logprob in found):
                raise ValueError("the logits are not finite: the weights hold NaN.")
            for row, text, (token, logprob) in zip(going, texts, found, strict=True):
                if token in stop_ids:
                    row.finish = "stop"
                    continue
                row.ids.append(int(token))
                row.logprobs.append(logprob)
                if start := window_start(len(text), context):
                    outgrew = f"the text outgrew the context of {context} tokens"
                    row.note = f"{outgrew}: its end was written without its first {start}."
                yield row
    finally:
        if kept is not None and reader.replay is not None:
            kept["reader"] = reader
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
    from each text's first token in view. Rows that ended leave the batch, except on a GPU: there a
    step is recorded as a CUDA graph and replayed (kernels are short, and starting each from Python
    takes longer), so all tensors keep shapes and places, and a mask says what the cache holds.
    """

    rows: list[Generated]  # of the batch
    padding: Tensor  # (B, 1) how far each text begins to the right
    cache: KVCache | None = None
    replay: Callable[[], None] | None = None  # the recorded step: `ids` at `slot` give `logits`

    def __init__(self, model: Transformer, use_cache: bool, places: list[int]):
        self.model, self.use_cache, self.made_for = model, use_cache, (model, use_cache, places)
        self.device, self.dtype = model.lm_head.weight.device, model.lm_head.weight.dtype

    @torch.inference_mode()
    def next_logits(self, going: list[Generated]) -> Tensor:
        """Logits (B, V) in fp32 of what follows each text of `going`, the rows not ended yet."""
        with ONE_AT_A_TIME, sdpa_kernel(KERNELS):
            if self.cache is None or not self.rows or self.cache.length == self.cache.capacity:
                logits = self._read_anew(going)
            else:
                logits = self._read_newest(going, self.cache)
        return (logits if logits.is_cuda else logits.cpu()).float()  # Apple's GPUs lack float64

    def _read_newest(self, going: list[Generated], cache: KVCache) -> Tensor:
        left = [i for i, row in enumerate(self.rows) if not row.ended]
        if len(left) < len(self.rows) and self.replay is None:
            self.rows, self.padding = going, self.padding[left]
            self.padded = bool(self.padding.any())
            cache.keys, cache.values = cache.keys[:, left], cache.values[:, left]
        newest = sent(torch.tensor([row.all_ids[-1:] for row in self.rows]), self.device)  # (B, 1)
        if self.replay is not None:
            self.ids.copy_(newest)
            self.slot.fill_(cache.length)
            self.replay()
            cache.length += 1
            return self.logits[sent(torch.tensor(left), self.device)]
        mask = self.columns[: cache.length + 1] >= self.padding if self.padded else None
        return self._logits(newest, cache.length - self.padding, mask)

    def _read_anew(self, going: list[Generated]) -> Tensor:
        """The last window of each text as a whole, into a cache with room for what is to come."""
        self.rows, context = going, self.model.config.max_seq_len
        texts = [row.all_ids for row in going]
        windows = [text[window_start(len(text), context) :] for text in texts]
        T = max(map(len, windows))
        to_read = max(row.limit - len(row.ids) for row in going) - 1  # the last one is never read
        self._make_room(len(going), min(context, T + to_read), to_read)
        offsets = [T - len(window) for window in windows]
        self.padding.copy_(torch.tensor(offsets)[:, None])
        self.padded = any(offsets)  # asking the tensor would wait for the GPU
        padded = [[0] * n + window for n, window in zip(offsets, windows, strict=True)]
        positions = self.columns[:T] - self.padding  # (B, T)
        ids = torch.tensor(padded, device=self.device)
        mask = positions >= 0 if self.padded else None
        return self._logits(ids, positions.clamp(min=0), mask)

    def _make_room(self, rows: int, capacity: int, to_read: int) -> None:
        """An empty cache: that of the recorded step if it has this batch and room, else a new one,
        and a new recording if it pays: to record takes as long as a few steps.
        """
        recorded_for = self.cache if self.replay and len(self.padding) == rows else None
        if recorded_for and recorded_for.capacity >= capacity:
            recorded_for.length = 0
            recorded_for.keys.zero_()  # what is masked must be numbers, too
            recorded_for.values.zero_()
            return
        self.cache, self.replay = None, None
        record = self.use_cache and self.device.type in RECORDED_ON and to_read >= 16
        if record:  # room to grow: not a new recording for each turn of a chat
            capacity = min(self.model.config.max_seq_len, max(64, 2 ** (capacity - 1).bit_length()))
        self.columns = torch.arange(capacity, device=self.device)
        self.padding, self.ids = torch.zeros(2, rows, 1, dtype=torch.long, device=self.device)
        if self.use_cache:
            options = {"device": self.device, "dtype": self.dtype}
            self.cache = KVCache(self.model.config, rows, capacity, **options)
        if record and self.cache is not None:
            self.slot = torch.zeros(1, dtype=torch.long, device=self.device)
            self.replay = recorded(partial(self._step, self.cache), self.device)

    def _step(self, cache: KVCache) -> None:
        """What is recorded; kernels take `ids`, `padding` and `slot` as they stand at a replay."""
        cache.slot = self.slot
        seen = (self.columns >= self.padding) & (self.columns <= self.slot)  # (B, capacity)
        self.logits = self._logits(self.ids, self.slot - self.padding, seen)
        cache.slot = None
        cache.length -= 1  # hidden_states counts on, and a replay does not

    def _logits(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        hidden_states, cache = self.model.hidden_states, self.cache
        x = hidden_states(ids, position_ids=positions, key_mask=mask, kv_cache=cache)
        return self.model.lm_head(x[:, -1])


def recorded(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`step` as a CUDA graph, to be replayed with what then stands in the same tensors."""
    with torch.cuda.device(device):
        side = side_stream(device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # CUDA asks for a few runs before, in another stream
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            step()
        return graph.replay


side_stream = cache(torch.cuda.Stream)  # each new one would keep a workspace of its own
