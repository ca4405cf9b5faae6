"""The laws of serving, which must hold whenever all tasks wait.

The server's own counters are not trusted: they are compared with the wire, with what
the rules have done, and with the clock.
"""

from __future__ import annotations

import collections
from typing import Final

from trioserve import DrainSummary, Reason
from trioserve.testing.runs import with_own_traceback

from ._failure import ServeFailure, require
from ._served import InjectedError, ServedServer

#: Reasons for which the connection of a bystander may end: the server's timers, its
#: limit, or its drain.
_BY_ITSELF: Final = (
    Reason.FIRST_BYTE, Reason.IDLE, Reason.HALF_CLOSED, Reason.WRITE_STALL,
    Reason.LIFETIME, Reason.LIMIT, Reason.STOPPING, Reason.CUT,
)  # fmt: skip

#: The longest wait for the end of a drain, in seconds.
_PATIENCE: Final = 3600.0


class ServeLaws:
    """Checks one server. Methods raise :class:`ServeFailure`.

    Args:
      served: the server.
      raises: exceptions that the handler may raise.
    """

    def __init__(
        self, served: ServedServer, raises: tuple[type[BaseException], ...]
    ) -> None:
        self._served = served
        self._raises = raises

    def check(self) -> None:
        """Check all that must hold when all tasks wait."""
        __tracebackhide__ = True
        self._let_bystanders_talk()
        self._check_isolation()
        self._check_bystanders()
        self._check_limit()
        self._check_counters()
        self._check_bytes_of_reports()
        self._check_bytes_of_all()
        self._check_hellos()
        self._check_drain()
        self._check_errors()

    def check_end(self) -> None:
        """Drain the server to its end, and check that nothing is left."""
        served = self._served
        served.drain(0)
        self.check()
        if served.outcome is None:
            seconds = served.timeouts.lame_duck + 2 * served.timeouts.cleanup + 1
            served.driver.sleep(min(seconds, _PATIENCE))
            self.check()
        for client in served.clients:
            client.reset()
        self.check()
        is_over = served.outcome is not None
        require("drain ends", is_over, f"it was drained, but {served.task_lines}")
        statistics = served.server.statistics()
        taken = statistics.open + statistics.tokens_used
        require("nothing left", not taken, f"it has ended with {statistics}")
        tasks = served.driver.tasks
        require("nothing left", not tasks, f"it has ended, but {served.task_lines}")

    def _let_bystanders_talk(self) -> None:
        for client in self._served.bystanders:
            if client.number in self._served.served:
                client.send(b"%d " % client.number)
        self._served.driver.settle()

    def _check_isolation(self) -> None:
        __tracebackhide__ = True
        outcome = self._served.outcome
        if isinstance(outcome, BaseException):
            how = f"the server has ended: {outcome!r}"
            raise ServeFailure("isolation", how) from with_own_traceback(outcome)
        fine = outcome is None or self._served.is_draining
        require("isolation", fine, "the server has ended, but no rule drained it")
        for report in self._served.reports:
            if isinstance(report.exception, InjectedError):
                whose = report.exception.number
                how = f"conn-{report.id} has the error of conn-{whose}"
                require("isolation", report.id == whose, how)

    def _check_bystanders(self) -> None:
        __tracebackhide__ = True
        served = self._served
        for client in served.bystanders:
            who = f"client {client.number}, a bystander,"
            sent, received = bytes(client.sent), bytes(client.received)
            fine = received == sent or client.number not in served.served
            require("isolation", fine, f"{who} sent {sent!r} and got back {received!r}")
            for report in served.reports:
                fine = report.id != client.number or report.reason in _BY_ITSELF
                how = f"{who} was ended because {report.reason.sentence}"
                require("isolation", fine, how)

    def _check_limit(self) -> None:
        __tracebackhide__ = True
        served = self._served
        if served.excess is not None:
            raise ServeFailure("limit", served.excess)
        most, now = served.server.limits.max_connections, len(served.served)
        taken = served.server.statistics().tokens_used
        how = f"tokens in use: {taken}, connections served: {now}"
        require("limit", taken == now, how)
        if now < most and not served.is_draining:
            how = f"{now} connections of {most} are served, but a client waits"
            require("limit", not served.waiting, how)
        for report in served.reports:
            if report.reason is Reason.LIMIT:
                others, limit = report.open_at_close, report.limit or 0
                how = f"conn-{report.id} was refused with {others} open of {limit:g}"
                require("limit", others >= limit, how)

    def _check_counters(self) -> None:
        __tracebackhide__ = True
        served, statistics = self._served, self._served.server.statistics()
        accepted = sum(traffic.is_accepted for traffic in served.traffic.values())
        recorded = statistics.collected + statistics.buffered + statistics.lost
        reports = collections.Counter(report.id for report in served.reports)
        for fine, how in (
            (statistics.accepted == accepted, f"{accepted} were accepted"),
            (
                statistics.accepted == statistics.open + statistics.closed,
                "accepted is not open + closed",
            ),
            (
                statistics.closed == recorded,
                "closed is not collected + buffered + lost",
            ),
            (
                statistics.collected == reports.total() and not statistics.buffered,
                f"the collector got {reports.total()} reports",
            ),
            (
                served.collector_dies or not statistics.lost,
                "reports are lost, but the collector runs",
            ),
        ):
            require("one record", fine, f"{how}: {statistics}")
        for number, count in reports.items():
            fine = count == 1 and not served.is_open(number)
            require("one record", fine, f"conn-{number} has too many reports")

    def _check_bytes_of_reports(self) -> None:
        __tracebackhide__ = True
        for report in self._served.reports:
            traffic, who = self._served.traffic[report.id], f"conn-{report.id}"
            received, sent = report.bytes_received, report.bytes_sent
            how = (
                f"{who} received {traffic.received} bytes and sent {traffic.sent},"
                f" but its report says {received} and {sent}"
            )
            fine = traffic.counts_are_right(received=received, sent=sent)
            require("byte ledger", fine, how)

    def _check_bytes_of_all(self) -> None:
        __tracebackhide__ = True
        server = self._served.server
        statistics = server.statistics()
        for name in ("bytes_received", "bytes_sent"):
            counted = getattr(statistics, name)
            of_all = (*self._served.reports, *server.connections)
            total = sum(getattr(one, name) for one in of_all)
            how = f"the {name} of all are {total}, but the statistics say {counted}"
            require("byte ledger", counted == total or bool(statistics.lost), how)

    def _check_drain(self) -> None:
        __tracebackhide__ = True
        served = self._served
        late = served.driver.now - served.deadline
        for number, traffic in served.traffic.items():
            fine = late < 0 or not traffic.is_accepted or traffic.is_closed
            how = f"conn-{number} is open {late:g} s after the deadline"
            require("drain ends", fine, how)
        for report, reported_at in zip(served.reports, served.reported_at, strict=True):
            early = served.deadline - reported_at
            how = f"conn-{report.id} was cut {early:g} s before the deadline"
            require("drain ends", report.reason is not Reason.CUT or early <= 0, how)
        if isinstance(served.outcome, DrainSummary):
            stuck = "; ".join(served.outcome.stuck)
            require("drain ends", not stuck, f"it left tasks behind: {stuck}")
        elif not served.server.connections:
            how = f"nothing is open, but {served.task_lines}"
            require("drain ends", served.accepts, how)

    def _check_hellos(self) -> None:
        __tracebackhide__ = True
        is_over = self._served.outcome is not None
        for client in self._served.clients:
            waits = is_over and client.tail == "open" and client.is_reading
            how = f"the server has ended, but client {client.number} still waits"
            require("no lost hello", not waits, how)

    def _check_errors(self) -> None:
        __tracebackhide__ = True
        for report in self._served.reports:
            error = report.exception
            if report.reason is not Reason.HANDLER_ERROR or error is None:
                continue
            if _is_unexpected(error, (InjectedError, *self._raises)):
                how = f"the handler of conn-{report.id} raised {error!r}"
                raise ServeFailure("errors", how) from with_own_traceback(error)


def _is_unexpected(
    error: BaseException, expected: tuple[type[BaseException], ...]
) -> bool:
    """Whether the error, or one in its group, has another type."""
    if isinstance(error, BaseExceptionGroup):
        return any(_is_unexpected(inner, expected) for inner in error.exceptions)
    return not isinstance(error, expected)
