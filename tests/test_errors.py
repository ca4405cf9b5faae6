"""Errors whose classes lie or raise: how they are described, and what they end."""

from __future__ import annotations

import errno
import logging
import math
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nasty
from nasty import Recipe
from support import is_reset, receive_all, run, serving
from trioserve import (
    Connection,
    ConnectionReport,
    Outcome,
    Phase,
    Reason,
    log_reports,
    relay,
)
from trioserve._connect import is_local_shortage
from trioserve._connection import lifecycle_of
from trioserve._describe import describe
from trioserve._errors import (
    PROGRAM_ENDS,
    is_a,
    is_closed,
    is_ours,
    is_shortage,
    leaves,
    log_error,
    only,
    without,
)
from trioserve._tasks import whereabouts

ISOLATED = (ValueError, OSError, trio.BrokenResourceError, GeneratorExit, StopIteration)


@settings(deadline=None, max_examples=50)
@given(nasty.errors(*ISOLATED, KeyboardInterrupt, SystemExit))
def test_every_error_can_be_described(recipe: Recipe) -> None:
    """Law 1: in one line of printable ASCII, whatever its methods do."""
    said = describe(recipe.make())
    assert type(said) is str
    assert 0 < len(said) <= 256
    assert all(" " <= character <= "~" for character in said)


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        ("raises ValueError", "Nasty: its __str__ raised ValueError"),
        ("raises itself", "Nasty: its __str__ raised Nasty"),
        ("raises KeyboardInterrupt", "Nasty: its __str__ raised KeyboardInterrupt"),
        ("returns a number", "Nasty: its __str__ raised TypeError"),
        ("returns a strange text", r"Nasty: \x1b[31m"),
    ],
)
def test_an_error_whose_str_raises_is_described(deed: str, said: str) -> None:
    error = nasty.make(ValueError, {"__str__": deed})
    assert describe(error) == said


def test_an_infinite_group_is_described() -> None:
    """A group that occurs in another twice counts once."""
    assert describe(nasty.deep(ValueError("a"))) == "ValueError: a"
    inner: Any = ValueError("a")
    for _ in range(100):
        inner = BaseExceptionGroup("twice", [inner, inner])
    assert describe(inner) == "ValueError: a; ValueError: a"


@settings(deadline=None, max_examples=50)
@given(
    st.lists(nasty.errors(*ISOLATED), max_size=2),
    st.lists(st.sampled_from(PROGRAM_ENDS).map(lambda kind: kind()), max_size=2),
)
def test_errors_that_end_the_program_are_found(
    others: list[Recipe], ends: list[BaseException]
) -> None:
    """Law 1: in every group, whatever its attributes say."""
    inside = [ValueError(), *(other.make() for other in others), *ends]
    deeds = {"subgroup": "returns None", "split": "returns None"}
    found = only(nasty.make(BaseExceptionGroup, deeds, "lies", inside), PROGRAM_ENDS)
    told = [] if found is None else leaves(found)
    assert [id(leaf) for leaf in told] == [id(end) for end in ends]


@settings(deadline=None, max_examples=50)
@given(nasty.errors(OSError, ValueError))
@example(Recipe(OSError, {"errno": "raises ValueError"}))
@example(Recipe(ValueError, {"__class__": "raises itself"}))
def test_an_error_that_lies_is_not_blamed_on_the_machine(recipe: Recipe) -> None:
    """Law 1: only its type and the system's errno count."""
    for error in (
        recipe.make(),
        OSError([], "a list"),
        OSError("no number"),
    ):
        assert not is_ours(error)
        assert not is_shortage(error)
        assert not is_closed(error)
        assert not (is_a(error, OSError) and is_local_shortage(cast(OSError, error)))


@pytest.mark.parametrize("name", ["errno", "__class__", "args"])
@pytest.mark.parametrize("deed", nasty.DEEDS)
def test_the_errno_is_the_systems_whatever_an_attribute_says(
    name: str, deed: str
) -> None:
    """Law 15: it is read where the system has put it."""
    deeds = {name: deed}
    full = cast(OSError, nasty.make(OSError, deeds, errno.EMFILE, "no room"))
    assert is_shortage(full)
    assert is_ours(full)
    assert is_local_shortage(full)
    assert is_closed(nasty.make(OSError, deeds, errno.EBADF, "it was closed"))


