"""A model behind an OpenAI-compatible endpoint: an existing server, started, waited for, stopped.

with serve("workspace/laptop/runs/chat") as server:      # transformers serve
    client = server.client()                              # the openai package's
    client.chat.completions.create(model=server.model, messages=[…], temperature=0)
"""

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
from pathlib import Path
from typing import IO, Any, NamedTuple

from tinyllm_lib.model import model_folder, step_folders
from tinyllm_lib.share.gguf_file import other_weights

HOST = "127.0.0.1"
WEB = ("fastapi", "uvicorn")
NEEDS = {  # what each program imports that the course does not
    "transformers": (*WEB, "openai", "accelerate"),
    "llama_cpp": (*WEB, "llama_cpp", "sse_starlette", "starlette_context", "pydantic_settings"),
}
EXTRAS = {"transformers": "serve", "llama_cpp": "llama"}


class ServeError(RuntimeError):
    """The server did not come up; the message says why."""


class Server(NamedTuple):
    """A running server: clients call `url` their base_url and ask for `model`."""

    url: str
    model: str
    pid: int

    def client(self) -> Any:
        """`openai.OpenAI` for this server, past the environment's proxies."""
        import openai

        direct = openai.DefaultHttpxClient(trust_env=False)
        return openai.OpenAI(base_url=self.url, api_key="none", http_client=direct)


def what_is_missing(program: str = "transformers") -> str:
    """What to install before `serve` can start this program; "" if nothing is missing."""
    missing = ", ".join(name for name in NEEDS[program] if importlib.util.find_spec(name) is None)
    advice = f"make setup EXTRAS={EXTRAS[program]}"
    return f"{program} cannot serve here, for want of {missing}: {advice}" if missing else ""


@contextmanager
def serve(
    model: str | Path, program: str = "transformers", *, port: int = 0, timeout: float = 180.0
) -> Iterator[Server]:
    """Starts a server for `model` on this machine alone; it is stopped when the block ends.

    Args:
        model: for "transformers" (`transformers serve`) a run or checkpoint folder, for
            "llama_cpp" (its Python server) a GGUF file.
        port: 0 takes a free one.
        timeout: seconds until it must answer.

    Raises:
        ServeError: a package is missing, the port is taken, or the server ended or kept silent.
    """
    if program not in NEEDS:
        raise ValueError(f"program is {program!r}, expected one of {', '.join(NEEDS)}.")
    if missing := what_is_missing(program):
        raise ServeError(missing)
    path = (model_folder(model) if program == "transformers" else Path(model)).resolve()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: export_gguf writes such a file.")
    name = path.name  # as seen from its folder, where the server is started
    if program == "transformers":
        command = ["transformers.cli.transformers", "serve", name]
    else:
        command = ["llama_cpp.server", "--model", name, "--model_alias", name, "--n_ctx", "0"]
        if step_folders(path.parent) and (reason := other_weights(path, path.parent)):
            print(reason, flush=True)  # beside a run that was trained on since, or anew
    port = free_port(port)
    url = f"http://{HOST}:{port}/v1"
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as cache:
        # It has no business elsewhere, and a SOCKS proxy alone may stop it. transformers lists the
        # hub's cache at /v1/models, and fails where there is none.
        direct = {"NO_PROXY": "*", "no_proxy": "*", "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": cache}
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--host", HOST, "--port", str(port)],
            cwd=path.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **direct, "PYTHONUNBUFFERED": "1"},
        )
        try:
            _wait_until_ready(process, f"{url}/models", timeout, log)
            yield Server(url, name, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port(wanted: int = 0) -> int:
    """`wanted`, or with 0 any port, if nobody listens there; else a `ServeError`."""
    try:
        with socket.create_server((HOST, wanted)) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        what = f"port {wanted} cannot be had ({error.strerror})"
        raise ServeError(f"{what}: name another one, or 0 for any.") from error


def _wait_until_ready(process: subprocess.Popen, url: str, timeout: float, log: IO[bytes]) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        try:
            with direct.open(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    log.seek(0)
    last = "\n".join(log.read().decode("utf-8", "replace").splitlines()[-12:])
    ended = f"ended with exit code {process.returncode}"
    what = f"did not answer within {timeout:g} s" if process.returncode is None else ended
    raise ServeError(f"The server {what}. Its last lines:\n{last}")
