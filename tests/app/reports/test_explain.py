from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sample_reports import make_report
from trioserve import Attempt, ConnectionReport, Outcome, Phase, Reason, Upstream
from trioserve.app.reports._advice import ADVICE
from trioserve.app.reports._explain import explain, explain_record
from trioserve.app.reports._records import Record, parse_record

#: The option that ends a connection for a reason, then others that advice may name.
OPTIONS = {
    Reason.DRAINED: ["--drain-idle"],
    Reason.CONNECT_TIMEOUT: ["--connect"],
    Reason.TARGET_FULL: ["--max-per-target"],
    Reason.LIMIT: ["--max-connections", "--when-full"],
    Reason.PEER_LIMIT: ["--per-peer", "--per-peer-prefix"],
    Reason.RATE: ["--rate", "--per-peer-prefix"],
    Reason.DENIED: ["--allow", "--allow-direct"],
    Reason.BAD_PROXY_HEADER: ["--accept-proxy"],
    Reason.BAD_CLIENT_HELLO: ["--accept-proxy"],
    Reason.NO_ROUTE: ["--sni"],
    Reason.HANDSHAKE: ["--handshake", "--accept-proxy", "--sni", "--max-handshakes"],
    Reason.TLS_FAILED: ["--tls-min", "--tls-cert", "--tls-client-ca"],
    Reason.NO_FDS: ["--max-connections"],
    Reason.STOPPING: ["--lame-duck"],
    Reason.FIRST_BYTE: ["--first-byte"],
    Reason.IDLE: ["--idle"],
    Reason.HALF_CLOSED: ["--half-closed"],
    Reason.WRITE_STALL: ["--write-stall"],
    Reason.LIFETIME: ["--lifetime"],
    Reason.CUT: ["--drain", "--drain-idle"],
}
LIMITS = {Reason.LIMIT, Reason.PEER_LIMIT, Reason.RATE, Reason.TARGET_FULL}
WITH_A_LIMIT = OPTIONS.keys() - {
    Reason.DENIED,
    Reason.BAD_PROXY_HEADER,
    Reason.BAD_CLIENT_HELLO,
    Reason.NO_ROUTE,
    Reason.TLS_FAILED,
    Reason.NO_FDS,
    Reason.STOPPING,
    Reason.CUT,
}
BY_FIN = {Reason.IDLE, Reason.FIRST_BYTE}
LOSSES = (
    "bytes_discarded",
    "unacknowledged",
    "upstream_bytes_discarded",
    "upstream_unacknowledged",
)


def _read(report: ConnectionReport) -> Record:
    return parse_record(json.dumps(report.as_dict()).encode())


def _lines(**changes: Any) -> list[str]:
    return list(explain_record(_read(make_report(**changes))))


def _text(**changes: Any) -> str:
    return "\n".join(_lines(**changes))


def _text_of(line: bytes) -> str:
    return "\n".join(explain_record(parse_record(line)))


def _advice(**changes: Any) -> str:
    return _lines(**changes)[-1]


