"""The demo's web server against strangers, with raw sockets: whom it answers, what it refuses, and
that everything ends.
"""

import contextlib
import itertools
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.tiny import wait_until

from tinyllm_lib.course.demo.visitors import LARGEST_REQUEST, Server, host_name

OWN = "127.0.0.1"


class Room:
    """Answers with what it was asked; a test may put something else in the place of `chat` and
    `step`.
    """

    def files(self):
        return {
            "/": ("text/html; charset=utf-8", b"<p>page</p>"),
            "/demo.js": ("text/javascript; charset=utf-8", b"0;"),
        }

    def step(self, request):
        return {"asked": request}

    def chat(self, request):
        yield {"text": "好"}
        yield {"text": "", "end": True}


@contextlib.contextmanager
def serving(room=None, host=OWN, allowed=(), **limits):
    server = type("Limited", (Server,), limits)((host, 0), room or Room(), allowed)
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    ).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def connect(server):
    return socket.create_connection((OWN, server.server_address[1]), timeout=60)


def read(connection):
    """All that comes, until the server ends the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):  # what it sent before stands
        while part := connection.recv(65536):
            received += part
    return received


def sent(server, data):
    with connect(server) as connection:
        connection.sendall(data)
        return read(connection)


def status(answer):
    """Of an answer that has one status line, and a sentence where it is a refusal."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.count(b"HTTP/1.") == 1 and answer.startswith(b"HTTP/1."), answer
    code = int(head.split()[1])
    if code != 200 and body:
        assert json.loads(body).keys() == {"error"}
    return code


def request(method="GET", path="/", body=b"", version="HTTP/1.1", **headers):
    """A request as bytes; headers with None are left out."""
    given = (
        {"Host": OWN}
        | (
            {"Content_Type": "application/json", "Content_Length": len(body)}
            if method == "POST"
            else {}
        )
        | headers
    )
    lines = [
        f"{name.replace('_', '-')}: {value}" for name, value in given.items() if value is not None
    ]
    return "\r\n".join([f"{method} {path} {version}", *lines, "", ""]).encode("latin-1") + body


def post(body=b"{}", path="/step", **headers):
    return request("POST", path, body, **headers)


# ---- whom it answers


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost.:80",
        "127.0.0.1",
        "127.0.0.1:9",
        "127.1.2.3:8866",
        "[::1]",
        "[::1]:8866",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]:1",
    ],
)
def test_it_answers_to_loopback_s_names_at_any_port(server, host):
    assert status(sent(server, request(Host=host))) == status(sent(server, post(Host=host))) == 200


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "evil.example:8866",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "192.0.2.1",
        "localhost@evil.example",
        "evil.example@localhost",
        "localhost:80:90",
        "::1",
        "http://localhost",
        "localhost, evil.example",
        "localhost\r\nHost: localhost",
        "localhost\r\nHost: evil.example",
        "0.0.0.0",
        "2130706433",
        "\xe4\xb8\xad",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_it_answers_to_no_other_name(server, host, method):
    """A site whose owner points its name at this machine could otherwise talk to the model through
    a visitor's browser.
    """
    answer = sent(
        server,
        request(
            method,
            "/" if method == "GET" else "/step",
            b"{}" if method == "POST" else b"",
            Host=host,
        ),
    )
    assert status(answer) == 403 and b"--allow-host" in answer


def test_where_others_can_reach_it_it_answers_to_the_machine_s_names_and_those_given():
    machine = socket.gethostname().lower()
    with serving(host="0.0.0.0", allowed=["hub.example.org"]) as server:
        for host in (
            OWN,
            "localhost:1",
            "0.0.0.0:8866",
            machine,
            f"{machine.split('.')[0]}.local:8866",
            "HUB.example.org",
        ):
            assert status(sent(server, request(Host=host))) == 200, host
        assert status(sent(server, request(Host="other.example.org"))) == 403
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
            contextlib.suppress(OSError),  # a machine with loopback alone
        ):
            probe.connect(("192.0.2.1", 9))  # sends nothing: the system chooses an address of its
            own = probe.getsockname()[0]
            address = (own, server.server_address[1])
            with socket.create_connection(address, timeout=60) as connection:
                connection.sendall(request(Host=f"{own}:8866"))
                assert status(read(connection)) == 200
            assert own == OWN or status(sent(server, request(Host=own))) == 403, (
                "an address is good where it leads"
            )


