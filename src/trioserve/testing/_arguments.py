"""Arguments: they are checked at the call; an error names the argument."""

from __future__ import annotations

import math
from typing import Any


def check_type(
    name: str, value: object, kinds: type[Any] | tuple[type[Any], ...], what: str
) -> None:
    """Raise ``TypeError`` unless ``value`` is of one of these types."""
    is_bool = isinstance(value, bool) and kinds is not bool
    if is_bool or not isinstance(value, kinds):
        raise TypeError(f"{name} must be {what}, not {value!r}")


def check_count(name: str, value: object, *, least: int) -> None:
    """Raise unless ``value`` is an int of ``least`` or more."""
    check_type(name, value, int, "an int")
    if isinstance(value, int) and value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}")


def check_seconds(name: str, value: object) -> None:
    """Raise unless ``value`` is a finite number, 0 or more."""
    check_type(name, value, (int, float), "a number of seconds")
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be 0 or more and finite, not {value!r}")
