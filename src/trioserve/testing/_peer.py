"""Peers: the other side of a conversation, as a script.

A script is a value that reads like the conversation and prints as the Python
that makes it. What a peer hears is for others to judge.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

import trio

from ._arguments import check_seconds, check_type
from ._stream import MemoryStream

Tail = Literal["open", "eof", "reset"]

#: Steps after which a peer says nothing more, and those after which it is gone.
_LAST_WORDS: Final = ("half_close", "close", "reset")
_FAREWELLS: Final = ("close", "reset")

#: Steps that wait for bytes.
_ANSWERS: Final = ("expect", "receive", "receive_until")

#: Bytes from which on what was heard is not shown as a whole.
_MOST_BYTES: Final = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One thing that a peer does; ``value`` is its argument, if it has one."""

    name: str
    value: Any = None

    def __str__(self) -> str:
        return f"{self.name}({'' if self.value is None else repr(self.value)})"

    @property
    def brief(self) -> str:
        """The same, without most of many bytes."""
        if not isinstance(self.value, bytes):
            return str(self)
        return f"{self.name}({_said(self.value)})"


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Peer:
    """What one client does, step by step; each method returns a longer script::

        Peer().send(b"GET k\\n").expect(b"v\\n").half_close().expect_eof()

    It reads all the time, except after :meth:`stop_reading`, so that sending
    much never waits for its own reading. At the end of the script, unless it
    has closed or reset, it sends EOF and waits for the other's; bytes that come
    then, or that no step expected, are not what it expects.
    """

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        check_type("steps", self.steps, tuple, "a tuple of Steps")
        for step in self.steps:
            check_type("steps", step, Step, "Steps, each of them")

    def __repr__(self) -> str:
        return "".join(["Peer()", *(f".{step}" for step in self.steps)])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For Hypothesis, which else prints a dataclass by its fields."""
        printer.text(repr(self))

    def _then(self, name: str, value: Any = None) -> Self:
        if self.steps and self.steps[-1].name in _FAREWELLS:
            raise ValueError(f"a peer can do nothing after {self.steps[-1]}")
        said_its_last = any(step.name == "half_close" for step in self.steps)
        if said_its_last and name in ("send", "half_close"):
            raise ValueError(f"a peer can't {name} after half_close()")
        return dataclasses.replace(self, steps=(*self.steps, Step(name, value)))

    def send(self, data: bytes) -> Self:
        """Send ``data``; the network may cut it anywhere."""
        return self._then("send", _bytes("data", data))

    def expect(self, data: bytes) -> Self:
        """Wait for exactly these bytes, however they come."""
        return self._then("expect", _bytes("data", data))

    def receive(self, count: int) -> Self:
        """Wait for that many bytes, whatever they are."""
        return self._then("receive", _count(count))

    def receive_until(self, end: bytes) -> Self:
        """Wait for whatever comes before ``end``, and for that."""
        return self._then("receive_until", _bytes("end", end))

    def expect_eof(self) -> Self:
        """Wait for EOF, and for nothing before it."""
        return self._then("expect_eof")

    def expect_reset(self) -> Self:
        """Wait until it is reset; bytes may come before that."""
        return self._then("expect_reset")

    def expect_any(self) -> Self:
        """Wait for EOF; bytes may come before that."""
        return self._then("expect_any")

    def half_close(self) -> Self:
        """Send EOF, and go on reading."""
        return self._then("half_close")

    def close(self) -> Self:
        """Close; what comes after that is answered by a reset, as TCP does."""
        return self._then("close")

    def reset(self) -> Self:
        """Close by RST."""
        return self._then("reset")

    def wait(self, seconds: float) -> Self:
        """Do nothing for that long."""
        check_seconds("seconds", seconds)
        return self._then("wait", seconds)

    def stop_reading(self) -> Self:
        """Read no more; what comes stays in the network, which holds little."""
        return self._then("stop_reading")

    def read_on(self) -> Self:
        """Read again."""
        return self._then("read_on")

    def meet(self, name: str) -> Self:
        """Wait until every peer that meets under this name is here."""
        check_type("name", name, str, "a str")
        return self._then("meet", name)

    @property
    def sends(self) -> bytes:
        """All that it sends."""
        return b"".join(step.value for step in self.steps if step.name == "send")

    @property
    def ends_of_messages(self) -> frozenset[int]:
        """How much it has sent in all after each of its sends, and before the first."""
        sizes = [len(step.value) for step in self.steps if step.name == "send"]
        return frozenset(itertools.accumulate(sizes, initial=0))

    @property
    def waits(self) -> float:
        """Seconds that it waits, in all."""
        return math.fsum(step.value for step in self.steps if step.name == "wait")

    @property
    def leaves(self) -> bool:
        """Whether it ends by itself, rather than wait for the other's EOF."""
        return bool(self.steps) and self.steps[-1].name in _FAREWELLS


