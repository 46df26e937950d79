"""The whole course in one command: run every notebook in order, then question the model it made.

    python -m tinyllm_lib.course [--from 05] [--minutes 12]

`make course` calls this; notebook 09 runs where it is asked for (`--from 09`). Sizes follow
TINYLLM_PROFILE, and steps the minutes there are. Each notebook prints one line with its minutes,
and outside a terminal one a minute on its way; its executed copy is kept as .ipynb and .html under
workspace/<profile>/executed/.
"""

import argparse
import atexit
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tinyllm_lib.course.execute import REPOSITORY, Failure, execute_notebook
from tinyllm_lib.course.profiles import get_profile
from tinyllm_lib.course.progress import Progress
from tinyllm_lib.course.workspace import Workspace, get_workspace
from tinyllm_lib.data import require_writable, utf8_output

EXPERIMENTS = "09"  # and what comes after it: run when asked for, as `make course FROM=09`
QUESTIONS = ("你好呀", "中国的首都是哪里？", "1+1等于多少？")
WHERE_NEXT = """\
Where to go next
  Talk to the model, and change how it samples   make lab, then notebooks/07_sampling.ipynb
  Take it to transformers, llama.cpp, Ollama     make lab, then notebooks/08_share.ipynb
  Runs that fail, models with a part taken out   make course FROM=09 (notebooks/09_experiments)
  Read what you just ran, with its pictures      {executed}
  The same cells with the 82.6M model, one GPU   TINYLLM_PROFILE=gpu make course
  The real corpora and the 215M model            docs/gpus.md
"""


def find_notebooks(folder: Path, first: str = "") -> list[Path]:
    """Notebooks of the course in `folder`, in order, from the one whose name starts with `first`;
    those from `EXPERIMENTS` on only where `first` is one of them.

    Raises:
        FileNotFoundError: the folder holds no numbered notebook.
        ValueError: none of them starts with `first`.
    """
    notebooks = sorted(folder.glob("0*.ipynb"))
    if not notebooks:
        told = "The course runs from a clone of the repository (`make setup`, `pip install -e .`)."
        raise FileNotFoundError(f"no notebook 0*.ipynb in {folder}. {told}")
    last = "" if first >= EXPERIMENTS else EXPERIMENTS
    chosen = [p for p in notebooks if p.name >= first and (not last or p.name < last)]
    if first and (not chosen or not chosen[0].name.startswith(first)):
        names = ", ".join(path.stem for path in notebooks)
        raise ValueError(f"no notebook starts with {first!r}. There are: {names}")
    return chosen


def run_notebooks(notebooks: Sequence[Path], executed: Path) -> bool:
    """Execute notebooks in order, one progress line each; stop at the first that fails.

    Returns:
        True when all ran to their end.
    """
    width = max(len(path.stem) for path in notebooks)
    for number, path in enumerate(notebooks, start=1):
        head = f"[{number}/{len(notebooks)}] {path.stem:<{width}}"
        progress = Progress(head, executed.parent / "runs")
        failure = execute_notebook(path, executed, progress.on_cell, progress.on_wait)
        progress.end()
        if failure:
            print(_explain(path, failure, executed))
            return False
    return True


def _explain(path: Path, failure: Failure, executed: Path) -> str:
    lines = failure.source.strip().splitlines()
    shown = lines[:6] + ["..."] * (len(lines) > 6)
    where = f"in cell {failure.cell}" if failure.cell else "before its first cell"
    source = "".join(f"    {line}\n" for line in shown)
    number, minutes = path.stem.split("_")[0], os.environ.get("TINYLLM_MINUTES")
    again = f"make course FROM={number}" + (f" MINUTES={minutes}" if minutes else "")
    return (
        f"\n{path.name} stopped {where}:\n\n{source}\n{failure.error}\n\n"
        f"Everything up to there, with the full traceback: {executed / path.name} (and .html)\n"
        f"To look into it: make lab, then open {path.name} and run it cell by cell.\n"
        f"To go on after a fix: {again}"
    )


