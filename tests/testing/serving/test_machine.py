"""The machine passes on the real server, and finds each broken law."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from support import one_of_each
from trioserve import Connection, Limits, Reason, Timeouts
from trioserve._admission import Token, Tokens
from trioserve._collector import Reports
from trioserve._connection import lifecycle_of
from trioserve._lifecycle import Lifecycle
from trioserve._serving import Serving
from trioserve._stream_acceptor import StreamAcceptor
from trioserve._stream_transport import StreamTransport
from trioserve.testing import Client, ServeFailure, ServeMachine

pytestmark = pytest.mark.filterwarnings("error")

FAST = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    database=None,
    derandomize=True,
)
#: Failures are found, but not shrunk.
HUNT = settings(FAST, max_examples=200, phases=[Phase.generate])


def failure(machine: type[ServeMachine]) -> ServeFailure:
    with pytest.raises(ServeFailure) as caught:
        run_state_machine_as_test(machine, settings=HUNT)
    return caught.value


def nothing(*_: object, **__: object) -> None: ...


def leaks_tokens(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Token, "release", nothing)


def forgets_a_lost_report(patch: pytest.MonkeyPatch) -> None:
    put = Reports.put

    def put_and_forget(self: Reports, report: Any) -> None:
        put(self, report)
        self.lost = 0

    patch.setattr(Reports, "put", put_and_forget)


def miscounts_tokens(patch: pytest.MonkeyPatch, by: int) -> None:
    init = Tokens.__init__

    def miscounted(self: Tokens, total: int) -> None:
        init(self, total + by)

    patch.setattr(Tokens, "__init__", miscounted)


def lets_one_more_in(patch: pytest.MonkeyPatch) -> None:
    miscounts_tokens(patch, +1)


def lets_one_less_in(patch: pytest.MonkeyPatch) -> None:
    miscounts_tokens(patch, -1)


def does_not_end_after_the_last_connection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Serving, "_finish_if_over", nothing)


def does_not_cut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lifecycle, "stop", nothing)


def cuts_at_once(patch: pytest.MonkeyPatch) -> None:
    def server_drains(self: Lifecycle) -> None:
        self.stop(Reason.CUT)

    patch.setattr(Lifecycle, "server_drains", server_drains)


def counts_received_bytes_twice(patch: pytest.MonkeyPatch) -> None:
    took = StreamTransport.count_received

    def took_twice(self: StreamTransport, data: bytes, at_eof: Any) -> bytes:
        self.received += len(data)
        return took(self, data, at_eof)

    patch.setattr(StreamTransport, "count_received", took_twice)


def forgets_bytes_of_closed_connections(patch: pytest.MonkeyPatch) -> None:
    finalize = Serving._finalize

    def finalize_and_forget(self: Serving, number: int) -> None:
        finalize(self, number)
        self.ledger._sent = 0

    patch.setattr(Serving, "_finalize", finalize_and_forget)


def ends_with_a_handler_that_raises(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("trioserve._dispatch.PROGRAM_ENDS", (Exception,))


def aborts_another_one(patch: pytest.MonkeyPatch) -> None:
    finalize = Serving._finalize

    def finalize_another(self: Serving, number: int) -> None:
        finalize(self, number)
        for other in list(self.ledger.open.values())[:1]:
            other.abort()

    patch.setattr(Serving, "_finalize", finalize_another)


def forgets_a_waiting_client(patch: pytest.MonkeyPatch) -> None:
    refuse = Serving.refuse

    def refuse_or_not(self: Serving, connection: Connection, reason: Reason) -> None:
        if reason is not Reason.STOPPING:
            refuse(self, connection, reason)
        else:
            self.ledger.open.pop(connection.id)

    patch.setattr(Serving, "refuse", refuse_or_not)


def leaves_a_waiting_client_open(patch: pytest.MonkeyPatch) -> None:
    refuse = Serving.refuse

    def refuse_or_not(self: Serving, connection: Connection, reason: Reason) -> None:
        lifecycle_of(connection).transport.closed = reason is Reason.STOPPING
        refuse(self, connection, reason)

    patch.setattr(Serving, "refuse", refuse_or_not)


def accepts_clients_while_it_drains(patch: pytest.MonkeyPatch) -> None:
    async def leave_open(_: StreamAcceptor) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(StreamAcceptor, "aclose", leave_open)


def accepts_one_client_only(patch: pytest.MonkeyPatch) -> None:
    admit = StreamAcceptor._admit

    def admit_the_last(
        self: StreamAcceptor, stream: trio.abc.Stream
    ) -> Connection | None:
        self.listener._backlog.is_closed = True  # type: ignore[attr-defined]
        return admit(self, stream)

    patch.setattr(StreamAcceptor, "_admit", admit_the_last)


def ends_with_the_first_connection(patch: pytest.MonkeyPatch) -> None:
    finalize = Serving._finalize

    def finalize_and_drain(self: Serving, number: int) -> None:
        finalize(self, number)
        self.start_draining(None, "drain")

    patch.setattr(Serving, "_finalize", finalize_and_drain)


def garbles_bytes(patch: pytest.MonkeyPatch) -> None:
    took = StreamTransport.count_received

    def garble(self: StreamTransport, data: bytes, at_eof: Any) -> bytes:
        return took(self, data, at_eof)[::-1]

    patch.setattr(StreamTransport, "count_received", garble)


def reports_the_first_error_for_everybody(patch: pytest.MonkeyPatch) -> None:
    ended = Lifecycle.handler_over
    errors = dict[object, BaseException]()

    def ended_like_the_first(
        self: Lifecycle,
        error: BaseException | None,
        stream: object,
        *,
        cancelled: bool,
    ) -> None:
        run = trio.lowlevel.current_root_task()
        if isinstance(error, Exception):
            errors.setdefault(run, error)
        ended(self, errors.get(run, error), stream, cancelled=cancelled)

    patch.setattr(Lifecycle, "handler_over", ended_like_the_first)


def refuses_everybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tokens, "take_nowait", nothing)


def counts_accepted_twice(patch: pytest.MonkeyPatch) -> None:
    admit = Serving.admit

    def admit_two(self: Serving, *args: Any, **options: Any) -> Connection:
        self.ledger.accepted += 1
        return admit(self, *args, **options)

    patch.setattr(Serving, "admit", admit_two)


def loses_every_other_report(patch: pytest.MonkeyPatch) -> None:
    put = Reports.put

    def put_or_not(self: Reports, report: Any) -> None:
        if report.id % 2:
            put(self, report)
        else:
            self.lost += 1

    patch.setattr(Reports, "put", put_or_not)


def reports_twice(patch: pytest.MonkeyPatch) -> None:
    put = Reports.put

    def put_twice(self: Reports, report: Any) -> None:
        put(self, report)
        put(self, report)

    patch.setattr(Reports, "put", put_twice)


def counts_sent_bytes_twice(patch: pytest.MonkeyPatch) -> None:
    send = StreamTransport.send

    async def send_and_count(self: StreamTransport, data: bytes) -> None:
        await send(self, data)
        self.sent += len(data)

    patch.setattr(StreamTransport, "send", send_and_count)


def leaves_a_task_behind(patch: pytest.MonkeyPatch) -> None:
    sum_up = Serving._sum_up

    def sum_up_and_spawn(self: Serving) -> None:
        sum_up(self)
        trio.lowlevel.spawn_system_task(trio.sleep_forever)

    patch.setattr(Serving, "_sum_up", sum_up_and_spawn)


class RefusingMachine(ServeMachine):
    limits = Limits(max_connections=1, when_full="refuse", refusal=None)


class ReadingMachine(ServeMachine):
    """Its clients stay and read: a client that does neither may break another law."""

    def pause_reading(self, client: Client) -> None: ...

    def reset(self, client: Client) -> None: ...

    def close(self, client: Client) -> None: ...

    def vanish(self, client: Client) -> None: ...


#: All others are found with :class:`ServeMachine`.
MACHINES: dict[Callable[[pytest.MonkeyPatch], None], type[ServeMachine]] = {
    refuses_everybody: RefusingMachine,
    leaves_a_waiting_client_open: ReadingMachine,
}


@pytest.mark.parametrize(
    ("law", "break_it"),
    [
        ("limit", leaks_tokens),
        ("limit", lets_one_more_in),
        ("limit", lets_one_less_in),
        ("limit", refuses_everybody),
        *one_of_each(
            [
                ("one record", forgets_a_lost_report),
                ("drain ends", does_not_end_after_the_last_connection),
                ("drain ends", does_not_cut),
                ("drain ends", cuts_at_once),
                ("byte ledger", counts_received_bytes_twice),
                ("byte ledger", forgets_bytes_of_closed_connections),
                ("isolation", ends_with_the_first_connection),
                ("isolation", aborts_another_one),
                ("one record", forgets_a_waiting_client),
                ("no lost hello", leaves_a_waiting_client_open),
                ("no lost hello", accepts_clients_while_it_drains),
                ("no lost hello", accepts_one_client_only),
                ("isolation", ends_with_a_handler_that_raises),
                ("isolation", garbles_bytes),
                ("isolation", reports_the_first_error_for_everybody),
                ("one record", counts_accepted_twice),
                ("one record", loses_every_other_report),
                ("one record", reports_twice),
                ("byte ledger", counts_sent_bytes_twice),
                ("nothing left", leaves_a_task_behind),
            ],
            by=0,
            then_one_in=3,
        ),
    ],
)
def test_a_server_that_breaks_a_law_is_found(
    law: str,
    break_it: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_it(monkeypatch)
    assert failure(MACHINES.get(break_it, ServeMachine)).law == law


def test_the_end_of_a_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with_a_handler_that_raises(monkeypatch)
    state = ServeMachine()
    client = state.start(seed=0)
    assert isinstance(client, Client)
    with pytest.raises(ServeFailure, match="the server has ended: ") as failed:
        state.let_its_handler_raise(client)
        state.laws_hold()
    assert failed.value.law == "isolation"
    with contextlib.suppress(ServeFailure):
        state.teardown()


def test_a_shrunk_failure_reads_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaks_tokens(monkeypatch)
    with pytest.raises(ServeFailure) as caught:
        run_state_machine_as_test(
            ServeMachine, settings=settings(HUNT, phases=[Phase.generate, Phase.shrink])
        )
    assert str(caught.value) == (
        "law 'limit': tokens in use: 1, connections served: 0\n\n"
        "The law: at most `max_connections` are served,"
        " and no client waits needlessly."
    )
    told = "\n".join(caught.value.__notes__)
    steps = re.findall(r"^(?:clients_\d+ = )?state[. ].*$", told, re.MULTILINE)
    steps = [step for step in steps if "laws_hold" not in step]
    assert steps[:2] == ["state = ServeMachine()", "clients_0 = state.start(seed=0)"]
    assert len(steps) <= 5
    assert steps[-1] == "state.teardown()"


_BAD = """
from trioserve.testing import ServeMachine