def _nonsense(report: ConnectionReport, lines: Sequence[str]) -> list[str]:
    """What makes no sense, or contradicts the report or another sentence."""
    text = "\n".join(lines)
    reason, outcome = report.reason, report.outcome
    sentence = reason.sentence
    if reason is Reason.SERVER_CLOSED:
        sentence = f"the {'target' if report.target else 'server'} closed first"
    fields = report.as_dict()
    # The oldest handshake, which the number of others has ended and not its deadline.
    makes_room = bool(
        reason is Reason.HANDSHAKE and report.limit is None and report.error
    )
    # All targets were drained, whatever their limit is.
    is_drained = reason is Reason.TARGET_FULL and report.limit is None
    losses = [field for field in LOSSES if fields[field]]
    phases = re.findall("had not started|still being dialed|was being closed", text)
    wrong = {
        "empty places": re.search(r"None|nan|[{}]|\S {2,}|\.\.|\( |,,", text),
        "no sentence": any(
            not re.match(r"  [A-Z0-9\[].*\.$", line)
            for line in lines[1:]
            if not re.match("  (Attempt|Error|Notes)", line)
        ),
        "another reason": f"\n  {sentence}".lower() not in text.lower(),
        "no advice, or two": [line[:8] == "  Next: " for line in lines].index(True)
        != len(lines) - 1,
        "other options": not {*re.findall(r"--[a-z-]+", text)}
        <= {*OPTIONS.get(reason, ())},
        "no limit": reason in WITH_A_LIMIT
        and not makes_room
        and (_limit(report) in text) is is_drained,
        "not the other": makes_room is not ("--max-handshakes" in text),
        "well or not": ("ended well" in text) is not (outcome is Outcome.OK),
        "nothing to do": losses and "Next: nothing" in text,
        "losses": len(re.findall("  (?:Lost|Possibly lost)", text)) != len(losses),
        "no losses": losses and "No byte is known" in text,
        "refused": ("it was refused" in text) is not (outcome is Outcome.REFUSED),
        "two ends": len(re.findall("so (?:it|the client) was", text)) > 1,
        "reset": re.search(r"\breset\b", text)
        and (outcome in (Outcome.OK, Outcome.REFUSED) or reason in BY_FIN),
        "two closed first": len(set(re.findall("(closed first|reset it)", text))) > 1,
        "two phases": len(phases) > 1,
        "not started": "not started" in text and "its target after" in text,
        "not dialed": "still being dialed" in text and ": connected" in text,
        "a side": report.waited_for is None and "It was waiting for" in text,
        "draining": ("server was draining" in text) is not report.draining,
    }
    return [name for name, is_so in wrong.items() if is_so]


def _limit(report: ConnectionReport) -> str:
    """The option in the text, with its value; all values are 7."""
    value = {True: " 7", False: " 7s"}[report.reason in LIMITS]
    return f"({OPTIONS[report.reason][0]}{value if report.limit else ''})"


def test_a_shortage_of_the_proxy_is_not_blamed_on_the_target() -> None:
    """Law 15: the attempt is not the target's failure, and the advice differs."""
    short = "OSError: [Errno 99] no local port or address"
    attempt = Attempt(address="10.0.0.2:80", seconds=0.0, error=short, ours=True)
    lines = _lines(
        reason=Reason.RESOURCE,
        phase=Phase.CONNECT,
        target="10.0.0.2:80",
        attempts=[attempt],
        error=short,
    )
    text = "\n".join(lines)
    assert f"{short} (this machine's fault, not the target's)" in text
    assert "ip_local_port_range" in lines[-1]
    assert "10.0.0.2" not in lines[-1]
    assert text.count(short) == 1


