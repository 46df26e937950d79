"""Exercises of notebook 02: the tokenizer."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tinyllm_lib.course import get_workspace, prepare
from tinyllm_lib.course.exercises.exercise import NotYet, close, done, exercise, require
from tinyllm_lib.tokenizer import WORDS, encode_text, token_bytes, train_tokenizer

SETUP = """
import tempfile
from itertools import islice
from pathlib import Path

from tinyllm_lib.course import get_workspace, prepare
from tinyllm_lib.course.exercises import check_exercise
from tinyllm_lib.data import read_texts
from tinyllm_lib.tokenizer import WORDS, encode_text, token_bytes, train_tokenizer

ws = get_workspace()
tokenizer = prepare.tokenizer(ws)
sample = list(islice(read_texts(prepare.corpus_files(ws)["pretrain"]), 1000))
train_part, held_out = sample[:900], sample[900:]
scratch = tempfile.TemporaryDirectory()


def characters_per_token(tokenizer, texts):
    return sum(map(len, texts)) / sum(len(encode_text(tokenizer, text)) for text in texts)
"""

# What a small vocabulary has to spell in bytes.
STRANGE = ("我爱喝豆汁 😀", "法国的首都是巴黎。", "é", "한국어", "")
CUTS = {"WORDS": WORDS, "digits": r"[\r\n]|\p{N}", "none": None}


@exercise('''
02.1 Decode by hand (5 minutes, easy)

Write `decode_by_hand` with `token_bytes`: ids in, text out. Why can you not decode each token by
itself?

# hint:
`b"".join(…)` first, `.decode()` afterwards. The four bytes of 😀 may lie in four tokens, and none
of them alone is a character.

# code for decode_by_hand:
def decode_by_hand(ids: list[int]) -> str:
    """The text that was encoded as these ids."""
    # stub:
    return None  # your turn
    # solution:
    return b"".join(token_bytes(tokenizer, number) for number in ids).decode()
''')
def _check_decode(decode_by_hand) -> str:
    tokenizer = prepare.tokenizer(get_workspace())
    for text in STRANGE:
        found = decode_by_hand(encode_text(tokenizer, text))
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
02.2 The price of the function words (15 minutes, medium)

`WORDS` cuts the training text at function words, at digits, at line ends and after six characters,
and the text becomes longer in tokens. How much of that price is due to digits and line ends alone?
Train three tokenizers with 2,048 entries on `train_part`: with `words=WORDS`, with
`words=r"[\\r\\n]|\\p{N}"`, which cuts at line ends and digits only, and with `words=None`. Measure
the characters per token of each on `held_out`.

# hint:
The cell with the two curves has all you need: `train_tokenizer(train_part, folder, vocab_size=2048,
words=…)`, each into a folder of its own, and `characters_per_token`.

# code for my_ratios, train_part, held_out:
# stub:
my_ratios = None  # your turn: {"WORDS": …, "digits": …, "none": …}
# solution:
my_ratios = {}
for name, words in (("WORDS", WORDS), ("digits", r"[\\r\\n]|\\p{N}"), ("none", None)):
    folder = Path(scratch.name, name)
    trained = train_tokenizer(train_part, folder, vocab_size=2048, words=words)
    my_ratios[name] = characters_per_token(trained, held_out)
""")
def _check_ratios(my_ratios, train_part, held_out) -> str:
    done(my_ratios)
    if set(my_ratios) != set(CUTS):
        raise NotYet(f"the names are {', '.join(CUTS)}; yours are {', '.join(map(str, my_ratios))}")
    ratios = _characters_per_token(train_part, held_out)
    for name, found in my_ratios.items():
        if close(found, ratios[name], 0.005):
            continue
        if close(found, 1 / ratios[name], 0.005):
            raise NotYet(f"{name}: {found:.3f} is tokens per character, not characters per token")
        raise NotYet(f"{name}: {found} is not what this check measures, {ratios[name]:.3f}")
    price, digits = (ratios["none"] / ratios[name] - 1 for name in ("WORDS", "digits"))
    return f"all cuts cost {price:+.1%} tokens, digits and line ends alone {digits:+.1%}."


@exercise("""
02.3 Tokens that nobody uses (15 minutes, medium)

A token that never comes up in training is never read and never the right answer: a model learns
only not to write it. Suppose that `sample` were all that a model is trained on. Encode its
documents and find the ids that occur in none of them, without the five special tokens. Then look at
some with `token_bytes`: why are they in the vocabulary at all?

# hint:
Collect the ids that do occur in a `set`, one document after the other. `tokenizer.all_special_ids`
are the five.

# code for unused, sample:
# stub:
unused = None  # your turn: a set of ids
# solution:
used = set(tokenizer.all_special_ids)
for text in sample:
    used.update(encode_text(tokenizer, text))
unused = set(range(len(tokenizer))) - used
""")
def _check_unused(unused, sample) -> str:
    done(unused)
    tokenizer, unused = prepare.tokenizer(get_workspace()), set(unused)
    used = {number for text in sample for number in encode_text(tokenizer, text)}
    if special := unused & set(tokenizer.all_special_ids):
        raise NotYet(f"{min(special)} is the id of a special token: leave these out")
    if wrong := unused & used:
        where = next(text for text in sample if min(wrong) in encode_text(tokenizer, text))
        raise NotYet(f"id {min(wrong)} is used, for instance in {where[:40]!r}")
    wanted = set(range(len(tokenizer))) - used - set(tokenizer.all_special_ids)
    if missing := wanted - unused:
        raise NotYet(f"{len(missing):,} are missing, for instance {min(missing)}")
    return (
        f"{len(wanted):,} of {len(tokenizer):,}: {_kinds(tokenizer, wanted)}. With all bytes, all"
        " can be written; parts are steps to longer tokens; texts are of the rest of the corpus."
    )


def _characters_per_token(train_part: list[str], held_out: list[str]) -> dict[str, float]:
    """Of three tokenizers with 2,048 entries."""
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, words in CUTS.items():
            trained = train_tokenizer(train_part, Path(folder, name), vocab_size=2048, words=words)
            tokens = sum(len(encode_text(trained, text)) for text in held_out)
            ratios[name] = sum(map(len, held_out)) / tokens
    return ratios


def _kinds(tokenizer, numbers: set[int]) -> str:
    """How many of these tokens are single bytes, other parts of characters, or text."""
    single, parts, texts = 0, 0, 0
    for number in numbers:
        data = token_bytes(tokenizer, number)
        try:
            data.decode()
            texts += 1
        except UnicodeDecodeError:
            single, parts = single + (len(data) == 1), parts + (len(data) > 1)
    return f"{single} single bytes, {parts} other parts of characters, {texts} texts"
