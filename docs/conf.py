"""The site of the documentation: `nox -s docs` builds it.

The pages are Markdown that reads well as files. What only a site needs is made here:
the navigation, from the lists in index.md; pictures, from Mermaid text; the pages of
the API, from docstrings. Without a network, links to the documentation of Python and
Trio are left out.
"""

from __future__ import annotations

import contextlib
import http.client
import inspect
import re
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "trioserve"
copyright = "the authors of trioserve"  # noqa: A001
html_title = "trioserve"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinxcontrib_trio",
    "sphinx_copybutton",
    "drawn_mermaid",
]
exclude_patterns = ["_build"]
templates_path: list[str] = []

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
smartquotes = False  # commands stay as they are typed
pygments_style = "friendly"
pygments_dark_style = "github-dark"

myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_custom_sections = [("Attributes", "params_style")]
python_use_unqualified_type_names = True

#: Names that no page here defines; with inventories, some of them are links.
nitpick_ignore_regex = [
    (r"py:.*", r"(trio|collections|contextlib|pathlib|typing)\..*"),
    (r"py:.*", r"trioserve\.(.*\.)?_.*|Args"),
    (r"py:attr", r"\w+"),  # attributes are in a list of their class
    (r"py:meth", r"HalfCloseableStream\..*"),  # in a docstring of Trio's
    (r"py:class", r"tuple\[int"),  # Sphinx cuts a tuple within a sequence
]

#: Characters of a name that may go on in the next line.
LONG = 24

#: What the documentation of others has; it is linked if an inventory could be had.
OTHERS = {
    "python": "https://docs.python.org/3",
    "trio": "https://trio.readthedocs.io/en/stable",
}


def inventories(folder: Path, seconds: float = 3) -> dict[str, tuple[str, str]]:
    """The inventories of others: fetched, or kept from the last time, or left out."""
    folder.mkdir(parents=True, exist_ok=True)
    found = dict[str, tuple[str, str]]()
    for name, url in OTHERS.items():
        kept = folder / f"{name}.inv"
        if not kept.exists():
            with (
                contextlib.suppress(OSError, http.client.HTTPException),
                urllib.request.urlopen(f"{url}/objects.inv", timeout=seconds) as read,
            ):
                inventory = read.read()
                if inventory.startswith(b"# Sphinx inventory"):  # no login page
                    kept.write_bytes(inventory)
        if kept.exists():
            found[name] = (url, str(kept))
    return found


intersphinx_mapping = inventories(HERE.parent / "build" / "inventories")


def prepare_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Make of a page that reads well as a file one that is part of a site.

    Markdown elsewhere in the repository is no page: it can be downloaded. For each of
    its lists, index.md gets a table of contents, which is the navigation.
    """
    source[0] = re.sub(r"\]\((?=(\.\./)+[\w/]+\.md\))", "](path:", source[0])
    if name != "index":
        return
    for part in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        caption = part.partition("\n")[0]
        links = re.findall(
            r"^- \[(.+?)\]\(([\w./-]+)\.(?:md|rst)\)", part, re.MULTILINE
        )
        pages = [f"{text} <{page}>" for text, page in links]
        lines = ["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages]
        source[0] += "\n".join([*lines, "```", ""])


def mark_long_names(app: Sphinx, page: nodes.document) -> None:
    """Let site.css break names that are too long for a column."""
    for literal in page.findall(nodes.literal):
        if max(map(len, literal.astext().split()), default=0) > LONG:
            literal["classes"].append("long")


def keep_first_paragraph(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Leave the map of its files out of what a module says of itself."""
    if what == "module" and "" in lines:
        del lines[lines.index("") :]


#: Stands for a colon until napoleon is done.
HIDDEN = "\ue000"


def hide_colons(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Keep napoleon from taking what is before a property's colon for its type."""
    if what in ("attribute", "property"):
        lines[:] = [line.replace(": ", HIDDEN) for line in lines]


def show_colons(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Put them back; and use a dash where napoleon has two hyphens."""
    shown = [line.replace(HIDDEN, ": ") for line in lines]
    lines[:] = [line.replace(" -- ", " \u2013 ") for line in shown]


def skip(
    app: Sphinx, what: str, name: str, thing: object, skips: bool, options: object
) -> bool | None:
    """Show all of a module's `__all__`, and properties that need no docstring.

    The fields of a named tuple are in the docstring of its class.
    """
    if what == "module" or (isinstance(thing, property) and name[0] != "_"):
        return False
    is_field = inspect.isdatadescriptor(thing) and "Alias for" in str(thing.__doc__)
    return True if is_field else None


def leave_out_private_arguments(
    app: Sphinx,
    what: str,
    name: str,
    thing: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str, None] | None:
    """Show no arguments of a class that users get, and do not make."""
    if what == "class" and signature and "trioserve._" in signature:
        return "", None
    return None


def setup(app: Sphinx) -> None:
    app.connect("source-read", prepare_page)
    app.connect("doctree-read", mark_long_names)
    app.connect("autodoc-process-docstring", keep_first_paragraph)
    app.connect("autodoc-process-docstring", hide_colons, priority=1)
    app.connect("autodoc-process-docstring", show_colons, priority=900)
    app.connect("autodoc-process-signature", leave_out_private_arguments)
    app.connect("autodoc-skip-member", skip)
