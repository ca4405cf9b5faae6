"""Strategies: what Hypothesis draws to test a handler.

Values that a person can read, smallest first: fewer cuts, shorter scripts, no
faults. Each prints as the Python that makes it again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from hypothesis import strategies as st

from trioserve import Ending, Faults, Impairment, parse_faults

from ._peer import Peer

Draw: TypeAlias = st.DrawFn

FaultKind = Literal[
    "cut", "slice", "latency", "bandwidth", "slow_close",
    "eof", "close", "reset", "stall", "vanish", "refuse",
]  # fmt: skip

FAULT_KINDS: Final[tuple[FaultKind, ...]] = get_args(FaultKind)

ScriptEnd = Literal["half_close", "close", "reset"]

#: At each place a lot is drawn, from 0 to the first of these. From which one on it
#: is a cut is drawn once: rarely, sometimes, often, nearly always.
_CUTS_FROM: Final = (31, 28, 16, 1)
#: Places for which that is done, and how many cuts there may be behind them.
_DENSE: Final = 64
_MOST_FAR: Final = 8

#: Seconds that something takes; few, so that different things happen at once.
_SECONDS: Final = (0.1, 1.0, 10.0)


def schedules() -> st.SearchStrategy[int]:
    """Seeds for the order in which tasks run that could run."""
    return st.integers(0, 2**16 - 1)


@st.composite
def chunkings(draw: Draw, data: bytes) -> list[bytes]:
    """Lists of chunks that make up ``data``, from all in one to each byte alone.

    What a handler does should not depend on how its bytes are cut. It shrinks to
    the fewest cuts, and then to early ones. Behind the first 64 bytes there are
    few: that many choices would take long.
    """
    places = range(1, len(data))
    # The last one first, because what is drawn later may stay the larger one.
    least = draw(st.sampled_from(_CUTS_FROM))
    lots = st.integers(0, _CUTS_FROM[0])
    cuts = [at for at in reversed(places[:_DENSE]) if draw(lots) >= least]
    if rest := places[_DENSE:]:
        far = st.integers(rest[0], rest[-1])
        cuts += draw(st.lists(far, unique=True, max_size=_MOST_FAR))
    edges = [0, *sorted(cuts), len(data)] if data else []
    return [data[a:b] for a, b in itertools.pairwise(edges)]


class _Send(NamedTuple):
    message: bytes


@st.composite
def scripts(
    draw: Draw,
    messages: st.SearchStrategy[bytes],
    *,
    reply: Callable[[bytes], bytes] | None = None,
    most: int = 8,
    ends: Collection[ScriptEnd] = get_args(ScriptEnd),
) -> Peer:
    """What a peer may do: a :class:`Peer` that sends, waits, reads or does not.

    Args:
      messages: what it sends, one at a time; not empty.
      reply: what it is to get for a message, perhaps nothing. Without it, it takes
        whatever comes.
      most: steps of its own before it ends; what it expects comes on top.
      ends: how it may end: it says that it has sent everything, and waits for the
        same from the other side; or it closes or resets, whatever is under way.
    """
    steps = draw(
        st.lists(
            messages.map(_Send)
            | st.sampled_from(("hear", "pause_reading"))
            | st.sampled_from(_SECONDS),
            max_size=most,
        )
    )
    peer, owed, reads = Peer(), b"", True
    for step in steps:
        match step:
            case _Send(message):
                peer = peer.send(message)
                owed += reply(message) if reply is not None else b""
            case float():
                peer = peer.wait(step)
            case "pause_reading":
                peer, reads = (peer.pause_reading() if reads else peer), False
            case _ if not reads:
                peer, reads = peer.resume_reading(), True
            case _:
                peer, owed = (peer.expect(owed) if owed else peer), b""
    end = draw(st.sampled_from([end for end in get_args(ScriptEnd) if end in ends]))
    if end == "close":
        return peer.close()
    if end == "reset":
        return peer.reset()
    peer = peer.half_close() if reads else peer.half_close().resume_reading()
    if reply is None:
        return peer.receive_until_eof()
    return (peer.expect(owed) if owed else peer).expect_eof()


def faults(
    *, kinds: Collection[FaultKind] = FAULT_KINDS, most_bytes: int = 64
) -> st.SearchStrategy[Faults]:
    """What a connection may suffer: a :class:`trioserve.Faults`; smallest, nothing.

    Args:
      kinds: words of the language of faults that may be in it.
      most_bytes: where in each direction something happens at the latest, and the
        longest slice. About as many as are sent.

    Raises:
      ValueError: a word that is none.
    """
    for kind in kinds:
        if kind not in FAULT_KINDS:
            raise ValueError(f"kinds must be some of {FAULT_KINDS}, not {kind!r}")
    return _fault_texts(kinds, most_bytes).map(parse_faults)


@st.composite
def _fault_texts(draw: Draw, kinds: Collection[FaultKind], most_bytes: int) -> str:
    # What is drawn last is what stays: what goes up, and what is drawn first below.
    refuse = "refuse" in kinds and _rarely(draw)
    down = _impairment(draw, kinds, most_bytes)
    up = _impairment(draw, kinds, most_bytes)
    return str(Faults(refuse=True) if refuse else Faults(up=up, down=down))


def _impairment(
    draw: Draw, kinds: Collection[FaultKind], most_bytes: int
) -> Impairment:
    fields: dict[str, Any] = {}
    endings = list[Ending]()
    seconds = st.sampled_from(_SECONDS)
    for kind in reversed(FAULT_KINDS):
        if kind == "refuse" or kind not in kinds or not _rarely(draw):
            continue
        match kind:
            case "latency" | "slow_close":
                fields[kind] = draw(seconds)
            case "bandwidth":
                fields[kind] = draw(st.sampled_from((10, 100, 1000)))
            case "cut":
                offsets = st.integers(1, max(1, most_bytes - 1))
                fields["cuts"] = tuple(draw(st.lists(offsets, min_size=1, max_size=3)))
            case "slice":
                least = draw(st.integers(1, max(1, most_bytes)))
                fields[kind] = least, draw(st.integers(least, max(least, most_bytes)))
            case ending:
                if draw(st.booleans()):
                    endings.append(Ending(ending, seconds=draw(seconds)))
                else:
                    place = draw(st.integers(0, most_bytes))
                    endings.append(Ending(ending, bytes=place))
    return Impairment(**fields, endings=tuple(endings))


def _rarely(draw: Draw) -> bool:
    """Whether, once in eight times."""
    return draw(st.integers(0, 7)) == 7