def test_every_reason_has_an_explanation() -> None:
    assert ADVICE.keys() == set(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_makes_sense_in_every_phase_on_every_side(reason: Reason) -> None:
    for phase, waited_for, target, limit in itertools.product(
        Phase, ("client", "target", None), ("db:5432", None), (7, None)
    ):
        report = make_report(
            reason=reason,
            phase=phase,
            waited_for=waited_for,
            target=target,
            limit=limit,
        )
        lines = list(explain_record(_read(report)))
        assert _nonsense(report, lines) == [], lines


@st.composite
def _reports(draw: st.DrawFn) -> ConnectionReport:
    """Possible reports: a phase that was not reached has no fields."""
    reason = draw(st.sampled_from(Reason))
    phase = draw(st.sampled_from(Phase))
    count = st.sampled_from([0, 1, 12_345])
    seconds = st.sampled_from([0.0, 0.0123, 12.5, 4000.0])
    fields: dict[str, Any] = {
        "queued": draw(st.none() | seconds),
        "first_byte": draw(st.none() | seconds),
        "duration": draw(seconds),
        "waited_for": draw(st.sampled_from(["client", "target", None])),
        "limit": draw(st.sampled_from([7, None])),
        "error": draw(st.sampled_from(["ValueError: no", None])),
        "draining": draw(st.booleans()),
        "open_at_close": draw(count),
        "bytes_received": draw(count),
        "bytes_sent": draw(count),
        "bytes_discarded": draw(count),
        "unacknowledged": draw(st.none() | count),
    }
    if draw(st.booleans()):
        failed = Attempt(address="[::1]:5432", seconds=0.5, error="TimeoutError: no")
        fields |= {"target": "db:5432", "attempts": [failed]}
    if phase not in (Phase.QUEUE, Phase.CONNECT) and "target" in fields:
        fields["attempts"].append(Attempt(address="10.0.0.2:5432", seconds=0.01))
        fields |= {
            "connect": draw(seconds),
            "upstream": Upstream(
                bytes_received=draw(count),
                bytes_sent=draw(count),
                bytes_discarded=draw(count),
                unacknowledged=draw(st.none() | count),
            ),
        }
    return make_report(reason=reason, phase=phase, **fields)


@given(_reports())
def test_sentences_do_not_contradict_each_other(
    report: ConnectionReport,
) -> None:
    lines = list(explain_record(_read(report)))
    assert _nonsense(report, lines) == [], lines


def test_a_target_that_refuses() -> None:
    error = "ConnectionRefusedError: [Errno 111] Connection refused"
    assert (
        _text(
            reason=Reason.CONNECT_REFUSED,
            phase=Phase.CONNECT,
            target="10.0.0.2:80",
            attempts=[
                Attempt(address="10.0.0.3:80", seconds=2.5, error="no answer"),
                Attempt(address="10.0.0.2:80", seconds=0.0012, error=error),
            ],
            duration=2.5,
            error=error,
            open_at_close=3,
        )
        == """\
connection 7: target_error/connect_refused
  10.0.0.9:4242 connected to 10.0.0.1:8080, for 10.0.0.2:80, at 2025-10-09 08:53:20 \
UTC; it lasted 2.5s.
  The target refused, so the client was reset.
  Attempt 1: 10.0.0.3:80, 2.5s: no answer
  Attempt 2: 10.0.0.2:80, 1.2ms: ConnectionRefusedError: [Errno 111] Connection \
refused
  From the client 0 B, to it 0 B.
  Other connections that were open then: 3.
  Next: is something listening on 10.0.0.2:80? see `ss -ltn` there."""
    )


def test_a_receiver_that_stalls_while_the_server_drains() -> None:
    assert (
        _text(
            reason=Reason.WRITE_STALL,
            waited_for="client",
            limit=60.0,
            target="db:5432",
            attempts=[Attempt(address="10.0.0.2:5432", seconds=0.012)],
            queued=1.5,
            connect=1.512,
            first_byte=2.0,
            duration=3661.0,
            bytes_received=12,
            bytes_sent=3_400_000,
            unacknowledged=250_000,
            upstream=Upstream(
                bytes_received=3_465_536, bytes_sent=12, bytes_discarded=65_536
            ),
            draining=True,
            notes={"user": "bob", "query": "a b"},
        )
        == """\
connection 7: timeout/write_stall
  10.0.0.9:4242 connected to 10.0.0.1:8080, for db:5432, at 2025-10-09 08:53:20 UTC; \
it lasted 1h1m1s.
  The receiver took no bytes (--write-stall 1m), so it was reset.
  It was waiting for the client to read.
  Attempt 1: 10.0.0.2:5432, 12ms: connected
  It got a token after 1.5s, its target after 1.5s, the client's first byte after 2s.
  From the client 12 B, to it 3.4 MB.
  To the target 12 B, from it 3.5 MB.
  Lost: 65.5 kB from the target, which the client did not get.
  Possibly lost: 250.0 kB sent to the client, which did not acknowledge them.
  The server was draining.
  Other connections that were open then: 0.
  Notes: user=bob query="a b"
  Next: why does the client not read: is it stopped, overloaded, cut off? if it may \
pause for that long, raise --write-stall."""
    )


def test_a_handler_that_ends_before_it_has_read_everything() -> None:
    assert (
        _text(reason=Reason.SERVER_CLOSED, bytes_received=10, bytes_discarded=4)
        == """\
connection 7: ok/server_closed
  10.0.0.9:4242 connected to 10.0.0.1:8080, at 2025-10-09 08:53:20 UTC; it lasted 250ms.
  The server closed first.
  From the client 10 B, to it 0 B.
  Lost: 4 B from the client, which no handler got.
  Other connections that were open then: 0.
  Next: it ended well, but not all was read: see which side closed too early."""
    )


def test_a_line_of_an_older_version_is_explained() -> None:
    assert (
        _text_of(b'{"id": 3, "reason": "idle"}')
        == """\
connection 3: timeout/idle
  A client connected to the server.
  No byte moved within the idle timeout (--idle), so it was closed.
  Next: raise --idle, or let the client send keep-alives."""
    )


def test_an_unknown_reason_of_a_newer_version_is_shown() -> None:
    line = b'{"id": 3, "reason": "moon", "outcome": "sky", "phase": "x", "error": "E"}'
    assert (
        _text_of(line)
        == """\
connection 3: sky/moon
  A client connected to the server.
  It ended for a reason that this version does not know: moon.
  Error: E
  Next: explain it with the version of trioserve that wrote it."""
    )


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("10.0.0.2:80", "nc -vz 10.0.0.2 80"),
        ("[::1]:80", "nc -vz ::1 80"),
        ("unix:/run/a b", "ls -l '/run/a b'"),
        ("unix:@a", "ss -lx"),
        ("a;reboot:80", "nc -vz 'a;reboot' 80"),
    ],
)
def test_a_command_can_be_pasted(target: str, command: str) -> None:
    advice = _advice(reason=Reason.CONNECT_FAILED, target=target)
    assert advice.endswith(f"reach {target}? see `{command}`.")
    assert shlex.split(command)