def peak_memory_gb() -> float | None:
    """Peak resident memory in GB (1e9 bytes) of the largest process run so far; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    largest = max(resource.getrusage(who).ru_maxrss for who in processes)
    return largest * (1 if sys.platform == "darwin" else 1024) / 1e9


def print_results(workspace: Workspace) -> None:
    """Print the chat model's answers to three questions, and the exams of base and chat model; that
    there is no such model yet, where a part of the course was run.
    """
    from tinyllm_lib.generate import TextGenerator

    try:
        generator = TextGenerator(workspace.run("chat"))
    except FileNotFoundError:
        print("There is no chat model yet to put questions to: make course FROM=06 makes one.")
        return
    print("\nYour model, which knew nothing when the course began, says:\n")
    for question in QUESTIONS:
        answer = generator.chat([{"role": "user", "content": question}], temperature=0).strip()
        print(f"  You    {question}\n  Model  {answer}\n", flush=True)
    print("Its exam, before and after fine-tuning:\n")
    base, chat = exam_result(workspace, "pretrain"), exam_result(workspace, "chat")
    print(exam_table(base, chat), flush=True)


def exam_result(workspace: Workspace, run: str):
    """The `ExamResult` that a notebook saved, if it is of these weights; else it is taken now."""
    from tinyllm_lib.evaluate import exam_of, run_exam

    folder, exam = workspace.run(run), workspace.raw / "exam.jsonl"
    try:
        return exam_of(folder, exam)
    except (FileNotFoundError, ValueError) as reason:
        print(f"({run} takes the exam now: {reason})", flush=True)
        return run_exam(folder, exam, print_table=False)


def exam_table(base, chat) -> str:
    """Two `ExamResult`s as one table: class, share of right answers of each, what it shows."""
    from tinyllm_lib.course.world import CLASS_MEANING
    from tinyllm_lib.evaluate import format_table

    scores = [{score.class_name: score for score in result.classes} for result in (base, chat)]
    rows = [("class", "base model", "chat model", "what it shows")]
    for name in dict.fromkeys([*scores[0], *scores[1]]):
        found = [of.get(name) for of in scores]
        shares = [f"{s.share:.0%} ({s.right}/{s.total})" if s else "-" for s in found]
        rows.append((name, *shares, CLASS_MEANING.get(name, "")))
    return format_table(rows, align="<>><")


def ensure_home() -> None:
    """A temporary home, for this process and those it starts, where there is none to write to.

    Jupyter, IPython and matplotlib keep their files there and do not start without.
    """
    with suppress(RuntimeError):  # no HOME, and a user whom the system does not know
        if os.access(Path.home(), os.W_OK | os.X_OK):  # where it is missing, nobody wanted it
            return
    home = tempfile.mkdtemp(prefix="tinyllm-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["HOME"] = os.environ["USERPROFILE"] = home


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    utf8_output()
    ensure_home()
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    first = {"dest": "first", "default": "", "metavar": "NN"}
    parser.add_argument("--from", help="first notebook, e.g. 05", **first)
    parser.add_argument(
        "--minutes",
        metavar="N",
        help="fewer steps, so that all of it takes so long on this machine",
    )
    folder = REPOSITORY / "notebooks"
    parser.add_argument("--notebooks", type=Path, default=folder, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.minutes:
        os.environ["TINYLLM_MINUTES"] = options.minutes  # kernels inherit it
    try:
        return run_course(options.notebooks, options.first)
    except KeyboardInterrupt:
        print("\nStopped with Ctrl-C. The same command goes on.")
        return 1


def run_course(folder: Path, first: str) -> int:
    """The notebooks of `folder` from `first` on, then their results; returns the exit code."""
    try:
        notebooks = find_notebooks(folder, first)
        profile = get_profile()
        workspace = get_workspace(profile)
        executed = workspace.root / "executed"
        require_writable(executed)
        import latex2mathml  # noqa: F401
        import nbclient  # noqa: F401
        import nbconvert  # noqa: F401

        from tinyllm_lib.course.pace import print_forecast
    except (OSError, ValueError, ImportError) as error:
        install = ". `make setup` installs what the course needs."
        hint = install if isinstance(error, ImportError) else ""
        print(f"course: {error}{hint}", file=sys.stderr)
        return 2
    start = time.monotonic()
    whole = notebooks[0].name < EXPERIMENTS
    if whole:
        print_forecast(profile)
    what = f"{len(notebooks)} notebooks at the {profile.name} profile"
    print(f"{what}; executed copies go to {executed}\n")
    if not run_notebooks(notebooks, executed):
        return 1
    if whole:
        print_results(workspace)
    print("\n" + WHERE_NEXT.format(executed=executed))
    memory = peak_memory_gb()
    note = f", peak memory of one process {memory:.1f} GB" if memory else ""
    print(f"The course took {(time.monotonic() - start) / 60:.1f} minutes{note}.")
    return 0
