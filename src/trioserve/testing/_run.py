"""Runs: a case is played in a world of its own, and the laws are looked at.

The handler runs in the real server, over the network in memory, on a virtual
clock, in the order of a seed. Everything waits for events; whatever does not
end is found out by the watch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeAlias

import trio
import trio.testing

from trioserve import (
    Connection,
    ConnectionReport,
    Limits,
    Outcome,
    Reason,
    Server,
    Timeouts,
    serve,
)

from ._case import Case, Heard, Law, Run, Setting, Violation
from ._coroutine import ObservedCoroutine
from ._guest import GuestRun
from ._lines import innermost_line, line_of_caller, line_of_error, line_of_task
from ._network import MemoryListener, MemoryNetwork
from ._peer import Meetings, Peer, Player, SurpriseError
from ._stream import Event, MemoryStream
from ._timeline import Row, Timeline, shown
from ._watch import Watch

Handler: TypeAlias = Callable[[Any], Coroutine[Any, Any, object]]

#: Room for everybody.
_ROOM: Final = Limits(max_connections=1000)

#: While nothing happens to the network, nothing ends by a timer of the server.
_FOR_EVER: Final = Timeouts(
    idle=math.inf, half_closed=math.inf, write_stall=math.inf, drain=30, linger=2
)
#: When something does, so many seconds of silence end what would wait for ever;
#: beside those that scripts wait.
_SILENCE: Final = 60.0

#: Seconds that a handler has to end once it was cancelled.
_CLEANUP: Final = 30.0

#: Seconds that a peer has for its script when something happens to it, beside
#: those that it waits.
_SCRIPT: Final = 200.0

#: Seconds after which a kernel gives up a peer that acknowledges nothing. Linux,
#: ip-sysctl(5), tcp_retries2.
_RETRIES: Final = 924.6

#: Seconds that a handler has to end once all peers have left.
_PATIENCE: Final = 1000.0

#: Seconds after which a run is over, whatever happens, beside those that its peers
#: wait.
_LIFETIME: Final = 100_000.0

#: Bytes that a handler may take while its peer takes none of its own.
MEMORY: Final = 65_536

#: What a handler may raise without saying so: its stream broke.
_OWN: Final = (trio.BrokenResourceError,)

#: And when it was the server who ended the connection.
_CUT: Final = (trio.BrokenResourceError, trio.ClosedResourceError)

#: How a connection goes that the server, or somebody in it, has ended.
_NOT_BY_ITSELF: Final = (Outcome.CUT, Outcome.TIMEOUT, Outcome.ABORTED)

_REASON: Final = "cancelled by the test"


class _Life:
    """A handler's call, for one connection."""

    def __init__(
        self, stream: Connection, driven: ObservedCoroutine, round: int
    ) -> None:
        self.stream = stream
        self.driven = driven
        self.round = round
        self.task = trio.lowlevel.current_task()
        self.scope = trio.CancelScope()
        self.is_over = False
        self.raised: BaseException | None = None
        self.returned = False
        self.received = self.sent = 0
        self.is_closed = False
        self.blocked = False
        # Of a send that failed or was cancelled, what had gone by then can't be known.
        self.has_gaps = False
        self.taken = 0
        # Bytes received since it last sent something.
        self.unanswered = 0


