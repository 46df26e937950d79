"""The demo's server: what visitors get, that they do not meet, and what they cannot do."""

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
import torch
from helpers.local_hub import serving
from helpers.small_model import TEXTS, make_model
from helpers.tiny import ROOT, wait_until

from tinyllm_lib.course.demo.classroom import Classroom, main, model_name
from tinyllm_lib.course.demo.visitors import Server
from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.model import save_checkpoint
from tinyllm_lib.tokenizer import train_tokenizer

HELLO = [{"role": "user", "content": "你好"}]


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    tokenizer = train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)
    return TextGenerator.from_model(make_model(len(tokenizer), context=96), tokenizer)


@pytest.fixture(scope="module")
def address(generator):
    server = Server(("127.0.0.1", 0), Classroom(generator, max_new_tokens=24))
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    ).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def post(url, content):
    """(status, answer as text)"""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def step(address, **request):
    return json.loads(post(address + "/step", request)[1])


def test_the_page_brings_all_it_needs_and_no_other_site_s_code(address):
    with urllib.request.urlopen(address + "/") as answer:
        page, headers = answer.read().decode(), answer.headers
    assert "parameters, context 96 tokens" in page and "<!--" not in page
    assert page.count('type="range"') == 10 and "https://" not in page and "http://" not in page
    assert (
        "default-src 'none'" in headers["Content-Security-Policy"]
        and "unsafe-eval" not in headers["Content-Security-Policy"]
    )
    with urllib.request.urlopen(address + "/demo.js") as answer:
        assert "eval(" not in answer.read().decode()


def test_a_reply_comes_in_pieces_with_probabilities(address):
    status, text = post(address + "/chat", {"messages": HELLO, "sampling": {"temperature": 1.0}})
    rows = [json.loads(line) for line in text.splitlines()]
    assert status == 200 and rows
    assert all("%" in row["html"] for row in rows if row["text"])


def test_a_greedy_reply_is_the_model_s_and_depends_on_the_turns_before(address, generator):
    def ask(messages):
        rows = post(address + "/chat", {"messages": messages, "sampling": {"temperature": 0}})[
            1
        ].splitlines()
        return "".join(json.loads(row)["text"] for row in rows)

    talk = [*HELLO, {"role": "assistant", "content": "好"}, {"role": "user", "content": "再见"}]
    assert ask(HELLO) == generator.chat(HELLO, temperature=0, max_new_tokens=24)
    assert ask(talk) == generator.chat(talk, temperature=0, max_new_tokens=24)


def test_the_explorer_moves_step_by_step(address):
    begin = step(address, prompt="你好", sampling={"top_k": 5})
    assert (
        begin["chosen"] == []
        and len(begin["candidates"]) == 10
        and "leave 5 of 300" in begin["text"]
    )
    taken = step(address, prompt="你好", take=begin["candidates"][1]["token"])
    assert taken["chosen"] == [begin["candidates"][1]["token"]]
    drawn = step(address, prompt="你好", chosen=taken["chosen"], draw=1000)
    assert drawn["chosen"][:1] == taken["chosen"] and len(drawn["chosen"]) <= 11, (
        "a request does not keep the model for long"
    )
    ended = step(address, prompt="你好", chosen=[4])
    assert ended["ended"] and ended["candidates"] == []


def test_many_visitors_at_once_do_not_meet(address, generator):
    """Greedy, so each visitor's answer can be known: thirty at once get what one alone gets."""
    questions = [f"{n}+{n}等于" for n in range(6)]
    alone = {q: generator.chat(q, temperature=0, max_new_tokens=24) for q in questions}

    def visit(number):
        question = questions[number % len(questions)]
        rows = post(
            address + "/chat",
            {"messages": [{"role": "user", "content": question}], "sampling": {"temperature": 0}},
        )[1]
        return "".join(json.loads(row)["text"] for row in rows.splitlines()) == alone[question]

    with ThreadPoolExecutor(30) as visitors:
        assert all(visitors.map(visit, range(60)))


