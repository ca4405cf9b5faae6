"""Names: look up names, one look-up per name at a time, and cache the last good answer.

All waiters for a name share one look-up, so a name server that does not answer
blocks one thread per name. A look-up goes on when its waiters are cancelled: its
answer serves the next ones. This module does not know what a name is looked up for.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import socket
from typing import Any, Final, NamedTuple

import trio

from ._address import TcpAddress, is_numeric, sockaddr_text, unmapped, zone_name
from ._describe import describe
from ._errors import copy_of, must_propagate

#: Seconds for which an answer is used again. getaddrinfo(3) tells no TTL; HAProxy holds
#: a valid answer for as long ("hold valid").
_FRESH: Final = 10.0

#: After this many seconds, a connection uses the answer, and starts a look-up that
#: renews it. So no connection waits for a name that is used often.
_AHEAD: Final = 8.0

#: A look-up that renews an answer gets this many seconds, then the old one is used, and
#: at once until there is a new one (RFC 8767, "Serving Stale Data"). This many seconds
#: are at least between two of them.
_RENEWAL: Final = 1.0

#: The size of the cache in names; the oldest entries are dropped first.
_MAX_NAMES: Final = 1024


class AddrInfo(NamedTuple):
    """One result of getaddrinfo(3): the arguments for a socket and its connect."""

    family: int
    kind: int
    protocol: int
    sockaddr: Any

    @property
    def text(self) -> str:
        """The address as reports show it."""
        sockaddr = self.sockaddr
        # Cached, because few addresses are dialed many times. With a zone it is not:
        # an interface may be renamed.
        if len(sockaddr) == 4 and sockaddr[3]:
            return sockaddr_text(sockaddr)
        return _cached_text(sockaddr)


_cached_text = functools.lru_cache(1024)(sockaddr_text)


_names: trio.lowlevel.RunVar[dict[str, _Name]] = trio.lowlevel.RunVar("trioserve_names")


async def look_up(address: TcpAddress) -> list[AddrInfo]:
    """Look up all addresses of ``address``, families in turn (RFC 8305, section 4).

    A number is answered at once, without a thread. For a name, an answer of the
    last 10 seconds is used again, and renewed meanwhile after 8; an older one if a new
    look-up fails or takes more than a second. From then on nobody waits, until a
    look-up has an answer again.

    Raises:
      OSError: there is no answer, and no older one: :class:`socket.gaierror`; or this
        machine lacks a resource for a look-up, like a descriptor.

    If it is cancelled, the look-up goes on for others.
    """
    if (info := numeric_addrinfo(address)) is not None:
        await trio.lowlevel.checkpoint()
        return [info]
    try:
        names = _names.get()
    except LookupError:
        names = {}
        _names.set(names)
    name = names.get(address.host)
    if name is None:
        if len(names) >= _MAX_NAMES:
            del names[next(iter(names))]
        name = names[address.host] = _Name(address.host)
    return [_at_port(found, address.port) for found in await name.results()]


async def resolve(address: TcpAddress, *, passive: bool = False) -> list[AddrInfo]:
    """Ask the resolver now; return its results in order, without duplicates.

    Args:
      passive: for listening: an empty host means all interfaces.

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
    except OSError:
        # If the C library could not open the hosts file, or a socket, it says "no such
        # name"; with libnss-mdns it says EBUSY. In that case this raises EMFILE or
        # ENFILE.
        socket.socket(socket.AF_UNIX).close()
        raise
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        # Python's error for EAGAIN of pthread_create(3).
        raise OSError(errno.EAGAIN, "no thread was free for a look-up") from error
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    return list(dict.fromkeys(_addrinfo(info) for info in found))


def numeric_addrinfo(address: TcpAddress) -> AddrInfo | None:
    """The result for an address whose host is a number; None if it is a name."""
    if "%" in address.host:
        # Not cached: an interface that is made anew gets another number.
        return _numeric_addrinfo(address)
    return _cached_numeric_addrinfo(address)


