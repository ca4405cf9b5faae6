"""By server name: a handler that passes each connection on to the handler of a name.

TLS is not terminated: this module reads the ClientHello, and gives it back. How its
bytes are read is in :mod:`.wire`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import trio

from ._arguments import check_callable, check_type
from ._connection import Connection, lifecycle_of
from ._handlers import Companion, awaitable
from ._lifecycle import Lifecycle
from ._reason import Phase, Reason
from ._serve import Handler
from ._server_names import ServerNames
from ._transport import FAILURES, Transport
from .wire._client_hello import (
    MISSING_EXTENSION,
    UNRECOGNIZED_NAME,
    ClientHello,
    ClientHelloError,
    ClientHelloReader,
    build_alert,
)


def by_server_name(
    handlers: Mapping[str, Handler], *, default: Handler | None = None
) -> Callable[[Connection], Awaitable[object]]:
    """Make a handler that passes a TLS connection on by the name that the client wants.

    It reads the ClientHello, in which the client says what server it asks for (SNI; RFC
    6066, section 3), and gives it back: the handler of the name gets all bytes, as the
    client has sent them. With ``proxy(target)`` as that handler, TLS is between the
    client and the target, which has the certificate::

        trioserve.by_server_name(
            {
                "git.example.org": trioserve.proxy("10.0.0.1:443"),
                "*.example.org": trioserve.proxy("10.0.0.2:443"),
            }
        )

    ``conn.server_name`` and the report have the name. The ClientHello has 16 KiB and,
    from accept, ``Timeouts.handshake`` seconds; then the connection is reset, with the
    reason ``handshake``. If the client asks for another name, or for none, and there is
    no default, it gets an alert (``unrecognized_name``, ``missing_extension``), and the
    reason is ``no_route``. If it does not begin with a ClientHello, or with one that is
    not valid, the reason is ``bad_client_hello``: it gets an alert, or is reset if it
    does not speak TLS. A client that closes before its first byte is just closed.

    Args:
      handlers: by server name: a host name, in any case, or a wildcard. ``*.a.example``
        is for names with one label in place of the asterisk, as in certificates, but
        for those that are there themselves.
      default: the handler for all other names, and for clients that ask for no name.
        Default None: they are refused.

    Raises:
      TypeError, ValueError: an argument is invalid; the message names it.

    If the handler is cancelled, it behaves as the handler of the name does.
    """
    check_type("handlers", handlers, Mapping, "a dict of handlers by server name")
    for name, handler in handlers.items():
        check_type("handlers", name, str, "a dict of handlers by server name")
        what = "an async function of one argument"
        check_callable(f"handlers[{name!r}]", handler, what)
    if default is not None:
        check_callable("default", default, "an async function of one argument, or None")
    try:
        names = ServerNames(handlers)
    except ValueError as error:
        raise ValueError(f"handlers: {error}") from None
    return _ByServerName(names, handlers.values(), default)


class _ByServerName(Companion):
    """The handler; see :func:`by_server_name`."""

    def __init__(
        self, names: ServerNames[Any], all_handlers: Iterable[Any], default: Any
    ) -> None:
        self._names = names
        self._default = default
        every = (*all_handlers, default)
        self._companions = {each for each in every if isinstance(each, Companion)}

    async def run_beside(self) -> None:
        async with trio.open_nursery() as nursery:
            for each in self._companions:
                nursery.start_soon(each.run_beside)

    async def __call__(self, conn: Connection) -> object:
        check_type("conn", conn, Connection, "a Connection")
        life = lifecycle_of(conn)
        life.phase = Phase.HANDSHAKE
        try:
            hello = await _receive_in_time(life)
        except ClientHelloError as error:
            await _refuse(life, Reason.BAD_CLIENT_HELLO, error.alert, str(error))
            return None
        if hello is None:
            return None
        life.server_name = name = hello.server_name
        handler = self._default if name is None else self._handler_of(name)
        if handler is not None:
            life.phase = Phase.DATA
            return await awaitable(handler, handler(conn))
        if name is None:
            text = "it asked for no server name"
            await _refuse(life, Reason.NO_ROUTE, MISSING_EXTENSION, text)
        else:
            await _refuse(life, Reason.NO_ROUTE, UNRECOGNIZED_NAME)
        return None

    def _handler_of(self, name: str) -> Any:
        found = self._names.find(name)
        return self._default if found is None else found


async def _receive_in_time(life: Lifecycle) -> ClientHello | None:
    """Receive the ClientHello; None if there is none, without a mistake in it."""
    deadline = life.handshake_ends_at
    with life.handshakes.under_way(life), trio.CancelScope(deadline=deadline):
        return await _receive_hello(life.transport)
    limit = life.timeouts.handshake
    life.close_as(Reason.HANDSHAKE, waited_for="client", limit=limit)
    life.transport.abort()
    return None


async def _receive_hello(transport: Transport) -> ClientHello | None:
    """Receive a ClientHello, and give back all bytes; None at EOF before the first."""
    reader = ClientHelloReader()
    try:
        while data := await transport.receive(reader.room):
            if (hello := reader.feed(data)) is not None:
                return hello
    finally:
        transport.unread(bytes(reader.data))
    if reader.data:
        raise ClientHelloError("it ended within its ClientHello", None)
    return None


async def _refuse(
    life: Lifecycle, reason: Reason, alert: int | None, error: str | None = None
) -> None:
    """Close after an alert, or by RST if the client does not speak TLS."""
    life.close_as(reason, error=error)
    if alert is None:
        life.transport.abort()
        return
    deadline = life.handshake_ends_at
    with trio.CancelScope(deadline=deadline), contextlib.suppress(*FAILURES):
        await life.transport.send(build_alert(alert))
    await life.close_gracefully()
