"""Exercises of notebook 07: sampling."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyllm_lib.course.exercises.echo import UNSEEN, echo_model, echo_rows, learn
from tinyllm_lib.course.exercises.exercise import NotYet, close, done, exercise, require

SETUP = """
import math

import torch
import torch.nn.functional as F

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
07.3 Repetition, measured and punished (15 minutes, medium)

(a) Fill in `distinct`: the share of different 3-character pieces among all 3-character pieces of a
text. (b) `repetition_penalty` divides the logit of every token that the text holds already, where
it is positive, and multiplies it where it is negative. A greedy model has written 很 (*very*) and
goes on writing it: 很 has the logit 3.0, and the best token that the text does not hold yet, 好
(*good*), has 2.4. From which penalty on does 好 win?

# hint:
(a) A text of length L has L - n + 1 pieces: `text[i : i + n]`. A `set` keeps the different ones.
(b) The logit of 很, divided by the penalty, must fall to that of 好.

# code for distinct, my_penalty:
# stub:
my_penalty = None  # a number
# solution:
my_penalty = 3.0 / 2.4
# both:


def distinct(text: str, n: int = 3) -> float:
    """Different n-character pieces / all n-character pieces; 1.0 for a text shorter than n."""
    # stub:
    return None  # your turn
    # solution:
    pieces = [text[i : i + n] for i in range(len(text) - n + 1)]
    return len(set(pieces)) / len(pieces) if pieces else 1.0
''')
def _check_distinct(distinct, my_penalty) -> str:
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
    done(my_penalty)
    if close(my_penalty, 2.4 / 3.0, 0.01):
        raise NotYet(f"{my_penalty} would make 很 likelier: a penalty is above 1")
    if not close(my_penalty, 1.25, 0.01):
        told = f"3.0 / {my_penalty} is {3.0 / my_penalty:.2f}, and 好 has 2.4"
        raise NotYet(f"at a penalty of {my_penalty} they are not equal: {told}")
    return "try it: distinct(bot.complete('从前', temperature=0, repetition_penalty=1.25))."


@exercise('''
07.4 Train one number (15 minutes, medium)

A model that has learned 96 rows by heart is much too sure of itself on new ones. Its knowledge is
gone, but its confidence can be mended, with a single number: the temperature. Write
`fit_temperature(logits, targets)`: by gradient descent, the temperature at which `logits / T` has
the smallest mean cross-entropy. The check trains such a model (a few seconds, a language of 64
words), fits on 128 new rows with your function, and measures on 256 others.

# hint:
Learn the logarithm of T, starting from 0: its exponential is positive, whatever the optimiser does.
`torch.optim.Adam([log_t], lr=0.05)`, two hundred steps, `F.cross_entropy(logits / log_t.exp(),
targets)`.

# code for fit_temperature:
def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The temperature with the smallest cross-entropy, from logits (N, V) and targets (N,)."""
    # stub:
    return None  # your turn
    # solution:
    log_t = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([log_t], lr=0.05)
    for _ in range(200):
        loss = F.cross_entropy(logits / log_t.exp(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return log_t.exp().item()
''')
def _check_temperature_fit(fit_temperature) -> str:
    done(fit_temperature(torch.zeros(4, 8), torch.arange(4)))
    fitted, judged = too_sure()
    found = fit_temperature(*fitted)
    if not (isinstance(found, float) and 0 < found < math.inf):
        raise NotYet(f"a temperature is a float above 0, yours is {found!r}")

    def nats(temperature: float) -> float:
        return F.cross_entropy(judged[0] / temperature, judged[1]).item()

    before, after, best = nats(1.0), nats(found), min(nats(t / 20) for t in range(2, 200))
    if after > best + 0.02:
        turned = ", and 1/T would be better" if nats(1 / found) < after else ""
        reached = f"T = {found:.2f} gives {after:.2f} nats on the other rows, T = 1 {before:.2f}"
        raise NotYet(f"{reached}; {best:.2f} can be reached{turned}")
    return (
        f"T = {found:.2f}: {before:.2f} nats become {after:.2f}, and greedy replies stay the same."
    )


@cache
def too_sure() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Logits and targets of a model that knows 96 rows by heart, on new rows: to fit, to judge."""
    model = echo_model()
    by_heart = echo_rows(96, 0)
    learn(model, 100, rows=lambda step: by_heart[step % 3 :: 3])
    parts = []
    for count, seed in ((128, UNSEEN + 1), (256, UNSEEN + 2)):
        rows = echo_rows(count, seed)
        with torch.no_grad():
            parts.append((model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()))
    return parts[0], parts[1]
