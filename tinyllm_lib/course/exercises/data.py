"""Exercises of notebook 01: raw text."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

from tinyllm_lib.course.exercises.exercise import NotYet, done, exercise, require
from tinyllm_lib.course.world import CorpusMix, write_sample_corpus
from tinyllm_lib.data import read_texts
from tinyllm_lib.evaluate import load_exam

SETUP = """
import json
from hashlib import blake2b

from tinyllm_lib.course.exercises import check_exercise
from tinyllm_lib.course.world import CorpusMix
"""


@exercise('''
01.1 Repair (5 minutes, easy)

Line 4 of the dirty file had its text under `"body"`. Write `repair`, which returns a line that
`read_texts` accepts if it can be saved in this way, and `None` otherwise. The check tries it on bad
lines of its own.

# hint:
`json.loads` raises a `ValueError` for what is no JSON, and for bytes that are no UTF-8. What it
returns need not be a dictionary, and what stands under `"body"` need not be text.

# code for repair:
def repair(line: bytes) -> bytes | None:
    """The line with its "body" as "text"; None where that does not help."""
    # stub:
    return None  # your turn
    # solution:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    body = row.get("body") if isinstance(row, dict) else None
    return json.dumps({"text": body}).encode() if isinstance(body, str) else None
''')
def _check_repair(repair) -> str:
    saved = '{"title": "冬天", "body": "下雪了。"}'.encode()
    done(repair(saved))
    hopeless = [
        b'{"text": "\xe7\xa7',
        '{"body": "中文"}'.encode("gb18030"),
        b'["a list"]',
        b'{"body": 42}',
        b'{"title": "none"}',
    ]
    for line in hopeless:
        found = repair(line)
        if found is not None:
            raise NotYet(f"{line!r} cannot be saved, so the answer is None; repair gave {found!r}")
    if not isinstance(repair(saved), bytes):
        raise NotYet(f"read_texts reads bytes; repair gave {type(repair(saved)).__name__}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mended.jsonl")
        path.write_bytes(repair(saved))
        texts = list(read_texts(path, max_rejected_share=1.0))
    require(
        texts == ["下雪了。"],
        f"from {repair(saved)!r} read_texts reads {texts}, wanted ['下雪了。']",
    )
    return "one line is saved, and what cannot be saved is not made up."


@exercise('''
01.2 Three parts (10 minutes, medium)

Write `part(text)` that gives "train", "val" or "test" in the shares 80%, 10%, 10%, from the text
alone, and so that every text of `is_validation(text, 0.1)` stays in "val".

# hint:
`is_validation` turns a text into a number, evenly spread from 0 to 2**64. It takes the lowest
tenth. Which tenth is still free?

# code for part:
def part(text: str) -> str:
    """The part, "train", "val" or "test": always the same for the same text."""
    # stub:
    return None  # your turn
    # solution:
    share = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    return "val" if share < 0.1 else "test" if share < 0.2 else "train"
''')
def _check_part(part) -> str:
    texts = [f"第{number}篇" for number in range(5000)]
    found = [part(text) for text in texts]
    done(*found)
    strange = set(found) - {"train", "val", "test"}
    if strange:
        raise NotYet(f'"train", "val" and "test" are the three parts; yours also gave {strange}')
    if found != [part(text) for text in texts]:
        raise NotYet("asked again, some texts are in another part: nothing but the text may count")
    wanted = {"train": 0.8, "val": 0.1, "test": 0.1}
    shares = {name: Counter(found)[name] / len(texts) for name in wanted}
    yours = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    near = all(abs(shares[name] - wanted[name]) < 0.02 for name in wanted)
    require(near, f"the shares should be 80%, 10% and 10%; yours are {yours}")
    old = _validation(texts)
    moved = [text for text, name in zip(texts, found, strict=True) if name != "val" and text in old]
    if moved:
        raise NotYet(
            f"{len(moved)} validation texts are not in val any more, the first is {moved[:1]}"
        )
    return "the training set has lost some texts, and no validation text was ever trained on."


@exercise("""
01.3 Another world (15 minutes, medium)

`CorpusMix()` holds one number for each kind of text, and each can be given another:
`CorpusMix(chat_sums=0.1)`. Numbers of one group are relative to each other: the kinds of
dialogues, whose names begin with `chat_`, share 100% in the ratio of their numbers. Make `my_mix`
like the course's mix but for two numbers, so that no entity is unnamed (`unnamed_share`) and half
of all dialogues are sums (`chat_sums`). The check writes a small corpus with it and tells you
which class is gone from the exam. Guess which.

# hint:
`CorpusMix().shares("chat_")` is a dictionary of the numbers of that group. Sums have half of the
dialogues when their number is the sum of all the others.

# code for my_mix:
# stub:
my_mix = None  # your turn: CorpusMix(…)
# solution:
others = sum(CorpusMix().shares("chat_").values()) - CorpusMix().chat_sums
my_mix = CorpusMix(unnamed_share=0, chat_sums=others)
""")
def _check_mix(mix) -> str:
    done(mix)
    require(isinstance(mix, CorpusMix), f"a CorpusMix is wanted, not {type(mix).__name__}")
    chat = mix.shares("chat_")
    share = chat["sums"] / sum(chat.values())
    if abs(share - 0.5) >= 0.01:
        raise NotYet(f"{share:.0%} of the dialogues are sums, half is wanted (shares are relative)")
    gone = _classes(CorpusMix()) - _classes(mix)
    if gone != {"fact_unnamed"}:
        raise NotYet(
            f"no entity should be unnamed; what has left the exam: {', '.join(gone) or 'nothing'}"
        )
    return (
        "fact_unnamed has left the exam: with every entity named somewhere, nothing is left to ask"
        " in that class."
    )


def _validation(texts: list[str]) -> set[str]:
    """The library's validation part: a tenth."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "texts.jsonl")
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
        return set(read_texts(path, split="val", val_share=0.1))


def _classes(mix: CorpusMix) -> set[str]:
    with tempfile.TemporaryDirectory() as folder:
        write_sample_corpus(folder, documents=100, dialogues=200, mix=mix)
        return {row["class"] for row in load_exam(Path(folder, "exam.jsonl"))}
