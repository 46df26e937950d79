"""Downloads against a local server that speaks the hubs' HTTP, since a test should not fetch
gigabytes.
"""

import builtins
import importlib.util
import re
import shutil
import time
from collections import namedtuple
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest
from helpers.local_hub import HubHandler, serving

from tinyllm_lib.data import BELLE, SEQ_MONKEY, download_pretrain, download_sft
from tinyllm_lib.data import download as module
from tinyllm_lib.data.download import DownloadError

CONTENT = BELLE.begins + bytes(range(256)) * 4096  # 1 MiB
PORTAL = b"<!DOCTYPE html><title>Please log in</title>"
ETAG = '"0123456789abcdef0123456789abcdef01234567"'


class Hub:
    """What the server does next, and what it was asked."""

    def __init__(self):
        self.missing = False
        self.cuts: list[int] = []  # close the connection after so many bytes, one answer each
        self.content = CONTENT
        self.announced = len(CONTENT)
        self.bare = False  # sends Content-Length alone
        self.no_length = False
        self.no_ranges = False  # answers with the whole file, whatever part was asked for
        self.portal = ""  # methods that a login page answers
        self.ranges: list[str | None] = []  # the Range header of each request for content


class Handler(HubHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        hub, url = self.server.hub, urlsplit(self.path)
        file_path = parse_qs(url.query).get("FilePath", [url.path])[0]
        if not file_path.endswith((BELLE.name, SEQ_MONKEY.name)):
            self.listing(url.path)
        elif hub.missing:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.content(body, self.headers.get("Range"))

    def content(self, body: bool, requested: str | None):
        hub = self.server.hub
        if self.command in hub.portal:
            self.login_page(body)
            return
        content = hub.content
        start, end = 0, len(content) - 1
        if body:
            hub.ranges.append(requested)
        if hub.no_ranges:
            requested = None
        if requested:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", requested).groups()
            start, end = int(first), int(last or end)
            if start > end:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if requested else 200)
        if requested:
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        if not hub.no_length:
            self.send_header("Content-Length", str(end + 1 - start if body else hub.announced))
        if not hub.bare:
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", ETAG)
        self.end_headers()
        self.close_connection = hub.no_length
        if body:
            payload = content[start : end + 1]
            if hub.cuts:
                payload, self.close_connection = payload[: hub.cuts.pop(0)], True
            self.wfile.write(payload)

    def login_page(self, body: bool):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("ETag", '"page"')
        self.send_header("Content-Length", str(len(PORTAL)))
        self.end_headers()
        if body:
            self.wfile.write(PORTAL)

    def listing(self, path: str):
        """ModelScope's answers about a dataset: its number, and the files in it."""
        hub = self.server.hub
        data = (
            b'{"Code": 200, "Success": true, "Data": {"Id": 7, "Type": 1, "Name": "seq-monkey",'
            b' "Files": ['
        )
        if path.endswith("/repo/tree") and not hub.missing:
            data += (
                f'{{"Path": "{SEQ_MONKEY.name}", "Size": {hub.announced}, "Type": "blob"}}'.encode()
            )
        data += b"]}}"
        self.send_json(200, data)


@pytest.fixture
def hub(monkeypatch):
    with serving(Handler) as server:
        server.hub = Hub()
        for variable in (BELLE.endpoint, SEQ_MONKEY.endpoint):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        try:
            from huggingface_hub import constants
        except ImportError:
            pass
        else:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # all other tests are offline
            # It keeps whole chunks of 10 MB when a connection breaks, ten times what this server
            # has.
            monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)
        sleep = time.sleep
        # between the tries
        monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
        yield server.hub


@pytest.fixture(params=[download_sft, download_pretrain], ids=["huggingface_hub", "modelscope"])
def download(request, monkeypatch):
    pytest.importorskip(request.node.callspec.id)
    # one content for both
    monkeypatch.setattr(module, "SEQ_MONKEY", replace(SEQ_MONKEY, begins=BELLE.begins))
    return request.param


def test_success_and_not_twice(hub, download, tmp_path):
    path = download(tmp_path / "raw")
    assert path.parent == tmp_path / "raw" and path.name in (BELLE.name, SEQ_MONKEY.name)
    assert path.read_bytes() == CONTENT
    requests = len(hub.ranges)
    assert download(str(tmp_path / "raw")) == path
    assert len(hub.ranges) == requests


def test_a_cut_in_the_middle_goes_on_where_it_stopped(hub, download, tmp_path):
    hub.cuts = [600_000]
    assert download(tmp_path).read_bytes() == CONTENT
    assert len(hub.ranges) == 2
    resumed_at = int(re.match(r"bytes=(\d+)-", hub.ranges[1])[1])
    assert 0 < resumed_at <= 600_000


def test_a_line_that_keeps_failing_leaves_no_file_and_a_later_call_resumes(hub, download, tmp_path):
    hub.cuts = [500_000] + [0] * 50
    with pytest.raises(DownloadError, match="goes on where this one stopped"):
        download(tmp_path)
    assert not (tmp_path / BELLE.name).exists() and not (tmp_path / SEQ_MONKEY.name).exists()
    hub.cuts, before = [], len(hub.ranges)
    assert download(tmp_path).read_bytes() == CONTENT
    assert hub.ranges[before] is not None  # not from the beginning


def test_404(hub, download, tmp_path):
    hub.missing = True
    with pytest.raises(DownloadError) as caught:
        download(tmp_path)
    assert "By hand: get https://" in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "404" in str(caught.value) or "no such file" in str(caught.value)


