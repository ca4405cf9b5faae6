"""Pages that are sessions in a shell are run again, line by line.

A console block that begins with ``# terminal N`` continues in that terminal: what
follows ``$`` is typed there, and the other lines are what it prints next. ``...``
matches anything; on a line of its own, it matches any number of lines. Ports are
replaced by free ones.
"""

from __future__ import annotations

import contextlib
import queue
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from real.tools import needs
from shell import Shell, free_ports, replaced
from test_docs import ROOT, blocks

pytestmark = pytest.mark.long("a shell, and processes")

PAGES = [
    "balancing.md",
    "tutorial.md",
    "explaining.md",
    pytest.param("load-balancer.md", marks=needs("openssl")),
    pytest.param("proxying.md", marks=needs("curl", "openssl")),
    "reports.md",
    "sizing.md",
    "tls.md",
]


def steps(page: Path) -> Iterator[tuple[str, str]]:
    """The lines of a page's sessions, each with its terminal."""
    for block in blocks(page, "console"):
        heading, *lines = block.text.splitlines()
        if found := re.fullmatch(r"# terminal (\d)", heading):
            for line in lines:
                yield found[1], line


def expect(terminal: Shell, said: str, *, passing_over: bool) -> None:
    """Check that the next line is like this, or one of the next if others may come."""
    while True:
        try:
            line = terminal.line()
        except queue.Empty:
            line = None
        assert line is not None, f"{said!r} is not printed: {terminal.seen}"
        if is_like(line, said):
            return
        assert passing_over, f"{said!r} is not next: {terminal.seen}"


def is_like(line: str, said: str) -> bool:
    """Whether a line is what the page says, where ``...`` matches anything.

    A column of a table is as wide as its longest entry, which a page need not show.
    """
    said, line = (re.sub(r"(?<=\S) {2,}", "  ", text) for text in (said, line))
    pattern = ".*".join(re.escape(part) for part in said.split("..."))
    return re.fullmatch(pattern, line) is not None


def write_certificates(folder: Path) -> None:
    """The files that pages take from an authority of the reader's."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name in ("db", "web"):
        issued = authority.issue_cert(f"{name}.example.org")
        path = folder / f"{name}.pem"
        issued.private_key_and_cert_chain_pem.write_to_path(str(path))


@needs("bash", "nc", "openssl", "ss")
@pytest.mark.parametrize("name", PAGES)
def test_a_session_goes_as_the_page_says(name: str, tmp_path: Path) -> None:
    page = ROOT / "docs" / name
    text = "\n".join(line for _, line in steps(page))
    found = sorted(set(re.findall(r"(?:127\.0\.0\.1|localhost)[: ](\d+)", text)))
    ports = free_ports(found)
    write_certificates(tmp_path)
    with contextlib.ExitStack() as stack:
        terminals: dict[str, Shell] = {}
        anything = set[str]()
        for number, step in steps(page):
            if number not in terminals:
                terminals[number] = Shell(tmp_path)
                stack.callback(terminals[number].kill)
            terminal, line = terminals[number], replaced(step, ports)
            if line.startswith("$ "):
                terminal.paste(line.removeprefix("$ "))
            elif line == "...":
                anything.add(number)
            else:
                expect(terminal, line, passing_over=number in anything)
                anything.discard(number)


def test_three_dots_match_anything() -> None:
    assert is_like("a 1 b", "a ... b")
    assert not is_like("a 1 c", "a ... b")
    assert not is_like("axb", "a.b")
