"""A panel that starts, stops and resumes a training run without keeping the notebook busy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import ClassVar

import ipywidgets as ipw

from tinyllm_lib.course import plots
from tinyllm_lib.course.views import html
from tinyllm_lib.course.widgets.frame import Background, Panel, button, line, view
from tinyllm_lib.launch import LaunchError, View, launch, progress_html, read_metrics
from tinyllm_lib.model import step_folders, step_of
from tinyllm_lib.train import TrainConfig, get_lr, run_config

ANEW = "Start begins again from nothing and keeps this run under another name."
HINTS = {
    "not started": "Start begins it.",
    "running": "The notebook stays free.",
    "stopping": "It finishes its step and saves a checkpoint …",
    "stopped": f"Resume goes on; {ANEW}",
    "finished": ANEW,
}


class Control(Background):
    """A run that is started, stopped and gone on with while the notebook stays free.

    Args:
        config: of the run; its `resume` is set by the button.

    Attributes:
        show: called with the MIME bundle of the run's view, whenever there is news.
        changed: called when the run has started or ended.
    """

    # By run folder: a cell that is run twice finds the run that it started.
    running: ClassVar[dict[str, Control]] = {}

    def __init__(self, config: TrainConfig, nproc_per_node: int | str = "auto"):
        super().__init__()
        self.config, self.nproc, self.run = config, nproc_per_node, Path(config.out_dir)
        self.show: Callable[[dict], None] = lambda bundle: None
        self.changed: Callable[[], None] = lambda: None
        self.error = ""

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
        super().stop()
        self.changed()

    def update(self, bundle: dict, raw: bool = True) -> None:
        """What a `View` calls to show the run."""
        self.show(bundle)

    def _begin(self, resume: str) -> None:
        if not self.busy:
            self.error = ""
            Control.running[str(self.run)] = self
            self.begin(self._train, replace(self.config, resume=resume))
            self.changed()

    def _train(self, config: TrainConfig) -> None:
        try:
            view = View(self.run, handle=self, skip=True)
            launch(config, self.nproc, show=view, stop=self._stop)
        except KeyboardInterrupt:
            pass  # it was stopped, and has saved
        except (LaunchError, OSError, ValueError) as failure:
            self.error = str(failure)
        finally:
            Control.running.pop(str(self.run), None)


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
        hint = control.error.splitlines()[-1] if control.error else HINTS.get(state, "")
        status = f"<b>{escape(run.name)}: {state}.</b> {escape(hint)}"
        said.value = html.frame(f'<span role="status">{status}</span>')
        if control.error:
            why = f'<pre class="error" role="alert">{escape(control.error)}</pre>'
            out.value = html.frame(why)

    start = button("Start", "begins the run from nothing", control.start)
    stop = button("Stop", "the run finishes its step, saves a checkpoint and ends", control.stop)
    resume = button("Resume", "goes on from the newest checkpoint", control.resume)
    control.show, control.changed = show, changed
    if (run / "config.json").is_file():
        View(run, handle=control).update()
    else:
        out.value = progress_html([], config.steps, [])
    changed()

    named = {"start": start, "stop": stop, "resume": resume, "said": said, "out": out}
    parts, title = [line(start, stop, resume), said, out], f"Training dashboard: {run.name}"
    return Panel(title, parts, lambda: [run_picture(config)], control=control, **named)


def run_picture(config: TrainConfig):
    """The loss of the run so far; before its first step, the learning rate that it will have."""
    name = Path(config.out_dir).name
    try:
        metrics = [row for row in read_metrics(config.out_dir) if "loss" in row]
    except FileNotFoundError:
        metrics = []
    if metrics:
        title = f"{name}: {metrics[-1]['step']:,} steps taken"
        return plots.loss_curve(metrics, title=title)
    shown = range(0, max(config.steps, 1), max(1, config.steps // 200))
    title = f"{name}: not started; the learning rate it will have"
    return plots.learning_rate_curve(shown, [get_lr(step, config) for step in shown], title=title)