def _bytes(name: str, data: object) -> bytes:
    if isinstance(data, bytes) and data:
        return data
    raise ValueError(f"{name} must be bytes, and some, not {data!r}")


def _count(count: object) -> int:
    if isinstance(count, int) and not isinstance(count, bool) and count > 0:
        return count
    raise ValueError(f"count must be an int of 1 or more, not {count!r}")


class SurpriseError(Exception):
    """A peer did not get what its script expects."""


def _said(data: bytes) -> str:
    if len(data) <= _MOST_BYTES:
        return repr(data)
    return f"{data[:_MOST_BYTES]!r}… ({len(data)} bytes)"


def _differ(expected: bytes, got: bytes) -> str:
    said = f"expected {_said(expected)}, got {_said(got)}"
    if len(got) <= _MOST_BYTES:
        return said
    at = next(n for n, byte in enumerate(got) if byte != expected[n])
    return f"{said}, which differ from byte {at} on"


class Meetings:
    """Where peers wait for each other."""

    def __init__(self, peers: tuple[Peer, ...]) -> None:
        self._missing: dict[str, int] = {}
        self._begun: dict[str, trio.Event] = {}
        for peer in peers:
            for name in {s.value for s in peer.steps if s.name == "meet"}:
                self._missing[name] = self._missing.get(name, 0) + 1
                self._begun[name] = trio.Event()

    async def meet(self, name: str) -> None:
        self._missing[name] -= 1
        if self._missing[name] <= 0:
            self._begun[name].set()
        await self._begun[name].wait()

    def give_up(self) -> None:
        """Somebody won't come any more: nobody waits for them."""
        for event in self._begun.values():
            event.set()