async def test_a_task_that_awaits_a_strange_object_is_named(
    autojump_clock: object,
) -> None:
    """Law 5: by the innermost line that can be seen."""
    over = trio.Event()

    class Strange:
        """An iterator without ``cr_frame``, which raises when that is read."""

        def __init__(self) -> None:
            self._steps = over.wait().__await__()

        def __await__(self) -> Strange:
            return self

        def __iter__(self) -> Strange:
            return self

        def __next__(self) -> object:
            return next(self._steps)

        def __getattr__(self, name: str) -> object:
            raise ValueError(name)

    async def handler(conn: Connection) -> None:
        with trio.CancelScope(shield=True):
            await Strange()  # type: ignore[misc]

    async with serving(handler) as running:
        await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        (where,) = (await running.server.drain(within=0)).stuck
        over.set()
    assert "handler at " in where


async def test_a_task_inside_trio_is_named_by_its_function() -> None:
    """Law 5: and not by the line in Trio that is the same for all."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await trio.testing.wait_all_tasks_blocked()
        (task,) = nursery.child_tasks
        (where,) = whereabouts(task)
        nursery.cancel_scope.cancel()
    assert where.startswith("sleep_forever at ")


def test_the_rest_of_a_group() -> None:
    """None, one error, or a group."""
    a, b, key = ValueError("a"), OSError("b"), KeyError()
    assert without(key, KeyError) is None
    assert without(BaseExceptionGroup("", [a, key]), KeyError) is a
    rest = without(BaseExceptionGroup("", [a, key, b]), KeyError)
    assert rest is not None
    assert list(leaves(rest)) == [a, b]


class _Careless(logging.Handler):
    """Calls ``str()`` on an error."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            text = f"{record.getMessage()}: {record.exc_info[1]}"
        else:
            text = record.getMessage()
        self.said.append(text)


@pytest.fixture
def careless() -> Any:
    handler, log = _Careless(), logging.getLogger("trioserve")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


