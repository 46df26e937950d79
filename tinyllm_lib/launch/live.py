"""Watching a training run: bar, curves, numbers and log, rebuilt from the files of its folder.

`launch` shows a run with it while it goes on; `watch(run)` shows the same from another notebook,
after a closed tab or a restarted kernel. In a notebook the view is HTML; elsewhere it is one line
of text for each line of metrics.
"""

from __future__ import annotations

import collections
import html
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from tinyllm_lib.train import run_config

REFRESH_SECONDS = 1.0
SILENCE_SECONDS = 120.0  # without a line, after which `watch` says so
SHOWN_POINTS = 400
WAITING = (
    "Still waiting",
    "Nothing new",
)  # how the lines begin that say what is waited for, and why


def watch(run: str | Path, *, follow: bool = True) -> None:
    """Shows a run from its files, whoever started it; with `follow`, until it ends or the cell is
    stopped.

    A run that was killed leaves no last line: after two minutes without a sign of life, the view
    says so and follows on.

    Args:
        run: the run folder, `ws.run(name)`. Stopping this cell does not stop the run.
        follow: False shows the present state and returns.

    Raises:
        FileNotFoundError: no such run.
    """
    run = Path(run)
    if not _steps(run):
        raise FileNotFoundError(
            f"{run} is no run folder (no config.json in it says how many steps the run has). Runs"
            " lie in workspace/<profile>/runs/."
        )
    view, log = View(run), LogTail(run)
    try:
        said, silence = False, Silence(run)
        while follow and not log.ended:
            news = log.news()
            if (silent := silence.seconds()) < SILENCE_SECONDS:
                said = False
            elif not (said or log.ended):
                news, said = (
                    [
                        *news,
                        (
                            f"Nothing new for {silent / 60:.0f} min: a long step, or the run was"
                            " killed. Stop this cell; launching the run again goes on from its"
                            " last checkpoint, if no process works on it."
                        ),
                    ],
                    True,
                )
            view.update(news)
            if log.ended:
                break
            time.sleep(REFRESH_SECONDS)
    except KeyboardInterrupt:
        pass
    view.update(log.news(), final=True)


class Silence:
    """How long a run has written nothing. Its files' times are asked only once: another machine's
    clock may be wrong.
    """

    def __init__(self, run: Path):
        self._run = run
        self._files = self._times()
        self._since = time.monotonic() - max(
            0.0, time.time() - max(self._files, default=time.time())
        )

    def _times(self) -> list[float]:
        with suppress(OSError):  # a run that is being set aside
            files = (self._run / name for name in ("train.log", "metrics.jsonl", "config.json"))
            return [path.stat().st_mtime for path in files if path.is_file()]
        return []

    def seconds(self) -> float:
        """Since it last wrote anything."""
        if (now := self._times()) != self._files:
            self._files, self._since = now, time.monotonic()
        return time.monotonic() - self._since


def _steps(run: Path) -> int:
    """The length of a run; 0 where there is no run, or none yet."""
    return run_config(run).get("steps", 0)


