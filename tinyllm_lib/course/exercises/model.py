"""Exercises of notebook 04: the model."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tinyllm_lib.course.exercises.echo import FLOOR, echo_loss, echo_model, learn
from tinyllm_lib.course.exercises.exercise import NotYet, done, exercise, require
from tinyllm_lib.model import ModelConfig, Transformer, apply_rope, rope_angles

SETUP = """
import math

import torch

from tinyllm_lib.course.exercises import check_exercise
"""


@exercise("""
04.1 Count by hand (5 minutes, easy)

How many parameters has `ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=1000)`?
Work it out with pen and paper from the shapes (hidden width: 192), then put the number in.

# hint:
Embedding: vocabulary times 64, and the head is the same matrix. A layer: q and o are 64 by 64, k
and v 64 by 32 (half as many heads), three matrices of the MLP, two norms. One more norm at the end.

# code for my_count:
# stub:
my_count = None  # your number
# solution:
embedding = 1000 * 64
layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192 + 2 * 64  # q and o, k and v, MLP, norms
my_count = embedding + 2 * layer + 64
""")
def _check_count(my_count) -> str:
    done(my_count)
    config = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=1000)
    with torch.device("meta"):
        model = Transformer(config)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    slips = {
        64: "one norm too few or too many?",
        64_000: "the head is the embedding, so its weights count once",
        layer: "there are two layers",
        2 * 64: "norms have weights too: two in each layer, one at the end",
        2 * 2 * 64 * 32: "k and v have two heads of 16, q and o have four",
    }
    off = my_count - model.num_parameters()
    parts = f"a layer has {layer:,} parameters, the embedding 64,000, the last norm 64"
    cause = slips.get(abs(off), parts)
    require(off == 0, f"{abs(off):,} too {'many' if off > 0 else 'few'}: {cause}")
    share = 64_000 / my_count
    return f"{my_count:,}, of which {share:.0%} are the embedding. In the 215M model it is 3%."


@exercise('''
04.2 The other RoPE (15 minutes, hard)

Some checkpoints pair coordinate $2i$ with its neighbour $2i+1$ ("interleaved"). Their `q_proj` and
`k_proj` can be used with half-split RoPE if the **rows** of each head are put into another order.
Write that function: rows 0, 1, 2, 3, … of a head are pairs (0, 1), (2, 3), …; the library wants all
first members, then all second members.

# hint:
For one head of 8 rows the new order is 0, 2, 4, 6, 1, 3, 5, 7. `view` the rows as (heads, pairs, 2,
D), swap two of these axes, and go back to the old shape. `torch.arange(16.)[:, None]` as weight
shows the order.

# code for to_half_split:
def to_half_split(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorders the rows of an interleaved q_proj or k_proj weight (H*d, D)."""
    # stub:
    return None  # your turn
    # solution:
    return weight.view(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
''')
def _check_half_split(to_half_split) -> str:
    rows = torch.arange(16.0)[:, None]  # two heads of 8
    moved = to_half_split(rows, 8)
    done(moved)
    if tuple(moved.shape) != (16, 1):
        raise NotYet(f"the shape must stay (16, 1), yours is {tuple(moved.shape)}")
    order = moved.flatten().int().tolist()
    require(sorted(order) == list(range(16)), f"each row must stand there once; yours has {order}")
    if sorted(order[:8]) != list(range(8)):
        raise NotYet(f"no row may go over to another head; your first one has {order[:8]}")
    if order[:8] != [0, 2, 4, 6, 1, 3, 5, 7]:
        raise NotYet(f"the first head should have 0, 2, 4, 6, 1, 3, 5, 7; yours has {order[:8]}")
    rng = torch.Generator().manual_seed(4)
    weight, x, position = torch.randn(16, 32, generator=rng), torch.randn(32, generator=rng), 9
    cos, sin = (angles[position] for angles in rope_angles(ModelConfig(16, 1, 2, 2, 100, 16)))
    ours = apply_rope((to_half_split(weight, 8) @ x).view(2, 8), cos, sin)
    turn = torch.polar(torch.ones(4), position * 10000.0 ** (-torch.arange(0, 8, 2) / 8))
    # Neighbours as complex numbers.
    theirs = torch.view_as_complex((weight @ x).view(2, 4, 2)) * turn
    if not torch.allclose(ours, torch.cat((theirs.real, theirs.imag), -1), atol=1e-4):
        raise NotYet("the second head differs: treat both alike")
    return "the library's import of old checkpoints does this to every layer."


@exercise('''
04.3 A window instead of the whole past (8 minutes, medium)

Some models let a position look back only `window` tokens, itself included, so that cost does not
grow with the length. Write the mask: a bool tensor (T, T), True where position i (row) may look at
position j (column).

# hint:
`i = torch.arange(T)[:, None]` and `j = torch.arange(T)[None]` make `j <= i` the causal mask, (T,
T). One more condition on `i - j`.

# code for window_mask:
def window_mask(T: int, window: int) -> torch.Tensor:
    """(T, T), True where row may look at column."""
    # stub:
    return None  # your turn
    # solution:
    i, j = torch.arange(T)[:, None], torch.arange(T)[None]
    return (j <= i) & (i - j < window)
''')
def _check_window(window_mask) -> str:
    for T, window in ((5, 2), (6, 1), (4, 9)):
        mask = window_mask(T, window)
        done(mask)
        shape = tuple(mask.shape)
        if shape != (T, T) or mask.dtype != torch.bool:
            raise NotYet(f"wanted is a bool tensor ({T}, {T}), not {mask.dtype} {shape}")
        for i, row in enumerate(mask.tolist()):
            seen = [j for j, on in enumerate(row) if on]
            allowed = list(range(max(0, i - window + 1), i + 1))
            told = f"with window {window}, {i} may look at {allowed}; yours lets it look at {seen}"
            require(seen == allowed, told)
    return "with a window of T or more it is the causal mask."


@exercise('''
04.4 Attention that learns (20 minutes, hard)

Write attention for a whole batch and all heads at once, without a loop: `q` is (B, H, T, d), `k`
and `v` are (B, K, T, d), and H/K neighbouring query heads share one key/value head. RoPE is done
already. The check puts your function into a model of one layer and trains it for 100 steps, a few
seconds, on a made-up language: a question is one of 32 words, drawn anew each time, and the echo
behind it repeats the question *before* that one. So half of all words can be known, and half
cannot: an honest model comes down towards ln(32) / 2 = 1.73 nats per token, and one that cannot
look back stays at 3.47. What would it mean to come *below* 1.73?

# hint:
`k.repeat_interleave(H // K, dim=1)` gives every query head its keys. All scores are
`q @ k.transpose(-1, -2)`, (B, H, T, T). The rest stands in `one_head`.

# code for my_attention:
def my_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What each position takes from those before it and itself, (B, H, T, d)."""
    # stub:
    return None  # your turn
    # solution:
    shared_by, T = q.shape[1] // k.shape[1], q.shape[2]
    k = k.repeat_interleave(shared_by, dim=1)  # (B, H, T, d)
    v = v.repeat_interleave(shared_by, dim=1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ v
''')
def _check_attention(my_attention) -> str:
    rng = torch.Generator().manual_seed(5)
    q = torch.randn(2, 4, 6, 16, generator=rng)
    k, v = torch.randn(2, 2, 2, 6, 16, generator=rng)
    found = my_attention(q, k, v)
    done(found)
    if found.shape != q.shape:
        raise NotYet(f"wanted is the shape of q, {tuple(q.shape)}, yours is {tuple(found.shape)}")
    require(found.isfinite().all(), "it gives NaN: may each position look at itself at least?")
    reached = learn(echo_model(), 100, loss=lambda m, rows: echo_loss(m, rows, my_attention))
    trained = f"trained for 100 steps it reaches {reached:.2f} nats"
    if reached < FLOOR - 0.05:
        raise NotYet(f"{trained}, below {FLOOR:.2f}, so it sees the words it is to guess")
    if not reached < 2.2:
        raise NotYet(f"{trained}, not {FLOOR:.2f}: what stands two places back does not arrive")
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    heads = (found - expected).abs().amax((0, 2, 3)) > 1e-4
    if heads.any():
        wrong = ", ".join(map(str, heads.nonzero().flatten().tolist()))
        advice = "do neighbouring heads share keys, and are scores divided by the root of d?"
        raise NotYet(
            f"{trained}, as it should, but heads {wrong} differ from the library's: {advice}"
        )
    return f"{trained}; no honest model comes below {FLOOR:.2f}, for half the words are drawn."
