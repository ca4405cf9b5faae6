"""Faults: what a connection is to suffer, as values, as text, and byte by byte.

A grammar for what networks do, and the course of one direction: bytes in, pieces
with a time out. No clock, no I/O: whoever moves bytes asks when and in which
pieces, and nothing here knows whether they go over a wire or through memory.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, get_args

from ._arguments import check_count, check_seconds, check_type

EndingKind = Literal["stall", "vanish", "reset", "close", "eof"]

_KINDS: Final = get_args(EndingKind)
#: After these there is no connection that something could still happen to.
_LAST: Final = ("vanish", "reset", "close")
_DIRECTIONS: Final = {"up": ("up",), "down": ("down",), "both": ("up", "down")}
_UNITS: Final = {"ms": "0.001", "s": "1", "m": "60", "h": "3600"}
_SIZES: Final = {"": 1, "KiB": 1024, "MiB": 1024**2}

_ITEMS: Final = (
    "use latency=, bandwidth=, slice=, cut@, slow_close=, refuse, or one of"
    f" {', '.join(_KINDS)}, alone or with @"
)
_SECONDS_FORMS: Final = "use a number with a unit, like 50ms, 2s or 1m"
_BYTES_FORMS: Final = "use a number of bytes, like 4096, 64KiB or 1MiB"

#: Bytes that have the same jitter.
_JITTER_BLOCK: Final = 64
#: With a bandwidth, bytes go in steps of as many as pass in 1 ms.
_STEPS: Final = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """What becomes of a connection, or of one direction, and when.

    Args:
      kind: ``"stall"``: this direction delivers nothing more, and whoever sends
        waits when the buffers are full; ``"vanish"``: neither direction delivers
        anything more, nor is a close seen; ``"reset"``: RST to both ends;
        ``"close"``: FIN to both ends; ``"eof"``: FIN in this direction, what
        comes after is thrown away.
      bytes: so many bytes are delivered in this direction, and then it happens.
      seconds: instead of ``bytes``, so long after the connection began. What
        would have been delivered later is not delivered.

    Raises:
      TypeError, ValueError: naming what can't be.

    ``str(ending)`` is what :func:`parse_faults` reads, like ``reset@4096``.
    """

    kind: EndingKind
    bytes: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(
                f"kind must be one of {', '.join(_KINDS)}, not {self.kind!r}"
            )
        if (self.bytes is None) == (self.seconds is None):
            raise ValueError(f"{self.kind} needs either bytes or seconds")
        if self.bytes is not None:
            _check_count("bytes", self.bytes, least=0)
        if self.seconds is not None:
            _check_seconds("seconds", self.seconds)

    @property
    def is_last(self) -> bool:
        """Whether nothing can happen to the connection after it."""
        return self.kind in _LAST

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"{self.kind}@{_seconds_text(self.seconds)}"
        return f"{self.kind}@{self.bytes}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """What one direction suffers. The default is nothing.

    Args:
      latency: seconds by which each byte arrives later. Throughput does not
        suffer.
      jitter: seconds that latency varies by, up or down; drawn anew for every
        64 bytes. Order is kept.
      bandwidth: bytes per second; None is no limit.
      slice: the least and the most bytes of a piece; a receive brings no more
        than one piece.
      pause: seconds between two such pieces.
      cuts: offsets. What is before one and what is after it do not come with
        one receive.
      slow_close: seconds by which FIN arrives later.
      endings: how it ends. The first one that is reached counts; after a stall
        or an EOF, also those of its time.

    Raises:
      TypeError, ValueError: naming the argument that can't be.

    ``str(impairment)`` is what :func:`parse_faults` reads.
    """

    latency: float = 0.0
    jitter: float = 0.0
    bandwidth: int | None = None
    slice: tuple[int, int] | None = None
    pause: float = 0.0
    cuts: tuple[int, ...] = ()
    slow_close: float = 0.0
    endings: tuple[Ending, ...] = ()

    def __post_init__(self) -> None:
        for name in ("latency", "jitter", "pause", "slow_close"):
            _check_seconds(name, getattr(self, name))
        if self.jitter > self.latency:
            raise ValueError(
                "latency can't vary by more than itself:"
                f" {_seconds_text(self.latency)} +- {_seconds_text(self.jitter)}"
            )
        if self.bandwidth is not None:
            _check_count("bandwidth", self.bandwidth, least=1)
        if self.slice is not None:
            _check_tuple("slice", self.slice, int)
            if len(self.slice) != 2:
                raise ValueError(f"slice must be two numbers, not {self.slice!r}")
            least, most = self.slice
            _check_count("slice", least, least=1)
            _check_count("slice", most, least=least)
        elif self.pause:
            raise ValueError("a pause is between slices: say how long these are")
        _check_tuple("cuts", self.cuts, int)
        for offset in self.cuts:
            _check_count("cuts", offset, least=1)
        _check_tuple("endings", self.endings, Ending)
        # What means the same is the same.
        object.__setattr__(self, "cuts", tuple(sorted(set(self.cuts))))
        object.__setattr__(
            self, "endings", tuple(sorted(set(self.endings), key=_order))
        )

    def __bool__(self) -> bool:
        return bool(str(self))

    def __str__(self) -> str:
        return ", ".join(self._items())

    def _items(self) -> Iterator[str]:
        if self.latency:
            yield self._latency_text
        if self.bandwidth is not None:
            yield self._bandwidth_text
        if self.slice is not None:
            yield self._slice_text
        for offset in self.cuts:
            yield f"cut@{offset}"
        if self.slow_close:
            yield self._slow_close_text
        yield from map(str, self.endings)

    @property
    def _first_by_bytes(self) -> Ending | None:
        """The first ending by bytes; what would be after it can't be reached."""
        return next((e for e in self.endings if e.bytes is not None), None)

    @property
    def _timed(self) -> tuple[Ending, ...]:
        """The endings by time that can be reached, in their order.

        After the first stall or EOF, that is the first one of both directions.
        """
        timed = [ending for ending in self.endings if ending.seconds is not None]
        last = [ending for ending in timed if ending.is_last]
        first = [ending for ending in timed[:1] if not ending.is_last]
        return (*first, *last[:1])

    @property
    def _latency_text(self) -> str:
        jitter = f"+-{_seconds_text(self.jitter)}" if self.jitter else ""
        return f"latency={_seconds_text(self.latency)}{jitter}"

    @property
    def _bandwidth_text(self) -> str:
        assert self.bandwidth is not None
        size, unit = self.bandwidth, ""
        for unit_of_size, factor in _SIZES.items():
            if self.bandwidth % factor == 0:
                size, unit = self.bandwidth // factor, unit_of_size
        return f"bandwidth={size}{unit}/s"

    @property
    def _slice_text(self) -> str:
        assert self.slice is not None
        least, most = self.slice
        upto = f"..{most}" if most != least else ""
        pause = f"/{_seconds_text(self.pause)}" if self.pause else ""
        return f"slice={least}{upto}{pause}"

    @property
    def _slow_close_text(self) -> str:
        return f"slow_close={_seconds_text(self.slow_close)}"