@pytest.mark.parametrize("name", [*nasty.QUESTIONS, *nasty.PROPERTIES])
@pytest.mark.parametrize("deed", nasty.DEEDS)
def test_every_error_can_be_logged(
    name: str,
    deed: str,
    careless: _Careless,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Law 1: with its traceback, or without."""
    log = logging.getLogger("trioserve.reports")
    error = nasty.make(ValueError, {name: deed})
    log_error(log, logging.ERROR, "here %d", 7, error=error)
    assert [line[:6] for line in careless.said] == ["here 7"]
    assert "Logging error" not in capsys.readouterr().err


@pytest.mark.parametrize("where", ["its text", "a note", "its cause", "a group"])
def test_a_long_error_is_logged_by_its_beginning_and_end(
    where: str, careless: _Careless, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler's error may contain any amount of bytes from a client."""
    error: BaseException = ValueError("Here: " + "x" * 1_000_000 + ": there")
    match where:
        case "a note":
            noted = ValueError("short")
            noted.add_note(str(error))
            error = noted
        case "its cause":
            raised = ValueError("short")
            raised.__cause__ = error
            error = raised
        case "a group":
            error = BaseExceptionGroup("two", [error, error])
        case _:
            pass
    log_error(logging.getLogger("trioserve"), logging.ERROR, "failed", error=error)
    (record,) = caplog.records
    said = logging.Formatter().format(record)
    assert 50_000 < len(said) < 70_000
    assert said.startswith("failed")
    assert "Here: x" in said
    assert "characters left out" in said
    assert "there" in said or where == "its cause"
    assert len(careless.said[0]) < 70_000


def test_a_log_that_raises_ends_nothing() -> None:
    """Law 1: nor does one that raises only for errors."""

    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            calls.append(record.exc_info)
            raise OSError("the disk is full")

    class Ends(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    calls: list[object] = []
    log = logging.getLogger("trioserve.tests.of_its_own")
    log.propagate = False
    log.handlers = [Raises()]
    log_error(log, logging.ERROR, "x", error=ValueError())
    assert calls[0]
    assert calls[1:] == [None]
    log.handlers = [Ends()]
    with pytest.raises(KeyboardInterrupt):
        log_error(log, logging.ERROR, "x", error=ValueError())


class _Breaks(trio.abc.HalfCloseableStream):
    """A stream whose receive raises this error."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def send_all(self, data: object) -> None:
        raise AssertionError

    async def wait_send_all_might_not_block(self) -> None:
        raise AssertionError

    async def send_eof(self) -> None:
        raise AssertionError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        broken = trio.BrokenResourceError("here")
        BaseException.__dict__["__cause__"].__set__(broken, self._error)
        raise broken

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@settings(deadline=None, max_examples=40)
@given(nasty.errors(*ISOLATED))
@example(Recipe(OSError, {"errno": "raises ValueError"}))
@example(Recipe(ValueError, {"__str__": "raises ValueError"}))
def test_whatever_breaks_a_stream_the_relay_ends_as_broken(recipe: Recipe) -> None:
    """Law 15: the other side is blamed, whatever the error's class says."""

    async def handler(conn: Connection) -> None:
        await relay(conn, _Breaks(recipe.make()))

    async def main() -> None:
        async with serving(handler) as running:
            assert await is_reset(await running.connect())
        assert running.reports[0].reason is Reason.SERVER_RESET

    run(main)


@settings(deadline=None, max_examples=60)
@given(nasty.errors(*ISOLATED), st.booleans())
def test_no_error_ends_a_server(recipe: Recipe, cancelled: bool) -> None:
    """Law 1: nor other connections; also if it is raised during a cancellation."""
    error = recipe.make()

    async def handler(conn: Connection) -> None:
        word = await conn.receive_some()
        if word == b"cancelled":
            try:
                await trio.sleep_forever()
            finally:
                raise error  # noqa: ASYNC102
        if word == b"raise":
            raise error
        await conn.send_all(b"fine")

    reports: list[ConnectionReport] = []

    async def collect(channel: trio.MemoryReceiveChannel[ConnectionReport]) -> None:
        send, receive = trio.open_memory_channel[ConnectionReport](10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log_reports, receive)
            async with send:
                async for report in channel:
                    reports.append(report)
                    report.as_dict()
                    await send.send(report)

    async def main() -> None:
        async with serving(handler, collector=collect) as running:
            good, bad = await running.connect(), await running.connect()
            await bad.send_all(b"cancelled" if cancelled else b"raise")
            if cancelled:
                await trio.testing.wait_all_tasks_blocked()
                scope_of(running.server.connections[1]).cancel()
            assert await is_reset(bad)
            await good.send_all(b"x")
            assert await receive_all(good) == b"fine"
            await good.aclose()
        assert running.server.statistics().lost == 0

    run(main)
    assert sorted(report.id for report in reports) == [1, 2]
    first = next(report for report in reports if report.id == 2)
    assert first.outcome is Outcome.HANDLER_ERROR
    assert first.exception is not None
    # Python itself turns a StopIteration into a RuntimeError.
    is_the_same = error is first.exception or error is first.exception.__cause__
    assert is_the_same  # a plain bool: pytest would call repr() of the error


def scope_of(conn: Connection) -> trio.CancelScope:
    """The scope of a connection's task."""
    scope = lifecycle_of(conn).scope
    assert scope is not None
    return scope


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([KeyboardInterrupt, SystemExit]), nasty.errors(ValueError))
def test_keyboard_interrupt_comes_through(
    end: type[BaseException], other: Recipe
) -> None:
    """Law 1: also in a group whose methods lie, and during a cancellation."""
    deeds = {"split": "raises ValueError", "subgroup": "returns None"}
    error = nasty.make(BaseExceptionGroup, deeds, "lies", [other.make(), end()])

    async def handler(conn: Connection) -> None:
        scope_of(conn).cancel()
        raise error

    async def main() -> None:
        async with serving(handler) as running:
            await running.connect()
            await running.ended.wait()

    with pytest.raises(BaseException) as caught:  # noqa: PT011
        run(main)
    assert any(isinstance(leaf, PROGRAM_ENDS) for leaf in leaves(caught.value))


@given(
    st.dictionaries(
        st.sampled_from(nasty.QUESTIONS), st.sampled_from(nasty.DEEDS), min_size=1
    )
)
def test_any_note_and_any_result_is_reported(deeds: dict[str, str]) -> None:
    """Law 3: as text that JSON can write."""
    value = nasty.make(ValueError, deeds)
    report = ConnectionReport(
        id=1, listener="", peer="", local="", accepted_at=0, duration=0,
        reason=Reason.ABORTED, phase=Phase.DATA, notes={"value": value}, result=value,
    )  # fmt: skip
    text = report.as_dict()["notes"]["value"]
    assert type(text) is str
    assert len(text) <= 256


class _Number(int):
    __slots__ = ()

    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("noted", "told"),
    [
        (_Number(3), 3),
        (True, True),
        (None, None),
        (10**5_000, "its __repr__ raised ValueError"),
        (2**70, str(2**70)),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (1.5, 1.5),
        (nasty.StrangeText("\x1b"), r"\x1b"),
    ],
    ids=["int", "bool", "None", "huge", "long", "inf", "nan", "float", "text"],
)
def test_a_note_is_a_value_that_json_can_write(noted: object, told: object) -> None:
    """Whatever its class does; its name, too."""
    notes: dict[str, object] = {nasty.StrangeText("name"): noted}
    report = ConnectionReport(
        id=1, listener="", peer="", local="", accepted_at=0, duration=0,
        reason=Reason.ABORTED, phase=Phase.DATA, notes=notes,
    )  # fmt: skip
    ((name, value),) = report.as_dict()["notes"].items()
    assert (type(name), name) == (str, "name")
    assert (type(value), value) == (type(told), told)
