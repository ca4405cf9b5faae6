"""Checking a handler: the functions that a test calls, and their arguments."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, get_args

from trioserve import Limits, Timeouts
from trioserve.faults import Faults, parse_faults

from ._arguments import check_seconds, check_type
from ._case import (
    DEFAULT_BUFFER,
    Case,
    Disturbance,
    Handler,
    Law,
    Order,
    Play,
    Setting,
    own_name,
)
from ._checker import Checker, lengths_of
from ._derived import AnyPeer, derived, numbered
from ._kept import Kept
from ._peer import CODE, Peer
from ._result import Checked, Run
from ._session import folder_of_failures, report, session
from ._settings import check_bounds, checked_laws, setting_of
from ._variations import EFFORTS, PEER_DISTURBANCES, Explore

#: Connections of each peer at the same time, in a check.
_CROWD: Final = 3


def run_conversation(
    handler: Handler,
    *peers: Peer,
    faults: Faults | str = "",
    server_faults: Faults | str = "",
    seed: int = 0,
    disturbance: Disturbance | None = None,
    at_step: int | None = None,
    play: Play | None = None,
    order: Order = "shuffled",
    copies: int = 1,
    rounds: int = 1,
    disturbed: int = 1,
    buffer: int = DEFAULT_BUFFER,
    read_delay: float = 0.0,
    flood: int = 0,
    compare: bool = False,
    raises: Iterable[type[BaseException]] = (),
    without: Mapping[Law, str] | None = None,
    before_run: Callable[[], object] | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    cleanup: float = 30,
    patience: float = 1000,
    memory: int = 65_536,
    servers: Mapping[str, Handler | None] | None = None,
    client: Handler | None = None,
    always: Mapping[str, Callable[[], object]] | None = None,
    eventually: Mapping[str, Callable[[], object]] | None = None,
    deadline: float | None = None,
    longest: int | None = None,
    tls: bool = False,
) -> Run:
    """Play one conversation with a handler, once, in a server of its own.

    The handler runs in :func:`trioserve.serve` over a network in memory, on a
    virtual clock. The same arguments give the same run. This function blocks until
    the run is over; it can be called within a Trio run, which it blocks.

    Args:
      handler: any ``async def handler(stream)``.
      peers: scripts. Each is one connection, and all start at the same time.
      faults: faults of the network, as a :class:`trioserve.faults.Faults` or as
        text; none by default.
      server_faults: faults of the connections that the handler opens; see
        :class:`Case`. None by default.
      seed: decides the order in which tasks run, and what is random in the faults.
      disturbance: what happens after scheduler step ``at_step``: ``"cancel"`` (the
        handlers are cancelled, and their peers stall), ``"drain"`` (the server
        drains), ``"eof"``, ``"reset"``, ``"stall"``, ``"vanish"`` (the peers do
        that); see :class:`Case`. None by default.
      at_step: a number of scheduler steps, from 0; required with ``disturbance``.
      play: how the peers play their scripts: ``"pipelined"``, ``"half_closed"``,
        ``"all_at_once"``, ``"writes_first"``, ``"trickled"``, ``"endless"`` or
        ``"repeated"``; see :class:`Case`. As they are written by default.
      order: which of the tasks that are ready run next: ``"shuffled"``,
        ``"held_back"``, ``"priorities"`` or ``"preempted"``; see :class:`Case`.
      copies: connections of each peer at the same time.
      rounds: how many times the conversation is played, one after the other, in the
        same server.
      disturbed: the number of these rounds that are not plain.
      buffer: bytes that the network holds in each direction; 16384 or more of what
        a client or a server sends that is code.
      read_delay: seconds until the peers begin to read.
      flood: if not 0, the peers send at least this many bytes, by repeating what
        their scripts send, and read nothing.
      compare: whether the plain conversation is played before, and peers must receive
        the same.
      raises: exceptions that the handler may raise, besides the
        ``BrokenResourceError`` of its stream.
      without: laws that are not checked, each with the reason.
      before_run: called before each run, to reset state that handlers share.
      limits: the server's limits; by default all peers may connect at once.
      timeouts: the server's timeouts. By default no timer ends a connection; with a
        disturbance or a fault, 60 seconds of silence end it.
      cleanup: seconds within which the handler must end after it was cancelled, and
        after the deadline of a drain.
      patience: seconds within which it must end after all peers have left.
      memory: bytes that it may receive while its own send waits.
      servers: what the handler may connect to. Each name, such as ``"db:5432"`` or
        ``"unix:/run/db.sock"``, has an ``async def server(stream)``, which is served
        in memory; or None, which refuses connections.
      client: the client, as an async function of one stream, instead of ``peers``. It
        must return, and not raise an error, unless the case disturbs the conversation.
      always: what must hold after every step of any task, such as ``{"nobody owes":
        lambda: min(owed) >= 0}``. A function must not return False, and not raise.
      eventually: what must hold within ``patience`` seconds after all handlers of a
        round have ended.
      deadline: seconds in which the handler must have received a whole message, or
        end. None, the default, is no bound.
      longest: bytes of the longest message that the handler takes; of a longer one it
        may keep twice that, and 32 KiB. None, the default, is no bound.
      tls: whether the peers speak TLS, which the server ends before the handler
        begins. Their scripts, and the laws, are about plain bytes; faults and
        disturbances are about those of TLS, handshakes among them. It needs trustme.

    Returns:
      what the peers received, the reports and the timeline.

    Raises:
      HandlerFailure: a law is broken.
      TypeError, ValueError: an argument is wrong, or code that plays a client or a
        server never ends.
      ImportError: ``tls`` is true, and trustme is not installed.
    """
    setting = setting_of(locals())  # before there are other names
    __tracebackhide__ = True
    case = Case(
        _or_code(peers, client),
        faults=_parsed(faults),
        server_faults=_parsed(server_faults),
        seed=seed,
        disturbance=disturbance,
        at_step=at_step,
        play=play,
        order=order,
        copies=copies,
        rounds=rounds,
        disturbed=disturbed,
        buffer=buffer,
        read_delay=read_delay,
        flood=flood,
    )
    check_bounds(case, setting)
    check = _checker(handler, peers, setting)
    return check.run(case, compare=compare)


def check_handler(
    handler: Handler,
    *peers: AnyPeer,
    explore: Explore = "quick",
    seed: int = 0,
    budget: float | None = None,
    repeat: str | None = None,
    raises: Iterable[type[BaseException]] = (),
    without: Mapping[Law, str] | None = None,
    before_run: Callable[[], object] | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    cleanup: float = 30,
    patience: float = 1000,
    memory: int = 65_536,
    servers: Mapping[str, Handler | None] | None = None,
    client: Handler | None = None,
    always: Mapping[str, Callable[[], object]] | None = None,
    eventually: Mapping[str, Callable[[], object]] | None = None,
    deadline: float | None = None,
    longest: int | None = None,
    tls: bool = False,
    think: float | None = None,
) -> Checked:
    """Check all laws of a handler in many variations of a conversation.

    The conversation is played as it is; with its bytes cut everywhere; in other
    orders of tasks; with all messages at once, and with EOF right after the last one;
    with peers that read late, or not at all; several times at once and one after the
    other; and with a cancel, a drain, an EOF, a reset, a stall and a cut cable after
    every scheduler step and at every byte. Connections to ``servers`` are cut, slow,
    refused, not answered, and broken at every byte. After each of these but a drain,
    the plain conversation must succeed in the same server.

    Before the first run, a copy of the process is forked, in which a failing case is
    tried again. Like :func:`run_conversation`, this function blocks.

    Args:
      explore: ``"quick"`` samples where there are many cases, and mostly takes a
        second or two (half a minute if the handler reads a flood in small pieces);
        ``"thorough"`` tries all of them, and may take minutes.
      seed: decides which cases are sampled.
      budget: seconds of real time, after which no further case is begun; by default
        there is no bound.
      repeat: the token of a failure of this handler and these peers; its case is run
        alone.
      peers: scripts; or functions that make one. A parameter ``size`` is the size of
        a message, in bytes; it needs a default, and those around the sizes of buffers
        are tried. Another parameter is the number of a copy, counted from 0, so that
        the connections of a crowd send different data.
      think: seconds that a peer may think: before a message, and within it, unless
        that takes the ``deadline``. None, the default, is not at all.
      handler, raises, without, before_run, limits, timeouts, cleanup,
        patience, memory, servers, client, always, eventually, deadline, longest, tls:
        as for :func:`run_conversation`.

    Returns:
      what was tried, by the numbers of runs of each kind, and what was left out.

    Raises:
      HandlerFailure: a law is broken. The message names the law, says how it was
        broken, lists what happened, and has a test that fails alike.
      TypeError, ValueError: an argument is wrong, or code that plays a client or a
        server never ends.
      ImportError: ``tls`` is true, and trustme is not installed.
    """
    setting = setting_of(locals())  # before there are other names
    __tracebackhide__ = True
    if (asked := session()) is not None:
        explore = explore if asked.explore is None else asked.explore
        seed = seed if asked.seed is None else asked.seed
        budget = budget if asked.budget is None else asked.budget
    check = _checker(handler, peers, setting, budget, think)
    if explore not in EFFORTS:
        raise ValueError(f"explore must be one of {get_args(Explore)}, not {explore!r}")
    check_type("seed", seed, int, "an int")
    with check.from_here():
        if repeat is not None:
            check_type("repeat", repeat, str, "a token, as a failure has it")
            return check.repeat(repeat)
        kept = Kept(folder_of_failures())
        checked = check.everything(EFFORTS[explore], random.Random(seed), kept)
    runs = sum(checked.runs.values())
    report(f"{own_name(handler, 'handler')}: {runs} runs\n{checked}")
    return checked


def check_client(
    client: Handler,
    server: Handler,
    *,
    explore: Explore = "quick",
    seed: int = 0,
    budget: float | None = None,
    repeat: str | None = None,
    raises: Iterable[type[BaseException]] = (),
    without: Mapping[Law, str] | None = None,
    before_run: Callable[[], object] | None = None,
    cleanup: float = 30,
    patience: float = 1000,
    memory: int = 65_536,
) -> Checked:
    """Check all laws but ``drain`` of a client, against a server that is code.

    The two ends of a connection are equal, so this is :func:`check_handler` with the
    client as the handler, and the server as its ``client``. That is also what a failure
    prints.

    Args:
      client: what is checked: an ``async def client(stream)``. It must return.
      server: the other end: an ``async def server(stream)``.
      explore, seed, budget, repeat, raises, without, before_run, cleanup, patience,
        memory: as for :func:`check_handler`.

    Returns:
      what was tried.

    Raises:
      HandlerFailure: a law is broken.
      TypeError, ValueError: an argument is wrong, or code that plays a client or a
        server never ends.
    """
    __tracebackhide__ = True
    off: dict[Law, str] = {"drain": "a client is not drained"}
    return check_handler(
        client,
        client=server,
        explore=explore,
        seed=seed,
        budget=budget,
        raises=raises,
        without={**off, **checked_laws(without)},
        before_run=before_run,
        cleanup=cleanup,
        patience=patience,
        memory=memory,
        repeat=repeat,
    )


def sweep_cancellations(
    handler: Handler,
    *peers: AnyPeer,
    raises: Iterable[type[BaseException]] = (),
    without: Mapping[Law, str] | None = None,
    before_run: Callable[[], object] | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    cleanup: float = 30,
    patience: float = 1000,
    memory: int = 65_536,
    servers: Mapping[str, Handler | None] | None = None,
    client: Handler | None = None,
    always: Mapping[str, Callable[[], object]] | None = None,
    eventually: Mapping[str, Callable[[], object]] | None = None,
    tls: bool = False,
) -> int:
    """Cancel the handler after every scheduler step, one run for each.

    A task can be cancelled only between two steps, so this tries every place where
    a cancel can arrive, for this conversation and this order of tasks.

    Args:
      handler, peers, raises, without, before_run, limits, timeouts, cleanup,
        patience, memory, servers, client, always, eventually, tls: as for
        :func:`run_conversation`.

    Returns:
      the number of steps.

    Raises:
      HandlerFailure: a law is broken.
      TypeError, ValueError: an argument is wrong, or code that plays a client or a
        server never ends.
      ImportError: ``tls`` is true, and trustme is not installed.
    """
    setting = setting_of(locals())  # before there are other names
    __tracebackhide__ = True
    check = _checker(handler, peers, setting)
    with check.from_here():
        base = check.plain()
        steps = range(base.steps + 1)
        check.all_of("a cancel", check.variations.disturbed("cancel", steps))
    return base.steps


def sweep_faults(
    handler: Handler,
    *peers: AnyPeer,
    raises: Iterable[type[BaseException]] = (),
    without: Mapping[Law, str] | None = None,
    before_run: Callable[[], object] | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    cleanup: float = 30,
    patience: float = 1000,
    memory: int = 65_536,
    servers: Mapping[str, Handler | None] | None = None,
    client: Handler | None = None,
    always: Mapping[str, Callable[[], object]] | None = None,
    eventually: Mapping[str, Callable[[], object]] | None = None,
    tls: bool = False,
) -> int:
    """Let the peers send EOF, reset, stall and vanish after every step and byte.

    Connections that the handler opens break at every byte too.

    Args:
      handler, peers, raises, without, before_run, limits, timeouts, cleanup,
        patience, memory, servers, client, always, eventually, tls: as for
        :func:`run_conversation`.

    Returns:
      the number of runs, without the first, which is undisturbed.

    Raises:
      HandlerFailure: a law is broken.
      TypeError, ValueError: an argument is wrong, or code that plays a client or a
        server never ends.
      ImportError: ``tls`` is true, and trustme is not installed.
    """
    setting = setting_of(locals())  # before there are other names
    __tracebackhide__ = True
    check = _checker(handler, peers, setting)
    with check.from_here():
        base = check.plain()
        runs = 0
        for what in PEER_DISTURBANCES:
            cases = check.variations.disturbed(what, range(base.steps + 1))
            runs += check.all_of(f"a peer's {what}", cases)
        up, down = check.lengths(base)
        cases = check.variations.broken(range(up + 1), range(down + 1))
        runs += check.all_of("a broken network", cases)
        if base.opened:
            up, down = lengths_of(base.opened)
            cases = check.variations.broken_servers(range(up + 1), range(down + 1))
            runs += check.all_of("a broken connection to a server", cases)
        return runs


def _checker(
    handler: Handler,
    peers: tuple[AnyPeer, ...],
    setting: Setting,
    budget: float | None = None,
    think: float | None = None,
) -> Checker:
    """A checker for these arguments.

    Raises:
      TypeError, ValueError: one of them is wrong.
    """
    if not callable(handler):
        raise TypeError(f"handler must be an async function, not {handler!r}")
    if budget is not None:
        check_seconds("budget", budget)
    if think is not None:
        check_seconds("think", think)
        if setting.client is not None:
            raise ValueError("think must be None if the client is code")
    peers = _or_code(peers, setting.client)
    plain = Case(numbered(peers, 0))
    crowd = dataclasses.replace(plain, copies=_CROWD)
    copies = [numbered(peers, number) for number in range(_CROWD)]
    if len(set(copies)) > 1:
        crowd = Case(tuple(itertools.chain.from_iterable(copies)))
    others = derived(
        peers, think=think, deadline=setting.deadline, longest=setting.longest
    )
    return Checker(handler, plain, crowd, setting, budget, others)


def _or_code(peers: tuple[AnyPeer, ...], client: Handler | None) -> tuple[Any, ...]:
    """The peers; or the one that stands for the client."""
    if client is None:
        return peers
    if peers:
        raise ValueError("client must be None if there are peers")
    return (CODE,)


def _parsed(faults: Faults | str) -> Faults:
    return parse_faults(faults) if isinstance(faults, str) else faults
