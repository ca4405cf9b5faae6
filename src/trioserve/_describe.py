"""Describe: errors and other values as text that is safe in a log.

An error or a value may come from a handler, and methods of its class may return
anything or raise. This module does not know what a report is.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Final

from ._errors import cause_of, is_a, leaves


def escape(text: str, limit: int = 256) -> str:
    """Return ``text`` as one line of printable ASCII, at most ``limit`` characters.

    Text from a peer is escaped here before it reaches a log or a terminal.
    """
    # Nearly all texts are plain; this shortcut saves 7.5 us for each of them.
    if (
        len(text) <= limit
        and text.isascii()
        and text.isprintable()
        and "\\" not in text
    ):
        return text
    plain = "".join(
        c if " " <= c <= "~" and c != "\\" else ascii(c)[1:-1] for c in text[:limit]
    )
    return plain if len(plain) <= limit else plain[: limit - 3] + "..."


#: How many errors of a group are described. The rest are counted.
_MAX_DESCRIBED: Final = 3


def describe(error: BaseException) -> str:
    """Describe ``error`` in one line of printable ASCII.

    If ``error`` is not an ``OSError`` but was raised from one, like the error of a
    broken stream, the cause is described instead. In a group, the first three errors
    are described and the rest are counted. This never raises: if a method of the error
    does, the text says so.
    """
    if type(error) is ConnectionResetError and error.filename is None:
        code, message = error.errno, error.strerror
        if type(code) is int and type(message) is str:
            return _reset_text(code, message)
    if not is_a(error, BaseExceptionGroup):  # saves 3 us
        return escape(_described(error))
    found = leaves(error)
    text = "; ".join(_described(e) for e in itertools.islice(found, _MAX_DESCRIBED))
    more = sum(1 for _ in found)
    return escape(text + (f"; {more} more" if more else ""))


@functools.lru_cache(16)
def _reset_text(code: int, message: str) -> str:
    """The text for a peer's reset, the most frequent error by far; saves 6 us."""
    return escape(_described(ConnectionResetError(code, message)))


def _described(error: BaseException) -> str:
    cause = cause_of(error)
    if is_a(cause, OSError) and not is_a(error, OSError):
        assert cause is not None
        error = cause
    text = _text_from("__str__", str, error)
    name = _name_of(error)
    return f"{name}: {text}" if text else name


def _text_from(method: str, ask: Callable[[object], str], value: object) -> str:
    """The text that a method of ``value`` returns, unescaped, or that it raised."""
    try:
        return plain_text(ask(value), _MAX_READ)
    except BaseException as error:  # noqa: ASYNC103 - raised by the value's own method
        return f"its {method} raised {_name_of(error)}"  # noqa: ASYNC104


def plain_text(text: str, length: int | None = None) -> str:
    """The first ``length`` characters of ``text``, as a plain ``str``."""
    return str.__getitem__(text, slice(length))


def _name_of(value: object) -> str:
    """The name of its class, read without its metaclass."""
    name: str = _class_name(type(value))
    return name


_class_name: Final = type.__dict__["__name__"].__get__

#: How many characters of a value's ``str()`` or ``repr()`` are read.
_MAX_READ: Final = 300


def plain_value(value: object) -> object:
    """Convert ``value`` to a value for JSON. Its class can't make this raise."""
    kind: type[Any] = type(value)
    if value is None or kind is bool:
        return value
    if issubclass(kind, int):
        whole = int.__index__(value)  # type: ignore[arg-type]
        if whole.bit_length() <= _MAX_BITS:
            return whole
    elif issubclass(kind, float):
        number = float.__float__(value)  # type: ignore[arg-type]
        if math.isfinite(number):
            return number
    elif issubclass(kind, str):
        return escape(plain_text(value, _MAX_READ))  # type: ignore[arg-type]
    return escape(_text_from("__repr__", repr, value))


#: Longer integers are written as text. Python refuses to write more than 4,300 digits,
#: and readers of JSON may take fewer.
_MAX_BITS: Final = 64
