"""A web page for the classroom: the sampling explorer and a chat with the class's own model.

    python -m tinyllm_lib.demo [RUN] [--host 127.0.0.1] [--port 8866]

One process holds one model, and every request brings all that it needs: the conversation, the tokens chosen so far, the
settings. So visitors cannot disturb each other, and thirty of them need hardly more memory than one. The model computes one
token at a time, for one visitor after the other, so that nobody waits for a neighbour's long reply. Visitors send text and
numbers; there is no kernel behind the page, and no way to run code.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

from tinyllm_lib.checkpoint import step_folders
from tinyllm_lib.generate import TextGenerator, Written
from tinyllm_lib.machine import utf8_output
from tinyllm_lib.sampling import Sampling
from tinyllm_lib.terminal import Chat
from tinyllm_lib.widgets import views
from tinyllm_lib.widgets.sampling import CANDIDATES, SLIDERS, steps_html
from tinyllm_lib.widgets.steps import Steps, settings
from tinyllm_lib.workspace import get_workspace

PAGE = Path(__file__).resolve().parent / "page"
LARGEST_REQUEST = 256 * 1024  # bytes; a conversation of a few hundred turns
MOST_STEPS = 10  # tokens of one request of the explorer
START = {"temperature": 0.7, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
POLICY = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'"
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": POLICY}


class Classroom:
    """The model that all visitors share, and what each of their requests is answered with.

    Args:
        max_new_tokens: longest reply.
    """

    def __init__(self, generator: TextGenerator, *, max_new_tokens: int = 256):
        self.generator, self.max_new_tokens = generator, max_new_tokens
        self._model = threading.Lock()  # one computation at a time: two at once would only slow each other down

    def chat(self, request: dict) -> Iterator[Written]:
        """The reply to the last of `messages`, piece by piece; closing the iterator ends it.

        Raises:
            ValueError: a request that cannot be answered, before the first piece.
        """
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages or not all(_is_message(m) for m in messages):
            raise ValueError('expected "messages": [{"role": "user" or "assistant", "content": text}, …].')
        chat = Chat(self.generator, _sampling(request), max_new_tokens=self.max_new_tokens, seed=secrets.randbits(32),
                    turns=messages[:-1])  # fmt: skip
        with closing(chat.write(messages[-1]["content"])) as pieces:
            while True:
                with self._model:
                    piece = next(pieces, None)
                if piece is None:
                    return
                yield piece

    def step(self, request: dict) -> dict:
        """One move of the sampling explorer: the text so far and the candidates for the next token.

        Args:
            request: prompt, chat (whether it is a message), chosen (token ids), sampling, and a move: draw (how many
                tokens) or take (a token id) or neither.

        Raises:
            ValueError: a request that cannot be answered.
        """
        prompt, chosen, sampling = request.get("prompt"), request.get("chosen", []), _sampling(request)
        if not isinstance(prompt, str) or not isinstance(chosen, list) or not all(isinstance(t, int) for t in chosen):
            raise ValueError('expected "prompt": text and "chosen": [token ids].')
        if not all(0 <= token < len(self.generator.tokenizer) for token in chosen):
            raise ValueError("a chosen token is not in the vocabulary.")
        with self._model:
            steps = Steps(self.generator, prompt, chat=bool(request.get("chat")), chosen=chosen, seed=secrets.randbits(32))
            if isinstance(take := request.get("take"), int):
                steps.take(take)
            draw = request.get("draw")
            for _ in range(min(draw, MOST_STEPS) if isinstance(draw, int) else 0):
                if not steps.end:
                    steps.draw(sampling)
            best = [] if steps.end else steps.candidates(sampling, CANDIDATES)
            text = steps_html(steps, prompt, 0 if steps.end else steps.kept(sampling))
        largest = max((max(c.before, c.after) for c in best), default=1.0)
        rows = [{"token": c.token, "name": c.name, "bar": views.candidate_bar(c, largest)} for c in best]
        return {"chosen": steps.chosen, "text": text, "candidates": rows, "ended": bool(steps.end)}

    def page(self) -> str:
        """The page, with this model's name and the sliders."""
        folder = self.generator.folder
        name = f"{folder.parent.parent.name}, {folder.name}" if folder and folder.parent.name == "checkpoints" else "a model"
        facts = f"{name}: {self.generator.model.num_parameters():,} parameters, context {self.generator.context} tokens"
        html = (PAGE / "demo.html").read_text(encoding="utf-8")
        for place, text in {"<!--css-->": f"<style>{views.CSS}</style>", "<!--model-->": escape(facts)}.items():
            html = html.replace(place, text)
        return html.replace("<!--chat-sliders-->", _sliders("chat")).replace("<!--step-sliders-->", _sliders("step"))


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") in ("user", "assistant") and isinstance(message.get("content"), str)


def _sampling(request: dict) -> Sampling:
    given = request.get("sampling", {})
    if not isinstance(given, dict) or set(given) - set(SLIDERS) or not all(isinstance(v, int | float) for v in given.values()):
        raise ValueError(f'expected "sampling": numbers for some of {", ".join(SLIDERS)}.')
    return settings(**{**START, **given})


