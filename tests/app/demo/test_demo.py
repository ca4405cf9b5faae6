from __future__ import annotations

import dataclasses
import random
import re
from dataclasses import replace
from typing import Any

import pytest
import trio.testing

from trioserve import (
    ConnectionReport,
    DrainSummary,
    Phase,
    Reason,
    Statistics,
    Upstream,
)
from trioserve.app.demo import _demo
from trioserve.app.demo._audit import Audit, ServerRecords, audit_text, discrepancies
from trioserve.app.demo._clients import BEHAVIOURS, SimulatedClient, make_clients
from trioserve.app.output._screen import Screen


def _client(**changes: Any) -> SimulatedClient:
    fields: dict[str, Any] = {
        "address": "127.0.0.1:1",
        "sent": 5,
        "received": 5,
        "end": "done",
    }
    return SimulatedClient("quick", 0.0, random.Random(1), **(fields | changes))


_UPSTREAM = Upstream(bytes_received=5, bytes_sent=5, bytes_discarded=0)


def _report(**changes: Any) -> ConnectionReport:
    fields: dict[str, Any] = {
        "id": 1,
        "listener": "127.0.0.1:7000",
        "peer": "127.0.0.1:1",
        "local": "127.0.0.1:7000",
        "accepted_at": 0.0,
        "duration": 0.25,
        "reason": Reason.CLIENT_CLOSED,
        "phase": Phase.DATA,
        "connect": 0.1,
        "bytes_received": 5,
        "bytes_sent": 5,
        "upstream": _UPSTREAM,
    }
    return ConnectionReport(**(fields | changes))


def _statistics(**changes: Any) -> Statistics:
    counters: dict[str, Any] = dict.fromkeys(
        (field.name for field in dataclasses.fields(Statistics)), 0
    )
    counters |= {"accepted": 1, "closed": 1, "bytes_received": 5, "bytes_sent": 5}
    return Statistics(**(counters | changes))


def _audit(**changes: Any) -> Audit:
    fields: dict[str, Any] = {
        "clients": [_client()],
        "proxy": ServerRecords(reports=[_report()], statistics=_statistics()),
        "target": ServerRecords(
            reports=[_report(connect=None)],
            statistics=_statistics(),
        ),
        "summary": _summary(),
    }
    return Audit(**(fields | changes))


def _summary(**changes: Any) -> DrainSummary:
    fields: dict[str, Any] = {
        "reason": "drain",
        "seconds": 0.5,
        "open_at_start": 0,
        "backlog_drained": 0,
        "finished": 0,
        "refused": 0,
        "cut": 0,
        "stuck": (),
        "reports_lost": 0,
    }
    return DrainSummary(**(fields | changes))


def _records(
    report: dict[str, Any] | None = None, statistics: dict[str, Any] | None = None
) -> ServerRecords:
    return ServerRecords(
        reports=[_report(**(report or {}))],
        statistics=_statistics(**(statistics or {})),
    )


async def test_it_runs_and_everything_adds_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    said: list[str] = []
    code = await _demo.main(1.2, 120, 1, said.append)
    assert said[-1] == "Everything adds up."
    assert code == 0
    assert sum(" open " in line for line in said) == 2
    assert any(line.startswith("connections  120 clients = 120") for line in said)


async def test_on_a_terminal_it_shows_a_live_view(
    autojump_clock: trio.testing.MockClock,
) -> None:
    painted: list[str] = []

    def write(text: str) -> bool:
        painted.append(text)
        return True

    screen = Screen(write, lambda: (80, 24))
    assert await _demo.main(0.5, 30, 1, screen.line, screen) == 0
    views = [text for text in painted if "  reasons " in text]
    assert len(views) > 2
    assert not any("\n  0 s" in text for text in painted)
    assert re.search(r"^  total +30 accepted ", views[-1], re.MULTILINE)
    assert " 0 open, 0 of 20 tokens" in views[-1]
    assert painted[-1] == "Everything adds up."


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_each_behaviour_adds_up_when_it_is_cut_short(behaviour: str) -> None:
    clients = [
        SimulatedClient(behaviour, 0.0, random.Random(seed)) for seed in range(30)
    ]
    audit = await _demo.perform(clients, 0.01, lambda _: None)
    assert discrepancies(audit) == []


