"""Panels: what they say is what the library computes, every control changes it, and a picture
stands where there is no front end.
"""

import math
import re
import threading
import time
from contextlib import closing
from html import unescape

import pytest
import torch
from helpers.small_model import TEXTS, make_model
from helpers.tiny import wait_until

from tinyllm_lib.course import plots, widgets
from tinyllm_lib.course.chat import Chat, Written, write_ids
from tinyllm_lib.course.inside import attention_maps
from tinyllm_lib.course.views import html as views
from tinyllm_lib.course.views.steps import Steps, in_words, settings
from tinyllm_lib.course.widgets.dashboard import Control
from tinyllm_lib.course.widgets.sampling import Talk
from tinyllm_lib.course.widgets.text import Attention, Ladder, compare_tokenizers
from tinyllm_lib.generate import Sampling, TextGenerator, generate
from tinyllm_lib.generate.decoding import STOP_IDS
from tinyllm_lib.model import latest_checkpoint, step_folders, step_of
from tinyllm_lib.tokenizer import encode_chat, encode_text, token_bytes, train_tokenizer

pytest_plugins = ["helpers.tiny_fixtures"]

DIALOGUE = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好，小苗！"}]


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)


@pytest.fixture(scope="module")
def generator(tok):
    return TextGenerator.from_model(make_model(len(tok), context=96), tok)


def plain(html):
    """The text that a reader sees."""
    return unescape(re.sub(r"<[^>]*>", "", html))


def tooltips(html):
    return [unescape(title) for title in re.findall(r'title="([^"]*)"', html)]


# ---- views: data in, HTML out


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("中".encode(), "中"),
        (b"\xe4\xb8", "‹E4 B8›"),
        (b" a\n", "␣a⏎"),
        (b"", "∅"),
        (b"<b>&", "&lt;b&gt;&amp;"),
        ("😀".encode(), "😀"),
        (b"\x00", "‹00›"),
        ("\u200d".encode(), "‹E2 80 8D›"),
        ("好".encode() + b"\xf0\x9f", "好‹F0 9F›"),
    ],
)
def test_a_token_for_the_eye(piece, expected):
    assert views.shown(piece) == expected


def test_tokens_that_are_only_together_a_character_stand_under_one_roof():
    html = views.token_strip([b"\xe9\xbe", b"\x98", "好".encode()], [7, 8, 9], show_bytes=True)
    assert re.findall(r'data-text="(.*?)"', html) == ["龘"]
    assert "E9 BE" in plain(html) and "9" in plain(html)


def test_the_ladder_ticks_exactly_the_learned_targets():
    html = views.mask_ladder([b"a", b"b", b"c"], [b"b", b"c", b"d"], [0, 1, 1], starts=[0, 2])
    assert html.count("✓") == html.count('class="on"') == 2 and html.count(">learn<") == 2, (
        "each line has its names"
    )


def test_a_reply_says_how_likely_each_word_was():
    turns = [
        views.Turn(
            "1<2?",
            [Written("", note="left out"), Written("是", (0.9,)), Written("汁", (0.5, 0.5))],
            ended="stopped",
        )
    ]
    html = views.conversation(turns)
    assert tooltips(html) == ["90.0%", "25.0% = 50% × 50%, in 2 tokens"]
    assert html.count("unsure") == 1 and "1&lt;2?" in html
    assert [word in plain(html) for word in ("left out", "stopped", "是")] == [True] * 3
    assert "25%" in plain(views.conversation(turns, numbers=True)), (
        "for those who cannot rest a pointer on it"
    )
    assert "nobody" in views.conversation([], empty="nobody")


def test_bars_show_before_and_after_and_what_is_removed():
    assert "20.0% → 50.0%" in plain(views.candidate_bar(views.Candidate(1, b"a", 0.2, 0.5), 0.5))
    removed = views.candidate_bar(views.Candidate(1, b"a", 0.2, 0.0), 0.5)
    assert "20.0% → removed" in plain(removed) and 'class="after"' not in removed


# ---- probabilities of a streamed reply


def test_the_pieces_of_a_reply_carry_the_model_s_own_probabilities(generator):
    ids = encode_text(generator.tokenizer, "你好")
    sampling = Sampling(temperature=0.8, top_k=5, seed=3)
    pieces = list(write_ids(generator, ids, 30, sampling))
    text = [p for p in pieces if p.text]
    tokens = generate(generator.model, [ids], max_new_tokens=30, temperature=0.8, top_k=5, seed=3)[
        0
    ]
    expected = [math.exp(logprob) for logprob in tokens.logprobs]
    found = [q for piece in text for q in piece.probabilities]
    assert found == pytest.approx(expected[: len(found)]) and len(found) >= len(expected) - 3, (
        "unfinished bytes at the end give no text"
    )


