"""Players: play a peer's script on a stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from ._peer import Peer, brief, difference
from ._tls_client import TlsClient
from .network import Event, MemoryStream, Tail

#: Steps that wait for bytes, and steps that wait for EOF or a reset.
_ANSWERS: Final = ("expect", "expect_in_any_order", "receive", "receive_until")
_ENDS: Final = ("expect_eof", "expect_reset", "receive_until_eof")

#: Steps after which a peer sends nothing more.
_END_SENDING: Final = ("half_close", "close", "reset")


class MismatchError(Exception):
    """A peer did not receive what its script expects; the message says what."""


class Meetings:
    """Where the peers of a conversation wait for each other."""

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
        """Let all waiting peers continue: one peer will not arrive."""
        for event in self._begun.values():
            event.set()


class Player:
    """Plays a peer's script on a stream.

    Args:
      on_mismatch: called with this player and what did not match, in the step in
        which that is seen.
      tls: TLS over the stream; None talks without TLS.

    Attributes:
      peer, stream, tls: as above.
      talk: the stream of plain bytes, which is one of these two.
      received: all bytes received so far.
      tail: how the handler has ended its side so far.
      consumed: how many of the received bytes its steps have waited for.
      sent: how many bytes it has sent.
      at: the index of the current step, or of the step that did not match.
      is_over: whether it has ended, with or without a mismatch.
    """

    def __init__(
        self,
        peer: Peer,
        stream: MemoryStream,
        meetings: Meetings,
        on_mismatch: Callable[[Player, str], None] = lambda player, how: None,
        tls: TlsClient | None = None,
    ) -> None:
        self.peer = peer
        self.stream = stream
        self.tls = tls
        self.talk: trio.abc.HalfCloseableStream = tls or stream
        self.name = stream.name.replace("client", "peer")
        self.received = bytearray()
        self.tail: Tail = "open"
        self.at = 0
        self.is_over = False
        self.consumed = 0
        self.sent = 0
        self._meetings = meetings
        self._on_mismatch = on_mismatch
        self._received_more = trio.Event()
        self._may_read = trio.Event()
        self._may_read.set()
        self._receiving = trio.CancelScope()

    def __str__(self) -> str:
        steps = self.peer.steps
        at_end = self.at >= len(steps)
        return f"{self.name}, at {'its end' if at_end else f'.{steps[self.at].brief}'}"

    @property
    def waits_for_an_answer(self) -> bool:
        """Whether the current step waits for bytes."""
        steps = self.peer.steps[self.at : self.at + 1]
        return any(step.name in _ANSWERS for step in steps)

    def note(self, event: Event) -> None:
        """Note an event of plain bytes."""
        if event.kind == "send" and isinstance(event.data, bytes):
            self.sent += len(event.data)

    @property
    def wire(self) -> tuple[int, int]:
        """The bytes that it has sent and received on the network."""
        return (self.sent, len(self.received)) if self.tls is None else self.tls.wire

    async def shake_hands(self) -> None:
        """Begin TLS, if there is TLS. If that fails, its stream is broken."""
        if self.tls is not None:
            with contextlib.suppress(trio.BrokenResourceError):
                await self.tls.shake_hands()

    def pause_reading(self) -> None:
        self._may_read = trio.Event()
        self._receiving.cancel(reason="the peer pauses reading")

    async def play(self, *, read_delay: float = 0.0) -> None:
        """Play the script to its end, and close the stream.

        Args:
          read_delay: seconds until it begins to read.

        Raises:
          MismatchError: a step expects something else than what came.
        """
        mismatch: MismatchError | None = None
        try:
            await self.shake_hands()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                if read_delay:
                    self.pause_reading()
                    nursery.start_soon(self._resume_after, read_delay)
                try:
                    await self._follow_script()
                except MismatchError as error:
                    mismatch = error
                    self._on_mismatch(self, str(error))
                    self._meetings.give_up()
                nursery.cancel_scope.cancel(reason="the script is over")
        except* trio.ClosedResourceError:
            pass  # the harness has closed the stream: the script is over
        finally:
            self.is_over = True
            if self.tls is not None and self.tls.is_over:
                self.stream.close_now()  # as after EOF in both directions without TLS
            await trio.aclose_forcefully(self.stream)
        if mismatch is not None:
            raise mismatch

    async def _follow_script(self) -> None:
        for at, step in enumerate(self.peer.steps):
            self.at = at
            await self._STEPS[step.name](self, step.value)
        self.at = len(self.peer.steps)
        if not self.peer.leaves:
            await self._leave()

    async def _leave(self) -> None:
        if not any(step.name in _END_SENDING for step in self.peer.steps):
            await self._half_close(None)
        self._may_read.set()
        if not any(step.name in _ENDS for step in self.peer.steps):
            await self._expect_eof(None)

    async def _resume_after(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self._may_read.set()

    # -- reading

    async def _read(self) -> None:
        try:
            while self.tail == "open":
                await self._may_read.wait()
                if not self._may_read.is_set():
                    continue  # reading was paused again meanwhile
                with trio.CancelScope() as self._receiving:
                    if data := await self.talk.receive_some():
                        self.received += data
                        self._wake()
                    else:
                        self.tail = "eof"
        except trio.BrokenResourceError:
            self.tail = "reset"
        except trio.ClosedResourceError:
            pass  # this peer has closed
        self._wake()

    def _wake(self) -> None:
        self._received_more.set()
        self._received_more = trio.Event()

    async def _more(self, wanted: str) -> None:
        """Wait for more bytes, EOF or a reset.

        Raises:
          MismatchError: EOF or a reset came before.
        """
        if self.tail == "open":
            await self._received_more.wait()
            return
        end = "EOF" if self.tail == "eof" else "a reset"
        got = bytes(self.received[self.consumed :])
        after = f"{brief(got)} and then {end}" if got else end
        raise MismatchError(f"expected {wanted}, got {after}")

    # -- the steps

    async def _send(self, data: bytes) -> None:
        try:
            await self.talk.send_all(data)
        except trio.BrokenResourceError:
            # The next steps check what was received before that.
            await trio.lowlevel.checkpoint()

    async def _expect(self, data: bytes) -> None:
        while True:
            got = bytes(self.received[self.consumed : self.consumed + len(data)])
            if got == data:
                self.consumed += len(data)
                return
            if got != data[: len(got)]:
                raise MismatchError(difference(data, got))
            await self._more(brief(data))

    async def _expect_in_any_order(self, messages: tuple[bytes, ...]) -> None:
        left = sorted(messages, key=len, reverse=True)
        while left:
            got = bytes(self.received[self.consumed :])
            if came := [message for message in left if got.startswith(message)]:
                self.consumed += len(came[0])
                left.remove(came[0])
            elif any(message.startswith(got) for message in left):
                await self._more(" or ".join(map(brief, left)))
            else:
                wanted = " or ".join(map(brief, left))
                raise MismatchError(f"expected {wanted}, got {brief(got)}")

    async def _receive(self, count: int) -> None:
        while len(self.received) - self.consumed < count:
            await self._more(f"{count} bytes")
        self.consumed += count

    async def _receive_until(self, end: bytes) -> None:
        while (found := self.received.find(end, self.consumed)) < 0:
            await self._more(f"bytes up to {end!r}")
        self.consumed = found + len(end)

    async def _receive_until_eof(self, _: None) -> None:
        while self.tail != "eof":
            self.consumed = len(self.received)
            await self._more("EOF")
        self.consumed = len(self.received)

    async def _expect_eof(self, _: None) -> None:
        while True:
            if got := bytes(self.received[self.consumed :]):
                raise MismatchError(f"expected EOF, got {brief(got)}")
            if self.tail == "eof":
                return
            await self._more("EOF")

    async def _expect_reset(self, _: None) -> None:
        while self.tail != "reset":
            await self._more("a reset")
        self.consumed = len(self.received)

    async def _half_close(self, _: None) -> None:
        try:
            await self.talk.send_eof()
        except trio.BrokenResourceError:
            await trio.lowlevel.checkpoint()

    async def _close(self, _: None) -> None:
        await self.talk.aclose()

    async def _reset(self, _: None) -> None:
        self.stream.reset()
        await trio.lowlevel.checkpoint()

    async def _wait(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def _pause_reading(self, _: None) -> None:
        self.pause_reading()
        await trio.lowlevel.checkpoint()

    async def _resume_reading(self, _: None) -> None:
        self._may_read.set()
        await trio.lowlevel.checkpoint()

    async def _meet(self, name: str) -> None:
        await self._meetings.meet(name)

    _STEPS: Final[Mapping[str, Any]] = {
        "send": _send,
        "expect": _expect,
        "expect_in_any_order": _expect_in_any_order,
        "receive": _receive,
        "receive_until": _receive_until,
        "receive_until_eof": _receive_until_eof,
        "expect_eof": _expect_eof,
        "expect_reset": _expect_reset,
        "half_close": _half_close,
        "close": _close,
        "reset": _reset,
        "wait": _wait,
        "pause_reading": _pause_reading,
        "resume_reading": _resume_reading,
        "meet": _meet,
    }
