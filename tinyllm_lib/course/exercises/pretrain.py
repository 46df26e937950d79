"""Exercises of notebook 05: pretraining."""

from __future__ import annotations

import math
from dataclasses import replace

from tinyllm_lib.course import get_profile, get_workspace, prepare
from tinyllm_lib.course.exercises.exercise import NotYet, close, done, exercise, require
from tinyllm_lib.train import train_memory

SETUP = """
import math
from dataclasses import replace

from tinyllm_lib.course import get_profile, get_workspace, prepare
from tinyllm_lib.course.exercises import check_exercise
from tinyllm_lib.train import train_memory

ws = get_workspace()
"""


@exercise("""
05.1 From nats to bits (5 minutes, easy)

A model has a loss of 2.9 nats per token on a text of 1,200 tokens and 4,800 bytes. How many bits
per byte are that? To how many bytes could the text be compressed with it?

# hint:
First all nats of the text. A bit is ln 2 nats, a byte 8 bits.

# code for my_bits_per_byte, my_bytes:
# stub:
my_bits_per_byte, my_bytes = None, None  # two numbers
# solution:
bits = 2.9 * 1200 / math.log(2)
my_bits_per_byte, my_bytes = bits / 4800, bits / 8
""")
def _check_bits(my_bits_per_byte, my_bytes) -> str:
    done(my_bits_per_byte, my_bytes)
    bits = 2.9 * 1200 / math.log(2)
    slips = {
        2.9 * 1200 / 4800: "these are nats per byte",
        2.9 / math.log(2): "these are bits per token",
    }
    slip = "all bits of the text, divided by its bytes"
    for value, why in slips.items():
        slip = why if close(my_bits_per_byte, value, 0.01) else slip
    require(close(my_bits_per_byte, bits / 4800, 0.01), f"{my_bits_per_byte} bits per byte: {slip}")
    require(close(my_bytes, bits / 8, 2), f"{my_bytes} bytes: all bits of the text, divided by 8")
    return f"{bits / 4800:.2f} bits per byte, so 4,800 bytes fit into {bits / 8:.0f}."


@exercise('''
05.2 A schedule with a plateau (10 minutes, medium)

Another common schedule keeps the highest rate after the warm-up and lets it fall in a straight line
to 0 over the last fifth of the steps only (WSD: warm-up, stable, decay). One can then decide late
how long to train. Write it for steps counted from 0: the first step has `highest / warmup_steps`,
the last one, `steps - 1`, still has a rate above 0.

# hint:
`min(1.0, …)` makes the plateau: of a line that falls to 0 at `steps` and is 1 at four fifths of
them.

# code for wsd:
def wsd(step: int, steps: int, warmup_steps: int, highest: float) -> float:
    """The learning rate of one step."""
    # stub:
    return None  # your turn
    # solution:
    if step < warmup_steps:
        return highest * (step + 1) / warmup_steps
    return highest * min(1.0, (steps - step) / (0.2 * steps))
''')
def _check_wsd(wsd) -> str:
    for steps, warmup_steps, highest in ((100, 10, 1.0), (50, 5, 0.02)):
        for step in range(steps):
            found = wsd(step, steps, warmup_steps, highest)
            done(found)
            if step < warmup_steps:
                where, share = "warm-up", (step + 1) / warmup_steps
            elif step <= 0.8 * steps:
                where, share = "plateau", 1.0
            else:
                where, share = "last fifth", (steps - step) / (0.2 * steps)
            rate = highest * share
            off = f"step {step} of {steps} is in the {where}: rate {rate:.4g}, yours {found:.4g}"
            require(close(found, rate, 1e-9 * highest), off)
    return "one run can now end early or late, by choosing where the last fifth begins."


@exercise("""
05.3 Fit it into 24 GB (8 minutes, medium)

You have one GPU with 24 GB and want the 215M model with the numbers of the profile `full`, so 1,024
rows a step. Use `memory` from above with `replace(numbers, grad_accumulation_steps=…)`: which is
the smallest power of two that needs at most 21 GB?

# hint:
Print the sum of `memory(…, 1, 6144).values()` for 1, 2, 4, 8, … and look for the first below 21.
The parts that do not shrink (weights, gradients, optimisers) are the floor.

# code for my_accumulation:
# stub:
my_accumulation = None  # your number: 1, 2, 4, 8, …
# solution:
numbers = prepare.train_config("pretrain", ws, get_profile("full"))
for my_accumulation in (2**k for k in range(11)):
    memory = train_memory(replace(numbers, grad_accumulation_steps=my_accumulation), 6144)
    if sum(memory.values()) <= 21:
        break
""")
def _check_accumulation(my_accumulation) -> str:
    done(my_accumulation)
    if my_accumulation not in [2**k for k in range(11)]:
        raise NotYet(f"a power of two from 1 to 1,024 is wanted, not {my_accumulation!r}")
    numbers = prepare.train_config("pretrain", get_workspace(), get_profile("full"))

    def gigabytes(steps: int) -> float:
        return sum(train_memory(replace(numbers, grad_accumulation_steps=steps), 6144).values())

    need = gigabytes(my_accumulation)
    require(need <= 21, f"{my_accumulation} needs {need:.1f} GB, more than 21")
    if my_accumulation > 1 and gigabytes(my_accumulation // 2) <= 21:
        raise NotYet(f"{my_accumulation} fits, and half of it fits too")
    return f"{need:.1f} GB. The result of a step stays the same, however it is cut up."
