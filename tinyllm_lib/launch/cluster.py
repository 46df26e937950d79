"""One run on many machines: the command that each of them runs, and a Slurm job that does it all.

Code, data and run folder lie on a file system that all machines share. torchrun's agents, one per
machine, meet at `rdzv_endpoint` and start the trainer's processes. When a machine is lost, the
others wait until the same command is given there again, ten minutes at most, and all go on from the
last checkpoint. When that of `rdzv_endpoint` is lost, the run ends everywhere: launch it again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
from dataclasses import asdict, replace
from pathlib import Path

from tinyllm_lib.train import ITSELF, TrainConfig, meet, meeting_host

JOIN_SECONDS = 600  # as long the machines wait for each other
PACKAGE_PARENT = Path(__file__).resolve().parents[2]  # holds tinyllm_lib
# Unlike plain torchrun it does not obey what another job has left in the environment.
OUR_TORCHRUN = "python3 -m tinyllm_lib.launch.torchrun agent"


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same config for a process that starts in another folder."""
    paths = ("data_path", "out_dir", "tokenizer_path", "init_from")
    return replace(config, **{k: os.path.abspath(v) for k in paths if (v := getattr(config, k))})


def torchrun_arguments(
    config: TrainConfig, file: Path, nproc: int, nnodes: int, endpoint: str | None
) -> list[str]:
    """What torchrun is called with on each machine, to train as `config` says, written to `file`.

    Raises:
        ValueError: no place to meet (one machine needs none), or a run that cannot go on.
    """
    place = endpoint or (ITSELF if nnodes == 1 else "")
    if not re.fullmatch(r"[^\s:]+:\d+|\[[^\s\]]+\]:\d+", place):
        raise ValueError(
            f"nnodes={nnodes} needs rdzv_endpoint='host:port': this machine as the others call it"
            f" and a free port, for example '{socket.gethostname()}:29400'; it is {endpoint!r}."
        )
    if config.resume == "never" and nnodes > 1:
        raise ValueError("A machine that comes back must go on: use resume='auto' with many nodes.")
    # Under an old locale, paths hold bytes that could not be read; here they are UTF-8 again.
    content = json.dumps(asdict(config), ensure_ascii=False)
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    meeting = [*meet(nproc, nnodes, place), "--rdzv_id", Path(config.out_dir).name]
    meeting += ["--max_restarts", "3" if nnodes > 1 else "0"]
    # With the run folder as well, so that a list of processes shows whose they are.
    return [*meeting, "-m", "tinyllm_lib.train", f"--config={file}", f"--out_dir={config.out_dir}"]


def node_command(arguments: list[str]) -> str:
    """The shell command for one more machine, which needs the core packages alone."""
    arguments = [*meeting_host(False, JOIN_SECONDS), *arguments]
    return f"cd {shlex.quote(str(PACKAGE_PARENT))} && {OUR_TORCHRUN} {shlex.join(arguments)}"


def slurm_script(
    config: TrainConfig,
    nodes: int,
    gpus_per_node: int,
    path: str | Path | None = None,
    *,
    hours: int = 24,
    setup: str = "",
    options: tuple[str, ...] = (),
) -> Path:
    """Writes a Slurm job for `sbatch`, one torchrun per node, and its config beside it; returns it.

    Before its time limit the job saves, ends and queues again, until the run is finished. A run
    that saves in between (`save_interval`) also goes on after a crash, with the same file.

    Args:
        nodes: machines. They see this clone, the data and the run folder under the same paths.
        gpus_per_node: processes on each; 0: one process without a GPU.
        path: the file to write; None: beside the run folder, `<out_dir>.sbatch`.
        hours: time limit of one turn in the queue.
        setup: shell lines that find the node's `python3`, such as "source .venv/bin/activate".
        options: more options of sbatch, for example ("--partition=gpu", "--account=me").
    """
    config = with_absolute_paths(config)
    run = Path(config.out_dir)
    path = Path(path or f"{run}.sbatch").absolute()
    for file in (path, run):  # Slurm does not make the folder of its log
        file.parent.mkdir(parents=True, exist_ok=True)
    # The meeting place is known only on the first node; the shell fills it in.
    nproc, file = max(gpus_per_node, 1), Path(f"{path}.json")
    words = torchrun_arguments(config, file, nproc, nodes, "HOST:0")
    words[words.index("--rdzv_id") + 1] = "JOB-ID"
    command = shlex.join(words).replace("HOST:0", '"$host:$port"', 1)
    command = command.replace("JOB-ID", '"$SLURM_JOB_ID"', 1)
    gpus = (f"--gpus-per-node={gpus_per_node}",) if gpus_per_node else ()
    more = "\n".join(f"#SBATCH {option}" for option in (*gpus, *options))
    job = f"""\
#!/bin/bash
#SBATCH --job-name={shlex.quote(f"tinyllm-{run.name}")}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --time={hours}:00:00
#SBATCH --output={shlex.quote(f"{run}.slurm-%j.log")}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
{more}
# Written by tinyllm_lib.launch.slurm_script; start it with: sbatch {shlex.quote(str(path))}
# Every start goes on from the run's last checkpoint.

cd {shlex.quote(str(PACKAGE_PARENT))} || exit 1
{setup}
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

srun {OUR_TORCHRUN} {command} &
step=$!

# Three minutes before the time limit: all processes save and end, and the job queues again.
again=
trap 'again=yes; kill -TERM "$step"' USR1
# Cancelled, or pushed aside: they save and end. Slurm queues again what it has pushed aside.
trap 'kill -TERM "$step"' TERM

code=0
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done
if [ -n "$again" ]; then exec scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""
    path.write_text(job, encoding="utf-8")
    return path
