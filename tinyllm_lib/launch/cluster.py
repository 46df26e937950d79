"""One run on many machines: the command that each of them runs, and a Slurm job that does it all.

Code, data and run folder lie on a file system that all machines share. torchrun's agents, one per
machine, meet at `rdzv_endpoint` and start the trainer's processes; when one machine is lost, the
others wait until the same command is given there again (ten minutes at most), and all go on from
the last checkpoint. The machine of `rdzv_endpoint` is the meeting point itself: when that one is
lost, the run ends everywhere, and launching it again starts it again.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
from dataclasses import asdict, replace
from pathlib import Path

from tinyllm_lib.data import write_json
from tinyllm_lib.train import ITSELF, TrainConfig, meet, meeting_host

JOIN_SECONDS = 600  # as long the machines wait for each other
PACKAGE_PARENT = Path(__file__).resolve().parents[2]  # holds tinyllm_lib
# Unlike plain torchrun it does not obey what another job has left in the environment.
OUR_TORCHRUN = "python3 -m tinyllm_lib.launch.torchrun agent"


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same config for a process that starts in another folder."""
    paths = ("data_path", "out_dir", "tokenizer_path", "init_from")
    return replace(config, **{k: os.path.abspath(v) for k in paths if (v := getattr(config, k))})


def meeting(
    config: TrainConfig, nproc: int, nnodes: int, rdzv_endpoint: str | None, rdzv_id: str | None
) -> list[str]:
    """Torchrun's arguments on each of `nnodes` machines: where they meet, and how often they may.

    Raises:
        ValueError: no place to meet (one machine needs none), or a config that cannot go on after a
            restart.
    """
    endpoint = rdzv_endpoint or (ITSELF if nnodes == 1 else "")
    if not re.fullmatch(r"[^\s:]+:\d+|\[[^\s\]]+\]:\d+", endpoint):
        raise ValueError(
            f"nnodes={nnodes} needs rdzv_endpoint='host:port': this machine as the others call it"
            f" and a free port, for example '{socket.gethostname()}:29400'; it is"
            f" {rdzv_endpoint!r}."
        )
    if config.resume == "never" and nnodes > 1:
        raise ValueError(
            "resume='never' would begin anew each time a machine is lost and comes back: use"
            " resume='auto' with many nodes."
        )
    name, restarts = rdzv_id or Path(config.out_dir).name, "3" if nnodes > 1 else "0"
    return [*meet(nproc, nnodes, endpoint), "--rdzv_id", name, "--max_restarts", restarts]


def training(config: TrainConfig, file: Path) -> list[str]:
    """Torchrun's arguments for a worker that trains as `config` says, which is written to `file`.

    The run folder stands in them as well, so that a list of processes shows whose they are.
    """
    write_json(file, asdict(config))
    return ["-m", "tinyllm_lib.train", f"--config={file}", f"--out_dir={config.out_dir}"]


def node_command(arguments: list[str]) -> str:
    """The shell command for one more machine, which needs the core packages alone."""
    arguments = [*meeting_host(False, JOIN_SECONDS), *arguments]
    return f"cd {shlex.quote(str(PACKAGE_PARENT))} && {OUR_TORCHRUN} {shlex.join(arguments)}"


SLURM = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1{gpus}
#SBATCH --time={hours}:00:00
#SBATCH --output={log}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
{options}
# Written by tinyllm_lib.launch.slurm_script; start it with: sbatch {path}
# Every start goes on from the run's last checkpoint.

cd {folder} || exit 1
{setup}
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

srun {torchrun} {command} &
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
    """Writes a Slurm job that trains as `config` says, one torchrun per node, for `sbatch`.

    Before its time limit the job saves, ends and queues again, until the run is finished. A run
    that saves in between (`save_interval`) also goes on after a crash, with the same file.

    Args:
        nodes: machines. They see this clone, the data and the run folder under the same paths.
        gpus_per_node: processes on each; 0: one process without a GPU.
        path: the file to write; None: beside the run folder, `<out_dir>.sbatch`. The config is
            written beside it, `<path>.json`.
        hours: time limit of one turn in the queue.
        setup: shell lines that make the `python3` with torch available on a node, for example
            "source .venv/bin/activate".
        options: more options of sbatch, for example ("--partition=gpu", "--account=me").

    Returns:
        The file.
    """
    config = with_absolute_paths(config)
    run = Path(config.out_dir)
    path = Path(path or f"{run}.sbatch").absolute()
    for file in (path, run):  # Slurm does not make the folder of its log
        file.parent.mkdir(parents=True, exist_ok=True)
    # The meeting place is known only on the first node; the shell fills it in.
    words = shlex.join(meeting(config, max(gpus_per_node, 1), nodes, "HOST:0", "ID"))
    words = words.replace("HOST:0", '"$host:$port"').replace("ID", '"$SLURM_JOB_ID"')
    text = SLURM.format(
        name=shlex.quote(f"tinyllm-{run.name}"),
        nodes=nodes,
        hours=hours,
        path=shlex.quote(str(path)),
        setup=setup,
        gpus=f"\n#SBATCH --gpus-per-node={gpus_per_node}" if gpus_per_node else "",
        log=shlex.quote(f"{run}.slurm-%j.log"),
        options="".join(f"#SBATCH {option}\n" for option in options),
        folder=shlex.quote(str(PACKAGE_PARENT)),
        torchrun=OUR_TORCHRUN,
        command=f"{words} {shlex.join(training(config, Path(f'{path}.json')))}",
    )
    path.write_text(text, encoding="utf-8")
    return path
