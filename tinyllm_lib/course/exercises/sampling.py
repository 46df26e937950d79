"""Exercises of notebook 07: sampling."""

from __future__ import annotations

import math

from tinyllm_lib.course.exercises.exercise import NotYet, close, done, exercise, require

SETUP = """
import math

from tinyllm_lib.course.exercises import check_exercise
"""


@exercise("""
07.1 The coldest temperature (5 minutes, easy)

For the five made-up logits of section 2: at which temperature is 巴黎 (*Paris*, logit 4) exactly
ten times as likely as 里昂 (*Lyon*, logit 2)? Calculate, do not try.

# hint:
Two logits that differ by d are, at temperature T, e to the power of d / T apart. Set that to 10 and
take the logarithm.

# code for my_temperature:
# stub:
my_temperature = None  # a number
# solution:
my_temperature = (4.0 - 2.0) / math.log(10)
""")
def _check_temperature(my_temperature) -> str:
    done(my_temperature)
    require(my_temperature > 0, f"a temperature is above 0, yours is {my_temperature}")
    times = math.exp(min(2 / my_temperature, 700))
    if not close(times, 10, 0.05):
        raise NotYet(f"at {my_temperature:.4g} Paris is {times:.4g} times as likely as Lyon")
    return "below 1, because at temperature 1 it is only 7.4 times as likely."


@exercise('''
07.2 Stop strings (15 minutes, hard)

Write `until(pieces, stop)`: it yields the pieces of text up to, and without, the string `stop`. The
difficulty: `stop` may be spread over two pieces or more, and what has been yielded cannot be taken
back.

# hint:
Keep a text `held`. While its end could be the beginning of `stop` (`stop.startswith(held[-n:])`),
hold those n characters back and yield the rest.

# code for until:
def until(pieces, stop: str):
    """Yields text as early as is safe, and ends before `stop`."""
    # stub:
    yield from ()  # your turn
    # solution:
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held[: held.index(stop)]
            return
        keep = max(n for n in range(len(stop)) if n == 0 or held.endswith(stop[:n]))
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held
''')
def _check_until(until) -> str:
    cases = [
        (["问：a", "答：b", "问：c"], "答", "问：a"),
        (["你好", "。再", "见。"], "再见", "你好。"),
        (["ab", "ac"], "aa", "abac"),
        (["x", "a", "a", "b", "y"], "aab", "x"),
        (["a", "a", "a", "b"], "aab", "a"),
    ]
    done(next(iter(until(iter(["ab"]), "x")), None))
    for pieces, stop, wanted in cases:
        found = "".join(until(iter(pieces), stop))
        require(found == wanted, f"until({pieces}, {stop!r}) gives {found!r}, wanted {wanted!r}")
    waiting = until(iter(["早", "上", "好"]), "晚")
    if not (next(waiting) and next(waiting)):
        raise NotYet("早 and 上 cannot be the beginning of 晚, so they can be shown at once")
    return "the library's TextStream does it with stop=[…]."


@exercise('''
07.3 Repetition (15 minutes, medium)

Fill in `distinct`: the share of different 3-character pieces among all 3-character pieces of a
text. Then generate five texts from 从前 (*once upon a time*) at temperature 0.3 with
`repetition_penalty` 1.0, and five with 1.3: `bot.complete("从前", temperature=0.3,
max_new_tokens=60, seed=seed, repetition_penalty=1.3)`. Does the penalty help? Does it do harm? Read
the texts.

# hint:
A text of length L has L - n + 1 pieces: `text[i : i + n]`. A `set` keeps the different ones.

# code for distinct:
def distinct(text: str, n: int = 3) -> float:
    """Different n-character pieces / all n-character pieces; 1.0 for a text shorter than n."""
    # stub:
    return None  # your turn
    # solution:
    pieces = [text[i : i + n] for i in range(len(text) - n + 1)]
    return len(set(pieces)) / len(pieces) if pieces else 1.0
''')
def _check_distinct(distinct) -> str:
    for text, n, wanted, pieces in (
        ("abcabcabc", 3, 3 / 7, "3 different of 7"),
        ("abcdef", 3, 1.0, "4 different of 4"),
        ("好好好好", 2, 1 / 3, "1 different of 3"),
        ("好", 3, 1.0, "no piece at all, so 1.0"),
    ):
        found = distinct(text, n)
        done(found)
        if not close(found, wanted, 1e-9):
            raise NotYet(f"distinct({text!r}, {n}) is {wanted:.3f} ({pieces}), yours is {found}")
    return "1.0 is a text in which no three characters come back. Now compare the two penalties."
