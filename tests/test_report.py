"""Reports: the words, the two letters, and what may be printed."""

from __future__ import annotations

import enum
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve import Attempt, ConnectionReport, DrainSummary, Outcome, Phase, Reason
from trioserve._report import Side, describe, escape


def _report(**fields: Any) -> ConnectionReport:
    known: dict[str, Any] = {
        "id": 1,
        "listener": "127.0.0.1:80",
        "peer": "127.0.0.1:1234",
        "local": "127.0.0.1:80",
        "accepted_at": 1.0,
        "duration": 2.0,
        "reason": Reason.CLIENT_CLOSED,
        "phase": Phase.CLOSING,
    }
    return ConnectionReport(**known | fields)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_an_outcome_and_a_sentence(reason: Reason) -> None:
    """And a state of two letters, the second of which is the phase."""
    assert isinstance(reason.outcome, Outcome)
    assert reason.sentence
    state = _report(reason=reason, phase=Phase.DATA).termination_state
    assert len(state) == 2
    assert (state == "--") is (reason.outcome is Outcome.OK)


@pytest.mark.parametrize(
    ("reason", "phase", "side", "state"),
    [
        (Reason.CLIENT_CLOSED, Phase.CLOSING, None, "--"),
        (Reason.CLIENT_RESET, Phase.DATA, None, "CD"),
        (Reason.SERVER_RESET, Phase.CLOSING, None, "SL"),
        (Reason.CONNECT_REFUSED, Phase.CONNECT, None, "SC"),
        (Reason.CONNECT_TIMEOUT, Phase.CONNECT, None, "sC"),
        (Reason.CLIENT_GONE, Phase.CONNECT, None, "CC"),
        (Reason.LIMIT, Phase.QUEUE, None, "PR"),
        (Reason.IDLE, Phase.DATA, "client", "cD"),
        (Reason.WRITE_STALL, Phase.DATA, "target", "sD"),
        (Reason.CUT, Phase.DATA, None, "K-"),
        (Reason.CUT, Phase.CLOSING, None, "K-"),
        (Reason.CUT, Phase.CONNECT, None, "KC"),
    ],
)
def test_the_state_is_what_haproxy_would_log(
    reason: Reason, phase: Phase, side: Side | None, state: str
) -> None:
    """Who ended it, and where in its life it was."""
    report = _report(reason=reason, phase=phase, side=side)
    assert report.termination_state == state


_VALUES: st.SearchStrategy[object] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.lists(st.text())
)


@given(notes=st.dictionaries(st.text(max_size=5), _VALUES))
def test_a_report_can_be_written_as_json(notes: dict[str, object]) -> None:
    """Whatever a handler noted; and what it returned or raised stays out of it."""
    report = _report(notes=notes, result=object(), exception=Exception(), connect=1 / 3)
    fields = report.as_dict()
    assert json.loads(json.dumps(fields)) == fields
    assert list(fields)[:2] == ["id", "outcome"]
    assert not any(isinstance(value, enum.Enum) for value in fields.values())
    assert fields["connect"] == 0.333333
    assert "result" not in fields
    assert "exception" not in fields
    assert set(fields["notes"]) == set(notes)


@given(st.text() | st.text(st.characters(max_codepoint=0x9F)), st.integers(3, 300))
def test_what_a_peer_sent_is_printed_in_one_line_of_ascii(text: str, most: int) -> None:
    """No control character reaches a terminal, no line break a log."""
    escaped = escape(text, most)
    assert len(escaped) <= most
    assert all(" " <= character <= "~" for character in escaped)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain", "plain"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("back\\slash", r"back\\slash"),
        ("smile \N{GRINNING FACE}", r"smile \U0001f600"),
        ("'\"", "'\""),
    ],
)
def test_escapes_are_those_of_python(text: str, escaped: str) -> None:
    """What was meant can be read."""
    assert escape(text) == escaped


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("what"), "ValueError: what"),
        (ValueError(), "ValueError"),
        (_caused(RuntimeError("broken"), OSError(5, "I/O")), "OSError: [Errno 5] I/O"),
        (_caused(OSError(0, "a"), OSError(5, "I/O")), "OSError: [Errno 0] a"),
        (_caused(RuntimeError("a"), ValueError("b")), "RuntimeError: a"),
        (ExceptionGroup("x", [ValueError("a")]), "ValueError: a"),
        (
            ExceptionGroup("x", [ValueError(n) for n in range(5)]),
            "ValueError: 0; ValueError: 1; ValueError: 2; 2 more",
        ),
    ],
)
def test_an_error_is_described_in_one_line(error: BaseException, text: str) -> None:
    """By its type, what it says, and what was behind a broken stream."""
    assert describe(error) == text


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (None, False),
        ("OSError: no", True),
        ("no answer", True),
        ("given up", False),
        ("another address was faster", False),
    ],
)
def test_an_attempt_that_nobody_waited_for_has_not_failed(
    error: str | None, failed: bool
) -> None:
    """It might have succeeded."""
    attempt = Attempt(address="10.0.0.1:80", seconds=1, error=error)
    assert attempt.failed is failed


@pytest.mark.parametrize(
    ("cut", "stuck", "clean"),
    [(0, (), True), (1, (), False), (0, ("conn-1 in f at a.py:1",), False)],
)
def test_a_drain_is_clean_if_nothing_was_cut_and_nothing_hangs(
    cut: int, stuck: tuple[str, ...], clean: bool
) -> None:
    """Refusals and lost reports do not make it unclean."""
    summary = DrainSummary(
        reason="test",
        seconds=math.pi,
        open_at_start=1,
        swept=1,
        finished=1,
        refused=1,
        cut=cut,
        stuck=stuck,
        reports_lost=1,
    )
    assert summary.clean is clean
