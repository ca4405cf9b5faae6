"""Race: dial the addresses of one name side by side (RFC 8305, "Happy Eyeballs").

This module decides when each address is tried, and which one wins. It does not know how
a socket connects, or how attempts are recorded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import trio

from ._connect import Connecting
from ._errors import is_shortage
from ._names import AddrInfo
from ._report import GIVEN_UP, LOST_RACE, NO_ANSWER
from ._transport import Transport

#: Seconds before the next address of a name is tried as well.
#: RFC 8305, section 5, "Connection Attempt Delay".
_HEAD_START: Final = 0.25

#: Addresses that are tried at the same time; each holds a socket.
_MAX_AT_ONCE: Final = 6

#: Starts to connect to an address, at a time. None: trying it will do that.
Begin: TypeAlias = Callable[[AddrInfo, float], Connecting | None]

#: Tries one address. Its arguments are the address, the attempt if that has started
#: already, and a function that gives the report's error if the attempt is cancelled.
TryAddress: TypeAlias = Callable[
    [AddrInfo, Connecting | None, Callable[[], str]], Awaitable[Transport]
]


async def race(
    infos: Sequence[AddrInfo],
    begin: Begin,
    try_address: TryAddress,
) -> Transport:
    """Start an attempt per address, each with a head start; the first answer wins.

    If too many run at the same time, the oldest attempt is cancelled for the next
    address. If descriptors run out, the next address waits until another attempt has
    ended.

    Raises:
      OSError: all addresses have failed; it is the error of the last.
    """
    won: list[Transport] = []
    failed: list[OSError] = []
    under_way: dict[trio.CancelScope, None] = {}
    one_is_over = trio.lowlevel.ParkingLot()

    async def run(info: AddrInfo, scope: trio.CancelScope, over: trio.Event) -> None:
        def why_cancelled() -> str:
            if won:
                return LOST_RACE
            return NO_ANSWER if scope.cancel_called else GIVEN_UP

        with scope:
            connecting: Connecting | None = None
            # Out of descriptors: wait until another attempt has ended.
            while under_way:
                try:
                    connecting = begin(info, trio.current_time())
                    break
                except OSError as error:
                    if not is_shortage(error):
                        break  # the attempt below meets the same error and records it
                await one_is_over.park()
            under_way[scope] = None
            try:
                won.append(await try_address(info, connecting, why_cancelled))
            except OSError as error:
                failed.append(error)
            else:
                nursery.cancel_scope.cancel(reason=LOST_RACE)
        under_way.pop(scope, None)
        over.set()
        one_is_over.unpark_all()

    try:
        async with trio.open_nursery() as nursery:
            for info in infos:
                if len(under_way) == _MAX_AT_ONCE:
                    oldest = next(iter(under_way))
                    del under_way[oldest]
                    oldest.cancel(reason=NO_ANSWER)
                scope, over = trio.CancelScope(), trio.Event()
                nursery.start_soon(run, info, scope, over)
                with trio.move_on_after(_HEAD_START):
                    await over.wait()
    except BaseException:
        for transport in won:
            transport.close()
        raise
    # Two may have connected in the same pass of the scheduler.
    for transport in won[1:]:
        transport.close()
    if won:
        return won[0]
    last = failed.pop()
    failed.clear()
    try:
        raise last
    finally:
        del last  # its traceback refers to this frame: a cycle
