"""What panels show, as HTML: pure functions, data in, text out. They know nothing of files, models
or Jupyter.

The pictures of `plots` are for paper and for GitHub; these views are for a page that changes while
one looks at it. They take the page's own colours, so they fit a light and a dark background, and
nothing in them needs colour to be understood.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from tinyllm_lib.course.plots.tokens import shared_characters
from tinyllm_lib.generate import Written

# Translucent fills let the page's background and text colour through.
CSS = """
.tl{font:14px/1.45 system-ui,sans-serif;color:inherit;overflow-wrap:anywhere}
.tl h4{font:600 14px/1.4 system-ui,sans-serif;margin:2px 0 4px}
.tl p{margin:4px 0}
.tl small{font-size:11px;opacity:.8;display:block;line-height:1.3;min-height:1em;white-space:nowrap}
.tl .t{display:inline-block;text-align:center;border:1px solid rgba(128,128,128,.75);border-radius:3px;padding:1px 5px;margin:2px 1px;
 min-width:1em;vertical-align:top}
.tl .t:nth-child(even){background:rgba(128,128,128,.15)}
.tl .g{display:inline-block;vertical-align:top;border-top:2px solid currentColor;margin:0 2px;padding-top:1px}
.tl .g::before{content:attr(data-text);display:block;text-align:center;font-size:12px;line-height:1.2}
.tl .on,.tl .t.on{background:rgba(255,190,40,.5);outline:2px solid currentColor;outline-offset:-2px}
.tl .off{opacity:.72}
.tl table{border-collapse:collapse;display:inline-table;vertical-align:top;margin:2px 8px 6px 0}
.tl .ladder span{display:block;padding:0 4px;line-height:1.55;min-height:1.55em;white-space:nowrap}
.tl .c{display:inline-block;text-align:center;border:1px solid rgba(128,128,128,.6);margin:2px 0 4px -1px;vertical-align:top}
.tl .c.names{border-color:transparent;text-align:right;opacity:.8;margin-right:2px}
.tl .bar{position:relative;height:22px;margin:0;display:block;white-space:nowrap;font-size:12px;line-height:22px}
.tl .bar i{position:absolute;left:0;height:8px;border:1px solid currentColor;box-sizing:border-box}
.tl .bar i.before{top:2px;background:transparent}
.tl .bar i.after{top:11px;background:#4a86c8}
.tl .bar b{position:absolute;font-weight:400}
.tl .said{margin:6px 0;padding:5px 10px;border-radius:8px;max-width:88%;width:fit-content}
.tl .you{margin-left:auto;border:1px solid rgba(128,128,128,.8)}
.tl .model{background:rgba(128,128,128,.16)}
.tl .w{border-bottom:1px dotted transparent}
.tl .w:hover{background:rgba(255,190,40,.5)}
.tl .unsure{border-bottom:2px dotted currentColor}
.tl .note{font-size:12px;opacity:.85}
.tl .error{border-left:4px solid #d55e00;padding-left:8px}
.tl svg{max-width:100%}
"""
UNSURE = 0.5  # below this probability a token is underlined


def frame(body: str, *, role: str = "") -> str:
    """The outermost element of a view; `role` for screen readers, for example "log" for a
    conversation.
    """
    return (
        "<div"
        f' class="tl"{f" role={role!r} aria-live={chr(34)}polite{chr(34)}" if role else ""}>{body}</div>'
    )


def error(message: object) -> str:
    """A mistake of the reader's, in place of the view."""
    return frame(f'<p class="error" role="alert">{escape(str(message))}</p>')


def shown(piece: bytes) -> str:
    """A token for the eye, as HTML: spaces and line ends made visible, and bytes that are no whole
    character in hex.
    """
    text = piece.decode("utf-8", "surrogateescape")
    parts, pending = [], b""
    for char in text:
        if 0xDC80 <= ord(char) <= 0xDCFF:
            pending += char.encode("utf-8", "surrogateescape")
            continue
        parts += [
            _hex(pending),
            {" ": "␣", "\n": "⏎", "\t": "⇥", "\u3000": "␣␣"}.get(char) or _visible(char),
        ]
        pending = b""
    return "".join([*parts, _hex(pending)]) or "∅"


def _visible(char: str) -> str:
    return escape(char) if char.isprintable() else _hex(char.encode("utf-8", "surrogatepass"))


def _hex(data: bytes) -> str:
    return f"‹{data.hex(' ').upper()}›" if data else ""


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
    roofs = (
        {} if notes else {span.start: (span.stop, text) for span, text in shared_characters(pieces)}
    )
    html, until = [], -1
    for i, (piece, number) in enumerate(zip(pieces, ids, strict=True)):
        if i in roofs:
            until, text = roofs[i]
            html.append(f'<span class="g" data-text="{escape(text)}">')
        below = [notes[i]] if notes else [piece.hex(" ").upper()] * show_bytes + [str(number)]
        shade = f' style="background:rgba(74,134,200,{shades[i]:.2f})"' if shades else ""
        html.append(
            f'<span class="t{" on" if i in chosen else ""}"{shade} title="token {i}: id {number},'
            f' bytes {piece.hex(" ").upper()}">'
            f"{shown(piece)}{''.join(f'<small>{line}</small>' for line in below)}</span>"
        )
        if i + 1 == until:
            html.append("</span>")
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
    html = []
    for i, (a, b, learned) in enumerate(zip(x, y, loss_mask, strict=True)):
        if i == 0 or i in starts:
            html.append(("</div>" if i else "") + f"<div>{names}")
        on, mark = ("on", "✓") if learned else ("off", "–")
        html.append(
            f'<span class="c ladder"><span>{shown(a)}</span><span'
            f' class="{on}">{shown(b)}</span><span>{mark}</span></span>'
        )
    return "".join([*html, "</div>" if html else ""])


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
    squares = [
        f'<rect x="{j * cell:.1f}" y="{i * cell:.1f}" width="{cell:.1f}" height="{cell:.1f}" fill="currentColor" '
        f'fill-opacity="{weights[i, j]:.2f}"><title>{shown(pieces[i])} looks at {shown(pieces[j])}: {weights[i, j]:.0%}</title></rect>'
        for i in range(length) for j in range(i + 1)
    ]  # fmt: skip
    most = int(np.argmax(weights[row, : row + 1]))
    label = (
        f"{length} by {length} squares; row {row} looks most at position {most},"
        f" {weights[row, most]:.0%}"
    )
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
    p = math.prod(piece.probabilities)
    parts = " × ".join(f"{q:.0%}" for q in piece.probabilities)
    title = f"{p:.1%}" + (
        f" = {parts}, in {len(piece.probabilities)} tokens" if len(piece.probabilities) > 1 else ""
    )
    text = escape(piece.text).replace("\n", "<br>")
    if number:
        return f'<span class="t" title="{title}">{text}<small>{p:.0%}</small></span>'
    return f'<span class="w{" unsure" if p < UNSURE else ""}" title="{title}">{text}</span>'
