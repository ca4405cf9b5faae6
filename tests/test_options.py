"""Options: an invalid value is an error that names it."""

from __future__ import annotations

import dataclasses
import math
import resource
from typing import Any

import pytest

from trioserve import Limits, Timeouts
from trioserve._options import _MAY_BE_ZERO

NAMES = [field.name for field in dataclasses.fields(Timeouts)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seconds", [0.001, 1, 1e9, math.inf])
def test_any_positive_number_of_seconds_is_a_timeout(name: str, seconds: float) -> None:
    """Infinity means never."""
    assert getattr(Timeouts(**{name: seconds}), name) == seconds


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seconds", [True, None, "5", 1j])
def test_a_timeout_must_be_a_number(name: str, seconds: Any) -> None:
    """The error names the argument."""
    with pytest.raises(TypeError, match=f"^{name} must be a number of seconds, not"):
        Timeouts(**{name: seconds})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seconds", [-1, -0.001, -math.inf, math.nan])
def test_no_timeout_is_negative(name: str, seconds: float) -> None:
    """The error names the argument."""
    with pytest.raises(ValueError, match=f"^{name} must be 0 or more, not"):
        Timeouts(**{name: seconds})


@pytest.mark.parametrize("name", NAMES)
def test_only_timeouts_of_an_end_may_be_zero(name: str) -> None:
    """A drain of 0 s is a choice; a connect timeout of 0 s is a mistake."""
    if name in _MAY_BE_ZERO:
        assert getattr(Timeouts(**{name: 0}), name) == 0
    else:
        with pytest.raises(ValueError, match=f"^{name} must be more than 0"):
            Timeouts(**{name: 0})


def test_options_are_given_by_name_and_frozen() -> None:
    """So they can be shared."""
    with pytest.raises(TypeError):
        Timeouts(5)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Timeouts().idle = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_connections": True}, TypeError, "max_connections must be an int"),
        ({"max_connections": 1.0}, TypeError, "max_connections must be an int"),
        ({"max_connections": -1}, ValueError, "max_connections must be 0 or more"),
        ({"max_per_peer": "2"}, TypeError, "max_per_peer must be an int"),
        ({"max_per_peer": 0}, ValueError, "max_per_peer must be 1 or more"),
        ({"max_handshakes": "2"}, TypeError, "max_handshakes must be an int"),
        ({"max_handshakes": 0}, ValueError, "max_handshakes must be 1 or more"),
        ({"per_peer_ipv6_prefix": 64.0}, TypeError, "per_peer_ipv6_prefix must be an"),
        ({"per_peer_ipv6_prefix": 0}, ValueError, "per_peer_ipv6_prefix must be 1 or"),
        ({"per_peer_ipv6_prefix": 129}, ValueError, "per_peer_ipv6_prefix must be 128"),
        ({"when_full": "backlog"}, ValueError, "when_full must be 'wait' or 'refuse'"),
        ({"refusal": "busy"}, TypeError, "refusal must be bytes or None"),
        ({"refusal": bytes(4097)}, ValueError, "refusal must be 4096 bytes or fewer"),
    ],
)
def test_invalid_limits(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The error names the argument."""
    with pytest.raises(error, match=f"^{message}"):
        Limits(**options)


@pytest.mark.parametrize("refusal", [None, b"", bytes(4096)])
def test_valid_limits(refusal: bytes | None) -> None:
    """No connection at all is a pause."""
    limits = Limits(max_connections=0, when_full="refuse", refusal=refusal)
    assert limits.refusal == refusal


@pytest.mark.parametrize(
    ("open_files", "connections"),
    [(20, 1), (64, 1), (72, 2), (1024, 240), (1_000_000, 10_000)],
)
def test_the_default_limit_comes_from_the_limit_of_open_files(
    open_files: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """min(10,000, (open files - 64) // 4), and at least 1."""

    def getrlimit(_: int) -> tuple[int, int]:
        return open_files, open_files

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    assert Limits().max_connections == connections
