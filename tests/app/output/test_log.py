from __future__ import annotations

import json
import logging
import re

import pytest

from app.process import without_time
from app.sample_reports import make_report
from trioserve import Attempt, Reason
from trioserve.app.output._log import (
    Format,
    Log,
    LogHandler,
    wants_colour,
)


def _log(form: Format, *, colour: bool = False) -> tuple[Log, list[str]]:
    lines: list[str] = []
    return Log(lines.append, form, colour=colour), lines


def test_text_is_for_people() -> None:
    log, lines = _log("text")
    log.say("listening", "on 127.0.0.1:1", "try: nc", port=1)
    log.say("oh", "mind\x1b[2J this", level="warning")
    assert [without_time(line) for line in lines] == [
        "on 127.0.0.1:1",
        "try: nc",
        "warning: mind\\x1b[2J this",
    ]


def test_the_time_is_before_every_event_in_text() -> None:
    """The further lines of the event are indented below it."""
    log, lines = _log("haproxy")
    log.say("listening", "on 127.0.0.1:1", "try: nc")
    log.say("oh", "mind this", "and that", level="error")
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "TIME ", line) for line in lines] == [
        "TIME on 127.0.0.1:1",
        "         try: nc",
        "TIME error: mind this",
        "         and that",
    ]


def test_machines_get_fields() -> None:
    log, lines = _log("json")
    log.say("listening", "text", address="127.0.0.1:1", target=None, level="error")
    record = json.loads(lines[0])
    assert record.pop("ts").endswith("Z")
    assert record == {
        "level": "error",
        "event": "listening",
        "address": "127.0.0.1:1",
        "target": None,
    }


def test_an_event_without_fields_has_its_text_as_message() -> None:
    log, lines = _log("logfmt")
    log.say("draining", "already", "draining")
    assert lines[0].endswith(' level=info event=draining message="already draining"')


def test_a_connection_in_text() -> None:
    log, lines = _log("text")
    log.connection(make_report(bytes_received=12, bytes_sent=3400))
    log.connection(
        make_report(
            target="10.0.0.1:80", reason=Reason.CONNECT_REFUSED, error="ECONN: refused"
        )
    )
    log.connection(make_report(server_name="git.example", target="10.0.0.1:443"))
    assert (
        lines[2]
        .split(" ", 1)[1]
        .startswith("#7 10.0.0.9:4242 for git.example > 10.0.0.1:443 ok/client_closed ")
    )
    assert lines[0].split(" ", 1)[1] == (
        "#7 10.0.0.9:4242 ok/client_closed 12 B in, 3.4 kB out, 250ms:"
        " the client closed first"
    )
    assert lines[1].split(" ", 1)[1] == (
        "#7 10.0.0.9:4242 > 10.0.0.1:80 target_error/connect_refused 0 B in,"
        " 0 B out, 250ms: the target refused (ECONN: refused)"
    )


def test_a_connection_in_text_has_the_number_of_its_last_attempt() -> None:
    log, lines = _log("text")
    tried = [Attempt(address=f"10.0.0.{n}:80", seconds=0.001) for n in (1, 2)]
    log.connection(make_report(target="10.0.0.2:80", attempts=tried))
    assert lines[0].endswith(": the client closed first; attempt 2")


def test_a_connection_in_haproxys_format() -> None:
    log, lines = _log("haproxy")
    log.say("listening", "on 127.0.0.1:1", port=1)
    log.connection(make_report(target="10.0.0.1:80"))
    assert without_time(lines[0]) == "on 127.0.0.1:1"
    assert " trioserve/10.0.0.1:80 0/-1/250 0 -- 1/1/0/0/0 0/0" in lines[1]


@pytest.mark.parametrize(
    ("reason", "level"),
    [
        (Reason.CLIENT_CLOSED, "info"),
        (Reason.CLIENT_RESET, "info"),
        (Reason.CONNECT_REFUSED, "warning"),
        (Reason.CUT, "warning"),
        (Reason.RESOURCE, "warning"),
        (Reason.HANDLER_ERROR, "error"),
    ],
)
def test_the_level_of_a_connection_follows_its_outcome(
    reason: Reason, level: str
) -> None:
    log, lines = _log("json")
    log.connection(make_report(reason=reason))
    assert json.loads(lines[0])["level"] == level


def test_the_log_tells_whether_the_target_or_the_server_closed_first() -> None:
    log, lines = _log("text")
    log.connection(make_report(reason=Reason.SERVER_CLOSED))
    log.connection(make_report(reason=Reason.SERVER_CLOSED, target="10.0.0.1:80"))
    assert lines[0].endswith(": the server closed first")
    assert lines[1].endswith(": the target closed first")


def test_a_connection_for_machines_has_every_field() -> None:
    report = make_report(notes={"user": "bob"})
    log, lines = _log("json")
    log.connection(report)
    record = json.loads(lines[0])
    assert report.as_dict().items() <= record.items()
    log, lines = _log("logfmt")
    log.connection(report)
    assert " outcome=ok " in lines[0]
    assert " notes.user=bob " in lines[0]


@pytest.mark.parametrize(
    ("reason", "colour"),
    [
        (Reason.IDLE, 31),
        (Reason.RESOURCE, 31),
        (Reason.CLIENT_CLOSED, 32),
        (Reason.LIMIT, 33),
    ],
)
def test_outcomes_have_colours(reason: Reason, colour: int) -> None:
    log, lines = _log("text", colour=True)
    log.connection(make_report(reason=reason))
    assert f"\x1b[{colour}m{reason.outcome}\x1b[0m/" in lines[0]


@pytest.mark.parametrize(
    ("terminal", "environ", "wanted"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (False, {"FORCE_COLOR": "1"}, True),
        (True, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
    ],
)
def test_the_environment_decides_on_colours(
    terminal: bool, environ: dict[str, str], wanted: bool
) -> None:
    assert wants_colour(terminal, environ) is wanted


def test_what_the_library_logs_is_one_line() -> None:
    log, lines = _log("text")
    logger = logging.getLogger("app.test_log")
    handler = LogHandler(log)
    logger.addHandler(handler)
    logger.warning("accept: %s", "EMFILE")
    logger.error("the collector is dead", exc_info=ValueError("two\nlines"))
    logger.removeHandler(handler)
    assert [without_time(line) for line in lines] == [
        "warning: accept: EMFILE",
        "error: the collector is dead: ValueError: two\\nlines",
    ]