def test_over_both_kinds_of_addresses():
    """Bound to ::, a visitor's IPv4 address is seen in an IPv6 one."""
    try:
        with (
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True),
            socket.create_server(("::1", 0), family=socket.AF_INET6),
        ):
            pass
    except (OSError, ValueError):
        pytest.skip("no IPv6 here")
    with serving(host="::") as server:
        for address in ("::1", OWN):
            with socket.create_connection(
                (address, server.server_address[1]), timeout=60
            ) as connection:
                connection.sendall(request(Host=OWN))
                assert status(read(connection)) == 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),  # no browser
        ({"Origin": f"http://{OWN}:7", "Host": f"{OWN}:7"}, 200),
        ({"Origin": f"http://{OWN}:7", "Host": f"{OWN}:7", "Sec_Fetch_Site": "same-origin"}, 200),
        (
            {"Origin": "https://hub.example.org", "Sec_Fetch_Site": "same-origin"},
            200,
        ),  # a proxy that was named
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        (
            {"Origin": "http://localhost:3000", "Host": "localhost:8866"},
            403,
        ),  # another program of this machine
        ({"Origin": f"http://{OWN}@evil.example"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Origin": f"http://{OWN}", "Sec_Fetch_Site": "cross-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),  # what any site may send without asking
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Type": None}, 415),
        ({"Content_Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_other_sites_scripts_are_not_answered(headers, expected):
    with serving(allowed=["hub.example.org"]) as server:
        assert (
            status(sent(server, post(**headers)))
            == status(sent(server, post(path="/chat", **headers)))
            == expected
        )


def test_host_names_in_one_spelling():
    assert (
        host_name("[FE80::1%eth0]:80") == "fe80::1"
        and host_name("Lab-PC.local.:1") == "lab-pc.local"
    )
    assert [host_name(text) for text in ("", "a b", "[::1", "a:b", "a/b", "u@a", "[x]")] == [
        None
    ] * 7


# ---- what it refuses


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (post(Content_Length=None), 411),
        (post(Content_Length=""), 400),
        (post(Content_Length="-1"), 400),
        (post(Content_Length="1_0"), 400),
        (post(Content_Length="0x2"), 400),
        (post(Content_Length="9" * 5000), 400),
        (post(Content_Length="2\r\nContent-Length: 1"), 400),
        (post(Content_Length=10**14), 413),
        (post(b" " * (LARGEST_REQUEST + 1)), 413),
        (post(b"[" * LARGEST_REQUEST), 400),
        (post(b'{"a":' * 10_000 + b"1" + b"}" * 10_000), 400),
        (post(b"9" * 100_000), 400),
        (post(b"\xff\xfe{}"), 400),
        (post(b'"text"'), 400),
        (post(b""), 400),
        (post(b"2\r\n{}\r\n0\r\n\r\n", Content_Length=None, Transfer_Encoding="chunked"), 501),
        (post(Transfer_Encoding="chunked"), 501),
        (post(path="/"), 404),
        (post(path="/chat/"), 404),
        (request(path="/../demo.py"), 404),
        (request(path="/..%2fdemo.py"), 404),
        (request(path="//demo.js/.."), 404),
        (request(path="/demo.py"), 404),
        (request(path="/\x00"), 404),
        (request(path="http://evil.example/"), 404),
        (request(path="http://127.0.0.1/"), 404),
        (request(path="*"), 404),
        (request("OPTIONS", "*"), 501),
        (request("PUT"), 501),
        (request("DELETE"), 501),
        (request("TRACE"), 501),
        (request("CONNECT", "evil.example:443"), 501),
        (request("get"), 501),
        (request(version="HTTP/2.0"), 505),
        (request(version="HTTP/x"), 400),
        (b"GET /\r\n\r\n", 403),  # HTTP/0.9
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
        (request(path="/" + "a" * 40_000), 431),
        (request(path="/" + "a" * 70_000), 431),
        (request(**{f"X{n}": "a" * 2000 for n in range(30)}), 431),
        (request(**{f"X{n}": "a" for n in range(200)}), 431),
        (request(X="a" * 70_000), 431),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
def test_what_cannot_be_answered_is_refused_with_one_status_line(server, data, expected):
    assert status(sent(server, data)) == expected
    assert status(sent(server, request())) == 200


def test_a_request_that_breaks_off_is_refused(server):
    with connect(server) as connection:
        connection.sendall(post(b'{"prompt": ""}', Content_Length=100))
        connection.shutdown(socket.SHUT_WR)
        assert status(read(connection)) == 400
    assert sent(server, b"\r\n\r\n") == b"", "no request, no answer"


def test_old_and_unusual_requests_that_are_right_are_answered(server):
    assert status(sent(server, request(version="HTTP/1.0"))) == 200
    assert (
        status(sent(server, request(path="/?from=x")))
        == status(sent(server, request(path="/demo.js?v=2")))
        == 200
    )
    assert status(sent(server, post(path="/step?x", Connection="keep-alive"))) == 200
    head = sent(server, request("HEAD"))
    assert status(head) == 200 and head.endswith(b"\r\n\r\n") and b"Content-Length: 11" in head
    assert status(sent(server, request("HEAD", "/nothing"))) == 404
    assert status(sent(server, request() + request())) == 200, (
        "one request a connection: what is sent ahead is not taken for another"
    )
    assert status(sent(server, post(b'{"a": NaN}'))) == 200, (
        "what a number may be is the room's affair"
    )


def test_a_large_request_that_is_refused_still_gets_its_answer(server):
    """Closed while bytes are on the way, a connection is reset, and the answer is lost to the
    visitor.
    """
    assert status(sent(server, post(b" " * 3_000_000))) == 413
    assert status(sent(server, post(b" " * 3_000_000, Host="evil.example"))) == 403


# ---- whatever goes wrong


class Fault(Room):
    def __init__(self, error, after=0):
        self.error, self.after = error, after

    def step(self, request):
        raise self.error

    def chat(self, request):
        for _ in range(self.after):
            yield {"text": "好"}
        raise self.error


FAULTS = [
    (ValueError("the prompt is empty"), 400, "the prompt is empty"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 503, "no memory left"),
    (MemoryError(), 503, "no memory left"),
    (KeyError("a bug"), 500, "a fault of its own"),
    (RuntimeError("another bug"), 500, "a fault of its own"),
]


@pytest.mark.parametrize(("error", "code", "sentence"), FAULTS)
@pytest.mark.parametrize("path", ["/step", "/chat"])
def test_an_error_before_the_reply_is_a_status_and_a_sentence(path, error, code, sentence, capfd):
    with serving(Fault(error)) as server:
        answer = sent(server, post(path=path))
        assert status(answer) == code and sentence in answer.decode()
        assert (b"Retry-After" in answer) == (code == 503)
        assert status(sent(server, request())) == 200
    assert ("Traceback" in capfd.readouterr().err) == (code == 500), (
        "what is our fault is shown to whoever runs the demo"
    )


@pytest.mark.parametrize(("error", "code", "sentence"), FAULTS)
def test_an_error_in_the_middle_of_a_reply_ends_the_stream_with_its_sentence(
    error, code, sentence, capfd
):
    with serving(Fault(error, after=2)) as server:
        answer = sent(server, post(path="/chat"))
        assert status(answer) == 200
        rows = [json.loads(line) for line in answer.partition(b"\r\n\r\n")[2].splitlines()]
        assert len(rows) == 3 and sentence in rows[-1]["error"]
        assert status(sent(server, request())) == 200


# ---- how long, and how many


def test_whoever_sends_slowly_is_ended():
    with serving(patience=0.3) as server:
        slow = [
            request(),
            post(b" " * 10_000),
            b"",
            b"POST /step HTTP/1.1\r\nHost: localhost\r\nX: ",
        ]
        connections = [connect(server) for _ in slow]
        for connection, data in zip(connections, slow, strict=True):
            connection.sendall(data[:-4])
        wait_until(lambda: len(server.visits) == len(slow), "a thread for each")
        with contextlib.suppress(OSError):  # a byte now and then keeps none of them
            while server.visits:
                for connection in connections[1:]:
                    connection.sendall(b" ")
                threading.Event().wait(0.05)
        wait_until(lambda: not server.visits, "the end of slow visits")
        assert all(answer == b"" or status(answer) for answer in map(read, connections))
        assert status(sent(server, request())) == 200


class Endless(Room):
    def __init__(self):
        self.ended = threading.Event()

    def chat(self, request):
        try:
            while True:
                yield {"text": "好" * 10_000}
        finally:
            self.ended.set()


def test_whoever_does_not_read_is_ended_and_keeps_nobody_waiting():
    room = Endless()
    with serving(room, patience=0.5) as server, connect(server) as connection:
        connection.sendall(post(path="/chat"))
        wait_until(lambda: server.visits, "the visit")
        assert status(sent(server, post())) == 200, "others are answered meanwhile"
        assert room.ended.wait(60)
        wait_until(lambda: not server.visits, "the end of the visit")


def test_whoever_reads_slowly_is_ended_when_a_reply_s_time_is_over():
    room = Endless()
    with serving(room, longest=0.5) as server, connect(server) as connection:
        connection.sendall(post(path="/chat"))
        assert status(read(connection)) == 200
        assert room.ended.wait(60)


def test_whoever_leaves_ends_the_reply():
    room = Endless()
    with serving(room) as server:
        with connect(server) as connection:
            connection.sendall(post(path="/chat"))
            connection.recv(10)
        assert room.ended.wait(60)


def test_more_connections_than_threads_are_told_to_come_again():
    with serving(connections=3, patience=1) as server:
        idle = [connect(server) for _ in range(3)]
        wait_until(lambda: len(server.visits) == 3, "three visits")
        for _ in range(20):
            answer = sent(server, request())
            assert status(answer) == 503 and b"Retry-After: 5" in answer
        assert len(server.visits) <= 3
        wait_until(lambda: not server.visits, "the end of those who say nothing")
        assert status(sent(server, request())) == 200
        assert [read(connection) for connection in idle] == [b""] * 3


def test_more_requests_than_the_model_can_take_are_told_to_come_again():
    class Busy(Room):
        go_on, here = threading.Event(), threading.Semaphore(0)

        def step(self, request):
            self.here.release()
            assert self.go_on.wait(60)
            return {}

    room = Busy()
    with serving(room, visitors=2) as server, ThreadPoolExecutor(2) as visitors:
        first = [visitors.submit(sent, server, post()) for _ in range(2)]
        for _ in first:
            assert room.here.acquire(timeout=60)
        for path in ("/step", "/chat"):
            answer = sent(server, post(path=path))
            assert status(answer) == 503 and b"Retry-After: 5" in answer
        assert status(sent(server, request())) == 200, "the page itself needs no place"
        room.go_on.set()
        assert [status(answer.result()) for answer in first] == [200, 200]
        assert status(sent(server, post())) == 200


def test_a_machine_without_threads_left_says_so(monkeypatch):
    def no_more(self):
        raise RuntimeError("can't start new thread")

    with serving() as server:
        start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", no_more)
        assert status(sent(server, request())) == 503
        monkeypatch.setattr(threading.Thread, "start", start)
        assert status(sent(server, request())) == 200


def test_thirty_visitors_at_once_all_get_their_replies(server):
    questions = itertools.islice(itertools.count(), 120)
    with ThreadPoolExecutor(30) as visitors:
        answers = visitors.map(
            lambda n: sent(server, post(json.dumps({"n": n}).encode())), questions
        )
        assert [
            json.loads(answer.partition(b"\r\n\r\n")[2])["asked"]["n"] for answer in answers
        ] == list(range(120))


def test_the_start_asks_no_name_server(monkeypatch):
    """The standard library's HTTPServer does, and waits where a machine's own name does not
    resolve.
    """

    def ask(*_):
        raise AssertionError("asked")

    for name in ("getfqdn", "gethostbyaddr", "gethostbyname"):
        monkeypatch.setattr(socket, name, ask)
    with serving(host="0.0.0.0") as server:
        assert status(sent(server, request())) == 200