@pytest.mark.parametrize("reason", [Reason.CONNECT_FAILED, Reason.SERVER_RESET])
def test_the_advice_for_a_failure_of_tls_is_about_tls(reason: Reason) -> None:
    error = "TlsError: it does not speak TLS"
    advice = _advice(reason=reason, target="db:5432", error=error)
    assert "does db:5432 speak TLS" in advice
    assert advice.endswith("`openssl s_client -connect db:5432 -showcerts`.")
    assert "speak TLS" not in _advice(reason=Reason.CLIENT_RESET, error=error)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (Reason.CLIENT_RESET, "--tls-allow-truncation makes it a good end."),
        (Reason.SERVER_RESET, "tls://HOST:PORT?allow-truncation makes it a good end."),
        (Reason.CONNECT_FAILED, "-showcerts`."),
    ],
)
def test_the_advice_for_a_missing_close_notify(reason: Reason, said: str) -> None:
    error = "TlsError: it ended without close_notify: bytes may be missing"
    assert _advice(reason=reason, target="db:5432", error=error).endswith(said)


def test_the_advice_for_a_unix_socket_lists_unix_sockets() -> None:
    advice = _advice(reason=Reason.CONNECT_REFUSED, target="unix:/run/a")
    assert advice.endswith("listening on unix:/run/a? see `ss -lx`.")


@pytest.mark.parametrize(
    ("peer", "who", "host"),
    [
        ("[::1]:4242", "[::1]:4242", "::1"),
        ("unix:", "A client on this machine", "the client"),
        ("unix:/run/a", "unix:/run/a", "the client"),
    ],
)
def test_the_client_is_named(peer: str, who: str, host: str) -> None:
    lines = _lines(reason=Reason.PEER_LIMIT, peer=peer)
    assert lines[1].startswith(f"  {who} connected to ")
    assert lines[-1].startswith(f"  Next: why does {host} need ")


