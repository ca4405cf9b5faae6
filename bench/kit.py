"""The command ``python -m bench.kit``: what a run of the test kit costs.

The yardstick is the same conversation in a bare Trio run: both ends as tasks over
Trio's streams in memory, without a server, faults or laws. All kinds of runs take
turns, so that other load on the machine affects them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio
import trio.testing

import trioserve
from trioserve.testing import Peer, check_handler, run_conversation

_ASKS: Final = (b"one\n", b"two\n")
_PEER: Final = Peer().send(b"one\n").expect(b"ONE\n").send(b"two\n").expect(b"TWO\n")


async def shout(stream: Any) -> None:
    """The handler: it answers each line in capitals."""
    buffer = b""
    async for data in stream:
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            await stream.send_all(line.upper() + b"\n")


def _bare() -> None:
    async def main() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shout, theirs)
            await _client(ours)
            await ours.send_eof()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def _client(stream: trio.abc.Stream) -> None:
    for line in _ASKS:
        await stream.send_all(line)
        assert await stream.receive_some() == line.upper()


def _run(**options: Any) -> Callable[[], object]:
    return lambda: run_conversation(shout, _PEER, **options)


_RUNS: Final[Mapping[str, Callable[[], object]]] = {
    "a bare Trio run": _bare,
    "a run": _run(),
    "in another order": _run(order="priorities", seed=7),
    "bytes one by one, both ways": _run(faults="slice=1..1"),
    "a network that holds two bytes": _run(buffer=2),
    "a cancel after a step": _run(disturbance="cancel", at_step=20),
    "three clients": _run(copies=3),
    "three rounds": _run(rounds=3),
    "a client that is code": lambda: run_conversation(shout, client=_client),
    "a proxy and its target": lambda: run_conversation(
        trioserve.proxy("app:80"), _PEER, servers={"app:80": shout}
    ),
    "over TLS": _run(tls=True),
}


def _cpu(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


def main() -> None:
    """Print a table: the median CPU time of each kind of run, and of a whole check."""
    parser = argparse.ArgumentParser("python -m bench.kit", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, metavar="N")
    rounds: int = parser.parse_args().rounds
    if rounds < 1:
        parser.error(f"--rounds must be 1 or more, not {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in _RUNS}
    for act in _RUNS.values():
        act()  # imports, and certificates
    for _ in range(rounds):
        for name, act in _RUNS.items():
            seconds[name].append(_cpu(act))
    bare = statistics.median(seconds["a bare Trio run"])
    print("| | CPU ms | / bare |")
    print("|---|---|---|")
    for name, found in seconds.items():
        took = statistics.median(found)
        print(f"| {name} | {took * 1000:.2f} | {took / bare:.1f} |")
    began = time.process_time()
    checked = check_handler(shout, _PEER)
    took, runs = time.process_time() - began, sum(checked.runs.values())
    print(f"\nA whole check: {runs} runs, {took:.1f} CPU s.")


if __name__ == "__main__":
    main()
