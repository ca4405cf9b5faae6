"""The harness: plays a case against a handler in a server of its own.

The handler runs in the real server, over the network in memory, on a virtual
clock, in an order of tasks that a seed decides. The harness waits for events only.
The judge decides which laws a run has broken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Coroutine
from typing import Final

import trio
import trio.testing

from trioserve import Connection, ConnectionReport, Limits, Server, Timeouts, serve

from ._case import HOSTILE, Case, Handler, Setting, own_name
from ._code_player import CodePlayer
from ._handler_run import HandlerRun, single_errors
from ._hostile import HostilePlayer
from ._invariants import Invariants
from ._judge import (
    CANCEL_REASON,
    MAY_RAISE,
    judge_handlers,
    judge_server,
    judge_tasks,
)
from ._liveness import found_deadlock, found_endless_loop, require_ended
from ._observer import Observer
from ._player import Meetings, MismatchError, Player
from ._plays import flooding, played
from ._progress import tell_once
from ._result import Received, Run
from ._servers import Servers
from ._state import RunState
from .network import MemoryListener, MemoryNetwork, MemoryStream
from .runs import GuestRun, HangAlarm, HangError, ObservedCoroutine, Watchdog

#: By default, all peers may connect at once.
_NO_LIMITS: Final = Limits(max_connections=1000)

#: Without a disturbance or a fault, no timer of the server ends a connection.
_NO_TIMEOUTS: Final = Timeouts(
    idle=math.inf, half_closed=math.inf, write_stall=math.inf, drain=30, linger=2
)
#: With one, this many seconds of silence, plus the waits of the scripts, end a
#: connection that would otherwise wait without limit.
_SILENCE: Final = 60.0

#: Seconds that a disturbed peer has for its script, plus its own waits.
_SCRIPT: Final = 200.0

#: Seconds after which Linux gives up on a peer that acknowledges nothing: see
#: tcp_retries2 in ip-sysctl.
_RETRIES: Final = 924.6

#: Seconds after which a run is over in any case, plus the peers' waits.
_LIFETIME: Final = 100_000.0


class Harness:
    """Plays one case.

    Args:
      alarm: watches the run.
      hurries: whether an endless loop is found after a fifth of the steps.
    """

    def __init__(
        self,
        handler: Handler,
        case: Case,
        setting: Setting,
        alarm: HangAlarm,
        *,
        hurries: bool = False,
    ) -> None:
        self._handler = handler
        self._case = case
        self._setting = setting
        self._alarm = alarm
        self._clock = trio.testing.MockClock(autojump_threshold=0)
        self._watchdog = Watchdog(
            self._clock,
            lambda: found_endless_loop(self._state),
            self._abandon,
            hurries=hurries,
        )
        self._state = RunState(case, self._watchdog)
        self._invariants = Invariants(self._state, setting)
        self._server: Server | None = None
        self._servers = Servers(self._state, setting)
        self._steps = 0
        self._cancels_handlers = False
        self._is_abandoned = False
        self._misuse: TypeError | None = None
        self._timers: trio.Nursery | None = None

    def run(self) -> Run:
        """Play the case, outside of any other Trio run.

        Raises:
          TypeError: the handler is not an async function of one argument.
          ValueError: the handler connects to something that has no name here.
          Exception: an error of the kit or of the server.
        """
        if self._setting.before_run is not None:
            self._setting.before_run()
        run = GuestRun(
            self._main,
            seed=self._case.seed,
            order=self._case.order,
            clock=self._clock,
            instruments=[self._watchdog],
        )
        with (
            contextlib.closing(run),
            self._alarm.watching(lambda: self._watchdog.passes, self._on_hang),
        ):
            while run.outcome is None and not self._is_abandoned:
                run.tick()
        if run.outcome is not None:
            run.outcome.unwrap()
        if self._misuse is not None:
            raise self._misuse
        if (name := self._servers.unknown) is not None:
            raise ValueError(
                f"{own_name(self._handler, 'the handler')} connects to {name}, which"
                f" is not in this test: add servers={{{name!r}: server}}, where server"
                " is an async function of one stream, or None to refuse"
            )
        return Run(
            case=self._case,
            received=self._state.received,
            reports=self._state.reports,
            steps=self._steps,
            seconds=self._clock.current_time(),
            violations=self._state.violations,
            timeline=self._state.timeline,
            opened=self._servers.opened,
        )

    def _on_hang(self, how: str) -> None:
        tell_once(how, repr(self._case))

    def _abandon(self) -> None:
        self._is_abandoned = bool(self._watchdog.family)

    # -- playing

    async def _main(self) -> None:
        # Seeded like the faults of `trioserve proxy`: a saved case does the same to
        # the n-th connection there.
        network = MemoryNetwork(
            buffer=self._case.buffer,
            seed=self._case.seed,
            on_event=Observer(self._state).on_event,
        )
        listener = network.listen()
        with self._state.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._detect_deadlock)
                await self._servers.start(nursery)
                serving = functools.partial(
                    serve,
                    self._handle,
                    [listener],
                    limits=self._setting.limits or _NO_LIMITS,
                    timeouts=self._setting.timeouts or self._timeouts(),
                    collector=self._collect,
                )
                self._server = server = await nursery.start(serving)
                for number in range(self._case.rounds):
                    self._state.round = number
                    self._cancels_handlers = False
                    await self._play_round(network, listener)
                    if server.draining.is_set():
                        break
                judge_tasks(self._state)
                await server.drain(reason="the run is over")
                judge_server(self._state, server)
                self._servers.judge()
                nursery.cancel_scope.cancel(reason="the run is over")
        if not self._state.is_stopped:
            judge_handlers(self._state, self._setting)

    def _timeouts(self) -> Timeouts:
        cleanup = max(_NO_TIMEOUTS.cleanup, self._setting.cleanup)
        timeouts = dataclasses.replace(_NO_TIMEOUTS, cleanup=cleanup)
        if self._case.is_undisturbed or self._case.play in HOSTILE:
            return timeouts
        silence = _SILENCE + self._case.waits
        return dataclasses.replace(
            timeouts, idle=silence, half_closed=silence, write_stall=silence
        )

    async def _play_round(
        self, network: MemoryNetwork, listener: MemoryListener
    ) -> None:
        state = self._state
        ended = len(state.reports) + state.unserved
        players = await self._connect(network, listener)
        state.players = [player for player in players if player is not None]
        received = [Received(b"", "reset", 0)] * len(players)
        state.received.append(received)
        async with trio.open_nursery() as self._timers:
            async with trio.open_nursery() as talking:
                if state.is_disturbed:
                    self._watchdog.begin(self._case.at_step, self._disturb)
                for index, player in enumerate(players):
                    if player is not None:
                        talking.start_soon(self._talk, player, received, index)
            self._after(_RETRIES, self._give_up_peers)
            self._require_ended(self._setting.patience, "after its peers have left")
            await state.all_ended(ended + len(state.players))
            if state.is_disturbed:
                self._watchdog.end()
                self._servers.end_round()
            self._steps = self._steps or self._watchdog.steps
            await trio.testing.wait_all_tasks_blocked()
            await self._invariants.wait_until_all_hold()
            self._timers.cancel_scope.cancel(reason="the round is over")

    async def _connect(
        self, network: MemoryNetwork, listener: MemoryListener
    ) -> list[Player | None]:
        """Connect all peers of the round; None stands for a refused one."""
        case, is_disturbed = self._case, self._state.is_disturbed
        faults = case.faults if is_disturbed else None
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
                if is_disturbed:
                    peer = played(peer, case.play)
                    peer = flooding(peer, case.flood) if case.flood else peer
                if is_disturbed and case.play in HOSTILE and peer.sends:
                    player: Player = HostilePlayer(
                        peer, client, meetings, self._setting, self._state
                    )
                elif peer.is_code and (code := self._setting.client) is not None:
                    player = CodePlayer(code, peer, client, meetings, self._on_mismatch)
                else:
                    player = Player(peer, client, meetings, self._on_mismatch)
                players.append(player)
        return players

    async def _talk(self, player: Player, received: list[Received], index: int) -> None:
        mismatch = None
        is_patient = not self._state.may_mismatch or self._case.play in HOSTILE
        patience = math.inf if is_patient else _SCRIPT + self._case.waits
        delays = self._state.is_disturbed
        with trio.move_on_after(patience):
            try:
                await player.play(read_delay=self._case.read_delay if delays else 0)
            except MismatchError as error:
                mismatch = str(error)
        data = bytes(player.received)
        received[index] = Received(
            data, player.tail, player.consumed, mismatch, player.sent
        )

    def _on_mismatch(
        self, player: Player, how: str, cause: BaseException | None = None
    ) -> None:
        if not self._state.may_mismatch:
            self._state.record(player.name, how)
            self._state.violated("answer", f"{player}: {how}", cause)

    async def _collect(
        self, reports: trio.MemoryReceiveChannel[ConnectionReport]
    ) -> None:
        async for report in reports:
            self._state.reports.append(report)
            self._state.note_end(is_served=True)

    # -- the handler

    async def _handle(self, stream: Connection) -> object:
        try:
            coroutine = self._handler(stream)
            if not isinstance(coroutine, Coroutine):
                raise TypeError(
                    f"a handler must be an async function, not {self._handler!r}"
                )
        except TypeError as error:
            self._misuse = error
            self._state.stop()
            return None
        handler = HandlerRun(
            ObservedCoroutine(coroutine), self._setting.memory, self._state.round
        )
        self._state.handlers[stream.id] = handler
        self._watchdog.family[handler.task] = None
        if self._cancels_handlers:
            handler.scope.cancel(reason=CANCEL_REASON)
        try:
            with handler.scope:
                result = await handler.coroutine
                handler.returned = True
                return result
            stream.abort()
            return None
        except BaseException as error:  # noqa: ASYNC103
            handler.raised = error
            if self._ends_the_program(error) or self._hung(error):
                return None  # noqa: ASYNC104 - the test goes on
            raise
        finally:
            handler.is_over = True
            self._watchdog.family.pop(handler.task, None)
            self._state.record(f"handler {stream.id}", handler.end, handler.end_line)
            expected = (trio.Cancelled, *MAY_RAISE, *self._setting.raises)
            if not all(isinstance(e, expected) for e in single_errors(handler.raised)):
                self._state.is_told = True

    def _ends_the_program(self, error: BaseException) -> bool:
        """Whether the error would also end the run and the test; that breaks a law."""
        ends = [each for each in single_errors(error) if isinstance(each, SystemExit)]
        if not ends or issubclass(SystemExit, self._setting.raises):
            return False
        how = f"it raised {ends[0]!r}, which ends the program"
        self._state.violated("errors", how)
        self._state.stop()
        return True

    def _hung(self, error: BaseException) -> bool:
        """Whether the alarm has ended the handler; that breaks a law."""
        hangs = [each for each in single_errors(error) if isinstance(each, HangError)]
        if hangs:
            self._state.violated("ends", str(hangs[0]), error)
            self._state.stop()
        return bool(hangs)

    # -- disturbances

    def _disturb(self) -> None:
        match self._case.disturbance:
            case "cancel":
                self._cancel_handlers()
            case "drain":
                self._drain()
            case "eof":
                self._disturb_peers("sends EOF", MemoryStream.send_eof_now)
            case "reset":
                self._disturb_peers("resets", MemoryStream.reset)
            case "stall":
                self._disturb_peers("stalls: what it sends is lost", MemoryStream.stall)
            case "vanish":
                self._disturb_peers("vanishes", MemoryStream.vanish)
            case None:  # pragma: no cover
                raise AssertionError

    def _cancel_handlers(self) -> None:
        what = "cancels the handler; nothing more arrives from its peer"
        self._state.record("test", what)
        self._cancels_handlers = True
        for handler in self._state.handlers.values():
            handler.scope.cancel(reason=CANCEL_REASON)
        for player in self._state.players:
            player.stream.stall()
            player.pause_reading()
        self._require_ended(self._setting.cleanup, "after it was cancelled")

    def _drain(self) -> None:
        assert self._server is not None
        self._state.record("test", "drains the server")
        self._server.start_draining(reason="the test drains")
        timeouts = self._server.timeouts
        deadline = timeouts.lame_duck + timeouts.drain
        self._require_ended(
            self._setting.cleanup, "after the deadline of a drain", late=deadline
        )

    def _disturb_peers(
        self, what: str, disturb: Callable[[MemoryStream], None]
    ) -> None:
        for player in self._state.players:
            self._state.record(player.name, what)
            disturb(player.stream)

    # -- time

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call ``call`` after so many seconds, unless the round ends before that."""

        async def wait() -> None:
            await trio.sleep(seconds)
            call()

        assert self._timers is not None
        self._timers.start_soon(wait)

    def _require_ended(self, within: float, since: str, *, late: float = 0) -> None:
        """Require that all handlers end within ``late + within`` seconds from now."""
        when = f"{within:g} seconds {since}"
        require = functools.partial(require_ended, self._state, when)
        self._after(late + within, require)

    def _give_up_peers(self) -> None:
        for player in self._state.players:
            player.stream.give_up()

    async def _detect_deadlock(self) -> None:
        # When all tasks wait, the virtual clock jumps to the next deadline. This is
        # the last one: when it passes, nothing will wake the tasks.
        await trio.sleep_until(_LIFETIME + self._case.rounds * self._case.waits)
        found_deadlock(self._state)


def play(
    handler: Handler,
    case: Case,
    setting: Setting,
    alarm: HangAlarm,
    *,
    hurries: bool = False,
) -> Run:
    """Play a case. Within a Trio run, play it in a thread and wait for the thread."""
    harness = Harness(handler, case, setting, alarm, hurries=hurries)
    if not trio.lowlevel.in_trio_run():
        return harness.run()
    runs: list[Run] = []
    errors: list[BaseException] = []

    def run_in_thread() -> None:
        try:
            runs.append(harness.run())
        except BaseException as error:  # noqa: ASYNC103 - the calling thread raises it
            errors.append(error)

    thread = threading.Thread(target=run_in_thread, name="trioserve.testing")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return runs[0]
