"""The grammar of faults: text in, values out.

``str()`` of the values writes them as text. This module knows neither clocks nor
bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from trioserve._arguments import check_type

from ._units import parse_duration, parse_size
from ._values import KINDS, Faults, Impairment, Termination

_DIRECTIONS: Final = {"up": ("up",), "down": ("down",), "both": ("up", "down")}
#: Fields of an impairment that may be given several times.
_REPEATABLE: Final = ("cuts", "terminations")

_ITEMS: Final = (
    "use latency=, bandwidth=, slice=, cut@, slow_close=, refuse, or one of"
    f" {', '.join(KINDS)}, alone or with @"
)
_SECONDS_FORMS: Final = "use a number with a unit, like 50ms, 2s or 1m"
_BYTES_FORMS: Final = "use a number of bytes, like 4096, 64KiB or 1MiB"

#: The fields of an impairment, as they were read.
_Fields = dict[str, Any]


def parse_faults(text: str) -> Faults:
    """Read faults: ``latency=50ms; down: bandwidth=64KiB/s, reset@4096``.

    Semicolons separate clauses, commas separate items. A clause that begins
    with ``up:`` (from the client) or ``down:`` (to the client) applies to one
    direction; any other, or one with ``both:``, applies to both.

    Raises:
      TypeError: ``text`` is not a str.
      ValueError: one line says what is wrong and what to write instead.
    """
    check_type("text", text, str, "a str")
    found: dict[str, _Fields] = {"up": {}, "down": {}}
    refuse = False
    for clause in text.split(";") if text.strip() else []:
        word, colon, rest = clause.partition(":")
        word = word.strip()
        if colon and word not in _DIRECTIONS:
            raise ValueError(
                f"{word!r} in {text!r} is not a direction; use up, down or both"
            )
        for item in (rest if colon else clause).split(","):
            item = item.strip()
            if not item:
                raise ValueError(f"an item is missing in {text!r}; {_ITEMS}")
            if item == "refuse":
                if colon:
                    raise ValueError(f"{item!r} in {text!r} has no direction")
                refuse = True
                continue
            for direction in _DIRECTIONS[word if colon else "both"]:
                _add(found[direction], _parse_item(item, text), item, text)
    directions = {name: _impairment(fields, text) for name, fields in found.items()}
    return Faults(**directions, refuse=refuse)


def _add(fields: _Fields, parsed: Mapping[str, Any], item: str, text: str) -> None:
    for name, value in parsed.items():
        if name in _REPEATABLE:
            value = fields.get(name, ()) + value
        elif name in fields:
            raise ValueError(
                f"{item!r} in {text!r} is the second {name} of one direction;"
                " give it once"
            )
        fields[name] = value


def _impairment(fields: _Fields, text: str) -> Impairment:
    try:
        return Impairment(**fields)
    except ValueError as error:
        raise ValueError(f"{error}, in {text!r}") from None


def _parse_item(item: str, text: str) -> _Fields:
    name, sign, value = [*re.split(r"\s*([=@])\s*", item, maxsplit=1), "", ""][:3]
    match name, sign:
        case "latency", "=":
            seconds, varies, jitter = value.partition("+-")
            fields = {"latency": _seconds(seconds, item)}
            return fields | ({"jitter": _seconds(jitter, item)} if varies else {})
        case "bandwidth", "=":
            count, slash, unit = value.rpartition("/")
            if not slash or unit.strip() != "s":
                raise ValueError(
                    f"{item!r} in {text!r} is not a bandwidth; use bytes per second,"
                    " like bandwidth=64KiB/s"
                )
            return {"bandwidth": _bytes(count, item)}
        case "slice", "=":
            sizes, slash, pause = value.partition("/")
            least, dots, most = sizes.partition("..")
            slices = (_bytes(least, item), _bytes(most if dots else least, item))
            return {"slice": slices} | (
                {"pause": _seconds(pause, item)} if slash else {}
            )
        case "slow_close", "=":
            return {"slow_close": _seconds(value, item)}
        case "cut", "@":
            return {"cuts": (_bytes(value, item),)}
        case "stall" | "vanish" | "reset" | "close" | "eof" as kind, "@":
            # A number without a unit of time is a number of bytes.
            if re.fullmatch(r".*(ms|[smhd])", value, re.DOTALL):
                at = Termination(kind, seconds=_seconds(value, item))
            else:
                at = Termination(kind, bytes=_bytes(value, item))
            return {"terminations": (at,)}
        case "stall" | "vanish" | "reset" | "close" | "eof" as kind, "":
            return {"terminations": (Termination(kind, bytes=0),)}
        case _:
            raise ValueError(f"{item!r} in {text!r} is not a fault; {_ITEMS}")


def _seconds(text: str, item: str) -> float:
    try:
        return parse_duration(text)
    except ValueError:
        raise ValueError(
            f"{text.strip()!r} in {item!r} is not a time; {_SECONDS_FORMS}"
        ) from None


def _bytes(text: str, item: str) -> int:
    try:
        return parse_size(text)
    except ValueError:
        raise ValueError(
            f"{text.strip()!r} in {item!r} is not a number of bytes; {_BYTES_FORMS}"
        ) from None
