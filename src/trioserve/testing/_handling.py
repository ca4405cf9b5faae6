"""Handling: runs the handler for each connection, and sees how it ends."""

from __future__ import annotations

from collections.abc import Coroutine

import trio

from trioserve import Connection

from ._case import Handler, Setting
from ._handler_run import HandlerRun, single_errors
from ._judge import CANCEL_REASON, MAY_RAISE
from ._state import RunState
from .runs import HangError, ObservedCoroutine


class Handling:
    """Runs the handler for each connection of a run.

    Args:
      handler: the handler.
      state: the state of the run.
      setting: what is the same in all runs.

    Attributes:
      misuse: the error of a handler that is not an async function of one argument, or
        None.
    """

    def __init__(self, handler: Handler, state: RunState, setting: Setting) -> None:
        self.misuse: TypeError | None = None
        self._handler = handler
        self._state = state
        self._setting = setting

    async def handle(self, stream: Connection) -> object:
        """Run the handler on a connection, in the task that calls this."""
        try:
            coroutine = self._handler(stream)
            if not isinstance(coroutine, Coroutine):
                raise TypeError(
                    f"a handler must be an async function, not {self._handler!r}"
                )
        except TypeError as error:
            self.misuse = error
            self._state.stop()
            return None
        state = self._state
        handler = HandlerRun(
            ObservedCoroutine(coroutine),
            self._setting.memory,
            state.round,
            (lambda: (stream.bytes_received, stream.bytes_sent))
            if stream.tls
            else None,
        )
        if stream.tls is not None:
            handler.traffic.begin(stream.tls.bytes_received, stream.tls.bytes_sent)
        state.handlers[stream.id] = handler
        state.watchdog.family[handler.task] = None
        if state.cancels_handlers:
            handler.scope.cancel(reason=CANCEL_REASON)
        try:
            with handler.scope:
                result = await handler.coroutine
                handler.returned = True
                return result
            stream.abort()
            return None
        except BaseException as error:  # noqa: ASYNC103
            handler.raised = error
            if self._ends_the_program(error) or self._hung(error):
                return None  # noqa: ASYNC104 - the test goes on
            raise
        finally:
            handler.note_end()
            state.watchdog.family.pop(handler.task, None)
            state.record(f"handler {stream.id}", handler.end, handler.end_line)
            expected = (trio.Cancelled, *MAY_RAISE, *self._setting.raises)
            if not all(isinstance(e, expected) for e in single_errors(handler.raised)):
                state.is_told = True

    def _ends_the_program(self, error: BaseException) -> bool:
        """Whether the error would also end the run and the test; that breaks a law."""
        ends = [each for each in single_errors(error) if isinstance(each, SystemExit)]
        if not ends or issubclass(SystemExit, self._setting.raises):
            return False
        how = f"it raised {ends[0]!r}, which ends the program"
        self._state.violated("errors", how)
        self._state.stop()
        return True

    def _hung(self, error: BaseException) -> bool:
        """Whether the alarm has ended the handler; that breaks a law."""
        hangs = [each for each in single_errors(error) if isinstance(each, HangError)]
        if hangs:
            self._state.violated("ends", str(hangs[0]), error)
            self._state.stop()
        return bool(hangs)
