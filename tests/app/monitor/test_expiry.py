"""When a certificate is due: 14 days ahead, each day, and at its end."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import trio
import trio.testing
import trustme

from support import serving
from trioserve import Layers, TlsOptions, echo
from trioserve.app.monitor._expiry import ExpiryMonitor

DAY = 86_400

#: When the tests begin, by their clock.
BEGIN = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


class Issued:
    """A file whose certificate is valid for some days from the begin."""

    def __init__(self, folder: Path, days: float) -> None:
        self.path = folder / f"{days}.pem"
        self._ca = trustme.CA()
        self.write(days)

    def write(self, days: float) -> None:
        end = (BEGIN + dt.timedelta(days=days)).replace(tzinfo=None)
        issued = self._ca.issue_cert("localhost", not_after=end)
        issued.private_key_and_cert_chain_pem.write_to_path(str(self.path))

    @property
    def layers(self) -> Layers:
        return Layers(tls=TlsOptions(cert=str(self.path)))


class Day:
    """The wall clock, by the virtual one."""

    def __init__(self) -> None:
        self._began = trio.current_time()
        self.leap = 0.0

    def now(self) -> float:
        return BEGIN.timestamp() + trio.current_time() - self._began + self.leap


async def _due(monitor: ExpiryMonitor, days: float) -> list[float]:
    """The days left, each time that a certificate is due within the next days."""
    found = list[float]()
    for _ in range(round(days * 24)):
        found += [round(left / DAY, 2) for _, left in monitor.check()]
        await trio.sleep(3600)
    return found


async def test_it_is_due_from_14_days_ahead_each_day_and_when_it_expires(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    issued = Issued(tmp_path, 16.5)
    async with serving(echo, layers=issued.layers) as running:
        monitor = ExpiryMonitor(running.server, Day().now)
        assert await _due(monitor, 2.5) == []
        assert await _due(monitor, 13.5) == [14 - day for day in range(14)]
        assert await _due(monitor, 2) == [0, -1]
        issued.write(32.5)  # it is read within a minute
        assert await _due(monitor, 0.5) == []
        assert await _due(monitor, 2) == [14, 13]


async def test_each_certificate_is_due_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Also if several listeners have it, and if the wall clock is set back."""
    soon, late = Issued(tmp_path, 3.5), Issued(tmp_path, 400)
    tls = TlsOptions(cert=[str(soon.path), str(late.path)])
    async with serving(
        echo,
        layers=Layers(tls=tls),
        addresses=("127.0.0.1:0", "127.0.0.2:0"),
    ) as running:
        await running.server.close_listener(running.server[1])
        day = Day()
        monitor = ExpiryMonitor(running.server, day.now)
        ((certificate, left),) = monitor.check()
        assert (certificate.cert, left) == (str(soon.path), 3.5 * DAY)
        assert monitor.check() == []
        day.leap = -DAY
        assert [left for _, left in monitor.check()] == [4.5 * DAY]
        assert monitor.check() == []


async def test_one_that_has_expired_or_never_expires(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """At the start, and far ahead: RFC 5280, section 4.1.2.5"""
    gone = Issued(tmp_path, -1)
    never = Issued(tmp_path, (dt.datetime(9999, 12, 31, tzinfo=dt.UTC) - BEGIN).days)
    async with (
        serving(echo, layers=gone.layers) as first,
        serving(echo, layers=never.layers) as second,
    ):
        now = Day().now
        assert await _due(ExpiryMonitor(first.server, now), 2) == [-1, -2]
        assert await _due(ExpiryMonitor(second.server, now), 1) == []
