"""The demo's web server: HTTP for strangers, with the standard library alone.

A page of another site must not use the browser of somebody in this network as its messenger, so the
server answers to the names it was started for, and to requests of its own page. Whatever a visitor
sends, and however slowly, costs one thread for a limited time, and is answered with one status line
and a sentence.
"""

from __future__ import annotations

import io
import json
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from http import HTTPStatus
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from socketserver import TCPServer, ThreadingMixIn

from tinyllm_lib.train import is_out_of_memory

LARGEST_REQUEST = 256 * 1024  # bytes
LARGEST_HEAD = 32 * 1024  # bytes of request line and headers
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": POLICY,
}


TOO_MANY = (
    b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Type: application/json\r\n\r\n"
    b'{"error": "too many visitors at once. Try again in a moment."}\n'
)


class Refusal(Exception):
    """A request that is turned away: with which status, and why."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class _Request(io.BufferedReader):
    """What a visitor sends. The head is bounded: `http.server` would take 6 MB from each."""

    left = LARGEST_HEAD

    def readline(self, size: int | None = -1, /) -> bytes:
        if self.left <= 0:
            raise LineTooLong("head")  # `http.server` answers with status 431
        line = super().readline(self.left)
        self.left -= len(line)
        return line


class Visit(BaseHTTPRequestHandler):
    """One request of a visitor's browser. HTTP/1.0: the connection ends with the reply."""

    # Of what is no HTTP at all; the standard library's 0.9 gets no status line.
    default_request_version = "HTTP/1.0"
    server: Server
    begun = False  # whether the status line is out

    def setup(self) -> None:
        """Bounds what the visitor may send, and for how long."""
        self.timeout = self.server.patience
        super().setup()
        self.rfile = _Request(self.rfile.detach())

    def do_GET(self) -> None:
        """The page and its script; nothing else is there."""
        self._answer(self._show)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """/chat streams a JSON object a line; /step answers with one."""
        self._answer(self._compute)

    def _answer(self, work: Callable[[], None]) -> None:
        """Whatever happens in `work`: one status line, and what went wrong in a sentence."""
        try:
            self._check_host()
            work()
        except OSError:
            raise  # the visitor has gone
        except Refusal as no:
            self._fail(no.status, str(no))
        except (ValueError, OverflowError) as mistake:
            self._fail(400, str(mistake))
        except Exception as error:
            if is_out_of_memory(error):
                told = (
                    "there was no memory left for this. Try a shorter text, or again in a moment."
                )
                return self._fail(503, told)
            traceback.print_exc()
            self._fail(500, "the demo has met a fault of its own; its terminal says which.")

    def _show(self) -> None:
        found = self.server.files.get(self.path.partition("?")[0])
        if found is None:
            raise Refusal(404, "there is only one page here: /")
        self._send(200, *found)

    def _compute(self) -> None:
        path = self.path.partition("?")[0]
        if path not in ("/chat", "/step"):
            raise Refusal(404, "no such address.")
        self._check_origin()
        body = self._body()
        if not self.server.places.acquire(blocking=False):
            many = f"{self.server.visitors} visitors are being answered just now"
            raise Refusal(503, f"{many}. Try again in a moment.")
        try:
            if path == "/chat":
                self._stream(self.server.room.chat(_parsed(body)))
            else:
                self._send_json(200, self.server.room.step(_parsed(body)))
        finally:
            self.server.places.release()

    def _check_host(self) -> None:
        """Other names may lead here: the owner of another site points one at it (DNS rebinding)."""
        names = self.headers.get_all("Host", [])
        name = host_name(names[0]) if len(names) == 1 else None
        here = host_name(f"[{self.connection.getsockname()[0]}]")
        if name is None or not (name in self.server.names or name == here or is_loopback(name)):
            told = f"the demo does not answer to the name {_quoted(names)}"
            raise Refusal(403, f"{told}. If it is its name, start it with --allow-host.")

    def _check_origin(self) -> None:
        """Browsers say whose script sends a request; no other site's may send JSON unasked."""
        host = self.headers["Host"]
        origin = self.headers.get("Origin", f"http://{host}").partition("://")[2]
        foreign = self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")
        if foreign or (origin != host and host_name(origin) not in self.server.allowed):
            told = f"the request comes from another site, {_quoted([origin])}"
            raise Refusal(403, f"{told}. If the demo is shown there, start it with --allow-host.")
        if self.headers.get_content_type() != "application/json":
            raise Refusal(415, "expected Content-Type: application/json.")

    def _body(self) -> bytes:
        sizes = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers:
            raise Refusal(501, "a request in chunks is not read here: expected a Content-Length.")
        if not sizes:
            raise Refusal(411, "expected a Content-Length.")
        if len(sizes) > 1 or not re.fullmatch("[0-9]{1,15}", sizes[0]):
            raise Refusal(400, f"Content-Length is {_quoted(sizes)}, expected one number of bytes.")
        if (size := int(sizes[0])) > LARGEST_REQUEST:
            raise Refusal(413, f"a request of {size:,} bytes; expected 1 to {LARGEST_REQUEST:,}.")
        body = self.rfile.read(size)
        if len(body) < size:
            raise Refusal(400, f"the request broke off after {len(body):,} of {size:,} bytes.")
        self.server.visits[self.connection] = time.monotonic() + self.server.longest
        return body

    def _stream(self, rows: Iterator[dict]) -> None:
        with closing(rows):
            row = next(rows)  # before the status line: what cannot be answered raises here
            self._head(200, "application/x-ndjson; charset=utf-8")
            while row is not None:
                self.wfile.write(_json(row))
                row = next(rows, None)

    def _fail(self, status: int, reason: str) -> None:
        if self.begun:  # in the middle of a stream
            self.wfile.write(_json({"error": reason}))
        else:
            self._send_json(status, {"error": reason})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses: no such method, no HTTP, a head too long."""
        self._fail(code, message or HTTPStatus(code).phrase)

    def _send_json(self, status: int, content: dict) -> None:
        self._send(status, "application/json; charset=utf-8", _json(content))

    def _send(self, status: int, kind: str, body: bytes) -> None:
        later = {"Retry-After": 5} if status == 503 else {}
        self._head(status, kind, {"Content-Length": len(body), **later})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, kind: str, more: dict | None = None) -> None:
        self.begun = True
        self.send_response(status)
        for name, value in {"Content-Type": kind, **(more or {}), **HEADERS}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody's questions are written down."""


