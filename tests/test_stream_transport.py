"""A transport over any Trio stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from links import CLOSES, Close, Whole, foreign, memory, numbers, over
from support import PanicError, receive_exactly
from trioserve._errors import leaves
from trioserve._stream_transport import StreamTransport


async def test_a_stream_that_cannot_send_eof_has_no_half_close() -> None:
    """Law 7: a relay has to know that before."""
    with memory() as link:
        transport = StreamTransport(Whole(link.ours))
        assert not transport.can_half_close
        with pytest.raises(TypeError, match="Whole can't send EOF"):
            await transport.send_eof()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, numbers])
async def test_bytes_are_counted_and_not_items(
    kind: Callable[[bytes], bytes | bytearray | memoryview],
) -> None:
    """Law 5: if the buffer's length is not in bytes."""
    with over(foreign) as (transport, link):
        await transport.send(kind(bytes(80)))
        assert transport.sent == 80
        assert await receive_exactly(link.peer, 80) == bytes(80)


class _Raises(Whole):
    """A stream whose close raises."""

    def __init__(self, below: Any, error: BaseException) -> None:
        super().__init__(below)
        self._error = error

    async def aclose(self) -> None:
        raise self._error


NO_EXCEPTIONS = [
    PanicError("panicked"),
    GeneratorExit(),
    BaseExceptionGroup("both", [PanicError(), ValueError()]),
]


@pytest.mark.parametrize("error", NO_EXCEPTIONS, ids=repr)
@pytest.mark.parametrize("close", CLOSES)
async def test_an_exception_in_a_streams_close_ends_nothing(
    close: Close, error: BaseException
) -> None:
    """Law 1: even if it is a BaseException."""
    with memory() as link:
        transport = StreamTransport(_Raises(link.ours, error))
        close(transport)
        await transport.wait_closed()
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_keyboard_interrupt_in_a_streams_close_ends_the_program(
    kind: type[BaseException], grouped: bool
) -> None:
    """Also in a group with other errors."""
    error = kind("the end")
    raised = BaseExceptionGroup("both", [PanicError(), error]) if grouped else error

    async def main() -> None:
        with memory() as link:
            transport = StreamTransport(_Raises(link.ours, raised))
            transport.close()
            await trio.sleep_forever()

    with pytest.raises(trio.TrioInternalError) as failed:
        trio.run(main)
    (leaf,) = leaves(failed.value.__cause__ or failed.value)
    assert leaf is error


class _Hangs(Whole):
    """A stream whose close never ends, or raises when it is cancelled."""

    async def aclose(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError("and now this")


@pytest.mark.parametrize(("close", "seconds"), [(CLOSES[0], 0), (CLOSES[1], 2)])
async def test_a_foreign_stream_that_does_not_close_is_not_waited_for(
    close: Close, seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Law 1: and it can't end the program."""
    with memory() as link:
        transport = StreamTransport(_Hangs(link.ours))
        close(transport)
        await transport.wait_closed()
        assert trio.current_time() == seconds


async def test_a_transport_wraps_only_itself_and_its_stream() -> None:
    """Not the peer's stream."""
    with over(foreign) as (transport, link):
        assert transport.wraps(transport)
        assert not transport.wraps(link.peer)


async def test_the_abilities_are_those_of_the_stream() -> None:
    """It has the stream's options, if there are any, and no socket to poll."""
    with foreign() as link, memory() as without:
        transport = StreamTransport(link.peer)
        assert transport.options() is link.peer
        assert StreamTransport(without.ours).options() is None
        assert transport.trio_socket() is None
        assert transport.pollable() is None
        assert not transport.can_reset
