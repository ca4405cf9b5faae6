"""Durations and sizes with units: reads them from text, and writes them as text.

It knows numbers and units, not what they are used for.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from trioserve._arguments import check_type

_SECONDS: Final = {"ms": "0.001", "s": "1", "m": "60", "h": "3600", "d": "86400"}
_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ms|[smhd])", re.ASCII)

_BYTES: Final = {"": 1, "KiB": 1024, "MiB": 1024**2}
#: A number of fifteen digits with a unit still fits into a 64-bit counter.
_SIZE: Final = re.compile(r"(\d{1,15})(|KiB|MiB)", re.ASCII)


def parse_duration(text: str) -> float:
    """Read a duration such as ``50ms``, ``2s`` or ``1h30m``.

    Each number has a unit: ``ms``, ``s``, ``m``, ``h`` or ``d``. A unit occurs
    at most once.

    Returns:
      seconds, as exact as a float can be.

    Raises:
      TypeError: ``text`` is not a str.
      ValueError: one line says what to write instead.
    """
    check_type("text", text, str, "a str")
    plain = text.strip()
    parts = _PART.findall(plain)
    if not parts or _PART.sub("", plain):
        raise ValueError(
            f"{text!r} is not a duration; use numbers with units,"
            " like 50ms, 2s or 1h30m"
        )
    if len(parts) > len({unit for _, unit in parts}):
        raise ValueError(f"{text!r} has a unit twice; use each once, like 1h30m")
    # In decimals: as floats, 3 * 0.001 is not 0.003.
    return float(
        sum(Decimal(number) * Decimal(_SECONDS[unit]) for number, unit in parts)
    )


def format_seconds(seconds: float) -> str:
    """Write a duration in ``ms`` or ``s`` so that it reads back as the same number."""
    exact = Decimal(repr(float(seconds)))
    scaled, unit = (exact * 1000, "ms") if 0 < exact < 1 else (exact, "s")
    digits = f"{scaled:f}"
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + unit


def parse_size(text: str) -> int:
    """Read a number of bytes such as ``4096``, ``64KiB`` or ``1MiB``.

    Raises:
      ValueError: ``text`` is not a number of bytes.
    """
    number = _SIZE.fullmatch(text.strip())
    if number is None:
        raise ValueError(f"{text!r} is not a number of bytes")
    return int(number[1]) * _BYTES[number[2]]


def format_size(count: int) -> str:
    """Write a number of bytes with the largest unit that divides it."""
    # The units are in ascending order.
    unit = next(unit for unit in reversed(_BYTES) if count % _BYTES[unit] == 0)
    return f"{count // _BYTES[unit]}{unit}"
