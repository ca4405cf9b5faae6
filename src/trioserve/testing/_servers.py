"""The servers of a run: what a handler connects to, in memory.

Each runs in a server of its own, over a network of its own. Faults of the case apply to
the connections that the handler opens in the rounds that are disturbed.
"""

from __future__ import annotations

import errno
import functools
import math
import os
from typing import Final

import trio

from trioserve import Connection, ConnectionReport, Limits, Timeouts, serve
from trioserve.faults import Faults

from ._case import Handler, Setting
from ._handler_run import single_errors
from ._result import Opened
from ._state import RunState
from ._timeline import shown
from .network import (
    Event,
    MemoryInternet,
    MemoryListener,
    MemoryNetwork,
    MemoryStream,
)
from .runs import line_of_caller, line_of_error

#: Seconds after which Linux gives up on a SYN that nobody answers: see
#: tcp_syn_retries in ip-sysctl.
_NO_ANSWER: Final = 127.0

_NO_LIMITS: Final = Limits(max_connections=1000)
_NO_TIMEOUTS: Final = Timeouts(
    idle=math.inf, half_closed=math.inf, write_stall=math.inf, drain=0, linger=2
)

#: What a server's function may raise: its stream is broken, or the run is over.
_EXPECTED: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.Cancelled)

#: Events of a connection that the handler has opened, in words.
_WORDS: Final = {
    "send_eof": "sends EOF to",
    "receive_eof": "receives EOF from",
    "reset": "resets its connection to",
    "receive_reset": "sees a reset by",
    "close": "closes its connection to",
}

#: Events that happen only this many times.
_PROGRESS: Final = (
    "accept",
    "connect",
    "send",
    "receive",
    "send_eof",
    "reset",
    "close",
)


class _Open:
    """A connection that the handler has opened."""

    def __init__(self, server: str, owner: str, in_round: int) -> None:
        self.server = server
        self.owner = owner
        self.opened_in = self.used_in = in_round
        self.is_open = True
        self.sent = bytearray()
        self.received = bytearray()


class Servers:
    """The servers of a run.

    Args:
      state: the state of the run.
      setting: has the servers.

    Attributes:
      unknown: what the handler has connected to and the test has not named, or None.
    """

    def __init__(self, state: RunState, setting: Setting) -> None:
        self.unknown: str | None = None
        self._state = state
        self._functions = setting.servers
        self._network = MemoryNetwork(
            buffer=(state.case.buffer, state.case.room_for_code),
            seed=f"{state.case.seed} servers",
            on_event=self._on_event,
        )
        self._listeners: dict[str, MemoryListener] = {}
        self._opened: dict[MemoryStream, _Open] = {}

    @property
    def opened(self) -> tuple[Opened, ...]:
        """The connections that handlers have opened so far."""
        return tuple(
            Opened(each.server, bytes(each.sent), bytes(each.received))
            for each in self._opened.values()
        )

    async def start(self, nursery: trio.Nursery) -> None:
        """Start the servers, and let the run connect to nothing else."""
        MemoryInternet(self._connect).install()
        for name, function in self._functions.items():
            if function is not None:
                listener = self._listeners[name] = self._network.listen(name)
                serving = functools.partial(
                    serve,
                    functools.partial(self._serve, name, function),
                    [listener],
                    limits=_NO_LIMITS,
                    timeouts=_NO_TIMEOUTS,
                    collector=_drop,
                )
                await nursery.start(serving)

    def end_round(self) -> None:
        """Break the connections that faults have silenced, as Linux does in the end."""
        for stream in self._opened:
            stream.give_up()

    def judge(self) -> None:
        """Check that no connection of an earlier round is left open and unused."""
        for each in self._opened.values():
            if each.is_open and each.used_in < self._state.round:
                how = (
                    f"{each.owner} has left its connection to {each.server} open, and"
                    " the next one did not use it"
                )
                self._state.violated("nothing_left", how, in_round=each.opened_in)

    # -- the server's side

    async def _serve(self, name: str, function: Handler, conn: Connection) -> None:
        try:
            with self._state.running_code(f"the server {name}"):
                await function(conn)
        except BaseException as error:  # noqa: ASYNC103 - it is the test's function
            told = [e for e in single_errors(error) if not isinstance(e, _EXPECTED)]
            if not told or any(isinstance(e, KeyboardInterrupt) for e in told):
                raise
            if not self._state.may_mismatch:
                how = f"the server {name} raised {told[0]!r}, at {line_of_error(error)}"
                self._state.record(name, f"raises {told[0]!r}", line_of_error(error))
                self._state.violated("answer", how, error)
            conn.abort()

    # -- the handler's side

    async def _connect(self, name: str) -> MemoryStream:
        if name not in self._functions:
            self.unknown = self.unknown or name
            self._state.stop()
            await trio.lowlevel.checkpoint()
            raise _os_error(errno.ECONNREFUSED)  # it is shielded
        who = self._state.who_runs()
        disturbed = self._state.is_disturbed
        faults = self._state.case.server_faults if disturbed else Faults()
        await trio.lowlevel.checkpoint()
        if _is_silent(faults):
            self._state.record(who, f"gets no answer from {name}", line_of_caller())
            await trio.sleep(_NO_ANSWER)
            raise _os_error(errno.ETIMEDOUT)
        if name not in self._listeners or faults.refuse:
            self._state.record(who, f"is refused by {name}", line_of_caller())
            raise _os_error(errno.ECONNREFUSED)
        stream = await self._network.connect(self._listeners[name], faults=faults)
        self._opened[stream] = _Open(name, who, self._state.round)
        self._state.record(who, f"connects to {name}", line_of_caller())
        return stream

    def _on_event(self, event: Event) -> None:
        if event.kind in _PROGRESS:
            self._state.watchdog.note_progress()
        each, data = self._opened.get(event.stream), event.data
        if each is None:
            return  # the server's end
        match event.kind:
            case "send" | "receive" if isinstance(data, bytes):
                each.used_in = self._state.round
                preposition = "to" if event.kind == "send" else "from"
                what = f"{event.kind}s {shown(data)} {preposition} {each.server}"
                (each.sent if event.kind == "send" else each.received).extend(data)
            case "close":
                each.is_open = False
                what = f"{_WORDS['close']} {each.server}"
            case kind if kind in _WORDS:
                what = f"{_WORDS[kind]} {each.server}"
            case _:
                return
        self._state.record(each.owner, what, line_of_caller())


def _is_silent(faults: Faults) -> bool:
    """Whether nothing arrives from the first moment on, not even a SYN."""
    return any(
        termination.kind in ("stall", "vanish") and termination.seconds == 0
        for direction in (faults.up, faults.down)
        for termination in direction.terminations
    )


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


async def _drop(reports: trio.MemoryReceiveChannel[ConnectionReport]) -> None:
    async for _ in reports:
        pass
