"""Panels about text on its way out of the model: the next token step by step, and a chat."""

from __future__ import annotations

import math
import threading
import time
from contextlib import closing
from dataclasses import replace
from html import escape, unescape

import ipywidgets as ipw

from tinyllm_lib.course import plots
from tinyllm_lib.course.widgets import views
from tinyllm_lib.course.widgets.frame import LABEL, Panel, button, follow, line, slider, view
from tinyllm_lib.course.widgets.steps import Steps, settings
from tinyllm_lib.generate import Chat, Sampling, TextGenerator, Written

CANDIDATES = 10
REDRAW_SECONDS = 0.05

SLIDERS = {  # name: label, low, high, step, tooltip; both ends included
    "temperature": (
        "Temperature",
        0.0,
        2.0,
        0.05,
        "0: always the likeliest; 1: the model's own; above: flatter",
    ),
    "top_k": ("Top-k (0: off)", 0, 100, 1, "keep the k likeliest tokens"),
    "top_p": (
        "Top-p (1: off)",
        0.05,
        1.0,
        0.05,
        "keep the fewest tokens that together have this probability",
    ),
    "min_p": (
        "Min-p (0: off)",
        0.0,
        1.0,
        0.02,
        "keep tokens at least this many times as likely as the likeliest",
    ),
    "repetition_penalty": (
        "Repetition (1: off)",
        1.0,
        2.0,
        0.05,
        "above 1: what stands in the text already gets less likely",
    ),
}


class Knobs:
    """The five sliders of `Sampling`."""

    def __init__(self, start: Sampling):
        values = {"temperature": start.temperature, "top_k": start.top_k or 0, "top_p": start.top_p or 1.0, "min_p": start.min_p or 0.0,
                  "repetition_penalty": start.repetition_penalty}  # fmt: skip
        self.sliders = {
            name: slider(label, type(low)(values[name]), low, high, step, tooltip)
            for name, (label, low, high, step, tooltip) in SLIDERS.items()
        }
        self.box = ipw.Box(
            list(self.sliders.values()), layout={"flex_flow": "row wrap", "width": "100%"}
        )

    @property
    def sampling(self) -> Sampling:
        """What the sliders say."""
        return settings(**{name: round(made.value, 3) for name, made in self.sliders.items()})


def in_words(sampling: Sampling) -> str:
    """For example "temperature 0.7, top-k 50"."""
    values = {"top-k": sampling.top_k, "top-p": sampling.top_p, "min-p": sampling.min_p,
              "repetition": None if sampling.repetition_penalty == 1 else sampling.repetition_penalty}  # fmt: skip
    return ", ".join(
        [f"temperature {sampling.temperature:g}"]
        + [f"{name} {value:g}" for name, value in values.items() if value]
    )


def steps_html(steps: Steps, prompt: str, kept: int) -> str:
    """The text so far as HTML, chosen tokens as boxes with their probability, and how many tokens
    the settings leave.
    """
    pieces = steps.pieces()
    strip = (
        views.token_strip(pieces, steps.chosen, notes=[f"{p:.0%}" for p in steps.chances()])
        if pieces
        else ""
    )
    vocabulary = len(steps.generator.tokenizer)
    said = steps.end or f"The settings leave {kept:,} of {vocabulary:,} tokens for the next step."
    return views.frame(f'<p><b>{escape(prompt)}</b> <span class="note">and {len(pieces)} tokens after it:</span></p>{strip}'
                       f'<p class="note" role="status">{said}</p>')  # fmt: skip


def sampling_explorer(generator: TextGenerator, prompt: str = "从前", *, sampling: Sampling | None = None, chat: bool = False,
                      seed: int = 0) -> Panel:  # fmt: skip
    """Choose the next token, by dice or by hand, see what each setting does to the distribution,
    and take steps back.

    Args:
        prompt: a text to go on with, or a message to reply to (`chat`).
        sampling: where the sliders begin.
    """
    knobs = Knobs(sampling or Sampling())
    typed = ipw.Text(
        value=prompt,
        description="Prompt (then Enter)",
        continuous_update=False,
        style=LABEL,
        layout={"width": "70%"},
    )
    as_chat = ipw.Checkbox(
        value=chat, description="it is a message", indent=False, layout={"width": "150px"}
    )
    steps, shown = Steps(generator, prompt, chat=chat, seed=seed), []
    text = view(125)
    rows = [
        (ipw.Button(layout={"width": "150px", "height": "26px"}, tooltip="take this token"), ipw.HTML(layout={"width": "100%"}))
        for _ in range(CANDIDATES)
    ]  # fmt: skip
    table = ipw.VBox(
        [
            ipw.HBox(row, layout={"height": "28px", "overflow": "hidden", "width": "98%"})
            for row in rows
        ]
    )

    def draw() -> str:
        draw_one.disabled = draw_ten.disabled = bool(steps.end)
        undo.disabled = anew.disabled = not steps.chosen
        shown[:] = steps.candidates(knobs.sampling, CANDIDATES) if not steps.end else []
        largest = max((max(c.before, c.after) for c in shown), default=1.0)
        for i, (take, bar) in enumerate(rows):
            take.disabled = i >= len(shown)
            take.description = (
                unescape(shown[i].name) if i < len(shown) else "\u00a0"
            )  # "" would leave the old one on the page
            bar.value = (
                views.frame(views.candidate_bar(shown[i], largest)) if i < len(shown) else ""
            )
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
            text.value = views.error(mistake)
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
        after = {in_words(knobs.sampling): [c.after for c in best]}
        return [
            plots.next_token_bars(
                [c.piece for c in best],
                [c.before for c in best],
                after=after,
                title=f"after {typed.value}",
            )
        ]

    legend = ipw.HTML(views.frame('<p class="note">Next token: the model\'s own probability (outline) → after the settings (filled). '
                                  "Press a token to take it.</p>"))  # fmt: skip
    parts = [
        line(typed, as_chat),
        knobs.box,
        line(draw_one, draw_ten, undo, anew),
        text,
        legend,
        table,
    ]
    panel = Panel("Sampling explorer", parts, pictures)
    panel.prompt, panel.as_chat, panel.knobs, panel.text = typed, as_chat, knobs.sliders, text
    panel.draw, panel.draw_ten, panel.undo, panel.anew, panel.rows = (
        draw_one,
        draw_ten,
        undo,
        anew,
        rows,
    )
    return panel