def test_a_chat_writes_what_it_says_and_remembers_a_stopped_reply(generator):
    said = "".join(
        piece.text for piece in Chat(generator, Sampling(max_new_tokens=12)).write("你好")
    )
    chat = Chat(generator, Sampling(max_new_tokens=12))
    assert "".join(piece.text for piece in chat.write("你好")) == said
    with closing(chat.write("再见")) as pieces:
        begun = next(pieces)
    assert chat.turns[-1] == {"role": "assistant", "content": begun.text}


# ---- tokenizer playground


def test_two_tokenizers_side_by_side(tok, tmp_path):
    folding = train_tokenizer(TEXTS, tmp_path, vocab_size=280, nfkc=True)
    said = plain(compare_tokenizers({"ours": tok, "folding": folding}, "２５㎡"))
    assert said.count("✓ comes back unchanged") == 1 and "✗ comes back as “25m2”" in said
    assert "3 characters, 9 bytes" in said and "ours (300 entries)" in said


def test_typing_changes_the_tokens(tok):
    panel = widgets.tokenizer_playground(tok, "你好")
    first = panel.out.value
    panel.text.value = "你好😀"
    assert panel.out.value != first and "F0" in plain(panel.out.value)
    panel.show_bytes.value = False
    assert "E4 BD A0" not in plain(panel.out.value)
    panel.text.value = ""
    assert "0 tokens" in plain(panel.out.value)
    panel.text.value = "\ud800"
    assert 'role="alert"' in panel.out.value


# ---- mask explorer


def test_the_mask_is_the_one_that_trains(tok):
    chat, ladder = encode_chat(tok, DIALOGUE), Ladder(tok, DIALOGUE, 96)
    assert ladder.loss_mask == chat.loss_mask[1:]
    assert [*ladder.x, ladder.y[-1]] == [token_bytes(tok, i) for i in chat.ids]
    assert (
        f"{sum(chat.loss_mask)} of {len(chat) - 1} targets" in ladder.facts
        and len(ladder.starts) == 2
    )
    assert "nothing is learned" in Ladder(tok, DIALOGUE[:1], 96).facts


def test_editing_a_dialogue(tok):
    panel = widgets.mask_explorer(tok, DIALOGUE, max_length=64)
    learned = panel.out.value.count("✓")
    panel.rows[0][0].value = "assistant"
    assert panel.out.value.count("✓") == learned + len(encode_text(tok, "你好")) + 1, (
        "the text and its end"
    )
    panel.rows[1][1].value = ""
    assert panel.out.value.count("✓") == len(encode_text(tok, "你好")) + 2
    panel.add.click()
    assert panel.out.value.count(">learn<") == 3
    for _ in range(9):
        panel.add.click()
    assert panel.add.disabled and "left out" in panel.out.value, (
        "eight messages are too long for a row of 64"
    )
    for _ in range(9):
        panel.remove.click()
    assert panel.remove.disabled and panel.out.value.count(">learn<") == 1
    panel.rows[0][1].value = "法国的首都是巴黎。"
    panel.length.value = 8
    assert "cut off" in panel.out.value


# ---- attention explorer


def test_the_attention_is_the_model_s(generator):
    attention = Attention(generator, "法国的首都是巴黎。")
    maps = attention_maps(generator.model, torch.tensor([attention.ids]))[:, 0].detach().numpy()
    assert (attention.weights(1, 2) == maps[1, 2]).all() and attention.weights(
        0, -1
    ) == pytest.approx(maps[0].mean(0))
    said = plain(attention.html(1, 2, 3))
    best = maps[1, 2, 3, :4].argmax()
    assert (
        f"looks at {plain(views.shown(attention.pieces[best]))} {maps[1, 2, 3, best]:.0%}" in said
    )
    assert (
        attention.html(0, 0, 0).count("<rect")
        == len(attention.ids) * (len(attention.ids) + 1) // 2 + 2
    ), "nothing looks ahead"


def test_layer_head_and_position_are_chosen(generator):
    panel = widgets.attention_explorer(generator, "法国的首都是巴黎。")
    assert "layer 0, head 0" in panel.out.value and panel.position.value == panel.position.max
    panel.layer.value, panel.head.value, panel.position.value = 1, -1, 0
    assert (
        "layer 1, mean of all heads" in panel.out.value
        and "(position 0) looks at" in panel.out.value
    )
    panel.text.value = "你好"
    assert panel.position.value == len(encode_text(generator.tokenizer, "你好")) - 1, (
        "the last token of the new text"
    )
    panel.text.value = "好" * 200
    assert "expected 1 to 96" in panel.out.value
    panel.layer.value = 0
    assert 'role="alert"' in panel.out.value, "the mistake stays until the text is put right"
    panel.text.value = "法国"
    assert "layer 0" in panel.out.value


