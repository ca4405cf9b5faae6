"""The raw figures as Markdown: medians, their spread, and ratios.

Nothing here measures. Every number is computed from the raw figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from statistics import median
from typing import NotRequired, TypedDict

#: The peers by whose cost that of the others is divided.
REFERENCES = ("haproxy", "haproxy-splice", "uvloop-protocol", "trio", "trio-handler")

#: The same where clients speak TLS.
_TLS_REFERENCES = ("haproxy-tls", "nginx-tls", "uvloop-tls", "asyncio-tls", "trio-tls")

#: trioserve's own names, of which each work has at most one.
_OURS = ("trioserve", "trioserve-handler", "trioserve-tls")

#: The figures of a peer in a work by their names, one for each round.
Figures = dict[str, list[float]]


class Sample(TypedDict):
    """The figures of one peer in one work in one round, or why there are none."""

    round: int
    work: str
    peer: str
    figures: Mapping[str, float]
    failed: NotRequired[str]


class Raw(TypedDict):
    """Everything that a report is made from.

    ``peers`` has the version and settings of each, ``works`` the title of each;
    ``seconds`` is about how long a sample took.
    """

    machine: dict[str, str]
    rounds: int
    seconds: float
    missing: list[str]
    peers: dict[str, tuple[str, str]]
    works: dict[str, str]
    samples: list[Sample]


def figures_of(raw: Raw, work: str) -> dict[str, Figures]:
    """For each peer that did the work, the values of each figure."""
    found: dict[str, Figures] = {peer: {} for peer in raw["peers"]}
    for sample in raw["samples"]:
        if sample["work"] == work:
            for name, value in sample["figures"].items():
                found[sample["peer"]].setdefault(name, []).append(value)
    return {peer: figures for peer, figures in found.items() if figures}


def cost(figures: Figures) -> str | None:
    """The name of the figure that is the cost of one unit of work, or None."""
    return next((n for n in figures if n.startswith(("CPU", "PSS"))), None)


def tables(raw: Raw) -> Iterator[str]:
    """A table for each work, one that compares trioserve with others, one of growth.

    A cell is the median, and in parentheses the minimum and the maximum.
    """
    for work, title in raw["works"].items():
        if found := figures_of(raw, work):
            yield from ("", f"## `{work}`", "", f"{title}.", "")
            yield from _work_table(found)
    yield from _table_of_ours(raw)
    yield from _table_of_growth(raw)
    yield from _failures(raw)


def growth(raw: Raw) -> Iterator[tuple[str, str, list[int], list[float]]]:
    """Works that differ only in the number of connections.

    The works' common name, a peer, the numbers, and the median cost for each number.
    """
    for series in ("messages", "connections-beside"):
        numbered = {
            int(number): figures_of(raw, work)
            for work in raw["works"]
            for name, _, number in [work.rpartition("-")]
            if name == series and int(number) > 1
        }
        for peer in raw["peers"]:
            costs = {
                number: median(found[peer][unit])
                for number, found in sorted(numbered.items())
                if peer in found and (unit := cost(found[peer]))
            }
            if 1 < len(costs) == len(numbered):
                yield series, peer, list(costs), list(costs.values())


def page(raw: Raw, plots: Mapping[str, str]) -> str:
    """The page: what was measured, on which machine, and all of the tables.

    Args:
      plots: files beside the page, and what each shows.
    """
    spreads = sorted(_spreads(raw))
    lines = [
        "# Performance",
        "",
        "`python -m bench --page` makes this page from [these figures](figures.json).",
        "[What is measured, and how to read it](../../bench/README.md).",
        "",
        f"Each figure is the median of up to {raw['rounds']} rounds, with the least",
        f"and the most in parentheses. A sample took about {raw['seconds']:g} s.",
        f"The range between these is {median(spreads):.0%} of the median cost in half",
        f"of all cases, and {spreads[-1]:.0%} in the worst.",
        "A difference that is smaller than this is noise.",
        "",
        *_table(["machine", ""], raw["machine"].items()),
        *_table(
            ["peer", "version", "settings"],
            [(name, *said) for name, said in raw["peers"].items()],
        ),
    ]
    if raw["missing"]:
        lines += [f"Not installed: {', '.join(raw['missing'])}.", ""]
    for file, title in plots.items():
        lines += [f"![{title}]({file})", ""]
    return "\n".join([*lines, *tables(raw)]).rstrip() + "\n"


def _spreads(raw: Raw) -> Iterator[float]:
    yield 0.0
    for work in raw["works"]:
        for figures in figures_of(raw, work).values():
            if (unit := cost(figures)) and len(values := figures[unit]) > 1:
                yield (max(values) - min(values)) / median(values)


def _work_table(found: Mapping[str, Figures]) -> Iterator[str]:
    names = max((list(figures) for figures in found.values()), key=len)
    references = [peer for peer in (*REFERENCES, *_TLS_REFERENCES) if peer in found]
    rows = [
        [
            peer,
            *(_spread(figures.get(name)) for name in names),
            *(_ratio(figures, found[other], cost(figures)) for other in references),
        ]
        for peer, figures in found.items()
    ]
    yield from _table(["peer", *names, *(f"cost / {r}" for r in references)], rows)


def _table_of_ours(raw: Raw) -> Iterator[str]:
    rows = []
    for work in raw["works"]:
        found = figures_of(raw, work)
        ours = next((found[name] for name in _OURS if name in found), Figures())
        for name, values in ours.items():
            others = (found.get(r) or found.get(f"{r}-tls", {}) for r in REFERENCES)
            ratios = [_ratio(ours, other, name) for other in others]
            rows.append([work, name, _spread(values), *ratios])
    if rows:
        yield from ("", "## trioserve compared with others", "")
        head = ["work", "figure", "trioserve", *(f"/ {other}" for other in REFERENCES)]
        yield from _table(head, rows)


def _table_of_growth(raw: Raw) -> Iterator[str]:
    rows = [
        [series, peer, f"{few[0]} to {few[-1]}", f"{costs[-1] / costs[0]:.2f}"]
        for series, peer, few, costs in growth(raw)
    ]
    if rows:
        yield from ("", "## How the CPU cost grows with the number of connections", "")
        yield from _table(["work", "peer", "connections", "cost factor"], rows)


def _failures(raw: Raw) -> Iterator[str]:
    rows = [
        (sample["work"], sample["peer"], sample["failed"])
        for sample in raw["samples"]
        if "failed" in sample
    ]
    if rows:
        yield from ("", "## Failed", "")
        yield from _table(["work", "peer", "reason"], rows)


def _table(head: list[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _spread(values: list[float] | None) -> str:
    if not values:
        return ""
    middle, least, most = map(_number, (median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({least} to {most})"


def _ratio(ours: Figures, others: Figures, name: str | None) -> str:
    if name is None or not all(each.get(name) for each in (ours, others)):
        return ""
    return f"{median(ours[name]) / median(others[name]):.2f}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
