"""Downloads against a local server that speaks the hub's HTTP, since a test should not fetch
gigabytes.
"""

import sys
from types import SimpleNamespace

import pytest
from helpers.local_hub import HubHandler, serving

from tinyllm_lib.data import BELLE, SEQ_MONKEY, download_pretrain, download_sft

CONTENT = b'{"conversations": []}\n' * 4096


class Handler(HubHandler):
    """A mirror of Hugging Face with one file."""

    def do_HEAD(self):
        found = self.path.endswith("{}/resolve/main/{}".format(*BELLE))
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef01234567"')
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(CONTENT)


@pytest.fixture
def mirror(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # all other tests are offline
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Handler) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield server


def test_dialogues_come_from_a_mirror_and_not_twice(mirror, tmp_path):
    path = download_sft(tmp_path / "raw")
    assert path == tmp_path / "raw" / BELLE[1] and path.read_bytes() == CONTENT
    path.write_bytes(b"mine")
    assert download_sft(str(tmp_path / "raw")).read_bytes() == b"mine"


def test_documents_come_from_modelscope_and_not_twice(tmp_path, monkeypatch):
    asked = []

    def fetch(dataset, name, local_dir):
        asked.append(dataset)
        (tmp_path / name).write_bytes(CONTENT)

    library = SimpleNamespace(dataset_file_download=fetch)
    monkeypatch.setitem(sys.modules, "modelscope", library)
    for _ in range(2):
        path = download_pretrain(tmp_path)
        assert path == tmp_path / SEQ_MONKEY[1] and path.read_bytes() == CONTENT
    assert asked == [SEQ_MONKEY[0]]


@pytest.mark.parametrize(
    ("download", "source"), [(download_sft, BELLE), (download_pretrain, SEQ_MONKEY)]
)
def test_a_file_put_there_by_hand_is_taken_without_a_network(download, source, tmp_path):
    (tmp_path / source[1]).write_bytes(b"{}")
    assert download(tmp_path).read_bytes() == b"{}"