# ---- sampling explorer


def test_candidates_are_the_model_s_distribution_before_and_after(generator):
    steps, sampling = Steps(generator, "你好"), Sampling(temperature=0.5, top_k=3)
    p = generator.model(torch.tensor([steps.ids]))[0, -1].double().softmax(-1)
    best = steps.candidates(sampling, 5)
    assert [c.before for c in best] == pytest.approx(p.topk(5).values.tolist(), rel=1e-4)
    assert [c.after > 0 for c in best] == [True] * 3 + [False] * 2 and sum(
        c.after for c in best
    ) == pytest.approx(1)
    assert steps.kept(sampling) == 3 and steps.kept(Sampling()) == len(generator.tokenizer)


def test_steps_forward_and_back(generator):
    steps = Steps(generator, "你好", seed=1)
    before = steps.candidates(Sampling(), 3)
    drawn = [steps.draw(Sampling(temperature=1.5)) for _ in range(3)]
    assert steps.chosen == drawn and len(steps.chances()) == 3
    assert steps.chances() == pytest.approx(
        [_chance(generator, drawn, i) for i in range(3)], rel=1e-3
    )
    for _ in range(4):
        steps.undo()
    assert steps.chosen == [] and steps.candidates(Sampling(), 3) == before
    assert steps.take(5) == 5 and steps.chosen == [5]
    with pytest.raises(ValueError, match="token id 300 is not in the vocabulary"):
        steps.take(300)


def _chance(generator, chosen, i):
    ids = Steps(generator, "你好", chosen=chosen[:i]).ids
    return generator.model(torch.tensor([ids]))[0, -1].softmax(-1)[chosen[i]].item()


def test_a_text_ends_at_the_stop_token_and_at_the_context_s_end(generator):
    steps = Steps(generator, "你好")
    steps.take(STOP_IDS[0])
    with pytest.raises(ValueError, match="ended the text here. Undo a step"):
        steps.draw(Sampling())
    full = Steps(generator, "你好", chosen=[7] * (96 - len(steps.prompt_ids)))
    assert full.end == "The context is full."
    with pytest.raises(ValueError, match="the context holds 96"):
        Steps(generator, "你好", chosen=[7] * 96)
    with pytest.raises(ValueError, match="the prompt is empty"):
        Steps(generator, "")


def test_the_ends_of_the_sliders_mean_off():
    assert settings() == Sampling() == settings(1.0, 0, 1.0, 0.0, 1.0)
    assert settings(0.5, 3, 0.9, 0.1, 1.2) == Sampling(0.5, 3, 0.9, 0.1, 1.2)
    assert (
        in_words(settings(0.5, 3, 0.9, 0.1, 1.2))
        == "temperature 0.5, top-k 3, top-p 0.9, min-p 0.1, repetition 1.2"
    )


def test_the_sampling_panel(generator):
    panel = widgets.sampling_explorer(
        generator, "你好", sampling=Sampling(temperature=0.8, top_k=5)
    )
    assert "leave 5 of 300" in panel.text.value and panel.undo.disabled
    assert ["removed" in bar.value for _, bar in panel.rows] == [False] * 5 + [True] * 5
    panel.knobs["top_k"].value = 1
    assert "leave 1 of 300" in panel.text.value
    panel.draw.click()
    assert "1 tokens after it" in plain(panel.text.value) and not panel.undo.disabled
    panel.rows[4][0].click()
    assert "2 tokens after it" in plain(panel.text.value), (
        "a candidate can be taken although the settings removed it"
    )
    panel.undo.click()
    panel.undo.click()
    assert "0 tokens after it" in plain(panel.text.value) and panel.undo.disabled
    panel.prompt.value = ""
    assert "the prompt is empty" in panel.text.value
    panel.prompt.value = "<|im_end|>"  # text that looks like a token
    assert "&lt;|im_end|&gt;" in panel.text.value and "ended" not in panel.text.value
    panel.prompt.value, panel.as_chat.value = "法国", True
    assert "法国" in panel.text.value and "0 tokens after it" in plain(panel.text.value)


