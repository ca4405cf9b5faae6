"""Hypothesis strategies for chunks, scripts, faults and orders of tasks.

They shrink towards values that a person would write: few cuts, short scripts, no
faults. Each value prints as the Python that makes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from hypothesis import strategies as st

from trioserve.faults import Faults, Impairment, Termination, parse_faults

from ._peer import Peer

Draw: TypeAlias = st.DrawFn

FaultKind = Literal[
    "cut", "slice", "latency", "bandwidth", "slow_close",
    "eof", "close", "reset", "stall", "vanish", "refuse",
]  # fmt: skip

FAULT_KINDS: Final[tuple[FaultKind, ...]] = get_args(FaultKind)

ScriptEnd = Literal["half_close", "close", "reset"]

#: One of these is drawn as a threshold. Then a number from 0 to 31 is drawn for each
#: place, and the data is cut there if the number reaches the threshold. So there are
#: few cuts, some, many, or cuts nearly everywhere.
_CUTS_FROM: Final = (31, 28, 16, 1)
#: The number of places for which that is done, and the most cuts beyond them.
_DENSE: Final = 64
_MOST_FAR: Final = 8

#: The seconds to draw from. There are few of them, so that events coincide.
_SECONDS: Final = (0.1, 1.0, 10.0)


def schedules() -> st.SearchStrategy[int]:
    """Seeds for the order in which ready tasks run. They shrink to 0."""
    return st.integers(0, 2**16 - 1)


@st.composite
def chunkings(draw: Draw, data: bytes) -> list[bytes]:
    """Lists of chunks that make up ``data``, from one chunk to single bytes.

    They shrink to the fewest cuts, and then to early ones. Beyond the first 64
    bytes there are at most 8 cuts, because more choices would take long.
    """
    places = range(1, len(data))
    # From the last place to the first: Hypothesis makes early draws smaller first,
    # so the cuts that remain are early ones.
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
    """A :class:`Peer` that sends, waits, expects answers, and pauses reading.

    It shrinks to a peer that sends nothing and half-closes.

    Args:
      messages: draws the messages, one for each send; they must not be empty.
      reply: returns the answer to a message, which may be empty. Without it, the
        peer accepts any answer.
      most: the largest number of sends, waits and pauses; expected answers are not
        counted.
      ends: how it may end: ``"half_close"`` waits for the handler's EOF,
        ``"close"`` and ``"reset"`` do not.
    """
    steps = draw(
        st.lists(
            messages.map(_Send)
            | st.sampled_from(("expect", "pause_reading"))
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
    """The faults of a connection, as a :class:`trioserve.faults.Faults`.

    They shrink to none.

    Args:
      kinds: the faults that may be drawn, as the grammar names them; all by default.
      most_bytes: the last byte of each direction at which a fault happens, and the
        longest slice. A good value is the number of bytes that are sent.

    Raises:
      ValueError: ``kinds`` has a word that is not a fault.
    """
    for kind in kinds:
        if kind not in FAULT_KINDS:
            raise ValueError(f"kinds must be some of {FAULT_KINDS}, not {kind!r}")
    return _fault_texts(kinds, most_bytes).map(parse_faults)


@st.composite
def _fault_texts(draw: Draw, kinds: Collection[FaultKind], most_bytes: int) -> str:
    # If one direction is enough, Hypothesis drops the first draw, and keeps `up`.
    refuse = "refuse" in kinds and _rarely(draw)
    down = _impairment(draw, kinds, most_bytes)
    up = _impairment(draw, kinds, most_bytes)
    return str(Faults(refuse=True) if refuse else Faults(up=up, down=down))


def _impairment(
    draw: Draw, kinds: Collection[FaultKind], most_bytes: int
) -> Impairment:
    fields: dict[str, Any] = {}
    terminations = list[Termination]()
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
            case termination:
                if draw(st.booleans()):
                    terminations.append(Termination(termination, seconds=draw(seconds)))
                else:
                    place = draw(st.integers(0, most_bytes))
                    terminations.append(Termination(termination, bytes=place))
    return Impairment(**fields, terminations=tuple(terminations))


def _rarely(draw: Draw) -> bool:
    """True in one of eight draws."""
    return draw(st.integers(0, 7)) == 7
