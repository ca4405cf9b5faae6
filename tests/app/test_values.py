from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve.app._values import (
    format_bytes,
    format_duration,
    parse_bytes,
    parse_duration,
    printable,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("10s", 10.0),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("1d", 86400.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("7", 7.0),
        ("0", 0.0),
        (" 3S ", 3.0),
        ("never", math.inf),
        ("inf", math.inf),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "1x",
        "1 s",
        "1s 2",
        "nan",
        "1e3",
        "\u0661s",
        "1h1h",
        "1s2m1s",
        "--2",
        "-s",
    ],
)
def test_a_wrong_duration_is_an_error_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="use 500ms, 10s, 2m, 1h") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


def test_a_negative_duration_has_an_error_of_its_own() -> None:
    with pytest.raises(ValueError, match="'-1s' is negative"):
        parse_duration("-1s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.0004, "0.4ms"),
        (0.012, "12ms"),
        (0.5, "500ms"),
        (1.0, "1s"),
        (2.5, "2.5s"),
        (25.0, "25s"),
        (60.0, "1m"),
        (90.4, "1m30s"),
        (3600.0, "1h"),
        (3661.0, "1h1m1s"),
        (math.inf, "never"),
    ],
)
def test_durations_are_written(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(min_value=0.001, max_value=1e7))
def test_a_written_duration_is_read_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.06)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678, "12.3 MB"),
        (999_950_000, "1.0 GB"),
        (5_000_000_000_000, "5000.0 GB"),
    ],
)
def test_sizes_are_written(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_only_unprintable_characters_are_escaped() -> None:
    assert printable("Grüße") == "Grüße"
    assert printable("a\x1b]0;b\x07\u202e") == "a\\x1b]0;b\\x07\\u202e"


@given(st.binary(max_size=20))
def test_bytes_are_read_as_python_writes_them(data: bytes) -> None:
    text = "".join(f"\\x{byte:02x}" for byte in data)
    assert parse_bytes(text).data == data
    assert str(parse_bytes(text)) == text


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (r"PING\r\n", b"PING\r\n"),
        (r"\0\t\\\x7f", b"\0\t\\\x7f"),
        ("é", b"\xc3\xa9"),
        ("a b", b"a b"),
    ],
)
def test_bytes_are_read(text: str, data: bytes) -> None:
    assert parse_bytes(text).data == data
    assert str(parse_bytes(text)) == text


@pytest.mark.parametrize("wrong", ["\\q", "\\", "\\x", "\\x4", "\\xg0"])
def test_a_wrong_escape_is_an_error(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"is not a byte; use \\r, \\n, "):
        parse_bytes(f"a{wrong}")
