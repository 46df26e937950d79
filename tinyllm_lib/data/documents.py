"""One line of a raw corpus to a document or a dialogue, or a `BadLine` that says what is wrong."""

import json
import re
from typing import Any

from tinyllm_lib.data.streams import BadLine

SYSTEM_PROMPT = "你是一个AI助手"
ROLES = {"human": "user", "assistant": "assistant"}
SENTENCE_END = re.compile(r"""[。！？!?；;…\n]+[”’」』）)》"']*|\.(?=\s)""")

Message = dict[str, str]


def _parse_object(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadLine("invalid UTF-8", f"byte {error.start + 1} of the line") from None
    except (ValueError, RecursionError) as error:
        raise BadLine("malformed JSON", str(error)) from None
    if not isinstance(record, dict):
        raise BadLine("not an object", f"found {type(record).__name__}")
    return record


def parse_text(raw: bytes) -> tuple[str, bytes]:
    """The document in a line, and the bytes that make two documents copies of each other."""
    record = _parse_object(raw)
    if "text" not in record:
        raise BadLine("missing text", _found(record))
    text = record["text"]
    if not isinstance(text, str):
        raise BadLine("text not a string", f"found {type(text).__name__}")
    if not text.strip():
        raise BadLine("empty document")
    return text, _encode(text)


def parse_dialogue(raw: bytes, system: str | None) -> tuple[list[Message], bytes]:
    """The dialogue in a line, and the bytes of its turns: neither `id` nor `system` counts."""
    messages = convert_message(_parse_object(raw), system=system)
    turns = messages if system is None else messages[1:]
    return messages, _encode(json.dumps(turns, ensure_ascii=False))


def convert_message(
    conversations: dict[str, Any] | list[dict[str, str]], system: str | None = SYSTEM_PROMPT
) -> list[Message]:
    """Turn BELLE's `conversations` (or the whole record) into messages with roles.

    `[{"from": "human", "value": "你好"}, {"from": "assistant", "value": "你好！"}]` becomes
    `[{"role": "system", "content": system}, {"role": "user", …}, {"role": "assistant", …}]`;
    without a system message if `system` is None.

    Raises:
        BadLine: unknown speaker, empty message, a dialogue that ends on the user (nothing to learn:
            only replies are supervised), or another shape than the above.
    """
    if isinstance(conversations, dict):
        if "conversations" not in conversations:
            raise BadLine("missing conversations", _found(conversations))
        conversations = conversations["conversations"]
    if not isinstance(conversations, list):
        found = type(conversations).__name__
        raise BadLine("malformed conversations", f"expected a list, found {found}")
    if not conversations:
        raise BadLine("empty dialogue")
    messages = [] if system is None else [{"role": "system", "content": system}]
    for number, message in enumerate(conversations, 1):
        match message:
            case {"from": "human" | "assistant" as speaker, "value": str(value)}:
                if not value.strip():
                    raise BadLine("empty message", f"message {number}, from {speaker}")
                messages.append({"role": ROLES[speaker], "content": value})
            case {"from": speaker, "value": str()}:
                detail = f"message {number}: {speaker!r:.40}, expected human or assistant"
                raise BadLine("unknown speaker", detail)
            case _:
                detail = f'message {number} is no object with "from" and a text as "value"'
                raise BadLine("malformed conversations", detail)
    if messages[-1]["role"] == "user":
        raise BadLine("ends on the user", f"{len(conversations)} messages, the last from human")
    return messages


def split_text(text: str, max_chars: int = 512) -> list[str]:
    """Cut a text into chunks of at most `max_chars` characters, at sentence ends where there are.

    Older recipes train on such chunks. No character is lost, but each chunk becomes a document of
    its own: the model never sees a sentence after what led to it, and learns that texts begin in
    the middle. A longer sentence is cut anywhere, perhaps inside a word or an emoji of several code
    points. Token shards with `PackedDataset` need no cutting.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars is {max_chars}, expected 1 or more")
    chunks: list[str] = []
    start = last_end = 0
    for end in [*(match.end() for match in SENTENCE_END.finditer(text)), len(text)]:
        while end - start > max_chars:
            cut = last_end if last_end > start else start + max_chars
            chunks.append(text[start:cut])
            start = cut
        last_end = end
    return [*chunks, text[start:]] if start < len(text) else chunks


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can write what UTF-8 and tokenizers cannot
        raise BadLine("lone surrogate", "half of a surrogate pair, such as \\ud83d alone") from None


def _found(record: dict[str, Any]) -> str:
    return f"found: {', '.join(list(record)[:5])}"[:80]
