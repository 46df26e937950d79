"""A panel that starts, stops and resumes a training run without keeping the notebook busy."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path

import ipywidgets as ipw

from tinyllm_lib.course import plots
from tinyllm_lib.course.widgets import views
from tinyllm_lib.course.widgets.frame import Panel, button, line, view
from tinyllm_lib.launch import LaunchError, View, launch, progress_html, read_metrics
from tinyllm_lib.model import step_folders, step_of
from tinyllm_lib.train import TrainConfig, get_lr, run_config


class Control:
    """A run that is started, stopped and gone on with from a thread, so that the notebook stays
    free.

    Args:
        config: of the run; its `resume` is set by the button.
        show: called with the MIME bundle of the run's view, whenever there is news.
        changed: called when the run has started or ended.
    """

    running: dict[
        str, Control
    ] = {}  # by run folder: a cell that is run twice finds the run that it started

    def __init__(self, config: TrainConfig, nproc_per_node: int | str = "auto", *, show: Callable[[dict], None] = lambda bundle: None,
                 changed: Callable[[], None] = lambda: None):  # fmt: skip
        self.config, self.nproc, self.run = config, nproc_per_node, Path(config.out_dir)
        self.show, self.changed, self.error = show, changed, ""
        self._stop, self._thread = threading.Event(), None

    @property
    def busy(self) -> bool:
        """Whether its processes are there."""
        return self._thread is not None

    @property
    def state(self) -> str:
        """One of "not started", "running", "stopping", "stopped", "finished", "failed"."""
        if self.busy:
            return "stopping" if self._stop.is_set() else "running"
        if self.error:
            return "failed"
        folders = step_folders(self.run)
        if not folders:
            return "not started"
        steps = run_config(self.run).get("steps", math.inf)
        return "finished" if step_of(folders[-1]) >= steps else "stopped"

    def start(self) -> None:
        """Begins the run from nothing; an older run of this name is renamed."""
        self._begin("never")

    def resume(self) -> None:
        """Goes on from the newest checkpoint."""
        self._begin("must")

    def stop(self) -> None:
        """Asks the run to finish its step, save a checkpoint and end; returns at once."""
        self._stop.set()
        self.changed()

    def wait(self, seconds: float | None = None) -> None:
        """Until its processes have ended."""
        if (thread := self._thread) is not None:
            thread.join(seconds)

    def update(self, bundle: dict, raw: bool = True) -> None:
        """What a `View` calls to show the run."""
        self.show(bundle)

    def _begin(self, resume: str) -> None:
        if self.busy:
            return
        self._stop.clear()
        self.error = ""
        self._thread = threading.Thread(
            target=self._train, args=(replace(self.config, resume=resume),), daemon=True
        )
        Control.running[str(self.run)] = self
        self._thread.start()
        self.changed()

    def _train(self, config: TrainConfig) -> None:
        try:
            launch(config, self.nproc, show=View(self.run, handle=self), stop=self._stop)
        except KeyboardInterrupt:
            pass  # it was stopped, and has saved
        except (LaunchError, OSError, ValueError) as failure:
            self.error = str(failure)
        finally:
            self._thread = None
            Control.running.pop(str(self.run), None)
            self.changed()


def training_dashboard(config: TrainConfig, nproc_per_node: int | str = "auto") -> Panel:
    """Start, stop and resume buttons over the live view of a run; the notebook stays free while it
    trains.

    Args:
        config: as for `launch`. A run of this name that is there already can be gone on with, if it
            is the same run.
        nproc_per_node: processes, as for `launch`.
    """
    run = Path(config.out_dir)
    control = Control.running.get(str(run)) or Control(config, nproc_per_node)
    out, said = view(360), ipw.HTML(layout={"height": "26px"})

    def show(bundle: dict) -> None:
        out.value = bundle["text/html"]

    def changed() -> None:
        state = control.state
        start.disabled, stop.disabled = control.busy, state != "running"
        resume.disabled = control.busy or state != "stopped"
        hints = {
            "not started": "Start begins it.", "stopping": "It finishes its step and saves a checkpoint …",
            "stopped": "Resume goes on; Start begins again from nothing and keeps this run under another name.",
            "finished": "Start begins again from nothing and keeps this run under another name.", "running": "The notebook stays free.",
        }  # fmt: skip
        hint = control.error.splitlines()[-1] if control.error else hints.get(state, "")
        said.value = views.frame(
            f'<span role="status"><b>{escape(run.name)}: {state}.</b> {escape(hint)}</span>'
        )
        if control.error:
            out.value = views.frame(
                f'<pre class="error" role="alert">{escape(control.error)}</pre>'
            )

    start = button("Start", "begins the run from nothing", lambda: control.start())
    stop = button(
        "Stop", "the run finishes its step, saves a checkpoint and ends", lambda: control.stop()
    )
    resume = button("Resume", "goes on from the newest checkpoint", lambda: control.resume())
    control.show, control.changed = show, changed
    if (run / "config.json").is_file():
        View(run, handle=control).update()
    else:
        out.value = progress_html([], config.steps, [])
    changed()

    panel = Panel(
        f"Training dashboard: {run.name}",
        [line(start, stop, resume), said, out],
        lambda: [run_picture(config)],
    )
    panel.start, panel.stop, panel.resume, panel.said, panel.out, panel.control = (
        start,
        stop,
        resume,
        said,
        out,
        control,
    )
    return panel


def run_picture(config: TrainConfig):
    """The loss of the run so far; before its first step, the learning rate that it will have."""
    name = Path(config.out_dir).name
    try:
        metrics = [row for row in read_metrics(config.out_dir) if "loss" in row]
    except FileNotFoundError:
        metrics = []
    if metrics:
        title = f"{name}: {metrics[-1]['step']:,} steps taken"
        return plots.line_chart({"": ([m["step"] for m in metrics], [m["loss"] for m in metrics])}, xlabel="step",
                                ylabel="loss, nats per token", dots=len(metrics) < 30, title=title)  # fmt: skip
    shown = range(0, max(config.steps, 1), max(1, config.steps // 200))
    title = f"{name}: not started; the learning rate it will have"
    return plots.learning_rate_curve(shown, [get_lr(step, config) for step in shown], title=title)
