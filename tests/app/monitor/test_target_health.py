from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from trioserve import Attempt, TcpAddress
from trioserve.app.monitor._target_health import TargetChange, TargetHealth

TARGET = TcpAddress("db", 80)
DOWN = Attempt(address="10.0.0.1:80", seconds=0.1, error="OSError: no")
UP = Attempt(address="10.0.0.1:80", seconds=0.1)
OTHER = Attempt(address="10.0.0.2:80", seconds=0.1)
UNKNOWN = Attempt(address="db:80", seconds=0.1, error="gaierror: no")


def _told(attempts: Sequence[Attempt]) -> list[TargetChange]:
    targets = TargetHealth()
    return [change for each in attempts for change in targets.record(TARGET, each)]


def test_only_changes_are_reported() -> None:
    down, up = (
        TargetChange("10.0.0.1:80", "OSError: no"),
        TargetChange("10.0.0.1:80", None),
    )
    attempts = [OTHER, DOWN, OTHER, DOWN, UP, UP, DOWN]
    assert _told(attempts) == [down, up, down]


def test_an_address_that_is_slower_than_another_is_not_down() -> None:
    slower = Attempt(
        address="[::1]:80", seconds=0.25, error="another address was faster"
    )
    assert _told([slower, OTHER]) == []


def test_an_attempt_that_was_given_up_changes_nothing() -> None:
    assert _told([Attempt(address="10.0.0.2:80", seconds=1.0, error="given up")]) == []


def test_a_name_that_can_be_looked_up_again_answers_again() -> None:
    """It is up with the first of its addresses that answers."""
    assert _told([UNKNOWN, UNKNOWN, DOWN, OTHER, OTHER]) == [
        TargetChange("db:80", "gaierror: no"),
        TargetChange("10.0.0.1:80", "OSError: no"),
        TargetChange("db:80", None),
    ]


@given(st.lists(st.sampled_from([DOWN, UP, OTHER, UNKNOWN])))
def test_the_last_change_is_the_state(attempts: list[Attempt]) -> None:
    """Law 15: no change of an address is reported twice, and the last one is true."""
    told = _told(attempts)
    for address in (DOWN.address, OTHER.address):
        errors = [change.error for change in told if change.address == address]
        assert all(a != b for a, b in itertools.pairwise(errors))
        tries = [each.error for each in attempts if each.address == address]
        assert (errors or [None])[-1] == (tries or [None])[-1]


def test_a_shortage_of_the_proxy_changes_nothing() -> None:
    """Law 15: a target is neither down nor up again because of it."""
    short = Attempt(
        address="10.0.0.1:80", seconds=0.0, error="OSError: no port", ours=True
    )
    down, up = (
        TargetChange("10.0.0.1:80", "OSError: no"),
        TargetChange("10.0.0.1:80", None),
    )
    assert _told([short, UP, DOWN, short, DOWN, UP]) == [down, up]
