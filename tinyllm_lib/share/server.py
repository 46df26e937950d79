"""A model behind an OpenAI-compatible endpoint: an existing server, started, waited for, and
stopped.

with serve("workspace/laptop/runs/chat") as server:      # transformers serve
    client = server.client()                              # the openai package's
    client.chat.completions.create(model=server.model, messages=[…], temperature=0)
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tinyllm_lib.model import model_folder, step_folders
from tinyllm_lib.share.gguf_file import other_weights

# What each server imports that the course itself does not.
NEEDS = {
    "transformers": ("fastapi", "uvicorn", "openai", "accelerate"),
    "llama_cpp": (
        "llama_cpp",
        "fastapi",
        "uvicorn",
        "sse_starlette",
        "starlette_context",
        "pydantic_settings",
    ),
}
DIRECT = {
    "NO_PROXY": "*",
    "no_proxy": "*",
}  # for a program without business outside this machine; a SOCKS proxy alone may stop it
EXTRA = {"transformers": "serve", "llama_cpp": "llama"}


class ServeError(RuntimeError):
    """The server did not come up; the message says why."""


@dataclass(frozen=True)
class Server:
    """A running server: `url` is what clients call base_url, `model` the name they ask for, `pid`
    its process.
    """

    url: str
    model: str
    pid: int

    def client(self):
        """`openai.OpenAI` for this server; the environment's proxies, which do not know this
        machine's ports, are left out.
        """
        import openai

        return openai.OpenAI(
            base_url=self.url,
            api_key="none",
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )


def what_is_missing(program: str = "transformers") -> str:
    """ "" if `serve` can start this program, else a sentence that says what to install."""
    missing = [name for name in NEEDS[program] if importlib.util.find_spec(name) is None]
    return (
        f"{program} cannot serve here, for want of {', '.join(missing)}: make setup"
        f" EXTRAS={EXTRA[program]}"
        if missing
        else ""
    )


@contextmanager
def serve(
    model: str | Path, program: str = "transformers", *, port: int = 0, timeout: float = 180.0
) -> Iterator[Server]:
    """Starts a server for `model` on this machine alone (127.0.0.1); it is stopped when the block
    ends, however it ends.

    Args:
        model: for "transformers" a run or checkpoint folder, for "llama_cpp" a GGUF file.
        program: "transformers" (`transformers serve`) or "llama_cpp" (`python -m
            llama_cpp.server`).
        port: 0 takes a free one.
        timeout: seconds until it must answer.

    Raises:
        ValueError: another program.  ServeError: a package is missing, or the server ended or kept
            silent; its last lines are shown.
    """
    if program not in NEEDS:
        raise ValueError(f"program is {program!r}, expected one of {', '.join(NEEDS)}.")
    if missing := what_is_missing(program):
        raise ServeError(missing)
    path = (model_folder(model) if program == "transformers" else Path(model)).resolve()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: export_gguf writes such a file.")
    if (
        program == "llama_cpp"
        and step_folders(path.parent)
        and (reason := other_weights(path, path.parent))
    ):
        print(reason, flush=True)  # beside a run that was trained on since, or anew
    port = free_port(port)
    address = ["--host", "127.0.0.1", "--port", str(port)]
    if (
        program == "transformers"
    ):  # named as in the folder it is started in, so that the name is the folder's own
        command = ["-m", "transformers.cli.transformers", "serve", path.name, *address]
    else:
        command = [
            "-m",
            "llama_cpp.server",
            "--model",
            path.name,
            "--model_alias",
            path.name,
            "--n_ctx",
            "0",
            *address,
        ]
    # transformers lists the hub's cache at /v1/models and fails where there is none; what lies in
    # it is no part of this server.
    with (
        tempfile.TemporaryFile() as log,
        tempfile.TemporaryDirectory(prefix="tinyllm-serve-") as cache,
    ):
        process = subprocess.Popen(
            [sys.executable, *command], cwd=path.parent, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, **DIRECT, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": cache, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}/v1/models", timeout, log)
            yield Server(f"http://127.0.0.1:{port}/v1", path.name, process.pid)
        finally:
            _stop(process)


def free_port(wanted: int = 0) -> int:
    """`wanted`, or with 0 any port, that nobody listened on a moment ago.

    Raises:
        ServeError: somebody does.
    """
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # a server that has just gone is no obstacle
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise ServeError(
                f"port {wanted} cannot be had ({error.strerror}): name another one, or 0 for any."
            ) from error
        return probe.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen, url: str, timeout: float, log) -> None:
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({})
    )  # a proxy knows nothing of this machine's own ports
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        try:
            with direct.open(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    log.seek(0)
    last = "\n".join(log.read().decode("utf-8", "replace").splitlines()[-12:])
    what = (
        f"ended with exit code {process.returncode}"
        if process.returncode is not None
        else f"did not answer within {timeout:g} s"
    )
    raise ServeError(f"The server {what}. Its last lines:\n{last}")


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
