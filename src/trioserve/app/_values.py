"""Values that people write and read: durations, sizes, numbers of things.

Text in, numbers out, and back. Nothing here knows which option or message they
are for. The grammar of durations with units is the library's; the command adds
``never`` and numbers without a unit, which are bytes in a fault.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import re

from trioserve import faults

#: What a duration may look like.
DURATIONS = "500ms, 10s, 2m, 1h30m, 1d, a number of seconds, or 'never'"

_NUMBER = re.compile(r"\d+\.?\d*|\.\d+", re.ASCII)
_NEGATIVE = re.compile(r"-\.?\d", re.ASCII)
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
    try:
        return faults.parse_duration(plain)
    except ValueError:
        if _NEGATIVE.match(plain):
            text = f"{text!r} is negative; use 0 or more, or 'never'"
            raise ValueError(text) from None
        raise ValueError(f"{text!r} is not a duration; use {DURATIONS}") from None


def format_duration(seconds: float) -> str:
    """Write a duration for people, in a form that `parse_duration` reads too.

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


_ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}


@dataclasses.dataclass(frozen=True)
class ByteText:
    """Bytes, and how they were written."""

    text: str
    data: bytes

    def __str__(self) -> str:
        return self.text


def parse_bytes(text: str) -> ByteText:
    r"""Read bytes: text in UTF-8, with ``\r \n \t \0 \xHH`` and ``\\``.

    Raises:
      ValueError: with one line that says what to write instead.
    """
    data = b""
    for plain, number, letter, wrong in _BYTES.findall(text):
        if wrong:
            raise ValueError(
                f"{wrong!r} in {text!r} is not a byte; use \\r, \\n, \\t, \\0, \\xHH,"
                " or \\\\ for a backslash"
            )
        data += plain.encode("utf-8", "surrogateescape")
        data += bytes.fromhex(number) + _ESCAPES.get(letter, b"")
    return ByteText(text, data)


_BYTES = re.compile(r"([^\\]+)|\\(?:x([0-9a-fA-F]{2})|([rnt0\\]))|(\\x?.?)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Rate:
    """A number of things in a time, in seconds."""

    count: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.count}/{format_duration(self.seconds)}"


def format_days(seconds: float) -> str:
    """Write a time in whole days, or as a duration if it is less than one."""
    days = int(seconds // 86_400)
    return format_count(days, "day") if days else format_duration(seconds)


def format_time(seconds: float) -> str:
    """Write a time in seconds since the epoch, in UTC, to the second."""
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def format_at_most(seconds: float) -> str:
    """Write an upper bound: ``up to 25s``, or ``for as long as it takes``."""
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