class Server(ThreadingMixIn, TCPServer):
    """A thread for each request, one room for all.

    Args:
        address: (host, port); port 0 takes a free one.
        room: has `files()`: {path: (content type, content)}, and answers JSON objects:
            `step(request)` with one, `chat(request)` with a stream of them. A ValueError is the
            visitor's mistake; its text is sent.
        allowed: names that it answers to besides those of loopback, `host` and, where others can
            reach it, the machine.
    """

    allow_reuse_address = daemon_threads = True
    request_queue_size = 128  # a class that opens the page at once
    connections, visitors = 128, 48  # at once: threads, and requests that are being answered
    # seconds until a request must be here, and for a visitor to take each piece of the reply
    patience = 20.0
    longest = 900.0  # seconds of a whole reply

    def __init__(self, address: tuple[str, int], room, allowed: Sequence[str] = ()):
        self.room, self.files, self.allowed = room, room.files(), frozenset(allowed)
        self.places = threading.BoundedSemaphore(self.visitors)
        self.visits: dict[socket.socket, float] = {}  # connection -> when it must have ended
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Visit)
        self.names = self.allowed | {address[0].lower()}
        if not is_loopback(self.server_address[0]):
            machine = socket.gethostname().lower()
            short = machine.partition(".")[0]
            self.names |= {machine, short, f"{short}.local"}

    def process_request(self, request: socket.socket, client_address: object) -> None:
        """A thread for it, while there are any left."""
        if len(self.visits) < self.connections:
            self.visits[request] = time.monotonic() + self.patience
            with suppress(RuntimeError):  # the system has no thread left
                return super().process_request(request, client_address)
            del self.visits[request]
        with suppress(OSError):
            request.setblocking(False)  # this is the thread that lets everybody in
            request.send(TOO_MANY)
            request.recv(LARGEST_HEAD)
        self.close_request(request)

    def service_actions(self) -> None:
        """Ends visits that have had their time; called several times a second."""
        now = time.monotonic()
        for connection, end in list(self.visits.items()):
            if now > end:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: socket.socket) -> None:
        """Reads what is still sent, for a moment: closed before, our answer would be lost."""
        self.visits[request] = time.monotonic() + self.patience / 10
        with suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            while request.recv(LARGEST_HEAD):
                pass
        del self.visits[request]
        self.close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A visitor whose connection breaks is no news; anything else is."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def host_name(host: str) -> str | None:
    """The name or address in `name`, `name:port` or `[address]:port`, in one spelling, or None."""
    pattern = r"(?:\[([0-9A-Fa-f:.]+)(?:%\w+)?\]|([\w.-]+))(?::[0-9]{1,5})?"
    if not (found := re.fullmatch(pattern, host, re.ASCII)):
        return None
    name = found[1] or found[2].rstrip(".").lower()
    with suppress(ValueError):
        address = ip_address(name)
        return str(getattr(address, "ipv4_mapped", None) or address)
    return name


def is_loopback(name: str) -> bool:
    """Whether a host name or address is a machine's own loopback."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _parsed(body: bytes) -> dict:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise ValueError("the request is no JSON object.")
    return request


def _json(content: dict) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _quoted(values: list[str]) -> str:
    return ascii(", ".join(values))[:100]