def _sliders(group: str) -> str:
    return "".join(
        f'<label title="{escape(tip)}"><span>{escape(label)}</span><input type="range" name="{name}" data-group="{group}" min="{low}" '
        f'max="{high}" step="{step}" value="{START[name]}"><output>{START[name]:g}</output></label>'
        for name, (label, low, high, step, tip) in SLIDERS.items()
    )


class Visit(BaseHTTPRequestHandler):
    """One request of a visitor's browser."""

    timeout = 60  # seconds that a visitor may keep silent in the middle of a request
    server: Server

    def do_GET(self) -> None:
        """The page and its script; nothing else is there."""
        if self.path == "/":
            self._send(200, "text/html; charset=utf-8", self.server.classroom.page().encode())
        elif self.path == "/demo.js":
            self._send(200, "text/javascript; charset=utf-8", (PAGE / "demo.js").read_bytes())
        else:
            self._send(404, "text/plain; charset=utf-8", b"There is only one page here: /\n")

    def do_POST(self) -> None:
        """/chat streams a JSON object a line; /step answers with one."""
        try:
            if self.path == "/chat":
                self._stream(self.server.classroom.chat(self._request()))
            elif self.path == "/step":
                self._send_json(200, self.server.classroom.step(self._request()))
            else:
                self._send_json(404, {"error": "no such address"})
        except (ValueError, OverflowError) as mistake:
            self._send_json(400, {"error": str(mistake)})
        except OSError:
            self.close_connection = True  # the visitor has gone

    def _request(self) -> dict:
        size = int(self.headers.get("Content-Length") or 0)
        if not 0 < size <= LARGEST_REQUEST:
            raise ValueError(f"a request of {size:,} bytes; expected 1 to {LARGEST_REQUEST:,}.")
        try:
            request = json.loads(self.rfile.read(size))
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            raise ValueError("the request is no JSON object.")
        return request

    def _stream(self, pieces: Iterator[Written]) -> None:
        with closing(pieces):
            piece = next(pieces, None)  # before the status line: a request that cannot be answered raises here
            self._head(200, "application/x-ndjson; charset=utf-8")
            while piece is not None:
                row = {"text": piece.text, "html": views.written(piece), "note": piece.note}
                self.wfile.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                piece = next(pieces, None)

    def _send_json(self, status: int, content: dict) -> None:
        self._send(status, "application/json; charset=utf-8", json.dumps(content, ensure_ascii=False).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self._head(status, kind, len(body))
        self.wfile.write(body)

    def _head(self, status: int, kind: str, size: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if size is not None:
            self.send_header("Content-Length", str(size))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody's questions are written down."""


class Server(ThreadingHTTPServer):
    """The demo's server: a thread for each request, one model.

    Args:
        address: (host, port); port 0 takes a free one.
    """

    daemon_threads = True
    request_queue_size = 128  # a class that opens the page at once

    def __init__(self, address: tuple[str, int], classroom: Classroom):
        self.classroom = classroom
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Visit)

    def handle_error(self, request: object, client_address: object) -> None:
        """A visitor whose connection breaks is no news; anything else is."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    utf8_output()
    options = _parser().parse_args(argv)
    workspace = get_workspace()
    run = Path(options.run) if Path(options.run).exists() else workspace.run(options.run)
    if not step_folders(run) and not (run / "model.safetensors").is_file():
        print(f"demo: there is no chat run yet: {run} holds no checkpoint. Run `make course` (or notebooks 05 and 06) first, set "
              f"TINYLLM_PROFILE to the profile that you ran, or name another run: python -m tinyllm_lib.demo RUN.", file=sys.stderr)
        return 2
    try:
        classroom = Classroom(TextGenerator(run, device=options.device), max_new_tokens=options.max_new_tokens)
        server = Server((options.host, options.port), classroom)
    except (OSError, ValueError, OverflowError) as error:
        print(f"demo: {error}" + _advice(error, options), file=sys.stderr)
        return 2
    host, port = server.server_address[:2]
    print(f"The sampling explorer and a chat with {run.name} are at http://{_reachable(host)}:{port}/ (Ctrl-C ends it)", flush=True)
    if not ip_address(host).is_loopback:
        print("Everybody who can reach this machine can open it. They can talk to the model, and nothing else.", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print("The demo has ended.")
    finally:
        server.server_close()
    return 0


def _advice(error: Exception, options: argparse.Namespace) -> str:
    if isinstance(error, OSError) and "in use" in str(error):
        return f". Port {options.port} is taken: is the demo running already? Choose another: make demo PORT={options.port + 1}."
    return ""


def _reachable(host: str) -> str:
    if ip_address(host).is_unspecified:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _parser() -> argparse.ArgumentParser:
    what = "A web page with the sampling explorer and a chat with your model, for many visitors."
    parser = argparse.ArgumentParser(prog="python -m tinyllm_lib.demo", description=what)
    add = parser.add_argument
    add("run", nargs="?", default="chat", metavar="RUN", help="a run of the workspace, or a run or model folder (default: %(default)s)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: the whole network may visit (default: %(default)s)")
    add("--port", type=int, default=8866, help="port; 0: any free one (default: %(default)s)")
    add("--max-new-tokens", type=int, default=256, help="longest reply, in tokens (default: %(default)s)")
    add("--device", help="cpu, cuda or mps (default: cuda where there is one, else cpu)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
