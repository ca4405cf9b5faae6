"""What a failure says: the right law, the smallest case, a test that fails alike."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from support import one_in, one_of_each
from testing import natural
from testing.catalogue import law_when_fresh
from testing.zoo import Entry, Lines, found
from trioserve import Connection, Limits, Timeouts
from trioserve.testing import (
    Case,
    Checked,
    HandlerFailure,
    Law,
    Peer,
    _blame,
    _progress,
    check_handler,
    run_conversation,
    sweep_cancellations,
)
from trioserve.testing._case import Setting
from trioserve.testing._pristine import Pristine
from trioserve.testing._trial import Trial, try_case
from trioserve.testing.runs import _hang

HELLO = Peer().send(b"hello\n").expect(b"HELLO\n")
TWICE = HELLO.send(b"you\n").expect(b"YOU\n")


async def shout(stream: Connection) -> None:
    async for data in stream:
        await stream.send_all(data.upper())


def failure_of(handler: Any, *peers: Any, **options: Any) -> HandlerFailure:
    with pytest.raises(HandlerFailure) as failed:
        check_handler(handler, *peers, **options)
    return failed.value


# Each takes seconds: a check plays the conversation hundreds of times.
@pytest.mark.parametrize("entry", one_in(6, [(e,) for e in natural.MISTAKES]), ids=str)
def test_a_natural_conversation_finds_a_mistake_by_its_law(entry: Entry) -> None:
    """In at most forty lines, and the test that they end with fails alike elsewhere."""
    failure = found(entry)
    assert failure is not None
    assert failure.law == entry.law, failure
    assert len(str(failure).splitlines()) <= 40, failure
    assert law_when_fresh(entry.title, failure) == entry.law


@pytest.mark.parametrize("entry", one_in(12, [(e,) for e in natural.CORRECT]), ids=str)
def test_a_correct_handler_with_ugly_habits_is_not_accused(entry: Entry) -> None:
    entry.check()


# -- the law


async def sends_from_two_tasks(stream: Connection) -> None:
    """They collide if the first send does not end at once."""

    async def later() -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        await stream.send_all(b"LO\n")

    async for _ in Lines(stream):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(later)
            await stream.send_all(b"HEL")


def test_a_failure_that_needs_a_small_buffer_alone_is_not_about_what_is_left() -> None:
    """It was named ``nothing_left``: the second round had failed by chance."""
    failure = failure_of(sends_from_two_tasks, HELLO)
    assert failure.law == "schedule"
    assert failure.case.rounds == 1
    assert failure.case.disturbance is None
    assert not failure.case.faults


@pytest.mark.long("a whole check")
def test_a_law_that_is_off_stays_off() -> None:
    """What peers receive was judged by the names of four other laws."""

    async def says_something_else(stream: Connection) -> None:
        async for _ in Lines(stream):
            await stream.send_all(b"GOODBYE\n")

    assert failure_of(says_something_else, HELLO).law == "answer"
    off: dict[Law, str] = {"answer": "it is not the handler that is tested"}
    check_handler(says_something_else, HELLO, without=off)


def test_a_law_that_a_failure_is_named_by_can_be_off() -> None:
    """Peers see something else; only taking parts away shows that it is this law."""
    here = list[Connection]()

    async def counts(stream: Connection) -> None:
        here.append(stream)
        try:
            await stream.send_all(b"%d" % len(here))
            await shout(stream)
        finally:
            here.remove(stream)

    peers = [Peer().expect(b"1").close()] * 2
    off: dict[Law, str] = {"alone": "it counts them", "nothing_left": "see above"}
    assert sweep_cancellations(counts, *peers, without=off)
    with pytest.raises(HandlerFailure, match="breaks law 'alone'"):
        sweep_cancellations(counts, *peers)


@pytest.mark.parametrize(
    "law", one_in(3, [("half_close",), ("pipelining",), ("alone",)])
)
def test_a_law_about_what_is_varied_stays_off(law: Any) -> None:
    entry = next(each for each in natural.MISTAKES if each.law == law)
    without = {**entry.without, law: "this test switches it off"}
    with contextlib.suppress(HandlerFailure):
        check_handler(entry.make(), *entry.peers, without=without)
        return
    assert failure_of(entry.make(), *entry.peers, without=without).law != law


@pytest.mark.parametrize(
    "name", one_of_each([("quick_ones_overtake",), ("a_dot_after_the_answer",)])
)
def test_the_case_that_is_printed_names_the_same_law(name: str) -> None:
    entry = next(each for each in natural.MISTAKES if each.name == name)
    failure = found(entry)
    assert failure is not None
    scope = {entry.make().__name__: entry.make(), "Peer": Peer}
    with pytest.raises(HandlerFailure) as again:
        eval(failure.again, {"run_conversation": run_conversation, **scope})
    assert again.value.law == failure.law


def test_one_run_names_the_law_by_what_its_case_needs() -> None:
    entry = next(e for e in natural.MISTAKES if e.name == "the_body_came_along")
    needless: dict[str, Any] = {"seed": 3, "copies": 2, "buffer": 500}
    with pytest.raises(HandlerFailure) as failed:
        run_conversation(entry.make(), *entry.peers, faults="up:slice=1", **needless)
    assert failed.value.law == "chunking"


@pytest.mark.parametrize(
    ("name", "needless", "law"),
    [
        ("quick_ones_overtake", {"play": "all_at_once"}, "pipelining"),
        ("the_body_came_along", {"faults": "up:slice=1; down:latency=1ms"}, "chunking"),
        ("the_body_came_along", {"buffer": 2}, "chunking"),
        ("eof_cancels_the_answers", {"play": "all_at_once"}, "half_close"),
    ],
)
def test_a_part_may_be_replaced_by_a_simpler_one(
    name: str, needless: dict[str, Any], law: str
) -> None:
    entry = next(each for each in natural.MISTAKES if each.name == name)
    with pytest.raises(HandlerFailure) as failed:
        run_conversation(entry.make(), *entry.peers, **needless)
    assert failed.value.law == law


# -- the case


@pytest.mark.long("a whole check")
def test_scripts_and_faults_are_shortened_until_each_part_is_needed() -> None:
    peer = Peer()
    for line in (b"one\n", b"two or more\n", b"three\n", b"four\n"):
        peer = peer.send(line).expect(line)

    async def loses_what_is_cut(stream: Connection) -> None:
        async for data in stream:
            await stream.send_all(data if data != b"two" else b"TWO")

    failure = failure_of(loses_what_is_cut, peer)
    assert failure.law == "chunking"
    assert failure.case.peers == (
        Peer().send(b"two or more\n").expect(b"two or more\n"),
    )
    assert str(failure.case.faults).count("@") == 1


def test_a_message_that_a_later_one_needs_is_kept() -> None:
    async def remembers(stream: Connection) -> None:
        name = b""
        async for data in stream:
            await stream.send_all(name or b"hello\n")
            name = name or data

    peer = Peer().send(b"ann\n").expect(b"hello\n").send(b"?\n").expect(b"ann\n")
    failure = failure_of(remembers, peer.half_close().expect_eof())
    assert failure.law == "chunking"
    assert failure.case.peers[0].sends == b"ann\n"


def test_a_failure_is_told_even_if_there_is_no_time_to_explain_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_blame, "_MOST_STEPS", 0)
    entry = next(e for e in natural.MISTAKES if e.name == "the_body_came_along")
    with pytest.raises(HandlerFailure):
        run_conversation(entry.make(), *entry.peers, faults="up:slice=1", buffer=9)


def test_only_the_peers_that_are_needed_are_printed() -> None:
    entry = next(e for e in natural.MISTAKES if e.law == "alone")
    failure = found(entry)
    assert failure is not None
    assert len(failure.case.peers) == 2


def test_a_failure_that_needs_earlier_runs_says_so() -> None:
    calls = list[Connection]()

    async def fails_from_the_500th_call_on(stream: Connection) -> None:
        calls.append(stream)
        if len(calls) > 200:
            raise ZeroDivisionError
        await shout(stream)

    failure = failure_of(fails_from_the_500th_call_on, HELLO)
    assert failure.law == "nothing_left"
    assert "passes in a fresh process: one of the" in failure.how


def test_a_failure_that_earlier_runs_explain_has_a_case_with_many_rounds() -> None:
    calls = list[Connection]()

    async def fails_from_the_30th_call_on(stream: Connection) -> None:
        calls.append(stream)
        if len(calls) > 30:
            raise ZeroDivisionError
        await shout(stream)

    failure = failure_of(fails_from_the_30th_call_on, HELLO)
    assert failure.law == "nothing_left"
    assert failure.case.rounds > 30


# -- what is said


def test_the_first_line_has_the_handler_the_law_and_how() -> None:
    """Also in pytest's summary, which begins with the name of the class."""
    first = str(failure_of(sends_from_two_tasks, HELLO)).splitlines()[0]
    assert first.startswith("sends_from_two_tasks breaks law ")
    assert HandlerFailure.__module__ == "builtins"