async def bad(stream):
    count = 0
    async for data in stream:
        count += len(data)
        if count > 3:
            raise ValueError("x")
        await stream.send_all(data)

class BadMachine(ServeMachine):
    handler = bad

TestBad = BadMachine.TestCase
"""


@pytest.mark.long("it is shrunk in a pytest of its own")
def test_pytest_prints_a_failure_in_less_than_60_lines(tmp_path: Path) -> None:
    """It printed 4,664: the log of all examples, and tracebacks of the server."""
    (tmp_path / "test_bad.py").write_text(_BAD)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    # With CI set, pytest prints the whole message once more in its summary.
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "law 'errors': the handler of conn-1 raised ValueError('x')" in ran.stdout
    # Which lines only failing examples run says nothing about a handler.
    assert "Explanation:" not in ran.stdout
    assert len(ran.stdout.splitlines()) < 60, ran.stdout


def test_the_log_of_examples_is_not_printed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = ServeMachine()
    client = state.start(seed=0)
    assert isinstance(client, Client)
    state.kill_collector()
    state.reset(client=client)
    state.teardown()
    assert not caplog.records
    assert not logging.getLogger("trioserve").disabled


@pytest.mark.parametrize("harm", ["let_its_handler_raise", "let_its_handler_abort"])
def test_a_handler_that_is_over_can_not_be_harmed(harm: str) -> None:
    state = ServeMachine()
    client = state.start(seed=0)
    assert isinstance(client, Client)
    state.send_eof(client)
    getattr(state, harm)(client)
    state.teardown()


@pytest.mark.parametrize("harm", ["let_its_handler_raise", "let_its_handler_abort"])
def test_a_handler_that_has_not_begun_can_not_be_harmed(harm: str) -> None:
    class OneAtATime(ServeMachine):
        limits = Limits(max_connections=1)

    state = OneAtATime()
    state.start(seed=0)
    waiting = state.connect()
    assert isinstance(waiting, Client)
    getattr(state, harm)(waiting)
    state.laws_hold()
    state.teardown()


def test_the_steps_that_are_printed_are_python() -> None:
    state = ServeMachine()
    clients_0 = state.start(seed=0)
    assert isinstance(clients_0, Client)
    state.pause_reading(client=clients_0)
    state.pause_reading(client=clients_0)
    for _ in range(2):
        # More than the network holds: an answer waits, and the drain cuts it.
        state.send_much(client=clients_0, size=50_000)
        state.laws_hold()
    state.resume_reading(client=clients_0)
    state.laws_hold()
    assert clients_0.received == clients_0.sent
    state.pause_reading(client=clients_0)
    state.send_much(client=clients_0, size=50_000)
    state.drain(within=1.0)
    state.pass_time(seconds=1.0)
    state.laws_hold()
    state.resume_reading(client=clients_0)
    state.laws_hold()
    assert clients_0.tail == "reset"
    state.teardown()
    assert [report.reason for report in state.reports] == ["cut"]
    assert not state.driver.is_open


# -- other handlers, limits and timeouts


async def answer_lines(stream: Connection) -> None:
    """Answer each line, and be idle between lines."""
    while True:
        line = b""
        while not line.endswith(b"\n"):
            data = b""
            with stream.idle(held=line):
                data = await stream.receive_some(1)
            if not data:
                return
            line += data
        await stream.send_all(line.upper())


class LineMachine(ServeMachine):
    handler = answer_lines
    limits = Limits(max_connections=1, when_full="refuse")
    timeouts = Timeouts(idle=20, lame_duck=2, drain=5, cleanup=1, linger=0.5)
    messages = st.sampled_from([b"a\n", b"b", b"\n", b"cd\nef\n"])

    @rule(client=ServeMachine.clients)
    def ask(self, client: Client) -> None:
        before = len(client.received)
        client.send(b"\n")
        self.driver.settle()
        if len(client.received) > before:
            assert client.received.endswith(b"\n")

    @invariant()
    def answers_are_not_longer_than_questions(self) -> None:
        for report in self.reports:
            assert report.bytes_sent <= report.bytes_received
        assert self.server.draining.is_set() or len(self.server)


async def raise_at_once(stream: Connection) -> None:
    raise RuntimeError("out of order")


class FailingMachine(ServeMachine):
    handler = raise_at_once
    limits = Limits(max_connections=3, refusal=None)
    raises = (RuntimeError,)


@pytest.mark.parametrize("machine", [ServeMachine, LineMachine, FailingMachine])
def test_the_real_server_keeps_its_laws(machine: type[ServeMachine]) -> None:
    run_state_machine_as_test(machine, settings=FAST)


# -- handlers that break laws


async def fail_when_spoken_to(stream: Connection) -> None:
    async for _ in stream:
        async with trio.open_nursery():
            raise KeyError("nobody")


async def never_end(stream: Connection) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def outlive_the_cleanup(stream: Connection) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.move_on_after(8, shield=True):
            await trio.sleep_forever()


@pytest.mark.parametrize(
    ("handle", "law", "how"),
    [
        (fail_when_spoken_to, "errors", r"the handler of conn-\d+ raised .*Exception"),
        (never_end, "drain ends", "nothing is open, but .*conn-1 .*is at .*never_end"),
        (
            outlive_the_cleanup,
            "drain ends",
            "left tasks behind: conn-1 .*outlive",
        ),
    ],
)
def test_a_handler_that_breaks_a_law_is_found(
    handle: Callable[[Connection], Awaitable[None]], law: str, how: str
) -> None:
    class Machine(ServeMachine):
        handler = handle

    failed = failure(Machine)
    assert failed.law == law
    assert re.search(how, str(failed))
    trio.run(trio.lowlevel.checkpoint)  # no other run is open


def test_a_wrong_handler_is_a_type_error_at_once() -> None:
    class Machine(ServeMachine):
        async def handler(self, stream: Connection) -> None: ...

    with pytest.raises(TypeError, match=r"handler must be an async function of one"):
        run_state_machine_as_test(Machine, settings=HUNT)


def test_an_error_in_a_users_rule_is_raised_unchanged() -> None:
    class Machine(ServeMachine):
        @rule(client=ServeMachine.clients)
        def be_wrong(self, client: Client) -> None:
            raise ZeroDivisionError(client)

    with pytest.raises(ZeroDivisionError, match="<Client "):
        run_state_machine_as_test(Machine, settings=HUNT)
    trio.run(trio.lowlevel.checkpoint)  # no other run is open


TestServe = ServeMachine.TestCase
TestServe.settings = FAST
