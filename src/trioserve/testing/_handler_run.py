"""A handler run: one call of the handler, for one connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from ._traffic import Traffic
from .network import Event
from .runs import ObservedCoroutine, innermost_line, line_of_error


class HandlerRun:
    """One call of the handler, in the task that creates this object.

    Args:
      coroutine: the handler's coroutine, to be awaited.
      memory: bytes that it may receive while its own send waits.
      in_round: the round of its connection.
      plain: returns the plain bytes that its connection has received and sent so far;
        None if these are the bytes of the events.

    Attributes:
      coroutine, memory, in_round: as above.
      task: the task in which it runs.
      scope: cancels it.
      traffic: the bytes and the state of its connection.
      is_over: whether it has ended.
      returned: whether it has returned.
      raised: the exception that it raised, or None.
      unanswered: bytes received since it last sent something.
    """

    def __init__(
        self,
        coroutine: ObservedCoroutine,
        memory: int,
        in_round: int,
        plain: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self.in_round = in_round
        self.coroutine = coroutine
        self.task = trio.lowlevel.current_task()
        self.scope = trio.CancelScope()
        self.traffic = Traffic()
        self.is_over = False
        self.returned = False
        self.raised: BaseException | None = None
        self.unanswered = 0
        self.memory = memory
        self._taken_while_blocked = 0
        self._plain = plain
        self._counted = 0, 0

    @property
    def line(self) -> str:
        """The line at which it waits."""
        return innermost_line(self.coroutine.stack())

    @property
    def end(self) -> str:
        """How it has ended, in words."""
        if self.raised is not None:
            return f"raises {self.raised!r}"
        return "returns" if self.returned else "ends, cancelled"

    @property
    def end_line(self) -> str:
        """The line that raised; "" if it did not raise."""
        return "" if self.raised is None else line_of_error(self.raised)

    def count(self, event: Event) -> bool:
        """Count an event of its stream.

        Returns whether it has received more than it may while its send waits.
        """
        if self._plain is None:
            size = len(event.data or b"")
            received = size if event.kind == "receive" else 0
            sent = size if event.kind == "send" else 0
        else:
            received, sent = self._moved()
        if self.traffic.is_blocked:
            self._taken_while_blocked += received
        self.traffic.count(event)
        self._note_plain(received, sent)
        if not self.traffic.is_blocked:
            self._taken_while_blocked = 0
        takes_too_much = self._taken_while_blocked > self.memory
        if takes_too_much:
            self._taken_while_blocked = 0
        return takes_too_much

    def note_end(self) -> None:
        """Note that it has ended."""
        if self._plain is not None:
            self._note_plain(*self._moved())
        self.is_over = True

    def _moved(self) -> tuple[int, int]:
        """The plain bytes that were received and sent since the last call."""
        assert self._plain is not None
        before, self._counted = self._counted, self._plain()
        return self._counted[0] - before[0], self._counted[1] - before[1]

    def _note_plain(self, received: int, sent: int) -> None:
        # A send begins with an event, so what was received before it is counted then.
        if sent:
            self.unanswered = 0
        if not self.is_over:
            self.unanswered += received


def single_errors(error: BaseException | None) -> Sequence[BaseException]:
    """The errors in a group and in its inner groups; or the error itself."""
    if error is None:
        return ()
    if isinstance(error, BaseExceptionGroup):
        return [each for inner in error.exceptions for each in single_errors(inner)]
    return (error,)