def test_what_follows_from_a_failure_is_not_told_as_its_cause() -> None:
    """The peer resets after the mismatch; the handler's error was told as a cause."""

    async def says_half(stream: Connection) -> None:
        async for data in stream:
            await stream.send_all(data[:3])

    failure = failure_of(says_half, HELLO)
    assert "BrokenResourceError" not in str(failure)
    assert (
        str(failure.run.timeline)
        .splitlines()[-1]
        .endswith(r"expected b'HELLO\n', got b'hel'")
    )


def test_an_error_before_a_mismatch_is_told_as_its_cause() -> None:
    async def raises(stream: Connection) -> None:
        await stream.receive_some()
        raise trio.BrokenResourceError("no")

    assert (
        "; handler 1 ended with BrokenResourceError('no')"
        in failure_of(raises, HELLO).how
    )


def test_a_failure_ends_with_a_test_to_paste(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(
        textwrap.dedent("""
        class Strange(Exception):
            pass

        def reset():
            pass

        async def says_half(stream):
            async for data in stream:
                await stream.send_all(data[:3])
        """)
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import half  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    failure = failure_of(
        half.says_half,
        HELLO,
        raises=[half.Strange, KeyError],
        before_run=half.reset,
        limits=Limits(max_connections=5),
        timeouts=Timeouts(idle=float("inf")),
        cleanup=60,
    )
    text = failure.as_test()
    assert text.splitlines()[:6] == [
        "import math",
        "from trioserve import Limits, Timeouts",
        "from trioserve.testing import Peer, run_conversation",
        "from half import says_half",
        "from half import Strange",
        "from half import reset",
    ]
    assert "cleanup=60" in text
    (tmp_path / "test_half.py").write_text(text)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    summary = ran.stdout.splitlines()[-2]
    assert "- HandlerFailure: says_half breaks law 'answer'" in summary


def test_a_handler_that_cannot_be_imported_is_named_in_a_comment() -> None:
    async def says_half(stream: Connection) -> None:
        async for data in stream:
            await stream.send_all(data[:3])

    comment = "# says_half is test_a_handler_that_cannot_be_imported_is_named_in_a"
    assert comment in failure_of(says_half, HELLO).as_test()


def test_a_handler_of_a_program_is_imported_by_the_name_of_the_file() -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("async def ends(stream): pass", "dir/ends_at_once.py", "exec"), names)
    failure = failure_of(names["ends"], HELLO)
    assert "from ends_at_once import ends" in failure.as_test()


class Handlers:
    """Handlers may be objects too."""

    async def __call__(self, stream: Connection) -> None:
        async for data in stream:
            await stream.send_all(data[:3])


def test_a_handler_without_a_name_is_called_handler() -> None:
    failure = failure_of(Handlers(), HELLO)
    assert str(failure).startswith("handler breaks law 'answer'")
    assert "# handler is Handlers of" in failure.as_test()


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (
            lambda: check_handler(shout, HELLO, raises=ValueError),  # type: ignore[arg-type]
            r"raises must be a list of exceptions, such as \[ValueError\], not <class",
        ),
        (
            lambda: check_handler(shout, HELLO, budget="5"),  # type: ignore[arg-type]
            "budget must be a number of seconds",
        ),
        (
            lambda: check_handler(shout, HELLO, memory=1.5),  # type: ignore[arg-type]
            "memory must be an int",
        ),
    ],
)
def test_a_wrong_argument_is_explained(call: Any, complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        call()


_SAME = """
import sys
sys.path.insert(0, {tests!r})
from testing import natural, zoo
entries = {{entry.name: entry for entry in natural.MISTAKES + zoo.MISTAKES}}
for name in ("one_user_for_all", "a_system_task"):
    print(zoo.found(entries[name]))
"""


@pytest.mark.nightly("three processes make the same check")
def test_a_failure_is_the_same_in_each_process() -> None:
    """Whatever the hash seed, to the last character."""
    code = _SAME.format(tests=str(Path(__file__).parents[1]))
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1
    assert "breaks law 'alone'" in said.pop()


# -- bounds


async def cleans_up_for_45_seconds(stream: Connection) -> None:
    try:
        await shout(stream)
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(45)


async def works_on_for_20_minutes(stream: Connection) -> None:
    await shout(stream)
    await trio.sleep(1200)


@pytest.mark.long("whole checks")
@pytest.mark.parametrize(
    ("handler", "bound"),
    [
        (cleans_up_for_45_seconds, {"cleanup": 60}),
        (works_on_for_20_minutes, {"patience": 1800}),
    ],
)
def test_bounds_are_arguments(handler: Any, bound: dict[str, Any]) -> None:
    """The only way out was to switch the whole law off."""
    closes = Peer().send(b"a").expect(b"A").close()
    failure = failure_of(handler, closes)
    assert failure.law == "ends"
    case = failure.case
    again: dict[str, Any] = {"disturbance": case.disturbance, "at_step": case.at_step}
    run_conversation(handler, *case.peers, **again, **bound)


def test_the_memory_that_a_handler_may_use_is_an_argument() -> None:
    async def reads_ahead(stream: Connection) -> None:
        to_writer, answers = trio.open_memory_channel[bytes](1500)

        async def read() -> None:
            async with to_writer:
                async for data in stream:
                    await to_writer.send(bytes(data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            async for answer in answers:
                await stream.send_all(answer)

    flood: dict[str, Any] = {"flood": 200_000, "buffer": 64}
    with pytest.raises(HandlerFailure, match="over 65536 bytes") as failed:
        run_conversation(reads_ahead, Peer().send(b"a" * 60), **flood)
    assert failed.value.law == "memory"
    run_conversation(reads_ahead, Peer().send(b"a" * 60), memory=200_000, **flood)


def test_a_correct_handler_passes_and_a_check_says_what_it_has_tried() -> None:
    checked = check_handler(shout, TWICE)
    assert isinstance(checked, Checked)
    assert not checked.notes
    assert checked.runs["a cancel"] > 10
    total = sum(checked.runs.values())
    assert repr(checked) == f"<Checked: {total} runs>"
    assert f"{checked.runs['a cancel']:5} runs: a cancel\n" in str(checked)


def test_a_check_says_where_it_took_a_sample() -> None:
    checked = Checked()
    checked.runs = {"a cancel": 60, "a flood": 1}
    checked.note_places("a cancel", 40, 40)
    assert not checked.sampled
    checked.note_places("a cancel", 20, 69)
    assert checked.sampled == {"a cancel": (60, 109)}
    assert str(checked) == (
        "   60 runs: a cancel at 60 of 109 places\n    1 runs: a flood"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_long_check_shows_its_progress_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that took minutes gave no sign of life."""
    monkeypatch.setattr(_progress, "_AFTER", 0.0)
    monkeypatch.setattr(_progress, "_EVERY", 0.0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    check_handler(shout, HELLO, budget=0.2)
    shown = terminal.getvalue().split("\r")
    assert shown[1].startswith("trioserve.testing: 0 runs, nothing")
    assert not shown[-1].strip()


def test_a_budget_ends_a_check_and_is_noted() -> None:
    checked = check_handler(shout, TWICE, budget=0.0)
    assert sum(checked.runs.values()) < 10
    assert checked.notes
    assert all(note.startswith("the budget ended within") for note in checked.notes)


def test_two_plain_conversations_that_differ_are_noted() -> None:
    """The comparisons were switched off without a word."""
    numbers = iter(range(10**6))

    async def counts(stream: Connection) -> None:
        await stream.send_all(b"%08d" % next(numbers))
        await shout(stream)

    peer = Peer().receive(8).send(b"a").expect(b"A")
    checked = check_handler(counts, peer, budget=0)
    assert checked.notes[0].startswith("two plain conversations differ")


# -- handlers that do not await


def test_a_handler_that_computes_without_end_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No case was named, and Ctrl-C printed a group of errors."""
    monkeypatch.setattr(_hang, "_MOST_CPU", 0.5)
    monkeypatch.setattr(_hang, "_HURRY", 0.4)

    async def waits_for_a_line_end(stream: Connection) -> None:
        async for data in stream:
            while not data.endswith(b"\n"):
                pass
            await stream.send_all(data.upper())

    failure = failure_of(waits_for_a_line_end, HELLO)
    assert "computes for" in failure.how
    assert "without awaiting, at test_blame.py" in failure.how
    assert "a handler hangs: it computes" in capsys.readouterr().err


def test_a_handler_that_waits_outside_of_trio_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It can't be interrupted; it is told once."""
    monkeypatch.setattr(_hang, "_MOST_REAL", 0.3)
    monkeypatch.setattr(_hang, "_HURRY", 0.2)

    async def blocks(stream: Connection) -> None:
        async for data in stream:
            threading.Event().wait(1.5)
            await stream.send_all(data.upper())

    run_conversation(blocks, HELLO)
    run_conversation(blocks, HELLO)
    said = capsys.readouterr().err
    assert said.count("it waits for 0.3 seconds outside of Trio, at test_blame.py") == 1
    assert "run_conversation(handler, Peer().send(b'hello\\n')" in said


# -- the copy of the process


def test_a_copy_answers_and_forgets() -> None:
    seen = list[int]()

    def answer(number: int) -> int:
        seen.append(number)
        if number == 7:
            raise ValueError
        return len(seen)

    copy = Pristine(answer)
    assert [copy.ask(number) for number in (1, 2, 7, 3)] == [1, 1, None, 1]
    os.kill(copy._process, signal.SIGKILL)
    assert copy.ask(4) is None
    copy.close()
    assert not seen


def test_what_a_copy_answers_can_be_pickled() -> None:
    def fails(stream: Connection) -> Any:
        return shout(stream)

    run, seen = try_case(fails, Case((Peer().send(b"a").expect(b"B"),)), Setting())
    assert seen is not None
    again: Trial = pickle.loads(pickle.dumps(Trial(seen, 1, run.without_errors())))
    assert again.seen == seen
    assert again.run is not None
    assert str(again.run.timeline) == str(run.timeline)
    assert not again.run.reports
