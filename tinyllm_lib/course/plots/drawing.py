"""The ground under every picture: fonts with Chinese glyphs, one style, alt text, show and save.

matplotlib is imported on first use, so importing `plots` costs nothing. Figures are made
without pyplot: none is left open, and the learner's own matplotlib settings are not touched.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font

P = ParamSpec("P")

INK, GREY, PALE = "#1a1a1a", "#6b6b6b", "#ececec"
# Light to dark in turn, so that neighbours differ in greyscale too; every use adds a hatch or a
# label.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#9a5fa5"
COLORS = (BLUE, RED, GREEN, PURPLE, ORANGE)
LINES = tuple(zip(COLORS, ("-", "--", "-.", ":", "-"), "os^Dv", strict=True))
PALE_COLORS = ("#9ecae9", "#fdd9a0", "#a6dcc5", "#dcc3e4", "#f6b994")
FILLS = tuple(zip(PALE_COLORS, ("", "//", r"\\", "..", "xx"), strict=True))

STYLE = {
    "font.size": 10,
    "text.parse_math": False,  # a "$" in a corpus is a dollar
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",  # a white card, so that pictures stay readable on a dark page
    "svg.hashsalt": "tinyllm",
    "svg.fonttype": "path",
}

# For an environment without the font package; the first one that the system has is used.
SYSTEM_FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "PingFang SC", "Hiragino Sans GB",
    "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
)  # fmt: skip


@functools.cache
def font_families() -> tuple[str, ...]:
    """Families to draw with: one with Chinese glyphs, then DejaVu Sans, which matplotlib brings.

    Raises:
        RuntimeError: when neither the font package nor a system font with Chinese glyphs is there.
    """
    # Silent about "building the font cache; …".
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib import font_manager

    try:
        from pylopdf_fonts_zh_cn import sans_path
    except ImportError:
        installed = {font.name for font in font_manager.fontManager.ttflist}
        chinese = next((name for name in SYSTEM_FONTS if name in installed), None)
        if chinese is None:
            raise RuntimeError(
                "No font with Chinese glyphs was found, so pictures would show empty boxes. "
                "Expected the package pylopdf-fonts-zh-cn (Noto Sans SC): "
                "run `make setup` or `pip install pylopdf-fonts-zh-cn`."
            ) from None
    else:
        font_manager.fontManager.addfont(sans_path())
        chinese = font_manager.get_font(sans_path()).family_name
    return (chinese, "DejaVu Sans")


@functools.cache
def _fonts() -> tuple[FT2Font, ...]:
    """One open font per family, of our own: the size set here must not reach matplotlib's."""
    families = font_families()
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    paths = [font_manager.findfont(name, fallback_to_default=False) for name in families]
    fonts = tuple(map(FT2Font, paths))
    for font in fonts:
        font.set_size(100, 72)
    return fonts


@functools.cache
def drawable_characters() -> frozenset[int]:
    """Code points for which one of `font_families` has a glyph."""
    return frozenset(code for font in _fonts() for code in font.get_charmap())


@functools.cache
def _advance(char: str) -> float:
    """Width of a character in ems."""
    for font in _fonts():
        if ord(char) in font.get_charmap():
            return font.load_char(ord(char)).linearHoriAdvance / 65536 / 100
    return 1.0


def text_width(text: str, size: float) -> float:
    """Width in inches of one line of text at `size` points."""
    return sum(map(_advance, text)) * size / 72


def picture(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator: run a drawing function with the fonts and style of this package."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _style():
            return draw(*args, **kwargs)

    return styled


@contextlib.contextmanager
def _style() -> Iterator[None]:
    families = font_families()  # first, for it quiets the building of the font cache
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a learner's dark style must not reach these pictures
        matplotlib.rcParams.update({"font.family": list(families), **STYLE})
        yield


def new_figure(width: float, height: float, alt: str) -> Figure:
    """An empty figure of this size in inches, with the alt text that `show` and `save` use."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_label(alt)
    return figure


class Sheet:
    """A page over all of a figure, measured in inches with y downwards, for boxes and words."""

    def __init__(self, width: float, height: float, alt: str, title: str | None = None):
        from matplotlib.figure import Figure

        top = 0.34 if title else 0.0
        self.figure = Figure(figsize=(width, height + top))
        self.figure.set_label(alt)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, -top))
        self.axes.set_axis_off()
        if title:
            self.label(0.08, -0.12, title, 11, ha="left")

    def box(self, x, y, width, height, fill="white", edge=GREY, line=0.8, hatch="") -> None:
        """A rectangle with its upper left corner at (x, y)."""
        from matplotlib.patches import Rectangle

        style = {"facecolor": fill, "edgecolor": edge, "linewidth": line, "hatch": hatch}
        self.axes.add_patch(Rectangle((x, y), width, height, **style))

    def label(self, x, y, text, size=9, color=INK, ha="center", va="center", **more) -> None:
        """Text at (x, y); centred unless told otherwise."""
        self.axes.text(x, y, text, size=size, color=color, ha=ha, va=va, **more)

    def cell(
        self, x, y, width, height, text, size, fill="white", edge=GREY, line=0.8, color=INK
    ) -> None:
        """A box with a text in its middle."""
        self.box(x, y, width, height, fill, edge, line)
        self.label(x + width / 2, y + height / 2, text, size, color)

    def line(self, x, y, width=1.0, **style) -> None:
        """A line through the points (x[0], y[0]), (x[1], y[1]) and so on."""
        self.axes.plot(x, y, **{"color": INK, "linewidth": width, **style})


def wrap(widths: Sequence[float], limit: float, begins: Collection[int] = ()) -> list[range]:
    """Rows of items no wider than `limit` (one item at least); an item in `begins` begins a row."""
    rows, start, used = [], 0, 0.0
    for index, width in enumerate(widths):
        if index > start and (used + width > limit or index in begins):
            rows.append(range(start, index))
            start, used = index, 0.0
        used += width
    return [*rows, range(start, len(widths))] if start < len(widths) else rows


def short_number(number: float) -> str:
    """82594560 -> "82.6M"; small whole numbers stay as they are."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            return f"{number / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:.3g}"


def png_bytes(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    return _render(figure, "png", dpi=dpi, metadata={"Software": None})


def svg_text(figure: Figure) -> str:
    """The figure as an SVG, glyphs as paths and the alt text as its title; equal for equal ones."""
    metadata = {"Date": None, "Creator": None, "Title": figure.get_label()}
    svg = _render(figure, "svg", metadata=metadata).decode()
    svg = re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)
    return svg.replace("<svg ", '<svg role="img" ', 1)


def _render(figure: Figure, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def show(figure: Figure, alt: str | None = None, *, dpi: int = 110) -> None:
    """Show a figure under a notebook cell as a PNG that carries alt text.

    Args:
        alt: what the picture shows, for those who cannot see it; by default the sentence that the
            drawing function gave it. Also shown as text where no picture can be.

    Raises:
        ValueError: when there is no alt text at all.
    """
    from IPython.display import display

    if not (alt := alt or figure.get_label()):
        raise ValueError("This picture has no alt text: say what it shows, show(figure, alt=…).")
    data = base64.b64encode(png_bytes(figure, dpi)).decode("ascii")
    display({"image/png": data, "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as .svg or .png, by the ending of `path`; equal figures give equal files."""
    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        told = f"found the ending {path.suffix!r}; pictures are saved as .svg or .png."
        raise ValueError(f"{path.name}: {told}")
    content = svg_text(figure).encode() if path.suffix == ".svg" else png_bytes(figure, dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
