"""A conversation, and the chat in the terminal: commands, Ctrl-C, errors of one line."""

import os
import subprocess
import sys

import pytest
from helpers.small_model import TEXTS, make_model

from tinyllm_lib.course import chat as module
from tinyllm_lib.course.chat import Chat, Written, main, talk
from tinyllm_lib.generate import Sampling, TextGenerator
from tinyllm_lib.model import write_model
from tinyllm_lib.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    tokenizer = train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)
    return TextGenerator.from_model(make_model(len(tokenizer), context=96), tokenizer)


@pytest.fixture(scope="module")
def folder(generator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, generator.model, generator.tokenizer)
    return folder


def said(chat, text):
    return "".join(piece.text for piece in chat.write(text))


def test_each_prompt_is_answered_by_itself(folder, capsys):
    arguments = [str(folder), "--max-new-tokens", "8", "--prompt", "你好", "--prompt", "你好"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out == 2 * out[: len(out) // 2], "each prompt is a conversation of its own"
    assert out == 2 * (TextGenerator(folder).chat("你好", max_new_tokens=8) + "\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-k", "0"], "top_k is 0"),
        (["--prompt", ""], "prompt is empty"),
        (["--temperature", "-1"], "temperature"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(folder, capsys, arguments, message):
    assert main([str(folder), "--prompt", "", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and message in captured.err


def test_commands(generator, monkeypatch):
    chat = Chat(generator, Sampling(max_new_tokens=4))
    said(chat, "你好")
    assert [t["role"] for t in chat.turns] == ["user", "assistant"]
    assert "forgotten" in chat.command("/reset") and not chat.turns
    assert "0.25" in chat.command("/temperature 0.25") and chat.sampling.temperature == 0.25
    assert "expected 0" in chat.command("/temperature -1") and chat.sampling.temperature == 0.25
    assert "could not convert" in chat.command("/temperature hot")
    assert "小猫" in chat.command("/system 你是小猫") and chat.system == "你是小猫"
    assert chat.command("/what").startswith("/reset") and chat.command("/exit") is None
    chat, seeds = Chat(generator, Sampling(seed=7)), []

    def seen(generator, ids, limit, sampling):
        seeds.append(sampling.seed)
        yield Written("好")

    monkeypatch.setattr(module, "write_ids", seen)
    assert said(chat, "你好") + said(chat, "你好") == "好好"
    assert seeds == [7, 9], "the same question asked twice may get two answers"


def test_a_conversation_at_a_terminal(folder, generator, monkeypatch, capsys):
    chat = Chat(generator, Sampling(temperature=0, max_new_tokens=6))
    write = module.write_ids
    lines = iter(["", "你好", "停", "巴黎" * 200, "/what", "/exit"])

    def stopped(*arguments):
        yield Written("半")
        raise KeyboardInterrupt  # Ctrl-C while the model computes

    def typed(prompt):
        line = next(lines)
        monkeypatch.setattr(module, "write_ids", stopped if line == "停" else write)
        return line

    monkeypatch.setattr("builtins.input", typed)
    talk(chat)
    captured = capsys.readouterr()
    first, second = chat.turns[1]["content"], chat.turns[3]["content"]
    assert captured.out == f"{first}\n半 …\n" and second == "半" and len(chat.turns) == 4
    told = captured.err.splitlines()
    assert told[1].startswith("error: the last message does not fit")
    assert told[2].startswith("/reset")
    pieces = [Written("", note="turns were left out"), Written("好"), Written("的")]
    monkeypatch.setattr(chat, "write", lambda line: (piece for piece in pieces))
    # as at a terminal: a note never stands in the reply's line
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    more = iter(["你好", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(more))
    talk(chat)
    assert capsys.readouterr().out.endswith("好的\nnote: turns were left out\n")
    for end in (EOFError, KeyboardInterrupt):
        monkeypatch.setattr("builtins.input", lambda _, end=end: (_ for _ in ()).throw(end))
        assert main([str(folder)]) == 0


def test_a_stopped_reply_stays_in_the_conversation(generator):
    chat = Chat(generator, Sampling(temperature=1.5, max_new_tokens=40))
    reply = chat.write("你好")
    begun = next(reply).text
    reply.close()  # what Ctrl-C does
    assert chat.turns[1] == {"role": "assistant", "content": begun}


def test_started_as_a_process_it_reads_what_comes_in(folder):
    command = [sys.executable, "-m", "tinyllm_lib.course.chat", str(folder)]
    lines = "你好\n/temperature 0\n再见\n/exit\n没有人读\n"
    done = subprocess.run(
        [*command, "--max-new-tokens", "6"],
        input=lines.encode(),
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    told = done.stderr.decode()
    assert done.returncode == 0, told
    assert "The temperature is 0." in told and "error" not in told
    assert done.stdout.decode().count("\n> ") == 4, "a prompt for each line up to /exit"
