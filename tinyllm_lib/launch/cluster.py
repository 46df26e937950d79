"""What torchrun is called with, on one machine or many that share a file system. When one is lost,
the others wait ten minutes for the same command there and all go on from the last checkpoint; when
it is that of `rdzv_endpoint`, the run ends everywhere: launch it again.
"""

import json
import os
import re
import shlex
import socket
from dataclasses import asdict, replace
from pathlib import Path

from tinyllm_lib.train import TrainConfig

ITSELF = "127.0.0.1:0"  # where one machine meets itself, at a free port, whatever it is called
JOIN_SECONDS = 600  # as long the machines wait for each other
PACKAGE_PARENT = Path(__file__).resolve().parents[2]  # holds tinyllm_lib


def meet(nproc: int, nnodes: int = 1, endpoint: str = ITSELF) -> list[str]:
    """Torchrun's arguments for `nproc` processes on each of `nnodes` machines; this one is host."""
    if nproc < 1:
        raise ValueError(f"nproc_per_node must be at least 1, is {nproc}.")
    if not re.fullmatch(r"[^\s:]+:\d+|\[[^\s\]]+\]:\d+", endpoint):
        example = f"'{socket.gethostname()}:29400'"
        raise ValueError(f"rdzv_endpoint is {endpoint!r}, expected 'host:port', as {example}.")
    seconds = 60 if nnodes == 1 else JOIN_SECONDS
    place = ["--rdzv_endpoint", endpoint, "--rdzv_conf", f"is_host=true,join_timeout={seconds}"]
    numbers = ["--nnodes", str(nnodes), "--nproc_per_node", str(nproc)]
    return [*numbers, "--rdzv_backend", "c10d", *place]


def torchrun_arguments(
    config: TrainConfig, file: Path, nproc: int, nnodes: int, endpoint: str | None
) -> list[str]:
    """What torchrun is called with to train as `config` says, which is written to `file`."""
    meeting = meet(nproc, nnodes, endpoint or (ITSELF if nnodes == 1 else ""))
    if config.resume == "never" and nnodes > 1:
        raise ValueError("A machine that comes back must go on: use resume='auto' with many nodes.")
    paths = ("data_path", "out_dir", "tokenizer_path", "init_from")  # for workers elsewhere
    absolute = {name: os.path.abspath(path) for name in paths if (path := getattr(config, name))}
    config = replace(config, **absolute)
    # Under an old locale, paths hold bytes that could not be read; here they are UTF-8 again.
    content = json.dumps(asdict(config), ensure_ascii=False)
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    meeting += ["--rdzv_id", Path(config.out_dir).name]
    meeting += ["--max_restarts", "3" if nnodes > 1 else "0"]
    # With the run folder as well, so that a list of processes shows whose they are.
    return [*meeting, "-m", "tinyllm_lib.train", f"--config={file}", f"--out_dir={config.out_dir}"]


def node_command(arguments: list[str]) -> str:
    """The shell command for one more machine, which needs the core packages alone."""
    words = shlex.join(arguments).replace("is_host=true", "is_host=false", 1)
    program = "python3 -m tinyllm_lib.launch.torchrun agent"
    return f"cd {shlex.quote(str(PACKAGE_PARENT))} && {program} {words}"
