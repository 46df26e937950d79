"""Puts badges on the notebooks that open them in Colab and on Binder, with the cell that installs
the course there.

    python tools/badges.py https://github.com/OWNER/NAME [--branch main]

For whoever publishes a copy of this repository: the address is not known before. Run again, it
replaces what it has written. Binder builds its machine from environment.yml; Colab needs the
install cell, which does nothing where the course is installed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?/?")
BADGES = """\
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{repo}/blob/{branch}/{path})
[![Open on Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/{repo}/{branch}?labpath={path})
"""
INSTALL = """\
# Where the course is not installed yet, as on Colab; elsewhere this does nothing.
import importlib.util
import subprocess
import sys

if not importlib.util.find_spec("tinyllm_lib"):
    course = "tinyllm[course] @ git+https://github.com/{repo}@{branch}"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", course], check=True)
"""


def with_badges(notebook: dict, repo: str, branch: str, path: str) -> dict:
    """The notebook with both cells behind its title; cells of an earlier run are replaced.

    Args:
        repo: "OWNER/NAME".
        path: of the notebook in the repository.
    """
    title, *rest = (cell for cell in notebook["cells"] if cell["id"] not in ("badges", "install"))
    badges = {
        "cell_type": "markdown",
        "id": "badges",
        "metadata": {},
        "source": (
            BADGES.format(repo=repo, branch=branch, path=path)
            .rstrip("\n")
            .splitlines(keepends=True)
        ),
    }
    install = {
        "cell_type": "code",
        "execution_count": None,
        "id": "install",
        "metadata": {},
        "outputs": [],
        "source": INSTALL.format(repo=repo, branch=branch).rstrip("\n").splitlines(keepends=True),
    }
    return {**notebook, "cells": [title, badges, install, *rest]}


def main(argv: list[str] | None = None, repository: Path = REPOSITORY) -> int:
    """Command line; `repository` is the clone whose notebooks are changed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", help="https://github.com/OWNER/NAME")
    parser.add_argument("--branch", default="main")
    options = parser.parse_args(argv)
    if not (match := ADDRESS.fullmatch(options.address)):
        parser.error(
            f"{options.address!r} is no address like https://github.com/OWNER/NAME: Colab and"
            " Binder read from GitHub."
        )
    for path in sorted((repository / "notebooks").glob("0*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        made = with_badges(
            notebook,
            f"{match[1]}/{match[2]}",
            options.branch,
            path.relative_to(repository).as_posix(),
        )
        path.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        print("badges on", path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
