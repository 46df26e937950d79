"""A real IPython kernel, driven as a front end does."""

import os
import queue
from contextlib import contextmanager

from jupyter_client.manager import KernelManager

from helpers.tiny import ROOT, wait_until


class Kernel:
    """Runs one cell at a time; `text`, `html` and `error` are what the front end shows of the
    latest.
    """

    def __init__(self, manager, folder):
        self.manager, self.folder = manager, folder
        self._connect()

    def _connect(self):
        self._client = self.manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=120)

    def start(self, code):
        """Begins to run a cell."""
        self.text, self.html, self.error, self.done = "", "", "", False
        self._cell = self._client.execute(code)

    def look(self):
        """Takes in what the kernel has said by now; returns the kernel."""
        while True:
            try:
                message = self._client.get_iopub_msg(timeout=0.05)
            except queue.Empty:
                return self
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != self._cell:
                continue
            if kind == "stream":
                self.text += content["text"]
            elif kind in ("display_data", "update_display_data"):
                self.html = content["data"].get("text/html", "")
            elif kind == "error":
                self.error = f"{content['ename']}: {content['evalue']}"
            elif kind == "status" and content["execution_state"] == "idle":
                self.done = True

    def wait(self, what="the end of the cell", condition=lambda kernel: kernel.done):
        wait_until(lambda: condition(self.look()) or self.done, what, seconds=150)
        assert condition(self), f"the cell ended before {what}: {self.error} {self.text}"

    def run(self, code):
        """Runs a cell to its end; returns its text."""
        self.start(code)
        self.wait()
        return self.text

    def restart(self):
        self._client.stop_channels()
        self.manager.restart_kernel(now=True)
        self._connect()


@contextmanager
def real_kernel(folder, **env):
    """A kernel whose working directory and temporary files lie in `folder`."""
    hidden = ("PYTEST_CURRENT_TEST", "TINYLLM_PLAIN")  # with these the library shows plain text
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(
        cwd=str(folder), env={**inherited, "PYTHONPATH": paths, "TMPDIR": str(folder), **env}
    )
    try:
        yield Kernel(manager, folder)
    finally:
        manager.shutdown_kernel(now=True)
