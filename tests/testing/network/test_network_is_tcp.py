"""The network in memory does what Linux does: both run the same script.

``PYTHONPATH=tests python tests/testing/network/test_network_is_tcp.py 10000`` tries
ten thousand scripts.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Generator
from typing import Literal, TypeAlias

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from links import sockets, some_bytes
from support import reset, virtual_clock
from trioserve.testing import MemoryStream, stream_pair

Stream: TypeAlias = trio.SocketStream | MemoryStream
Pair: TypeAlias = contextlib.AbstractContextManager[tuple[Stream, Stream]]

#: Which end, which call, and the number of bytes of a send or a receive.
Step: TypeAlias = tuple[
    Literal[0, 1],
    Literal["send", "receive", "await", "writable", "send_eof", "close", "reset"],
    int,
]
#: The results of a step, and of receives that waited for it: end, call, result.
Chapter: TypeAlias = list[tuple[int, str, object]]
Story: TypeAlias = list[Chapter]

ENDS = st.sampled_from([0, 1])
SIZES = st.one_of(st.integers(1, 9), st.integers(1, 5_000))
STEPS = st.one_of(
    st.tuples(
        ENDS,
        st.sampled_from(["send", "receive", "await", "writable", "send_eof"]),
        SIZES,
    ),
    st.tuples(ENDS, st.sampled_from(["close", "reset"]), st.just(0)),
)
SCRIPTS = st.lists(STEPS, min_size=1, max_size=12)


@contextlib.contextmanager
def real_pair() -> Generator[tuple[Stream, Stream]]:
    with sockets() as link:
        yield link.ours, link.peer


@contextlib.contextmanager
def memory_pair() -> Generator[tuple[Stream, Stream]]:
    yield stream_pair(buffer=1_000_000)


class End:
    """One end that makes steps. It sends a sequence of bytes that does not repeat."""

    def __init__(self, number: int, stream: Stream) -> None:
        self.number = number
        self.stream = stream
        self.chapter: Chapter = []
        self.sent = 0
        self.waits = False
        self.has_told_error = False

    async def step(self, action: str, count: int) -> object:
        """Make the call, or find that it waits; note and return the result."""
        with trio.move_on_after(1) as scope:
            return await self._note(action, count)
        assert scope.cancelled_caught
        self.chapter.append((self.number, action, "waits"))
        return "waits"

    async def receive(self, count: int) -> None:
        """A receive that may wait during later steps."""
        self.waits = True
        await self._note("receive", count)
        self.waits = False

    async def _note(self, action: str, count: int) -> object:
        result: object
        try:
            result = await self._do(action, count)
        except trio.ClosedResourceError:
            result = "closed"
        except trio.BrokenResourceError as error:
            assert isinstance(error.__cause__, OSError)
            result = self._forget(action, error.__cause__.errno)
        self.chapter.append((self.number, action, result))
        return result

    def _forget(self, action: str, code: int | None) -> object:
        """The result that a kernel gives: an error once, then EOF or EPIPE."""
        if isinstance(self.stream, MemoryStream) and code != errno.ENOTCONN:
            if self.has_told_error:
                return b"" if action == "receive" else errno.EPIPE
            self.has_told_error = True
        return code

    async def _do(self, action: str, count: int) -> object:
        match action:
            case "send":
                data = some_bytes(self.sent, count)
                await self.stream.send_all(data)
                self.sent += count
            case "receive":
                return bytes(await self.stream.receive_some(count))
            case "writable":
                await self.stream.wait_send_all_might_not_block()
            case "send_eof":
                await self.stream.send_eof()
            case "close":
                await self.stream.aclose()
            case _:
                if isinstance(self.stream, MemoryStream):
                    self.stream.reset()
                elif self.stream.socket.fileno() >= 0:
                    reset(self.stream)
        return None


async def settle(patience: int) -> None:
    """Let loopback deliver: each pass is idle for a (real) millisecond."""
    for _ in range(patience):
        await trio.sleep(1)


async def play(script: list[Step], pair: Callable[[], Pair], patience: int) -> Story:
    """The results at both ends; each step ends before the next begins."""
    story: Story = []
    with pair() as streams:
        ends = [End(number, stream) for number, stream in enumerate(streams)]
        async with trio.open_nursery() as nursery:
            for number, action, count in script:
                end = ends[number]
                if action == "await":
                    if not end.waits:
                        nursery.start_soon(end.receive, count)
                elif action != "receive" or not end.waits:
                    await end.step(action, count)
                await settle(patience)
                # Trio decides in which order it wakes two tasks.
                story += [sorted(end.chapter, key=repr) for end in ends]
                for end in ends:
                    end.chapter.clear()
            nursery.cancel_scope.cancel()
    return story


def in_memory(script: list[Step]) -> Story:
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(play, script, memory_pair, 1, clock=clock)


def on_loopback(script: list[Step], patience: int = 1) -> Story:
    return trio.run(play, script, real_pair, patience, clock=virtual_clock())


def compare(script: list[Step]) -> None:
    story = in_memory(script)
    if story != on_loopback(script):
        # Loopback may be late when the machine is busy, but not every time.
        assert story in [on_loopback(script, patience) for patience in (5, 20)]


@given(script=SCRIPTS)
@settings(deadline=None, max_examples=200)
def test_a_script_has_the_same_results_in_memory_as_on_loopback(
    script: list[Step],
) -> None:
    """Bytes, EOF, errors and waits: each result of each end."""
    compare(script)


# -- more than the buffers hold


async def bulk(
    pair: Callable[[], Pair], read_first: int, who: Literal[0, 1], way: str
) -> list[object]:
    """End 0 sends more than the buffers hold, then one end closes: the results.

    The buffers differ in size; the bytes that arrive must be a prefix of the data.
    """
    with pair() as streams:
        sender, reader = ends = End(0, streams[0]), End(1, streams[1])
        data = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.step, "send", 20_000_000)
            while len(data) < read_first:
                data += await streams[1].receive_some(read_first - len(data))
            if who == 1:
                await trio.testing.wait_all_tasks_blocked(0.001)
                await reader.step(way, 0)
        if who == 0:
            await sender.step(way, 0)
        tail = await reader.step("receive", 1_000_000)
        while isinstance(tail, bytes) and tail:
            data += tail
            tail = await reader.step("receive", 1_000_000)
        assert data == some_bytes(0, len(data))
        return [sender.chapter, tail, await ends[0].step("send", 1)]


def narrow_memory_pair() -> Pair:
    return contextlib.nullcontext(stream_pair())


@given(
    read_first=st.integers(0, 50_000),
    who=ENDS,
    way=st.sampled_from(["close", "reset", "send_eof"]),
)
@settings(deadline=None, max_examples=20)
def test_a_transfer_is_cut_off_in_memory_as_on_loopback(
    read_first: int, who: Literal[0, 1], way: str
) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    memory = trio.run(bulk, narrow_memory_pair, read_first, who, way, clock=clock)
    args = read_first, who, way
    assert memory == trio.run(bulk, real_pair, *args, clock=virtual_clock())


if __name__ == "__main__":
    many = settings(deadline=None, max_examples=int(sys.argv[1]), database=None)
    given(script=SCRIPTS)(many(compare))()
    print(f"{sys.argv[1]} scripts had the same results in memory as on loopback")
