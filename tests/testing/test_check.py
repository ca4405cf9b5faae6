"""Checking handlers: arguments, runs, failures and their messages.

``test_zoo`` shows which mistakes are found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import socket
import unittest
from pathlib import Path
from typing import Any

import pytest
import trio

import trioserve
import trioserve.testing
from trioserve import (
    Connection,
    ConnectionReport,
    Limits,
    Reason,
    Server,
    Statistics,
    Timeouts,
    _record,
    _serving,
)
from trioserve._lifecycle import Lifecycle
from trioserve.faults import Faults, Schedule, parse_faults
from trioserve.testing import (
    Case,
    HandlerFailure,
    Law,
    MemoryStream,
    Peer,
    check_handler,
    run_conversation,
    sweep_cancellations,
    sweep_faults,
)

HELLO = Peer().send(b"hello\n").expect(b"HELLO\n").half_close().expect_eof()


async def shout(stream: Connection) -> str:
    async for data in stream:
        await stream.send_all(data.upper())
    return "done"


async def swallows(stream: Connection) -> None:
    with contextlib.suppress(BaseException):
        await shout(stream)


# -- one conversation


def test_a_run_has_what_peers_received_and_the_reports() -> None:
    run = run_conversation(shout, HELLO)
    ((heard,),) = run.received
    assert (heard.data, heard.tail, heard.mismatch) == (b"HELLO\n", "eof", None)
    (report,) = run.reports
    assert report.reason is Reason.CLIENT_CLOSED
    assert report.result == "done"
    assert (report.bytes_received, report.bytes_sent) == (6, 6)
    assert run.steps > 5
    assert run.seconds == 0
    assert not run.violations


def test_the_same_case_runs_the_same_way() -> None:
    for seed in range(5):
        first, again = (run_conversation(shout, HELLO, HELLO, seed=seed) for _ in "ab")
        assert str(first.timeline) == str(again.timeline)
        assert first.steps == again.steps


def test_seeds_give_different_orders_of_tasks() -> None:
    runs = [run_conversation(shout, HELLO, HELLO, seed=seed) for seed in range(10)]
    assert len({str(run.timeline) for run in runs}) > 1


def test_trios_own_shuffling_is_restored() -> None:
    """Other Trio runs of the process are not affected."""
    from trio._core import _run

    before = _run._r.getstate(), _run._ALLOW_DETERMINISTIC_SCHEDULING
    run_conversation(shout, HELLO, seed=3)
    assert before == (_run._r.getstate(), _run._ALLOW_DETERMINISTIC_SCHEDULING)


async def test_it_can_be_called_in_a_trio_run() -> None:
    run = run_conversation(shout, HELLO)
    assert run.received[0][0].data == b"HELLO\n"
    with pytest.raises(HandlerFailure, match="swallow"):
        sweep_cancellations(swallows, HELLO)
    with pytest.raises(TypeError, match="must be an async function"):
        run_conversation(lambda stream: None, HELLO)  # type: ignore[arg-type,return-value]


@pytest.mark.long("a whole check")
def test_it_can_be_called_by_unittest() -> None:
    class Tests(unittest.TestCase):
        def test_shout(self) -> None:
            check_handler(shout, HELLO)

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Tests).run(result)
    assert result.wasSuccessful()
    assert result.testsRun == 1


def test_peers_talk_at_the_same_time() -> None:
    here = list[Connection]()

    async def crowd(stream: Connection) -> None:
        here.append(stream)
        data = await stream.receive_some()
        for other in here:
            await other.send_all(data)
        await shout(stream)

    one = Peer().meet("both are here").send(b"a").expect(b"a").close()
    other = Peer().meet("both are here").wait(1).expect(b"a").close()
    run = run_conversation(crowd, one, other, without={"errors": "a chat"})
    assert [heard.data for heard in run.received[0]] == [b"a", b"a"]


def test_rounds_and_copies() -> None:
    run = run_conversation(shout, HELLO, copies=3, rounds=2)
    assert [[one.data for one in heard] for heard in run.received] == [
        [b"HELLO\n"] * 3
    ] * 2
    assert len(run.reports) == 6


def test_faults_apply_to_the_first_round_only() -> None:
    run = run_conversation(shout, HELLO, faults="up:reset@3", rounds=2)
    assert [heard[0].tail for heard in run.received] == ["reset", "eof"]
    assert [report.reason for report in run.reports] == [
        "client_reset",
        "client_closed",
    ]


def test_virtual_time_passes_at_once() -> None:
    run = run_conversation(shout, Peer().wait(3600).send(b"x").expect(b"X"))
    assert run.seconds >= 3600


def test_a_peer_may_wait_for_days() -> None:
    peer = Peer().wait(1e6).send(b"x").expect(b"X")
    assert run_conversation(shout, peer, rounds=2).seconds == 2e6


def test_no_timer_ends_a_connection_unless_timeouts_are_given() -> None:
    quiet = Peer().wait(7200).close()
    assert run_conversation(shout, quiet).reports[0].reason == "client_closed"
    with pytest.raises(HandlerFailure, match="'answer'"):
        run_conversation(
            shout,
            quiet.__class__().wait(7200).send(b"x").expect(b"X"),
            timeouts=Timeouts(idle=60),
        )


def test_limits_are_passed_to_the_server() -> None:
    with pytest.raises(HandlerFailure, match="'alone'"):
        run_conversation(
            shout, HELLO, HELLO, limits=Limits(max_connections=1, when_full="refuse")
        )


@pytest.mark.parametrize(
    "disturbance", ["cancel", "drain", "eof", "reset", "stall", "vanish"]
)
def test_each_disturbance_after_each_step(disturbance: Any) -> None:
    for at in range(12):
        run = run_conversation(
            shout, HELLO, disturbance=disturbance, at_step=at, rounds=1
        )
        assert len(run.reports) == 1


def test_a_drain_may_meet_a_connection_that_is_still_queued() -> None:
    """The listener resets it. That was a KeyError, and then a deadlock of the kit."""
    for seed in range(10):
        for at in range(4):
            run = run_conversation(
                shout, HELLO, HELLO, disturbance="drain", at_step=at, seed=seed
            )
            assert len(run.received[0]) == 2


def test_a_late_reader_and_a_small_buffer() -> None:
    run = run_conversation(shout, HELLO, read_delay=5, buffer=2)
    assert run.received[0][0].data == b"HELLO\n"
    assert run.seconds >= 5


# -- a case


def test_a_case_prints_as_the_python_that_runs_it_again() -> None:
    case = Case(
        (HELLO,), faults=parse_faults("up:reset@3"), disturbance="cancel", at_step=3
    )
    assert repr(Case((Peer().close(),))) == "run_conversation(handler, Peer().close())"

    def made(*peers: Peer, faults: str, disturbance: Any, at_step: int) -> Case:
        return Case(
            peers, faults=parse_faults(faults), disturbance=disturbance, at_step=at_step
        )

    again = eval(
        repr(case).replace("run_conversation", "made").replace("handler,", ""),
        {"Peer": Peer, "made": made},
    )
    assert again == case


def test_a_failure_prints_the_python_that_runs_it_again() -> None:
    calls = list[int]()

    async def raises_at_last(stream: Connection) -> None:
        async for _ in stream:
            pass
        raise ValueError("v")

    setting: dict[str, Any] = {
        "raises": (KeyError, OSError),
        "without": {"record": "it does not matter here"},
        "before_run": lambda: calls.append(1),
        "limits": Limits(max_connections=3, refusal=None),
        "timeouts": Timeouts(idle=5, half_closed=math.inf),
    }
    with pytest.raises(HandlerFailure) as failed:
        run_conversation(raises_at_last, Peer().send(b"x").close(), **setting)
    again = failed.value.again
    assert "timeouts=Timeouts(idle=5, half_closed=math.inf)" in again
    assert "raises=[KeyError, OSError]" in again
    assert "before_run=before_run" in again
    names = {"raises_at_last": raises_at_last, "before_run": setting["before_run"]}
    del calls[:]
    with pytest.raises(HandlerFailure) as failed_again:
        eval(again, vars(trioserve) | vars(trioserve.testing) | names | {"math": math})
    assert calls
    assert str(failed_again.value) == str(failed.value)


def test_a_seed_does_the_same_in_memory_and_on_the_wire() -> None:
    """The second connection gets the same slices from the kit and from a schedule."""
    seen = dict[int, list[int]]()

    async def counts(stream: Connection) -> None:
        seen[stream.id] = [len(data) async for data in stream]

    words = bytes(range(200))
    run_conversation(counts, *[Peer().send(words)] * 2, faults="up:slice=1..9", seed=7)
    schedule = Schedule(parse_faults("up:slice=1..9").up, "7 2 up")
    assert seen[2] == [len(segment.data) for segment in schedule.feed(words, 0)]


def test_a_case_is_saved_for_the_proxy(tmp_path: Path) -> None:
    case = Case((HELLO,), faults=parse_faults("up:reset@3"), seed=7)
    case.save(tmp_path / "case.json")
    saved = json.loads((tmp_path / "case.json").read_text())
    assert saved["seed"] == 7
    assert parse_faults(saved["faults"]) == case.faults
    assert saved["case"] == repr(case)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "peers must not be empty"),
        (
            {"disturbance": "explode", "at_step": 1},
            r"disturbance must be one of .*'cancel'.*, not 'explode'",
        ),
        ({"disturbance": "cancel"}, "disturbance and at_step go together"),
        ({"at_step": 3}, "disturbance and at_step go together"),
        ({"copies": 0}, "copies must be 1 or more"),
        ({"rounds": 0}, "rounds must be 1 or more"),
        ({"buffer": 0}, "buffer must be 1 or more"),
        ({"disturbance": "cancel", "at_step": -1}, "at_step must be 0 or more"),
        ({"flood": -1}, "flood must be 0 or more"),
        ({"read_delay": -1}, "read_delay must be 0 or more and finite"),
        ({"read_delay": math.inf}, "read_delay must be 0 or more and finite"),
        ({"without": {"gravity": "no"}}, "without must name laws.*'gravity'"),
        ({"without": {"alone": " "}}, "without needs a reason for 'alone'"),
        ({"faults": "reset@x"}, "reset"),
    ],
    ids=repr,
)
def test_a_wrong_value_is_an_error_before_anything_runs(
    arguments: dict[str, Any], complaint: str
) -> None:
    peers = () if not arguments else (HELLO,)
    with pytest.raises(ValueError, match=complaint):
        run_conversation(shout, *peers, **arguments)


def test_peers_and_explore_are_checked() -> None:
    with pytest.raises(TypeError, match="peers must be Peers only, not b'hello'"):
        run_conversation(shout, b"hello")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"explore must be one of .*not 'deep'"):
        check_handler(shout, HELLO, explore="deep")  # type: ignore[arg-type]


# -- checking


def test_a_peer_that_sends_nothing_floods_nothing() -> None:
    run = run_conversation(shout, Peer().half_close().expect_eof(), flood=1000)
    assert run.reports[0].bytes_received == 0


@pytest.mark.nightly("all cases")
def test_a_thorough_check_passes() -> None:
    check_handler(shout, Peer().reset(), explore="thorough")


@pytest.mark.long("whole sweeps")
def test_sweeps_return_how_much_they_tried() -> None:
    short = Peer().send(b"a").expect(b"A").close()
    steps = sweep_cancellations(shout, short)
    assert steps == run_conversation(shout, short).steps
    # 4 disturbances at each step, 4 faults at each byte up and 3 at each byte down.
    assert sweep_faults(shout, short) == 4 * (steps + 1) + 4 * 2 + 3 * 2


def test_a_failure_says_what_when_and_where() -> None:
    with pytest.raises(HandlerFailure) as failed:
        check_handler(swallows, HELLO)
    failure = failed.value
    assert failure.law == "cancelled"
    assert failure.case.disturbance == "cancel"
    text = str(failure)
    assert "it was cancelled, and returned as if it was not" in text
    assert "The law: the handler does not swallow a Cancelled." in text
    assert "run_conversation(\n            swallows,\n" in text
    assert "test_check.py" in text
    assert " in shout" in text
    assert "cancels the handler" in text
    # The printed case fails again.
    with pytest.raises(HandlerFailure, match="'cancelled'"):
        run_conversation(
            swallows,
            *failure.case.peers,
            disturbance="cancel",
            at_step=failure.case.at_step,
        )


def test_a_law_is_switched_off_by_name() -> None:
    off: dict[Law, str] = {"cancelled": "this test switches it off"}
    assert sweep_cancellations(swallows, HELLO, without=off)


def test_an_exception_must_be_named_in_raises() -> None:
    class Rude(Exception):
        pass

    async def raises(stream: Connection) -> None:
        await shout(stream)
        raise ExceptionGroup("several", [Rude()])

    # What it raises after EOF resets the connection.
    rude = Peer().send(b"a").expect(b"A").half_close().expect_reset()
    with pytest.raises(HandlerFailure, match="it raised Rude"):
        run_conversation(raises, rude)
    run_conversation(raises, rude, raises=[Rude])


def test_a_deadlock_is_found_and_names_each_line() -> None:
    async def waits(stream: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await shout(stream)

    with pytest.raises(HandlerFailure) as failed:
        run_conversation(waits, HELLO)
    text = str(failed.value)
    assert failed.value.law == "ends"
    assert "deadlock: all tasks wait, and nothing will wake them:\n" in text
    assert "handler 1 is at test_check.py" in text
    assert "task trio.sleep_forever is at" in text
    assert "peer 1, at .expect_eof()" in text


def test_a_handler_that_spins_is_named(impatient: None) -> None:
    async def spins(stream: Connection) -> None:
        while True:
            await stream.send_all((await stream.receive_some()).upper())

    with pytest.raises(HandlerFailure) as failed:
        run_conversation(spins, HELLO)
    text = str(failed.value)
    assert failed.value.law == "ends"
    assert "endless loop: it keeps running, and no byte moves:\n" in text
    assert "spins" in text
    assert " times more" in text or "rows more" in text


def test_a_handler_that_cannot_be_stopped_is_abandoned(impatient: None) -> None:
    async def swallows_every_cancel(stream: Connection) -> None:
        while True:
            with contextlib.suppress(BaseException):
                await trio.lowlevel.checkpoint()

    with pytest.raises(HandlerFailure, match="endless loop"):
        run_conversation(swallows_every_cancel, HELLO)


def test_long_work_is_not_an_endless_loop() -> None:
    async def works(stream: Connection) -> None:
        async for data in stream:
            for _ in range(5000):
                await trio.lowlevel.checkpoint()
            await stream.send_all(data.upper())

    run_conversation(works, HELLO)


def test_no_time_passes_while_a_thread_works() -> None:
    async def works(stream: Connection) -> None:
        async for data in stream:
            with trio.fail_after(60):
                answer = await trio.to_thread.run_sync(data.upper)
            await stream.send_all(answer)

    assert run_conversation(works, HELLO).seconds < 60


def test_time_passes_again_after_a_thread_has_ended() -> None:
    async def works(stream: Connection) -> None:
        answer = await trio.to_thread.run_sync((await stream.receive_some()).upper)
        with trio.CancelScope(shield=True):
            await stream.send_all(answer)
        await trio.to_thread.run_sync(bytes)

    peer = Peer().send(b"x").expect(b"X").wait(1).expect_eof()
    assert run_conversation(works, peer).seconds == 1
    assert run_conversation(works, peer, faults="latency=0.1s").seconds > 1


def test_a_shield_that_is_never_left_is_found() -> None:
    async def waits(stream: Connection) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

    async def has_a_task_that_waits(stream: Connection) -> None:
        async with trio.open_nursery() as nursery:  # noqa: ASYNC112
            nursery.start_soon(waits, stream)

    async def leaks(stream: Connection) -> None:
        trio.lowlevel.spawn_system_task(waits, stream)
        await shout(stream)

    async def cleans_up(stream: Connection) -> None:
        try:
            await shout(stream)
        finally:
            await waits(stream)  # noqa: ASYNC102

    for handler in (waits, has_a_task_that_waits):
        with pytest.raises(HandlerFailure, match="deadlock: all tasks wait"):
            run_conversation(handler, HELLO)
    with pytest.raises(HandlerFailure, match="still runs, at"):
        run_conversation(leaks, HELLO)
    with pytest.raises(HandlerFailure, match="30 seconds after it was cancelled"):
        run_conversation(cleans_up, HELLO, disturbance="cancel", at_step=5)


@pytest.mark.untraced
@pytest.mark.long("a task is given up after seconds")
def test_a_task_that_cannot_be_stopped_is_abandoned(impatient: None) -> None:
    """The rest of it does not keep the interpreter from exiting."""

    async def polls() -> None:
        while True:
            with contextlib.suppress(BaseException):
                await trio.sleep(1)

    async def has_a_task_that_polls(stream: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(polls)
            await shout(stream)

    async def polls_itself(stream: Connection) -> None:
        await polls()

    for handler in (has_a_task_that_polls, polls_itself):
        with pytest.raises(HandlerFailure, match="endless loop"):
            run_conversation(handler, HELLO)


@pytest.mark.long("whole checks")
def test_tasks_of_a_disturbance_do_not_count_as_the_handlers(impatient: None) -> None:
    async def spins(stream: Connection) -> None:
        while True:
            with contextlib.suppress(trio.Cancelled):
                await trio.sleep_forever()

    for at in range(4, 7):
        with pytest.raises(HandlerFailure) as failed:
            run_conversation(spins, HELLO, disturbance="cancel", at_step=at)
        assert "  task " not in failed.value.how


def test_a_handler_that_outlives_the_deadline_of_a_drain_is_found() -> None:
    async def takes_its_time(stream: Connection) -> None:
        try:
            await shout(stream)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(600)

    waits = Peer().send(b"x").expect(b"X").wait(2000)
    with pytest.raises(
        HandlerFailure, match="30 seconds after the deadline of a drain"
    ) as failed:
        run_conversation(takes_its_time, waits, disturbance="drain", at_step=5)
    assert failed.value.law == "drain"


def test_a_handler_does_not_end_the_program() -> None:
    async def exits(stream: Connection) -> None:
        async with trio.open_nursery():
            raise SystemExit(1)

    with pytest.raises(HandlerFailure, match="it raised SystemExit") as failed:
        run_conversation(exits, HELLO)
    assert failed.value.law == "errors"


def test_a_handler_that_lingers_is_found() -> None:
    async def sleeps(stream: Connection) -> None:
        await shout(stream)
        await trio.sleep(3600)

    with pytest.raises(HandlerFailure, match="1000 seconds after its peers have left"):
        run_conversation(sleeps, Peer().send(b"x").close())


def test_socket_options_have_no_effect_in_memory() -> None:
    async def hurries(stream: Connection) -> None:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        await shout(stream)

    run_conversation(hurries, HELLO)


def test_a_handler_that_polls_without_end_is_found(impatient: None) -> None:
    async def polls(stream: Connection) -> None:
        while True:
            await trio.sleep(1)

    with pytest.raises(HandlerFailure, match="endless loop"):
        run_conversation(polls, Peer())


def test_a_task_that_outlives_it_is_named() -> None:
    async def leaks(stream: Connection) -> None:
        trio.lowlevel.spawn_system_task(trio.sleep, math.inf, name="the leak")
        await shout(stream)

    with pytest.raises(HandlerFailure, match="its task the leak still runs"):
        run_conversation(leaks, HELLO)


def test_a_stray_cancelled_is_an_error() -> None:
    stolen = list[trio.Cancelled]()

    async def hides(stream: Connection) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                stolen.append(error)
                raise
        await shout(stream)
        raise stolen.pop()

    with pytest.raises(HandlerFailure, match="it raised Cancelled"):
        run_conversation(hides, Peer().half_close().expect_reset())


def test_state_that_the_next_connection_sees_is_found() -> None:
    async def counts(stream: Connection) -> None:
        await stream.send_all(b"%d" % stream.id)

    with pytest.raises(HandlerFailure, match=r"'nothing_left': peer 2, at .expect"):
        check_handler(counts, Peer().expect(b"1"))


def test_a_failure_that_does_not_repeat_says_so() -> None:
    calls = list[Connection]()

    async def fails_once(stream: Connection) -> None:
        calls.append(stream)
        if len(calls) == 7:
            raise ZeroDivisionError
        await shout(stream)

    with pytest.raises(HandlerFailure, match="this case passes when it runs again"):
        check_handler(fails_once, HELLO)


def test_bytes_that_a_script_accepts_are_compared_too() -> None:
    async def measures(stream: Connection) -> None:
        async for data in stream:
            await stream.send_all(b"%d" % len(data) * len(data))

    with pytest.raises(HandlerFailure, match=r"received b'11', but b'22' when nothing"):
        check_handler(measures, Peer().send(b"ab").receive(2))


@pytest.mark.parametrize(
    ("lie", "law", "how"),
    [
        ({"open": 1}, "nothing_left", "1 connections are still open"),
        ({"accepted": 2}, "record", "1 reports for 2 connections"),
    ],
)
def test_the_servers_counters_are_checked(
    lie: dict[str, Any], law: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Server.statistics

    def lies(server: Server) -> Statistics:
        return dataclasses.replace(honest(server), **lie)

    monkeypatch.setattr(Server, "statistics", lies)
    with pytest.raises(HandlerFailure, match=f"{law!r}: {how}"):
        run_conversation(shout, HELLO)


def test_a_report_is_compared_with_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _record.report_of

    def lies(life: Lifecycle, others: int) -> ConnectionReport:
        return dataclasses.replace(honest(life, others), bytes_received=7)

    monkeypatch.setattr(_serving, "report_of", lies)
    how = "6 bytes were received and 6 sent, but the report says 7 and 6"
    with pytest.raises(HandlerFailure, match=f"'record': {how}"):
        run_conversation(shout, HELLO)


def test_a_stream_that_stays_open_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    report_event = MemoryStream._report_event

    def hides(stream: MemoryStream, kind: Any, data: Any = None) -> None:
        if kind != "close":
            report_event(stream, kind, data)

    monkeypatch.setattr(MemoryStream, "_report_event", hides)
    with pytest.raises(HandlerFailure, match="connection 1 is not closed"):
        run_conversation(shout, HELLO)


@pytest.mark.parametrize("faults", ["", "down:latency=1ms"])
def test_a_thread_is_waited_for_at_the_end_too(faults: str) -> None:
    async def works(stream: Connection) -> None:
        await shout(stream)
        await trio.to_thread.run_sync(int)

    run_conversation(works, HELLO, faults=faults)


def test_a_sender_gets_an_error_when_its_peer_has_vanished() -> None:
    """As with a kernel, whose retransmissions fail after some time."""

    async def beats(stream: Connection) -> None:
        async def beat() -> None:
            while True:
                await trio.sleep(20)
                await stream.send_all(b"still here\n")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat)
            await shout(stream)
            nursery.cancel_scope.cancel()

    sweep_faults(beats, Peer().send(b"a").expect(b"A"))


def test_before_run_resets_shared_state() -> None:
    stock = {"left": 0}

    async def sells(stream: Connection) -> None:
        async for _ in stream:
            sold, stock["left"] = stock["left"] > 0, 0
            await stream.send_all(b"sold" if sold else b"none")

    run = run_conversation(
        sells,
        Peer().send(b"?").expect(b"sold"),
        before_run=lambda: stock.update(left=1),
    )
    assert run.received[0][0].data == b"sold"
    sweep_cancellations(
        sells,
        Peer().send(b"?").receive(4),
        before_run=lambda: stock.update(left=1),
        without={"nothing_left": "it is sold"},
    )


def test_a_handler_of_two_arguments_is_a_type_error() -> None:
    async def two(reader: object, writer: object) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        run_conversation(two, HELLO)  # type: ignore[arg-type]


def test_an_error_is_shown_with_its_line_and_is_the_cause() -> None:
    def look_up(key: str) -> str:
        return dict[str, str]()[key]

    async def fails(stream: Connection) -> None:
        look_up("nothing")

    with pytest.raises(
        HandlerFailure, match=r"KeyError\('nothing'\), at .*look_up"
    ) as e:
        run_conversation(fails, Peer().expect_reset())
    assert isinstance(e.value.__cause__, KeyError)
    with pytest.raises(HandlerFailure, match="1 ended with BrokenResourceError"):
        run_conversation(resets_itself, HELLO)


async def resets_itself(stream: Connection) -> None:
    await stream.receive_some()
    raise trio.BrokenResourceError


MUCH = bytes(range(256)) * 400


def test_much_data_does_not_make_a_message_long() -> None:
    async def turns(stream: Connection) -> None:
        async for chunk in stream:
            await stream.send_all(chunk[::-1])

    with pytest.raises(HandlerFailure) as failed:
        run_conversation(turns, Peer().send(MUCH).expect(MUCH), faults="up:cut@9")
    assert len(str(failed.value)) < 10_000
    assert "see failure.as_test()" in str(failed.value)
    assert "which differ from byte " in str(failed.value)


@pytest.mark.nightly("a whole check of much data")
def test_much_data_does_not_make_a_check_long() -> None:
    checked = check_handler(trioserve.echo, Peer().send(MUCH).expect(MUCH))
    tried, of = checked.sampled["a broken network"]
    assert of == 2 * (len(MUCH) + 1)
    assert tried < 100
    assert checked.sampled["chunks"][1] == len(MUCH) - 1


def test_a_case_without_faults_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this case has no faults"):
        Case((HELLO,), disturbance="reset", at_step=0).save(tmp_path / "case.json")
    assert not list(tmp_path.iterdir())


def test_a_handler_may_receive_after_a_cancelled_send() -> None:
    async def sends_once(stream: Connection) -> None:
        with trio.move_on_after(1):
            await stream.send_all(bytes(100_000))
        async for _ in stream:
            pass

    run_conversation(sends_once, Peer().send(b"x"), buffer=64, flood=131_072)


def test_a_law_is_switched_off_with_a_reason() -> None:
    with pytest.raises(TypeError, match=r"without must map laws"):
        run_conversation(shout, HELLO, without=["alone"])  # type: ignore[arg-type]


def test_an_error_of_the_kit_is_not_the_handlers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks(server: Server) -> Statistics:
        raise ZeroDivisionError

    monkeypatch.setattr(Server, "statistics", breaks)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        run_conversation(shout, HELLO)


def test_importing_it_imports_no_hypothesis() -> None:
    import subprocess
    import sys

    code = "import sys, trioserve.testing; sys.exit('hypothesis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.long("a whole check")
def test_our_own_echo_passes() -> None:
    check_handler(trioserve.echo, Peer().send(b"hello").expect(b"hello").half_close())


def test_a_refused_peer_sees_a_reset() -> None:
    run = run_conversation(shout, HELLO, HELLO, faults=Faults(refuse=True), rounds=2)
    assert [[one.tail for one in heard] for heard in run.received] == [
        ["reset"] * 2,
        ["eof"] * 2,
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("handler", None),
        ("raises", 5),
        ("raises", [5]),
        ("raises", [int]),
        ("without", 5),
        ("without", {"ends": 5}),
        ("before_run", 5),
        ("limits", {}),
        ("timeouts", 5),
        ("seed", "5"),
        ("copies", "2"),
        ("buffer", 1.5),
        ("read_delay", "1"),
        ("flood", True),
        ("at_step", "1"),
        ("faults", 5),
    ],
)
def test_a_type_error_names_the_argument(name: str, value: Any) -> None:
    options: dict[str, Any] = {
        "handler": says_hello,
        "disturbance": "drain",
        "at_step": 1,
    }
    options |= {name: value}
    with pytest.raises(TypeError, match=rf"\b{name}\b"):
        run_conversation(options.pop("handler"), Peer(), **options)


@pytest.mark.parametrize(
    "write",
    [
        lambda: Peer((5,)),  # type: ignore[arg-type]
        lambda: Peer(5),  # type: ignore[arg-type]
        lambda: Peer().wait("5"),  # type: ignore[arg-type]
        lambda: Peer().meet(5),  # type: ignore[arg-type]
        lambda: check_handler(says_hello, Peer(), seed="5"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_type_in_a_script_is_an_error_at_once(write: Any) -> None:
    with pytest.raises(TypeError, match=r"^(steps|seconds|name|seed) must be"):
        write()


async def says_hello(stream: Any) -> None:
    await stream.send_all(b"hello")


async def _takes(conn: Connection) -> None:
    buffer = b""
    while True:
        data = b""
        with conn.idle(held=buffer):
            data = await conn.receive_some()
        if not data:
            return
        buffer = (buffer + data).rpartition(b"\n")[2]


@pytest.mark.parametrize("at_step", range(0, 30, 4))
def test_a_drain_between_two_messages_loses_nothing(at_step: int) -> None:
    peer = Peer().send(b"one\n").send(b"two\n").wait(5)
    run_conversation(_takes, peer, disturbance="drain", at_step=at_step)


@pytest.mark.long("a whole check")
def test_a_drain_between_messages_that_have_no_answer_loses_nothing() -> None:
    check_handler(
        _takes,
        Peer().send(b"one\n").send(b"two\n"),
        without={"answer": "the handler sends no answer"},
    )
