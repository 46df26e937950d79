"""A served model: started on a free port, answering as we do, and gone when the block ends."""

import importlib.util
import signal
import socket
import subprocess
import sys
import tempfile
import types

import httpx
import psutil
import pytest
import torch
from helpers.local_hub import HubHandler, serving
from helpers.tiny import DIALOGUES, random_run

from tinyllm_lib.generate import TextGenerator
from tinyllm_lib.share import serve, what_is_missing
from tinyllm_lib.share import server as module
from tinyllm_lib.share.server import Server, free_port

pytest_plugins = ["helpers.tiny_fixtures"]


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    """Random weights that write whole characters: each program shows broken ones in its own way."""
    broken = torch.tensor(["\ufffd" in tokenizer.decode([i]) for i in range(len(tokenizer))])
    folder = tmp_path_factory.mktemp("run")
    return random_run(folder, tokenizer, lambda weight: weight.masked_fill_(broken[:, None], 0))


def test_what_is_missing_is_said_with_what_installs_it(run, monkeypatch):
    monkeypatch.setattr(module, "NEEDS", ("torch", "no_such_package"))
    said = "No server here, for want of no_such_package: make setup EXTRAS=serve"
    assert what_is_missing() == said
    with pytest.raises(RuntimeError, match="EXTRAS=serve"), serve(run):
        pass
    monkeypatch.setattr(module, "NEEDS", ("torch",))
    assert what_is_missing() == ""


def test_a_taken_port_is_refused():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            free_port(other.getsockname()[1])


def test_a_server_that_ends_at_once_shows_its_last_lines(run, monkeypatch):
    monkeypatch.setattr(module, "what_is_missing", lambda: "")
    monkeypatch.setattr(module.sys, "executable", "/bin/cat")
    with pytest.raises(RuntimeError, match=r"(?s)exit code [^0].*option"), serve(run):
        pass


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_the_way_to_a_server_of_this_machine_leads_through_no_proxy(
    run, tmp_path, monkeypatch, proxy
):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    if importlib.util.find_spec("openai") is None:  # its ways with httpx are enough for this
        made = types.SimpleNamespace(
            OpenAI=lambda **options: types.SimpleNamespace(_client=options["http_client"]),
            DefaultHttpxClient=httpx.Client,
        )
        monkeypatch.setitem(sys.modules, "openai", made)

    class Answer(HubHandler):
        def do_GET(self):
            self.send_json(200, {})

    with serving(Answer) as there:
        url = f"http://127.0.0.1:{there.server_port}/v1"
        assert Server(url, "m", 0).client()._client.get(f"{url}/models").status_code == 200
        with (
            subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
            tempfile.TemporaryFile() as log,
        ):
            module._wait_until_ready(process, f"{url}/models", 60, log)
            process.communicate(b"\n")

    program = tmp_path / "program"
    program.write_text(
        f"#!{sys.executable}\nimport httpx\nhttpx.Client()\nprint('made a client')\nraise"
        " SystemExit(3)\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(module, "what_is_missing", lambda: "")
    monkeypatch.setattr(module.sys, "executable", str(program))
    with pytest.raises(RuntimeError, match=r"(?s)exit code 3.*made a client"), serve(run):
        pass


def asked(server, messages):
    client = server.client()
    reply = client.chat.completions.create(
        model=server.model, messages=messages, temperature=0, max_tokens=24
    )
    pieces = client.chat.completions.create(
        model=server.model, messages=messages, temperature=0, max_tokens=24, stream=True
    )
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    return reply.choices[0].message.content, streamed


def assert_gone(server):
    assert not psutil.pid_exists(server.pid)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(
            ("127.0.0.1", int(server.url.split(":")[2].split("/")[0])), timeout=2
        )


@pytest.mark.slow
def test_transformers_serves_our_greedy_reply_and_goes(run):
    if missing := what_is_missing():
        pytest.skip(missing)
    messages = DIALOGUES[0][:2]
    said = []

    def interrupted():
        with serve(run) as server:
            said.extend([server, *asked(server, messages)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    server, reply, streamed = said
    assert server.model == "step_000005"
    assert reply == streamed == TextGenerator(run).replies([messages], max_new_tokens=24)[0]
    assert_gone(server)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a signal")
def test_from_a_terminal_it_says_its_address_and_ctrl_c_ends_it(run):
    if missing := what_is_missing():
        pytest.skip(missing)
    command = [sys.executable, "-m", "tinyllm_lib.share", "serve", str(run), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True
    ) as process:
        url, model = (process.stdout.readline().split()[1] for _ in range(2))
        children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        reply, _ = asked(Server(url, model, children[0]), DIALOGUES[0][:2])
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert reply == TextGenerator(run).replies([DIALOGUES[0][:2]], max_new_tokens=24)[0]
    assert not any(map(psutil.pid_exists, children))
