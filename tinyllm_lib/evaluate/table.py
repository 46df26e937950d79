"""Tables for a terminal, with Chinese in them."""

import unicodedata
from collections.abc import Sequence

WIDTHS = {"W": 2, "F": 2}  # of what Unicode calls wide and full width


def format_table(rows: Sequence[Sequence[str]], align: str) -> str:
    """Rows as columns, aligned as `align` says ("<" or ">" for each), the first row underlined."""
    widths = [max(map(text_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in (rows[0], ["-" * width for width in widths], *rows[1:]):
        cells = []
        for cell, width, side in zip(row, widths, align, strict=True):
            gap = " " * (width - text_width(cell))
            cells.append(cell + gap if side == "<" else gap + cell)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def text_width(text: str) -> int:
    """Columns that a text takes in a terminal: wide characters two, combining ones none."""
    own = (c for c in text if not unicodedata.combining(c))
    return sum(WIDTHS.get(unicodedata.east_asian_width(c), 1) for c in own)
