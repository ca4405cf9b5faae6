"""Addresses: one grammar, read and written; errors that say what to write."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve import Address
from trioserve._address import is_ipv6, is_numeric, sockaddr_text

_NAMES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)
_ADDRESSES = st.builds(
    Address,
    _NAMES | st.ip_addresses().map(str) | st.sampled_from(["", "fe80::1%eth0"]),
    st.integers(0, 65535),
)


@given(_ADDRESSES, st.sampled_from(["", "tcp://", "TCP://"]), st.sampled_from("  \t"))
def test_what_is_written_is_read_back(address: Address, scheme: str, pad: str) -> None:
    """With or without the scheme, and whatever stands around it."""
    assert Address.parse(f"{pad}{scheme}{address}{pad}") == address


@given(st.text(max_size=20) | st.from_regex(r"\[?[\w:.%]*\]?:?\d*", fullmatch=True))
def test_any_text_is_an_address_or_an_error_in_one_line(text: str) -> None:
    """And an address that was read can be written and read again."""
    try:
        address = Address.parse(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty address; use HOST:PORT, [IPV6]:PORT or :PORT"),
        ("tcp://", "empty address"),
        ("udp://a:1", "unknown scheme 'udp' in 'udp://a:1'"),
        ("8080", "bare port; did you mean 127.0.0.1:8080"),
        ("[::1:80", "has a '[' without a ']'"),
        ("[localhost]:80", "'localhost' in '[localhost]:80' is not an IPv6 address"),
        ("localhost", "has no port; did you mean localhost:80?"),
        ("::1", "is ambiguous: write an IPv6 address in brackets"),
        ("[::1]", "has no port"),
        ("[::1]x80", "has no port"),
        ("localhost:", "has no port"),
        ("localhost:http", "port 'http' in 'localhost:http' is not a number"),
        ("localhost:65536", "port 65536 in 'localhost:65536' is out of range"),
        ("a:" + "9" * 5000, "is out of range"),
        ("a:\u0661", "is not a number"),
        ("a b:1", "host 'a b' has a ' ' in it"),
        ("user@host:1", "host 'user@host' has a '@' in it"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    """With what to write instead, where that can be guessed."""
    with pytest.raises(ValueError, match=re.escape(message)):
        Address.parse(text)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range(port: int) -> None:
    """Also when it isn't read from a text."""
    with pytest.raises(ValueError, match=f"port {port} is out of range: 0 to 65535"):
        Address("localhost", port)


@pytest.mark.parametrize(
    ("host", "numeric", "ipv6"),
    [
        ("127.0.0.1", True, False),
        ("::1", True, True),
        ("fe80::1%eth0", True, True),
        ("localhost", False, False),
        ("1.2.3", False, False),
        ("", False, False),
        ("a\0b", False, False),
    ],
)
def test_which_hosts_need_no_look_up(host: str, numeric: bool, ipv6: bool) -> None:
    """Numbers do not; what merely looks like one does."""
    assert (is_numeric(host), is_ipv6(host)) == (numeric, ipv6)


@pytest.mark.parametrize(
    ("sockaddr", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        ("/run/a.sock", "unix:/run/a.sock"),
        (b"\0abstract", "unix:@abstract"),
        ("", "unix:"),
        (None, "unix:"),
    ],
)
def test_socket_names_as_a_person_writes_them(sockaddr: object, text: str) -> None:
    """Of every family that a listener may have."""
    assert sockaddr_text(sockaddr) == text
