"""Signals: handled from start to end, whatever the parent has blocked or ignored.

Signals in, their numbers out, in a Trio task. Nothing here knows what each one does.
"""

from __future__ import annotations

import collections
import contextlib
import signal
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Signals that stop the command.
STOPS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})

#: Signals that request something else, and never end the process.
REQUESTS: Final = frozenset({signal.SIGHUP, signal.SIGUSR1})

#: Unused signals whose default action would end the process while it serves.
#: (Python already ignores SIGPIPE and SIGXFSZ.)
IGNORED: Final = frozenset(
    number
    for name in (
        *("SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR"),
        *("SIGSTKFLT", "SIGPIPE", "SIGXFSZ"),
    )
    if (number := getattr(signal, name, None))
) | frozenset(range(getattr(signal, "SIGRTMIN", 1), getattr(signal, "SIGRTMAX", 0) + 1))


def end_when_stopped() -> None:
    """From now on, a stop signal ends the process, with exit code 128 + its number.

    Without a handler it would do nothing in process 1 of a container, for which the
    kernel ignores default actions, or if the parent had ignored or blocked it.
    Threads inherit the signal mask: call this in the main thread, before starting
    others.
    """
    for number in STOPS:
        signal.signal(number, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


class Signals:
    """The signals of a command that serves: ``async for number in signals``.

    Until :meth:`run`, stop signals end the process as in `end_when_stopped`; from
    then on they are queued until a task takes them. The others are queued from the
    beginning; SIGHUP stays ignored if it was, as under ``nohup``.
    """

    def __init__(self) -> None:
        self._arrived: collections.deque[int] = collections.deque()
        self._token: trio.lowlevel.TrioToken | None = None
        self._queues_stops = False
        self._over = False
        self._receiver = trio.lowlevel.ParkingLot()
        self._attempt: trio.CancelScope | None = None
        self._handled = set(STOPS | REQUESTS)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            self._handled.remove(signal.SIGHUP)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        for number in self._handled:
            signal.signal(number, self._arrive)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS | REQUESTS)

    def run(self, main: Callable[[*Ts], Awaitable[int]], *args: *Ts) -> int:
        """Run ``main`` with `trio.run`; return the exit code that it returns.

        Afterwards all signals are ignored: the process is about to end, and they
        must not change its exit code.
        """
        self._queues_stops = True
        try:
            return trio.run(main, *args)
        finally:
            self._over = True
            # When the interpreter shuts down, it resets handlers in Python to the
            # default action, which kills the process.
            for number in self._handled:
                signal.signal(number, signal.SIG_IGN)

    def __aiter__(self) -> Signals:
        return self

    async def __anext__(self) -> int:
        """Wait for the next signal, and take it. A cancelled wait takes none."""
        self._token = trio.lowlevel.current_trio_token()
        await trio.lowlevel.checkpoint()
        while not self._arrived:
            await self._receiver.park()
        return self._arrived.popleft()

    async def unless_stopped(
        self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts
    ) -> T:
        """Call ``function``, and cancel it when a stop signal comes.

        The signals stay in the queue.

        Raises:
          SystemExit: it was cancelled; the code is 128 + the signal's number.
        """
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._attempt:
            self._deliver()
            return await function(*args)
        raise SystemExit(128 + next(n for n in self._arrived if n in STOPS))

    def _arrive(self, number: int, frame: object) -> None:
        # Runs between any two bytecodes of the main thread, even inside Trio.
        if self._over:
            return
        if number in STOPS and not self._queues_stops:
            _end(number, frame)
        self._arrived.append(number)
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._deliver, idempotent=True)

    def _deliver(self) -> None:
        self._receiver.unpark_all()
        if self._attempt is not None and not STOPS.isdisjoint(self._arrived):
            self._attempt.cancel(reason="a signal")
