"""Dispatch: give each accepted connection a task, or begin its relay without one.

A connection has a task while something of it has to wait: a layer, its handler, a relay
of streams that are not sockets, a close that lingers. A TLS handshake before a relay,
and a relay between two sockets, go on without one: the engine moves their bytes, and
the timers watch them. When one of these is over, the rest is done at the end of the
engine's turn, or in a task if that has to wait. This module does not know how a
connection is accepted, or what is reported.
"""

from __future__ import annotations

import abc
import contextvars
import math
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ._attachments import RelayHandle
from ._connection import (
    Connection,
    adopt_transport,
    call_with_connection,
    lifecycle_of,
    set_current_connection,
)
from ._engine import Engine
from ._errors import PROGRAM_ENDS, is_a, only, without
from ._handlers import Handlers, awaitable, check_not_async
from ._handshake import Layer, begin_at_engine, end_late, passed_at_engine
from ._ledger import Ledger
from ._lifecycle import Lifecycle
from ._reason import Phase, Reason


class PromptHandler(abc.ABC):
    """A handler that can often hand over a relay without waiting, so without a task."""

    @abc.abstractmethod
    def begin(self, conn: Connection) -> RelayHandle | None:
        """Hand over a relay; None if that has to wait, and :meth:`go_on` has to do it.

        It is called in the task that accepts, or by the engine after a handshake.
        """

    @abc.abstractmethod
    async def go_on(self, conn: Connection) -> RelayHandle:
        """Do the rest, after :meth:`begin` has returned None."""


