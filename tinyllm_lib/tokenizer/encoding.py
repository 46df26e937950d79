"""Text and dialogues to ids.

The alphabet is the 256 bytes, so every text has ids and comes back unchanged. Text never becomes a
special token: `<|im_end|>` in a document is encoded as ten characters.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
UNK_ID, BOS_TEXT_ID, EOS_TEXT_ID, IM_START_ID, IM_END_ID = range(5)
PAD_ID = UNK_ID  # padding is masked by position; its id must be none that a model has to learn
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (  # ChatML; comments mark what transformers calls the generation
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{# generation #}{{ message['content'] + '<|im_end|>' }}{# endgeneration #}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BYTE_OF_CHAR = {char: byte for byte, char in bytes_to_unicode().items()}  # as GPT-2 writes bytes


@lru_cache(maxsize=8)
def text_encoder(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The Rust tokenizer, for which special tokens in a text are text."""
    encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of `text` alone: nothing is added, and a quoted `<|im_end|>` is its characters.

    Half of a surrogate pair, which has no bytes, is a ValueError.
    """
    try:
        return text_encoder(tokenizer).encode(text, add_special_tokens=False).ids
    except TypeError:
        raise ValueError(why_no_bytes(text)) from None


def encode_texts(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], *, first: int = 1
) -> list[list[int]]:
    """`encode_text` of each text, on all cores at once; in errors they are counted from `first`."""
    texts = [*checked(texts, first)]
    encodings = text_encoder(tokenizer).encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


@dataclass(frozen=True)
class Sample:
    """A document or a dialogue as the model sees it."""

    ids: list[int]
    loss_mask: list[int]  # 1 where the id is to be learned, else 0
    dropped_turns: int = 0  # whole messages left out at the front to fit max_length
    cut_tokens: int = 0  # tokens at the end that did not fit
    cut_supervised: int = 0  # supervised tokens among everything left out

    def __len__(self) -> int:
        return len(self.ids)


def encode_documents(
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    *,
    max_length: int | None = None,
    first: int = 1,
) -> list[Sample]:
    """`encode_texts`, each between `text_start` and the end token."""
    start, end = text_start(tokenizer), tokenizer.eos_token_id
    samples = []
    for ids in encode_texts(tokenizer, texts, first=first):
        kept = [*start, *ids, end][:max_length]
        cut = len(start) + len(ids) + 1 - len(kept)
        samples.append(Sample(kept, [1] * len(kept), cut_tokens=cut, cut_supervised=cut))
    return samples


def checked(texts: Iterable[str], first: int = 1) -> Iterator[str]:
    """The texts, up to one that cannot be encoded, whose ValueError counts from `first`."""
    for number, text in enumerate(texts, first):
        if reason := why_no_bytes(text):
            raise ValueError(f"text {number}: {reason}")
        yield text


def why_no_bytes(text: object) -> str | None:
    """Why a text cannot be encoded, or None where it can."""
    if not isinstance(text, str):
        return f"expected text, found {type(text).__name__}."
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"character {error.start + 1} is {text[error.start]!a}, half of a surrogate pair"
        return f"{found}: mend or omit the text, as read_texts does (it rejects such lines)."
    return None


def encode_chat(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[dict[str, str]],
    *,
    max_length: int | None = None,
    add_generation_prompt: bool = False,
    contents: Sequence[list[int]] | None = None,
) -> Sample:
    """Ids and loss mask of a dialogue, built together in one pass, message by message.

    A reply and its `<|im_end|>` are learned; other messages, all headers and line ends are not.

    Args:
        messages: [{"role": "system" | "user" | "assistant", "content": text}, ...] in any order.
        max_length: a longer dialogue loses whole turns from the front, never a leading system
            message; where the last turn alone is too long, its tail is cut. Both are counted.
        add_generation_prompt: end with the header of a reply, for the model to go on.
        contents: the ids of each message's content, where they are known.

    Raises:
        ValueError: no message, one that `check_messages` refuses, no room for a single token.
    """
    if contents is None:
        check_messages(messages)
        contents = [encode_text(tokenizer, message["content"]) for message in messages]
    headers, im_end, newline = _frame(tokenizer)
    ids: list[int] = []
    loss_mask: list[int] = []

    def add(tokens: list[int], learned: bool = False) -> None:
        ids.extend(tokens)
        loss_mask.extend([int(learned)] * len(tokens))

    starts = []  # where each message begins
    for message, content in zip(messages, contents, strict=True):
        starts.append(len(ids))
        add(headers[message["role"]])
        add([*content, im_end], learned=message["role"] == "assistant")
        add(newline)

    prompt = headers["assistant"] if add_generation_prompt else []
    room = len(ids) if max_length is None else max_length - len(prompt)
    if room <= 0:
        raise ValueError(f"max_length is {max_length}, expected more than {len(prompt)}.")
    # A leading system message stays; the rest may begin right after it, or with any question.
    system = int(messages[0]["role"] == "system" and len(messages) > 1)
    begins = [system] + [i for i, m in enumerate(messages) if i > system and m["role"] == "user"]
    fitting = (i for i in begins if len(ids) - (starts[i] - starts[system]) <= room)
    first = next(fitting, begins[-1])
    supervised = sum(loss_mask)
    del ids[starts[system] : starts[first]], loss_mask[starts[system] : starts[first]]
    cut_tokens = max(0, len(ids) - room)
    del ids[room:], loss_mask[room:]
    cut_supervised = supervised - sum(loss_mask)
    add(prompt)
    return Sample(ids, loss_mask, first - system, cut_tokens, cut_supervised)


def encode_chats(
    tokenizer: PreTrainedTokenizerFast,
    dialogues: list[list[dict[str, str]]],
    *,
    max_length: int | None = None,
    first: int = 1,
) -> list[Sample]:
    """`encode_chat` of each dialogue, on all cores; in errors they are counted from `first`."""
    for number, messages in enumerate(dialogues, first):
        check_messages(messages, f"dialogue {number}, ")
    texts = [message["content"] for messages in dialogues for message in messages]
    ids = iter(encode_texts(tokenizer, texts))
    contents = ([next(ids) for _ in messages] for messages in dialogues)
    return [
        encode_chat(tokenizer, messages, max_length=max_length, contents=parts)
        for messages, parts in zip(dialogues, contents, strict=True)
    ]


def check_messages(messages: list[dict[str, str]], where: str = "") -> None:
    """Passes a dialogue that can be encoded; the ValueError of another names the message."""
    if not messages:
        raise ValueError(f"{where}an empty dialogue: expected at least one message.")
    for number, message in enumerate(messages, 1):
        match message:
            case {"role": role, "content": str(text)} if role in ROLES:
                problem = why_no_bytes(text)
            case _:
                problem = f"expected a role of {', '.join(ROLES)} and text, found {message!r:.80}."
        if problem:
            raise ValueError(f"{where}message {number}: {problem}")


@lru_cache(maxsize=8)
def _frame(tokenizer: PreTrainedTokenizerFast) -> tuple[dict[str, list[int]], int, list[int]]:
    """What stands around contents: each role's header, `<|im_end|>`, and the newline after it."""
    check_chatml(tokenizer)
    vocabulary = tokenizer.get_vocab()
    im_start, im_end = vocabulary["<|im_start|>"], vocabulary["<|im_end|>"]
    headers = {role: [im_start, *encode_text(tokenizer, f"{role}\n")] for role in ROLES}
    return headers, im_end, encode_text(tokenizer, "\n")