class World:
    """Where one case is played."""

    def __init__(self, handler: Handler, case: Case, setting: Setting) -> None:
        self.case = case
        self.violations: list[Violation] = []
        self.timeline = Timeline()
        self.reports: list[ConnectionReport] = []
        self.heard: list[list[Heard]] = []
        self.round = 0
        self.steps = 0
        self._handler = handler
        self._setting = setting
        self._clock = trio.testing.MockClock(autojump_threshold=0)
        self._watch = Watch(self._clock, self._spins, self._give_up)
        self._root = trio.CancelScope()
        self._server: Server | None = None
        self._lives: dict[int, _Life] = {}
        # Of the server's streams; the server counts them in the same way.
        self._numbers: dict[MemoryStream, int] = {}
        self._players: list[Player] = []
        self._reported = trio.Event()
        self._cancels = False
        self._has_given_up = False
        self._misuse: TypeError | None = None
        self._timers: trio.Nursery | None = None

    def run(self) -> Run:
        if self._setting.before_run is not None:
            self._setting.before_run()
        run = GuestRun(
            self._main,
            seed=self.case.seed,
            clock=self._clock,
            instruments=[self._watch],
        )
        with contextlib.closing(run):
            while run.outcome is None and not self._has_given_up:
                run.tick()
        if run.outcome is not None:
            run.outcome.unwrap()
        if self._misuse is not None:
            raise self._misuse
        return Run(
            case=self.case,
            heard=self.heard,
            reports=self.reports,
            steps=self.steps,
            seconds=self._clock.current_time(),
            violations=self.violations,
            timeline=self.timeline,
        )

    # -- playing

    async def _main(self) -> None:
        timeouts = self._setting.timeouts or self._timeouts()
        # Seeded as the command's faults are, so that a case can be done to real
        # traffic: the n-th connection suffers the same.
        network = MemoryNetwork(
            buffer=self.case.buffer, seed=self.case.seed, on_event=self._saw
        )
        listener = network.listen()
        with self._root:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait_for_the_end_of_time)
                serving = functools.partial(
                    serve,
                    self._handle,
                    [listener],
                    limits=self._setting.limits or _ROOM,
                    timeouts=timeouts,
                    collector=self._collect,
                )
                self._server = server = await nursery.start(serving)
                for number in range(self.case.rounds):
                    self.round = number
                    await self._play_round(network, listener)
                    if server.draining.is_set():
                        break
                self._look_for_tasks()
                await server.drain(reason="the run is over")
                self._look_at_server(server)
                nursery.cancel_scope.cancel(reason="the run is over")
        self._look_at_lives()

    def _timeouts(self) -> Timeouts:
        if self.case.is_undisturbed:
            return _FOR_EVER
        silence = _SILENCE + self._waits
        return dataclasses.replace(
            _FOR_EVER, idle=silence, half_closed=silence, write_stall=silence
        )

    @property
    def _waits(self) -> float:
        """Seconds that the slowest script waits."""
        return self.case.deaf + max(peer.waits for peer in self.case.peers)

    @property
    def _has_stopped(self) -> bool:
        return self._root.cancel_called

    def _law_of(self, law: Law) -> Law:
        """What is broken when ``law`` is, unless nobody else was here, or is."""
        if self.round > 0:
            return "nothing_left"
        if self.case.act == "drain" and law == "ends":
            return "drain"
        return law if self.case.copies == 1 else "alone"

    async def _play_round(
        self, network: MemoryNetwork, listener: MemoryListener
    ) -> None:
        is_first = self.round == 0
        reported = len(self.reports)
        players = await self._connect(network, listener)
        self._players = [player for player in players if player is not None]
        heard = [Heard(b"", "reset", 0)] * len(players)
        self.heard.append(heard)
        async with trio.open_nursery() as self._timers:
            async with trio.open_nursery() as talking:
                if is_first:
                    self._watch.begin(self.case.at, self._act)
                for index, player in enumerate(players):
                    if player is not None:
                        talking.start_soon(self._talk, player, heard, index)
            self._after(_RETRIES, self._give_up_peers)
            self._after(_PATIENCE, self._should_have_left)
            while len(self.reports) < reported + len(self._players):
                await self._reported.wait()
            if is_first:
                self._watch.end()
                self.steps = self._watch.steps
            await trio.testing.wait_all_tasks_blocked()
            self._timers.cancel_scope.cancel(reason="the round is over")

    async def _connect(
        self, network: MemoryNetwork, listener: MemoryListener
    ) -> list[Player | None]:
        """Everybody who talks in this round; None for who is refused."""
        case, is_first = self.case, self.round == 0
        faults = case.faults if is_first else None
        players = list[Player | None]()
        for _ in range(case.copies):
            meetings = Meetings(case.peers)
            for peer in case.peers:
                try:
                    client = await network.connect(listener, faults=faults)
                except ConnectionRefusedError:
                    players.append(None)
                    meetings.give_up()
                    continue
                if is_first and case.flood:
                    peer = _flooding(peer, case.flood)
                players.append(Player(peer, client, meetings))
        return players

    async def _talk(self, player: Player, heard: list[Heard], index: int) -> None:
        disturbed = self.round == 0 and not self.case.is_undisturbed
        surprise = None
        if self.round == 0 and self.case.deaf:
            player.deafen(self.case.deaf)
        patience = _SCRIPT + self._waits if disturbed else math.inf
        with trio.move_on_after(patience):
            try:
                await player.play()
            except SurpriseError as error:
                surprise = str(error)
        heard[index] = Heard(bytes(player.heard), player.tail, player.taken, surprise)
        if surprise is not None and not disturbed:
            self._violated(self._law_of("answer"), f"{player}: {surprise}")

    async def _collect(
        self, reports: trio.MemoryReceiveChannel[ConnectionReport]
    ) -> None:
        async for report in reports:
            self.reports.append(report)
            self._reported.set()
            self._reported = trio.Event()

    async def _handle(self, stream: Connection) -> object:
        try:
            coroutine = self._handler(stream)
            if not isinstance(coroutine, Coroutine):
                raise TypeError(
                    f"a handler must be an async function, not {self._handler!r}"
                )
        except TypeError as error:
            self._misuse = error
            self._stop()
            return None
        driven = ObservedCoroutine(coroutine)
        life = self._lives[stream.id] = _Life(stream, driven, self.round)
        self._watch.family.add(life.task)
        if self._cancels and not self.round:
            life.scope.cancel(reason=_REASON)
        try:
            with life.scope:
                result = await driven
                life.returned = True
                return result
            stream.abort()
            return None
        except BaseException as error:  # noqa: ASYNC103
            life.raised = error
            if self._ends_the_program(error):
                return None  # noqa: ASYNC104 - it is the test that goes on
            raise
        finally:
            life.is_over = True
            self._watch.family.discard(life.task)
            where = line_of_error(life.raised) if life.raised is not None else ""
            self._record(f"handler {stream.id}", self._last_words(life), where)

    def _ends_the_program(self, error: BaseException) -> bool:
        """Whether it would also end the run, and whoever runs it."""
        ends = [leaf for leaf in _leaves(error) if isinstance(leaf, SystemExit)]
        if not ends or issubclass(SystemExit, self._setting.raises):
            return False
        self._violated("errors", f"it raised {ends[0]!r}, which ends the program")
        self._stop()
        return True

    def _last_words(self, life: _Life) -> str:
        if life.raised is not None:
            return f"raises {life.raised!r}"
        return "returns" if life.returned else "ends, cancelled"

    # -- what happens to it

    def _act(self) -> None:
        match self.case.act:
            case "cancel":
                self._record(
                    "test", "cancels the handler; nothing more arrives from its peer"
                )
                self._cancels = True
                for life in self._lives.values():
                    life.scope.cancel(reason=_REASON)
                for player in self._players:
                    player.stream.stall()
                    player.fall_silent()
                self._after(_CLEANUP, self._should_have_ended)
            case "drain":
                assert self._server is not None
                self._record("test", "drains the server")
                self._server.start_draining(reason="the test drains")
                timeouts = self._server.timeouts
                seconds = timeouts.lame_duck + timeouts.drain + _CLEANUP
                self._after(seconds, self._should_have_drained)
            case "eof":
                self._each("sends EOF", MemoryStream.send_eof_now)
            case "reset":
                self._each("resets", MemoryStream.reset)
            case "stall":
                self._each("says nothing more that arrives", MemoryStream.stall)
            case "vanish":
                self._each("is cut off", MemoryStream.vanish)
            case None:  # pragma: no cover
                raise AssertionError

    def _each(self, what: str, act: Callable[[MemoryStream], None]) -> None:
        for player in self._players:
            self._record(player.name, what)
            act(player.stream)

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        async def wait() -> None:
            await trio.sleep(seconds)
            call()

        assert self._timers is not None
        self._timers.start_soon(wait)

    def _should_have_ended(self) -> None:
        self._nobody_runs(f"{_CLEANUP:.0f} seconds after it was cancelled")

    def _should_have_drained(self) -> None:
        self._nobody_runs(f"{_CLEANUP:.0f} seconds after a drain has cut it")

    def _should_have_left(self) -> None:
        self._nobody_runs(f"{_PATIENCE:.0f} seconds after its peers have left")

    def _give_up_peers(self) -> None:
        for player in self._players:
            player.stream.give_up()

    def _nobody_runs(self, when: str) -> None:
        """By now no handler may run any more; if one does, that is the end."""
        for life in self._lives.values():
            if not life.is_over:
                where = innermost_line(life.driven.stack())
                how = f"{when} it still runs, at {where}"
                self._violated(self._law_of("ends"), how)
                self._stop()
                break

    async def _wait_for_the_end_of_time(self) -> None:
        # When everything waits, a virtual clock jumps to what is waited for next.
        await trio.sleep_until(_LIFETIME + self.case.rounds * self._waits)
        law: Law = "ends"
        asked = any(p.waits_for_an_answer for p in self._players if not p.is_over)
        if asked and not any(life.blocked for life in self._lives.values()):
            law = "answer"
        self._stuck(law, "everything waits, and nothing will ever happen:")

    def _spins(self) -> None:
        self._stuck("ends", "it goes on and on, and no byte moves:")

    def _stuck(self, law: Law, how: str) -> None:
        where = [
            f"  handler {number} is at {innermost_line(life.driven.stack())}"
            for number, life in self._lives.items()
            if not life.is_over
        ]
        where += [
            f"  task {task.name} is at {line_of_task(task)}"
            for task in self._watch.family
            if task not in [life.task for life in self._lives.values()]
        ]
        where += [f"  {player}" for player in self._players if not player.is_over]
        self._violated(self._law_of(law), "\n".join([how, *where]))
        self._stop()

    def _stop(self) -> None:
        self._root.cancel(reason="the run is stopped")

    def _give_up(self) -> None:
        self._has_given_up = bool(self._watch.family)

    # -- what is seen

    def _saw(self, event: Event) -> None:
        stream, data = event.stream, event.data
        is_server = stream.name.startswith("server")
        match event.kind:
            case "send" | "receive" if isinstance(data, bytes) and data:
                self._watch.moved()
                what = f"{event.kind}s {shown(data)}"
            case "wait_receive" | "wait_send":
                self._follow(event)
                return
            case "cancelled" if not is_server:
                return  # its script is over
            case "cancelled":
                what = "was cancelled while it waited"
            case "receive_eof" | "receive_reset" as kind:
                what = _WORDS[kind]  # which may be seen again and again
            case kind:
                self._watch.moved()
                what = _WORDS[kind]
        self._follow(event)
        who = stream.name.replace("client", "peer")
        if is_server:
            who = f"handler {self._numbers[stream]}"
        self._record(who, what, line_of_caller() if is_server else "")

    def _follow(self, event: Event) -> None:
        """Keep account of what a handler takes and gives."""
        if event.kind == "accept":
            self._numbers[event.stream] = len(self._numbers) + 1
        life = self._lives.get(self._numbers.get(event.stream, 0))
        if life is None:
            return
        size = len(event.data) if isinstance(event.data, bytes) else 0
        match event.kind:
            case "wait_send":
                life.blocked = True
            case "send":
                life.sent += size
                life.blocked, life.taken, life.unanswered = False, 0, 0
            case "receive":
                life.received += size
                life.unanswered += 0 if life.is_over else size
                life.taken += size if life.blocked else 0
                if life.taken > MEMORY:
                    life.taken = 0
                    how = f"it took over {MEMORY} bytes while its own wait to be sent"
                    self._violated("memory", how)
            case "cancelled" | "receive_reset":
                life.has_gaps = True
                # Of a send that is given up, nothing waits any more.
                life.blocked, life.taken = False, 0
            case "close":
                life.is_closed = True
                life.has_gaps = life.has_gaps or life.blocked
            case _:
                pass

    def _record(self, who: str, what: str, where: str = "") -> None:
        if self._has_stopped or self.violations:
            return  # of what follows, it is no more to be told
        row = Row(trio.current_time(), self._watch.steps, who, what, where)
        self.timeline.rows.append(row)

    # -- the laws

    def _violated(self, law: Law, how: str, cause: BaseException | None = None) -> None:
        self.violations.append(Violation(law, how, cause))

    def _look_for_tasks(self) -> None:
        for task in self._watch.family:
            where = line_of_task(task)
            self._violated(
                "nothing_left", f"its task {task.name} still runs, at {where}"
            )

    def _look_at_server(self, server: Server) -> None:
        statistics = server.statistics()
        if statistics.open or statistics.slots_used:
            self._violated("nothing_left", f"{statistics.open} connections are open")
        if statistics.accepted != len(self.reports):
            self._violated(
                "record",
                f"{len(self.reports)} reports for {statistics.accepted} connections",
            )

    def _look_at_report(self, report: ConnectionReport, life: _Life) -> None:
        if not life.is_closed:
            self._violated("nothing_left", f"connection {report.id} is not closed")
        is_true = report.bytes_received == life.received and (
            report.bytes_sent == life.sent
            or (life.has_gaps and report.bytes_sent < life.sent)
        )
        if not is_true:
            self._violated(
                "record",
                f"{life.received} bytes were received and {life.sent} sent, and the"
                f" report says {report.bytes_received} and {report.bytes_sent}",
            )

    def _look_at_drained(self, report: ConnectionReport, life: _Life) -> None:
        if report.reason is not Reason.DRAINED or not life.unanswered:
            return
        peers = self.case.peers
        ends = peers[(report.id - 1) % len(peers)].ends_of_messages
        if (taken := report.bytes_received - report.bytes_discarded) not in ends:
            self._violated(
                "drain",
                f"the drain ended its wait when {taken} bytes were received,"
                f" in the middle of a message: the last {life.unanswered} are lost"
                " (idle(held=buffer) says that there is something in a buffer)",
            )

    def _look_at_lives(self) -> None:
        if self._has_stopped:
            return
        before, self.violations = self.violations, []
        reports = {report.id: report for report in self.reports}
        for number in sorted(self._lives.keys() & reports.keys()):
            life, report = self._lives[number], reports[number]
            self._look_at_report(report, life)
            self._look_at_drained(report, life)
            was_cut = report.outcome in _NOT_BY_ITSELF
            allowed = _CUT if was_cut or life.scope.cancelled_caught else _OWN
            for error in _leaves(life.raised):
                if isinstance(error, trio.Cancelled) and was_cut:
                    continue
                if not isinstance(error, (*allowed, *self._setting.raises)):
                    how = f"it raised {error!r}, at {line_of_error(error)}"
                    self._violated("errors", how, life.raised)
            reasons = [_REASON, str(report.reason)]
            if life.returned and any(r in reasons for r in life.driven.cancel_reasons):
                self._violated(
                    "cancelled", "it was cancelled, and returned as if nothing was"
                )
        # What it did is why its peers did not get what they expected.
        raised = [
            f"handler {number} raised {life.raised!r}"
            for number, life in self._lives.items()
            if life.raised is not None
        ]
        for violation in before:
            how = "; ".join([violation.how, *raised])
            self.violations.append(dataclasses.replace(violation, how=how))


#: What a peer or a handler does, in words.
_WORDS: Final = {
    "connect": "connects",
    "accept": "is accepted",
    "send": "sends nothing",
    "receive": "receives nothing",
    "send_eof": "sends EOF",
    "receive_eof": "receives EOF",
    "reset": "resets",
    "receive_reset": "finds it was reset",
    "close": "closes",
}


def _flooding(peer: Peer, size: int) -> Peer:
    words = peer.sends
    if not words:
        return peer
    return Peer().stop_reading().send(words * (size // len(words) + 1))


def _leaves(error: BaseException | None) -> Sequence[BaseException]:
    if error is None:
        return ()
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return (error,)


def play(handler: Handler, case: Case, setting: Setting) -> Run:
    """Play a case, also from within a program that Trio runs."""
    world = World(handler, case, setting)
    if not trio.lowlevel.in_trio_run():
        return world.run()
    runs: list[Run] = []
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            runs.append(world.run())
        except BaseException as error:  # noqa: ASYNC103 - raised by who waits
            errors.append(error)

    thread = threading.Thread(target=elsewhere, name="trioserve.testing")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return runs[0]
