"""The HTML copy of an executed notebook: everything on it, from the disk and without a network."""

import re
from pathlib import Path

import bs4
import nbformat
import pytest
from helpers.chromium import needs_chromium

from tinyllm_lib.course.page import formula, page_of

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("0*.ipynb"))
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def page(*cells):
    return page_of(nbformat.v4.new_notebook(cells=list(cells)), "title")


def text(source):
    return nbformat.v4.new_markdown_cell(source)


def article(html):
    """What a reader sees of a page: its body."""
    return html.split("<body", 1)[1]


def test_a_formula_is_mathml_in_a_line_on_lines_of_its_own_and_in_a_table():
    line = page(text(r"The loss is $-\ln p$ here."))
    assert 'display="inline"' in line and "ln" in line and "$" not in article(line)
    block = page(text("Before\n\n$$\\frac{1}{2}\n\\cdot x$$\n\nafter"))
    assert 'display="block"' in block and "<mfrac>" in block and "$" not in article(block)
    lines = page(text("\\begin{align} a &= b \\\\ c &= d \\end{align}"))
    assert 'display="block"' in lines and "<mtable" in lines and "begin" not in article(lines)
    table = page(text("| x | y |\n|---|---|\n| $a_1 * b_2 * c$ | $x < y$ |"))
    assert table.count("<math") == 2 and "<em>" not in article(table)


def test_a_functions_name_stands_apart_from_a_letter_and_not_from_a_bracket():
    assert "<mi>ln</mi><mspace" in formula(r"\ln p") and "<mspace" not in formula(r"\ln(p)")


def test_what_is_no_formula_stays():
    assert "<math" not in page(text(r"It costs \$5, and `$x$` is code."))
    assert "<code>\\frac{</code>" in page(text(r"A reader's own $\frac{$ stays readable."))
    with pytest.raises(Exception, match=r".*"):
        formula(r"\frac{")


def test_a_page_fetches_nothing():
    html = page(text("# Title\n\n$x$"), nbformat.v4.new_code_cell("1"))
    assert re.findall(r"<script[^>]*\bsrc=|<link\b|\bimport\(", html) == []
    assert "mathjax" not in html.lower() and "cdnjs" not in html


def test_a_picture_keeps_its_alt_text():
    picture = nbformat.v4.new_output(
        "display_data",
        data={"image/png": PIXEL},
        metadata={"image/png": {"alt": 'A "curve" falls'}},
    )
    html = page(nbformat.v4.new_code_cell("draw()", outputs=[picture]))
    (alt,) = bs4.BeautifulSoup(html, "html.parser").select("img")[0].get_attribute_list("alt")
    assert alt == 'A "curve" falls'


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_of_the_course_can_be_drawn(path):
    cells = nbformat.read(path, as_version=4).cells
    prose = [cell for cell in cells if cell.cell_type == "markdown"]
    html = article(page(*prose))
    left = re.sub(r"<(code|pre)\b.*?</\1>", "", html, flags=re.DOTALL)
    assert not re.search(r"\\(frac|ln|text|sqrt|cdot|begin)\b", html)
    assert "$" not in re.sub(r"<[^>]+>", "", left)


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_browser_shows_a_copy_without_a_network(browser, path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    file = tmp_path / f"{path.stem}.html"
    file.write_text(page_of(notebook, path.stem), encoding="utf-8")
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_offline(True)
    tab, troubles = context.new_page(), []
    tab.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("request", lambda r: troubles.append(r.url) if r.url.startswith("http") else None)
    tab.goto(file.as_uri())
    width = "all => all.map(formula => formula.getBoundingClientRect().width)"
    assert all(size > 2 for size in tab.eval_on_selector_all("math", width))
    assert tab.locator("img").count() == tab.eval_on_selector_all(
        "img", "images => images.filter(i => i.naturalWidth && i.alt).length"
    )
    assert troubles == []
    context.close()
