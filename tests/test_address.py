"""Addresses: parse and write them; errors that say what to write instead."""

from __future__ import annotations

import contextlib
import os
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve import Address, TcpAddress, UnixAddress, parse_address
from trioserve._address import is_ipv6, is_numeric, sockaddr_text

_NAMES = st.from_regex(
    r"[a-z0-9]([a-z0-9-]{0,9}(\.[a-z0-9_-]{1,9}){0,2}\.?)?", fullmatch=True
)
_TCP = st.builds(
    TcpAddress,
    _NAMES | st.ip_addresses().map(str) | st.sampled_from(["", "fe80::1%eth0"]),
    st.integers(0, 65535),
)

_PATHS = st.from_regex(r"/?[\w.%=&#@-]([\w ./:%=&@-]{0,40}\w)?", fullmatch=True).filter(
    lambda path: path != "@" and len(os.fsencode(path)) <= 107
)


@st.composite
def _unix(draw: st.DrawFn) -> UnixAddress:
    path = draw(_PATHS)
    mode = draw(st.none() | st.integers(0, 0o777)) if path[0] != "@" else None
    return UnixAddress(path, mode)


@given(_TCP | _unix(), st.sampled_from(["", " ", "\t", "\n"]))
def test_the_text_of_an_address_can_be_parsed_back(address: Address, pad: str) -> None:
    """Of every kind, with space around it."""
    assert parse_address(f"{pad}{address}{pad}") == address


@given(_TCP, st.sampled_from(["tcp://", "TCP://"]))
def test_a_scheme_before_a_host_changes_nothing(address: Address, scheme: str) -> None:
    """``tcp://``, in any case of letters."""
    assert parse_address(f"{scheme}{address}") == address


@given(_unix(), st.sampled_from(["unix://", "UNIX://"]))
def test_a_scheme_before_an_absolute_path_changes_nothing(
    address: UnixAddress, scheme: str
) -> None:
    """A relative path after // could be a host."""
    text = scheme + str(address).removeprefix("unix:")
    if address.path.startswith("/"):
        assert parse_address(text) == address
    else:
        with pytest.raises(ValueError, match="no absolute path after unix://"):
            parse_address(text)


@given(
    st.text(max_size=20)
    | st.from_regex(r"\[?[\w:.%]*\]?:?\d*", fullmatch=True)
    | st.text(max_size=20).map("unix:{}".format)
    | st.from_regex(r"unix:(//)?/?\w{0,3}(\?(mode=[0-9]{0,4})?)?", fullmatch=True)
)
def test_any_text_is_an_address_or_an_error_in_one_line(text: str) -> None:
    """An address that was parsed can be written and parsed again."""
    try:
        address = parse_address(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty address; use HOST:PORT, [IPV6]:PORT, :PORT or unix:PATH"),
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
        ("/run/a.sock", "has no port; did you mean unix:/run/a.sock?"),
        ("unix:", "a Unix socket needs a path: unix:PATH, or unix:@NAME"),
        ("unix:@", "a Unix socket needs a path"),
        ("unix://run/a", "no absolute path after unix://; did you mean unix:run/a?"),
        ("unix://", "no absolute path after unix://; did you mean unix:PATH?"),
        ("unix:a\nb", "may not have a '?', a control character"),
        ("unix:" + 108 * "a", "is too long for a Unix socket: 108 bytes, of 107"),
        ("unix:a?mode=888", "'mode=888' in 'unix:a?mode=888' is not an option"),
        ("unix:a?mode=1777", "mode 1777 is out of range: 0 to 777"),
        ("unix:a?user=me", "the only one is mode, in octal: ?mode=0660"),
        ("unix:@a?mode=600", "an abstract socket has no mode: write unix:@a"),
    ],
)
def test_an_error_says_what_is_wrong(text: str, message: str) -> None:
    """And what to write instead, where that can be guessed."""
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_address(text)


