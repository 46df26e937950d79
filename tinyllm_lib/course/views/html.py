"""HTML: pure functions, data in, text out.

The pictures of `plots` are for paper and for GitHub; these views are for a page that changes while
one looks at it. They take the page's own colours, so they fit a light and a dark background, and
nothing in them needs colour to be understood.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from tinyllm_lib.course.chat import Written
from tinyllm_lib.course.plots.tokens import shared_characters, visible

CSS = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
UNSURE = 0.5  # below this probability a token is underlined


def frame(body: str, *, role: str = "") -> str:
    """The outermost element of a view; `role` for screen readers: "log" for a conversation."""
    spoken = f" role='{role}' aria-live=\"polite\"" if role else ""
    return f'<div class="tl"{spoken}>{body}</div>'


def error(message: object) -> str:
    """A mistake of the reader's, in place of the view."""
    return frame(f'<p class="error" role="alert">{escape(str(message))}</p>')


def shown(piece: bytes) -> str:
    """A token for the eye, as HTML."""
    return escape(visible(piece, str.isprintable))


def token_strip(
    pieces: Sequence[bytes],
    ids: Sequence[int],
    *,
    show_bytes: bool = False,
    chosen: Collection[int] = (),
    notes: Sequence[str] = (),
    shades: Sequence[float] = (),
) -> str:
    """Tokens as boxes in reading order, below each its bytes and id; a roof joins tokens that only
    together are a character.

    Args:
        chosen: positions to fill and frame.
        notes: a short text for each token, in place of bytes and id.
        shades: for each token how dark it is, from 0 to 1.
    """
    spans = [] if notes else shared_characters(pieces)
    opens, closes = {span[0]: text for span, text in spans}, {span[-1] for span, _ in spans}
    html = []
    for i, (piece, number) in enumerate(zip(pieces, ids, strict=True)):
        data = piece.hex(" ").upper()
        below = [notes[i]] if notes else [data] * show_bytes + [str(number)]
        shade = f' style="background:rgba(74,134,200,{shades[i]:.2f})"' if shades else ""
        roof = f'<span class="g" data-text="{escape(opens[i])}">' if i in opens else ""
        html.append(
            f'{roof}<span class="t{" on" if i in chosen else ""}"{shade}'
            f' title="token {i}: id {number}, bytes {data}">{shown(piece)}'
            f"{''.join(f'<small>{line}</small>' for line in below)}</span>"
            f"{'</span>' if i in closes else ''}"
        )
    return f"<div>{''.join(html)}</div>"


def mask_ladder(
    x: Sequence[bytes], y: Sequence[bytes], loss_mask: Sequence[int], starts: Collection[int] = ()
) -> str:
    """What the model sees (X), what it should say next (Y) and whether that is learned (✓), column
    by column.

    Args:
        starts: positions that begin a new line, e.g. where a message begins.
    """
    names = '<span class="c names ladder"><span>X</span><span>Y</span><span>learn</span></span>'
    html = ""
    for i, (a, b, learned) in enumerate(zip(x, y, loss_mask, strict=True)):
        if i == 0 or i in starts:
            html += ("</div>" if i else "") + f"<div>{names}"
        target = f'<span class="{"on" if learned else "off"}">{shown(b)}</span>'
        mark = "✓" if learned else "–"
        html += f'<span class="c ladder"><span>{shown(a)}</span>{target}<span>{mark}</span></span>'
    return html + "</div>" * bool(html)


