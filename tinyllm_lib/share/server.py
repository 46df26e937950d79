"""A model behind an OpenAI-compatible endpoint: an existing server, started and stopped."""

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

from tinyllm_lib.model import model_folder

HOST = "127.0.0.1"
NEEDS = ("fastapi", "uvicorn", "openai", "accelerate")  # what the course does not install


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


def what_is_missing() -> str:
    """What to install before `serve` can start; "" if nothing is missing."""
    missing = ", ".join(name for name in NEEDS if importlib.util.find_spec(name) is None)
    return missing and f"No server here, for want of {missing}: make setup EXTRAS=serve"


@contextmanager
def serve(folder: str | Path, *, port: int = 0, timeout: float = 180.0) -> Iterator[Server]:
    """Starts `transformers serve` on this machine alone; it is stopped when the block ends.

    Args:
        folder: a run or checkpoint folder.
        port: 0 takes a free one.
        timeout: seconds until it must answer.

    Raises:
        RuntimeError: a package is missing, or it did not come up.  OSError: the port is taken.
    """
    if missing := what_is_missing():
        raise RuntimeError(missing)
    path = model_folder(folder).resolve()
    port = free_port(port)
    url = f"http://{HOST}:{port}/v1"
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as cache:
        # It has no business elsewhere, and a SOCKS proxy alone may stop it. transformers lists the
        # hub's cache at /v1/models, and fails where there is none.
        direct = {"NO_PROXY": "*", "no_proxy": "*", "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": cache}
        command = ["transformers.cli.transformers", "serve", path.name]
        with subprocess.Popen(
            [sys.executable, "-m", *command, "--host", HOST, "--port", str(port)],
            cwd=path.parent,  # the model's name is what it is called here
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **direct, "PYTHONUNBUFFERED": "1"},
        ) as process:
            try:
                _wait_until_ready(process, f"{url}/models", timeout, log)
                yield Server(url, path.name, process.pid)
            finally:
                process.kill()  # it has nothing to save


def free_port(wanted: int = 0) -> int:
    """`wanted`, or with 0 any port; an OSError if somebody listens there."""
    with socket.create_server((HOST, wanted)) as probe:
        return probe.getsockname()[1]


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
    what = f"did not answer within {timeout:g} s, or ended (exit code {process.returncode})"
    raise RuntimeError(f"The server {what}. Its last lines:\n{last}")
