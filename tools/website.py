"""Makes the course a site of static pages with search, which needs no network. `make site` calls
this.

    python tools/website.py [--out build/site]

Sphinx reads README, docs, the notebooks with their stored outputs (nothing is run) and the
solutions. This file is its extension, too: formulas as MathML, and a search that finds Chinese,
where no space tells words apart.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

from tinyllm_lib.course.page import formula
from tinyllm_lib.data import utf8_output

REPOSITORY = Path(__file__).resolve().parent.parent
HAN = re.compile(r"[\u3400-\u9fff]+")
CONTENTS = """
```{toctree}
:hidden:
:glob:
:caption: The course

notebooks/0*
notebooks/glossary
```

```{toctree}
:hidden:
:glob:
:caption: Beside the course

docs/*
CHANGELOG
```

```{toctree}
:hidden:
:glob:
:caption: Solutions

notebooks/solutions/*
```
"""
SETTINGS = {
    "project": "tinyllm",
    "root_doc": "index",
    "extensions": ["myst_nb", "website"],
    "exclude_patterns": [],
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "myst_enable_extensions": ["dollarmath"],
    "myst_heading_anchors": 3,
    "html_theme": "furo",
    "html_title": "tinyllm",
    "html_copy_source": False,
    "html_use_index": False,
    "html_show_copyright": False,
    "html_static_path": ["_static"],
    "html_css_files": ["course.css"],
    "html_math_renderer": "mathml",
    "html_search_language": "en-han",
    "html_show_search_summary": False,  # a page that is opened as a file may not fetch others
    "suppress_warnings": [
        "myst.header"
    ],  # README and notebooks choose their levels of headings by their look
}


# Code cells are wider than prose; a long name in a table takes no room from the columns beside it.
STYLE = ".content { width: min(60em, 100%); }\ntd code.literal { overflow-wrap: anywhere; }\n"


class SearchEnglishAndHan(SearchEnglish):
    """English words, and of Chinese every character and every pair of neighbours."""

    lang = "en-han"
    js_splitter_code = r"""
var splitQuery = (query) => query
    .split(/[^\p{Letter}\p{Number}_\p{Emoji_Presentation}]+/gu)
    .flatMap((word) => word.split(/([\u3400-\u9fff]+)/))
    .flatMap((part) => /^[\u3400-\u9fff]{2,}$/.test(part)
        ? [...part].slice(1).map((char, i) => part[i] + char) : [part])
    .filter((term) => term);
"""

    def split(self, input: str) -> list[str]:
        """Words of a page for the index; the script above splits what is searched for alike."""
        runs = HAN.findall(input)
        pairs = [run[i : i + 2] for run in runs for i in range(len(run) - 1)]
        return super().split(HAN.sub(" ", input)) + pairs + sorted(set("".join(runs)))


def visit_formula(self, node) -> None:
    """A formula inside a line."""
    self.body.append(formula(node.astext()))
    raise_skip()


def visit_formula_block(self, node) -> None:
    """A formula with a line to itself."""
    self.body.append(formula(node.astext(), display=True))
    raise_skip()


def raise_skip() -> None:
    """The node is written: docutils wants that as an exception."""
    from docutils.nodes import SkipNode

    raise SkipNode


def setup(app: Sphinx) -> dict:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_formula, None), (visit_formula_block, None))
    app.add_search_language(SearchEnglishAndHan)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def copy_sources(folder: Path) -> None:
    """README as the first page, docs and notebooks, and what they link to, where they expect it."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    first = next((REPOSITORY / "notebooks" / "solutions").glob("01*")).name
    # a site has no folders to look into
    readme = readme.replace("](notebooks/solutions/)", f"](notebooks/solutions/{first})")
    (folder / "index.md").write_text(readme + CONTENTS, encoding="utf-8")
    shutil.copytree(REPOSITORY / "docs", folder / "docs")
    shutil.copy(REPOSITORY / "CHANGELOG.md", folder)
    shutil.copytree(
        REPOSITORY / "figures", folder / "figures", ignore=shutil.ignore_patterns("*.json")
    )
    for path in sorted((REPOSITORY / "notebooks").glob("**/0*.ipynb")):
        copy = folder / path.relative_to(REPOSITORY)
        copy.parent.mkdir(exist_ok=True)
        text = path.read_text(encoding="utf-8")
        # a mark for the tests
        copy.write_text(text.replace('    "# NBVAL_CHECK_OUTPUT\\n",\n', ""), encoding="utf-8")
    shutil.copy(REPOSITORY / "notebooks" / "glossary.md", folder / "notebooks")
    (folder / "_static").mkdir()
    (folder / "_static" / "course.css").write_text(STYLE, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Writes the site into a folder that is made anew. Exit code 1 where Sphinx has found something
    to warn of.
    """
    utf8_output()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "site")
    options = parser.parse_args(argv)
    shutil.rmtree(options.out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        source, work = Path(temporary, "source"), Path(temporary, "work")
        source.mkdir()
        copy_sources(source)
        app = Sphinx(source, None, options.out, work, "html", confoverrides=SETTINGS, status=None)
        app.build(force_all=True)
    print(f"written: {options.out / 'index.html'}")
    return 1 if app._warncount else app.statuscode


if __name__ == "__main__":
    sys.exit(main())
