"""Arguments: each is what it may be, or the call says which is not.

It knows types and numbers, and nothing of what they are for.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any


def check_type(
    name: str, value: object, kinds: type[Any] | tuple[type[Any], ...], what: str
) -> None:
    """See that ``value`` is of one of these types.

    Raises:
      TypeError: ``name must be what, not value``.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {what}, not {value!r}")


def check_count(name: str, value: object, *, least: int, what: str = "an int") -> None:
    """See that ``value`` is a whole number, and not too small.

    Raises:
      TypeError, ValueError: naming it.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {what}, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}")


def check_seconds(name: str, value: object) -> None:
    """See that ``value`` is 0 or more seconds, perhaps without end.

    Raises:
      TypeError, ValueError: naming it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"{name} must be 0 or more, not {value!r}")


def check_callable(name: str, value: object, what: str) -> None:
    """See that ``value`` can be called.

    Raises:
      TypeError: ``name must be what, not value``.
    """
    if not callable(value):
        raise TypeError(f"{name} must be {what}, not {value!r}")


def check_method(name: str, value: object, *methods: str) -> None:
    """See that ``value`` has what is called of it.

    Raises:
      TypeError: naming it, and what it lacks.
    """
    for method in methods:
        if not isinstance(getattr(value, method, None), Callable):  # type: ignore[arg-type]
            raise TypeError(f"{name} must have a method {method}(), not be {value!r}")


def check_sync(name: str, value: object) -> None:
    """See that ``value`` can be called, and is not async.

    Raises:
      TypeError: naming it.
    """
    check_callable(name, value, "callable, or None")
    if any(map(inspect.iscoroutinefunction, (value, type(value).__call__))):
        raise TypeError(f"{name} must be a function that is not async, not {value!r}")


def check_handler(value: object) -> None:
    """See that ``value`` may be a handler; whether it is async is seen when it runs.

    Raises:
      TypeError: naming it; with what is meant, if it was called already.
    """
    if hasattr(value, "cr_frame"):
        name = getattr(value, "__name__", "handler")
        value.close()  # type: ignore[attr-defined]
        raise TypeError(
            f"handler must be an async function, not what it returns: use {name}"
            f" instead of {name}(...)"
        )
    check_callable("handler", value, "an async function of one argument")
