"""Panels about text on its way into the model: tokens, the loss mask, attention."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import ipywidgets as ipw
import torch
from transformers import PreTrainedTokenizerFast

from tinyllm_lib.course import plots
from tinyllm_lib.course.inside import attention_maps
from tinyllm_lib.course.views import html
from tinyllm_lib.course.widgets.frame import (
    LABEL,
    Panel,
    button,
    follow,
    line,
    slider,
    text_box,
    view,
)
from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.tokenizer import ROLES, encode_chat, encode_text, token_bytes

Messages = list[dict[str, str]]
LEGEND = """\
<p class="note">The whole map: rows look, columns are looked at (strong: much); the framed row is
the one above.</p>"""


def compare_tokenizers(
    tokenizers: Mapping[str, PreTrainedTokenizerFast], text: str, *, show_bytes: bool = True
) -> str:
    """The tokens of a text as HTML, for each tokenizer, and whether the text comes back unchanged.

    Raises:
        ValueError: half of a surrogate pair in the text.
    """
    parts = []
    for name, tokenizer in tokenizers.items():
        ids = encode_text(tokenizer, text)
        back = tokenizer.decode(ids)
        per_token = f", {len(text) / len(ids):.2f} characters per token" if ids else ""
        verdict = "✓ comes back unchanged" if back == text else f"✗ comes back as “{escape(back)}”"
        facts = f"{len(text)} characters, {len(text.encode())} bytes, {len(ids)} tokens{per_token}"
        pieces = [token_bytes(tokenizer, i) for i in ids]
        parts.append(f"<h4>{escape(name)} ({len(tokenizer):,} entries)</h4>")
        parts.append(html.token_strip(pieces, ids, show_bytes=show_bytes))
        parts.append(f'<p class="note">{facts} · {verdict}</p>')
    return html.frame("".join(parts))


def tokenizer_playground(
    tokenizers: PreTrainedTokenizerFast | Mapping[str, PreTrainedTokenizerFast],
    text: str = "我爱喝豆汁 😀",
) -> Panel:
    """Type a text and see its tokens, their bytes and ids, and whether it comes back; several
    tokenizers side by side.

    Args:
        tokenizers: one, or name -> tokenizer.
    """
    known = dict(tokenizers) if isinstance(tokenizers, Mapping) else {"tokenizer": tokenizers}
    layout = {"width": "98%"}
    typed = ipw.Textarea(value=text, description="Text", rows=2, style=LABEL, layout=layout)
    shows = ipw.Checkbox(value=True, description="show bytes", style=LABEL)
    out = view(min(130 * len(known), 390))

    def draw() -> str:
        return compare_tokenizers(known, typed.value, show_bytes=shows.value)

    def pictures() -> list:
        drawn = []
        for name, tokenizer in known.items():
            ids = encode_text(tokenizer, typed.value)
            pieces, title = [token_bytes(tokenizer, i) for i in ids], f"{name}: {len(ids)} tokens"
            drawn.append(plots.token_strip(pieces, ids, show_bytes=shows.value, title=title))
        return drawn

    follow([typed, shows], draw, out)
    parts = {"text": typed, "show_bytes": shows, "out": out}
    return Panel("Tokenizer playground", list(parts.values()), pictures, **parts)


class Ladder:
    """X, Y and loss mask of a dialogue, and what was left out of it.

    Raises:
        ValueError: a message without text, or none at all.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, messages: Messages, max_length: int):
        self.chat = encode_chat(tokenizer, messages, max_length=max_length)
        pieces = [token_bytes(tokenizer, i) for i in self.chat.ids]
        self.x, self.y, self.loss_mask = pieces[:-1], pieces[1:], self.chat.loss_mask[1:]
        im_start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        self.starts = [i for i, token in enumerate(self.chat.ids[:-1]) if token == im_start]

    @property
    def facts(self) -> str:
        """In words: how much is learned, and what did not fit."""
        learned, asked = sum(self.loss_mask), len(self.loss_mask)
        share = f"({learned / max(asked, 1):.0%})"
        facts = [f"{len(self.chat)} tokens, {learned} of {asked} targets are learned {share}"]
        if self.chat.dropped_turns:
            facts.append(f"{self.chat.dropped_turns} messages left out at the front")
        if self.chat.cut_tokens:
            facts.append(f"{self.chat.cut_tokens} tokens of the end cut off")
        if not learned:
            facts.append("nothing is learned: write_sft_tokens would leave this dialogue out")
        return "; ".join(facts)

    def html(self) -> str:
        """A message a line, and the facts above."""
        ladder = html.mask_ladder(self.x, self.y, self.loss_mask, self.starts)
        return html.frame(f'<p role="status"><b>{self.facts}</b></p>{ladder}')


