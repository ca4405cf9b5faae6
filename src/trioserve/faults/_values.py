"""Values of faults: what happens to each direction of a connection.

They are frozen and check their arguments. ``str()`` of each is its text in the
grammar. The fault schedule knows what they do to a byte, and when.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Final, Literal, get_args

from trioserve._arguments import check_count, check_seconds, check_type

from ._units import format_seconds, format_size

TerminationKind = Literal["stall", "vanish", "reset", "close", "eof"]

KINDS: Final[tuple[TerminationKind, ...]] = get_args(TerminationKind)
_OF_BOTH_DIRECTIONS: Final = ("vanish", "reset", "close")


@dataclasses.dataclass(frozen=True, slots=True)
class Termination:
    """How a connection or one of its directions ends, and when.

    Args:
      kind: ``"stall"``: this direction delivers nothing more, and its sender
        waits once the buffers are full; ``"vanish"``: neither direction delivers
        anything more, not even FIN or RST; ``"reset"``: both ends get RST;
        ``"close"``: both ends get FIN; ``"eof"``: this direction ends with FIN,
        and later bytes are discarded.
      bytes: it happens when this direction has delivered this many bytes.
      seconds: it happens this long after the connection began. Bytes that would
        arrive later are lost. Give either ``bytes`` or ``seconds``.

    Raises:
      TypeError, ValueError: an argument is wrong; the message names it.

    ``str(termination)`` is what :func:`parse_faults` reads, like ``reset@4096``.
    """

    kind: TerminationKind
    bytes: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}"
            )
        if (self.bytes is None) == (self.seconds is None):
            raise ValueError(f"{self.kind} needs either bytes or seconds")
        if self.bytes is not None:
            _check_bytes("bytes", self.bytes, least=0)
        if self.seconds is not None:
            _check_finite("seconds", self.seconds)

    @property
    def ends_both(self) -> bool:
        """Whether it ends both directions. A stall and an EOF end one direction."""
        return self.kind in _OF_BOTH_DIRECTIONS

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"{self.kind}@{format_seconds(self.seconds)}"
        return f"{self.kind}@{self.bytes}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """The faults of one direction. The default is none.

    Args:
      latency: seconds by which each byte arrives later. Throughput stays the same.
      jitter: seconds by which latency varies, up or down; drawn anew for every
        64 bytes. Bytes stay in order.
      bandwidth: bytes per second; None is no limit.
      slice: the smallest and the largest size of a slice, in bytes; one receive
        returns bytes of one slice only.
      pause: seconds between two slices.
      cuts: offsets in bytes. One receive does not return bytes from both sides
        of a cut.
      slow_close: seconds by which FIN arrives later.
      terminations: how this direction ends. The first one that is reached counts;
        after a stall or an EOF, a timed one that ends both directions still happens.

    Raises:
      TypeError, ValueError: an argument is wrong; the message names it.

    ``str(impairment)`` is what :func:`parse_faults` reads.
    """

    latency: float = 0.0
    jitter: float = 0.0
    bandwidth: int | None = None
    slice: tuple[int, int] | None = None
    pause: float = 0.0
    cuts: tuple[int, ...] = ()
    slow_close: float = 0.0
    terminations: tuple[Termination, ...] = ()

    def __post_init__(self) -> None:
        for name in ("latency", "jitter", "pause", "slow_close"):
            _check_finite(name, getattr(self, name))
        if self.jitter > self.latency:
            raise ValueError(
                "latency can't vary by more than itself:"
                f" {format_seconds(self.latency)} +- {format_seconds(self.jitter)}"
            )
        if self.bandwidth is not None:
            _check_bytes("bandwidth", self.bandwidth, least=1)
        if self.slice is not None:
            _check_tuple("slice", self.slice, int)
            if len(self.slice) != 2:
                raise ValueError(f"slice must be two numbers, not {self.slice!r}")
            least, most = self.slice
            _check_bytes("slice", least, least=1)
            _check_bytes("slice", most, least=least)
        elif self.pause:
            raise ValueError("pause is the time between slices: give slice as well")
        _check_tuple("cuts", self.cuts, int)
        for offset in self.cuts:
            _check_bytes("cuts", offset, least=1)
        _check_tuple("terminations", self.terminations, Termination)
        # Normalise, so that equal faults compare equal.
        object.__setattr__(self, "cuts", tuple(sorted(set(self.cuts))))
        ordered = tuple(sorted(set(self.terminations), key=_order))
        object.__setattr__(self, "terminations", ordered)

    def __bool__(self) -> bool:
        return bool(str(self))

    def __str__(self) -> str:
        return ", ".join(self._items())

    def _items(self) -> Iterator[str]:
        if self.latency:
            yield latency_text(self.latency, self.jitter)
        if self.bandwidth is not None:
            yield bandwidth_text(self.bandwidth)
        if self.slice is not None:
            yield slice_text(self.slice, self.pause)
        yield from map(cut_text, self.cuts)
        if self.slow_close:
            yield slow_close_text(self.slow_close)
        yield from map(str, self.terminations)


def _order(termination: Termination) -> tuple[bool, float, int]:
    """By bytes before by time; each kind in the order in which it is reached."""
    seconds = termination.seconds
    place = seconds if seconds is not None else termination.bytes
    return seconds is not None, place or 0, KINDS.index(termination.kind)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The faults of a connection, in each direction. The default is none.

    Args:
      up: faults of the bytes from the client.
      down: faults of the bytes to the client.
      refuse: the connection is refused, or reset where it can't be refused.

    Raises:
      TypeError: an argument is wrong; the message names it.

    ``str(faults)`` is the text that :func:`parse_faults` reads.
    """

    up: Impairment = dataclasses.field(default_factory=Impairment)
    down: Impairment = dataclasses.field(default_factory=Impairment)
    refuse: bool = False

    def __post_init__(self) -> None:
        check_impairment("up", self.up)
        check_impairment("down", self.down)
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


# -- items of the grammar, as they are written


def latency_text(latency: float, jitter: float) -> str:
    varies = f"+-{format_seconds(jitter)}" if jitter else ""
    return f"latency={format_seconds(latency)}{varies}"


def bandwidth_text(bandwidth: int) -> str:
    return f"bandwidth={format_size(bandwidth)}/s"


def slice_text(sizes: tuple[int, int], pause: float) -> str:
    least, most = sizes
    upto = f"..{most}" if most != least else ""
    between = f"/{format_seconds(pause)}" if pause else ""
    return f"slice={least}{upto}{between}"


def cut_text(offset: int) -> str:
    return f"cut@{offset}"


def slow_close_text(seconds: float) -> str:
    return f"slow_close={format_seconds(seconds)}"


# -- arguments


def check_impairment(name: str, value: object) -> None:
    check_type(name, value, Impairment, "an Impairment")


def _check_bytes(name: str, value: object, *, least: int) -> None:
    check_count(name, value, least=least, what="a number of bytes")


def _check_tuple(name: str, value: object, of: type) -> None:
    if not isinstance(value, tuple) or not all(isinstance(each, of) for each in value):
        raise TypeError(f"{name} must be a tuple of {of.__name__}, not {value!r}")


def _check_finite(name: str, value: object) -> None:
    check_seconds(name, value)
    if value == math.inf:
        raise ValueError(f"{name} must be finite, not {value}")
