"""Hostile peers: they trickle, send a message that never ends, or never leave.

They read all that they receive, and keep none of it. What the handler keeps is measured
with :mod:`tracemalloc`, while it waits.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import tracemalloc
from collections.abc import Generator
from pathlib import Path
from typing import Final, Literal

import trio

from ._case import Setting
from ._peer import Peer
from ._player import Meetings, Player
from ._state import RunState
from ._tls_client import TlsClient
from .network import MemoryStream

#: A message that trickles has this many bytes in the time of its deadline, and trickles
#: for twice as long.
_PARTS: Final = 10

#: Seconds that a handler gets to answer, and to receive what was sent.
_PAUSE: Final = 5.0
_PATIENCE: Final = 60.0

#: Rounds of all messages after which what is kept is measured. If one of the first is
#: not more than the one before, there are no more rounds. Otherwise they fill a list
#: of a thousand, and end a job of half an hour.
_FIRST: Final = (40, 80, 120)
_EARLY: Final = range(320, 641, 80)
_LATE: Final = range(960, 1281, 80)

#: Bytes that a round may leave behind.
_SPARE: Final = 8

#: Bytes that a handler may keep besides a message.
_ROOM: Final = 32_768

#: Files whose memory does not count: Trio keeps timeouts for a while after they were
#: cancelled, and the run and the measuring need some, too.
_NOT_COUNTED: Final = [
    tracemalloc.Filter(inclusive=False, filename_pattern=pattern)
    for pattern in (
        f"{Path(trio.__file__).parent}/*",
        f"{Path(__file__).parent}/runs/*",
        tracemalloc.__file__,
        __file__,
    )
]

#: Bytes of the numbers that say how long a message is.
_LENGTHS: Final = (8, 4, 2)
_ORDERS: Final[tuple[Literal["big", "little"], ...]] = ("big", "little")


class HostilePlayer(Player):
    """Plays a script as the plays ``"trickled"``, ``"endless"`` and ``"repeated"``.

    Args:
      setting: has the deadline of a message and the longest one.
      state: of the run.
    """

    def __init__(
        self,
        peer: Peer,
        stream: MemoryStream,
        meetings: Meetings,
        setting: Setting,
        state: RunState,
        tls: TlsClient | None = None,
    ) -> None:
        super().__init__(peer, stream, meetings, tls=tls)
        self._deadline = setting.deadline or 0.0
        self._longest = setting.longest or 0
        self._state = state

    async def _follow_script(self) -> None:
        match self._state.case.play:
            case "trickled":
                await self._trickle()
            case "endless":
                with _traced():
                    await self._send_endlessly()
            case _:
                with _traced():
                    await self._repeat()

    async def _trickle(self) -> None:
        most = 2 * _PARTS
        message = unending(await self._up_to_the_last_message(), most)
        for byte in message[:most]:
            await self._send(bytes([byte]))
            await trio.sleep(self._deadline / _PARTS)
        if self.tail == "open":
            how = (
                f"it still reads a message whose bytes come one by one,"
                f" {2 * self._deadline:g} seconds after the first one"
            )
            self._state.violated("deadline", how)

    async def _send_endlessly(self) -> None:
        most = 2 * self._longest + _ROOM
        # What it leaves in the network is traced, too: a bytearray, which takes up to
        # an eighth more than it has.
        held = self._state.case.room_for_peers * 9 // 8
        message = unending(await self._up_to_the_last_message(), 2 * most + held)
        before = await self._kept()
        self._state.is_told = True
        await self._send_in_time(message)
        kept = await self._kept() - before
        if self.tail == "open" and kept > most + held:
            how = f"it keeps over {most} bytes of a message that does not end"
            self._state.violated("endless", how)

    async def _repeat(self) -> None:
        kept = dict[int, int]()
        for number in range(1, _LATE[-1] + 1):
            self.received.clear()
            await self._send_in_time(self.peer.sends)
            await trio.sleep(_PAUSE)
            if self.tail != "open" or not self.received:
                return  # it has ended, or it answers at EOF only
            self._state.is_told = True  # rows of the timeline need memory too
            if number in (*_FIRST, *_EARLY, *_LATE):
                # A collection takes long; most handlers need none.
                kept[number] = await self._kept(collects=number > _FIRST[-1])
            if number in (*_FIRST[1:], _LATE[-1]) and not _grows(kept, number):
                return
        how = "what it keeps grows each time the peer sends all its messages again"
        self._state.violated("growth", how)

    async def _up_to_the_last_message(self) -> bytes:
        """Play the script up to its last message, and return that."""
        steps = self.peer.steps
        last = max(at for at, step in enumerate(steps) if step.name == "send")
        for step in steps[:last]:
            await self._STEPS[step.name](self, step.value)
        message: bytes = steps[last].value
        return message

    async def _send_in_time(self, data: bytes) -> None:
        """Send, unless the handler does not take it for a minute."""
        with trio.move_on_after(_PATIENCE):
            await self._send(data)

    async def _kept(self, *, collects: bool = True) -> int:
        """The bytes that are kept when all that was sent is dealt with."""
        await trio.sleep(_PAUSE)
        self.received.clear()
        if collects:
            gc.collect()
        snapshot = tracemalloc.take_snapshot().filter_traces(_NOT_COUNTED)
        return sum(trace.size for trace in snapshot.traces)


def _grows(kept: dict[int, int], last: int) -> bool:
    """Whether more is kept at round ``last`` than before, for each round.

    Args:
      kept: the bytes that are kept after some of the rounds.
    """
    if last in _FIRST:
        before = _FIRST[_FIRST.index(last) - 1]
        grown = kept[last] - kept[before]
    else:
        before, last = _EARLY[-1], _LATE[0]
        grown = min(kept[at] for at in _LATE) - max(kept[at] for at in _EARLY)
    return grown > _SPARE * (last - before)


def unending(message: bytes, size: int) -> bytes:
    """At least ``size`` bytes that begin like a message and are no whole one.

    A message whose first bytes are its length, as a number of 2, 4 or 8 bytes, has a
    larger one. Of others the end of the line is left out.
    """
    for width, order in itertools.product(_LENGTHS, _ORDERS):
        head, body = message[:width], message[width:]
        if body and int.from_bytes(head, order) == len(body):
            length = min(size, (1 << (8 * width - 1)) - 1)
            return length.to_bytes(width, order) + body[:1] * size
    begin = message.rstrip(b"\r\n") or b"x"
    return begin + begin[-1:] * (size - len(begin))


@contextlib.contextmanager
def _traced() -> Generator[None]:
    """Within the block, memory is traced, and garbage is collected on demand only.

    Garbage that is collected between two looks would hide what has grown.
    """
    was_tracing, was_collecting = tracemalloc.is_tracing(), gc.isenabled()
    gc.disable()
    tracemalloc.start()
    tracemalloc.take_snapshot().filter_traces(_NOT_COUNTED)  # compile its patterns now
    try:
        yield
    finally:
        if not was_tracing:
            tracemalloc.stop()
        if was_collecting:
            gc.enable()
