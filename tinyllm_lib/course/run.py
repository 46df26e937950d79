"""The whole course in one command: run every notebook in order, then question the model it made.

    python -m tinyllm_lib.course [--from 05] [--minutes 12]

`make course` calls this; notebook 09 runs where it is asked for (`--from 09`).
Sizes follow TINYLLM_PROFILE, and steps the minutes there are. Each
notebook prints one line with its minutes, and outside a terminal one a minute on its way; its
executed copy is kept as .ipynb and .html under workspace/<profile>/executed/.
"""

import argparse
import asyncio
import atexit
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tinyllm_lib.course.profiles import get_profile
from tinyllm_lib.course.progress import Progress
from tinyllm_lib.course.workspace import Workspace, get_workspace
from tinyllm_lib.data import atomic_path, require_writable, utf8_output

REPOSITORY = Path(__file__).resolve().parents[2]
EXPERIMENTS = "09"  # and what comes after it: run when asked for, as `make course FROM=09`
QUESTIONS = ("你好呀", "中国的首都是哪里？", "1+1等于多少？")
# nbconvert's own template leaves out the alt text of pictures.
HTML_WITH_ALT_TEXT = """\
{%- extends 'lab/index.html.j2' -%}
{%- block data_png -%}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data['image/png'] }}"
 alt="{{ output | get_metadata('alt', 'image/png') or '' | escape_html }}">
</div>
{%- endblock data_png -%}
"""
WHERE_NEXT = """\
Where to go next
  Talk to the model, and change how it samples   make lab, then notebooks/07_sampling.ipynb
  Take it to transformers, llama.cpp, Ollama     make lab, then notebooks/08_share.ipynb
  Runs that fail, models with a part taken out   make course FROM=09 (notebooks/09_experiments)
  Read what you just ran, with its pictures      {executed}
  The same cells with the 82.6M model, one GPU   TINYLLM_PROFILE=gpu make course
  The real corpora and the 215M model            docs/gpus.md
"""


@dataclass(frozen=True)
class Failure:
    """Why a notebook stopped: the number of the cell (from 1, texts too), its source, the error."""

    cell: int | None
    source: str
    error: str


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


def execute_notebook(
    path: Path,
    executed: Path,
    on_cell: Callable[[int, int], None],
    on_wait: Callable[[], None] = lambda: None,
) -> Failure | None:
    """Run one notebook in a new kernel of this very Python, in the notebook's own folder.

    The copy with its outputs goes to `executed`/<name>.ipynb and .html, also when a cell fails.
    Ctrl-C interrupts the cell as JupyterLab's stop button would, and no further cell runs.

    Args:
        on_cell: called with (cell number from 1, number of cells) before each code cell.
        on_wait: called twice a second while the notebook runs.

    Returns:
        None when all cells ran, else what went wrong in the first that did not.
    """
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)  # state of another run, which may stop the HTML copy
    cell, loop, stopped, error = 0, None, False, ""

    def on_cell_execute(cell_index: int, **_: object) -> None:
        nonlocal cell, loop
        if stopped:
            raise KeyboardInterrupt
        cell, loop = cell_index + 1, asyncio.get_running_loop()
        on_cell(cell, len(notebook.cells))

    class Client(NotebookClient):
        def create_kernel_manager(self):
            # Not by the kernel's name: that may be another environment's, registered by the user.
            self.km = AsyncKernelManager(kernel_spec_manager=_this_python(), kernel_name="python3")
            return self.km

    client = Client(
        notebook,
        timeout=None,
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        on_cell_execute=on_cell_execute,  # on_cell_start comes for Markdown, too
        extra_arguments=["--log-level=ERROR"],
    )
    client.log.setLevel(logging.CRITICAL)  # what goes wrong is told once, by the caller
    # In a thread: in the main one nbclient answers Ctrl-C by killing the kernel, whose children
    # live on.
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.execute, env=_kernel_environment())
        while True:
            try:
                if wait([running], timeout=0.5).done:
                    break
                on_wait()
            except KeyboardInterrupt:
                stopped = True
                if loop and client.km:
                    asyncio.run_coroutine_threadsafe(client.km.interrupt_kernel(), loop)
    try:
        running.result()
    except KeyboardInterrupt:
        pass
    except CellExecutionError as raised:
        error = f"{raised.ename}: {raised.evalue}".strip()
    except DeadKernelError:
        error = "The kernel died, most often for want of memory: close other programs or choose a"
        error += " smaller TINYLLM_PROFILE."
    except Exception as raised:  # no kernel came up, say
        error = f"{type(raised).__name__}: {raised}"
    if stopped:
        error = "Stopped with Ctrl-C."
    _save_copies(notebook, executed / path.name)
    source = notebook.cells[cell - 1].source if cell else ""
    return Failure(cell or None, source, error) if error else None


def _this_python():
    """A kernel specification manager that knows one kernel: the interpreter running now."""
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client.kernelspec import KernelSpecManager

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            return self.kernel_spec_class(resource_dir=RESOURCES, **get_kernel_dict())

    return ThisPython()


def _kernel_environment() -> dict[str, str]:
    paths = (str(REPOSITORY), os.environ.get("PYTHONPATH"))
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUTF8": "1"}
    return {**os.environ, **ours, "TINYLLM_STATIC_PANELS": "1"}  # nobody is there to press a button


def _save_copies(notebook, path: Path) -> None:
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)
    try:
        loader = DictLoader({"alt.html.j2": HTML_WITH_ALT_TEXT})
        exporter = HTMLExporter(extra_loaders=[loader], template_file="alt.html.j2")
        exporter.log.setLevel(logging.CRITICAL)
        html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": path.stem}})
    except Exception as error:  # of another program's, about a copy: no reason to stop the course
        why = f"{type(error).__name__}: {error}"
        print(f"\nno HTML copy of {path.name} ({why}); {path} holds everything", flush=True)
        return
    with atomic_path(path.with_suffix(".html")) as temporary:
        temporary.write_text(html, encoding="utf-8")


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
    number = path.stem.split("_")[0]
    return (
        f"\n{path.name} stopped {where}:\n\n{source}\n{failure.error}\n\n"
        f"Everything up to there, with the full traceback: {executed / path.name} (and .html)\n"
        f"To look into it: make lab, then open {path.name} and run it cell by cell.\n"
        f"To go on after a fix: make course FROM={number}"
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
    """Print the chat model's answers to three questions, and the exams of base and chat model."""
    from tinyllm_lib.generate import TextGenerator

    generator = TextGenerator(workspace.run("chat"))
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
        profile = get_profile()
        workspace = get_workspace(profile)
        notebooks = find_notebooks(options.notebooks, options.first)
        executed = workspace.root / "executed"
        require_writable(executed)
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
