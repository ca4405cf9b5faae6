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
from typing import Final

import trio
import trio.testing

from trioserve import ConnectionReport, Layers, Limits, Server, Timeouts, serve

from ._case import HOSTILE, Case, Handler, Setting, own_name
from ._certificates import contexts
from ._disturber import Disturber
from ._handling import Handling
from ._invariants import Invariants
from ._judge import judge_handlers, judge_server, judge_tasks
from ._liveness import Bounds, found_deadlock, found_endless_loop
from ._observer import Observer
from ._progress import tell_once
from ._result import Received, Run
from ._servers import Servers
from ._state import RunState
from ._talks import Talks
from .network import MemoryNetwork
from .runs import GuestRun, HangAlarm, Watchdog

#: By default, all peers may connect at once.
_NO_LIMITS: Final = Limits(max_connections=1000)

#: Without a disturbance or a fault, no timer of the server ends a connection.
_NO_TIMEOUTS: Final = Timeouts(
    idle=math.inf, half_closed=math.inf, write_stall=math.inf, drain=30, linger=2
)
#: With one, this many seconds of silence, plus the waits of the scripts, end a
#: connection that would otherwise wait without limit.
_SILENCE: Final = 60.0

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
        self._handling = Handling(handler, self._state, setting)
        self._servers = Servers(self._state, setting)
        self._steps = 0
        self._is_abandoned = False

    def run(self) -> Run:
        """Play the case, outside of any other Trio run.

        Raises:
          TypeError: the handler is not an async function of one argument.
          ValueError: the handler connects to something that has no name here, or a
            client or server that is code never ends.
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
        if (misuse := self._handling.misuse or self._state.misuse) is not None:
            raise misuse
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
            begun=self._state.begun,
            places=run.places,
        )

    def _on_hang(self, how: str) -> None:
        tell_once(how, repr(self._case))

    def _abandon(self) -> None:
        self._is_abandoned = bool(self._watchdog.family or self._state.code)

    # -- playing

    async def _main(self) -> None:
        # Seeded like the faults of `trioserve proxy`: a saved case does the same to
        # the n-th connection there.
        observer = Observer(self._state, encrypted=self._setting.tls)
        network = MemoryNetwork(
            buffer=(self._case.room_for_peers, self._case.buffer),
            seed=self._case.seed,
            on_event=observer.on_event,
        )
        listener = network.listen()
        with self._state.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._detect_deadlock)
                await self._servers.start(nursery)
                serving = functools.partial(
                    serve,
                    self._handling.handle,
                    [listener],
                    limits=self._setting.limits or _NO_LIMITS,
                    timeouts=self._setting.timeouts or self._timeouts(),
                    layers=Layers(tls=contexts().server) if self._setting.tls else None,
                    collector=self._collect,
                )
                server = await nursery.start(serving)
                talks = Talks(
                    self._state, self._setting, network, listener, observer.on_plain
                )
                for number in range(self._case.rounds):
                    self._state.round = number
                    self._state.cancels_handlers = False
                    await self._play_round(server, talks)
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

    async def _play_round(self, server: Server, talks: Talks) -> None:
        state = self._state
        ended = len(state.reports) + state.unserved
        players = await talks.connect()
        state.players = [player for player in players if player is not None]
        received = [Received(b"", "reset", 0)] * len(players)
        state.received.append(received)
        async with trio.open_nursery() as timers:
            bounds = Bounds(state, timers)
            disturber = Disturber(state, self._setting, server, bounds)
            async with trio.open_nursery() as talking:
                if state.is_disturbed:
                    self._watchdog.begin(self._case.at_step, disturber.disturb)
                for index, player in enumerate(players):
                    if player is not None:
                        talking.start_soon(talks.talk, player, received, index)
            bounds.after(_RETRIES, self._give_up_peers)
            bounds.require_ended(self._setting.patience, "after its peers have left")
            await state.all_ended(ended + len(state.players))
            if state.is_disturbed:
                self._watchdog.end()
                self._servers.end_round()
            self._steps = self._steps or self._watchdog.steps
            await trio.testing.wait_all_tasks_blocked()
            await self._invariants.wait_until_all_hold()
            timers.cancel_scope.cancel(reason="the round is over")

    async def _collect(
        self, reports: trio.MemoryReceiveChannel[ConnectionReport]
    ) -> None:
        async for report in reports:
            self._state.reports.append(report)
            self._state.note_end(is_served=True)

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