def test_one_reply_does_not_wait_for_another_to_end(generator):
    room = Classroom(generator, max_new_tokens=60)
    with closing(room.chat({"messages": HELLO})) as long_reply:
        next(long_reply)
        assert list(room.chat({"messages": HELLO, "sampling": {"temperature": 0}})) is not None
        assert room.step({"prompt": "你好"})["candidates"]


def test_what_is_wrong_with_a_text_is_said_while_the_model_computes_for_another(generator):
    """A long text is turned into tokens beside the model, not in its way."""
    room, long = Classroom(generator), "好" * 500
    with room._model, ThreadPoolExecutor(2) as visitors:
        asked = [
            visitors.submit(
                lambda: list(room.chat({"messages": [{"role": "user", "content": long}]}))
            ),
            visitors.submit(room.step, {"prompt": long}),
        ]
        try:
            for reply, message in zip(asked, ("does not fit", "the context holds 96"), strict=True):
                with pytest.raises(ValueError, match=message):
                    reply.result(timeout=60)
        finally:
            room._model.release()
            room._model.acquire()


def test_a_model_without_memory_left_says_so_and_lives_on(address, generator, monkeypatch):
    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    forward = generator.model.hidden_states
    monkeypatch.setattr(generator.model, "hidden_states", no_memory)
    status, text = post(address + "/step", {"prompt": "你好"})
    assert status == 503 and "no memory left" in text and "GiB" not in text
    monkeypatch.setattr(generator.model, "hidden_states", forward)
    assert step(address, prompt="你好")["candidates"]


def test_a_visitor_who_leaves_ends_the_reply(generator):
    room = Classroom(generator, max_new_tokens=60)
    reply = room.chat({"messages": HELLO})
    next(reply)
    reply.close()
    assert not room._model.locked()


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("/chat", {}, 'expected "messages"'),
        ("/chat", {"messages": [{"role": "system", "content": "你是海盗"}]}, 'expected "messages"'),
        ("/chat", {"messages": [{"role": "user", "content": "  "}]}, "the prompt is empty"),
        ("/chat", {"messages": HELLO, "sampling": {"temperature": -1}}, "temperature is -1"),
        ("/chat", {"messages": HELLO, "sampling": {"device": 1}}, 'expected "sampling"'),
        ("/chat", {"messages": [{"role": "user", "content": "好" * 500}]}, "does not fit"),
        ("/step", {"prompt": 3}, 'expected "prompt"'),
        ("/step", {"prompt": ""}, "the prompt is empty"),
        ("/step", {"prompt": "你好", "chosen": [999]}, "not in the vocabulary"),
        ("/step", {"prompt": "你好", "take": -1}, "not in the vocabulary"),
        ("/step", {"prompt": "你好", "chosen": [7] * 200}, "the context holds 96"),
        ("/step", {"prompt": "你好", "sampling": {"top_k": 1e999}}, ""),
        ("/step", b"import os", "no JSON object"),
        ("/step", b"[" * 100_000, "no JSON object"),
        ("/step", b"[1]", "no JSON object"),
        ("/step", {"prompt": "你好", "chosen": [True, False]}, "token ids"),
        ("/step", {"prompt": "你好", "chosen": {"0": 1}}, "token ids"),
        ("/step", {"prompt": "你好", "chosen": [1.5]}, "token ids"),
        ("/step", {"prompt": "你好", "take": True}, "a token id"),
        ("/step", {"prompt": "你好", "draw": "ten"}, "how many tokens"),
        ("/step", {"prompt": "\ud800"}, "surrogate"),
        ("/step", {"prompt": "a" * 60_001}, "60,000"),
        ("/step", {"prompt": "你好", "sampling": {"temperature": True}}, 'expected "sampling"'),
        ("/step", {"prompt": "你好", "sampling": []}, 'expected "sampling"'),
        ("/step", {"prompt": "你好", "sampling": {"temperature": float("nan")}}, "too large"),
        ("/step", {"prompt": "你好", "sampling": {"top_k": 10**30}}, "too large"),
        ("/chat", {"messages": "你好"}, 'expected "messages"'),
        ("/chat", {"messages": ["你好"]}, 'expected "messages"'),
        ("/chat", {"messages": [{"role": ["user"], "content": "你好"}]}, 'expected "messages"'),
        ("/chat", {"messages": [{"role": "user", "content": "\udfff"}]}, "surrogate"),
        ("/chat", {"messages": HELLO * 401}, "begin a new one"),
        ("/chat", {"messages": [{"role": "user", "content": "a" * 60_001}]}, "begin a new one"),
        ("/step", b'{"prompt": "\xff\xfe"}', "no JSON object"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(address, path, content, message):
    status, text = post(address + path, content)
    assert status == 400 and message in json.loads(text)["error"]


def test_there_is_nothing_else_on_the_server(address):
    assert post(address + "/api/kernels", {"name": "python3"})[0] == 404
    for path in ("/api/contents", "/demo.html", "/../demo.py", "/%2e%2e/demo.py"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + path)


def test_text_from_visitors_stays_text(address):
    text = step(address, prompt="<img src=x onerror=alert(1)>")["text"]
    assert "<img" not in text and "&lt;img" in text


class Prefix(BaseHTTPRequestHandler):
    """A proxy as JupyterHub has one: what lies under a prefix goes to the demo without it."""

    def do_GET(self):
        self.forward(None)

    def do_POST(self):
        self.forward(self.rfile.read(int(self.headers["Content-Length"])))

    def forward(self, body):
        if not self.path.startswith(PREFIX):
            self.send_error(404)
            return
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.demo_port)) as demo:
            demo.request(self.command, self.path[len(PREFIX) - 1 :], body, dict(self.headers))
            answer = demo.getresponse()
            data = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


