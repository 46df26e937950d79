"""Training: documents to a `tokenizer/` folder.

Chinese has no spaces, so the usual pattern takes a run of Han characters for one "word", and BPE
learns tokens such as 的首都是. `WORDS` cuts the training text around function words, numerals and
line ends, and after `MAX_HAN` characters. A merge that was never learned cannot happen later, so
the saved tokenizer needs no such rule: an ordinary GPT-2-style one, which other programs can run.
"""

import tempfile
import warnings
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import chain
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import atomic_path, require_writable
from tinyllm_lib.tokenizer.encoding import (
    CHAT_TEMPLATE,
    ROLES,
    SPECIAL_TOKENS,
    why_no_bytes,
)
from tinyllm_lib.tokenizer.folder import load_tokenizer, save_tokenizer

FUNCTION_WORDS = "的是了在和与有为叫吗呢吧把被也就很不我你他她它们这那哪"
NUMERALS = "零一二三四五六七八九十百千万亿两"
MAX_HAN = 6
ALONE = FUNCTION_WORDS + NUMERALS
WORDS = rf"[\r\n]|\p{{N}}|[{ALONE}]|[\p{{Han}}&&[^{ALONE}]]{{1,{MAX_HAN}}}"
MAX_RUN = 80  # characters; the time of BPE training grows with the square of a piece's length
UP_TO = f"{{1,{MAX_RUN}}}"
RUNS = (  # GPT-2's pattern, which byte-level tokenizers encode with, but for the limit
    rf"'(?:s|t|re|ve|m|ll|d)| ?\p{{L}}{UP_TO}| ?\p{{N}}{UP_TO}|"
    rf" ?[^\s\p{{L}}\p{{N}}]{UP_TO}|\s{UP_TO}(?!\S)|\s{UP_TO}"
)
ROLE_COUNT = 20_000  # so often is each role's name counted, for it to become one token
SAMPLE_BYTES = 10**9  # of text to train on: more would hardly change the merges


def train_tokenizer(
    texts: Iterable[str],
    out_dir: str | Path,
    *,
    vocab_size: int = 6144,
    min_frequency: int = 2,
    nfkc: bool = False,
    words: str | None = WORDS,
    sample_bytes: int = SAMPLE_BYTES,
    show_progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Learns a byte-level BPE from `texts`, read once, and saves it as a Hugging Face folder.

    A folder with a tokenizer.json is whole: that file comes last.

    Args:
        texts: the whole corpus, however large; an even sample of it is trained on.
        vocab_size: five special tokens, the 256 bytes, and merges; a small text may give fewer.
        min_frequency: how often a pair must stand in the sample to be merged.
        nfkc: fold characters to their compatibility form first: lossy, ，１² become ,12.
        words: pattern of pieces that merges may not cross; None trains on whole runs of letters.
        sample_bytes: size of the sample in UTF-8; a smaller corpus is taken whole. It is held in
            memory, with every different piece of it.

    Raises:
        ValueError: vocab_size below 261, no text at all, or half of a surrogate pair in a text.
        PermissionError: the folder cannot be written; said before the texts are read.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(SPECIAL_TOKENS) + len(alphabet):
        needed = "five special tokens and 256 bytes make 261"
        raise ValueError(f"vocab_size={vocab_size} leaves no room: {needed}; choose more.")
    require_writable(folder := Path(out_dir))
    sample = even_sample(texts, sample_bytes)
    if (some := next(sample, None)) is None:
        raise ValueError("train_tokenizer got no text: an empty file, or a used-up iterator?")
    # In no document, but in every message's header:
    roles = ("\n".join([role] * ROLE_COUNT) for role in ROLES)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    if nfkc:
        tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = cut_into_pieces(words)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(alphabet),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(chain([some], sample, roles), trainer)
    if (size := tokenizer.get_vocab_size()) < vocab_size:
        warnings.warn(
            f"This text gives {size:,} entries, not {vocab_size:,}: no pair of tokens is left that"
            f" stands there {min_frequency} times. The tokenizer works; more text gives more.",
            stacklevel=2,
        )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<unk>",
        additional_special_tokens=["<s>", "</s>"],
        clean_up_tokenization_spaces=False,
        add_prefix_space=False,
        chat_template=CHAT_TEMPLATE,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as new:
        save_tokenizer(fast, new)
        for file in sorted(Path(new).iterdir(), key=lambda file: file.name == "tokenizer.json"):
            with atomic_path(folder / file.name) as temporary:
                file.replace(temporary)
    return load_tokenizer(folder)


def even_sample(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """At most `max_bytes` (in UTF-8) of the texts, drawn evenly from the whole stream.

    Those with the smallest hashes are kept, so the sample depends on the texts alone and not on
    their order. Memory is that of the sample, which is given back while it is read.
    """
    kept: list[tuple[int, str]] = []  # a heap, the largest hash first
    size, bar = 0, 2**64  # texts whose hash is not below the bar have no place any more
    for number, text in enumerate(texts, 1):
        if reason := why_no_bytes(text):
            raise ValueError(f"text {number}: {reason}")
        data = text.encode()
        rank = int.from_bytes(blake2b(data, digest_size=8).digest(), "big")
        if rank >= bar:
            continue
        heappush(kept, (-rank, text))
        size += len(data)
        while size > max_bytes and len(kept) > 1:
            worst, dropped = heappop(kept)
            size, bar = size - len(dropped.encode()), -worst
    while kept:
        yield kept.pop()[1]


def cut_into_pieces(words: str | None) -> pre_tokenizers.PreTokenizer:
    """Cuts text into the pieces that merges may not cross: by `words`, if given, then by `RUNS`."""
    patterns = [Regex(pattern) for pattern in (words, RUNS) if pattern]
    cuts = [pre_tokenizers.Split(pattern, "isolated") for pattern in patterns]
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*cuts, in_bytes])
