from __future__ import annotations

import pytest

from app.reports import make_report
from trioserve import Attempt, Reason
from trioserve.app._targets import Change, Targets

DOWN = Attempt(address="10.0.0.1:80", seconds=0.1, error="OSError: no")
UP = Attempt(address="10.0.0.1:80", seconds=0.1)
OTHER = Attempt(address="10.0.0.2:80", seconds=0.1)


def test_only_what_changes_is_told() -> None:
    targets = Targets()
    rounds = [[OTHER], [DOWN, OTHER], [DOWN, OTHER], [UP], [UP], [DOWN]]
    told = [
        list(targets.add(make_report(attempts=attempts, connect=1.0)))
        for attempts in rounds
    ]
    down, up = Change("10.0.0.1:80", "OSError: no"), Change("10.0.0.1:80", None)
    assert told == [[], [down], [], [up], [], [down]]


def test_to_be_slower_than_another_address_is_no_failure() -> None:
    slower = Attempt(
        address="[::1]:80", seconds=0.25, error="another address was faster"
    )
    report = make_report(attempts=[OTHER, slower], connect=0.25)
    assert list(Targets().add(report)) == []


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (Reason.CONNECT_TIMEOUT, ["10.0.0.1:80", "10.0.0.2:80"]),
        (Reason.CLIENT_RESET, ["10.0.0.1:80"]),
        (Reason.CLIENT_GONE, ["10.0.0.1:80"]),
        (Reason.CUT, ["10.0.0.1:80"]),
    ],
)
def test_what_was_given_up_might_have_answered(reason: Reason, told: list[str]) -> None:
    waited = Attempt(address="10.0.0.2:80", seconds=1.0, error="no answer")
    report = make_report(reason=reason, attempts=[DOWN, waited])
    assert [change.address for change in Targets().add(report)] == told
