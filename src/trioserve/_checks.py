"""Checks: ask each target of a proxy regularly whether it serves.

A check connects as a connection of a client does, with the same look-up, PROXY header
and TLS handshake, then sends and expects bytes. This module does not know when a target
is down or up again: :mod:`._endpoint` counts the results.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Callable
from random import Random
from typing import Final, NoReturn

import trio

from ._connect import is_local_shortage
from ._describe import describe, escape
from ._dial import Dialer, Dialing
from ._endpoint import Endpoint
from ._endpoints import Endpoints
from ._errors import PROGRAM_ENDS, log_error
from ._origins import Origin
from ._targets import Health
from ._task_set import TaskSet
from ._transport import Transport

logger = logging.getLogger("trioserve")

#: A check gets at most this many seconds, even if there is more time between two.
_LONGEST: Final = 5.0

#: The time between two checks is longer or shorter by up to this part of it.
_JITTER: Final = 0.1

#: A check that ends this many seconds too late says nothing: this process was stopped.
_LATE: Final = 1.0

#: A wrong answer is shown with this many characters.
_SHOWN: Final = 64


class _WrongAnswerError(Exception):
    """A target did not send what is expected; the text is safe in a log."""


class Checks:
    """Checks the targets of one proxy.

    Args:
      dialing: what the proxy's own dialers share.
      health: what to send and to expect, how often, and what follows.
      origin: the proxy itself, as of the sockets that it dials.
      header: a PROXY header that declares no client; empty for none.
      random: spreads the checks over time.
    """

    def __init__(
        self,
        dialing: Dialing,
        health: Health,
        origin: Origin = (),
        header: bytes = b"",
        random: Random | None = None,
    ) -> None:
        assert health.check is not None
        self._every = health.check
        self._seconds = min(health.check, _LONGEST)
        self._health = health
        self._endpoints = dialing.endpoints
        self._on_target = dialing.on_target
        self._origin = origin
        self._header = header
        self._random = random or Random()
        self._outgoing = dialing.outgoing

    async def run(self) -> None:
        """Check until cancelled, those that come later included."""
        endpoints = self._endpoints
        endpoints.set_checked(True)
        try:
            async with trio.open_nursery() as nursery:
                tasks = TaskSet(nursery, self._repeat, _task_name)
                endpoints.on_replaced = lambda: tasks.follow(endpoints.all)
                tasks.follow(endpoints.all)
                await trio.sleep_forever()
        finally:
            endpoints.on_replaced = lambda: None
            endpoints.set_checked(False)

    async def _repeat(self, endpoint: Endpoint) -> NoReturn:
        # It is dialed by itself, so that a check counts in no other way.
        alone = Endpoints([endpoint.target], health=Health(pause=0))
        dialing, among = Dialing(alone, self._outgoing), self._endpoints.all
        # Spread over the time between two checks.
        part = (among.index(endpoint) + self._random.random()) / len(among)
        await trio.sleep(part * self._every)
        while True:
            began = trio.current_time()
            await self._check(endpoint, dialing)
            luck = 1 + _JITTER * (2 * self._random.random() - 1)
            await trio.sleep_until(began + luck * self._every)

    async def _check(self, endpoint: Endpoint, dialing: Dialing) -> None:
        began, error = trio.current_time(), None
        try:
            await self._ask(dialing)
        except _WrongAnswerError as wrong:
            error = str(wrong)
        except (OSError, trio.BrokenResourceError) as failed:
            if isinstance(failed, OSError) and is_local_shortage(failed):
                return
            error = describe(failed)
        now = trio.current_time()
        if now > began + self._seconds + _LATE:
            return
        if error is None:
            is_changed = self._endpoints.check_passed(endpoint, now)
        else:
            is_changed = self._endpoints.check_failed(endpoint, f"check: {error}", now)
        if is_changed and self._on_target is not None:
            _call(self._on_target, endpoint.state(now))

    async def _ask(self, dialing: Dialing) -> None:
        """One check.

        Raises:
          _WrongAnswerError: the target did not send what is expected.
          OSError, trio.BrokenResourceError: it could not be asked.
        """
        send, expect = self._health.check_send, self._health.check_expect
        dialer = Dialer(dialing, self._origin, preface=self._header)
        transport: Transport | None = None
        try:
            with trio.move_on_after(self._seconds) as scope:
                transport = await dialer.dial(math.inf)
                await _talk(transport, send, expect)
        finally:
            if transport is not None:
                transport.close()
            dialer.release()
        if scope.cancelled_caught:
            text = f"no answer within {self._seconds:.4g} s"
            raise TimeoutError(errno.ETIMEDOUT, text)


async def _talk(transport: Transport, send: bytes, expect: bytes) -> None:
    if send:
        await transport.send(send)
    answer = b""
    while len(answer) < len(expect):
        more = await transport.receive(len(expect) + _SHOWN - len(answer))
        answer += more
        if not more or not answer.startswith(expect[: len(answer)]):
            raise _WrongAnswerError(
                f"it sent {_shown(answer)} instead of {_shown(expect)}"
            )


def _task_name(endpoint: Endpoint) -> str:
    return f"trioserve check of {endpoint.text}"


def _shown(data: bytes) -> str:
    return f"'{escape(data.decode('latin-1'), _SHOWN)}'"


def _call(callback: Callable[..., object], *args: object) -> None:
    """Call a callback; no connection would have its error, so that it is logged."""
    try:
        callback(*args)
    except PROGRAM_ENDS:
        raise
    except BaseException as error:  # noqa: ASYNC103 - isolation
        said = describe(error)
        log_error(logger, logging.ERROR, "on_target raised %s", said, error=error)
