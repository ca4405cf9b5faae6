"""A TLS session: bytes in and out, wherever they are cut."""

from __future__ import annotations

import contextlib
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates import Authority
from links import some_bytes, tls_contexts, tls_sessions
from trioserve import TlsOptions
from trioserve._tls_options import load_server
from trioserve.wire._tls_errors import TlsError, alert_in, tls_error
from trioserve.wire._tls_records import RecordEnds
from trioserve.wire._tls_session import TlsSession
from wire.hellos import from_python

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]

_step = st.one_of(
    st.tuples(st.sampled_from(["write"]), st.integers(0, 1), st.integers(1, 40_000)),
    st.tuples(st.sampled_from(["carry"]), st.integers(0, 1), st.integers(1, 40_000)),
    st.tuples(st.sampled_from(["read"]), st.integers(0, 1), st.integers(1, 40_000)),
    st.tuples(st.sampled_from(["close"]), st.integers(0, 1), st.just(0)),
)


class _Ends:
    """Both ends of a TLS connection, and the encrypted bytes on the way."""

    def __init__(self, version: ssl.TLSVersion) -> None:
        self.sessions = tls_sessions(version)
        self.records = RecordEnds(), RecordEnds()
        self.on_the_way = [b"", b""]
        self.written = [0, 0]
        self.read = [b"", b""]
        self.closed = [False, False]

    def write(self, who: int, count: int) -> None:
        if not self.closed[who]:
            data = some_bytes(self.written[who], count)
            assert self.sessions[who].write(data) == count
            self.written[who] += count

    def close(self, who: int, _: int) -> None:
        if not self.closed[who]:
            self.closed[who] = True
            self.sessions[who].close()

    def carry(self, who: int, count: int) -> None:
        """Carry up to ``count`` of the bytes of one end to the other."""
        self.on_the_way[who] += self.sessions[who].output()
        data, self.on_the_way[who] = (
            self.on_the_way[who][:count],
            self.on_the_way[who][count:],
        )
        self.sessions[1 - who].feed(data)
        self.records[1 - who].feed(data)

    def read_some(self, who: int, count: int) -> bytes | None:
        data = self.sessions[who].read(count)
        assert data is None or len(data) <= count
        self.read[who] += data or b""
        return data

    def check(self) -> None:
        """Carry and read all that is left; each end has got what the other wrote."""
        for who in (0, 1):
            self.carry(who, 10_000_000)
            while (data := self.read_some(1 - who, 100_000)) not in (None, b""):
                pass
            assert self.read[1 - who] == some_bytes(0, self.written[who])
            assert (data == b"") is self.closed[who]
            assert not self.records[1 - who].is_within_record


def _play(version: ssl.TLSVersion, script: Sequence[tuple[str, int, int]]) -> None:
    ends = _Ends(version)
    does = {"write": ends.write, "carry": ends.carry, "close": ends.close}
    for what, who, count in script:
        if what == "read":
            ends.read_some(who, count)
        else:
            does[what](who, count)
    ends.check()


@pytest.mark.parametrize("version", VERSIONS)
@given(script=st.lists(_step, max_size=20))
@settings(deadline=None, max_examples=30)
def test_each_end_closes_its_own_direction(
    version: ssl.TLSVersion, script: list[tuple[str, int, int]]
) -> None:
    """Law 7: bytes that come after one's own close_notify are read like all others."""
    _play(version, script)


