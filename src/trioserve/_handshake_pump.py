"""Handshake pump: the TLS handshake of a client at the engine, without a task.

It moves the handshake on while the client's bytes come and ours find room. Whatever
else may happen (an EOF, a reset, bytes that are not valid, no room, a close by other
code) it leaves to a task, which goes on where the pump has stopped. This module does
not know connections, or deadlines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import Context

import trio

from ._engine import Engine
from ._tls_transport import TlsTransport
from ._transport import PollableTransport

Over = Callable[[bool | BaseException | None], object]


class HandshakePump:
    """Shakes hands at the engine; see :class:`Polled`.

    Args:
      carrier: the transport of the client's socket; new.
      begin: puts TLS over ``carrier``; called when the client's first bytes or its EOF
        come. So a client that says nothing costs no session of OpenSSL.
      context: in which it is called, and in which OpenSSL may call functions of the
        caller's ``ssl.SSLContext``.
      over: called once, in the middle of an event, a close or a timer: with True if the
        handshake is over, False if a task has to go on with it, None if its time is
        over, or an unexpected error.
    """

    __slots__ = (
        "_begin", "_carrier", "_context", "_engine", "_over", "_transport", "fd",
        "mask",
    )  # fmt: skip

    def __init__(
        self,
        carrier: PollableTransport,
        begin: Callable[[], TlsTransport],
        context: Context,
        over: Over,
    ) -> None:
        self._carrier = carrier
        self._begin = begin
        self._transport: TlsTransport | None = None
        self._context = context
        self._over: Over | None = over
        self._engine: Engine
        self.fd: int = carrier.sock.fileno()
        self.mask = 0

    @property
    def relay(self) -> HandshakePump:
        """What the engine tells of failures."""
        return self

    def start(self, engine: Engine) -> None:
        """Let the engine wait for the client's bytes.

        Raises:
          OSError: out of descriptors, or of epoll watches.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: the transport was closed.
        """
        carrier = self._carrier
        carrier.check_receivable()
        engine.acquire()
        try:
            engine.add(self)
        except BaseException:
            engine.release()
            raise
        carrier.start_receiving()  # so that others are told that it is busy
        self._engine = engine
        carrier.notify_on_close(self)

    def time_is_over(self) -> None:
        self._end(None)

    def _give_up(self) -> None:
        """Leave the rest to a task."""
        self._end(False)

    def _end(self, result: bool | BaseException | None) -> None:
        """Stop, and tell why. Idempotent."""
        over, self._over = self._over, None
        if over is not None:
            self._carrier.notify_on_close(None)
            self._carrier.receiving_since = math.inf
            self._engine.remove(self)
            self._engine.release()
            over(result)

    # -- callbacks of the engine and the transport

    def on_readable(self, engine: Engine, now: float) -> None:
        if self._transport is None:
            try:
                self._transport = self._context.run(self._begin)
            except BaseException as error:  # noqa: ASYNC103 - raised in the task
                self._end(error)
                return  # noqa: ASYNC104
        is_over = self._context.run(self._transport.handshake_now, now)
        if is_over is not False:
            self._end(bool(is_over))

    def on_event(self, engine: Engine, events: int, now: float) -> None:
        self.on_readable(engine, now)  # recv(2) tells whether it is EOF or an error

    def on_lost(self, error: OSError) -> None:
        self._give_up()

    def on_failure(self, error: BaseException) -> None:
        # If it is the epoll that fails, a task can wait for the socket.
        is_bug = not isinstance(error, OSError | trio.ClosedResourceError)
        self._end(error if is_bug else False)

    def on_closed(self) -> None:
        self._give_up()