def test_when_the_text_has_ended_no_token_can_be_taken(generator, monkeypatch):
    monkeypatch.setattr(
        generator.model.lm_head,
        "forward",
        lambda x: torch.nn.functional.one_hot(torch.tensor(4), 300) + 0 * x[..., :1],
    )
    panel = widgets.sampling_explorer(generator, "你好")
    assert panel.rows[0][0].description == "<|im_end|>", "the label of a button is text, not HTML"
    panel.rows[0][0].click()
    assert (
        "ended the text here" in panel.text.value
        and panel.draw.disabled
        and not panel.undo.disabled
    )
    assert all(take.disabled and not take.description.strip() for take, _ in panel.rows)
    panel.undo.click()
    assert not panel.draw.disabled and panel.rows[0][0].description == "<|im_end|>"


# ---- chat


def slow(chat, seconds=0.02):
    write = chat.write

    def pieces(text):
        for piece in write(text):
            time.sleep(seconds)
            yield piece

    chat.write = pieces


def test_talk_streams_in_the_background_and_stops_at_once(generator):
    chat = Chat(generator, Sampling(temperature=1.5, max_new_tokens=80))
    slow(chat)
    changes = []
    talk = Talk(chat, lambda: changes.append(len(talk.turns[-1].reply) if talk.turns else -1))
    talk.ask("你好")
    talk.ask("not while the other one is written")
    wait_until(lambda: talk.turns[0].reply, "the first piece")
    assert talk.busy
    talk.stop()
    talk.wait(5)
    assert not talk.busy and talk.turns[0].ended == "stopped" and len(talk.turns) == 1
    assert chat.turns[1]["content"] == "".join(piece.text for piece in talk.turns[0].reply)
    talk.ask("再见")
    talk.wait(10)
    assert len(talk.turns) == 2 and len(chat.turns) == 4, "the second turn is sent with the first"
    talk.reset()
    assert talk.turns == chat.turns == [] and changes[-1] == -1


def test_what_goes_wrong_in_the_background_is_shown(generator):
    talk = Talk(Chat(generator, Sampling(max_new_tokens=8)))
    talk.ask("好" * 300)
    talk.wait(5)
    assert "does not fit" in talk.turns[0].ended and not talk.busy


def test_the_chat_panel(generator):
    panel = widgets.chat(generator, max_new_tokens=16)
    assert panel.stop.disabled and panel.reset.disabled and not panel.send.disabled
    panel.send.click()
    panel.talk.wait(10)
    assert (
        panel.message.value == ""
        and "你好呀" in panel.out.value
        and "role='log'" in panel.out.value
    )
    panel.send.click()
    assert len(panel.talk.turns) == 1, "an empty message is not sent"
    panel.message.value = "再见"
    panel.message._handle_custom_msg({"event": "submit"}, [])  # what Enter sends
    panel.talk.wait(10)
    assert len(panel.talk.turns) == 2 and not panel.send.disabled
    panel.knobs["temperature"].value = 0.3
    panel.message.value = "你好"
    panel.send.click()
    panel.talk.wait(10)
    assert panel.talk.chat.sampling.temperature == 0.3
    panel.reset.click()
    assert "Nothing said yet." in panel.out.value


# ---- training dashboard


def test_a_run_is_started_stopped_and_resumed_without_blocking(tiny_config, tmp_path):
    panel = widgets.training_dashboard(
        tiny_config(tmp_path / "run", steps=4000, log_interval=5), nproc_per_node=1
    )
    assert "not started" in panel.said.value and panel.stop.disabled and panel.resume.disabled
    began = time.monotonic()
    panel.start.click()
    assert time.monotonic() - began < 2 and panel.control.busy and panel.start.disabled
    again = widgets.training_dashboard(panel.control.config, nproc_per_node=1)
    assert again.control is panel.control, "a cell that is run twice finds its run"
    wait_until(lambda: "<polyline" in again.out.value, "the first losses", seconds=60)
    again.stop.click()
    assert "stopping" in again.said.value
    again.control.wait(60)
    assert "stopped" in again.said.value and "the checkpoint is saved" in again.out.value
    stopped_at = step_of(latest_checkpoint(tmp_path / "run"))
    assert 0 < stopped_at < 4000
    again.resume.click()
    wait_until(
        lambda: _step(again.out.value) > stopped_at,
        "a step after the one that it stopped at",
        seconds=60,
    )
    again.stop.click()
    again.control.wait(60)
    assert step_of(step_folders(tmp_path / "run")[-1]) > stopped_at


def _step(html):
    found = re.search(r"step ([\d,]+) of", html)
    return int(found[1].replace(",", "")) if found else 0


def test_a_run_that_fails_says_why(tiny_config, tmp_path):
    control = Control(tiny_config(tmp_path / "run", data_path=str(tmp_path / "nothing")), 1)
    control.start()
    control.wait(60)
    assert control.state == "failed" and "nothing" in control.error
    assert not Control.running


