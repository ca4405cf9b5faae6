"""The table of server names: names, wildcards, and what is not a name."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trioserve._server_names import ServerNames, parse_server_name

TABLE = ServerNames(
    {
        "git.example.org": 1,
        "*.example.org": 2,
        "Example.ORG": 3,
        "*.a.example.org": 4,
        "bücher.example": 5,
        "*.xn--bcher-kva.example": 6,
        "localhost": 7,
        "*.org": 8,
    }
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("git.example.org", 1),
        ("www.example.org", 2),
        ("a.example.org", 2),
        ("example.org", 3),
        ("b.a.example.org", 4),
        ("c.b.a.example.org", None),
        ("b.www.example.org", None),
        ("xn--bcher-kva.example", 5),
        ("www.xn--bcher-kva.example", 6),
        ("localhost", 7),
        ("a.org", 8),
        ("org", None),
        ("a.com", None),
        (".org", 8),  # the reader of a ClientHello does not let it pass
        ("", None),
    ],
)
def test_a_name_is_found(name: str, value: int | None) -> None:
    assert TABLE.find(name) == value


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "'' is not a server name; use a host name, or a wildcard like"),
        ("*", "'*' is not a server name; use a host name, or a wildcard like"),
        ("*.", "'*.' is not a server name; use"),
        ("**.a", "'**.a' is not a server name; use"),
        ("*.*.a", "'*.*.a' is not a server name; use"),
        ("a.*.b", "'a.*.b' is not a server name; use"),
        ("w*.a", "'w*.a' is not a server name; use"),
        ("a.", "'a.' has a dot at its end; leave it out"),
        ("*.a.", "'*.a.' has a dot at its end; leave it out"),
        ("192.0.2.1", "'192.0.2.1' is not a server name: clients ask for host names"),
        ("::1", "'::1' is not a server name: clients ask for host names, not for"),
        ("a:443", "'a:443' is not a server name: clients ask for host names, not for"),
        ("a..b", "'a..b' is not a host name: nothing before or between two dots"),
        ("a b", "host 'a b' has a ' ' in it"),
        ("192.0.2.999", "host '192.0.2.999' is not an IPv4 address"),
        (64 * "a", "a label of 64 bytes, of 63 allowed"),
    ],
)
def test_what_no_client_can_ask_for_is_refused(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        parse_server_name(text)
    assert error in str(caught.value)


@given(st.text(max_size=20) | st.text("aX-.*üßx0①²。", max_size=9))
@example("①.②.③.④")
@example("localhost。")
def test_a_name_that_was_read_is_read_as_itself(text: str) -> None:
    try:
        name = parse_server_name(text)
    except ValueError:
        return
    assert parse_server_name(name) == name


def test_a_name_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the server name 'a\.b' is there twice"):
        ServerNames({"a.b": 1, "A.B": 2})
    with pytest.raises(ValueError, match=r"'\*\.xn--bcher-kva' is there twice"):
        ServerNames({"*.bücher": 1, "*.xn--bcher-kva": 2})


labels = st.sampled_from(["a", "b", "www"])
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
patterns = names | names.map(lambda name: f"*.{name}")


@given(st.dictionaries(patterns, st.integers()), names)
def test_a_name_goes_before_a_wildcard_and_only_one_label_is_free(
    values: dict[str, int], name: str
) -> None:
    _, dot, rest = name.partition(".")
    by_wildcard = values.get(f"*.{rest}") if dot else None
    assert ServerNames(values).find(name) == values.get(name, by_wildcard)