@pytest.mark.nightly("the same with more examples")
@pytest.mark.parametrize("version", VERSIONS)
@given(script=st.lists(_step, max_size=40))
@settings(deadline=None, max_examples=1000)
def test_each_end_closes_its_own_direction_in_a_thousand_scripts(
    version: ssl.TLSVersion, script: list[tuple[str, int, int]]
) -> None:
    """Law 7."""
    _play(version, script)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_close_keeps_the_rest_of_a_record_that_is_read_in_part(
    version: ssl.TLSVersion,
) -> None:
    """OpenSSL holds it, and would take it for a mistake of the peer."""
    _play(
        version,
        [
            ("write", 1, 10_000),
            ("write", 1, 10_000),
            ("carry", 1, 30_000),
            ("read", 0, 10),
            ("close", 0, 0),
            ("read", 0, 5),
            ("close", 1, 0),
        ],
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_bytes_before_a_record_that_is_not_valid_are_read(
    version: ssl.TLSVersion,
) -> None:
    """Law 8: then comes the error, again and again, and the alert is output."""
    server, client = tls_sessions(version)
    client.write(b"hello")
    good = client.output()
    client.write(b"world")
    bad = bytearray(client.output())
    bad[-1] ^= 1
    server.feed(good + bytes(bad))
    assert server.read(100) == b"hello"
    for _ in range(2):
        with pytest.raises(TlsError, match="bad record mac"):
            server.read(100)
    client.feed(server.output())
    with pytest.raises(TlsError, match="it sent the alert bad_record_mac"):
        client.read(100)
    with pytest.raises(TlsError):
        client.write(b"more")
    client.close()
    assert client.output() == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_the_alert_of_a_client_that_does_not_trust_the_server(
    version: ssl.TLSVersion,
) -> None:
    """Both ends say what was wrong."""
    server = TlsSession(tls_contexts(version)[0], server_side=True)
    context = ssl.create_default_context()
    client = TlsSession(context, server_side=False, server_hostname="localhost")
    said: list[str] = []
    for _ in range(3):
        for one, other in ((client, server), (server, client)):
            try:
                one.handshake()
            except TlsError as error:
                said.append(str(error))
            other.feed(one.output())
    assert said[0].startswith("its certificate is not accepted: ")
    assert said[1].startswith("it sent the alert unknown_ca")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "it sent plain HTTP, without TLS"),
        (b"CONNECT example.org:443 HTTP/1.1\r\n\r\n", "it sent a plain HTTP CONNECT"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it began with SSH"),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", "it began with PostgreSQL's request for enc"),
        (b"220 mail.example.org ESMTP", "its first bytes are not TLS"),
    ],
)
def test_other_protocols_are_named(data: bytes, said: str) -> None:
    server = TlsSession(tls_contexts(VERSIONS[1])[0], server_side=True)
    server.feed(data)
    with pytest.raises(TlsError, match=said):
        server.handshake()


def test_an_alert_is_found_in_the_output() -> None:
    """The last one, if it is whole."""
    alert = bytes([21, 3, 3, 0, 2, 2, 40])
    assert alert_in(alert) == "handshake_failure"
    assert alert_in(bytes([22, 3, 3, 0, 1, 0]) + alert) == "handshake_failure"
    assert alert_in(alert[:-1] + b"\xff") == "number 255"
    assert alert_in(alert[:-1]) is None
    assert alert_in(bytes([21, 3, 3, 0, 19]) + bytes(19)) is None


def test_an_error_without_a_reason_has_a_text() -> None:
    assert str(tls_error(ssl.SSLError(1, "what"))) == "an unknown error"


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (b"git.example.org", "git.example.org"),
        (b"GIT.example.org", "git.example.org"),
        (b"git.ex\xffmple.org", None),
        (b"\xc3\xa4it.example.or", None),
        (b"git.ex\nmple.org", None),
        (b"git.ex\x00mple.org", None),
    ],
)
def test_the_name_that_a_client_asks_for(
    sent: bytes,
    name: str | None,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Python's own callback writes a traceback to stderr for one that is not ASCII."""
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    hello = from_python("git.example.org").replace(b"git.example.org", sent)
    cert = Authority(tmp_path).issue("git.example.org")
    context, _ = load_server(TlsOptions(cert=cert), 0)
    session = TlsSession(context, server_side=True)
    assert session.server_name is None
    with contextlib.suppress(TlsError):  # OpenSSL refuses a NUL
        for begin in range(0, len(hello), step):
            session.feed(hello[begin : begin + step])
            assert not session.handshake()
    assert session.server_name == name
    assert session.output()
    assert not unraisable


def test_without_a_client_hello_there_is_no_name() -> None:
    """OpenSSL says what it is instead."""
    session = TlsSession(tls_contexts(VERSIONS[1])[0], server_side=True)
    session.feed(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(TlsError, match="it sent plain HTTP, without TLS"):
        session.handshake()
    assert session.server_name is None


@pytest.mark.parametrize("step", [1, 2, 7, 100])
def test_where_records_end(step: int) -> None:
    """Wherever the bytes are cut, within a head too."""
    records = [bytes([23, 3, 3, 0, size]) + bytes(size) for size in (1, 0, 20, 7)]
    whole, ends, at = b"".join(records), RecordEnds(), 0
    last = {len(b"".join(records[:count])) for count in range(1, 5)}
    while at < len(whole):
        ends.feed(whole[at : at + step])
        at = min(at + step, len(whole))
        assert ends.is_within_record is (at not in last)
