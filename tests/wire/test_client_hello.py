"""The ClientHello: what is valid, which name it asks for, and mistakes in it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve.wire._client_hello import (
    LONGEST,
    ClientHello,
    ClientHelloError,
    ClientHelloReader,
    build_alert,
)
from wire.hellos import (
    INVALID,
    VALID,
    extension,
    from_python,
    hello,
    mutated,
    named,
    records,
)

#: What was read, or the error and its alert; None for a part.
Verdict = ClientHello | tuple[str, int | None] | None


def verdict(*pieces: bytes) -> Verdict:
    """Feed pieces until there is a verdict."""
    reader = ClientHelloReader()
    fed = b""
    try:
        for piece in pieces:
            fed += piece
            found = reader.feed(piece)
            assert reader.data == fed
            if found is not None:
                return found
    except ClientHelloError as error:
        assert reader.data == fed
        return str(error), error.alert
    assert reader.room > 0
    return None


def in_pieces(rng: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(rng.choices(range(len(data) + 1), k=rng.randint(0, 5)))
    return [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def check_mutated(count: int, seed: int) -> None:
    rng = random.Random(seed)
    accepted = refused = 0
    for number in range(count):
        data = mutated(rng)
        whole = verdict(data)
        assert verdict(*in_pieces(rng, data)) == whole
        if number % 100 == 0:
            assert verdict(*(data[at : at + 1] for at in range(len(data)))) == whole
        refused += isinstance(whole, tuple)
        accepted += isinstance(whole, ClientHello)
        if whole is not None:
            # It does not look beyond its end.
            assert verdict(data + rng.randbytes(9)) == whole
    # The mistakes are neither so large nor so small that nothing is tested.
    assert accepted > count / 20
    assert refused > count / 20


@pytest.mark.parametrize("data", VALID, ids=lambda data: str(len(data)))
def test_a_valid_hello_is_read(data: bytes) -> None:
    found = ClientHello(VALID[data])
    assert verdict(data) == found
    assert verdict(data + b"\x17\3\3\0\1x") == found
    reader = ClientHelloReader()
    for at in range(len(data) - 1):
        assert reader.feed(data[at : at + 1]) is None
        assert reader.room == LONGEST - at - 1
    assert reader.feed(data[-1:]) == found


@pytest.mark.parametrize("data", INVALID, ids=lambda data: str(data[:40]))
def test_an_invalid_hello_is_refused(data: bytes) -> None:
    assert verdict(data) == INVALID[data]
    assert verdict(data + b" more") == INVALID[data]
    assert verdict(*(data[at : at + 1] for at in range(len(data)))) == INVALID[data]


def test_other_protocols_are_named_when_they_are_known() -> None:
    """Not before: the text is the same, however the bytes arrive."""
    assert verdict(b"GE") is None
    assert verdict(b"PRO") is None
    assert verdict(b"") is None
    assert verdict(b"\x80\x2e\1\3") is None


@pytest.mark.parametrize("count", [0, 1, 3, 900])
def test_what_python_sends_is_read(count: int) -> None:
    data = from_python("Git.Example.org", *(f"protocol/{n}" for n in range(count)))
    assert verdict(data) == ClientHello("git.example.org")
    assert verdict(from_python(None)) == ClientHello()


def test_hellos_with_mistakes_in_them() -> None:
    """No other error, no byte too many, and the same verdict at every split."""
    check_mutated(20_000, seed=1)


@pytest.mark.fuzz("a million hellos")
def test_a_million_hellos_with_mistakes_in_them() -> None:
    check_mutated(1_000_000, seed=2)


labels = st.text("abcXYZ019_-", min_size=1, max_size=63)


@given(
    st.lists(labels, min_size=1, max_size=4).map(".".join),
    st.dictionaries(st.integers(1, 65535), st.binary(max_size=300), max_size=8),
    st.integers(1, 2000),
    st.data(),
)
def test_what_is_made_is_read(
    name: str, extensions: dict[int, bytes], size: int, data: st.DataObject
) -> None:
    others = [extension(kind, value) for kind, value in extensions.items()]
    others.insert(data.draw(st.integers(0, len(others))), named(name.encode()))
    made = hello(*others)
    expected: Verdict = ClientHello(name.lower())
    if len(name) > 253:
        expected = "the server name that it asks for is no host name", 47
    elif name.replace(".", "").isdigit() and name.count(".") == 3:
        expected = "the server name that it asks for is an IP address", 47
    assert verdict(made) == expected
    split = records(made[5:], size)
    if len(split) <= LONGEST:
        assert verdict(split) == expected


@given(st.binary(max_size=60))
def test_any_bytes_have_a_verdict(data: bytes) -> None:
    whole = verdict(data)
    assert verdict(*(data[at : at + 1] for at in range(len(data)))) == whole
    assert verdict(b"\x16\3\1" + data) == verdict(b"\x16", b"\3\1" + data)


def test_an_alert_is_fatal() -> None:
    assert build_alert(112) == b"\x15\3\3\0\2\2\x70"
