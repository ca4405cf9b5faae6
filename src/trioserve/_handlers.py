"""Handlers: the nursery that connections run in, ours or one that we were lent.

It starts tasks, keeps their nursery open, and checks what a handler is. What handlers
do is not known here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import trio

from ._describe import escape

logger = logging.getLogger("trioserve")


class Spawns(Protocol):
    """What is needed of a nursery."""

    def start_soon(
        self,
        async_fn: Callable[..., Awaitable[object]],
        *args: Any,
        name: object = None,
    ) -> None: ...


class Handlers:
    """Where the tasks of connections run.

    Args:
      lent: a nursery of the caller's; None for one of our own.
      serving: cancelled when the server is.

    Attributes:
      is_lent: whether what is cancelled there is cancelled from outside.
    """

    def __init__(self, lent: Spawns | None, serving: trio.CancelScope) -> None:
        self.is_lent = lent is not None
        self._lent = lent
        self._serving = serving
        self._nursery: trio.Nursery | None = None
        self._holds = trio.Event()
        self._starts_no_more = trio.Event()

    def start(
        self, task: Callable[..., Awaitable[object]], *args: Any, name: str
    ) -> None:
        """Start the task of a connection.

        Raises:
          RuntimeError: the nursery that we were lent is closed.
        """
        where = self._nursery if self._lent is None else self._lent
        assert where is not None
        where.start_soon(task, *args, name=name)

    def start_ours(
        self, task: Callable[..., Awaitable[object]], *args: Any, name: str
    ) -> None:
        """Start a task that runs no code of the caller's."""
        assert self._nursery is not None
        self._nursery.start_soon(task, *args, name=name)

    def are_cancelled(self) -> bool:
        """Whether a nursery that we were lent is cancelled, asked by a task in it."""
        return self.is_lent and trio.current_effective_deadline() == -math.inf

    async def wait_open(self) -> None:
        """Wait until tasks can be started."""
        await self._holds.wait()

    def start_no_more(self) -> None:
        """No task is started any more: :meth:`hold` ends when the last one has."""
        self._starts_no_more.set()

    async def hold(self) -> None:
        """Hold the nursery open, as long as tasks may be started.

        A handler can cancel the nursery of its own task. Serving does not happen in
        this one, and what runs in it is shielded, so that ends no other connection.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._holds.set()
            try:
                await self._starts_no_more.wait()
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
                    await self._starts_no_more.wait()
                raise
            # A handler may have started a task in it that has no end.
            nursery.cancel_scope.cancel(reason="the server is over")


def awaitable(handler: object, returned: object) -> Awaitable[object]:
    """What a handler has returned, to be awaited.

    Raises:
      TypeError: it is not async.
    """
    if not isinstance(returned, Awaitable):
        name = getattr(handler, "__qualname__", None) or repr(handler)
        raise TypeError(
            f"the handler {name} must be an async function: it returned {returned!r},"
            " which can't be awaited"
        )
    return returned


def check_not_async(returned: object) -> None:
    """See that ``on_start`` is not async.

    Raises:
      TypeError: it is.
    """
    if isinstance(returned, Coroutine):
        returned.close()
        raise TypeError("on_start must be a function that is not async")
