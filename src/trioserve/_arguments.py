"""Arguments: check types and ranges, and name the argument that is invalid."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any


def check_type(
    name: str, value: object, kinds: type[Any] | tuple[type[Any], ...], what: str
) -> None:
    """Check that ``value`` is of one of these types.

    Raises:
      TypeError: ``name must be what, not value``.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {what}, not {value!r}")


def check_count(name: str, value: object, *, least: int, what: str = "an int") -> None:
    """Check that ``value`` is an int of at least ``least``.

    Raises:
      TypeError, ValueError: it is not; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {what}, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}")


def check_seconds(name: str, value: object) -> None:
    """Check that ``value`` is a number of 0 or more; ``math.inf`` is allowed.

    Raises:
      TypeError, ValueError: it is not; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"{name} must be 0 or more, not {value!r}")


def check_callable(name: str, value: object, what: str) -> None:
    """Check that ``value`` is callable.

    Raises:
      TypeError: ``name must be what, not value``.
    """
    if not callable(value):
        raise TypeError(f"{name} must be {what}, not {value!r}")


def check_method(name: str, value: object, *methods: str) -> None:
    """Check that ``value`` has these methods.

    Raises:
      TypeError: it lacks one; the message names both.
    """
    for method in methods:
        if not isinstance(getattr(value, method, None), Callable):  # type: ignore[arg-type]
            raise TypeError(f"{name} must have a method {method}(), not be {value!r}")


def check_sync(name: str, value: object) -> None:
    """Check that ``value`` is callable and not async.

    Raises:
      TypeError: it is not; the message names it.
    """
    check_callable(name, value, "callable, or None")
    if any(map(inspect.iscoroutinefunction, (value, type(value).__call__))):
        raise TypeError(f"{name} must be a function that is not async, not {value!r}")


def check_handler(value: object) -> None:
    """Check that ``value`` may be a handler; only a call shows whether it is async.

    Raises:
      TypeError: it is not callable, or it is the coroutine of a call.
    """
    if hasattr(value, "cr_frame"):
        name = getattr(value, "__name__", "handler")
        value.close()  # type: ignore[attr-defined]
        raise TypeError(
            f"handler must be an async function, not what it returns: use {name}"
            f" instead of {name}(...)"
        )
    check_callable("handler", value, "an async function of one argument")
