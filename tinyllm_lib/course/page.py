"""An executed notebook as one HTML page that shows everything without a network."""

from __future__ import annotations

import logging
import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

# nbconvert's own template leaves out the alt text of pictures, and has the browser fetch RequireJS,
# MathJax and Mermaid: the first is for panels, which a copy shows as pictures, and the formulas are
# MathML already.
TEMPLATE = """\
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock html_head_js -%}
{%- block html_head_js_mathjax -%}{%- endblock html_head_js_mathjax -%}
{%- block html_head_js_mermaidjs -%}{%- endblock html_head_js_mermaidjs -%}
{%- block data_png -%}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data['image/png'] }}"
 alt="{{ output | get_metadata('alt', 'image/png') | default('', true) | escape }}">
</div>
{%- endblock data_png -%}
"""
# A function's name in front of a number or a letter, where TeX leaves room and MathML does not.
FUNCTION = re.compile(r"(<mi>(?:ln|log|exp)</mi>)(?=<m[in]>)")


def formula(tex: str, *, display: bool = False) -> str:
    """A formula as MathML, which a browser draws without a script.

    Args:
        display: it has a line to itself.

    Raises:
        Exception: what latex2mathml says of a formula that it cannot read.
    """
    from latex2mathml.converter import convert

    drawn = convert(tex, display="block" if display else "inline")
    return FUNCTION.sub(r'\1<mspace width="0.17em" />', drawn)


def page_of(notebook: NotebookNode, title: str) -> str:
    """A notebook with its outputs as HTML, pictures and formulas included.

    Raises:
        Exception: whatever nbconvert says of a notebook that it cannot convert.
    """
    from jinja2 import DictLoader, pass_context
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return _drawn(body)

        def block_math(self, body: str) -> str:
            return _drawn(body, display=True)

        def latex_environment(self, name: str, body: str) -> str:
            return _drawn(f"\\begin{{{name}}}{body}\\end{{{name}}}", display=True)

    class Page(HTMLExporter):
        @pass_context
        def markdown2html(self, context, source: str) -> str:
            attachments = context.get("cell", {}).get("attachments", {})
            renderer = Renderer(escape=False, attachments=attachments)
            return MarkdownWithMath(renderer=renderer).render(source)

    loader = DictLoader({"page.html.j2": TEMPLATE})
    exporter = Page(extra_loaders=[loader], template_file="page.html.j2")
    exporter.log.setLevel(logging.CRITICAL)
    html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    return html


def _drawn(tex: str, *, display: bool = False) -> str:
    """The formula, or as it is written where it cannot be read: a reader's own, say."""
    try:
        return formula(tex, display=display)
    except Exception:
        return f"<code>{escape(tex)}</code>"
