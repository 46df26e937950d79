"""One notebook, run in a new kernel of this Python; its executed copies, .ipynb and .html."""

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from tinyllm_lib.course.page import page_of
from tinyllm_lib.data import atomic_path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Failure:
    """Why a notebook stopped: the number of the cell (from 1, texts too), its source, the error."""

    cell: int | None
    source: str
    error: str


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

    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)
    try:
        html = page_of(notebook, path.stem)
    except Exception as error:  # of another program's, about a copy: no reason to stop the course
        why = f"{type(error).__name__}: {error}"
        print(f"\nno HTML copy of {path.name} ({why}); {path} holds everything", flush=True)
        return
    with atomic_path(path.with_suffix(".html")) as temporary:
        temporary.write_text(html, encoding="utf-8")
