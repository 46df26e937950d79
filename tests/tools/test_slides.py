"""The lectures: cut by the tool, shown by Chromium without a network."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.chromium import needs_chromium

pytest.importorskip(
    "sphinx_revealjs", reason="the group `site` is not installed: make setup EXTRAS=site"
)
nbv4 = pytest.importorskip("nbformat.v4")

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tools"))
import slides  # noqa: E402


def kinds(*cells):
    """(slide type, first words) of the cells that a lecture makes of these."""
    made = slides.lecture(nbv4.new_notebook(cells=list(cells)), {"02_two"})
    return [
        (cell.metadata.slideshow.slide_type, " ".join(cell.source.split()[:2]))
        for cell in made.cells
    ]


def test_headings_begin_slides_and_a_question_ends_one():
    text = nbv4.new_markdown_cell(
        "# One\n\n**Guess first.** How many?\n\nThen this.\n\n## Two\n\n### A part"
    )
    code = nbv4.new_code_cell("print(1)")
    made = [
        ("slide", "# One"),
        ("subslide", "Then this."),
        ("slide", "## Two"),
        ("subslide", "### A"),
        ("-", "print(1)"),
    ]
    assert kinds(text, code) == made


def test_what_does_not_fit_goes_on_below_and_a_long_cell_shows_its_output_apart():
    printed = [nbv4.new_output("stream", text="1\n" * 20)]
    cells = [nbv4.new_code_cell("x\n" * 15, outputs=printed), nbv4.new_code_cell("y\n" * 5)]
    assert [kind for kind, _ in kinds(nbv4.new_markdown_cell("# One"), *cells)] == [
        "slide",
        "-",
        "subslide",
        "-",
    ]
    made = slides.lecture(nbv4.new_notebook(cells=cells), set())
    assert [bool(cell.outputs) for cell in made.cells] == [False, True, False]


def test_stubs_and_hints_are_not_shown_and_links_lead_to_slides():
    stub = nbv4.new_code_cell("my = None", id="ex-02-1-code")
    text = (
        "### 02.1\n\n<details><summary>Hint</summary>think</details>\n\n[next](02_two.ipynb)"
        " [solutions](solutions/02_two.ipynb) `$a$`"
    )
    made = slides.lecture(nbv4.new_notebook(cells=[nbv4.new_markdown_cell(text), stub]), {"02_two"})
    (cell,) = made.cells
    assert "think" not in cell.source and cell.source.endswith(
        "[next](02_two.html) solutions `$a$`"
    )


def test_formulas_become_mathml_and_prices_stay():
    assert "<math" in slides.for_slides(r"near $\ln V$.", set())
    assert 'display="block"' in slides.for_slides(r"$$\frac{1}{2}$$", set())
    assert slides.for_slides("5$ and 6$, `$x$`", set()) == "5$ and 6$, `$x$`"


@needs_chromium
@pytest.mark.slow
def test_every_lecture_works_without_a_network(browser, tmp_path):
    subprocess.run(
        [sys.executable, str(REPOSITORY / "tools/slides.py"), "--out", str(tmp_path)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    context = browser.new_context(viewport={"width": 1280, "height": 760})
    context.set_offline(True)
    tab, troubles = context.new_page(), []
    tab.on(
        "console",
        lambda message: troubles.append(message.text) if message.type == "error" else None,
    )
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("requestfailed", lambda request: troubles.append(request.url))
    tab.goto((tmp_path / "index.html").as_uri())
    pages = tab.eval_on_selector_all("a", "links => links.map(link => link.href)")
    assert len(pages) == len(list((REPOSITORY / "notebooks").glob("0*.ipynb")))
    for url in pages:
        tab.goto(url)
        tab.wait_for_function("window.Reveal && Reveal.isReady()")
        assert tab.evaluate("Reveal.getTotalSlides()") > 20
        empty = tab.eval_on_selector_all(
            "img", "images => images.filter(i => !i.naturalWidth || !i.alt).length"
        )
        links = tab.eval_on_selector_all(".slides a[href]", "links => links.map(link => link.href)")
        missing = [
            link
            for link in links
            if link.startswith("file:")
            and not Path(link.split("#")[0].removeprefix("file://")).is_file()
        ]
        assert (empty, missing) == (0, []), url
        tab.keyboard.press("End")
        tab.keyboard.press("Space")
        assert tab.evaluate("Reveal.getIndices().h + Reveal.getIndices().v") > 0
    assert troubles == []
    context.close()
