"""What all panels share: labelled controls over views of fixed height, and a picture where nobody
can press a button.
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

import ipywidgets as ipw

from tinyllm_lib.course import plots
from tinyllm_lib.course.views import html
from tinyllm_lib.launch import has_notebook_front_end

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
LABEL = {"description_width": "130px"}


class Background:
    """Work in a thread of its own, which can be asked to stop; `changed()` is called at its end."""

    changed: Callable[[], None]

    def __init__(self) -> None:
        self._stop, self._thread = threading.Event(), None

    @property
    def busy(self) -> bool:
        """Whether the work goes on."""
        return self._thread is not None

    def stop(self) -> None:
        """Asks the work to end, and returns at once."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        """Until the work has ended."""
        if (thread := self._thread) is not None:
            thread.join(seconds)

    def begin(self, work: Callable[..., None], *args: object) -> None:
        """Starts `work(*args)`."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._do, args=(work, *args), daemon=True)
        self._thread.start()

    def _do(self, work: Callable[..., None], *args: object) -> None:
        try:
            work(*args)
        finally:
            self._thread = None
            self.changed()


class Panel:
    """Controls and views that react to each other; shown as the last line of a cell, or with
    `show()`.

    Where no front end is (nbval, `make course`), its pictures are shown instead. In JupyterLab the
    output holds both the panel and its first picture, so that a saved notebook has something to
    show on GitHub.

    Args:
        title: written above.
        parts: widgets from top to bottom.
        pictures: draws the panel's present state.
        named: parts, and whatever else can be reached as an attribute of the panel.
    """

    def __init__(
        self,
        title: str,
        parts: Sequence[ipw.Widget],
        pictures: Callable[[], list[Figure]],
        **named: object,
    ):
        vars(self).update(named)
        head = ipw.HTML(f"<style>{html.CSS}</style>{html.frame(f'<h4>{escape(title)}</h4>')}")
        self.box = ipw.VBox([head, *parts], layout={"width": "100%", "max_width": "980px"})
        self.box.add_class("tinyllm-panel")
        self.pictures = pictures

    def show(self) -> None:
        """Shows the panel, or its pictures where there is no front end."""
        from IPython.display import display

        if not has_notebook_front_end() or os.environ.get("TINYLLM_STATIC_PANELS"):
            for figure in self.pictures():
                plots.show(figure)
            return
        figure, view = self.pictures()[0], self.box._repr_mimebundle_()[WIDGET_VIEW]
        alt, png = figure.get_label(), base64.b64encode(plots.png_bytes(figure)).decode("ascii")
        bundle = {WIDGET_VIEW: view, "image/png": png, "text/plain": alt}
        display(bundle, raw=True, metadata={"image/png": {"alt": alt}})

    _ipython_display_ = show


def view(height: int) -> ipw.HTML:
    """An empty view of so many pixels, which scrolls, so that nothing below it ever moves."""
    border = "1px solid rgba(128,128,128,.4)"
    size = {"height": f"{height}px", "width": "100%", "overflow": "auto"}
    return ipw.HTML(layout={**size, "border": border, "padding": "4px 8px", "margin": "4px 0"})


def text_box(text: str, description: str, **more: object) -> ipw.Text:
    """A line to type into, with its label; what is typed counts after Enter."""
    made = {"layout": {"width": "98%"}, "continuous_update": False, **more}
    return ipw.Text(value=text, description=description, style=LABEL, **made)


def checkbox(value: bool, description: str, width: str) -> ipw.Checkbox:
    """A box to tick, its label at its side."""
    return ipw.Checkbox(value=value, description=description, indent=False, layout={"width": width})


def line(*widgets: ipw.Widget) -> ipw.HBox:
    """Widgets beside each other, in a line that keeps its height."""
    layout = {"width": "98%", "height": "34px", "min_height": "34px", "overflow": "hidden"}
    return ipw.HBox(widgets, layout=layout)


def button(text: str, tooltip: str, press: Callable[[], None]) -> ipw.Button:
    """A button that calls `press()`."""
    made = ipw.Button(description=text, tooltip=tooltip, layout={"width": "auto"})
    made.on_click(lambda _: press())
    return made


def slider(
    text: str, value: float, low: float, high: float, step: float, tooltip: str
) -> ipw.Widget:
    """A slider with its label and number; whole numbers where all four are whole."""
    numbers = {"value": value, "min": low, "max": high, "step": step}
    whole = all(isinstance(number, int) for number in numbers.values())
    made = ipw.IntSlider if whole else ipw.FloatSlider
    layout = {"width": "410px", "max_width": "98%"}
    return made(description=text, tooltip=tooltip, style=LABEL, layout=layout, **numbers)


def follow(
    controls: Sequence[ipw.Widget], draw: Callable[[], str], into: ipw.HTML
) -> Callable[[], None]:
    """Draws into a view now and when a control changes, also a ValueError; returns what draws."""

    def update(_=None) -> None:
        try:
            into.value = draw()
        except ValueError as mistake:
            into.value = html.error(mistake)

    for control in controls:
        control.observe(update, "value")
    update()
    return update