def _order(ending: Ending) -> tuple[bool, float, int]:
    by_time = ending.seconds is not None
    place = ending.seconds if ending.seconds is not None else ending.bytes
    return by_time, place or 0, _KINDS.index(ending.kind)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What a connection suffers, in each direction. The default is nothing.

    Args:
      up: from the client to the server or the target.
      down: back.
      refuse: it is refused at once, or reset where it can't be.

    ``str(faults)`` is the text that :func:`parse_faults` reads.
    """

    up: Impairment = dataclasses.field(default_factory=Impairment)
    down: Impairment = dataclasses.field(default_factory=Impairment)
    refuse: bool = False

    def __post_init__(self) -> None:
        _check_impairment("up", self.up)
        _check_impairment("down", self.down)
        check_type("refuse", self.refuse, bool, "True or False")

    def __bool__(self) -> bool:
        return bool(self.up or self.down or self.refuse)

    def __str__(self) -> str:
        clauses = ["refuse"] if self.refuse else []
        if self.up == self.down:
            clauses += [str(self.up)] if self.up else []
        else:
            clauses += [f"up:{self.up}"] if self.up else []
            clauses += [f"down:{self.down}"] if self.down else []
        return "; ".join(clauses)


def parse_faults(text: str) -> Faults:
    """Read faults: ``latency=50ms; down: bandwidth=64KiB/s, reset@4096``.

    Clauses stand between semicolons, items between commas. A clause that begins
    with ``up:`` (from the client) or ``down:`` (back) is about one direction,
    any other, or one with ``both:``, about both.

    Raises:
      ValueError: with one line that says what is wrong and what to write
        instead.
    """
    check_type("text", text, str, "a str")
    found: dict[str, dict[str, Any]] = {"up": {}, "down": {}}
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


def _add(
    fields: dict[str, Any], parsed: Mapping[str, Any], item: str, text: str
) -> None:
    for name, value in parsed.items():
        if isinstance(value, tuple) and name in ("cuts", "endings"):
            value = fields.get(name, ()) + value
        elif name in fields:
            raise ValueError(
                f"{item!r} in {text!r} is the second {name} of one direction;"
                " say it once"
            )
        fields[name] = value


def _impairment(fields: Mapping[str, Any], text: str) -> Impairment:
    try:
        return Impairment(**fields)
    except ValueError as error:
        raise ValueError(f"{error}, in {text!r}") from None


def _parse_item(item: str, text: str) -> Mapping[str, Any]:
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
                    f"{item!r} in {text!r} is no bandwidth; use bytes per second,"
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
            if re.fullmatch(r".*(ms|[smh])", value, re.DOTALL):
                return {"endings": (Ending(kind, seconds=_seconds(value, item)),)}
            return {"endings": (Ending(kind, bytes=_bytes(value, item)),)}
        case "stall" | "vanish" | "reset" | "close" | "eof" as kind, "":
            return {"endings": (Ending(kind, bytes=0),)}
        case _:
            raise ValueError(f"{item!r} in {text!r} is not a fault; {_ITEMS}")


def _seconds(text: str, item: str) -> float:
    number = re.fullmatch(r"(\d+\.?\d*|\.\d+)(ms|[smh])", text.strip(), re.ASCII)
    if number is None:
        raise ValueError(
            f"{text.strip()!r} in {item!r} is not a time; {_SECONDS_FORMS}"
        )
    return float(Decimal(number[1]) * Decimal(_UNITS[number[2]]))


def _bytes(text: str, item: str) -> int:
    number = re.fullmatch(r"(\d{1,15})(|KiB|MiB)", text.strip(), re.ASCII)
    if number is None:
        raise ValueError(
            f"{text.strip()!r} in {item!r} is not a number of bytes; {_BYTES_FORMS}"
        )
    return int(number[1]) * _SIZES[number[2]]


def _seconds_text(seconds: float) -> str:
    # Exact, so that it is read back as the same number.
    exact = Decimal(repr(float(seconds)))
    scaled, unit = (exact * 1000, "ms") if 0 < exact < 1 else (exact, "s")
    digits = f"{scaled:f}"
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + unit


def _check_count(name: str, value: object, *, least: int) -> None:
    check_count(name, value, least=least, what="a number of bytes")


def _check_tuple(name: str, value: object, of: type) -> None:
    if not isinstance(value, tuple) or not all(isinstance(each, of) for each in value):
        raise TypeError(f"{name} must be a tuple of {of.__name__}, not {value!r}")


def _check_impairment(name: str, value: object) -> None:
    check_type(name, value, Impairment, "an Impairment")


def _check_seconds(name: str, value: object) -> None:
    check_seconds(name, value)
    if value == math.inf:
        raise ValueError(f"{name} must be finite, not {value}")


class Piece(NamedTuple):
    """Some bytes, and when they may be delivered.

    Attributes:
      data: at least one byte.
      at: the time from which they may be delivered.
      boundary: whether what comes after them must not come in one receive with
        them.
    """

    data: bytes
    at: float
    boundary: bool


class Course:
    """What becomes of the bytes of one direction of one connection.

    It is told what was sent and says when and in which pieces it may be
    delivered. What it does to a byte depends on the seed, the byte's offset and
    when bytes were fed; not on how they were cut. All times are in seconds since
    the connection began.

    Args:
      impairment: what this direction suffers.
      seed: what is random in it; the same on every machine and Python.

    Attributes:
      ending: the ending by bytes, once all bytes before it were fed; it happens
        when these are delivered. From there on nothing is.
      timed: the endings by time, in their order. They happen at their time,
        whatever is under way; nothing is delivered after the first.
    """

    __slots__ = (
        "_block_ends", "_busy_since", "_cut", "_cuts", "_edge", "_edges", "_first",
        "_fresh", "_impairment", "_jitter", "_jitters", "_last_at", "_latest",
        "_offset", "_over", "_passed", "_suffered", "ending", "timed",
    )  # fmt: skip

    def __init__(self, impairment: Impairment, seed: int | str) -> None:
        _check_impairment("impairment", impairment)
        check_type("seed", seed, (int, str), "an int or a str")
        self.ending: Ending | None = None
        self.timed = impairment._timed
        self._impairment = impairment
        self._suffered: dict[str, None] = {}
        self._offset = 0
        self._over = False
        self._last_at = 0.0
        self._first = impairment._first_by_bytes
        self._latest = self.timed[0].seconds if self.timed else None
        # Where the next cut is, and the end of this slice.
        self._cuts = iter(impairment.cuts)
        self._cut = next(self._cuts, None)
        self._edges = _edges(impairment.slice, random.Random(f"{seed} slice"))
        self._edge = next(self._edges, None)
        self._fresh = False
        self._jitters = random.Random(f"{seed} jitter")
        self._jitter = 0.0
        self._block_ends = 0
        # When the line was last free, and the bytes that it has taken since.
        self._busy_since = 0.0
        self._passed = 0
        self._look_for_ending()

    @property
    def suffered(self) -> tuple[str, ...]:
        """What has happened, as items of the grammar, in its order."""
        return tuple(self._suffered)

    def suffer(self, ending: Ending) -> None:
        """Note that an ending has happened."""
        check_type("ending", ending, Ending, "an Ending")
        self._suffered[str(ending)] = None

    def feed(self, data: bytes, now: float) -> list[Piece]:
        """Say what becomes of ``data``, which was sent at ``now``.

        Pieces are in order, and so are their times. What is in none of them is
        lost. ``now`` must not go back.
        """
        check_type("data", data, bytes, "bytes")
        check_type("now", now, (int, float), "a number of seconds")
        if self._over:
            return []
        if self._first is not None and self._first.bytes is not None:
            data = data[: self._first.bytes - self._offset]
        if data:
            self._begin(now)
        pieces = list[Piece]()
        begin = position = 0
        at = self._last_at
        while position < len(data):
            size = self._step(len(data) - position)
            due = self._due(size, now)
            if self._latest is not None and due > self._latest:
                self._over = True
                break
            if position > begin and due != at:
                pieces.append(Piece(data[begin:position], at, False))
                begin = position
            at = self._last_at = due
            position += size
            self._offset += size
            if self._is_boundary():
                pieces.append(Piece(data[begin:position], at, True))
                begin = position
        if position > begin:
            pieces.append(Piece(data[begin:position], at, False))
        self._look_for_ending()
        return pieces

    def feed_eof(self, now: float) -> float:
        """The time from which EOF, sent at ``now``, may be delivered.

        ``math.inf`` if it never is.
        """
        check_type("now", now, (int, float), "a number of seconds")
        if self._over:
            return math.inf
        suffers = self._impairment
        at = max(self._last_at, now + suffers.latency)
        if suffers.slow_close:
            at += suffers.slow_close
            self._suffered[suffers._slow_close_text] = None
        self._over = True
        return at if self._latest is None or at <= self._latest else math.inf

    def _look_for_ending(self) -> None:
        first = self._first
        if not self._over and first is not None and first.bytes == self._offset:
            self.ending = first
            self._over = True

    def _step(self, most: int) -> int:
        """How many of the next bytes have one time, and no boundary inside."""
        suffers, offset = self._impairment, self._offset
        if self._edge is not None:
            most = min(most, self._edge - offset)
        if self._cut is not None:
            most = min(most, self._cut - offset)
        if suffers.jitter:
            if offset == self._block_ends:
                self._block_ends += _JITTER_BLOCK
                self._jitter = suffers.jitter * (2 * self._jitters.random() - 1)
            most = min(most, self._block_ends - offset)
        if suffers.bandwidth is not None:
            stride = _stride(suffers.bandwidth)
            most = min(most, stride - self._passed % stride)
        return most

    def _due(self, size: int, now: float) -> float:
        """When the next ``size`` bytes, which were sent at ``now``, arrive."""
        suffers, at = self._impairment, now
        if suffers.bandwidth is not None:
            self._passed += size
            stride = _stride(suffers.bandwidth)
            strides = -(-self._passed // stride)
            at = self._busy_since + strides * stride / suffers.bandwidth
        if suffers.latency:
            at += suffers.latency + self._jitter
        if self._fresh:
            at = max(at, self._last_at + suffers.pause)
            self._fresh = False
        return max(at, self._last_at)

    def _begin(self, now: float) -> None:
        """Some bytes were sent at ``now``."""
        suffers, rate = self._impairment, self._impairment.bandwidth
        if suffers.latency:
            self._suffered[suffers._latency_text] = None
        if rate is not None:
            self._suffered[suffers._bandwidth_text] = None
            if now > self._busy_since + self._passed / rate:
                self._busy_since, self._passed = now, 0

    def _is_boundary(self) -> bool:
        """Whether here a piece ends; then look for the next place."""
        at_edge, at_cut = self._offset == self._edge, self._offset == self._cut
        if at_edge:
            self._suffered[self._impairment._slice_text] = None
            self._edge = next(self._edges)
            self._fresh = True
        if at_cut:
            self._suffered[f"cut@{self._cut}"] = None
            self._cut = next(self._cuts, None)
        return at_edge or at_cut


def _edges(sizes: tuple[int, int] | None, draws: random.Random) -> Iterator[int]:
    """The offsets at which slices end."""
    offset = 0
    while sizes is not None:
        least, most = sizes
        # Of all draws, only random() is the same in every Python.
        offset += least + int(draws.random() * (most - least + 1))
        yield offset


def _stride(bandwidth: int) -> int:
    """How many bytes pass in a step: it takes a millisecond, or one byte."""
    return max(1, bandwidth // _STEPS)
