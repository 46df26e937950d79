"""The tokenizer: documents -> a `tokenizer/` folder; text <-> ids; a dialogue -> ids and loss mask.

A byte-level BPE: the alphabet is the 256 bytes, so every Unicode string has ids and comes back
unchanged. Two decisions are special to this project:

* **Where words end is decided while training, not while encoding.** Chinese has no spaces, so the
  usual pattern takes a whole run of Han characters for one "word", which lets BPE learn tokens such
  as 的首都是 and eats memory on text without punctuation. `WORDS` therefore cuts the training text
  around function words, numerals and line ends, and after `MAX_HAN` characters. A merge that was
  never learned cannot happen later: the saved tokenizer needs no cutting rule of its own, and stays
  an ordinary GPT-2-style one that other programs can run.
* **Text never becomes a special token.** `encode_text` reads `<|im_end|>` in a document as ten
ordinary characters.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.data import allowed_memory, atomic_path, require_writable
from tinyllm_lib.tokenizer.training_text import (
    BORDER,
    count_pieces,
    even_sample,
    in_lines,
    training_memory,
    why_no_bytes,
)

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
UNK_ID, BOS_TEXT_ID, EOS_TEXT_ID, IM_START_ID, IM_END_ID = range(5)
# padding is masked out by position, so it must not be a token that the model has to learn
PAD_ID = UNK_ID
ROLES = ("system", "user", "assistant")

SAMPLE_BYTES = 10**9  # of text to train on: more would hardly change the merges
MAX_HAN = 6
# of a model's vocabulary may have no token: some are rounded up to a multiple of 64 or 128
ROUNDED_UP = 0.02
ENCODING_BYTES = 400  # of memory for a character of text
ROLE_COUNT = 20_000  # so often does training count each role's name, for it to become one token
FUNCTION_WORDS = "的是了在和与有为叫吗呢吧把被也就很不我你他她它们这那哪"
NUMERALS = "零一二三四五六七八九十百千万亿两"
WORDS = rf"[\r\n]|\p{{N}}|[{FUNCTION_WORDS}{NUMERALS}]|[\p{{Han}}&&[^{FUNCTION_WORDS}{NUMERALS}]]{{1,{MAX_HAN}}}"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{# generation #}{{ message['content'] + '<|im_end|>' }}{# endgeneration #}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


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
    """Learns a byte-level BPE from `texts` (streamed, read once) and saves it as a Hugging Face
    tokenizer folder.

    A folder with a tokenizer.json is whole: that file comes last.

    Args:
        texts: the whole corpus, however large; an even sample of it is trained on.
        vocab_size: entries in all, at least 261: five special tokens and the 256 bytes, the rest
            merges. A small text may give fewer, with a warning; the tokenizer works, and what is
            made with it goes by its own size.
        nfkc: fold characters to their compatibility form first. Off by default, for it is lossy:
            ，１² become ,12.
        words: pattern of the pieces that merges may not cross while training; None trains on whole
            runs of letters.
        sample_bytes: size of the sample in UTF-8; a smaller corpus is taken whole. Memory at 1 GB
            of text: 2.4 GB (verse, in which nearly every line is new).

    Returns:
        The tokenizer, as `load_tokenizer(out_dir)` gives it.

    Raises:
        ValueError: vocab_size below 261, no text at all, or half of a surrogate pair in a text.
        PermissionError: the folder cannot be written; said before the texts are read.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(SPECIAL_TOKENS) + len(alphabet):
        raise ValueError(
            f"vocab_size={vocab_size} leaves no room: five special tokens and 256 bytes make 261;"
            " choose more."
        )
    require_writable(folder := Path(out_dir))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.CharDelimiterSplit(BORDER), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    fold = normalizers.NFKC().normalize_str if nfkc else str
    pieces = count_pieces(map(fold, even_sample(texts, sample_bytes)), words)
    if not pieces:
        raise ValueError(
            "train_tokenizer got no text: is the corpus file empty, or its iterator already"
            " used up?"
        )
    if (need := training_memory(pieces)) > (have := allowed_memory()):
        fits = int(
            have / need * sum(len(piece.encode()) * count for piece, count in pieces.items())
        )
        warnings.warn(
            f"Training on this text needs {need / 1e9:.1f} GB of memory by estimate, and this"
            " process may use "
            f'{have / 1e9:.1f} GB: where it ends without a word, or with "memory allocation'
            ' failed", pass '
            f"sample_bytes={fits:_} for a smaller sample.",
            stacklevel=2,
        )
    pieces.update(
        dict.fromkeys(ROLES, ROLE_COUNT)
    )  # in no document, but in the header of every message
    tokenizer.train_from_iterator(
        in_lines(pieces),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(alphabet),
            show_progress=show_progress,
        ),
    )
    if (size := tokenizer.get_vocab_size()) < vocab_size:
        warnings.warn(
            f"This text gives {size:,} entries, not {vocab_size:,}: no pair of tokens is left in it"
            f" that stands there {min_frequency} times. The tokenizer works, and its models will be"
            " as much smaller; more text gives more.",
            stacklevel=2,
        )
    tokenizer.pre_tokenizer = byte_level
    if nfkc:
        tokenizer.normalizer = normalizers.NFKC()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<unk>",
        additional_special_tokens=["<s>", "</s>"],
        clean_up_tokenization_spaces=False,
        add_prefix_space=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as new:
        save_tokenizer(fast, new)
        for file in sorted(
            Path(new).iterdir(), key=lambda file: file.name == "tokenizer.json"
        ):  # last: what has it is whole
            with atomic_path(folder / file.name) as temporary:
                file.replace(temporary)
    return load_tokenizer(out_dir)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Writes a tokenizer folder that transformers 4 and 5 load alike, with a chat template that any
    Jinja renders.
    """
    tokenizer.save_pretrained(str(folder))
    file = Path(folder) / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = (
        "PreTrainedTokenizerFast"  # 5 would name a class, and a field, that 4 does not know
    )
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for local in (
        "is_local",
        "local_files_only",
    ):  # how it was loaded here is nobody else's concern
        config.pop(local, None)
    file.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    for file in Path(folder).glob("**/*.jinja"):
        file.write_text(
            plain_template(file.read_text(encoding="utf-8")), encoding="utf-8", newline=""
        )


def plain_template(template: str) -> str:
    """A chat template whose `{% generation %}` tags, which only transformers knows, are comments;
    it renders the same text.
    """
    return re.sub(r"{%(-?)\s*((?:end)?generation)\s*(-?)%}", r"{#\1 \2 \3#}", template)


def marked_template(template: str) -> str:
    """The way back: with the tags from which transformers makes `assistant_masks`."""
    return re.sub(r"{#(-?) ((?:end)?generation) (-?)#}", r"{%\1 \2 \3%}", template)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Loads a tokenizer folder for a library that speaks ChatML and knows tokens as bytes.

    One without a chat template gets `CHAT_TEMPLATE`, one without an end token ends texts with
    `<|im_end|>`.

    Raises:
        FileNotFoundError: no tokenizer.json there.
        ValueError: a damaged file, another kind of tokenizer, `<|im_start|>` or `<|im_end|>`
            missing, another chat template.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json: train one with train_tokenizer (notebook 02), or pass"
            " the folder of a checkpoint, which carries its tokenizer."
        )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    except Exception as error:  # tokenizers raises bare ones
        raise ValueError(
            f"{folder}: the tokenizer's files are damaged ({error}): copy them from another"
            " checkpoint."
        ) from error
    try:
        check_chatml(tokenizer)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if not isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        found = type(tokenizer.backend_tokenizer.decoder).__name__
        raise ValueError(
            f"{folder}: the tokenizer's decoder is {found}, expected ByteLevel: this library reads"
            " tokens as bytes. A model with such a tokenizer can be trained from its weights with"
            " a tokenizer of this library only."
        )
    tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE
    tokenizer.eos_token = tokenizer.eos_token or "<|im_end|>"
    # Texts longer than the context are normal here: they are packed or cut later, and counted.
    logging.getLogger("transformers.tokenization_utils_base").addFilter(
        _no_length_warning
    )  # adding it twice is adding it once
    return tokenizer


def check_chatml(tokenizer: PreTrainedTokenizerFast) -> None:
    """Passes a tokenizer whose chat template, if it has one, writes the text that `encode_chat`
    writes.

    Raises:
        ValueError: `<|im_start|>` or `<|im_end|>` missing, or another template: a model learned to
            chat by that one.
    """
    missing = [t for t in ("<|im_start|>", "<|im_end|>") if t not in tokenizer.get_vocab()]
    if missing:
        raise ValueError(
            f"the tokenizer has no {' and no '.join(missing)}; this library speaks ChatML, so it"
            " needs both."
        )
    if not tokenizer.chat_template:
        return
    messages = [{"role": role, "content": f" {role} 说 "} for role in (*ROLES, "user")]
    wanted = (
        "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        + "<|im_start|>assistant\n"
    )
    try:
        found = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja's own, and whatever a template raises
        found = f"{type(error).__name__}: {error}"
    if found != wanted:
        raise ValueError(
            f"the tokenizer's chat template writes {found!r}, expected ChatML, {wanted!r}: this"
            " library chats by no other. To teach the model ChatML, take the template out of a"
            " copy of the folder (chat_template.jinja, and chat_template in"
            " tokenizer_config.json)."
        )


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """What `config.json` says of the tokenizer: the ids of its first, last and padding token, None
    where it has none.
    """
    return {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }


def stop_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids that end what a model writes: `<|im_end|>` first, `</s>` and the tokenizer's own end
    token.
    """
    vocabulary = tokenizer.get_vocab()
    return [
        vocabulary[name]
        for name in dict.fromkeys(("<|im_end|>", "</s>", tokenizer.eos_token))
        if name in vocabulary
    ]


