"""HAProxy's format, as far as it needs no HAProxy; the rest is in ``tests/real``."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sample_reports import make_report
from trioserve import Attempt, Phase, Reason
from trioserve.app.output._haproxy import tcplog


@pytest.fixture(autouse=True)
def utc() -> Iterator[None]:
    """HAProxy writes local time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def test_a_connection_with_every_field() -> None:
    tried = [Attempt(address=f"10.0.0.{n}:80", seconds=0.001) for n in (1, 2)]
    report = make_report(
        peer="[2001:db8::1]:4242",
        accepted_at=1.2345,
        bytes_sent=3400,
        target="10.0.0.2:80",
        attempts=tried,
        queued=0.5,
        connect=0.512,
        duration=2.0006,
        open_at_close=3,
    )
    assert tcplog(report, "proxy") == (
        "2001:db8::1:4242 [01/Jan/1970:00:00:01.234] 0.0.0.0:8080"
        " proxy/10.0.0.2:80 500/12/2001 3400 -- 4/4/3/3/1 0/0"
    )


def test_a_connection_that_was_refused() -> None:
    report = make_report(reason=Reason.LIMIT, phase=Phase.QUEUE)
    assert tcplog(report, "proxy") == (
        "10.0.0.9:4242 [09/Oct/2025:08:53:20.250] 0.0.0.0:8080"
        " 0.0.0.0:8080/<NOSRV> -1/-1/250 0 PR 1/1/0/0/0 0/0"
    )


def test_a_client_of_a_unix_socket_is_written_as_haproxy_does() -> None:
    assert tcplog(make_report(peer="unix:"), "proxy").startswith("unix:1 [")


@given(st.text(), st.text(), st.none() | st.text())
def test_a_space_in_a_name_does_not_move_a_field(
    peer: str, listener: str, target: str | None
) -> None:
    line = tcplog(make_report(peer=peer, listener=listener, target=target), "proxy")
    assert line.isprintable()
    assert len(line.split(" ")) == 9
    assert re.search(r" --( \d+(/\d+)+){2}$", line)