def _numeric_addrinfo(address: TcpAddress) -> AddrInfo | None:
    if not is_numeric(address.host):
        return None
    (found,) = socket.getaddrinfo(
        address.host_bytes,
        address.port,
        type=socket.SOCK_STREAM,
        flags=socket.AI_NUMERICHOST,
    )
    return _addrinfo(found)


_cached_numeric_addrinfo = functools.lru_cache(_MAX_NAMES)(_numeric_addrinfo)


class _Found(NamedTuple):
    """A result of a look-up; for a link-local address, with the interface's name."""

    info: AddrInfo
    zone: str | None


def _found(info: AddrInfo) -> _Found:
    scope = info.sockaddr[3] if info.family == socket.AF_INET6 else 0
    return _Found(info, zone_name(scope) if scope else None)


def _at_port(found: _Found, port: int) -> AddrInfo:
    info, zone = found
    host, _, *rest = info.sockaddr
    if zone is not None:
        # An interface that is made anew has the same name and another number.
        with contextlib.suppress(OSError):
            rest[1] = socket.if_nametoindex(zone)
    return info._replace(sockaddr=(host, port, *rest))


class _Name:
    """A name, its last answer, and the look-up that runs, if one does."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._answer: list[_Found] = []
        self._answered_at = -math.inf
        self._failure: OSError = socket.gaierror()
        self._asked_at = -math.inf
        # Whether the answer could not be renewed in time.
        self._is_stale = False
        self._done: trio.Event | None = None

    async def results(self) -> list[_Found]:
        now = trio.current_time()
        age = now - self._answered_at
        is_too_soon = self._is_stale and now - self._asked_at < _RENEWAL
        if age >= _AHEAD and self._done is None and not is_too_soon:
            self._done, self._asked_at = trio.Event(), now
            trio.lowlevel.spawn_system_task(
                self._ask, self._done, name=f"trioserve look-up of {self._host}"
            )
        if self._is_stale or age < _FRESH:
            await trio.lowlevel.checkpoint()
            return self._answer
        assert self._done is not None
        patience = self._asked_at + _RENEWAL if self._answer else math.inf
        with trio.CancelScope(deadline=patience) as scope:
            await self._done.wait()
        if self._answer and scope.cancelled_caught:
            self._is_stale = True
        if not self._answer:
            # A copy for each waiter: a raised exception collects tracebacks.
            raise copy_of(self._failure)
        return self._answer

    async def _ask(self, done: trio.Event) -> None:
        try:
            results = await resolve(TcpAddress(self._host, 0))
        except OSError as error:
            self._failure = copy_of(error)
            self._is_stale = bool(self._answer)
            # Without the traceback, whose frames refer to the error: a cycle.
            BaseException.with_traceback(error, None)
        except BaseException as error:  # noqa: ASYNC103 - isolation
            # An exception in a system task would end the program.
            if must_propagate(error) is not None:
                raise
            self._failure = socket.gaierror(socket.EAI_FAIL, describe(error))
            self._is_stale = bool(self._answer)
        else:
            self._answer = [_found(info) for info in _interleaved(results)]
            self._answered_at = trio.current_time()
            self._is_stale = False
        finally:
            self._done = None
            done.set()


def _addrinfo(info: Any) -> AddrInfo:
    family, kind, protocol, _, sockaddr = info
    host = unmapped(sockaddr[0])
    if host != sockaddr[0]:
        return AddrInfo(socket.AF_INET, kind, protocol, (host, sockaddr[1]))
    return AddrInfo(family, kind, protocol, sockaddr)


def _interleaved(results: list[AddrInfo]) -> list[AddrInfo]:
    """Interleave the families, beginning with that of the first result."""
    first = [info for info in results if info.family == results[0].family]
    others = [info for info in results if info.family != results[0].family]
    mixed: list[AddrInfo] = []
    while first or others:
        mixed += first[:1] + others[:1]
        first, others = first[1:], others[1:]
    return mixed
