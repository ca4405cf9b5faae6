"""System calls that fail on demand: of one socket, of the engine's epoll, of all.

Only the call fails, not the connection: the kernel reports no event, which is the
worst case for a task that waits for the kernel.
"""

from __future__ import annotations

import errno
import math
import os
import select
from typing import Any, Final, Self

import trio

#: The system call behind each of Python's methods.
_CALLS: Final = {
    "accept": "accept4",
    "connect_ex": "connect",
    "getpeername": "getpeername",
    "getsockname": "getsockname",
    "getsockopt": "getsockopt",
    "listen": "listen",
    "modify": "epoll_ctl(MOD)",
    "recv": "recv",
    "recv_into": "recv",
    "register": "epoll_ctl(ADD)",
    "send": "send",
    "setblocking": "ioctl",
    "setsockopt": "setsockopt",
    "shutdown": "shutdown",
    "unregister": "epoll_ctl(DEL)",
}


class Fault:
    """A system call that fails a number of times, or until :meth:`stop`.

    Attributes:
      call: the name of its manual page.
      hits: how many calls have failed.
    """

    def __init__(self, call: str, name: str, times: float = math.inf) -> None:
        self.call = call
        self.hits = 0
        self._left = times
        self._code: int = getattr(errno, name)

    def check(self, call: str) -> None:
        if call == self.call and self._left > 0:
            self._left -= 1
            self.hits += 1
            raise OSError(self._code, os.strerror(self._code))

    def stop(self) -> None:
        self._left = 0


class Failing:
    """A socket or an epoll with failing calls."""

    def __init__(self, below: Any, fault: Fault | FailingEpolls) -> None:
        self._below = below
        self._fault = fault

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._below.close()

    def __getattr__(self, name: str) -> Any:
        if name in _CALLS:
            return self._calls(name)
        return getattr(self._below, name)

    def _calls(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self._fault.check(_CALLS[name])
            return getattr(self._below, name)(*args)

        return call


class FailingEpolls:
    """Stands in for ``select.epoll``; its epolls fail while there are ``faults``."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.made = 0
        self._make = select.epoll

    def __call__(self) -> Any:
        self.check("epoll_create1")
        self.made += 1
        return Failing(self._make(), self)

    def check(self, call: str) -> None:
        for fault in self.faults:
            fault.check(call)


class Waits:
    """Stands in for Trio's waits; those for ``fd``, or for all, fail with ``fault``."""

    def __init__(self, wait: Any) -> None:
        self.fault: Fault | None = None
        self.fd: int | None = None
        self._wait = wait

    async def __call__(self, waited: Any) -> None:
        fd = waited if isinstance(waited, int) else waited.fileno()
        if self.fault is not None and self.fd in (None, fd):
            self.fault.check("epoll_ctl(ADD)")
        await self._wait(waited)


class Steps(trio.abc.Instrument):
    """Counts the steps of all tasks of a run."""

    def __init__(self) -> None:
        self.count = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1
