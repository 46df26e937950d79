"""Panels about text on its way out of the model: the next token step by step, and a chat."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import replace
from html import unescape

import ipywidgets as ipw

from tinyllm_lib.course import plots
from tinyllm_lib.course.chat import Chat, Written, write_ids
from tinyllm_lib.course.views import html
from tinyllm_lib.course.views.steps import (
    CANDIDATES,
    SLIDERS,
    Steps,
    in_words,
    settings,
    steps_html,
)
from tinyllm_lib.course.widgets.frame import (
    Background,
    Panel,
    button,
    checkbox,
    follow,
    line,
    slider,
    text_box,
    view,
)
from tinyllm_lib.generate import Sampling, TextGenerator

REDRAW_SECONDS = 0.05
LEGEND = """\
<p class="note">Next token: the model's own probability (outline) → after the settings (filled).
Press a token to take it.</p>"""


class Knobs:
    """The five sliders of `Sampling`."""

    def __init__(self, start: Sampling):
        off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        values = {name: getattr(start, name) or off.get(name, 0) for name in SLIDERS}
        self.sliders = {
            name: slider(label, type(low)(values[name]), low, high, step, tooltip)
            for name, (label, low, high, step, tooltip) in SLIDERS.items()
        }
        layout = {"flex_flow": "row wrap", "width": "100%"}
        self.box = ipw.Box(list(self.sliders.values()), layout=layout)

    @property
    def sampling(self) -> Sampling:
        """What the sliders say."""
        return settings(**{name: round(made.value, 3) for name, made in self.sliders.items()})


def sampling_explorer(
    generator: TextGenerator,
    prompt: str = "从前",
    *,
    sampling: Sampling | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Panel:
    """Choose the next token, by dice or by hand, see what each setting does to the distribution,
    and take steps back.

    Args:
        prompt: a text to go on with, or a message to reply to (`chat`).
        sampling: where the sliders begin.
    """
    knobs = Knobs(sampling or Sampling())
    typed = text_box(prompt, "Prompt (then Enter)", layout={"width": "70%"})
    as_chat = checkbox(chat, "it is a message", "150px")
    steps, shown = Steps(generator, prompt, chat=chat, seed=seed), []
    text = view(125)
    rows, lines = [], []
    for _ in range(CANDIDATES):
        small, low = {"width": "150px", "height": "26px"}, {"height": "28px", "overflow": "hidden"}
        take = ipw.Button(layout=small, tooltip="take this token")
        rows.append((take, ipw.HTML(layout={"width": "100%"})))
        lines.append(ipw.HBox(rows[-1], layout={**low, "width": "98%"}))

    def draw() -> str:
        draw_one.disabled = draw_ten.disabled = bool(steps.end)
        undo.disabled = anew.disabled = not steps.chosen
        shown[:] = steps.candidates(knobs.sampling, CANDIDATES) if not steps.end else []
        largest = max((max(c.before, c.after) for c in shown), default=1.0)
        for i, (take, bar) in enumerate(rows):
            there = i < len(shown)
            take.disabled = not there
            # "" would leave the old name on the page.
            take.description = unescape(shown[i].name) if there else "\u00a0"
            bar.value = html.frame(html.candidate_bar(shown[i], largest)) if there else ""
        return steps_html(steps, typed.value, steps.kept(knobs.sampling) if not steps.end else 0)

    def go(choose) -> None:
        if not steps.end:
            choose()
            update()

    def draw_many(count: int) -> None:
        for _ in range(count):
            go(lambda: steps.draw(knobs.sampling))

    def back() -> None:
        steps.undo()
        update()

    def begin(_=None) -> None:
        nonlocal steps
        try:
            steps = Steps(generator, typed.value, chat=as_chat.value, seed=seed)
        except ValueError as mistake:
            text.value = html.error(mistake)
        else:
            update()

    draw_one = button("Draw a token", "throw the dice once", lambda: draw_many(1))
    draw_ten = button("Draw ten", "ten steps at once", lambda: draw_many(10))
    undo = button("Undo", "take the last token back", back)
    anew = button("Begin anew", "take all tokens back", begin)
    for number, (take, _) in enumerate(rows):
        take.on_click(lambda _, i=number: i < len(shown) and go(lambda: steps.take(shown[i].token)))
    update = follow(list(knobs.sliders.values()), draw, text)
    typed.observe(begin, "value")
    as_chat.observe(begin, "value")

    def pictures() -> list:
        best = steps.candidates(knobs.sampling, CANDIDATES)
        before = [c.piece for c in best], [c.before for c in best]
        after = {in_words(knobs.sampling): [c.after for c in best]}
        return [plots.next_token_bars(*before, after=after, title=f"after {typed.value}")]

    buttons = {"draw": draw_one, "draw_ten": draw_ten, "undo": undo, "anew": anew}
    top = [line(typed, as_chat), knobs.box, line(*buttons.values()), text]
    named = {
        "prompt": typed,
        "as_chat": as_chat,
        "knobs": knobs.sliders,
        "text": text,
        "rows": rows,
    }
    parts = [*top, ipw.HTML(html.frame(LEGEND)), ipw.VBox(lines)]
    return Panel("Sampling explorer", parts, pictures, **named, **buttons)


class Talk(Background):
    """A chat that writes in the background, and its turns as they are shown.

    Args:
        changed: called whenever there is something new to show, at most every REDRAW_SECONDS while
            a reply is written.
    """

    def __init__(self, chat: Chat, changed=lambda: None):
        super().__init__()
        self.chat, self.changed, self.turns = chat, changed, []

    def ask(self, question: str) -> None:
        """Begins the reply; not for an empty question, and not while another one is written."""
        if question.strip() and not self.busy:
            self.turns.append(html.Turn(question.strip(), []))
            self.begin(self._write, self.turns[-1])

    def reset(self) -> None:
        """Stops, and forgets the conversation."""
        self.stop()
        self.wait()
        self.turns.clear()
        self.chat.turns.clear()
        self.changed()

    def _write(self, turn: html.Turn) -> None:
        try:
            self.changed()
            drawn = 0.0
            with closing(self.chat.write(turn.question)) as pieces:
                for piece in pieces:
                    turn.reply.append(piece)
                    if self._stop.is_set():
                        turn.ended = "stopped"
                        break
                    if time.monotonic() > drawn + REDRAW_SECONDS:
                        self.changed()
                        drawn = time.monotonic()
        except Exception as mistake:  # shown, for nobody sees what a thread raises
            turn.ended = f"{type(mistake).__name__}: {mistake}"


def chat(
    generator: TextGenerator,
    *,
    sampling: Sampling | None = None,
    question: str = "你好呀",
    max_new_tokens: int = 256,
    seed: int = 0,
) -> Panel:
    """Talk to a model. Replies stream and can be stopped; resting the pointer on a word shows how
    likely the model found it.

    Args:
        question: stands in the box at first, and is the one that the static picture shows the
            answer to.
    """
    knobs = Knobs(sampling or Sampling(temperature=0.7, top_k=50))
    options = {"placeholder": "a message", "continuous_update": True, "layout": {"width": "70%"}}
    typed = text_box(question, "You (then Enter)", **options)
    numbers = checkbox(False, "write probabilities below", "200px")
    out = view(300)

    def draw(_=None) -> None:
        said = html.conversation(talk.turns, empty="Nothing said yet.", numbers=numbers.value)
        # Turned around twice: so the newest line stays in sight while the reply grows.
        style = "height:286px;overflow:auto;display:flex;flex-direction:column-reverse"
        said = f'<div style="{style}" tabindex="0"><div>{said}</div></div>'
        out.value = html.frame(said, role="log")
        send.disabled, stop.disabled, reset.disabled = talk.busy, not talk.busy, not talk.turns

    def as_set() -> Sampling:
        return replace(knobs.sampling, max_new_tokens=max_new_tokens, seed=seed)

    talk = Talk(Chat(generator, as_set()), draw)

    def ask() -> None:
        if talk.busy or not typed.value.strip():
            return
        talk.chat.sampling = as_set()
        asked, typed.value = typed.value, ""
        talk.ask(asked)

    send = button("Send", "or press Enter in the text box", ask)
    stop = button("Stop", "ends the reply that is being written", talk.stop)
    reset = button("Reset", "forgets the conversation", talk.reset)
    typed.on_msg(lambda _, content, __: content.get("event") == "submit" and ask())
    numbers.observe(draw, "value")
    draw()

    def pictures() -> list:
        ids, limit, _ = generator.chat_prompt(question, max_new_tokens)
        reply = list(write_ids(generator, ids, limit, Sampling(temperature=0)))
        return [reply_picture(generator, question, reply)]

    named = {"message": typed, "send": send, "stop": stop, "reset": reset, "numbers": numbers}
    parts = [out, line(typed, send, stop, reset), numbers, knobs.box]
    named |= {"knobs": knobs.sliders, "out": out, "talk": talk}
    return Panel("Chat with your model", parts, pictures, **named)


def reply_picture(generator: TextGenerator, question: str, reply: list[Written]):
    """A reply as a strip of its pieces with their probabilities, the least certain one framed."""
    pieces = [piece for piece in reply if piece.text] or [Written("", (1.0,))]
    chances = [math.prod(piece.probabilities) for piece in pieces]
    texts, notes = [piece.text for piece in pieces], [f"{p:.0%}" for p in chances]
    title = f"{question} → the likeliest reply, with the model's probability of each piece"
    least = chances.index(min(chances))
    return plots.token_strip(texts, notes, highlight=[least], title=title)