def test_a_run_is_shown_without_what_its_log_said_before(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(tmp_path / "run")
    (tmp_path / "run").mkdir()
    said = "2026-11-27 12:00:00  Stopped after step 3.\n"
    (tmp_path / "run" / "train.log").write_text(said, encoding="utf-8")
    launch = "tinyllm_lib.course.widgets.dashboard.launch"
    monkeypatch.setattr(launch, lambda *_, show, stop: show.update())
    control, shown = Control(config, 1), []
    control.show = shown.append
    control.resume()
    control.wait()
    assert shown and "Stopped after" not in shown[-1]["text/html"]


def test_the_states_of_a_run_on_disk(tiny_config, tmp_path):
    from tinyllm_lib.launch import launch

    config = tiny_config(tmp_path / "run")
    launch(config, nproc_per_node=1, show=False)
    panel = widgets.training_dashboard(config, nproc_per_node=1)
    assert panel.control.state == "finished" and panel.resume.disabled and not panel.start.disabled
    assert "step 12 of 12" in panel.out.value
    assert "12 steps taken" in panel.pictures()[0].axes[0].get_title(loc="left")


def test_launch_stops_when_it_is_told_to_from_another_thread(tiny_config, tmp_path, capsys):
    from tinyllm_lib.launch import launch

    stop = threading.Event()
    threading.Timer(6, stop.set).start()
    with pytest.raises(KeyboardInterrupt):
        launch(
            tiny_config(tmp_path / "run", steps=1_000_000), nproc_per_node=1, show=False, stop=stop
        )
    assert capsys.readouterr().out == ""


# ---- where nobody can press a button


def all_panels(generator, config):
    return [
        widgets.tokenizer_playground(generator.tokenizer),
        widgets.mask_explorer(generator.tokenizer, DIALOGUE),
        widgets.attention_explorer(generator, "法国的首都是巴黎。"),
        widgets.training_dashboard(config),
        widgets.sampling_explorer(generator, "你好"),
        widgets.chat(generator, max_new_tokens=16),
    ]


@pytest.mark.parametrize("front_end", [False, True])
def test_what_a_stored_notebook_holds(generator, tiny_config, tmp_path, monkeypatch, front_end):
    """Without a front end pictures alone; with one the panel and a picture, both with alt text."""
    import IPython.display

    outputs = []
    monkeypatch.setattr(
        IPython.display, "display", lambda data, **more: outputs.append((data, more))
    )
    monkeypatch.setattr(
        "tinyllm_lib.course.widgets.frame.has_notebook_front_end", lambda: front_end
    )
    panels = all_panels(generator, tiny_config(tmp_path / "never_started"))
    for panel in panels:
        panel._ipython_display_()
    assert len(outputs) == len(panels)
    for data, more in outputs:
        assert data["image/png"] and len(data["text/plain"]) > 20
        assert more["metadata"]["image/png"]["alt"] == data["text/plain"]
        assert ("application/vnd.jupyter.widget-view+json" in data) == front_end
        assert str(tmp_path) not in data["text/plain"]


def test_make_course_stores_pictures_alone(generator, monkeypatch):
    import IPython.display

    outputs = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **more: outputs.append(data))
    monkeypatch.setattr("tinyllm_lib.course.widgets.frame.has_notebook_front_end", lambda: True)
    monkeypatch.setenv("TINYLLM_STATIC_PANELS", "1")
    widgets.sampling_explorer(generator, "你好").show()
    assert [sorted(data) for data in outputs] == [["image/png", "text/plain"]]


def test_every_control_has_a_label_and_every_view_a_fixed_height(generator, tiny_config, tmp_path):
    import ipywidgets as ipw

    for panel in all_panels(generator, tiny_config(tmp_path / "never_started")):
        waiting = [panel.box]
        while waiting:
            widget = waiting.pop()
            waiting += getattr(widget, "children", ())
            if isinstance(widget, ipw.Button):
                assert widget.tooltip
            elif isinstance(widget, ipw.ValueWidget) and not isinstance(widget, ipw.HTML):
                assert widget.description, type(widget)
        assert (getattr(panel, "out", None) or panel.text).layout.height.endswith("px")


def test_a_reply_as_a_picture_frames_its_least_certain_piece(generator):
    from tinyllm_lib.course.widgets.sampling import reply_picture

    figure = reply_picture(generator, "你好", [Written("你", (0.9,)), Written("呀", (0.4,))])
    assert "你 | 呀" in figure.get_label() and plots.png_bytes(figure)
