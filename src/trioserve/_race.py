"""Race: the addresses of one name side by side, as in RFC 8305 ("Happy Eyeballs").

It decides which address is tried when, and which one wins. How a socket connects, and
how tries are accounted for, it does not know.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import trio

from ._connect import Connecting, begin_connect
from ._errors import is_shortage
from ._names import AddrInfo
from ._origins import Origin
from ._report import GIVEN_UP, LOST_RACE, NO_ANSWER
from ._socket_transport import SocketTransport

#: Seconds that an address has before the next one of its name is tried too.
#: RFC 8305, section 5, "Connection Attempt Delay".
_HEAD_START: Final = 0.25

#: Addresses that are tried at the same time; each holds a socket.
_MOST_AT_ONCE: Final = 6

#: Tries one address. It is given what has begun already, if anything, and what says,
#: when the try is cancelled, in the words of a report why it was.
TryAddress: TypeAlias = Callable[
    [AddrInfo, Connecting | None, Callable[[], str]], Awaitable[SocketTransport]
]


async def race(
    infos: Sequence[AddrInfo], origin: Origin, try_address: TryAddress
) -> SocketTransport:
    """Try one address after the other, each with a head start; the first one wins.

    When as many are tried as may be at the same time, the oldest try is cancelled in
    favour of the next address. A lack of descriptors for a further address is no
    failure as long as others are tried.

    Raises:
      OSError: all addresses have failed; the error of the last.
    """
    won: list[SocketTransport] = []
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
            # Out of descriptors, a further address waits until another try is over.
            while under_way:
                try:
                    connecting = begin_connect(info, origin, trio.current_time())
                    break
                except OSError as error:
                    if not is_shortage(error):
                        break  # the try below fails by it, too, and notes it
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
                if len(under_way) == _MOST_AT_ONCE:
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
        del last  # its traceback has this frame: a cycle