class Talk:
    """A chat that writes in a thread of its own, so that it can be stopped; turns as they are
    shown.

    Args:
        changed: called whenever there is something new to show, at most every REDRAW_SECONDS while
            a reply is written.
    """

    def __init__(self, chat: Chat, changed=lambda: None):
        self.chat, self.changed, self.turns = chat, changed, []
        self._stop, self._thread = threading.Event(), None

    @property
    def busy(self) -> bool:
        """Whether a reply is being written."""
        return self._thread is not None

    def ask(self, question: str) -> None:
        """Begins the reply and returns at once; nothing happens for an empty question or while
        another reply is written.
        """
        if not question.strip() or self.busy:
            return
        self._stop.clear()
        turn = views.Turn(question.strip(), [])
        self.turns.append(turn)
        self._thread = threading.Thread(target=self._write, args=(turn,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the reply after the token that is being computed; what was written stays in the
        conversation.
        """
        self._stop.set()

    def reset(self) -> None:
        """Stops, and forgets the conversation."""
        self.stop()
        self.wait()
        self.turns.clear()
        self.chat.turns.clear()
        self.changed()

    def wait(self, seconds: float | None = None) -> None:
        """Until the reply is written."""
        if (thread := self._thread) is not None:
            thread.join(seconds)

    def _write(self, turn: views.Turn) -> None:
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
        finally:
            self._thread = None
            self.changed()


def chat(generator: TextGenerator, *, sampling: Sampling | None = None, question: str = "你好呀", max_new_tokens: int = 256,
         seed: int = 0) -> Panel:  # fmt: skip
    """Talk to a model. Replies stream and can be stopped; resting the pointer on a word shows how
    likely the model found it.

    Args:
        question: stands in the box at first, and is the one that the static picture shows the
            answer to.
    """
    knobs = Knobs(sampling or Sampling(temperature=0.7, top_k=50))
    typed = ipw.Text(
        value=question,
        description="You (then Enter)",
        placeholder="a message",
        style=LABEL,
        layout={"width": "70%"},
    )
    numbers = ipw.Checkbox(
        value=False,
        description="write probabilities below",
        indent=False,
        layout={"width": "200px"},
    )
    out = view(300)

    def draw(_=None) -> None:
        talk_html = views.conversation(talk.turns, empty="Nothing said yet.", numbers=numbers.value)
        # Turned around twice: so the newest line stays in sight while the reply grows.
        out.value = views.frame(f'<div style="height:286px;overflow:auto;display:flex;flex-direction:column-reverse" tabindex="0">'
                                f"<div>{talk_html}</div></div>", role="log")  # fmt: skip
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
        reply = list(generator.write_ids(ids, limit, Sampling(temperature=0)))
        return [reply_picture(generator, question, reply)]

    panel = Panel(
        "Chat with your model", [out, line(typed, send, stop, reset), numbers, knobs.box], pictures
    )
    panel.message, panel.send, panel.stop, panel.reset, panel.numbers = (
        typed,
        send,
        stop,
        reset,
        numbers,
    )
    panel.knobs, panel.out, panel.talk = knobs.sliders, out, talk
    return panel


def reply_picture(generator: TextGenerator, question: str, reply: list[Written]):
    """A reply as a strip of its pieces with their probabilities, the least certain one framed."""
    pieces = [piece for piece in reply if piece.text] or [Written("", (1.0,))]
    chances = [math.prod(piece.probabilities) for piece in pieces]
    least = chances.index(min(chances))
    title = f"{question} → the likeliest reply, with the model's probability of each piece"
    return plots.token_strip(
        [piece.text for piece in pieces],
        [f"{p:.0%}" for p in chances],
        highlight=[least],
        title=title,
    )
