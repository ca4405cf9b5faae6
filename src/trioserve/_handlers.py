"""Handlers: the nursery of the connections' tasks, the server's own or the caller's.

This module starts tasks, keeps their nursery open, and checks that a handler is async.
"""

from __future__ import annotations

import abc
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import trio

from ._describe import escape

logger = logging.getLogger("trioserve")


class Spawns(Protocol):
    """A nursery, or another object with ``start_soon``."""

    def start_soon(
        self,
        async_fn: Callable[..., Awaitable[object]],
        *args: Any,
        name: object = None,
    ) -> None: ...


class Companion(abc.ABC):
    """A handler that has work of its own while a server serves it."""

    @abc.abstractmethod
    async def run_beside(self) -> None:
        """Do the work, until it is cancelled at the end of serving."""


class Handlers:
    """The nursery of the connections' tasks.

    Args:
      lent: the caller's nursery; None for a nursery of the server's own.
      serving: cancelled when the server is.

    Attributes:
      is_lent: whether it is the caller's nursery.
    """

    def __init__(self, lent: Spawns | None, serving: trio.CancelScope) -> None:
        self.is_lent = lent is not None
        self._lent = lent
        self._serving = serving
        self._nursery: trio.Nursery | None = None
        self._holds = trio.Event()
        self._no_more_starts = trio.Event()

    def start(
        self, task: Callable[..., Awaitable[object]], *args: Any, name: str
    ) -> None:
        """Start the task of a connection.

        Raises:
          RuntimeError: the caller's nursery is closed.
        """
        where = self._nursery if self._lent is None else self._lent
        assert where is not None
        where.start_soon(task, *args, name=name)

    def start_ours(
        self, task: Callable[..., Awaitable[object]], *args: Any, name: str
    ) -> None:
        """Start a task of the server in its own nursery."""
        assert self._nursery is not None
        self._nursery.start_soon(task, *args, name=name)

    def are_cancelled(self) -> bool:
        """Whether the caller's nursery is cancelled; call it in a task there."""
        return self.is_lent and trio.current_effective_deadline() == -math.inf

    async def wait_open(self) -> None:
        """Wait until tasks can be started."""
        await self._holds.wait()

    def stop_starting(self) -> None:
        """Let :meth:`hold` end after the last task: no more will be started."""
        self._no_more_starts.set()

    async def hold(self) -> None:
        """Hold the server's own nursery open until :meth:`stop_starting`.

        A handler can cancel the nursery of its own task, ``task.parent_nursery``. The
        accept loops run in another nursery, and the tasks in this one are shielded, so
        that ends no other connection.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._holds.set()
            try:
                await self._no_more_starts.wait()
            except trio.Cancelled as cancelled:
                scope = nursery.cancel_scope
                if scope.cancel_called and not self._serving.cancel_called:
                    logger.error(
                        "%s has cancelled the nursery that handlers run in; that ends"
                        " no connection, and serving goes on until it is drained, as"
                        " by server.start_draining()",
                        escape(cancelled.source_task or "a task"),
                    )
                with trio.CancelScope(shield=True):
                    await self._no_more_starts.wait()
                raise
            # A handler may have started a task in it that never ends.
            nursery.cancel_scope.cancel(reason="the server has ended")


def awaitable(handler: object, returned: object) -> Awaitable[object]:
    """Check that the return value of ``handler(conn)`` can be awaited; return it.

    Raises:
      TypeError: it can't, so the handler is not async.
    """
    if not isinstance(returned, Awaitable):
        name = getattr(handler, "__qualname__", None) or repr(handler)
        raise TypeError(
            f"the handler {name} must be an async function: it returned {returned!r},"
            " which can't be awaited"
        )
    return returned


def check_not_async(returned: object) -> None:
    """Check, by its return value, that ``on_start`` is not async.

    Raises:
      TypeError: it is.
    """
    if isinstance(returned, Coroutine):
        returned.close()
        raise TypeError("on_start must be a function that is not async")