def read_metrics(run: str | Path) -> list[dict]:
    """The lines of a run's `metrics.jsonl`, oldest first; a half-written last line is left out.

    Raises:
        FileNotFoundError: the run has written none.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: the run has not taken a step yet, or the name is wrong."
        )
    return [
        json.loads(line)
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.endswith("}")
    ]


def progress_text(metrics: list[dict], steps: int) -> list[str]:
    """The facts of a run's present state, in words."""
    last = next((m for m in reversed(metrics) if "loss" in m), {})
    step = metrics[-1]["step"] if metrics else 0
    facts = [f"step {step:,} of {steps:,}"]
    for key, form in (
        ("loss", "loss {:.3f}"),
        ("lr", "learning rate {:.2g}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
        ("mfu", "MFU {:.0%}"),
    ):
        if last.get(key) is not None:
            facts.append(form.format(last[key]))
    if step >= steps > 0:
        facts.append("finished")
    elif (left := _seconds_left(metrics, steps)) is not None:
        hours, minutes, seconds = int(left) // 3600, int(left) // 60 % 60, int(left) % 60
        facts.append(
            "about "
            + (
                f"{hours} h {minutes:02} min left"
                if hours
                else f"{minutes} min {seconds:02} s left"
            )
        )
    if validated := [m for m in metrics if "val_bits_per_byte" in m]:
        facts.append(f"validation {validated[-1]['val_bits_per_byte']:.3f} bits/byte")
    return facts


def progress_html(metrics: list[dict], steps: int, log: list[str]) -> str:
    """A run as HTML: a bar with the time left, loss and learning rate as curves, the latest
    numbers, the last lines of the log.

    Args:
        metrics: the rows of `metrics.jsonl`.
        steps: the length of the whole run.
        log: lines; the last four are shown.
    """
    done = (metrics[-1]["step"] if metrics else 0) / max(steps, 1)
    bar = (
        f'<div role="progressbar" aria-valuenow="{done:.0%}" style="height:10px;border:1px solid'
        ' currentColor;border-radius:5px;max-width:640px"><div'
        f' style="height:100%;width:{done:.1%};background:{_LOSS};border-radius:4px"></div></div>'
    )
    tail = html.escape("\n".join(log[-4:]))
    return (
        f'<div style="font-family:sans-serif;font-size:13px">{bar}<div style="margin:4px 0">'
        f"{' · '.join(progress_text(metrics, steps))}</div>{_curves_svg(metrics, steps)}"
        f'<pre style="font-size:11px;margin:4px 0;white-space:pre-wrap">{tail}</pre></div>'
    )


_LOSS, _RATE = (
    "#4a86c8",
    "#c8702a",
)  # both readable on white and on black; the form tells them apart, too


def _curves_svg(metrics: list[dict], steps: int, width: int = 640) -> str:
    """Loss (line) and validation loss (circles) over the steps, below them the learning rate
    (dashes).
    """
    loss = _thinned([(m["step"], m["loss"]) for m in metrics if "loss" in m])
    rate = _thinned([(m["step"], m["lr"]) for m in metrics if "lr" in m])
    checked = _thinned([(m["step"], m["val_loss"]) for m in metrics if "val_loss" in m])
    if len(loss) < 2:
        return ""
    left, right = 52, width - 8
    low, high = min(y for _, y in loss + checked), max(y for _, y in loss + checked)
    peak = max((y for _, y in rate), default=0.0)
    text = 'font-size="11" fill="currentColor"'

    def place(
        point: tuple[int, float], panel: tuple[int, int], values: tuple[float, float]
    ) -> tuple[float, float]:
        (x, y), (top, bottom), (smallest, largest) = point, panel, values
        across = left + x / max(steps, 1) * (right - left)
        return round(across, 1), round(
            bottom - (y - smallest) / ((largest - smallest) or 1.0) * (bottom - top), 1
        )

    def line(
        points: list[tuple[int, float]],
        panel: tuple[int, int],
        values: tuple[float, float],
        style: str,
    ) -> str:
        path = " ".join("{},{}".format(*place(point, panel, values)) for point in points)
        return f'<polyline points="{path}" fill="none" {style}/>'

    def axis(bottom: int, top: int, names: tuple[str, str]) -> str:
        return (
            f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="currentColor"/>'
            f'<text x="{left - 6}" y="{top + 4}" text-anchor="end" {text}>{names[0]}</text>'
            f'<text x="{left - 6}" y="{bottom + 3}" text-anchor="end" {text}>{names[1]}</text>'
        )

    upper, lower = (24, 140), (176, 206)
    circles = "".join(
        '<circle cx="{}" cy="{}" r="3.5" fill="none" stroke="currentColor" stroke-width="1.5"/>'.format(
            *place(point, upper, (low, high))
        )
        for point in checked
    )
    title = "loss (line)" + (", validation loss (circles)" if checked else "")
    return (
        f'<svg viewBox="0 0 {width} 226" width="{width}" height="226" style="max-width:100%"'
        f' role="img" aria-label="loss falls from {loss[0][1]:.2f} to {loss[-1][1]:.2f}; learning'
        f' rate up to {peak:.2g}, now {rate[-1][1] if rate else 0:.2g}"><text x="{left}" y="11"'
        f" {text}>{title}</text>{axis(upper[1], upper[0], (f'{high:.2f}', f'{low:.2f}'))}"
        + line(loss, upper, (low, high), f'stroke="{_LOSS}" stroke-width="1.8"')
        + circles
        + f'<text x="{left}" y="165" {text}>learning rate'
        f" (dashes)</text>{axis(lower[1], lower[0], (f'{peak:.2g}', '0'))}"
        + line(
            rate, lower, (0.0, peak), f'stroke="{_RATE}" stroke-width="1.8" stroke-dasharray="5 3"'
        )
        + f'<text x="{left}" y="222" {text}>step 0</text><text x="{right}" y="222"'
        f' text-anchor="end" {text}>{steps:,}</text></svg>'
    )


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most about SHOWN_POINTS of them, the first and the last included."""
    return points[: -1 : max(1, len(points) // SHOWN_POINTS)] + points[-1:]


def _seconds_left(metrics: list[dict], steps: int) -> float | None:
    """From the median speed of the last rows; None before the first."""
    rows = [m for m in metrics if m.get("tokens_per_second")][-5:]
    if not rows:
        return None
    rate = sorted(m["tokens_per_second"] for m in rows)[len(rows) // 2]
    return (steps - metrics[-1]["step"]) * rows[-1]["tokens"] / rows[-1]["step"] / rate


class View:
    """Shows a run: a live HTML display in a notebook, plain lines elsewhere.

    Args:
        handle: where to show it instead: its method `update(bundle, raw=True)` gets the display's
            MIME bundle.
    """

    def __init__(self, run: Path, handle=None):
        self.run, self.plain = run, handle is None and not has_notebook_front_end()
        self._handle, self._other = handle, ""
        self._log: collections.deque[str] = collections.deque(maxlen=4)
        self._rows, self._metrics = GrowingFile(run / "metrics.jsonl"), []

    def update(self, news: list[str], final: bool = False) -> None:
        """Shows the run's state and `news`, the lines of its log since the last call."""
        if self.plain:
            for line in news:
                if line.startswith(("step ", *WAITING)):
                    print(line, flush=True)
                else:
                    self._other = line
            if final and self._other:
                print(self._other, flush=True)
            return
        from IPython.display import display

        self._log.extend(news)
        steps = self._read()
        shown = {
            "text/html": progress_html(self._metrics, steps, list(self._log)),
            "text/plain": " · ".join(progress_text(self._metrics, steps)),
        }
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)

    def _read(self) -> int:
        """Reads on in metrics.jsonl; returns the number of steps of the run."""
        lines, anew = self._rows.news()
        self._metrics = ([] if anew else self._metrics) + [json.loads(line) for line in lines]
        return _steps(self.run)


