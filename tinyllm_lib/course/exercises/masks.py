"""Exercises of notebook 03: datasets and masks."""

from __future__ import annotations

import tempfile

import numpy as np

from tinyllm_lib.course import get_workspace, prepare
from tinyllm_lib.course.exercises.exercise import NotYet, close, done, exercise, require
from tinyllm_lib.dataset import PackedDataset, write_pretrain_tokens
from tinyllm_lib.tokenizer import encode_chat

SETUP = """
from itertools import islice

from tinyllm_lib.course import get_workspace, prepare
from tinyllm_lib.course.exercises import check_exercise
from tinyllm_lib.data import read_texts
from tinyllm_lib.tokenizer import encode_chat, encode_text

ws = get_workspace()
tokenizer = prepare.tokenizer(ws)
texts = list(islice(read_texts(prepare.corpus_files(ws)["pretrain"]), 300))
"""

DIALOGUE = [
    {"role": "system", "content": "你是一个AI助手"},
    {"role": "user", "content": "法国的首都是哪里？"},
    {"role": "assistant", "content": "法国的首都是巴黎。"},
    {"role": "user", "content": "那日本呢？"},
    {"role": "assistant", "content": "日本的首都是东京。"},
]
WIDTHS = (32, 64, 128, 512)


@exercise('''
03.1 Only the last reply (10 minutes, easy)

Some recipes learn only the last reply of a dialogue. Write `last_reply_mask(messages)`: a list of 0
and 1, as long as the ids of `encode_chat`.

# hint:
`encode_chat(tokenizer, messages[:n])` gives the first tokens of `encode_chat(tokenizer,
messages)`, so its length says where message n begins. `encode_small` from above is another good
start.

# code for last_reply_mask:
def last_reply_mask(messages: list[dict]) -> list[int]:
    """1 for the tokens of the last reply and its <|im_end|>, else 0."""
    # stub:
    return None  # your turn
    # solution:
    last = max(n for n, message in enumerate(messages) if message["role"] == "assistant")
    begins = len(encode_chat(tokenizer, messages[:last]))
    mask = encode_chat(tokenizer, messages).loss_mask
    return [int(learned and at >= begins) for at, learned in enumerate(mask)]
''')
def _check_last_reply(last_reply_mask) -> str:
    tokenizer = prepare.tokenizer(get_workspace())
    for messages in (DIALOGUE, DIALOGUE[:3]):
        mask, chat = last_reply_mask(messages), encode_chat(tokenizer, messages)
        done(mask)
        if len(mask) != len(chat):
            raise NotYet(f"{len(mask)} values for {len(chat)} tokens; each token needs one")
        learned = tokenizer.decode(
            [number for number, on in zip(chat.ids, mask, strict=True) if on]
        )
        wanted = messages[-1]["content"] + "<|im_end|>"
        require(learned == wanted, f"learned is {learned!r}, it should be {wanted!r}")
    return "and <|im_end|> is learned too, or the model would never stop."


@exercise('''
03.2 Packing without sorting (15 minutes, medium)

`best_fit_small` needs all lengths at once. Write `next_fit(lengths, context)`, which takes
documents in their order and begins a new row when one does not fit into the current row. Return the
room left in each row, in order. Then try it on `[min(size - 1, context) for size in sizes]`: how
much more does it waste than `best_fit_small`?

# hint:
Only the last row can take a document. So one list of rooms is enough, and only its last entry
changes.

# code for next_fit:
def next_fit(lengths: list[int], context: int) -> list[int]:
    """The room left in each row."""
    # stub:
    return None  # your turn
    # solution:
    rooms = []
    for length in lengths:
        if not rooms or rooms[-1] < length:
            rooms.append(context)
        rooms[-1] -= length
    return rooms
''')
def _check_next_fit(next_fit) -> str:
    cases = (([7, 3, 5, 5, 2, 6, 4], [0, 0, 2, 6]), ([4, 10, 6], [6, 0, 4]), ([], []))
    for lengths, rooms in cases:
        found = next_fit(lengths, 10)
        done(found)
        if list(found) != rooms:
            raise NotYet(
                f"documents of {lengths} in rows of 10 leave room for {rooms}, not {found}"
            )
    return "it forgets each document at once. What that costs in padding, the two lists tell you."


@exercise("""
03.3 A longer row (25 minutes, hard)

How many documents does packing cut? Take rows of 32, 64, 128 and 512 positions, and both ways of
packing, and give for each the share of `texts` that lies in more than one row: four numbers from 0
to 1 for `best_fit`, four for `stream`. A document fills one position less than it has tokens,
`<|im_end|>` among them. `best_fit` cuts a document only if it is longer than a row. `stream` lays
all documents end to end in their order, and a row ends at every multiple of its width. What does a
row four times as long change?

# hint:
Without `<|im_end|>`, `len(encode_text(tokenizer, text))` is just the number of positions. For
`stream`, go through the documents and keep the position where each begins: its first and its last
position lie in the rows `begin // width` and `(begin + length - 1) // width`.

# code for cut_shares, texts:
# stub:
cut_shares = None  # your turn: {"best_fit": [four shares], "stream": [four shares]}
# solution:
# With <|im_end|> one token more, and one target less.
targets = [len(encode_text(tokenizer, text)) for text in texts]
cut_shares = {"best_fit": [], "stream": []}
for width in (32, 64, 128, 512):
    cut_shares["best_fit"].append(sum(length > width for length in targets) / len(targets))
    begin, torn = 0, 0
    for length in targets:
        last = begin + length - 1
        torn += begin // width != last // width  # first and last target in different rows
        begin = last + 1
    cut_shares["stream"].append(torn / len(targets))
""")
def _check_cut_shares(cut_shares, texts) -> str:
    done(cut_shares)
    for packing in ("best_fit", "stream"):
        mine = cut_shares.get(packing, ())
        if len(mine) != 4:
            raise NotYet(f"{packing} wants four shares, for rows of {WIDTHS}; found {len(mine)}")
        for width, share, found in zip(WIDTHS, _cut(texts, packing), mine, strict=True):
            if not close(found, share, 0.005):
                raise NotYet(f"{packing} in rows of {width} cuts {share:.1%}, you have {found:.1%}")
    return "best_fit cuts only what is longer than a row; stream cuts wherever a row ends."


def _cut(texts: list[str], packing: str) -> list[float]:
    """The share of documents in more than one row, counted in the library's rows of each width."""
    with tempfile.TemporaryDirectory() as folder:
        write_pretrain_tokens(texts, prepare.tokenizer(get_workspace()), folder)
        begins = np.fromfile(f"{folder}/shard_00000.offsets", np.uint64)
        shares = []
        for width in WIDTHS:
            packed = PackedDataset(folder, width, packing=packing)
            starts = [start for n in range(len(packed)) for _, start, _ in packed.rows[n]]
            pieces = np.bincount(np.searchsorted(begins, starts, side="right"))
            shares.append(float((pieces > 1).sum() / len(texts)))
        del packed
    return shares