def check_chatml(tokenizer: PreTrainedTokenizerFast, where: str = "") -> None:
    """Passes a tokenizer whose chat template, if it has one, writes the text `encode_chat` encodes.

    Another is a ValueError: a model learned to chat by it. So is a missing `<|im_start|>`.
    """
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in SPECIAL_TOKENS[3:] if token not in vocabulary]:
        raise ValueError(f"{where}the tokenizer has no {' and no '.join(missing)}, as in ChatML.")
    messages = [{"role": role, "content": f" {role} 说 "} for role in (*ROLES, "user")]
    render = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    wanted = render(messages, chat_template=CHAT_TEMPLATE)
    if tokenizer.chat_template and (found := render(messages)) != wanted:
        raise ValueError(
            f"{where}the tokenizer's chat template writes {found!r}, expected ChatML, {wanted!r}:"
            " this library chats by no other; take the template out of a copy to teach ChatML."
        )


def text_start(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What a tokenizer puts before every text by itself: Llama's `<s>`; this library's nothing."""
    ids = tokenizer.backend_tokenizer.encode("a").ids
    return ids[: ids.index(encode_text(tokenizer, "a")[0])]


def stop_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What ends a model's text: `<|im_end|>` first, `</s>` and the tokenizer's own end token."""
    vocabulary = tokenizer.get_vocab()
    names = dict.fromkeys(("<|im_end|>", "</s>", tokenizer.eos_token))
    return [vocabulary[name] for name in names if name in vocabulary]


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """What a model's `config.json` says of its tokenizer; None for a token that it has not."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def token_bytes(tokenizer: PreTrainedTokenizerFast, token_id: int) -> bytes:
    """The bytes of a token, perhaps part of a character; a special or added one is its own text."""
    token = tokenizer.backend_tokenizer.id_to_token(int(token_id))
    if token is None:
        raise ValueError(f"token id {token_id} is not in the vocabulary of {len(tokenizer)}.")
    if token_id in tokenizer.all_special_ids or not BYTE_OF_CHAR.keys() >= set(token):
        return token.encode()
    return bytes(BYTE_OF_CHAR[char] for char in token)


def token_byte_lengths(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Bytes of text per token id, 0 for special tokens: turns nats per token into bits per byte."""
    special = set(tokenizer.all_special_ids)
    return [0 if i in special else len(token_bytes(tokenizer, i)) for i in range(len(tokenizer))]
