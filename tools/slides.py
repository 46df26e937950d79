"""Makes one lecture of each notebook: HTML slides that need no network. `make slides` calls this.

    python tools/slides.py [--out build/slides] [notebook ...]

No cell is tagged by hand. A heading begins a slide, a question to guess at ends one, and what would
not fit goes on below (the arrow down). Stored outputs are shown; nothing is run. Of the exercises
the tasks are shown, without hints and stubs.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import sphinx_revealjs
from latex2mathml.converter import convert as mathml
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from tinyllm_lib.data import utf8_output

REPOSITORY = Path(__file__).resolve().parent.parent
# the package that brings reveal.js along
REVEAL = Path(sphinx_revealjs.__file__).parent / "_static" / "revealjs"
# lines of a slide, lines that a picture takes, characters of a line
ROOM, PICTURE, WIDTH = (27, 20, 95)
HEADING = re.compile(r"^#{1,3} ", re.MULTILINE)
CODE_OR_MATH = re.compile(
    r"```.*?```|`[^`\n]*`|\$\$(.+?)\$\$|(?<![\\\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\w)", re.DOTALL
)


def parts(cell: NotebookNode) -> Iterator[NotebookNode]:
    """A text cell cut at its headings and after questions; a code cell whose picture needs a slide
    of its own cut before it.
    """
    if cell.cell_type == "markdown":
        cuts = {match.start() for match in HEADING.finditer(cell.source)}
        cuts |= {
            match.end() for match in re.finditer(r"\*\*Guess.*?(\n\n|\Z)", cell.source, re.DOTALL)
        }
        for begin, end in zip(sorted(cuts | {0}), [*sorted(cuts - {0}), None], strict=False):
            if text := cell.source[begin:end].strip():
                yield new_markdown_cell(text)
    elif lines(cell) > ROOM and cell.outputs:
        below = new_code_cell(
            cell.source, outputs=cell.outputs, metadata={"transient": {"remove_source": True}}
        )
        yield from (NotebookNode({**cell, "outputs": []}), below)
    else:
        yield cell


def lines(cell: NotebookNode) -> int:
    """How many lines of a slide a cell takes, roughly."""
    hidden = cell.metadata.get("transient", {}).get("remove_source", False)
    text = "" if hidden else cell.source
    size = sum(1 + len(line) // WIDTH for line in text.splitlines())
    for output in cell.get("outputs", ()):
        picture = "data" in output and ("image/png" in output.data or "text/html" in output.data)
        size += PICTURE if picture else len(output.get("text", "").splitlines())
    return size + 1


def lecture(notebook: NotebookNode, others: set[str]) -> NotebookNode:
    """The notebook with `slide_type` in each cell.

    Args:
        others: names of the notebooks that have slides too; links to them lead there, other files
            are named without a link.
    """
    cells, room, asked = [], 0, False
    for cell in (part for whole in notebook.cells if not is_stub(whole) for part in parts(whole)):
        level = (
            len(cell.source) - len(cell.source.lstrip("#")) if cell.cell_type == "markdown" else 0
        )
        size = lines(cell)
        kind = (
            "slide"
            if level in (1, 2)
            else "subslide"
            if level == 3 or asked or size > room
            else "-"
        )
        room = (room if kind == "-" else ROOM) - size
        asked = cell.cell_type == "markdown" and "**Guess" in cell.source
        if cell.cell_type == "markdown":
            cell.source = for_slides(cell.source, others)
        else:
            cell.source = cell.source.removeprefix("# NBVAL_CHECK_OUTPUT\n")
        cell.metadata["slideshow"] = {"slide_type": kind}
        cells.append(cell)
    return NotebookNode({**notebook, "cells": cells})


def is_stub(cell: NotebookNode) -> bool:
    """Whether this is code of the exercises."""
    return cell.cell_type == "code" and cell.get("id", "").startswith("ex-")


def for_slides(text: str, others: set[str]) -> str:
    """Markdown with MathML for its formulas, links between slides, and without what is folded."""
    text = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)

    def link(match: re.Match) -> str:
        name = match[2].removesuffix(".ipynb")
        return f"[{match[1]}]({name}.html)" if name in others else match[1]

    def formula(match: re.Match) -> str:
        display, inline = match.groups()
        if not (display or inline):
            return match[0]
        return mathml(display or inline, display="block" if display else "inline")

    return CODE_OR_MATH.sub(formula, re.sub(r"\[([^\]]+)\]\(([\w/.-]+\.ipynb)\)", link, text))


def main(argv: list[str] | None = None) -> int:
    """Writes slides and index.html into a folder that is made anew."""
    utf8_output()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of the course")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "slides")
    options = parser.parse_args(argv)
    notebooks = options.notebooks or sorted((REPOSITORY / "notebooks").glob("0*.ipynb"))
    shutil.rmtree(options.out, ignore_errors=True)
    shutil.copytree(REVEAL, options.out / "reveal.js", ignore=shutil.ignore_patterns("*.map"))
    exporter = SlidesExporter(
        template_name="lecture", extra_template_basedirs=[str(REPOSITORY / "tools" / "templates")]
    )
    # the default theme wants fonts of the network
    exporter.reveal_url_prefix, exporter.reveal_theme = ("reveal.js", "white")
    others, contents = {path.stem for path in notebooks}, []
    for path in notebooks:
        notebook = lecture(nbformat.read(path, 4), others)
        title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
        html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
        (options.out / f"{path.stem}.html").write_text(html, encoding="utf-8")
        contents.append(f'<li><a href="{path.stem}.html">{title}</a></li>')
        print("written:", options.out / f"{path.stem}.html", flush=True)
    page = (
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>tinyllm:'
        ' lectures</title><body style="font: 1.2em/1.8 sans-serif; margin: 3em"><h1>tinyllm:'
        f" lectures</h1><ul>{''.join(contents)}</ul></body></html>"
    )
    (options.out / "index.html").write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
