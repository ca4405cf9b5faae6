from __future__ import annotations

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


def test_what_was_given_up_might_have_answered() -> None:
    given_up = Attempt(address="10.0.0.2:80", seconds=1.0, error="given up")
    report = make_report(reason=Reason.CLIENT_RESET, attempts=[DOWN, given_up])
    assert [change.address for change in Targets().add(report)] == ["10.0.0.1:80"]


def test_a_name_that_can_be_looked_up_again_answers_again() -> None:
    targets = Targets()
    unknown = Attempt(address="db:80", seconds=0.1, error="gaierror: no")
    report = make_report(target="db:80", attempts=[unknown])
    assert list(targets.add(report)) == [Change("db:80", "gaierror: no")]
    assert list(targets.add(report)) == []
    report = make_report(target="db:80", attempts=[UP], connect=0.1)
    assert list(targets.add(report)) == [Change("db:80", None)]
    assert list(targets.add(report)) == []