def test_another_length_than_announced_is_refused(hub, download, tmp_path):
    hub.announced = len(CONTENT) + 1
    with pytest.raises(DownloadError):
        download(tmp_path)
    assert not (tmp_path / BELLE.name).exists() and not (tmp_path / SEQ_MONKEY.name).exists()
    hub.announced = len(CONTENT)  # and what came of it does not stand in the way of the next call
    assert download(tmp_path).read_bytes() == CONTENT


def test_free_disk_is_checked_before_the_first_byte(hub, download, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 9 * 10**5, 10**5))
    with pytest.raises(DownloadError, match="0.0 GB, but the disk of .* has 0.0 GB free"):
        download(tmp_path)
    assert not hub.ranges


def nothing_but_parts(folder):
    return not [path for path in folder.glob("*") if path.name in (BELLE.name, SEQ_MONKEY.name)]


def test_a_mirror_that_sends_a_length_alone_is_enough(hub, tmp_path):
    hub.bare = True
    hub.cuts = [600_000] + [0] * 50
    with pytest.raises(DownloadError, match="goes on where this one stopped"):
        download_sft(tmp_path)
    hub.cuts, before = [], len(hub.ranges)
    assert download_sft(tmp_path).read_bytes() == CONTENT
    assert hub.ranges[before] is not None, "what is there is gone on from"


def test_a_mirror_without_a_length_is_refused(hub, tmp_path):
    """Half a file and a whole one would look alike."""
    hub.bare = hub.no_length = True
    with pytest.raises(DownloadError, match="announces no length"):
        download_sft(tmp_path)
    assert nothing_but_parts(tmp_path) and not hub.ranges


def test_a_mirror_that_ignores_ranges(hub, tmp_path):
    hub.cuts = [600_000] + [0] * 50
    with pytest.raises(DownloadError):
        download_sft(tmp_path)
    hub.cuts, hub.no_ranges = [], True
    assert download_sft(tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("methods", ["HEAD GET", "GET"])
def test_a_network_s_login_page_is_no_corpus(hub, tmp_path, methods):
    """Neither as a whole nor as the beginning of one."""
    hub.portal = methods
    with pytest.raises(DownloadError, match="login" if "HEAD" in methods else "By hand"):
        download_sft(tmp_path)
    assert not list(tmp_path.iterdir())
    hub.portal = ""
    assert download_sft(tmp_path).read_bytes() == CONTENT


def test_a_shorter_file_than_announced_is_tried_anew(hub, tmp_path):
    """Two calls are in vain: the first has all there is, the second hears that nothing follows."""
    hub.content = CONTENT[:-1]
    for _ in range(2):
        with pytest.raises(DownloadError):
            download_sft(tmp_path)
        assert nothing_but_parts(tmp_path)
    hub.content = CONTENT
    assert download_sft(tmp_path).read_bytes() == CONTENT


def test_a_whole_file_is_never_lost(hub, tmp_path):
    path = download_sft(tmp_path)
    hub.missing, hub.portal = True, "HEAD GET"
    assert download_sft(tmp_path) == path and path.read_bytes() == CONTENT


def test_a_part_that_broke_off_in_any_way_is_kept(hub, tmp_path, monkeypatch):
    """Errors of other versions of the library have no number, either."""
    from huggingface_hub import file_download

    def breaks(url, out, **_):
        out.write(CONTENT[:1000])
        raise TimeoutError("timed out")

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", breaks)
        with pytest.raises(DownloadError, match="timed out"):
            download_sft(tmp_path)
    assert download_sft(tmp_path).read_bytes() == CONTENT
    assert hub.ranges == ["bytes=1000-"]


def test_downloads_go_through_the_proxy_and_what_it_lacks_is_named(hub, tmp_path, monkeypatch):
    """A SOCKS proxy needs a package of its own; that is not the hub's library that is missing."""
    if importlib.util.find_spec("socksio"):
        pytest.skip("socksio is installed")
    from huggingface_hub import close_session

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    close_session()
    with pytest.raises(DownloadError, match="socksio") as caught:
        download_sft(tmp_path)
    close_session()
    assert "pip install huggingface_hub" not in str(caught.value)


def test_offline_names_the_file_and_its_place(hub, download, tmp_path, monkeypatch):
    for variable in (BELLE.endpoint, SEQ_MONKEY.endpoint):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(DownloadError) as caught:
        download(tmp_path)
    source = BELLE if download is download_sft else SEQ_MONKEY
    for part in (
        source.url + source.name,
        str(tmp_path / source.name),
        source.endpoint,
        "http://127.0.0.1:9",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("download", "source"), [(download_sft, BELLE), (download_pretrain, SEQ_MONKEY)]
)
def test_without_the_library(download, source, tmp_path, monkeypatch):
    real_import = builtins.__import__

    def no_hub(name, *arguments, **options):
        if name.split(".")[0] == source.library:
            raise ImportError(f"No module named {name!r}")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_hub)
    with pytest.raises(DownloadError, match=f"pip install {source.library}"):
        download(tmp_path)


@pytest.mark.parametrize(
    ("download", "source"), [(download_sft, BELLE), (download_pretrain, SEQ_MONKEY)]
)
def test_a_file_put_there_by_hand_is_taken_without_a_network(download, source, tmp_path):
    (tmp_path / source.name).write_bytes(b"{}")
    assert download(tmp_path).read_bytes() == b"{}"
