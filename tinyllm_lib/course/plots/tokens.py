"""What a token looks like, whoever draws it: pictures, panels and the demo's page."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from tinyllm_lib.course.plots.drawing import drawable_characters

Token = str | bytes
MARKS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\u3000": "␣␣"}


def has_glyph(char: str) -> bool:
    """Whether pictures can show a character: neither a control nor one that no font here has."""
    return ord(char) in drawable_characters() and unicodedata.category(char)[0] not in "CZM"


def visible(token: Token, can_show: Callable[[str], bool] = has_glyph) -> str:
    r"""A token as text that can be shown and told apart from others.

    A space becomes ␣, a line end ⏎, a tab ⇥, nothing at all ∅. Bytes that are no whole character,
    and characters that cannot be shown (emoji, controls), become hex: b"\xe4\xb8" -> ‹E4 B8›.
    """
    text = token.decode("utf-8", "surrogateescape") if isinstance(token, bytes) else token
    shown, pending = "", b""
    for char in text:
        if char not in MARKS and not can_show(char):
            escaped = 0xDC80 <= ord(char) <= 0xDCFF  # a byte that the decoder above could not use
            pending += char.encode("utf-8", "surrogateescape" if escaped else "surrogatepass")
            continue
        shown += _hex(pending) + MARKS.get(char, char)
        pending = b""
    return shown + _hex(pending) or "∅"


def _hex(data: bytes) -> str:
    return f"‹{data.hex(' ').upper()}›" if data else ""


def shared_characters(tokens: Sequence[Token]) -> list[tuple[range, str]]:
    """Spans of byte tokens that only together are valid UTF-8, with the text they make."""
    spans, start, pending = [], 0, b""
    for index, token in enumerate(tokens):
        if isinstance(token, str):
            pending = b""
            continue
        if not pending:
            start = index
        pending += token
        try:
            text = pending.decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":  # not the beginning of a character either
                pending = b""
            continue
        if index > start and text:
            spans.append((range(start, index + 1), text))
        pending = b""
    return spans
