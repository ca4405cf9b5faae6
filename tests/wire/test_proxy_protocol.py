"""The PROXY protocol: what is valid, what it declares, and mistakes in it."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve.wire._proxy_protocol import (
    LONGEST,
    Endpoint,
    ProxyHeader,
    ProxyHeaderError,
    build_v1,
    build_v2,
    crc32c,
    parse_header,
)
from trioserve.wire._proxy_tlvs import (
    ALPN,
    AUTHORITY,
    SSL,
    UNIQUE_ID,
    ClientTls,
    join_tlvs,
    split_tlvs,
)
from wire.headers import (
    FROM4,
    FROM6,
    INVALID,
    TCP4,
    TO4,
    TO6,
    VALID,
    addresses,
    mutated,
    tls_tlv,
    tlv,
    v2,
)

Verdict = ProxyHeader | str | None


def verdict(data: bytes) -> Verdict:
    """The header, the error, or None for a part."""
    try:
        return parse_header(data)
    except ProxyHeaderError as error:
        return str(error)


def check_at(data: bytes, length: int, whole: Verdict) -> None:
    """The first ``length`` bytes alone lead to the same verdict, or are a part."""
    part = verdict(data[:length])
    if part is None:
        assert length < LONGEST
        assert whole is None or isinstance(whole, str) or length < whole.size
    else:
        assert part == whole


def check_mutated(count: int, seed: int) -> None:
    rng = random.Random(seed)
    accepted = refused = 0
    for number in range(count):
        data = mutated(rng)
        whole = verdict(data)
        lengths = (
            range(len(data))
            if number % 100 == 0
            else rng.choices(range(len(data) + 1), k=4)
        )
        for length in lengths:
            check_at(data, length, whole)
        refused += isinstance(whole, str)
        if isinstance(whole, ProxyHeader):
            accepted += 1
            assert whole.size <= len(data)
            # It does not look beyond its end.
            assert verdict(data[: whole.size]) == whole
            assert verdict(data[: whole.size] + rng.randbytes(9)) == whole
            check_declared(data[: whole.size], whole)
    # The mistakes are neither so large nor so small that nothing is tested.
    assert accepted > count / 20
    assert refused > count / 20


def check_declared(header: bytes, found: ProxyHeader) -> None:
    """What was read makes the same header again."""
    source, destination = found.source, found.destination
    assert (source is None) == (destination is None)
    if isinstance(source, tuple) and header[:1] == b"\r":
        assert build_v2(source, destination, found.tlvs) == header
    elif isinstance(source, tuple):
        again = parse_header(build_v1(source, destination))
        assert again is not None
        assert (again.source, again.destination) == (source, destination)


@pytest.mark.parametrize("data", VALID, ids=lambda data: str(data[:60]))
def test_a_valid_header_is_read(data: bytes) -> None:
    assert parse_header(data) == VALID[data]
    assert parse_header(data + b"\r\nmore") == VALID[data]
    for length in range(len(data)):
        assert parse_header(data[:length]) is None


@pytest.mark.parametrize("data", INVALID, ids=lambda data: str(data[:60]))
def test_an_invalid_header_is_refused(data: bytes) -> None:
    said = verdict(data)
    assert isinstance(said, str)
    assert INVALID[data] in said
    for length in range(len(data)):
        check_at(data, length, said)
    assert verdict(data + b" more\r\n") == said


def test_each_command_version_family_and_transport() -> None:
    """Section 2.2: unassigned values are refused, but ignored in LOCAL."""
    for command in range(256):
        for kind in range(256):
            said = verdict(v2(command, kind, bytes(216)))
            is_known = kind >> 4 <= 3 and kind & 15 <= 2
            if command == 0x20 or (command == 0x21 and is_known):
                assert isinstance(said, ProxyHeader), (command, kind)
                uses = command == 0x21 and kind in (0x11, 0x21, 0x31)
                assert (said.source is not None) == uses
            else:
                assert isinstance(said, str), (command, kind)


def test_headers_with_mistakes_in_them() -> None:
    """No other error, no byte too many, and the same verdict at every split."""
    check_mutated(20_000, seed=1)


@pytest.mark.fuzz("a million headers")
def test_a_million_headers_with_mistakes_in_them() -> None:
    check_mutated(1_000_000, seed=2)


ports = st.integers(0, 65535)
endpoints4 = st.tuples(st.ip_addresses(v=4).map(str), ports)
hosts6 = st.ip_addresses(v=6).map(str) | st.sampled_from(
    ["::", "::1", "::ffff:192.0.2.1", "::192.0.2.1", "fe80::1"]
)
endpoints6 = st.tuples(hosts6, ports, st.just(0), st.just(0))
others = st.none() | st.sampled_from(["", "/run/socket", b"\0name"])


@given(
    st.tuples(endpoints4, endpoints4) | st.tuples(endpoints6, endpoints6),
    st.lists(
        st.tuples(st.sampled_from([1, 2, 4, 0x30, 0xE0]), st.binary(max_size=300))
    ),
    st.binary(max_size=20),
)
def test_what_is_made_is_read(
    pair: tuple[Endpoint, Endpoint], tlvs: list[tuple[int, bytes]], more: bytes
) -> None:
    plain = addresses(pair[0][0], pair[0][1], pair[1][0], pair[1][1])  # type: ignore[arg-type]
    kind = 0x11 if len(plain) == 12 else 0x21
    made = build_v2(*pair, tlvs)
    assert made == v2(0x21, kind, plain, *(tlv(*each) for each in tlvs))
    found = verdict(made + more)
    if len(made) > LONGEST:
        assert found == "its PROXY header has more than 4096 bytes"
    else:
        assert isinstance(found, ProxyHeader)
        assert build_v2(found.source, found.destination, found.tlvs) == made
        assert found.size == len(made)
    line = build_v1(*pair)
    again = parse_header(line + more)
    assert again is not None
    assert again.size == len(line) <= 104
    assert build_v2(again.source, again.destination) == build_v2(*pair)


@given(endpoints4 | endpoints6 | others, others)
def test_what_is_not_ip_is_local_or_unknown(
    one: Endpoint | None, other: Endpoint
) -> None:
    for pair in ((one, other), (other, one)):
        assert build_v1(*pair) == b"PROXY UNKNOWN\r\n"
        assert build_v2(*pair) == v2(0x20, 0)


def test_headers_are_made_as_haproxy_makes_them() -> None:
    """make_proxy_line_v1() and _v2(): if only one side is IPv6, both are written so."""
    assert build_v1(FROM4, TO4) == b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
    assert build_v1(FROM4, TO6) == (
        b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443\r\n"
    )
    assert build_v1(FROM6, TO4) == (
        b"PROXY TCP6 2001:db8::1 ::ffff:198.51.100.2 56324 443\r\n"
    )
    mapped = addresses("::ffff:192.0.2.1", 56324, "2001:db8::2", 443)
    assert build_v2(FROM4, TO6) == v2(0x21, 0x21, mapped)
    zone: Endpoint = ("fe80::1%eth0", 1, 0, 2)
    assert build_v1(zone, TO6) == b"PROXY TCP6 fe80::1 2001:db8::2 1 443\r\n"


def test_fields_are_found_by_their_type() -> None:
    """The first one counts."""
    tlvs = [(UNIQUE_ID, b"abc"), (ALPN, b""), (UNIQUE_ID, b"d")]
    header = parse_header(build_v2(FROM4, TO4, tlvs))
    assert header is not None
    assert header.tlvs == tuple(tlvs)
    assert (header.find(UNIQUE_ID), header.find(ALPN)) == (b"abc", b"")
    assert header.find(AUTHORITY) is None
    assert header.tls is None


# -- the client's TLS. Section 2.2.6

texts = st.none() | st.binary(max_size=40)
client_tls = st.builds(
    ClientTls,
    is_tls=st.booleans(),
    shows_certificate=st.booleans(),
    shows_it_now=st.just(False),
    error=st.integers(0, 2**32 - 1),
    version=texts,
    cipher=texts,
    common_name=texts,
)


@given(client_tls, st.booleans())
def test_what_is_said_of_tls_is_read(tls: ClientTls, now: bool) -> None:
    if tls.shows_certificate and now:
        tls = dataclasses.replace(tls, shows_it_now=True)
    kind, value = tls.tlv()
    assert kind == SSL
    assert ClientTls.read(value) == tls
    header = parse_header(build_v2(FROM4, TO4, [tls.tlv()]))
    assert header is not None
    assert header.tls == tls
    verified = tls.is_tls and tls.shows_certificate and tls.error == 0
    assert tls.is_verified is verified


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_have_a_wrong_length(data: bytes) -> None:
    """Nothing is read beyond the end, and what was read makes the same bytes again."""
    found = split_tlvs(data)
    if found is not None:
        assert join_tlvs((kind, value) for kind, value, _ in found) == data
        assert all(data[at : at + len(value)] == value for _, value, at in found)
    inner = split_tlvs(data[5:])
    is_valid = len(data) >= 5 and inner is not None
    assert (ClientTls.read(data) is not None) is is_valid
    said = verdict(v2(0x21, 0x11, TCP4, tlv(SSL, data)))
    assert isinstance(said, ProxyHeader) is is_valid


def test_a_field_about_tls_as_haproxy_sends_it() -> None:
    """make_proxy_line_v2(): version, common name and cipher, in this order."""
    parts = tlv(0x21, b"TLSv1.2"), tlv(0x22, b"web"), tlv(0x23, b"AES")
    tls = ClientTls(
        is_tls=True,
        shows_certificate=True,
        shows_it_now=True,
        error=0,
        version=b"TLSv1.2",
        cipher=b"AES",
        common_name=b"web",
    )
    assert tlv(*tls.tlv()) == tls_tlv(7, 0, *parts)
    again = ClientTls.read(tls_tlv(7, 0, *parts, tlv(0x21, b"x"))[3:])
    assert again == tls  # the first one counts
    odd = dataclasses.replace(tls, common_name=bytes(256))
    assert tlv(*odd.tlv()) == tls_tlv(7, 0, parts[0], parts[2])


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"123456789", 0xE3069283),
        # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (32 * b"\xff", 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_are_those_of_the_rfc(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


def test_the_vectors_of_haproxy() -> None:
    """reg-tests/connection/proxy_protocol_tlv_validation.vtc"""
    fixed = "0d0a0d0a000d0a515549540a 21 11 0014 7F000001 7F000001 002A 0539"
    authority = parse_header(bytes.fromhex(fixed + "02 0005 3132333435"))
    here: Endpoint = ("127.0.0.1", 42)
    there: Endpoint = ("127.0.0.1", 1337)
    assert authority == ProxyHeader(36, here, there, ((2, b"12345"),))
    after = bytes.fromhex(fixed + "02 0005 3132333435 02 0005 3534333231")
    assert parse_header(after) == authority
    for tail in ("02 000A 31323334353132333435", "02 0004 31323334"):
        said = verdict(bytes.fromhex(fixed + tail) + b"GET")
        assert said == "a TLV of its PROXY header has a wrong length"
