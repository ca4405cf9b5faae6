"""Idle: a wait for the client's next message, which a drain may cancel.

This module knows whether a byte has arrived. It does not know when a server drains.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

import trio

from ._transport import Transport


class Idle:
    """One such wait, a context manager for one use; see ``Connection.idle``.

    Args:
      begins, ends: called on entry, inside the cancel scope, and on exit.
      holds_some: whether the handler has a part of the message already.
    """

    __slots__ = ("_begins", "_ends", "_holds_some", "_received_before", "_scope",
                 "_transport")  # fmt: skip

    def __init__(
        self,
        transport: Transport,
        holds_some: bool,
        begins: Callable[[Idle], None],
        ends: Callable[[], None],
    ) -> None:
        self._scope = trio.CancelScope()
        self._transport = transport
        self._holds_some = holds_some
        self._received_before = 0
        self._begins = begins
        self._ends = ends

    @property
    def cancelled_caught(self) -> bool:
        """Whether a drain has cancelled the block, as in :class:`trio.CancelScope`."""
        return self._scope.cancelled_caught

    def __enter__(self) -> Self:
        self._received_before = self._transport.received
        self._scope.__enter__()
        try:
            self._begins(self)
        except BaseException as error:
            self._scope.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._ends()
        return self._scope.__exit__(exc_type, exc_value, traceback)

    def cancel(self) -> None:
        """Cancel the block, because the server drains."""
        self._scope.cancel(reason="draining")

    def may_end(self) -> bool:
        """Whether neither a byte of the message nor EOF has arrived."""
        transport = self._transport
        return not (
            self._holds_some
            or transport.eof
            or transport.received != self._received_before
            or transport.readable()
        )
