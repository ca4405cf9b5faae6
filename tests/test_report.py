"""Reports: reasons, termination states, and JSON."""

from __future__ import annotations

import enum
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve import (
    Attempt,
    ConnectionReport,
    Outcome,
    Phase,
    Reason,
    TlsFacts,
    Upstream,
)
from trioserve._reason import Side


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
    ("reason", "phase", "waited_for", "state"),
    [
        (Reason.CLIENT_CLOSED, Phase.CLOSING, None, "--"),
        (Reason.CLIENT_RESET, Phase.DATA, None, "CD"),
        (Reason.SERVER_RESET, Phase.CLOSING, None, "SL"),
        (Reason.CONNECT_REFUSED, Phase.CONNECT, None, "SC"),
        (Reason.CONNECT_TIMEOUT, Phase.CONNECT, None, "sC"),
        (Reason.TARGET_FULL, Phase.CONNECT, None, "sQ"),
        (Reason.CLIENT_GONE, Phase.CONNECT, None, "CC"),
        (Reason.LIMIT, Phase.QUEUE, None, "PR"),
        (Reason.IDLE, Phase.DATA, "client", "cD"),
        (Reason.WRITE_STALL, Phase.DATA, "target", "sD"),
        (Reason.CUT, Phase.DATA, None, "K-"),
        (Reason.CUT, Phase.CLOSING, None, "K-"),
        (Reason.CUT, Phase.CONNECT, None, "KC"),
    ],
)
def test_the_state_is_the_one_that_haproxy_logs(
    reason: Reason, phase: Phase, waited_for: Side | None, state: str
) -> None:
    """What ended it, and in which phase."""
    report = _report(reason=reason, phase=phase, waited_for=waited_for)
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
    """Whatever a handler noted; its result and its exception are left out."""
    report = _report(notes=notes, result=object(), exception=Exception(), connect=1 / 3)
    fields = report.as_dict()
    assert json.loads(json.dumps(fields)) == fields
    assert list(fields)[:2] == ["id", "outcome"]
    assert not any(isinstance(value, enum.Enum) for value in fields.values())
    assert fields["connect"] == 0.333333
    assert "result" not in fields
    assert "exception" not in fields
    assert set(fields["notes"]) == set(notes)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ((1 << 64) - 1, (1 << 64) - 1),
        (1 << 64, str(1 << 64)),
        (0.5, 0.5),
        (math.inf, "inf"),
        (b"a", "b'a'"),
    ],
)
def test_a_note_that_json_has_no_value_for_is_text(value: object, written: str) -> None:
    """Nor has every reader of JSON integers of more than 64 bits."""
    assert _report(notes={"value": value}).as_dict()["notes"] == {"value": written}


def test_what_tls_has_agreed_on_is_told_for_each_side() -> None:
    facts: dict[str, Any] = {
        "version": "TLSv1.3",
        "cipher": "TLS_AES_256_GCM_SHA384",
        "sni": "a.example",
        "alpn": None,
        "subject": None,
        "names": ["DNS:a.example"],
        "resumed": False,
        "handshake": 0.25,
        "bytes_received": 100,
        "bytes_sent": 200,
    }
    tls = TlsFacts(**facts)
    far = Upstream(bytes_received=1, bytes_sent=2, bytes_discarded=0, tls=tls)
    fields = _report(tls=None, upstream=far).as_dict()
    assert (fields["tls"], fields["upstream_tls"]) == (None, facts)
    fields = _report(tls=tls, upstream=None).as_dict()
    assert (fields["tls"], fields["upstream_tls"]) == (facts, None)


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
def test_a_cancelled_attempt_has_not_failed(error: str | None, failed: bool) -> None:
    """It might have succeeded."""
    attempt = Attempt(address="10.0.0.1:80", seconds=1, error=error)
    assert attempt.failed is failed
