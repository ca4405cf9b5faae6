"""A picture as Mermaid text, drawn by Graphviz.

Only what the pages use of Mermaid is understood; anything else is an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import textwrap
from dataclasses import dataclass, field

#: Characters of a line in a box, and beside an arrow, by the direction of a drawing.
WIDTHS = {"TB": 22, "LR": 16}

_NAME = r"(?P<{0}>\[\*\]|\w+)(?:\[\"(?P<{0}_text>[^\"]+)\"\])?"
_FROM, _TO = _NAME.format("a"), _NAME.format("b")
_NODE = re.compile(rf"{_FROM}$")
_ARROW = (
    r"(?:-->(?:\|\"(?P<over>[^\"]+)\"\|)?|-\. (?P<dotted>.+?) \.->|(?P<unseen>~~~))"
)
_EDGE = re.compile(rf"{_FROM} {_ARROW} {_TO}(?:: (?P<after>.+))?$")
_SUBGRAPH = re.compile(r"subgraph (?P<name>\w+)\[\"(?P<text>[^\"]+)\"\]$")
_HEADS = {
    "graph TD": "TB",
    "graph LR": "LR",
    "stateDiagram-v2": "TB",
    "flowchart TD": "TB",
    "flowchart LR": "LR",
}


def quoted(text: str, width: int) -> str:
    """A label for dot, in lines of at most `width` characters if words allow it."""
    lines = [
        line
        for part in text.split("<br/>")
        for line in textwrap.wrap(part, width, break_long_words=False)
    ]
    return '"' + "\\n".join(lines).replace('"', '\\"') + '"'


@dataclass
class Drawing:
    """A diagram as dot has it, made line by line."""

    width: int
    lines: list[str] = field(default_factory=list[str])
    declared: set[str] = field(default_factory=set[str])
    stops: int = 0

    def node(self, name: str, text: str | None, *, begins: bool) -> str:
        if name == "[*]":
            self.stops += 1
            made = f"stop{self.stops}"
            shape = "circle" if begins else "doublecircle"
            self.lines.append(f'{made} [label="" shape={shape} width=0.15 class=stop]')
            return made
        if text is not None or name not in self.declared:
            label = text if text is not None else name.replace("_", " ")
            self.declared.add(name)
            self.lines.append(f"{name} [label={quoted(label, self.width)}]")
        return name

    def add(self, line: str) -> None:
        if line == "end":
            self.lines.append("}")
        elif line.startswith("direction "):
            self.lines.append(f"rankdir={line.split()[1]}")
        elif found := _SUBGRAPH.match(line):
            name, text = found["name"], found["text"]
            self.lines.append(f"subgraph cluster_{name} {{ label={quoted(text, 60)}")
        elif found := _EDGE.match(line):
            a = self.node(found["a"], found["a_text"], begins=True)
            b = self.node(found["b"], found["b_text"], begins=False)
            label = found["over"] or found["dotted"] or found["after"] or ""
            style = "dashed" if found["dotted"] else "solid"
            style = "invis" if found["unseen"] else style
            self.lines.append(
                f"{a} -> {b} [label={quoted(label, self.width)} style={style}]"
            )
        elif found := _NODE.match(line):
            self.node(found["a"], found["a_text"], begins=True)
        else:
            raise ValueError(f"can't draw this line of Mermaid: {line!r}")


def as_dot(mermaid: str) -> str:
    """The same diagram for Graphviz."""
    head, *lines = [line.strip() for line in mermaid.strip().splitlines()]
    if head not in _HEADS:
        raise ValueError(f"can't draw this kind of Mermaid: {head!r}")
    drawing = Drawing(WIDTHS[_HEADS[head]])
    for line in lines:
        if line:
            drawing.add(line)
    return "\n".join(
        [
            "digraph {",
            f"rankdir={_HEADS[head]} nodesep=0.2 ranksep=0.3 bgcolor=transparent",
            'graph [fontname="Helvetica" fontsize=10]',
            'node [shape=box style="rounded,filled" margin="0.12,0.07"]',
            'node [fontname="Helvetica" fontsize=10]',
            'edge [fontname="Helvetica" fontsize=9 arrowsize=0.6]',
            *drawing.lines,
            "}",
        ]
    )


def as_svg(mermaid: str) -> str | None:
    """The diagram, drawn; None without Graphviz."""
    dot = shutil.which("dot")
    if dot is None:
        return None
    drawn = subprocess.run(
        [dot, "-Tsvg"],
        input=as_dot(mermaid),
        capture_output=True,
        text=True,
        check=True,
    )
    svg = drawn.stdout[drawn.stdout.index("<svg") :]
    # Of no use in a page, or in the way of the page's colours.
    svg = re.sub(r"<!--.*?-->\n?|<title>.*?</title>\n?", "", svg, flags=re.DOTALL)
    return svg.replace("<svg ", '<svg role="img" ', 1)
