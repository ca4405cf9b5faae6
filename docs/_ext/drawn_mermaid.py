"""Mermaid blocks, drawn when the site is built: no script and no network in a browser.

Code hosts draw the text of such a block themselves. Here it becomes SVG with the
colours of the page, light or dark. Without Graphviz the site shows the text.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from mermaid_dot import as_svg


class Mermaid(Directive):
    """A Mermaid block of a page."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        text = "\n".join(self.content)
        try:
            svg = as_svg(text)
        except ValueError as error:
            raise self.error(str(error)) from None
        if svg is None:
            return [nodes.literal_block(text, text, language="text")]
        return [nodes.raw("", f'<div class="drawn">{svg}</div>', format="html")]


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("mermaid", Mermaid)
    return {"parallel_read_safe": True}