class Player:
    """Plays a peer's script on a stream.

    Attributes:
      heard: all bytes that came.
      tail: what came after them: nothing yet, EOF or RST.
      taken: how many of the bytes its steps have waited for.
      at: the step that it is at, or the one at which it gave up.
      is_over: whether it is done, one way or the other.
    """

    def __init__(self, peer: Peer, stream: MemoryStream, meetings: Meetings) -> None:
        self.peer = peer
        self.stream = stream
        self.name = stream.name.replace("client", "peer")
        self.heard = bytearray()
        self.tail: Tail = "open"
        self.at = 0
        self.is_over = False
        self.taken = 0
        self._deaf_for = 0.0
        self._meetings = meetings
        self._heard_more = trio.Event()
        self._may_read = trio.Event()
        self._may_read.set()
        self._receiving = trio.CancelScope()

    def __str__(self) -> str:
        steps = self.peer.steps
        at_end = self.at >= len(steps)
        return f"{self.name}, at {'its end' if at_end else f'.{steps[self.at].brief}'}"

    @property
    def waits_for_an_answer(self) -> bool:
        """Whether it is at a step that waits for bytes."""
        steps = self.peer.steps[self.at : self.at + 1]
        return any(step.name in _ANSWERS for step in steps)

    def deafen(self, seconds: float) -> None:
        """Read nothing at first, for that long."""
        self._deaf_for = seconds

    def fall_silent(self) -> None:
        """Read no more, ever."""
        self._stop_hearing()

    async def play(self) -> None:
        """Play the script to its end, and close.

        Raises:
          SurpriseError: what came is not what a step expects; in one line, why.
        """
        surprise: SurpriseError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                if self._deaf_for:
                    self._stop_hearing()
                    nursery.start_soon(self._hear_later)
                try:
                    await self._follow()
                except SurpriseError as error:
                    surprise = error
                    self._meetings.give_up()
                nursery.cancel_scope.cancel(reason="the script is over")
        except* trio.ClosedResourceError:
            pass  # it was closed or shut under our hands: the script is over
        finally:
            self.is_over = True
            await trio.aclose_forcefully(self.stream)
        if surprise is not None:
            raise surprise

    async def _follow(self) -> None:
        """Do what the script says, from the first step to the last."""
        for at, step in enumerate(self.peer.steps):
            self.at = at
            await self._STEPS[step.name](self, step.value)
        self.at = len(self.peer.steps)
        if not self.peer.leaves:
            await self._leave()

    async def _hear_later(self) -> None:
        await trio.sleep(self._deaf_for)
        self._may_read.set()

    async def _leave(self) -> None:
        if not any(step.name in _LAST_WORDS for step in self.peer.steps):
            await self._half_close(None)
        self._may_read.set()
        if not any(step.name.startswith("expect_") for step in self.peer.steps):
            await self._expect_eof(None)

    # -- hearing

    async def _read(self) -> None:
        try:
            while self.tail == "open":
                await self._may_read.wait()
                if not self._may_read.is_set():
                    continue  # it was told to stop meanwhile
                with trio.CancelScope() as self._receiving:
                    if data := await self.stream.receive_some():
                        self.heard += data
                        self._tell()
                    else:
                        self.tail = "eof"
        except trio.BrokenResourceError:
            self.tail = "reset"
        except trio.ClosedResourceError:
            pass  # it was this peer who closed
        self._tell()

    def _stop_hearing(self) -> None:
        self._may_read = trio.Event()
        self._receiving.cancel(reason="it reads no more")

    def _tell(self) -> None:
        self._heard_more.set()
        self._heard_more = trio.Event()

    async def _more(self, wanted: str) -> None:
        """Wait for more than has been heard."""
        if self.tail == "open":
            await self._heard_more.wait()
            return
        end = "EOF" if self.tail == "eof" else "a reset"
        got = bytes(self.heard[self.taken :])
        after = f"{_said(got)} and then {end}" if got else end
        raise SurpriseError(f"expected {wanted}, got {after}")

    # -- the steps

    async def _send(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError:
            # What came before that is for the next steps to say.
            await trio.lowlevel.checkpoint()

    async def _expect(self, data: bytes) -> None:
        while True:
            got = bytes(self.heard[self.taken : self.taken + len(data)])
            if got == data:
                self.taken += len(data)
                return
            if got != data[: len(got)]:
                raise SurpriseError(_differ(data, got))
            await self._more(_said(data))

    async def _receive(self, count: int) -> None:
        while len(self.heard) - self.taken < count:
            await self._more(f"{count} bytes")
        self.taken += count

    async def _receive_until(self, end: bytes) -> None:
        while (found := self.heard.find(end, self.taken)) < 0:
            await self._more(f"something that ends in {end!r}")
        self.taken = found + len(end)

    async def _expect_eof(self, _: None) -> None:
        while True:
            if got := bytes(self.heard[self.taken :]):
                raise SurpriseError(f"expected EOF, got {_said(got)}")
            if self.tail == "eof":
                return
            await self._more("EOF")

    async def _expect_any(self, _: None) -> None:
        while self.tail != "eof":
            self.taken = len(self.heard)
            await self._more("EOF")
        self.taken = len(self.heard)

    async def _expect_reset(self, _: None) -> None:
        while self.tail != "reset":
            await self._more("a reset")
        self.taken = len(self.heard)

    async def _half_close(self, _: None) -> None:
        try:
            await self.stream.send_eof()
        except trio.BrokenResourceError:
            await trio.lowlevel.checkpoint()

    async def _close(self, _: None) -> None:
        await self.stream.aclose()

    async def _reset(self, _: None) -> None:
        self.stream.reset()
        await trio.lowlevel.checkpoint()

    async def _wait(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def _stop_reading(self, _: None) -> None:
        self._stop_hearing()
        await trio.lowlevel.checkpoint()

    async def _read_on(self, _: None) -> None:
        self._may_read.set()
        await trio.lowlevel.checkpoint()

    async def _meet(self, name: str) -> None:
        await self._meetings.meet(name)

    _STEPS: Final[Mapping[str, Any]] = {
        "send": _send,
        "expect": _expect,
        "receive": _receive,
        "receive_until": _receive_until,
        "expect_eof": _expect_eof,
        "expect_any": _expect_any,
        "expect_reset": _expect_reset,
        "half_close": _half_close,
        "close": _close,
        "reset": _reset,
        "wait": _wait,
        "stop_reading": _stop_reading,
        "read_on": _read_on,
        "meet": _meet,
    }
