"""The site, built as `make site` builds it, read by Chromium from the disk without a network."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.chromium import needs_chromium

pytest.importorskip("furo", reason="the group `site` is not installed: make setup EXTRAS=site")

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = [
    path.relative_to(REPOSITORY) for path in sorted((REPOSITORY / "notebooks").glob("**/0*.ipynb"))
]

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of a site that was built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(REPOSITORY / "tools/website.py"), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def tab(browser):
    """A page without a network; what goes wrong on it is in `tab.troubles`."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_offline(True)
    tab = context.new_page()
    tab.troubles = []
    tab.on(
        "console",
        lambda message: tab.troubles.append(message.text) if message.type == "error" else None,
    )
    tab.on("pageerror", lambda error: tab.troubles.append(str(error)))
    tab.on("requestfailed", lambda request: tab.troubles.append(request.url))
    yield tab
    context.close()


def test_no_link_is_broken_and_no_picture_empty(site, tab):
    pages = [site / "index.html", *(site / path.with_suffix(".html") for path in NOTEBOOKS)]
    anchors, links = {}, {}
    for path in pages:
        tab.goto(path.as_uri())
        assert (
            tab.eval_on_selector_all(
                "img", "images => images.filter(i => !i.naturalWidth).map(i => i.src)"
            )
            == []
        ), path.name
        anchors[path] = set(tab.eval_on_selector_all("[id]", "marks => marks.map(mark => mark.id)"))
        links[path] = tab.eval_on_selector_all(
            "a[href]", "links => links.map(link => decodeURI(link.href))"
        )
    for path, found in links.items():
        for link in found:
            if link.startswith("file:"):
                target, _, anchor = link.removeprefix("file://").partition("#")
                assert Path(target).is_file(), f"{path.name} links to {target}"
                assert not anchor or anchor in anchors.get(Path(target), {anchor}), (
                    f"{path.name} links to {link}"
                )
    assert tab.troubles == []


def test_pages_hold_pictures_outputs_formulas_and_no_marks_of_the_tests(site, tab):
    tab.goto((site / "notebooks/04_model.html").as_uri())
    assert tab.locator("img").count() > 5 and tab.locator("math").count() > 10
    assert "04.1 not done yet" in tab.inner_text("article") and "NBVAL" not in tab.inner_text(
        "article"
    )
    assert tab.locator("details").count() >= 3 and not tab.locator("details").first.get_attribute(
        "open"
    )


@pytest.mark.parametrize(
    ("words", "page"), [("RMSNorm", "04_model"), ("首都", "05_pretrain"), ("法国的首都", "06_sft")]
)
def test_the_search_finds_english_and_chinese(site, tab, words, page):
    tab.goto((site / "index.html").as_uri())
    tab.fill("input[name=q]", words)
    tab.keyboard.press("Enter")
    tab.wait_for_selector(f"ul.search a[href*='{page}']")
    assert tab.troubles == []
    tab.fill("input[name=q]", "虚无缥缈")
    tab.keyboard.press("Enter")
    tab.wait_for_function("document.body.innerText.includes('did not match any')")
