"""Training: documents to a `tokenizer/` folder.

Chinese has no spaces: uncut, BPE learns tokens such as 的首都是. `WORDS` cuts the training text,
and a merge that was never learned cannot happen: what is saved is as GPT-2's, and needs no `WORDS`.
"""

import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import atomic_path, require_writable
from tinyllm_lib.tokenizer.encoding import CHAT_TEMPLATE, ROLES, SPECIAL_TOKENS, checked
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


def train_tokenizer(
    texts: Iterable[str],
    out_dir: str | Path,
    *,
    vocab_size: int = 6144,
    nfkc: bool = False,
    words: str | None = WORDS,
) -> PreTrainedTokenizerFast:
    """Learns a byte-level BPE from `texts`, read once, and saves it as a Hugging Face folder.

    A folder with a tokenizer.json is whole: that file comes last.

    Args:
        texts: documents, streamed. Memory holds every different piece of them, so of a corpus of
            more than a gigabyte give every tenth or hundredth text: `islice(texts, 0, None, 100)`.
        vocab_size: five special tokens, the 256 bytes, and merges; a small text may give fewer.
        nfkc: fold characters to their compatibility form first: lossy, ，１² become ,12.
        words: pattern of pieces that merges may not cross; None trains on whole runs of letters.

    Raises:
        ValueError: vocab_size below 261, no text at all, or half of a surrogate pair in a text.
        PermissionError: the folder cannot be written; said before the texts are read.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(SPECIAL_TOKENS) + len(alphabet):
        raise ValueError(f"vocab_size={vocab_size} is too small: tags and bytes alone make 261.")
    require_writable(folder := Path(out_dir))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    if nfkc:
        tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = cut_into_pieces(words)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(texts), trainer)
    if (size := tokenizer.get_vocab_size()) < vocab_size:
        warnings.warn(f"This text gives {size:,} entries, not {vocab_size:,}.", stacklevel=2)
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


def _training_texts(texts: Iterable[str]) -> Iterator[str]:
    """The texts, and the roles, which stand in no document but in every message's header."""
    text = None
    for text in checked(texts):
        yield text
    if text is None:
        raise ValueError("train_tokenizer got no text: an empty file, or a used-up iterator?")
    for role in ROLES:
        yield "\n".join([role] * ROLE_COUNT)


def cut_into_pieces(words: str | None) -> pre_tokenizers.PreTokenizer:
    """Cuts text into the pieces that merges may not cross: by `words`, if given, then by `RUNS`."""
    patterns = [Regex(pattern) for pattern in (words, RUNS) if pattern]
    cuts = [pre_tokenizers.Split(pattern, "isolated") for pattern in patterns]
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*cuts, in_bytes])
