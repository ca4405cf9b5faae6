"""Names: to addresses; one look-up at a time for each, the last good answer kept.

Whoever waits for a name shares the look-up that runs already, so a name server
that does not answer costs one thread for a name, however many ask for it. The
look-up goes on when they have given up: its answer is for those who come next.
Nothing here knows who asks, or what for.
"""

from __future__ import annotations

import functools
import math
import socket
from typing import Any, Final, NamedTuple

import trio

from ._address import TcpAddress, is_numeric

#: Seconds for which an answer is used without asking again. getaddrinfo(3) tells
#: no time to live; HAProxy holds a valid answer for as long ("hold valid").
_FRESH: Final = 10.0

#: Seconds that a look-up has to renew an answer before the old one is used.
_RENEWAL: Final = 1.0

#: Names whose answers are kept; those that were asked for first are forgotten.
_MOST_NAMES: Final = 1024


class Place(NamedTuple):
    """Where to connect: what a socket is made with, and what it connects to."""

    family: int
    kind: int
    protocol: int
    sockaddr: Any


_names: trio.lowlevel.RunVar[dict[str, _Name]] = trio.lowlevel.RunVar("trioserve_names")


async def look_up(address: TcpAddress) -> list[Place]:
    """The places that ``address`` stands for, families in turn (RFC 8305, section 4).

    A number is answered at once, without a thread. Of a name, an answer of the
    last 10 seconds is used again; an older one if there is no new one within a
    second, or at all.

    Raises:
      socket.gaierror: the name has no address, and never had.

    Cancelled, it leaves the look-up to the others who wait for it.
    """
    if (place := numeric_place(address)) is not None:
        await trio.lowlevel.checkpoint()
        return [place]
    try:
        names = _names.get()
    except LookupError:
        names = {}
        _names.set(names)
    name = names.get(address.host)
    if name is None:
        if len(names) >= _MOST_NAMES:
            del names[next(iter(names))]
        name = names[address.host] = _Name(address.host)
    return [
        place._replace(sockaddr=(place.sockaddr[0], address.port, *place.sockaddr[2:]))
        for place in await name.places()
    ]


@functools.lru_cache(_MOST_NAMES)
def numeric_place(address: TcpAddress) -> Place | None:
    """The place of an address whose host is a number; None if it is a name."""
    if not is_numeric(address.host):
        return None
    (found,) = socket.getaddrinfo(
        address.host,
        address.port,
        type=socket.SOCK_STREAM,
        flags=socket.AI_NUMERICHOST,
    )
    return _place(found)


class _Name:
    """A name, what is known of it, and the look-up that runs, if any."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._answer: list[Place] = []
        self._answered_at = -math.inf
        self._failure = socket.gaierror()
        self._asked_at = -math.inf
        self._done: trio.Event | None = None

    async def places(self) -> list[Place]:
        now = trio.current_time()
        if now - self._answered_at < _FRESH:
            await trio.lowlevel.checkpoint()
            return self._answer
        if self._done is None:
            self._done, self._asked_at = trio.Event(), now
            trio.lowlevel.spawn_system_task(
                self._ask, self._done, name=f"trioserve look-up of {self._host}"
            )
        patience = self._asked_at + _RENEWAL if self._answer else math.inf
        with trio.move_on_at(patience):
            await self._done.wait()
        if not self._answer:
            # A new one for each: a raised exception collects tracebacks.
            raise socket.gaierror(*self._failure.args)
        return self._answer

    async def _ask(self, done: trio.Event) -> None:
        try:
            found = await trio.socket.getaddrinfo(
                self._host, 0, type=socket.SOCK_STREAM
            )
        except socket.gaierror as error:
            self._failure = error
        except UnicodeError:
            # What the codec "idna" says of a label that is empty or too long.
            self._failure = socket.gaierror(socket.EAI_NONAME, "not a valid host name")
        except Exception as error:
            # A system task that raises ends the program.
            self._failure = socket.gaierror(socket.EAI_FAIL, str(error))
        else:
            if found:
                self._answer = _in_turn([_place(info) for info in found])
                self._answered_at = trio.current_time()
            else:
                self._failure = socket.gaierror(socket.EAI_NONAME, "no address")
        finally:
            # Its traceback has frames of Trio's that have the error: a cycle.
            self._failure.with_traceback(None)
            self._done = None
            done.set()


def _place(info: Any) -> Place:
    family, kind, protocol, _, sockaddr = info
    return Place(family, kind, protocol, sockaddr)


def _in_turn(places: list[Place]) -> list[Place]:
    """The families in turn, beginning with that of the first place."""
    first = [place for place in places if place.family == places[0].family]
    others = [place for place in places if place.family != places[0].family]
    mixed: list[Place] = []
    while first or others:
        mixed += first[:1] + others[:1]
        first, others = first[1:], others[1:]
    return mixed
