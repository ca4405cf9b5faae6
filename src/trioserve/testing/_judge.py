"""The judge: finds the broken laws that show at the end of a run."""

from __future__ import annotations

from typing import Final

import trio

from trioserve import ConnectionReport, Outcome, Reason, Server

from ._case import Setting
from ._handler_run import HandlerRun, single_errors
from ._result import Received
from ._state import RunState
from .runs import line_of_error, line_of_task

#: The reason of the cancel that the disturbance ``"cancel"`` makes.
CANCEL_REASON: Final = "cancelled by the test"

#: What a handler may always raise: its stream is broken.
_OWN: Final = (trio.BrokenResourceError,)

#: What it may raise if the server has ended the connection.
MAY_RAISE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)

#: What it may raise if its connections to servers break, besides errors of streams.
_OF_SERVERS: Final = (OSError, trio.TooSlowError)

#: Outcomes of connections that the server has ended, or a handler with an abort.
_NOT_BY_ITSELF: Final = (Outcome.CUT, Outcome.TIMEOUT, Outcome.ABORTED)


def judge_tasks(state: RunState) -> None:
    """Check that all tasks started by handlers have ended."""
    for task in state.watchdog.family:
        how = f"its task {task.name} still runs, at {line_of_task(task)}"
        state.violated("nothing_left", how)


def judge_server(state: RunState, server: Server) -> None:
    """Check that the server has no open connection, and a report of each."""
    statistics = server.statistics()
    if statistics.open or statistics.tokens_used:
        how = f"{statistics.open} connections are still open"
        state.violated("nothing_left", how)
    reports = len(state.reports)
    if statistics.accepted != reports:
        how = f"{reports} reports for {statistics.accepted} connections"
        state.violated("record", how)


def judge_handlers(state: RunState, setting: Setting) -> None:
    """Check what each handler raised, swallowed and lost, its report and its stream."""
    before, state.violations = state.violations, []
    reports = {report.id: report for report in state.reports}
    for number in sorted(state.handlers.keys() & reports.keys()):
        handler, report = state.handlers[number], reports[number]
        _judge_report(state, report, handler)
        _judge_drained(state, report, handler)
        _judge_errors(state, report, handler, setting)
        reasons = [CANCEL_REASON, str(report.reason)]
        was_cancelled = any(r in reasons for r in handler.coroutine.cancel_reasons)
        if handler.returned and was_cancelled:
            how = "it was cancelled, and returned as if it was not"
            state.violated("cancelled", how, in_round=handler.in_round)
    state.violations += before


def _judge_report(
    state: RunState, report: ConnectionReport, handler: HandlerRun
) -> None:
    traffic = handler.traffic
    if not traffic.is_closed:
        state.violated("nothing_left", f"connection {report.id} is not closed")
    counts = report if report.tls is None else report.tls
    received, sent = counts.bytes_received, counts.bytes_sent
    if not traffic.counts_are_right(received=received, sent=sent):
        state.violated(
            "record",
            f"{traffic.received} bytes were received and {traffic.sent} sent, but the"
            f" report says {received} and {sent}",
        )
    if report.tls is not None and (peer := _peer_of(state, report)) is not None:
        is_short = report.bytes_sent < len(peer.data) and not traffic.is_inexact
        if is_short or report.bytes_received > peer.sent:
            state.violated(
                "record",
                f"its peer has sent {peer.sent} bytes and received {len(peer.data)},"
                f" but the report says {report.bytes_received} and {report.bytes_sent}",
            )


def _peer_of(state: RunState, report: ConnectionReport) -> Received | None:
    """What the peer of a connection has received; None if it is not known which."""
    heard = [each for in_round in state.received for each in in_round]
    return heard[report.id - 1] if len(heard) == len(state.reports) else None


def _judge_drained(
    state: RunState, report: ConnectionReport, handler: HandlerRun
) -> None:
    if report.reason is not Reason.DRAINED or not handler.unanswered:
        return
    peers = state.case.peers
    peer = peers[(report.id - 1) % len(peers)]
    if peer.is_code:
        return  # it has no messages that are known here
    ends = peer.ends_of_messages
    if (taken := report.bytes_received - report.bytes_discarded) not in ends:
        state.violated(
            "drain",
            f"the drain ended its wait in the middle of a message, after {taken} bytes:"
            f" the last {handler.unanswered} are lost"
            " (idle(held=buffer) tells the server what a buffer holds)",
        )


def _judge_errors(
    state: RunState, report: ConnectionReport, handler: HandlerRun, setting: Setting
) -> None:
    was_cut = report.outcome in _NOT_BY_ITSELF
    allowed = MAY_RAISE if was_cut or handler.scope.cancelled_caught else _OWN
    if state.case.breaks_servers and handler.in_round < state.case.disturbed:
        allowed = (*allowed, *_OF_SERVERS)
    for error in single_errors(handler.raised):
        if isinstance(error, trio.Cancelled) and was_cut:
            continue
        if not isinstance(error, (*allowed, *setting.raises)):
            how = f"it raised {error!r}, at {line_of_error(error)}"
            state.violated("errors", how, handler.raised, in_round=handler.in_round)