class GrowingFile:
    """The complete lines of a file that grows, is not there yet, or is replaced by another.

    Args:
        skip: True leaves out what the file holds now.
    """

    def __init__(self, path: Path, *, skip: bool = False):
        self.path, self._file, self._at = path, None, 0
        if skip and path.is_file():
            self._file, self._at = path.stat().st_ino, path.stat().st_size

    def news(self) -> tuple[list[str], bool]:
        """The lines since the last call, and whether they are those of another file than before."""
        try:
            with self.path.open("rb") as f:
                state = os.fstat(f.fileno())
                anew = state.st_ino != self._file or state.st_size < self._at
                self._file, self._at = state.st_ino, 0 if anew else self._at
                f.seek(self._at)
                whole = f.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return [], False
        self._at += len(whole) + 1 if whole else 0
        return whole.decode(errors="replace").splitlines(), anew


class LogTail:
    """What a run's train.log says, without the times; the last 30 lines to begin with.

    Args:
        skip: True leaves out what the log holds now.
    """

    def __init__(self, run: Path, *, skip: bool = False):
        self._lines, self.ended = GrowingFile(run / "train.log", skip=skip), False

    def news(self) -> list[str]:
        """The lines since the last call."""
        lines, anew = self._lines.news()
        lines = [line[21:] for line in (lines[-30:] if anew else lines)]
        if lines:
            self.ended = lines[-1].startswith(("Finished", "Stopped", "Failed"))
        return lines


def has_notebook_front_end() -> bool:
    """False under pytest and nbval, and where TINYLLM_PLAIN is set: output there is compared or
    read as text.
    """
    if "PYTEST_CURRENT_TEST" in os.environ or os.environ.get("TINYLLM_PLAIN"):
        return False
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