def test_control_characters_are_escaped() -> None:
    evil = "\x1b]0;x\x07\u202e\n"
    lines = _lines(
        reason=Reason.CONNECT_FAILED,
        peer=evil,
        local=evil,
        target=evil,
        attempts=[Attempt(address=evil, seconds=0, error=evil)],
        error=evil + "1",
        notes={evil: evil},
    )
    lines += explain_record(Record(id=1, reason=evil, outcome=evil))
    assert all(line.isprintable() for line in lines)


def _records(*reasons: Reason) -> list[Record]:
    return [
        _read(make_report(id=number, reason=reason))
        for number, reason in enumerate(reasons, 1)
    ]


def _explained(lines: Sequence[str]) -> list[int]:
    found = [re.match(r"connection (\d+):", line) for line in lines]
    return [int(each[1]) for each in found if each]


def test_a_connection_that_a_second_signal_cut_needed_one_signal() -> None:
    report = make_report(reason=Reason.CUT, error="SIGTERM")
    *_, advice = explain_record(_read(report))
    assert "to let it finish, send SIGTERM once" in advice


def test_without_an_id_it_explains_those_that_did_not_end_well() -> None:
    lines = list(explain(_records(Reason.IDLE, Reason.DRAINED, Reason.CUT)))
    assert _explained(lines) == [1, 3]
    assert lines[-1] == "connections: 3; 1 ended well, 2 did not"


def test_of_many_the_last_ones_are_explained_and_the_others_counted() -> None:
    reasons = [Reason.IDLE] * 25 + [Reason.CLIENT_CLOSED] * 300
    lines = list(explain(_records(*reasons)))
    assert _explained(lines) == list(range(6, 26))
    assert lines[-1] == (
        "connections: 325; 300 ended well, 25 did not; the last 20 of these are above,"
        " use --id for the others"
    )


def test_with_an_id_it_explains_the_last_connection_that_has_it() -> None:
    runs = _records(Reason.IDLE, Reason.CUT) * 2 + _records(Reason.CLIENT_CLOSED)
    lines = list(explain(runs, 1))
    assert lines[0] == "connection 1: ok/client_closed"
    assert lines[-1] == "earlier ones with this id: 2; each run begins with id 1"
    assert "earlier" not in list(explain(runs[:2], 2))[-1]


@pytest.mark.parametrize(
    ("records", "there"),
    [([], "there are none"), (_records(Reason.CUT, Reason.CUT), "the highest is 2")],
)
def test_an_unknown_id_is_an_error(records: list[Record], there: str) -> None:
    with pytest.raises(click.ClickException) as caught:
        list(explain(records, 9))
    assert caught.value.message == f"no connection has the id 9; {there}"


@pytest.mark.parametrize(
    ("reason", "side"),
    [(Reason.CLIENT_RESET, "the client"), (Reason.SERVER_RESET, "the target")],
)
def test_a_side_that_tcp_has_given_up_did_not_crash(reason: Reason, side: str) -> None:
    """Keepalive had no answer: there is nothing to be seen in a log."""
    gone = _advice(
        reason=reason, error="TimeoutError: [Errno 110] Connection timed out"
    )
    assert f"Next: {side} did not answer any more (--keepalive," in gone
    assert "log" in _advice(reason=reason, error="ConnectionResetError: [Errno 104]")


def test_too_many_handshakes_are_not_a_matter_of_time() -> None:
    error = "more than 9 handshakes at a time"
    text = _text(reason=Reason.HANDSHAKE, waited_for="client", error=error)
    assert f"Error: {error}" in text
    assert "raise --max-handshakes" in text
    assert "--handshake" not in text.replace("--max-handshakes", "")
