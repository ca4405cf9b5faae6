"""The sums over reports as tables for people, and as JSON for machines.

A summary in, lines out. Nothing here computes sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trioserve.app._values import (
    format_bytes,
    format_duration,
    format_time,
    printable,
)
from trioserve.app.output._formats import as_json

from ._summary import Summary


def summary_json(summary: Summary) -> str:
    """`Summary.as_dict` in one line."""
    return as_json(summary.as_dict())


def summary_text(summary: Summary) -> Iterator[str]:
    """Tables for people, line by line."""
    sums = summary.as_dict()
    yield _headline(sums)
    for heading, rows in _tables(sums):
        if rows:
            yield ""
            yield from _aligned(heading, rows)
    if not sums["exact"]:
        yield ""
        yield "Too many peers or targets to count all: their numbers are lower bounds."


def _headline(sums: Mapping[str, Any]) -> str:
    text = f"connections: {sums['connections']}"
    if sums["since"] is not None:
        text += f", from {format_time(sums['since'])} to {format_time(sums['until'])}"
    return text


def _tables(sums: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    for kind in ("outcome", "reason"):
        yield (
            f"{kind} connections share",
            [
                [name, str(part["connections"]), f"{part['share']:.1%}"]
                for name, part in sums[f"{kind}s"].items()
            ],
        )
    yield (
        "since_accept connections p50 p90 p99 max",
        [
            [phase, str(count), *map(format_duration, seconds)]
            for phase, each in sums["seconds"].items()
            for count, *seconds in [each.values()]
            if count
        ],
    )
    yield (
        "side received sent discarded unacknowledged",
        [
            [side, *map(format_bytes, each.values())]
            for side, each in sums["bytes"].items()
            if any(each.values())
        ],
    )
    yield (
        "slowest duration reason id",
        [
            [
                each["peer"] or "?",
                format_duration(each["duration"]),
                each["reason"],
                str(each["id"]),
            ]
            for each in sums["slowest"]
        ],
    )
    yield (
        "peer connections bytes not_ok",
        [
            [
                each["host"],
                str(each["connections"]),
                format_bytes(each["bytes"]),
                str(each["not_ok"]),
            ]
            for each in sums["peers"]
        ],
    )
    yield (
        "target attempts failed",
        [
            [each["address"], str(each["attempts"]), str(each["failed"])]
            for each in sums["targets"]
        ],
    )


def _aligned(heading: str, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    # The first column to the left, the others to the right.
    headings = [word.replace("_", " ") for word in heading.split()]
    cells = [headings, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        yield "  ".join(
            [
                first.ljust(widths[0]),
                *(
                    cell.rjust(width)
                    for cell, width in zip(others, widths[1:], strict=True)
                ),
            ]
        )