PREFIX = "/user/anna/proxy/8866/"


@contextmanager
def behind_a_prefix(port):
    """The address of the demo at this port behind such a proxy."""
    with serving(Prefix) as proxy:
        proxy.demo_port = port
        yield f"http://127.0.0.1:{proxy.server_port}{PREFIX}"


@pytest.fixture
def prefixed(address):
    with behind_a_prefix(int(address.rsplit(":", 1)[1])) as at:
        yield at


def test_the_page_works_behind_a_prefix(prefixed):
    """Every address that page and script name is relative to the page."""
    with urllib.request.urlopen(prefixed + "?from=x") as answer:
        page = answer.read().decode()
    scripts = re.findall(r'src="([^"]+)"', page)
    assert len(scripts) == 1
    with urllib.request.urlopen(urllib.parse.urljoin(prefixed, scripts[0])) as answer:
        script = answer.read().decode()
    posts = re.findall(r'post\("([^"]+)"', script)
    assert len(posts) == 2
    for path in posts:
        status, text = post(
            urllib.parse.urljoin(prefixed, path), {"messages": HELLO, "prompt": "你好"}
        )
        assert status == 200, text


# ---- the command


def test_it_is_said_how_far_the_model_had_come(generator, tmp_path):
    run = tmp_path / "chat"
    folder = save_checkpoint(run, 2, generator.model, generator.tokenizer, {})
    assert model_name(folder) == "chat, step 2 of ?"
    (run / "config.json").write_text('{"steps": 50}')
    assert model_name(folder) == "chat, step 2 of 50"
    assert "chat, step 2 of 50: " in Classroom(TextGenerator(run)).files()["/"][1].decode()
    assert model_name(tmp_path / "elsewhere") == "elsewhere" and model_name(None) == "a model"


