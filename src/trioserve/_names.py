"""Names: to addresses; one look-up at a time for each, the last good answer kept.

Whoever waits for a name shares the look-up that runs already, so a name server
that does not answer costs one thread for a name, however many ask for it. The
look-up goes on when they have given up: its answer is for those who come next.
Nothing here knows who asks, or what for.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import socket
from typing import Any, Final, NamedTuple

import trio

from ._address import TcpAddress, is_numeric, unmapped, zone_name
from ._describe import describe
from ._errors import again, passing

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
      OSError: the name has no address, and never had: :class:`socket.gaierror`;
        or this machine lacks what a look-up needs, like a descriptor.

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
    return [_at_port(found, address.port) for found in await name.places()]


async def resolve(address: TcpAddress, *, passive: bool = False) -> list[Place]:
    """Ask the resolver now: each place once, in the order in which it has them.

    Args:
      passive: to listen there; no host is then all interfaces.

    Raises:
      OSError: as :func:`look_up`.
    """
    flags = socket.AI_PASSIVE if passive else 0
    if is_numeric(address.host):
        flags |= socket.AI_NUMERICHOST  # a look-up needs a thread
    try:
        found = await trio.socket.getaddrinfo(
            address.host_bytes or None,
            address.port,
            type=socket.SOCK_STREAM,
            flags=flags,
        )
    except socket.gaierror:
        # The C library says that there is no such name when it could not open the
        # hosts file, or a socket to ask with: then this says EMFILE or ENFILE.
        socket.socket(socket.AF_UNIX).close()
        raise
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        # What threading says of EAGAIN. pthread_create(3)
        raise OSError(errno.EAGAIN, "no thread was free for a look-up") from error
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    return list(dict.fromkeys(_place(info) for info in found))


def numeric_place(address: TcpAddress) -> Place | None:
    """The place of an address whose host is a number; None if it is a name."""
    if "%" in address.host:
        # The interface may have been made anew since, with another number.
        return _numeric_place(address)
    return _kept_numeric_place(address)


def _numeric_place(address: TcpAddress) -> Place | None:
    if not is_numeric(address.host):
        return None
    (found,) = socket.getaddrinfo(
        address.host_bytes,
        address.port,
        type=socket.SOCK_STREAM,
        flags=socket.AI_NUMERICHOST,
    )
    return _place(found)


_kept_numeric_place = functools.lru_cache(_MOST_NAMES)(_numeric_place)


class _Found(NamedTuple):
    """What a look-up has found; of a link-local address, the interface's name."""

    place: Place
    zone: str | None


def _found(place: Place) -> _Found:
    scope = place.sockaddr[3] if place.family == socket.AF_INET6 else 0
    return _Found(place, zone_name(scope) if scope else None)


def _at_port(found: _Found, port: int) -> Place:
    place, zone = found
    host, _, *rest = place.sockaddr
    if zone is not None:
        # The name stays when the interface is made anew, its number does not.
        with contextlib.suppress(OSError):
            rest[1] = socket.if_nametoindex(zone)
    return place._replace(sockaddr=(host, port, *rest))


class _Name:
    """A name, what is known of it, and the look-up that runs, if any."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._answer: list[_Found] = []
        self._answered_at = -math.inf
        self._failure: OSError = socket.gaierror()
        self._asked_at = -math.inf
        self._done: trio.Event | None = None

    async def places(self) -> list[_Found]:
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
            raise again(self._failure)
        return self._answer

    async def _ask(self, done: trio.Event) -> None:
        try:
            places = await resolve(TcpAddress(self._host, 0))
        except OSError as error:
            self._failure = again(error)
            # Its traceback has frames of Trio's that have the error: a cycle.
            BaseException.with_traceback(error, None)
        except BaseException as error:  # noqa: ASYNC103 - isolation
            # A system task that raises ends the program.
            if passing(error) is not None:
                raise
            self._failure = socket.gaierror(socket.EAI_FAIL, describe(error))
        else:
            self._answer = [_found(place) for place in _in_turn(places)]
            self._answered_at = trio.current_time()
        finally:
            self._done = None
            done.set()


def _place(info: Any) -> Place:
    family, kind, protocol, _, sockaddr = info
    host = unmapped(sockaddr[0])
    if host != sockaddr[0]:
        return Place(socket.AF_INET, kind, protocol, (host, sockaddr[1]))
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