def test_the_seed_decides_behaviours_and_times() -> None:
    def clients(seed: int) -> list[tuple[str, float, float]]:
        return [
            (client.behaviour, client.start, client.random.random())
            for client in make_clients(2.0, 100, seed)
        ]

    assert clients(1) == clients(1)
    assert clients(1) != clients(2)
    assert {behaviour for behaviour, _, _ in clients(1)} == set(BEHAVIOURS)
    assert max(start for _, start, _ in clients(1)) < 2.0


async def test_a_discrepancy_is_printed_and_the_exit_code_is_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def perform(*args: object) -> Audit:
        return _audit(clients=[_client(end=None)])

    monkeypatch.setattr(_demo, "perform", perform)
    said: list[str] = []
    assert await _demo.main(1.0, 1, 1, said.append) == 1
    assert said[-1] == "does not add up: quick client 127.0.0.1:1 is still waiting"


def test_records_that_add_up() -> None:
    audit = _audit()
    assert discrepancies(audit) == []
    text = list(audit_text(audit))
    assert "connections  1 clients = 1 accepted = 1 closed = 1 reports" in text
    assert not any("stuck" in line for line in text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"proxy": _records(statistics={"open": 1})}, "proxy: 1 connections are still"),
        ({"proxy": _records(statistics={"closed": 0})}, "proxy: 1 accepted = 0 closed"),
        (
            {"target": _records({"bytes_discarded": 1})},
            "target: bytes_discarded are 1 in reports, 0 in statistics",
        ),
        (
            {"proxy": _records({"upstream": replace(_UPSTREAM, bytes_sent=4)})},
            "connection 1: received is not relayed + discarded",
        ),
        (
            {"proxy": _records({"upstream": replace(_UPSTREAM, bytes_discarded=1)})},
            "connection 1: target bytes are not sent + discarded",
        ),
        (
            {"proxy": _records({"connect": None})},
            "0 dialed, but 1 reports of the target",
        ),
        (
            {"target": _records({"bytes_received": 6}, {"bytes_received": 6})},
            "the target received more than the proxy sent",
        ),
        (
            {"target": _records({"bytes_sent": 4}, {"bytes_sent": 4})},
            "the proxy received more than the target sent",
        ),
        ({"clients": [_client(sent=4)]}, "sent or got bytes that its report does not"),
        ({"clients": [_client(received=6)]}, "sent or got bytes that its report does"),
        ({"clients": [_client(sent=6)]}, "but 1 bytes up, 0 down are missing"),
        ({"clients": [_client(sent_sum=1)]}, "got back other bytes than it sent"),
        ({"clients": [_client(), _client()]}, "quick client 127.0.0.1:1 has no report"),
        ({"clients": []}, "1 reports have no client"),
        ({"summary": _summary(stuck=("conn-1 at x.py:1",))}, "stuck: conn-1 at x.py:1"),
    ],
)
def test_each_discrepancy_is_found(changes: dict[str, Any], said: str) -> None:
    audit = _audit(**changes)
    assert any(said in line for line in discrepancies(audit))
    assert list(audit_text(audit))


def test_a_client_that_never_connected_needs_no_report() -> None:
    clients = [_client(), _client(address="", end="reset", sent=0)]
    assert discrepancies(_audit(clients=clients)) == []


def test_after_a_reset_bytes_may_be_missing() -> None:
    clients = [_client(sent=9, received=2, end="reset")]
    assert discrepancies(_audit(clients=clients)) == []