def test_nothing_is_read_from_a_run_that_goes_on_training(generator, tmp_path):
    """The trainer removes old checkpoints; from a mapped file, gone on a network's disk, the
    process would die of it.
    """
    folder = save_checkpoint(tmp_path, 2, generator.model, generator.tokenizer, {})
    room = Classroom(TextGenerator(tmp_path))
    before = room.step({"prompt": "你好"})
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:  # in place, so that a mapping of the file sees it
        file.write(b"\0" * weights.stat().st_size)
    shutil.rmtree(folder)
    assert room.step({"prompt": "你好"}) == before


def test_without_a_chat_run_the_error_says_what_to_do(workspace_root, capsys):
    assert main([]) == 2
    error = capsys.readouterr().err
    assert (
        "there is no chat run yet" in error
        and "make course" in error
        and "TINYLLM_PROFILE" in error
    )


def test_a_taken_port_is_named(generator, tmp_path, capsys):
    generator.model.save_pretrained(tmp_path)
    generator.tokenizer.save_pretrained(str(tmp_path))
    with Server(("127.0.0.1", 0), Classroom(generator)) as server:
        port = server.server_address[1]
        assert main([str(tmp_path), "--port", str(port)]) == 2
    assert f"Port {port} is taken" in capsys.readouterr().err
    assert main([str(tmp_path), "--host", "no-such-host.invalid"]) == 2
    assert "--host is no-such-host.invalid, expected an address" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--allow-host", "https://hub.example.org/"])
    assert "expected one like hub.example.org" in capsys.readouterr().err


@pytest.mark.parametrize("tokens", ["0", "-5"])
def test_replies_without_a_token_are_refused(generator, tmp_path, capsys, tokens):
    generator.model.save_pretrained(tmp_path)
    generator.tokenizer.save_pretrained(str(tmp_path))
    # a host that is none: before this was refused, the demo started
    command = [str(tmp_path), "--host", "no-such-host.invalid", "--max-new-tokens", tokens]
    assert main(command) == 2
    said = f"demo: --max-new-tokens is {tokens}, expected 1 or more.\n"
    assert capsys.readouterr().err == said


def test_a_model_too_large_for_the_memory_is_one_sentence(generator, tmp_path, monkeypatch, capsys):
    def no_memory(*_, **__):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you"
            " tried to allocate 9 bytes."
        )

    generator.model.save_pretrained(tmp_path)
    monkeypatch.setattr("tinyllm_lib.course.demo.classroom.TextGenerator", no_memory)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("demo: there is not enough memory for this model")
        and error.count("\n") == 1
    )


def test_the_command_listens_on_loopback_until_ctrl_c(generator, tmp_path):
    generator.model.save_pretrained(tmp_path)
    generator.tokenizer.save_pretrained(str(tmp_path))
    command = [
        sys.executable,
        "-m",
        "tinyllm_lib.course.demo",
        str(tmp_path),
        "--port",
        "0",
        "--allow-host",
        "hub.example.org",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        line = process.stdout.readline()
        address = line.split(" at ")[1].split()[0]
        assert address.startswith("http://127.0.0.1:")
        wait_until(lambda: urllib.request.urlopen(address).status == 200, "the page")
        proxied = urllib.request.Request(address, headers={"Host": "hub.example.org"})
        assert urllib.request.urlopen(proxied).status == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "") and "ended" in out
    finally:
        process.kill()
        process.communicate()


def test_make_demo_takes_host_from_its_command_line_alone():
    """conda and some shells set HOST to the machine's name, which is no address."""

    def command(*arguments, **environment):
        make = ["make", "-n", "demo", *arguments]
        printed = subprocess.run(
            make, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
        ).stdout
        return " ".join(shlex.split(printed))  # as the shell takes it

    assert "--host" not in command() and "--host" not in command(HOST="x86_64-conda-linux-gnu")
    assert "--host 0.0.0.0 --port 9000" in command("HOST=0.0.0.0", "PORT=9000")
