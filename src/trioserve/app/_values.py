"""Values that people write and read: durations, sizes, numbers of things.

Text in, numbers out, and back. Nothing here knows which option or message they
are for.

The library's grammar of faults reads times in its own way: there a number
without a unit is bytes, ``never`` makes no sense, and what is written must be
read back exactly, whereas durations are rounded here for people.
"""

from __future__ import annotations

import datetime as dt
import math
import re

#: What a duration may look like.
DURATIONS = "500ms, 10s, 2m, 1h30m, 1d, a number of seconds, or 'never'"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ms|[smhd])", re.ASCII)
_NUMBER = re.compile(r"\d+\.?\d*|\.\d+", re.ASCII)
_NEVER = frozenset({"never", "inf"})


def parse_duration(text: str) -> float:
    """Read a duration: ``500ms``, ``10s``, ``2m``, ``1h30m``, ``never``.

    A number without a unit is seconds. Returns seconds, `math.inf` for
    ``never`` and ``inf``.

    Raises:
      ValueError: with one line that says what to write instead.
    """
    plain = text.strip().lower()
    if plain in _NEVER:
        return math.inf
    if _NUMBER.fullmatch(plain):
        return float(plain)
    if plain and not _PART.sub("", plain):
        parts = _PART.findall(plain)
        if len(parts) > len({unit for _, unit in parts}):
            raise ValueError(f"{text!r} has a unit twice; use {DURATIONS}")
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    if plain.startswith("-"):
        raise ValueError(f"{text!r} is negative; use 0 or more, or 'never'")
    raise ValueError(f"{text!r} is not a duration; use {DURATIONS}")


def format_duration(seconds: float) -> str:
    """Write a duration so that a person reads it and `parse_duration` too.

    About three digits: more than a minute is rounded to seconds.
    """
    if seconds == math.inf:
        return "never"
    if seconds == 0:
        return "0s"
    if seconds < 0.01:
        return f"{seconds * 1000:.1f}ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "m"), (rest, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)


def format_time(seconds: float) -> str:
    """Write a time in seconds since the epoch, in UTC, to the second."""
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def format_at_most(seconds: float) -> str:
    """Write an upper bound: ``up to 25s``, or that there is none."""
    if seconds == math.inf:
        return "for as long as it takes"
    return f"up to {format_duration(seconds)}"


def finite(seconds: float) -> float | None:
    """``seconds``, or None for `math.inf`, which JSON can't write."""
    return None if seconds == math.inf else seconds


def format_bytes(count: int) -> str:
    """Write a number of bytes: ``12 B``, ``3.4 kB``, ``1.2 MB`` (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    if count < 999_950:
        return f"{count / 1e3:.1f} kB"
    if count < 999_950_000:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e9:.1f} GB"


def format_count(number: int, noun: str) -> str:
    """Write a number of things: ``1 connection``, ``2 connections``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """``text`` with everything escaped that could control a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