def attention_grid(
    weights: np.ndarray, pieces: Sequence[bytes], row: int, *, side: int = 250
) -> str:
    """The map of a head as squares: each row looks, columns are looked at, dark is much; one row is
    framed.

    Args:
        weights: (T, T), rows sum to 1.
        side: of the whole, in pixels.
    """
    length = len(pieces)
    cell = side / length
    names = [shown(piece) for piece in pieces]
    squares = [
        f'<rect x="{j * cell:.1f}" y="{i * cell:.1f}" width="{cell:.1f}" height="{cell:.1f}"'
        f' fill="currentColor" fill-opacity="{weights[i, j]:.2f}">'
        f"<title>{names[i]} looks at {names[j]}: {weights[i, j]:.0%}</title></rect>"
        for i in range(length)
        for j in range(i + 1)
    ]
    most = int(np.argmax(weights[row, : row + 1]))
    label = f"{length} by {length} squares; row {row} looks most at position {most}"
    label += f", {weights[row, most]:.0%}"
    return (
        f'<svg role="img" aria-label="{label}" viewBox="-1 -1 {side + 2} {side + 2}" width="{side}"'
        f' height="{side}"><rect width="{side}" height="{side}" fill="none" stroke="currentColor"'
        f' stroke-opacity=".5"/>{"".join(squares)}<rect x="0" y="{row * cell:.1f}"'
        f' width="{(row + 1) * cell:.1f}" height="{cell:.1f}" fill="none" stroke="#d55e00"'
        ' stroke-width="2"/></svg>'
    )


@dataclass(frozen=True)
class Candidate:
    """A next token, with its probability under the model and after the settings (0: removed)."""

    token: int
    piece: bytes
    before: float
    after: float

    @property
    def name(self) -> str:
        """The token for the eye, as HTML."""
        return shown(self.piece)


def candidate_bar(candidate: Candidate, largest: float) -> str:
    """Two bars of one candidate: the model's own probability in outline, below it filled what is
    drawn from.

    Args:
        largest: the probability that takes the whole width.
    """
    widths = [70 * min(1.0, p / max(largest, 1e-9)) for p in (candidate.before, candidate.after)]
    after = f"{candidate.after:.1%}" if candidate.after else "removed"
    filled = f'<i class="after" style="width:{widths[1]:.1f}%"></i>' if candidate.after else ""
    return (
        f'<span class="bar"><i class="before" style="width:{widths[0]:.1f}%"></i>{filled}'
        f'<b style="left:{max(widths) + 1:.1f}%">{candidate.before:.1%} → {after}</b></span>'
    )


@dataclass
class Turn:
    """A question and its reply, as far as it is written."""

    question: str
    reply: list[Written]
    ended: str = ""  # what to say below it: "stopped", a note, …


def conversation(turns: Sequence[Turn], *, empty: str = "", numbers: bool = False) -> str:
    """Turns as bubbles; each piece of a reply says on hover how likely the model found it, unlikely
    ones are underlined.

    Args:
        empty: what stands there before the first turn.
        numbers: write the probability of every piece below it too.
    """
    if not turns:
        return f'<p class="note">{escape(empty)}</p>'
    html = []
    for turn in turns:
        html.append(f'<div class="said you" aria-label="You">{escape(turn.question)}</div>')
        html += [f'<p class="note">{escape(piece.note)}</p>' for piece in turn.reply if piece.note]
        words = "".join(written(piece, number=numbers) for piece in turn.reply)
        html.append(f'<div class="said model" aria-label="Model">{words or "…"}</div>')
        html += [f'<p class="note">{escape(turn.ended)}</p>'] if turn.ended else []
    return "".join(html)


def written(piece: Written, *, number: bool = False) -> str:
    """One piece of a reply, with the probability of its tokens as a tooltip."""
    if not piece.text:
        return ""
    p, tokens = math.prod(piece.probabilities), len(piece.probabilities)
    title = f"{p:.1%}"
    if tokens > 1:
        title += f" = {' × '.join(f'{q:.0%}' for q in piece.probabilities)}, in {tokens} tokens"
    text = escape(piece.text).replace("\n", "<br>")
    if number:
        return f'<span class="t" title="{title}">{text}<small>{p:.0%}</small></span>'
    return f'<span class="w{" unsure" if p < UNSURE else ""}" title="{title}">{text}</span>'
