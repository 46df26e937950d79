"""Exercises of notebook 02: the tokenizer."""

from __future__ import annotations

from tinyllm_lib.course import get_workspace, prepare
from tinyllm_lib.course.exercises.exercise import NotYet, done, exercise, require
from tinyllm_lib.tokenizer import encode_text

SETUP = """
import codecs
from itertools import islice

from tinyllm_lib.course import get_workspace, prepare
from tinyllm_lib.course.exercises import check_exercise
from tinyllm_lib.data import read_texts
from tinyllm_lib.tokenizer import encode_text, token_bytes

ws = get_workspace()
tok = prepare.tokenizer(ws)
held_out = list(islice(read_texts(prepare.corpus_files(ws)["pretrain"]), 300))
"""

# What a small vocabulary has to spell in bytes.
STRANGE = ("我爱喝豆汁 😀", "法国的首都是巴黎。", "é", "한국어", "")


@exercise('''
02.1 Decode by hand (5 minutes, easy)

Write `decode_by_hand` with `token_bytes`: ids in, text out. Why can you not decode each token by
itself?

# hint:
`b"".join(…)` first, `.decode()` afterwards. The bytes of 豆 may lie in two tokens, and neither of
them alone is a character.

# code for decode_by_hand:
def decode_by_hand(ids: list[int]) -> str:
    """The text that was encoded as these ids."""
    # stub:
    return None  # your turn
    # solution:
    return b"".join(token_bytes(tok, number) for number in ids).decode()
''')
def _check_decode(decode_by_hand) -> str:
    tok = prepare.tokenizer(get_workspace())
    for text in STRANGE:
        found = decode_by_hand(encode_text(tok, text))
        done(found)
        if not isinstance(found, str):
            raise NotYet(
                f"a text is wanted, not {type(found).__name__}: has .decode() been called?"
            )
        if "�" in found and found != text:
            raise NotYet(f"{text!r} came back as {found!r}: half a character; join all bytes first")
        require(found == text, f"{text!r} came back as {found!r}")
    return f"{len(STRANGE)} texts come back, also those whose characters lie in several tokens."


@exercise("""
02.2 The worst document (5 minutes, easy)

Find the document in `held_out` with the fewest characters per token. What is special about it?

# hint:
`min(…, key=…)` with the length of the text, divided by the number of its tokens.

# code for worst, held_out:
# stub:
worst = None  # your turn: one of the held-out documents
# solution:
worst = min(held_out, key=lambda text: len(text) / len(encode_text(tok, text)))
""")
def _check_worst(worst, held_out) -> str:
    done(worst)
    require(worst in held_out, f"{worst!r} is no document of held_out")
    tok = prepare.tokenizer(get_workspace())
    ratio = {text: len(text) / len(encode_text(tok, text)) for text in held_out}
    lowest = min(ratio.values())
    if ratio[worst] != lowest:
        raise NotYet(f"yours has {ratio[worst]:.2f} characters per token, another one {lowest:.2f}")
    return f"{lowest:.2f} characters per token: {worst!r}"


@exercise('''
02.3 While it streams (15 minutes, medium)

A chat program shows tokens as they come. Write `stream_text(ids)`, a generator that yields text as
soon as its bytes are complete and never before, so that no � appears in between. The pieces joined
must be the whole text.

# hint:
`codecs.getincrementaldecoder("utf-8")()` gives a decoder with a memory: its `decode(data)` returns
what is complete and keeps the rest for the next call.

# code for stream_text:
def stream_text(ids):
    """Yields text as soon as its bytes are there."""
    # stub:
    yield from ()  # your turn
    # solution:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for number in ids:
        if text := decoder.decode(token_bytes(tok, number)):
            yield text
''')
def _check_stream(stream_text) -> str:
    tok = prepare.tokenizer(get_workspace())
    done(next(iter(stream_text(encode_text(tok, STRANGE[0]))), None))
    for text in STRANGE:
        shown = list(stream_text(encode_text(tok, text)))
        if "�" in "".join(shown):
            raise NotYet(f"{shown}: a token was decoded before its last byte had come")
        if "".join(shown) != text:
            raise NotYet(f"{text!r} was shown as {shown}: what is held back must come in the end")
        late = _late(stream_text, encode_text(tok, text))
        if late is not None:
            raise NotYet(
                f"{late!r} was complete and not shown: yield before you read the next token"
            )
    return "each character appears with its last byte, as the library's TextStream does it."


def _late(stream_text, ids: list[int]) -> str | None:
    """What could have been shown, and was not, before the stream asked for one more token."""
    tok = prepare.tokenizer(get_workspace())
    shown, missing = "", []

    def watched():
        for end, number in enumerate(ids):
            complete = tok.decode(ids[:end]).rstrip("�")
            if len(complete) > len(shown):
                missing.append(complete[len(shown) :])
            yield number

    for text in stream_text(watched()):
        shown += text
    return missing[0] if missing else None
