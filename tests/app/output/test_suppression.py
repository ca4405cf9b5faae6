from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sample_reports import make_report
from trioserve import ConnectionReport, Outcome, Reason
from trioserve.app.output._suppression import (
    CHOICES,
    FEW,
    Choice,
    Suppressor,
    connection_kind,
    is_wanted,
)

REPORTS = st.builds(
    make_report,
    reason=st.sampled_from(Reason),
    bytes_received=st.integers(0, 1),
    bytes_sent=st.integers(0, 1),
    target=st.sampled_from([None, "10.0.0.1:80", "10.0.0.2:80"]),
    error=st.sampled_from([None, "OSError: a", "OSError: b", "ValueError: a"]),
)


@given(REPORTS)
def test_each_choice_logs_a_subset_of_the_one_before_it(
    report: ConnectionReport,
) -> None:
    wanted = [is_wanted(choice, report) for choice in CHOICES]
    assert wanted == sorted(wanted, reverse=True)
    assert (wanted[0], wanted[-1]) == (True, False)


@pytest.mark.parametrize(
    ("changes", "choices"),
    [
        ({"bytes_received": 1}, ["all", "active"]),
        ({"bytes_sent": 1}, ["all", "active"]),
        # A port scan or health check: with or without a target, by FIN or RST.
        ({}, ["all"]),
        ({"reason": Reason.CLIENT_RESET}, ["all"]),
        ({"reason": Reason.CLIENT_GONE}, ["all"]),
        ({"reason": Reason.CLIENT_RESET, "bytes_sent": 1}, ["all", "active", "failed"]),
        ({"reason": Reason.CONNECT_REFUSED}, ["all", "active", "failed"]),
        ({"reason": Reason.FIRST_BYTE}, ["all", "active", "failed"]),
        ({"reason": Reason.LIMIT}, ["all", "active", "failed"]),
        ({"reason": Reason.RESOURCE}, ["all", "active", "failed"]),
        ({"reason": Reason.CUT}, ["all", "active", "failed"]),
    ],
)
def test_which_connections_are_logged(
    changes: dict[str, object], choices: list[Choice]
) -> None:
    report = make_report(**changes)
    assert [c for c in CHOICES if is_wanted(c, report)] == choices


@given(st.lists(st.tuples(REPORTS, st.booleans())))
def test_nothing_is_lost_by_suppression(
    reports: list[tuple[ConnectionReport, bool]],
) -> None:
    """Law 15: of each kind, logged and counted events add up to all of them."""
    suppressor = Suppressor()
    told = collections.Counter[object]()
    for report, second_is_over in reports:
        kind = connection_kind(report)
        told[kind] += suppressor.passes(kind)
        if second_is_over:
            told.update(dict(suppressor.take()))
    told.update(dict(suppressor.take()))
    assert told == collections.Counter(connection_kind(r) for r, _ in reports)
    assert list(suppressor.take()) == []


@given(REPORTS, st.integers(0, 100))
def test_the_first_few_of_a_kind_are_logged(
    report: ConnectionReport, count: int
) -> None:
    suppressor = Suppressor()
    kind = connection_kind(report)
    assert sum(suppressor.passes(kind) for _ in range(count)) == min(count, FEW)
    assert dict(suppressor.take()) == ({kind: count - FEW} if count > FEW else {})


def test_reports_are_of_one_kind_if_a_reader_would_learn_nothing_new() -> None:
    def kind(**changes: object) -> str:
        return connection_kind(make_report(**changes)).words

    same = {"reason": Reason.CONNECT_FAILED, "target": "10.0.0.1:80"}
    assert kind(**same, error="OSError: a") == kind(id=8, **same, error="OSError: b")
    assert kind(**same, error="OSError: a") == (
        "target_error/connect_failed > 10.0.0.1:80 (OSError)"
    )
    assert kind(reason=Reason.CUT) == "cut/cut"
    kinds = {kind(reason=reason) for reason in Reason}
    assert len(kinds) == len(Reason)
    assert {outcome.value for outcome in Outcome} == {k.split("/")[0] for k in kinds}
