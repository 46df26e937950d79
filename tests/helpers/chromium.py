"""Which browser tests use, and why they are skipped where there is none."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: make setup EXTRAS=browser"
)

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium():
    """Path of a Chromium or Chrome: the system's, else the one that playwright has downloaded; None
    without either.
    """
    if found := os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None):
        return found
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


needs_chromium = pytest.mark.skipif(
    not find_chromium(),
    reason=(
        "no Chromium: apt-get install chromium, or .venv/bin/python -m playwright install chromium"
    ),
)


@contextmanager
def running_chromium():
    """A Chromium without a window, as playwright's object."""
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        program = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        yield program
        program.close()
