"""What holds for every test: the ci profile, a workspace of its own, no display and no network."""

import os
import signal
import tempfile

import pytest

# Set before the library, matplotlib or transformers is imported: they read these only once.
os.environ["TINYLLM_PROFILE"] = "ci"
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
for name in [
    name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")
]:
    del os.environ[name]  # tests talk to this machine alone
import tinyllm_lib  # noqa: E402, F401  before torch: it says how OpenMP's threads wait

_workspace = tempfile.TemporaryDirectory(prefix="tinyllm-test-", ignore_cleanup_errors=True)
os.environ["TINYLLM_WORKSPACE"] = _workspace.name  # never the learner's own


def pytest_configure(config):
    # A shell starts background jobs with Ctrl-C ignored, and children inherit that; tests of Ctrl-C
    # need it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from hypothesis import settings

    # No deadline: a busy machine is not a bug. Examples are the same in every run.
    settings.register_profile("tinyllm", deadline=None, derandomize=True)
    settings.load_profile("tinyllm")


def pytest_unconfigure(config):
    _workspace.cleanup()


@pytest.fixture
def workspace_root(tmp_path, monkeypatch):
    """A fresh TINYLLM_WORKSPACE for one test; the folder's path."""
    monkeypatch.setenv("TINYLLM_WORKSPACE", str(tmp_path / "workspace"))
    return tmp_path / "workspace"


@pytest.fixture(scope="module")
def browser():
    """Chromium, for tests that `helpers.chromium.needs_chromium` skips where there is none."""
    from helpers.chromium import running_chromium

    with running_chromium() as program:
        yield program