class Dispatcher:
    """Runs the handlers of one server, and isolates their errors.

    Args:
      handlers: the nursery of the connections' tasks.
      serving: cancelled when a handler ends the program.
      passes: runs the layers of a connection; False if it must not be served.
      finalize: closes a connection and sends its report; idempotent.
    """

    def __init__(
        self,
        handlers: Handlers,
        ledger: Ledger,
        serving: trio.CancelScope,
        passes: Callable[[Lifecycle, tuple[Layer, ...]], Awaitable[bool]],
        finalize: Callable[[int], None],
    ) -> None:
        self._handlers = handlers
        self._ledger = ledger
        self._serving = serving
        self._passes = passes
        self._finalize = finalize
        self._handler: Callable[[Any], Awaitable[object]] | None = None
        self._on_start: Callable[[Connection], object] | None = None
        self._prompt: PromptHandler | None = None
        self._engine: Engine | None = None

    def use(
        self,
        handler: Callable[[Any], Awaitable[object]],
        on_start: Callable[[Connection], object] | None,
    ) -> None:
        """Serve by ``handler``; call ``on_start`` before it."""
        self._handler = handler
        self._on_start = on_start
        self._engine = Engine.of_this_run()
        # In the caller's nursery each connection has a task, which that nursery can
        # cancel. on_start is called in a task, like the handler.
        if isinstance(handler, PromptHandler) and not (
            on_start or self._handlers.is_lent
        ):
            self._prompt = handler

    @trio.lowlevel.enable_ki_protection  # an interrupt must not come in the middle
    def start(self, connection: Connection, layers: tuple[Layer, ...]) -> None:
        """Serve a connection that has a token.

        Raises:
          RuntimeError: the caller's nursery is closed.
        """
        life = lifecycle_of(connection)
        if life.timeouts.lifetime < math.inf:
            life.watch()  # the only timer that runs before it waits
        if self._prompt is None:
            self._start_task(connection, self._handle, layers)
        elif not layers:
            self._begin(connection)
        else:
            self._shake_hands(connection, layers)

    def _shake_hands(self, connection: Connection, layers: tuple[Layer, ...]) -> None:
        """Pass the layers at the engine, or in a task."""
        # As a task would have it: the engine's own knows nothing of the caller.
        context = contextvars.copy_context()
        context.run(set_current_connection, connection)

        def go_on(result: bool | BaseException | None) -> None:
            context.run(self._after_handshake, connection, layers, result)

        def over(result: bool | BaseException | None) -> None:
            # Not now: the caller is in the middle of an event. Else it is in the middle
            # of a close, and all that follows is to start a task; or it is a timer, in
            # which a connection may end.
            assert self._engine is not None
            if not self._engine.after_turn(go_on, result):
                go_on(result)

        work: tuple[Any, ...] = (self._handle, layers)
        try:
            if begin_at_engine(lifecycle_of(connection), layers, context, over):
                return
        except BaseException as error:  # noqa: ASYNC103 - raised in the task
            work = self._raise, error
        self._start_task(connection, *work)

    def _after_handshake(
        self,
        connection: Connection,
        layers: tuple[Layer, ...],
        result: bool | BaseException | None,
    ) -> None:
        life = lifecycle_of(connection)
        if result is None and end_late(life):
            # If a thousand clients are late at once, their tasks would hold up others.
            self._finalize(life.id)
            return
        work: tuple[Any, ...] = (self._handle, layers)
        try:
            if passed_at_engine(life, layers, result):
                adopt_transport(connection)
                self._begin(connection)
                return
        except BaseException as error:  # noqa: ASYNC103 - raised in the task
            work = self._raise, error
        finally:
            del result  # its traceback refers to this frame: a cycle
        self._start_task(connection, *work)

    def _begin(self, connection: Connection) -> None:
        """Let the handler begin without a task, and start one if that has to wait."""
        assert self._prompt is not None
        life = lifecycle_of(connection)
        life.phase = Phase.DATA
        work: tuple[Any, ...]
        try:
            relay = call_with_connection(connection, self._prompt.begin)
            if relay is None:
                work = self._call, self._prompt.go_on
            else:
                life.attach_relay()
                if life.leave_to_engine(self):
                    return
                work = (self._move,)
        except BaseException as error:  # noqa: ASYNC103 - raised in the task
            work = self._raise, error
        self._start_task(connection, *work)

    def relay_over(self, number: int) -> None:
        # Not now: the caller is in the middle of a close, a timer or an event.
        assert self._engine is not None
        if not self._engine.after_turn(self._finish_relay, number):
            self._start_task(self._ledger.open[number], self._finish)

    def _finish_relay(self, number: int) -> None:
        connection = self._ledger.open[number]
        life = lifecycle_of(connection)
        try:
            is_over = life.finish_now()
        except BaseException as error:  # noqa: ASYNC103 - raised in the task
            self._start_task(connection, self._raise, error)
            return  # noqa: ASYNC104
        if is_over:
            life.handler_over(None, connection, cancelled=False)
            self._finalize(number)
        else:
            self._start_task(connection, self._finish)

    # -- what a task does; False: the connection goes on without it

    async def _handle(self, connection: Connection, layers: tuple[Layer, ...]) -> bool:
        life = lifecycle_of(connection)
        if layers and not await self._passes(life, layers):
            return True
        adopt_transport(connection)
        life.phase = Phase.DATA
        if self._on_start is not None:
            check_not_async(self._on_start(connection))
        assert self._handler is not None
        return await self._call(connection, self._handler)

    async def _call(
        self, connection: Connection, handler: Callable[[Any], Awaitable[object]]
    ) -> bool:
        life = lifecycle_of(connection)
        # Without a name for the coroutine: it would be kept for as long as a relay
        # that is handed over.
        returned = await awaitable(handler, handler(connection))
        if not isinstance(returned, RelayHandle):
            life.result = returned
        if life.handed_over is None:
            return await self._finish(connection)
        await life.handed_over.prepare()
        life.attach_relay()
        if not self._handlers.is_lent and life.leave_to_engine(self):
            return False
        return await self._move(connection)

    async def _move(self, connection: Connection) -> bool:
        life = lifecycle_of(connection)
        assert life.handed_over is not None
        await life.handed_over.move()
        return await self._finish(connection)

    async def _finish(self, connection: Connection) -> bool:
        await lifecycle_of(connection).finish()
        return True

    async def _raise(self, _: Connection, error: BaseException) -> bool:
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame: a cycle

    # -- the task

    def _start_task(
        self, connection: Connection, work: Callable[..., Awaitable[bool]], *args: Any
    ) -> None:
        life = lifecycle_of(connection)
        # Shielded in the server's own nursery: a handler can cancel the nursery that
        # it runs in, which all connections share. See Handlers.hold().
        scope = life.begin_task(shield=not self._handlers.is_lent)
        name = f"conn-{life.id} {life.peer}"
        try:
            self._handlers.start(self._run, connection, scope, work, *args, name=name)
        except BaseException:
            # The caller's nursery is closed.
            life.close_as(Reason.CANCELLED)
            self._finalize(life.id)
            raise

    async def _run(
        self,
        connection: Connection,
        scope: trio.CancelScope,
        work: Callable[..., Awaitable[bool]],
        *args: Any,
    ) -> None:
        """A task of a connection: do ``work``, and isolate its errors."""
        life, lent = lifecycle_of(connection), self._handlers.is_lent
        life.task = trio.lowlevel.current_task()
        set_current_connection(connection)
        is_over = True
        raised: BaseException | None = None
        rest: BaseException | None = None
        try:
            with scope:
                try:
                    is_over = await work(connection, *args)
                except BaseException as error:  # noqa: ASYNC103 - isolation
                    raised = error
                    # Trio reads __class__ and __cause__ of what a task raises, and
                    # an error's class may be written to lie. So raise only errors
                    # of known types.
                    kinds: tuple[type[BaseException], ...] = (
                        *PROGRAM_ENDS,
                        trio.Cancelled,
                    )
                    if is_a(error, kinds):
                        raise
                    if (rest := only(error, kinds)) is not None:
                        raise rest from None  # noqa: ASYNC104 - the rest is isolated
            if is_over:
                if raised is not None and scope.cancelled_caught:
                    raised = without(raised, trio.Cancelled)
                cancelled = raised is not None and self._handlers.are_cancelled()
                life.handler_over(raised, connection, cancelled=cancelled)
        except BaseException as passed:  # noqa: ASYNC103 - isolation
            # A Cancelled without a cancelled scope above is a handler's bug. If it
            # escaped, it would cancel the whole nursery silently.
            cancelled = self._handlers.are_cancelled()
            life.handler_over(raised, connection, cancelled=cancelled)
            if not lent and only(passed, PROGRAM_ENDS) is not None:
                self._serving.cancel(reason="a handler ends the program")
            kinds = (*PROGRAM_ENDS, trio.Cancelled) if cancelled else PROGRAM_ENDS
            if is_a(passed, kinds):
                raise
            if (rest := only(passed, kinds)) is not None:
                raise rest from None  # noqa: ASYNC104 - the rest is isolated
        finally:
            raised = rest = None  # their tracebacks refer to this frame: a cycle
            if is_over:
                self._finalize(life.id)
                await life.transport.wait_closed()  # noqa: ASYNC102 - shielded