@given(
    st.text(max_size=12)
    | st.text("a.-_", max_size=8)
    | st.text("a\xe9\xdf\u3002\uff0e.-_\u2603\u200d\u0661", max_size=8)
    | st.from_regex(r"(a{1,64}\.){0,6}a{1,64}\.?", fullmatch=True)
    | st.text("fe80:%\xe9", max_size=24)
)
def test_a_host_is_valid_or_an_error_in_one_line(host: str) -> None:
    """The resolver takes any host that is valid."""
    try:
        address = TcpAddress(host, 80)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
        return
    encoded = address.host_bytes
    with contextlib.suppress(socket.gaierror):
        socket.getaddrinfo(encoded or None, 80, flags=socket.AI_NUMERICHOST)
    if not is_numeric(host) and host:
        labels = encoded.removesuffix(b".").split(b".")
        assert all(0 < len(label) <= 63 for label in labels)
        assert len(b".".join(labels)) <= 253


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("a..b", "'a..b' is not a host name: nothing before or between two"),
        (".a", "nothing before or between two dots"),
        (".", "nothing before or between two dots"),
        ("a..", "nothing before or between two dots"),
        (64 * "x" + ".test", "is not a host name: a label of 64 bytes, of 63"),
        (127 * "x." + "x", "is not a host name: 255 bytes, of 253 allowed"),
        ("\u2603.test", "is not a host name: Codepoint U+2603"),
        ("\xe9..x", "is not a host name: Empty Label"),
        ("a:b", "host 'a:b' is not an IPv6 address"),
        ("fe80::1%", "'fe80::1%' has no zone after its %: write the name of a"),
        ("fe80::1%" + 16 * "x", "write the name of a network interface"),
    ],
)
def test_an_invalid_host_is_an_error_when_the_address_is_made(
    host: str, message: str
) -> None:
    """Both for listening and for dialing."""
    with pytest.raises(ValueError, match=re.escape(message)):
        TcpAddress(host, 80)


@pytest.mark.parametrize(
    ("host", "encoded"),
    [
        ("", b""),
        ("127.0.0.1", b"127.0.0.1"),
        ("::1", b"::1"),
        ("fe80::1%eth0", b"fe80::1%eth0"),
        ("example.org.", b"example.org."),
        ("a_b.-x.test", b"a_b.-x.test"),
        ("r1---sn.test", b"r1---sn.test"),
        ("LocalHost", b"LocalHost"),
        (63 * "x" + ".test", 63 * b"x" + b".test"),
        (126 * "x." + "x.", 126 * b"x." + b"x."),
        ("b\xfccher.example", b"xn--bcher-kva.example"),
        ("stra\xdfe.example", b"xn--strae-oqa.example"),
    ],
)
def test_the_host_for_the_resolver(host: str, encoded: bytes) -> None:
    """ASCII names as they are; other letters by IDNA 2008."""
    assert TcpAddress(host, 80).host_bytes == encoded


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range(port: int) -> None:
    """Also if it is not parsed from a text."""
    with pytest.raises(ValueError, match=f"port {port} is out of range: 0 to 65535"):
        TcpAddress("localhost", port)


@pytest.mark.parametrize(
    ("text", "address", "sockaddr"),
    [
        ("unix:/run/a.sock", UnixAddress("/run/a.sock"), "/run/a.sock"),
        ("unix:///run/a.sock", UnixAddress("/run/a.sock"), "/run/a.sock"),
        ("unix:a b?mode=7", UnixAddress("a b", 0o007), "a b"),
        ("unix:@name", UnixAddress("@name"), b"\0name"),
    ],
)
def test_unix_sockets(text: str, address: UnixAddress, sockaddr: object) -> None:
    """A path, or a name in the abstract namespace."""
    assert parse_address(text) == address
    assert address.sockaddr == sockaddr
    assert address.is_abstract is isinstance(sockaddr, bytes)


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
def test_only_numbers_need_no_look_up(host: str, numeric: bool, ipv6: bool) -> None:
    """A name that looks like a number needs one."""
    assert (is_numeric(host), is_ipv6(host)) == (numeric, ipv6)


@pytest.mark.parametrize(
    ("sockaddr", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (("::ffff:192.0.2.1", 80, 0, 0), "192.0.2.1:80"),
        (("fe80::1", 80, 0, 0), "[fe80::1]:80"),
        (("fe80::1", 80, 0, socket.if_nametoindex("lo")), "[fe80::1%lo]:80"),
        (("fe80::1", 80, 0, 2**31 - 1), "[fe80::1%2147483647]:80"),
        ("/run/a.sock", "unix:/run/a.sock"),
        (b"\0abstract", "unix:@abstract"),
        ("", "unix:"),
        (None, "unix:"),
    ],
)
def test_the_text_of_a_sockaddr(sockaddr: object, text: str) -> None:
    """For every family that a listener may have."""
    assert sockaddr_text(sockaddr) == text


@pytest.mark.parametrize("name", ["a b", "a]", "a%b", "\xe9"])
def test_an_interface_name_that_can_not_be_written_is_a_number(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux allows any character but a slash and a colon."""

    def if_indextoname(index: int) -> str:
        return name

    monkeypatch.setattr(socket, "if_indextoname", if_indextoname)
    text = sockaddr_text(("fe80::1", 80, 0, 7))
    assert text == "[fe80::1%7]:80"
    assert str(parse_address(text)) == text
