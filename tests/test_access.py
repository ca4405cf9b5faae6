"""Access rules: their grammar, and which clients they allow."""

from __future__ import annotations

import ipaddress
import itertools
import re
from contextlib import nullcontext

import pytest
from hypothesis import example, given, reject
from hypothesis import strategies as st

from trioserve import Address, Layers, TcpAddress, UnixAddress
from trioserve._access import Access, client_of, parse_rule

HOSTS = [
    "10.0.0.1",
    "10.0.0.2",
    "10.1.0.1",
    "192.0.2.7",
    "::1",
    "fe80::1",
    "2001:db8::1",
]
NETWORKS = [
    "10.0.0.1", "10.0.0.0/8", "10.0.0.0/24", "0.0.0.0/0", "::/0", "2001:db8::/32",
    "fe80::/10", "::1", "::ffff:10.0.0.0/104",
]  # fmt: skip

rules = st.builds(
    "{} {}".format,
    st.sampled_from(["allow", "deny"]),
    st.sampled_from([*NETWORKS, "all", "unix"]),
)
peers = st.one_of(
    st.sampled_from([TcpAddress(host, 1) for host in HOSTS]),
    st.just(TcpAddress("fe80::1%eth0", 1)),
    st.sampled_from([UnixAddress("/run/a"), UnixAddress("@a")]),
    st.none(),
)


def is_about(network: str, peer: Address | None) -> bool:
    """Whether a network has this client, compared bit by bit."""
    if network in ("all", "unix"):
        return network == "all" or isinstance(peer, UnixAddress)
    if not isinstance(peer, TcpAddress):
        return False
    base, _, length = network.replace("::ffff:10.0.0.0/104", "10.0.0.0/8").partition(
        "/"
    )
    bits = bits_of(base)
    same = int(length or len(bits))
    address = bits_of(peer.host.partition("%")[0])
    return len(address) == len(bits) and address[:same] == bits[:same]


def bits_of(host: str) -> str:
    return "".join(f"{byte:08b}" for byte in ipaddress.ip_address(host).packed)


@given(st.lists(rules, max_size=6), peers)
@example(["deny 192.0.2.7"], TcpAddress("10.0.0.1", 1))
@example(["allow 10.0.0.0/8"], TcpAddress("192.0.2.7", 1))
def test_the_first_rule_that_matches_decides(
    texts: list[str], peer: Address | None
) -> None:
    """If none matches, a client is denied if any rule allows, and served otherwise."""
    expected = not any(text.startswith("allow") for text in texts)
    for text in texts:
        word, _, network = text.partition(" ")
        if is_about(network, peer):
            expected = word == "allow"
            break
    assert Access(map(parse_rule, texts)).allows(peer) == expected


@given(st.lists(rules, max_size=4))
def test_the_text_of_a_rule_can_be_parsed_back(texts: list[str]) -> None:
    try:
        layers = Layers(access=texts)
    except ValueError as error:
        assert "never matches" in str(error)
        reject()
    assert Layers(access=layers.access) == layers
    assert [parse_rule(text) for text in layers.access] == [*map(parse_rule, texts)]


def test_equal_rules_are_equal_however_they_are_written() -> None:
    one = Layers(access=["allow  ::FFFF:10.0.0.1", "deny 2001:DB8:0::/32"])
    assert one == Layers(access=("allow 10.0.0.1/32", "deny 2001:db8::/32"))
    assert hash(one) == hash(Layers(access=one.access))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("permit all", "'permit all' is not 'allow NETWORK' or 'deny NETWORK'"),
        ("allow", "'allow' is not 'allow NETWORK' or 'deny NETWORK'"),
        ("", "'' is not 'allow NETWORK' or 'deny NETWORK'"),
        ("allow 10.0.0.1 10.0.0.2", "is not 'allow NETWORK' or 'deny NETWORK'"),
        ("deny example.org", "'example.org' is not a network; write an IPv4 or IPv6"),
        ("deny 10.0.0.0/33", "'10.0.0.0/33' is not a network"),
        ("deny 10.0.0", "'10.0.0' is not a network"),
        ("deny ALL", "'ALL': did you mean 'all'?"),
        ("deny any", "'any': did you mean 'all'?"),
        ("deny unix:", "'unix:': did you mean 'unix'?"),
        ("allow 0.0.0.0", "'0.0.0.0': did you mean '0.0.0.0/0'?"),
        ("allow ::", "'::': did you mean '::/0'?"),
        ("deny [::1]", "'[::1]': did you mean '::1'?"),
        ("deny 10.0.0.1,::1", "is more than one network; write a rule for each"),
        ("deny 10.0.0.0/255.0.0.0", "'10.0.0.0/255.0.0.0' is not a network"),
        ("deny 10.0.0.0/08", "'10.0.0.0/08' is not a network"),
        ("deny ::ffff:10.0.0.7/96", "did you mean 0.0.0.0/0 or 10.0.0.7?"),
        (
            "deny 10.0.0.7/8",
            "has bits of a host; did you mean 10.0.0.0/8 or 10.0.0.7?",
        ),
        ("deny fe80::1%eth0", "has a zone; leave it out: a rule holds on every"),
    ],
)
def test_an_error_shows_a_correct_form(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=r"^access: ") as raised:
        Layers(access=[text])
    assert error in str(raised.value)


@given(st.lists(rules, max_size=6))
@example(["allow 10.0.0.0/8", "deny 10.0.0.1"])
@example(["deny all", "allow unix"])
@example(["allow ::/0", "deny ::1"])
def test_a_rule_that_no_client_can_reach_is_an_error(texts: list[str]) -> None:
    """If it says the opposite of a rule before it that has all of its clients."""
    found = [parse_rule(text) for text in texts]
    everyone = [TcpAddress(host, 1) for host in HOSTS], [UnixAddress("/a")], [None]
    for earlier, later in itertools.combinations(found, 2):
        for peer in itertools.chain(*everyone):
            # What hides a rule matches whatever the rule matches.
            client = client_of(peer)
            if earlier.hides(later) and later.matches(client):
                assert earlier.matches(client)
                assert earlier.allows != later.allows
    hidden = any(a.hides(b) for a, b in itertools.combinations(found, 2))
    with pytest.raises(ValueError, match="never") if hidden else nullcontext():
        Layers(access=texts)


def test_the_error_of_a_hidden_rule_says_what_to_do() -> None:
    error = (
        "access: 'deny 10.0.0.7/32' never matches, because 'allow 10.0.0.0/8' stands"
        " before it; put it first"
    )
    with pytest.raises(ValueError, match=re.escape(error)):
        Layers(access=["allow 10.0.0.0/8", "deny 10.0.0.7"])


@pytest.mark.parametrize("access", ["allow all", None, 1, [None], [b"allow all"]])
def test_rules_are_a_list_of_texts(access: object) -> None:
    with pytest.raises(TypeError, match="access must be"):
        Layers(access=access)  # type: ignore[arg-type]
