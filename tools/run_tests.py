"""All checks: format, lint, types, unit tests, and every notebook at the `ci` profile.

    python tools/run_tests.py [--slow] [--skip-notebooks]

`make test` calls this. The notebooks share one fresh temporary workspace, which is removed at
the end; with --slow each of them is run once more, alone, in an empty one. Nothing is
written into the clone, and nothing is downloaded.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tinyllm_lib.course.run import ensure_home
from tinyllm_lib.data import utf8_output

REPOSITORY = Path(__file__).resolve().parent.parent
# Outputs are compared only of cells marked `# NBVAL_CHECK_OUTPUT`; every other cell must just run.
NBVAL = [
    "--nbval-lax",
    "--nbval-current-env",
    "--nbval-cell-timeout",
    "300",
    "-x",
    "-q",
    "--no-header",
]
NO_TESTS = 5  # pytest's exit code when it found nothing to run


def environment(workspace):
    """Environment variables of a test process: ci profile, own workspace, no network."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "TINYLLM_PROFILE": "ci",
        "TINYLLM_WORKSPACE": str(workspace),
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": tempfile.gettempdir(),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def step(title, command, workspace, allow_none=False):
    """Run one check; returns True when it passed."""
    print(f"\n=== {title}", flush=True)
    start = time.monotonic()
    command = [sys.executable, "-m", *map(str, command)]
    code = subprocess.call(command, cwd=REPOSITORY, env=environment(workspace))
    passed = code == 0 or (allow_none and code == NO_TESTS)
    outcome = "passed" if passed else f"FAILED (exit code {code})"
    print(f"=== {title}: {outcome} in {time.monotonic() - start:.0f} s", flush=True)
    return passed


def git_status():
    """What git sees as changed, or None outside a clone."""
    try:
        done = subprocess.run(
            ["git", "status", "--porcelain"],
            cwd=REPOSITORY,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def check_all(slow, notebooks):
    """Run every check and return the titles of those that failed."""
    failed = []

    def check(title, command, **options):
        with tempfile.TemporaryDirectory(
            prefix="tinyllm-test-", ignore_cleanup_errors=True
        ) as workspace:
            if not step(title, command, workspace, **options):
                failed.append(title)

    before = git_status()
    check("format", ["ruff", "format", "--check", "."])
    check("lint", ["ruff", "check", "."])
    check("types", ["mypy"])
    check("unit tests", ["pytest", "tests", *(["-m", "slow or not slow"] if slow else [])])
    if notebooks:
        check("notebooks", ["pytest", *NBVAL, *notebooks], allow_none=True)
    for notebook in notebooks if slow else []:
        check(f"{notebook.name} alone", ["pytest", *NBVAL, notebook], allow_none=True)
    after = git_status()
    if os.environ.get("CI") and after != before:
        print(f"\nThe tests changed the working tree:\n{after}", flush=True)
        failed.append("clean working tree")
    return failed


def main(argv=None):
    """Command line; returns the exit code."""
    utf8_output()
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument(
        "--slow", action="store_true", help="the slow tests too, and each notebook alone"
    )
    parser.add_argument("--skip-notebooks", action="store_true", help="all but the notebooks")
    options = parser.parse_args(argv)
    ensure_home()
    notebooks = [
        *(REPOSITORY / "notebooks").glob("[0-9]*.ipynb"),
        *(REPOSITORY / "notebooks/solutions").glob("[0-9]*.ipynb"),
    ]
    notebooks = (
        []
        if options.skip_notebooks
        else sorted(notebooks, key=lambda path: (path.parent.name, path.name))
    )
    start = time.monotonic()
    failed = check_all(options.slow, notebooks)
    minutes = (time.monotonic() - start) / 60
    print(
        f"\n{'FAILED: ' + ', '.join(failed) if failed else 'all checks passed'} in"
        f" {minutes:.1f} min"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