def mask_explorer(
    tokenizer: PreTrainedTokenizerFast, messages: Messages, *, max_length: int = 128
) -> Panel:
    """Edit a dialogue and see which of its tokens are learned.

    Args:
        messages: [{"role", "content"}, …] to begin with; up to eight can be edited.
        max_length: the longest row that can be chosen; a shorter one shows what truncation takes.
    """

    def row(n: int) -> tuple[ipw.Dropdown, ipw.Text]:
        narrow, wide = {"width": "190px"}, {"flex": "1 1 auto", "width": "auto"}
        label = {"style": {"description_width": "75px"}, "description": f"Message {n}"}
        role = ipw.Dropdown(options=ROLES, layout=narrow, **label)
        label = {"style": {"description_width": "50px"}, "description": f"Text {n}"}
        return role, ipw.Text(layout=wide, **label)

    rows = [row(n) for n in range(1, 9)]
    for (role, text), message in zip(rows, messages, strict=False):
        role.value, text.value = message["role"], message["content"]
    lines = [line(*row) for row in rows]
    height = f"{10 + 34 * max(4, min(len(messages), 6))}px"
    editor = ipw.VBox(layout={"height": height, "overflow": "auto", "width": "100%"})
    tip = "a longer dialogue loses whole turns from the front"
    length = slider("Row length", max_length, 8, max_length, 1, tip)
    out = view(50 + 75 * max(3, min(len(messages), 5)))
    count = min(len(messages), len(rows))

    def ladder() -> Ladder:
        edited = [{"role": role.value, "content": text.value} for role, text in rows[:count]]
        return Ladder(tokenizer, edited, length.value)

    update = follow([*(w for row in rows for w in row), length], lambda: ladder().html(), out)

    def show(wanted: int) -> None:
        nonlocal count
        count = max(1, min(wanted, len(rows)))
        editor.children = lines[:count]
        add.disabled, remove.disabled = count == len(rows), count == 1
        update()

    def one_more() -> None:
        if count < len(rows) and not rows[count][1].value:
            rows[count][0].value = "assistant" if rows[count - 1][0].value == "user" else "user"
            rows[count][1].value = "好的。" if rows[count][0].value == "assistant" else "那日本呢？"
        show(count + 1)

    add = button("Add a message", "below the last one", one_more)
    remove = button("Remove the last message", "it can be added again", lambda: show(count - 1))
    show(count)

    def pictures() -> list:
        now = ladder()
        names = {"breaks": now.starts, "title": now.facts}
        return [plots.mask_ladder(now.x, now.y, now.loss_mask, **names)]

    named = {"rows": rows, "add": add, "remove": remove, "length": length, "out": out}
    parts = [editor, line(add, remove, length), out]
    return Panel("Mask explorer: what is learned of a dialogue", parts, pictures, **named)


class Attention:
    """The attention of a model over one text, all layers and heads.

    Raises:
        ValueError: an empty text, or one longer than the context.
    """

    def __init__(self, generator: TextGenerator, text: str):
        ids = encode_text(generator.tokenizer, text)
        if not 0 < len(ids) <= generator.context:
            told = f"expected 1 to {generator.context}, the model's context."
            raise ValueError(f"the text has {len(ids)} tokens, {told}")
        self.ids, self.pieces = ids, [token_bytes(generator.tokenizer, i) for i in ids]
        with torch.inference_mode():
            batch = torch.tensor([ids], device=generator.model.lm_head.weight.device)
            maps = attention_maps(generator.model, batch)[:, 0]  # (layers, H, T, T)
        self.maps = maps.float().cpu().numpy()

    def weights(self, layer: int, head: int):
        """(T, T) of one head; head -1 is the mean of the layer's heads."""
        return self.maps[layer].mean(0) if head < 0 else self.maps[layer, head]

    def html(self, layer: int, head: int, position: int) -> str:
        """What one position looks at, written below the tokens, and the whole map of the head."""
        weights = self.weights(layer, head)
        row, names = weights[position], [html.shown(piece) for piece in self.pieces]
        look = {
            "shades": [0.85 * float(w) for w in row],
            "notes": [f"{w:.0%}" if i <= position else "–" for i, w in enumerate(row)],
        }
        strip = html.token_strip(self.pieces, self.ids, chosen=[position], **look)
        best = sorted(range(position + 1), key=lambda i: -row[i])[:3]
        words = ", ".join(f"{names[i]} {row[i]:.0%}" for i in best)
        said = f"{head_name(layer, head)}: {names[position]} (position {position}) looks at {words}"
        grid = html.attention_grid(weights, self.pieces, position)
        return html.frame(f'<p role="status"><b>{said}</b></p>{strip}{LEGEND}{grid}')


def head_name(layer: int, head: int) -> str:
    """For example "layer 0, head 2"."""
    return f"layer {layer}, {'mean of all heads' if head < 0 else f'head {head}'}"


def attention_explorer(
    generator: TextGenerator, text: str, *, layer: int = 0, head: int = 0
) -> Panel:
    """Choose layer, head and position, and see where the model looks.

    Args:
        layer, head: to begin with; the position is the last one.
    """
    attention = Attention(generator, text)
    layers, heads, length = attention.maps.shape[:3]
    typed = text_box(text, "Text (then Enter)")
    which = slider("Layer", layer, 0, layers - 1, 1, "0 is next to the embedding")
    of = slider("Head (-1: mean)", head, -1, heads - 1, 1, "-1: the mean of all heads of the layer")
    at = slider("Position", length - 1, 0, length - 1, 1, "which token looks")
    out = view(400)

    def draw() -> str:
        nonlocal attention
        if attention is None:
            attention = Attention(generator, typed.value)
            at.max = len(attention.ids) - 1
        return attention.html(which.value, of.value, min(at.value, len(attention.ids) - 1))

    def retyped(_) -> None:
        nonlocal attention
        attention = None
        update()
        if attention is not None:
            at.value = at.max

    update = follow([which, of, at], draw, out)
    typed.observe(retyped, "value")

    def pictures() -> list:
        shown, title = attention or Attention(generator, text), head_name(which.value, of.value)
        weights = shown.weights(which.value, of.value)
        return [plots.attention_map(weights, shown.pieces, title=title.capitalize())]

    parts = {"text": typed, "layer": which, "head": of, "position": at, "out": out}
    return Panel("Attention explorer", list(parts.values()), pictures, **parts)
