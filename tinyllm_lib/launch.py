"""Starting a training run from a notebook cell, and watching it.

`launch(config)` runs `python -m torch.distributed.run --standalone … -m tinyllm_lib.train` as a subprocess. The kernel is
never forked and never touches the GPU, so the same cell works with one CPU and with eight GPUs. Everything shown is read
from the run's `metrics.jsonl`, so `watch(run)` shows the same after a closed tab or a restarted kernel.
"""

from __future__ import annotations

import collections
import html
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

from tinyllm_lib.train import TrainConfig

REFRESH_SECONDS = 1.0


class LaunchError(RuntimeError):
    """A training run that ended with an error; the message carries the traceback of the process that failed first."""


def launch(config: TrainConfig, nproc_per_node: int | str = "auto", *, show: bool = True, master_port: int | None = None) -> Path:
    """Trains as `config` says in torchrun processes and shows the progress until they end.

    Args:
        nproc_per_node: processes; "auto" is one per GPU, or one per CPU core (at most 8) where there is no GPU.
        show: False for silence.
        master_port: only where the free port that torchrun finds by itself must not be used.

    Returns:
        The run folder.

    Raises:
        LaunchError: a process failed.
        KeyboardInterrupt: after the stop button, once the run has saved a checkpoint and ended.
    """
    nproc = default_processes(config.device) if nproc_per_node == "auto" else int(nproc_per_node)
    # The paths of a config are relative to where the learner is, and the workers start somewhere else.
    paths = ("data_path", "out_dir", "tokenizer_path", "init_from")
    config = replace(config, **{k: os.path.abspath(v) for k in paths if (v := getattr(config, k))})
    run = Path(config.out_dir)
    with tempfile.TemporaryDirectory(prefix="tinyllm_") as scratch:
        config_file = Path(scratch, "config.json")
        config_file.write_text(json.dumps(asdict(config)), encoding="utf-8")
        rendezvous = ["--standalone"] if master_port is None else ["--master_port", str(master_port)]
        command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, "--nproc_per_node", str(nproc),
                   "-m", "tinyllm_lib.train", "--config", str(config_file)]
        package = str(Path(__file__).resolve().parent.parent)
        env = {**os.environ, "TINYLLM_LAUNCHER_PID": str(os.getpid()), "TINYLLM_ERROR_DIR": scratch, "PYTHONUNBUFFERED": "1",
               "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // nproc)), "TOKENIZERS_PARALLELISM": "false",
               "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True, encoding="utf-8", errors="replace", start_new_session=True)
        output: collections.deque[str] = collections.deque(maxlen=200)
        reader = threading.Thread(target=_read_all, args=(process.stdout, output), daemon=True)
        reader.start()
        view = _View(run, config.out_dir) if show else None
        try:
            while process.poll() is None:
                if view:
                    view.update(_lines(output))
                time.sleep(0.1 if not view or view.plain else REFRESH_SECONDS)
        except KeyboardInterrupt:
            print("Stopping: the run finishes its step and saves a checkpoint …", flush=True)
            _stop(process)
            if view:
                view.update(_lines(output), final=True)
            raise
        except BaseException:
            _stop(process)
            raise
        reader.join(timeout=5)
        if process.returncode:
            raise LaunchError(_first_failure(Path(scratch), process.returncode, output))
        if view:
            view.update(_lines(output), final=True)
    return run


def watch(run: str | Path, *, follow: bool = True) -> None:
    """Shows a run from its files, whoever started it; with `follow`, until it ends or the cell is stopped.

    Raises:
        FileNotFoundError: no such run.
    """
    run = Path(run)
    if not (run / "config.json").is_file():
        raise FileNotFoundError(f"{run} is no run folder (it has no config.json). Runs lie in workspace/<profile>/runs/.")
    view = _View(run, str(run))
    try:
        while follow and not _ended(run):
            view.update(_log_lines(run))
            time.sleep(REFRESH_SECONDS)
    except KeyboardInterrupt:
        pass
    view.update(_log_lines(run), final=True)


def read_metrics(run: str | Path) -> list[dict]:
    """The lines of a run's `metrics.jsonl`, oldest first; a half-written last line is left out.

    Raises:
        FileNotFoundError: the run has written none.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: the run has not taken a step yet, or the name is wrong.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def default_processes(device: str = "auto") -> int:
    """One process per GPU; without a GPU one per CPU core, 8 at most (each then runs single-threaded, which wastes least)."""
    import torch

    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0        # counts without starting CUDA
    if gpus or device in ("cuda", "mps"):
        return max(gpus, 1)
    if device == "auto" and torch.backends.mps.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if sys.platform == "win32" else min(cores, 8)


def progress_html(metrics: list[dict], steps: int, log: list[str]) -> str:
    """A run as HTML: a bar with the time left, the loss curve as SVG, the latest numbers and the last lines of the log."""
    last = next((m for m in reversed(metrics) if "loss" in m), {})
    step = metrics[-1]["step"] if metrics else 0
    done = step / max(steps, 1)
    facts = [f"step {step:,} of {steps:,}"]
    if last:
        facts += [f"loss {last['loss']:.3f}", f"{last['tokens_per_second']:,.0f} tokens/s",
                  f"learning rate {last['lr']:.2g}", f"MFU {last['mfu']:.0%}"]
        left = _seconds_left(metrics, steps)
        facts.append(f"about {left // 60:.0f} min {left % 60:02.0f} s left" if step < steps else "finished")
    validated = [m for m in metrics if "val_bits_per_byte" in m]
    if validated:
        facts.append(f"validation {validated[-1]['val_bits_per_byte']:.3f} bits/byte")
    bar = (f'<div role="progressbar" aria-valuenow="{done:.0%}" style="height:10px;border:1px solid currentColor;border-radius:5px;'
           f'max-width:640px"><div style="height:100%;width:{done:.1%};background:#3366aa;border-radius:4px"></div></div>')
    tail = html.escape("\n".join(log[-4:]))
    return (f'<div style="font-family:sans-serif;font-size:13px">{bar}<div style="margin:4px 0">{" · ".join(facts)}</div>'
            f'{_curve_svg(metrics, steps)}<pre style="font-size:11px;margin:4px 0;white-space:pre-wrap">{tail}</pre></div>')


def _curve_svg(metrics: list[dict], steps: int, width: int = 640, height: int = 160) -> str:
    points = [(m["step"], m["loss"]) for m in metrics if "loss" in m]
    if len(points) < 2:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    span = (high - low) or 1.0
    left, bottom = 44, height - 20

    def place(x: float, y: float) -> str:
        return f"{left + x / max(steps, 1) * (width - left - 8):.1f},{bottom - (y - low) / span * (bottom - 12):.1f}"

    path = " ".join(place(x, y) for x, y in points)
    text = 'font-size="11" fill="currentColor"'
    return (f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="loss falls from '
            f'{points[0][1]:.2f} to {points[-1][1]:.2f}"><polyline points="{path}" fill="none" stroke="#3366aa" stroke-width="1.8"/>'
            f'<line x1="{left}" y1="{bottom}" x2="{width}" y2="{bottom}" stroke="currentColor"/>'
            f'<text x="2" y="14" {text}>{high:.2f}</text><text x="2" y="{bottom}" {text}>{low:.2f}</text>'
            f'<text x="{left}" y="{height - 4}" {text}>loss by step</text>'
            f'<text x="{width - 4}" y="{height - 4}" text-anchor="end" {text}>{steps:,}</text></svg>')


class _View:
    """Shows a run: a live HTML display in a notebook, a few plain lines elsewhere."""

    def __init__(self, run: Path, name: str):
        self.run, self.name, self.handle, self.shown = run, Path(name).name, None, ""
        self.plain = not _has_notebook_front_end()

    def update(self, log: list[str], final: bool = False) -> None:
        if self.plain:
            steps = [line for line in log if line.startswith("step ")]
            if self.shown in steps:                            # the log forgets its oldest lines: count from the last one shown
                steps = steps[steps.index(self.shown) + 1:]
            for self.shown in steps:
                print(self.shown, flush=True)
            if final and (others := [line for line in log if not line.startswith("step ")]):
                print(others[-1], flush=True)
            return
        from IPython.display import HTML, display

        metrics, steps = self._metrics()
        content = HTML(progress_html(metrics, steps, log))
        if self.handle is None:
            self.handle = display(content, display_id=True)
        else:
            self.handle.update(content)

    def _metrics(self) -> tuple[list[dict], int]:
        try:
            return read_metrics(self.run), json.loads((self.run / "config.json").read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError):
            return [], 0


def _has_notebook_front_end() -> bool:
    if "PYTEST_CURRENT_TEST" in os.environ or os.environ.get("TINYLLM_PLAIN"):
        return False
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _read_all(pipe, output: collections.deque[str]) -> None:
    for line in pipe:                                          # a pipe nobody reads fills up and stops the workers
        output.append(line.rstrip("\n"))


def _lines(output: collections.deque[str]) -> list[str]:
    """What the trainer printed, without torchrun's own lines; torchrun ends with a traceback when it is stopped."""
    printed = itertools.takewhile(lambda line: not line.startswith("Traceback"), list(output))
    return [line for line in printed if line.strip() and "torch.distributed" not in line and not line.startswith(("W", "I0", "*****"))]


def _log_lines(run: Path) -> list[str]:
    path = run / "train.log"
    return [line[21:] for line in path.read_text(encoding="utf-8").splitlines()[-30:]] if path.is_file() else []


def _ended(run: Path) -> bool:
    lines = _log_lines(run)
    return bool(lines) and lines[-1].startswith(("Finished", "Stopped"))


def _seconds_left(metrics: list[dict], steps: int) -> float:
    rows = [m for m in metrics if "tokens_per_second" in m][-5:]
    if not rows or not metrics[-1]["step"]:
        return 0.0
    rate = sorted(m["tokens_per_second"] for m in rows)[len(rows) // 2]
    per_step = rows[-1]["tokens"] / rows[-1]["step"]
    return (steps - rows[-1]["step"]) * per_step / max(rate, 1e-9)


def _stop(process: subprocess.Popen, patience: float = 60.0) -> None:
    """Asks the torchrun agent to end its workers and waits: killing it outright would orphan them."""
    for number in (signal.SIGTERM, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM):
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            except KeyboardInterrupt:                          # an impatient second press of the button
                continue


def _first_failure(scratch: Path, code: int, output: collections.deque[str]) -> str:
    failures = sorted(scratch.glob("rank_*.txt"), key=lambda p: p.stat().st_mtime_ns)
    if failures:
        text = failures[0].read_text(encoding="utf-8").rstrip()
        return f"training process {failures[0].stem.removeprefix('rank_')} failed:\n{text.splitlines()[-1]}\n\n{text}"
    tail = "\n".join(list(output)[-20:])
    return (f"torchrun ended with code {code} and no worker left a traceback (killed from outside, or out of memory?). "
            f"Its last lines:\n{tail}")
