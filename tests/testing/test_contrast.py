"""Contrasts: a failure tells what a run that passed did at the first difference."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
import trio

from testing.natural import a_lost_update
from trioserve import Connection
from trioserve.testing import (
    Case,
    HandlerFailure,
    Peer,
    Row,
    Timeline,
    _contrast,
    run_conversation,
)
from trioserve.testing._timeline import Passed
from trioserve.testing._trial import Seen, Trial

HELLO = Peer().send(b"hello\n").expect(b"HELLO\n")


def told(handler: Any, peer: Peer = HELLO, **case: Any) -> tuple[str, str]:
    """What the failure says about a run that passed, and the line above it."""
    with pytest.raises(HandlerFailure) as failed:
        run_conversation(handler, peer, **case)
    lines = str(failed.value.run.timeline).splitlines()
    found = [at for at, line in enumerate(lines) if "a run that passed" in line]
    if not found:
        return "", ""
    (at,) = found
    return " ".join(lines[at].split()), " ".join(lines[at - 1].split())


async def one_receive(stream: Connection) -> None:
    data = await stream.receive_some()
    await stream.send_all(data.upper())


def test_a_cut_is_contrasted_with_the_whole_message() -> None:
    passed, failed = told(one_receive, faults="up:cut@2")
    assert passed.startswith("… a run that passed, without faults: handler 1 receives")
    assert passed.endswith(r"b'hello\n'")
    assert "handler 1 receives 2 bytes: b'he'" in failed


def test_an_order_of_tasks_is_contrasted_with_another_one() -> None:
    peer = Peer().send(b"5 6\n").expect(b"11\n")
    passed, failed = told(a_lost_update, peer, seed=3, order="priorities")
    assert "handler 1 sends 3 bytes: b'11\\n'" in passed
    assert "handler 1 sends 2 bytes: b'5\\n'" in failed


async def swallows(stream: Connection) -> None:
    with contextlib.suppress(BaseException):
        await one_receive(stream)


@pytest.mark.parametrize("step", [0, 3])
def test_what_the_test_itself_does_is_no_difference(step: int) -> None:
    passed, failed = told(swallows, disturbance="cancel", at_step=step)
    assert "handler 1 receives 6 bytes" in passed
    assert "was cancelled while it waited" in failed


async def never_ends(stream: Connection) -> None:
    data = await stream.receive_some()
    if data == b"he":
        await trio.sleep_forever()
    await stream.send_all(data.upper())


def test_a_deadlock_is_contrasted_with_a_run_that_goes_on() -> None:
    passed, _ = told(never_ends, faults="up:cut@2; down:cut@1")
    assert "without faults: handler 1 receives 6 bytes" in passed


@pytest.mark.parametrize("bound", [{"_MOST_STEPS": -1}, {"_MOST_ROWS": 0}])
def test_a_run_that_takes_long_has_no_contrast(
    monkeypatch: pytest.MonkeyPatch, bound: dict[str, int]
) -> None:
    for name, number in bound.items():
        monkeypatch.setattr(_contrast, name, number)
    assert told(one_receive, faults="up:cut@2") == ("", "")


def test_other_runs_are_looked_for_until_they_have_taken_long() -> None:
    """One that was stopped does not say how long it took."""
    tried = list[Case]()
    run = run_conversation(one_receive, HELLO)

    def attempt(case: Case) -> Trial:
        tried.append(case)
        return Trial(Seen("ends", "it does not end", 0), 0)

    assert _contrast.nearest(run, attempt) is None
    assert len(tried) == 3


def test_a_run_that_does_the_same_is_no_contrast() -> None:
    run = run_conversation(one_receive, HELLO)
    assert _contrast.nearest(run, lambda case: Trial(None, 1, run)) is None


def test_the_run_that_does_the_same_for_longest_is_told_of() -> None:
    """The others were over sooner."""
    run = run_conversation(one_receive, HELLO)

    def attempt(case: Case) -> Trial:
        timeline = Timeline()
        timeline.rows = run.timeline.rows[: 4 if case.seed == 3 else 2]
        return Trial(None, 1, dataclasses.replace(run, timeline=timeline))

    assert _contrast.nearest(run, attempt) == Passed(4, None, "with seed=3")


def test_a_run_that_goes_on_is_told_of_after_the_last_row() -> None:
    whole, cut = (run_conversation(one_receive, HELLO) for _ in range(2))
    del cut.timeline.rows[3:]
    assert _contrast.nearest(cut, lambda case: Trial(None, 1, whole)) == Passed(
        3, whole.timeline.rows[3], "with seed=1"
    )


async def shouts_wrongly(stream: Connection) -> None:
    await stream.receive_some()
    await stream.send_all(b"WHAT?\n")


@pytest.mark.parametrize("case", [{}, {"copies": 2}, {"rounds": 2}])
def test_nothing_is_told_if_no_other_run_passes(case: dict[str, Any]) -> None:
    assert told(shouts_wrongly, **case) == ("", "")


def timeline_of(count: int, passed: Passed | None, *, shorter: int = 0) -> list[str]:
    timeline = Timeline()
    timeline.rows = [Row(0, n, "peer 1", f"row {n}", "") for n in range(count)]
    timeline.passed = passed
    if not shorter:
        assert timeline.table() == str(timeline)
    return timeline.table(shorter).splitlines()[1:]


def test_a_run_that_was_over_is_told_of_at_the_end() -> None:
    *_, line = timeline_of(3, Passed(3, None, "with seed=1"))
    assert line.strip() == "… a run that passed, with seed=1: it was over"


@pytest.mark.parametrize("at", [0, 3, 4, 10, 17, 27, 28, 39])
def test_a_long_timeline_keeps_the_row_that_differs(at: int) -> None:
    lines = timeline_of(40, Passed(at, None, "with seed=1"))
    (told_at,) = [n for n, line in enumerate(lines) if "a run that" in line]
    assert lines[told_at - 1].endswith(f"row {at}")
    assert lines[0].endswith("row 0")
    assert lines[-1].endswith("row 39") or at == 39
    assert len(lines) <= 19
    shorter = timeline_of(40, Passed(at, None, "with seed=1"), shorter=6)
    assert lines[told_at] in shorter
    assert len(shorter) <= 13


def test_one_row_is_not_left_out() -> None:
    assert len(timeline_of(17, None)) == 17
    assert len(timeline_of(18, None)) == 17
    assert timeline_of(18, None)[4].strip() == "… 2 rows more"


def test_a_table_is_made_shorter_where_a_failure_has_a_long_test() -> None:
    for shorter, rows in [(-3, 17), (0, 17), (2, 15), (6, 11), (90, 11)]:
        assert len(timeline_of(40, None, shorter=shorter)) == rows
    assert len(timeline_of(10, None, shorter=4)) == 10