def text_start(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What a tokenizer puts before every text by itself, as Llama's do with `<s>`; those of this
    library put nothing.
    """
    ids = tokenizer.backend_tokenizer.encode("a").ids
    return ids[: ids.index(encode_text(tokenizer, "a")[0])]


def text_end(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id after every text: the tokenizer's end token, `<|im_end|>` where it has none."""
    return stop_ids(tokenizer)[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def check_size(tokenizer: PreTrainedTokenizerFast, vocab_size: int, where: object) -> None:
    """Passes a tokenizer that fits a model's vocabulary: as large, or a little smaller, for some
    models round theirs up.

    Raises:
        ValueError: more tokens than the model knows, or so many fewer that it must be another
            tokenizer.
    """
    if not (1 - ROUNDED_UP) * vocab_size <= len(tokenizer) <= vocab_size:
        raise ValueError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens, the model was made for"
            f" {vocab_size}. A model works only with the tokenizer it was trained with: take that"
            " one (in training: leave tokenizer_path empty)."
        )


def _no_length_warning(record: logging.LogRecord) -> bool:
    return "sequence length is longer" not in record.getMessage()


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of everything that decides the ids; shards and checkpoints carry it."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def text_encoder(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The Rust tokenizer behind `encode_text`: same ids, but special tokens in the text stay text."""
    encoder = getattr(tokenizer, "_text_encoder", None)
    if encoder is None:
        encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        encoder.no_truncation()
        encoder.no_padding()
        encoder.encode_special_tokens = True
        tokenizer._text_encoder = encoder
    return encoder


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of `text` alone: nothing added, and a quoted `<|im_end|>` is encoded as its characters.

    Raises:
        ValueError: half of a surrogate pair in the text, which is no character and has no bytes.
    """
    try:
        return text_encoder(tokenizer).encode(text, add_special_tokens=False).ids
    except TypeError:
        raise ValueError(why_no_bytes(text)) from None


def encode_texts(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], *, first: int = 1
) -> list[list[int]]:
    """Ids of each text as `encode_text` gives them, on all cores at once. `first` is the first
    text's number in errors.
    """
    try:
        chars = sum(map(len, texts))
        if (need := ENCODING_BYTES * chars) > (have := allowed_memory()):
            warnings.warn(
                f"Encoding {chars:,} characters at once, from text {first} on, takes about"
                f" {need / 1e9:.1f} GB of memory, and this process may use {have / 1e9:.1f} GB:"
                " where it ends without a word, cut the longest documents before (split_text).",
                stacklevel=2,
            )
        return [
            encoding.ids
            for encoding in text_encoder(tokenizer).encode_batch_fast(
                texts, add_special_tokens=False
            )
        ]
    except TypeError:
        number, reason = next(
            (n, reason) for n, text in enumerate(texts, first) if (reason := why_no_bytes(text))
        )
        raise ValueError(f"text {number}: {reason}") from None


@dataclass(frozen=True)
class ChatEncoding:
    """A dialogue as the model sees it; `loss_mask[i]` is 1 where `ids[i]` is to be learned."""

    ids: list[int]
    loss_mask: list[int]
    dropped_turns: int = 0  # whole messages left out at the front to fit max_length
    cut_tokens: int = 0  # tokens of the last reply that did not fit
    cut_supervised: int = 0  # supervised tokens among everything left out

    def __len__(self) -> int:
        return len(self.ids)


def encode_chat(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[dict[str, str]],
    *,
    max_length: int | None = None,
    add_generation_prompt: bool = False,
) -> ChatEncoding:
    """Ids and loss mask of a dialogue, built together in one pass, message by message.

    System and user messages and all headers are 0; a reply and its `<|im_end|>` are 1; the newline
    after it is 0.

    Args:
        messages: [{"role": "system" | "user" | "assistant", "content": text}, ...] in any order.
        max_length: a longer dialogue loses whole messages from the front (never a leading system
            message); if the last exchange alone is too long, the tail of it is cut. What went is
            counted in the result.
        add_generation_prompt: end with `<|im_start|>assistant\\n`, for the model to go on.

    Raises:
        ValueError: an unknown role, content that is no string, no message at all, or a max_length
            without room for one token.
    """
    _check(messages)
    contents = [encode_text(tokenizer, message["content"]) for message in messages]
    return _join(tokenizer, messages, contents, max_length, add_generation_prompt)


def encode_chats(
    tokenizer: PreTrainedTokenizerFast,
    dialogues: list[list[dict[str, str]]],
    *,
    max_length: int | None = None,
    first: int = 1,
) -> list[ChatEncoding]:
    """`encode_chat` of each dialogue, on all cores at once. `first` is the first dialogue's number
    in errors.
    """
    for number, messages in enumerate(dialogues, first):
        _check(messages, f"dialogue {number}, ")
    contents = iter(
        encode_texts(
            tokenizer, [message["content"] for messages in dialogues for message in messages]
        )
    )
    return [
        _join(tokenizer, messages, [next(contents) for _ in messages], max_length)
        for messages in dialogues
    ]


def _check(messages: list[dict[str, str]], where: str = "") -> None:
    if not messages:
        raise ValueError(
            f"{where}encode_chat got an empty dialogue: expected at least one {{'role', 'content'}}"
            " message."
        )
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise ValueError(
                f"{where}message {number}: expected {{'role': …, 'content': …}}, found"
                f" {type(message).__name__}."
            )
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(
                f"{where}message {number}: expected a role of {', '.join(ROLES)} and text as"
                f" content, found role {role!r} and content of type {type(content).__name__}."
            )
        if reason := why_no_bytes(content):
            raise ValueError(f"{where}message {number}: {reason}")


def _join(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[dict[str, str]],
    contents: list[list[int]],
    max_length: int | None,
    add_generation_prompt: bool = False,
) -> ChatEncoding:
    """The ids of the messages' contents -> the dialogue, with its headers and mask, in at most
    `max_length` tokens.
    """
    headers, im_end, newline = _frame(tokenizer)

    def message_ids(role: str, content: list[int]) -> tuple[list[int], list[int]]:
        header, body = headers[role], [*content, im_end]
        learned = int(role == "assistant")
        return header + body + newline, [0] * len(header) + [learned] * len(body) + [0] * len(
            newline
        )

    parts = [
        message_ids(message["role"], content)
        for message, content in zip(messages, contents, strict=True)
    ]
    prompt = headers["assistant"] if add_generation_prompt else []
    if max_length is not None and max_length <= len(prompt):
        raise ValueError(
            f"max_length is {max_length}, expected more than {len(prompt)}: no token of the"
            " dialogue would fit."
        )
    limit = (max_length or sum(len(ids) for ids, _ in parts) + len(prompt)) - len(prompt)
    keep_first = int(messages[0]["role"] == "system" and len(messages) > 1)
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=keep_first)
    first, total, dropped_supervised = keep_first, sum(len(ids) for ids, _ in parts), 0
    while total > limit and first < last_user:
        end = first + 1
        while (
            end < last_user and messages[end]["role"] != "user"
        ):  # a turn goes whole: question and reply
            end += 1
        for ids, mask in parts[first:end]:
            total -= len(ids)
            dropped_supervised += sum(mask)
        first = end
    kept = [*parts[:keep_first], *parts[first:]]
    ids, mask = [t for part, _ in kept for t in part], [m for _, part in kept for m in part]
    cut = max(0, len(ids) - limit)
    return ChatEncoding(
        ids[:limit] + prompt,
        mask[:limit] + [0] * len(prompt),
        first - keep_first,
        cut,
        dropped_supervised + sum(mask[limit:]),
    )


def _frame(tokenizer: PreTrainedTokenizerFast) -> tuple[dict[str, list[int]], int, list[int]]:
    """What stands around contents: each role's header, `<|im_end|>`, and the newline after it."""
    frame = getattr(tokenizer, "_chat_frame", None)
    if frame is None:
        check_chatml(tokenizer)
        im_start, im_end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        headers = {role: [im_start, *encode_text(tokenizer, f"{role}\n")] for role in ROLES}
        frame = tokenizer._chat_frame = headers, im_end, encode_text(tokenizer, "\n")
    return frame


@lru_cache(maxsize=1)
def _byte_of_char() -> dict[str, int]:
    """The 256 printable characters that byte-level BPE writes bytes with (GPT-2's table),
    backwards.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def token_bytes(tokenizer: PreTrainedTokenizerFast, token_id: int) -> bytes:
    """The raw bytes of one token, which may be a part of a character; special and added tokens give
    their name's bytes.
    """
    token = tokenizer.convert_ids_to_tokens(int(token_id))
    if token is None:
        raise ValueError(f"token id {token_id} is not in the vocabulary of {len(tokenizer)}.")
    if int(token_id) in tokenizer.all_special_ids:
        return token.encode()
    table = _byte_of_char()
    return (
        bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()
    )  # an added token is its own text


def token_byte_lengths(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Bytes of text per token id, 0 for special tokens: turns nats per token into bits per byte."""
    special = set(tokenizer.all_special_ids)
    return [0 if i in special else len(token_bytes(tokenizer, i)) for i in range(len(tokenizer))]


def eval_tokenizer(folder: str | Path) -> dict:
    """Prints what a tokenizer folder holds and whether it gives text back unchanged; returns the
    same as a dict.
    """
    tokenizer = load_tokenizer(folder)
    messages = [
        {"role": "system", "content": "你是一个AI助手"},
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "我很好，谢谢！"},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    text = "天地玄黄，宇宙洪荒。１² ＡＢＣ\u3000e\u0301 👩‍🚀\n\n<|im_end|> 也只是文字。"
    report = {
        "vocab_size": len(tokenizer),
        "special_tokens": {
            token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS
        },
        "chat_template": rendered,
        "round_trip": tokenizer.decode(encode_text(tokenizer, text)) == text,
        "special_tokens_round_trip": tokenizer.decode(tokenizer(rendered)["input_ids"]) == rendered,
        "chat_agrees": (
            encode_chat(tokenizer, messages).ids
            == tokenizer.apply_chat_template(messages, return_dict=False)
        ),
    }
    print(f"vocabulary: {report['vocab_size']} tokens")
    print(
        "special tokens:",
        ", ".join(f"{token} = {i}" for token, i in report["special_tokens"].items()),
    )
    print("chat template:", json.dumps(rendered, ensure_ascii=False), sep="\n")
    print("text -> ids -> text is unchanged:", report["round_trip"])
    print(
        "special tokens -> ids -> special tokens are unchanged:",
        report["special_tokens_round_trip"],
    )
    print("encode_chat gives the chat template's ids:", report["chat_agrees"])
    return report
