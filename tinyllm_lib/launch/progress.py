"""A run's state in words and as HTML."""

import html
from datetime import timedelta

SHOWN_POINTS = 400  # of a curve
NUMBERS = {
    "loss": "loss {:.3f}",
    "lr": "learning rate {:.2g}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.0%}",
}
# Readable on white and on black; solid and dashed tell the lines apart as well.
SOLID, DASHED = 'stroke="#4a86c8"', 'stroke="#c8702a" stroke-dasharray="5 3"'


def progress_text(metrics: list[dict], steps: int) -> list[str]:
    """The facts of a run's present state, in words."""
    step = metrics[-1]["step"] if metrics else 0
    last: dict = next((m for m in reversed(metrics) if "loss" in m), {})
    validated = [m["val_bits_per_byte"] for m in metrics if "val_bits_per_byte" in m]
    facts = [f"step {step:,} of {steps:,}"]
    facts += [form.format(last[key]) for key, form in NUMBERS.items() if key in last]
    if step >= steps > 0:
        facts.append("finished")
    elif last:
        per_step = last["tokens"] / last["step"] / last["tokens_per_second"]
        facts.append(f"about {timedelta(seconds=int((steps - step) * per_step))} left")
    return facts + [f"validation {bits:.3f} bits/byte" for bits in validated[-1:]]


def progress_html(metrics: list[dict], steps: int, log: list[str]) -> str:
    """A run as HTML, from the rows of `metrics.jsonl`: a bar, numbers, loss and learning rate as
    curves over the `steps` of the whole run, the last four lines of its log.
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
    """An SVG over the steps: loss (line), validation loss (circles), learning rate (dashes)."""

    def curve(name):
        found = [(m["step"], m[name]) for m in metrics if name in m]
        return found[: -1 : max(1, len(found) // SHOWN_POINTS)] + found[-1:]

    def place(points, low, high):
        right, up = 580 / max(steps, 1), 160 / ((high - low) or 1)
        return [(f"{52 + x * right:.1f}", f"{184 - (y - low) * up:.1f}") for x, y in points]

    def line(places, style):
        path = " ".join(map(",".join, places))
        return f'<polyline points="{path}" fill="none" stroke-width="1.8" {style}/>'

    loss, checked, rate = curve("loss"), curve("val_loss"), curve("lr")
    if len(loss) < 2:
        return ""
    low, high = min(y for _, y in loss + checked), max(y for _, y in loss + checked)
    circles = "".join(
        f'<circle cx="{x}" cy="{y}" r="3.5" fill="none" stroke="currentColor"/>'
        for x, y in place(checked, low, high)
    )
    return (
        '<svg viewBox="0 0 640 204" width="640" style="max-width:100%" font-size="11" role="img"'
        f' aria-label="loss falls from {loss[0][1]:.2f} to {loss[-1][1]:.2f}" fill="currentColor">'
        '<text x="52" y="11">loss (line), validation loss (circles), learning rate (dashes)</text>'
        f'<text x="46" y="28" text-anchor="end">{high:.2f}</text>'
        f'<text x="46" y="187" text-anchor="end">{low:.2f}</text>'
        '<path d="M52 184H632" stroke="currentColor"/><text x="52" y="200">step 0</text>'
        f'<text x="632" y="200" text-anchor="end">{steps:,}</text>'
        f"{line(place(loss, low, high), SOLID)}{circles}"
        f"{line(place(rate, 0, max(y for _, y in rate)), DASHED)}</svg>"
    )
