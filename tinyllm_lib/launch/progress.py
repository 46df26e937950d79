"""A run's state in words and as HTML."""

from __future__ import annotations

import html

SHOWN_POINTS = 400  # of a curve
NUMBERS = {
    "loss": "loss {:.3f}",
    "lr": "learning rate {:.2g}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.0%}",
}
SVG = '<svg viewBox="0 0 640 226" width="640" font-size="11" fill="currentColor"'
CIRCLE = '<circle cx="{}" cy="{}" r="3.5" fill="none" stroke="currentColor"/>'
# Colours readable on white and on black; solid and dashed tell the lines apart as well.
LOSS, RATE = 'stroke="#4a86c8"', 'stroke="#c8702a" stroke-dasharray="5 3"'


def progress_text(metrics: list[dict], steps: int) -> list[str]:
    """The facts of a run's present state, in words."""
    step = metrics[-1]["step"] if metrics else 0
    last: dict = next((m for m in reversed(metrics) if "loss" in m), {})
    timed = [m for m in metrics if m.get("tokens_per_second")][-5:]
    validated = [m["val_bits_per_byte"] for m in metrics if "val_bits_per_byte" in m]
    facts = [f"step {step:,} of {steps:,}"]
    facts += [form.format(last[k]) for k, form in NUMBERS.items() if last.get(k) is not None]
    if step >= steps > 0:
        facts.append("finished")
    elif timed:
        speed = sorted(m["tokens_per_second"] for m in timed)[len(timed) // 2]  # the median
        seconds = int((steps - step) * timed[-1]["tokens"] / timed[-1]["step"] / speed)
        hours, minutes = seconds // 3600, seconds // 60 % 60
        left = f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds % 60:02} s"
        facts.append(f"about {left} left")
    return facts + [f"validation {bits:.3f} bits/byte" for bits in validated[-1:]]


def progress_html(metrics: list[dict], steps: int, log: list[str]) -> str:
    """A run as HTML: a bar, the numbers, loss and learning rate as curves, the end of the log.

    Args:
        metrics: the rows of `metrics.jsonl`.
        steps: the length of the whole run.
        log: lines; the last four are shown.
    """
    done = (metrics[-1]["step"] if metrics else 0) / max(steps, 1)
    bar = f'<progress role="progressbar" aria-valuenow="{done:.0%}" value="{done}"'
    tail = html.escape("\n".join(log[-4:]))
    return (
        f'<div style="font-family:sans-serif;font-size:13px">{bar} style="width:640px"></progress>'
        f"<div>{' · '.join(progress_text(metrics, steps))}</div>{_curves(metrics, steps)}"
        f'<pre style="font-size:11px;white-space:pre-wrap">{tail}</pre></div>'
    )


def _curves(metrics: list[dict], steps: int) -> str:
    """An SVG: loss (line) and validation loss (circles), below them the learning rate (dashes)."""

    def points(name):
        found = [(m["step"], m[name]) for m in metrics if name in m]
        return found[: -1 : max(1, len(found) // SHOWN_POINTS)] + found[-1:]

    def panel(title, top, bottom, low, form, style, line, circles=()):
        high = max(y for _, y in [*line, *circles])

        def place(point):
            up = (point[1] - low) / ((high - low) or 1) * (bottom - top)
            return f"{52 + 580 * point[0] / max(steps, 1):.1f}", f"{bottom - up:.1f}"

        path = " ".join(map(",".join, map(place, line)))
        parts = [
            f'<text x="52" y="{top - 12}">{title}</text>',
            f'<text x="46" y="{top + 4}" text-anchor="end">{high:{form}}</text>',
            f'<text x="46" y="{bottom + 3}" text-anchor="end">{low:{form}}</text>',
            f'<path d="M52 {bottom}H632" stroke="currentColor"/>',
            f'<polyline points="{path}" fill="none" stroke-width="1.8" {style}/>',
        ]
        return "".join(parts + [CIRCLE.format(*place(point)) for point in circles])

    loss, checked, rate = points("loss"), points("val_loss"), points("lr") or [(0, 0.0)]
    if len(loss) < 2:
        return ""
    low, peak = min(y for _, y in loss + checked), max(y for _, y in rate)
    said = f"loss falls from {loss[0][1]:.2f} to {loss[-1][1]:.2f}; learning rate up to {peak:.2g}"
    title = "loss (line)" + (", validation loss (circles)" if checked else "")
    return (
        f'{SVG} style="max-width:100%" role="img" aria-label="{said}, now {rate[-1][1]:.2g}">'
        + panel(title, 24, 140, low, ".2f", LOSS, loss, checked)
        + panel("learning rate (dashes)", 176, 206, 0, ".2g", RATE, rate)
        + '<text x="52" y="222">step 0</text>'
        + f'<text x="632" y="222" text-anchor="end">{steps:,}</text></svg>'
    )
