"""Exercises of notebook 08: sharing."""

from __future__ import annotations

from itertools import zip_longest

import torch

from tinyllm_lib.course import get_workspace, prepare
from tinyllm_lib.course.exercises.exercise import NotYet, close, done, exercise, require

SETUP = """
import torch

from tinyllm_lib.course.exercises import check_exercise
"""

DIALOGUE = [
    {"role": "system", "content": "你是一个AI助手"},
    {"role": "user", "content": "法国的首都是哪里？"},
    {"role": "assistant", "content": "法国的首都是巴黎。"},
    {"role": "user", "content": "  那日本呢？\n"},
]


@exercise('''
08.1 The way back (10 minutes, easy)

`permute` of section 3 puts the even places of a vector first. Write its inverse: from the two
halves back to neighbours. It is what `export_gguf` does to your query matrices.

# hint:
`torch.stack` of the two halves along a new last dimension lays members of a pair beside each other;
`flatten` does the rest.

# code for unpermute:
def unpermute(x: torch.Tensor) -> torch.Tensor:
    """The inverse of `permute`."""
    # stub:
    return None  # your turn
    # solution:
    return torch.stack(x.chunk(2), dim=1).flatten()
''')
def _check_unpermute(unpermute) -> str:
    for size in (8, 32):
        x = torch.arange(size)
        permuted = torch.cat([x[0::2], x[1::2]])
        found = unpermute(permuted)
        done(found)
        if torch.equal(found, torch.cat([permuted[0::2], permuted[1::2]])):
            raise NotYet(
                "that is `permute` itself, which twice leads back for two pairs, not for more"
            )
        if not torch.equal(found, x):
            raise NotYet(
                f"permute(0 … {size - 1}) should become 0 … {size - 1}, not {found.tolist()}"
            )
    return "llama.cpp would read your query matrices."


@exercise("""
08.2 How many bits? (10 minutes, medium)

In `q8_0`, 32 weights cost 32 bytes and a 2-byte scale. The format `q4_0` keeps half a byte for each
of 32 weights, and a 2-byte scale. How many bits a weight is that, and how many GB (10⁹ bytes) would
the weights of a model of 7 billion parameters take?

# hint:
Count the bytes of one block of 32 weights first. A byte is 8 bits.

# code for my_bits, my_gigabytes:
# stub:
my_bits, my_gigabytes = None, None  # two numbers
# solution:
my_bits = (32 / 2 + 2) * 8 / 32
my_gigabytes = 7e9 * my_bits / 8 / 1e9
""")
def _check_bits(my_bits, my_gigabytes) -> str:
    done(my_bits, my_gigabytes)
    if close(my_bits, 4, 1e-6):
        raise NotYet("4 bits is the weight alone; the scale that 32 share costs something too")
    if not close(my_bits, 4.5, 1e-6):
        raise NotYet(f"a block has 18 bytes for 32 weights, which is not {my_bits} bits a weight")
    require(not close(my_gigabytes, 31.5, 0.1), "31.5 is in gigabits: a byte is 8 bits")
    if not close(my_gigabytes, 3.94, 0.05):
        raise NotYet(f"7 billion weights of {my_bits} bits are not {my_gigabytes} GB")
    return "it fits a laptop."


@exercise('''
08.3 The template by hand (15 minutes, medium)

Write `chatml(messages)`: the text that the chat template makes of messages, ready for a reply.
Every program of this notebook does exactly this before it sees a single id.

# hint:
Print `their_tok.apply_chat_template(question, tokenize=False, add_generation_prompt=True)` with
`repr`, so that you see the line ends.

# code for chatml:
def chatml(messages: list[dict]) -> str:
    """Messages -> text, with the header of the reply at its end."""
    # stub:
    return None  # your turn
    # solution:
    said = "".join(f"<|im_start|>{m['role']}\\n{m['content']}<|im_end|>\\n" for m in messages)
    return said + "<|im_start|>assistant\\n"
''')
def _check_chatml(chatml) -> str:
    tok = prepare.tokenizer(get_workspace())
    for messages in (DIALOGUE[:2], DIALOGUE):
        found = chatml(messages)
        wanted = tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        done(found)
        if found == wanted:
            continue
        if found + "<|im_start|>assistant\n" == wanted:
            raise NotYet("the header of the reply is missing at the end")
        at = next(i for i, (a, b) in enumerate(zip_longest(found, wanted)) if a != b)
        theirs, yours = wanted[at : at + 20], found[at : at + 20]
        raise NotYet(f"the same up to place {at}; then wanted is {theirs!r}, yours has {yours!r}")
    return "and this is all that a chat is, for the model."
