"""What all panels share: labelled controls over views of fixed height, and a picture where nobody
can press a button.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

import ipywidgets as ipw

from tinyllm_lib.course import plots
from tinyllm_lib.course.widgets import views
from tinyllm_lib.launch import has_notebook_front_end

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
LABEL = {"description_width": "130px"}


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
    """

    def __init__(
        self, title: str, parts: Sequence[ipw.Widget], pictures: Callable[[], list[Figure]]
    ):
        head = ipw.HTML(f'<style>{views.CSS}</style><div class="tl"><h4>{escape(title)}</h4></div>')
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
    """An empty view of so many pixels; what does not fit is scrolled, so that nothing below it ever
    moves.
    """
    layout = {"height": f"{height}px", "overflow": "auto", "border": "1px solid rgba(128,128,128,.4)", "padding": "4px 8px",
              "margin": "4px 0", "width": "100%"}  # fmt: skip
    return ipw.HTML(layout=layout)


def line(*widgets: ipw.Widget) -> ipw.HBox:
    """Widgets beside each other, in a line that keeps its height."""
    return ipw.HBox(
        widgets,
        layout={"width": "98%", "height": "34px", "min_height": "34px", "overflow": "hidden"},
    )


def button(
    text: str, tooltip: str, press: Callable[[], None], *, width: str = "auto", enabled: bool = True
) -> ipw.Button:
    """A button that calls `press()`."""
    made = ipw.Button(
        description=text, tooltip=tooltip, disabled=not enabled, layout={"width": width}
    )
    made.on_click(lambda _: press())
    return made


def slider(
    text: str, value: float, low: float, high: float, step: float, tooltip: str
) -> ipw.Widget:
    """A slider with its label and number; whole numbers where all four are whole."""
    whole = all(isinstance(number, int) for number in (value, low, high, step))
    made = ipw.IntSlider if whole else ipw.FloatSlider
    layout = {"width": "410px", "max_width": "98%"}
    return made(
        value=value,
        min=low,
        max=high,
        step=step,
        description=text,
        tooltip=tooltip,
        style=LABEL,
        layout=layout,
    )


def follow(
    controls: Sequence[ipw.Widget], draw: Callable[[], str], into: ipw.HTML
) -> Callable[[], None]:
    """Draws into a view now and whenever a control changes; a ValueError is shown there, too.
    Returns what draws.
    """

    def update(_=None) -> None:
        try:
            into.value = draw()
        except ValueError as mistake:
            into.value = views.error(mistake)

    for control in controls:
        control.observe(update, "value")
    update()
    return update
