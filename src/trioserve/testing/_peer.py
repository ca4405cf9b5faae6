"""Peers: the script of one client.

A script is a value that reads like the conversation and prints as the Python that
makes it. A player plays it; this module does no I/O.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from typing import Any, Final, Self

from ._arguments import check_seconds, check_type

#: Steps after which a peer does nothing more.
_LAST_STEPS: Final = ("close", "reset")

#: Longer data is abbreviated in messages.
_MOST_BYTES: Final = 100


#: As many equal bytes in a row are written as a product.
_RUN: Final = re.compile(rb"(.)\1{63,}", re.DOTALL)


def literal(data: bytes) -> str:
    """Bytes as Python, where many equal ones are written as ``b'x' * 4096``."""
    parts, begin = list[str](), 0
    for run in _RUN.finditer(data):
        if begin < run.start():
            parts.append(repr(data[begin : run.start()]))
        begin = run.end()
        parts.append(f"{run[1]!r} * {len(run[0])}")
    if begin < len(data):
        parts.append(repr(data[begin:]))
    return " + ".join(parts) or repr(data)


def brief(data: bytes) -> str:
    """Bytes as Python writes them; of many, only the first, and their number."""
    if len(data) <= _MOST_BYTES:
        return repr(data)
    if len(short := literal(data)) <= _MOST_BYTES:
        return short
    return f"{data[:_MOST_BYTES]!r}… ({len(data)} bytes)"


def difference(expected: bytes, got: bytes) -> str:
    """What was expected and what came instead, as a clause."""
    clause = f"expected {brief(expected)}, got {brief(got)}"
    if len(got) <= _MOST_BYTES:
        return clause
    at = next(n for n, byte in enumerate(got) if byte != expected[n])
    return f"{clause}, which differ from byte {at} on"


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step of a script; ``value`` is its argument, if it has one."""

    name: str
    value: Any = None

    def __str__(self) -> str:
        value = self.value
        if isinstance(value, bytes):
            value = (value,)
        if isinstance(value, tuple):
            return f"{self.name}({', '.join(map(literal, value))})"
        return f"{self.name}({'' if value is None else repr(value)})"

    @property
    def brief(self) -> str:
        """The step as Python, with many bytes abbreviated."""
        if not isinstance(self.value, bytes):
            return str(self)
        return f"{self.name}({brief(self.value)})"


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Peer:
    """The steps of one client. Each method returns a longer script::

        Peer().send(b"GET k\\n").expect(b"v\\n").half_close().expect_eof()

    The peer reads all the time, also during a long :meth:`send`, except between
    :meth:`pause_reading` and :meth:`resume_reading`. After the last step, unless
    that is :meth:`close` or :meth:`reset`, it sends EOF and waits for EOF. Bytes
    that no step expects are a failure.

    Methods raise ``ValueError`` or ``TypeError`` for a wrong argument, and
    ``ValueError`` for a step that can't follow the steps before it.
    """

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        check_type("steps", self.steps, tuple, "a tuple of Steps")
        for step in self.steps:
            check_type("steps", step, Step, "a tuple of Steps only")

    def __repr__(self) -> str:
        return "".join(["Peer()", *(f".{step}" for step in self.steps)])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print for Hypothesis, which prints other dataclasses by their fields."""
        printer.text(repr(self))

    def _then(self, name: str, value: Any = None) -> Self:
        if self.leaves:
            raise ValueError(f"a peer can do nothing after {self.steps[-1]}")
        has_sent_eof = any(step.name == "half_close" for step in self.steps)
        if has_sent_eof and name in ("send", "half_close"):
            raise ValueError(f"a peer can't {name} after half_close()")
        return dataclasses.replace(self, steps=(*self.steps, Step(name, value)))

    def send(self, data: bytes) -> Self:
        """Send ``data``. The network may cut it anywhere."""
        return self._then("send", _bytes("data", data))

    def expect(self, data: bytes) -> Self:
        """Wait for exactly these bytes, in any number of chunks."""
        return self._then("expect", _bytes("data", data))

    def expect_in_any_order(self, *messages: bytes) -> Self:
        """Wait for exactly these messages, each whole, in any order."""
        if len(messages) < 2:
            raise ValueError(f"messages must be two or more, not {messages!r}")
        checked = tuple(_bytes("messages", message) for message in messages)
        return self._then("expect_in_any_order", checked)

    def receive(self, count: int) -> Self:
        """Wait for ``count`` bytes, whatever they are."""
        return self._then("receive", _count(count))

    def receive_until(self, end: bytes) -> Self:
        """Wait for ``end``; accept any bytes before it."""
        return self._then("receive_until", _bytes("end", end))

    def receive_until_eof(self) -> Self:
        """Wait for EOF; accept any bytes before it."""
        return self._then("receive_until_eof")

    def expect_eof(self) -> Self:
        """Wait for EOF. Bytes before it are a failure."""
        return self._then("expect_eof")

    def expect_reset(self) -> Self:
        """Wait for a reset; accept any bytes before it."""
        return self._then("expect_reset")

    def half_close(self) -> Self:
        """Send EOF, and continue to read."""
        return self._then("half_close")

    def close(self) -> Self:
        """Close. As in TCP, later data of the handler is answered with a reset."""
        return self._then("close")

    def reset(self) -> Self:
        """Close with RST."""
        return self._then("reset")

    def wait(self, seconds: float) -> Self:
        """Do nothing for ``seconds`` of virtual time."""
        check_seconds("seconds", seconds)
        return self._then("wait", seconds)

    def pause_reading(self) -> Self:
        """Stop reading. The network holds as many bytes as it has room for."""
        return self._then("pause_reading")

    def resume_reading(self) -> Self:
        """Read again."""
        return self._then("resume_reading")

    def meet(self, name: str) -> Self:
        """Wait until all peers whose scripts meet under ``name`` are at this step."""
        check_type("name", name, str, "a str")
        return self._then("meet", name)

    @property
    def is_code(self) -> bool:
        """Whether it stands for a client that is a function, not a script."""
        return self == CODE

    @property
    def sends(self) -> bytes:
        """All bytes that it sends."""
        return b"".join(step.value for step in self.steps if step.name == "send")

    @property
    def ends_of_messages(self) -> frozenset[int]:
        """The number of bytes sent before the first send, and after each send."""
        sizes = [len(step.value) for step in self.steps if step.name == "send"]
        return frozenset(itertools.accumulate(sizes, initial=0))

    @property
    def waits(self) -> float:
        """The sum of its waits, in seconds."""
        return math.fsum(step.value for step in self.steps if step.name == "wait")

    @property
    def leaves(self) -> bool:
        """Whether its last step closes the connection."""
        return bool(self.steps) and self.steps[-1].name in _LAST_STEPS


#: Stands for the client of a setting, which is a function.
CODE: Final = Peer((Step("code"),))


def _bytes(name: str, data: object) -> bytes:
    if not isinstance(data, bytes):
        raise ValueError(f'{name} must be bytes, such as b"hello", not {data!r}')
    if not data:
        raise ValueError(f"{name} must be one byte or more, not {data!r}")
    return data


def _count(count: object) -> int:
    if isinstance(count, int) and not isinstance(count, bool) and count > 0:
        return count
    raise ValueError(f"count must be an int of 1 or more, not {count!r}")
