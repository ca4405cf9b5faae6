"""Describe: any value becomes text that is safe to print."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve._describe import describe, escape


@given(st.text() | st.text(st.characters(max_codepoint=0x9F)), st.integers(3, 300))
def test_text_of_a_peer_is_one_line_of_ascii(text: str, most: int) -> None:
    """No control character reaches a terminal, no line break a log."""
    escaped = escape(text, most)
    assert len(escaped) <= most
    assert all(" " <= character <= "~" for character in escaped)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain", "plain"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("back\\slash", r"back\\slash"),
        ("smile \N{GRINNING FACE}", r"smile \U0001f600"),
        ("'\"", "'\""),
    ],
)
def test_escapes_are_those_of_python(text: str, escaped: str) -> None:
    """So the original can be read."""
    assert escape(text) == escaped


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("what"), "ValueError: what"),
        (ValueError(), "ValueError"),
        (ConnectionResetError(104, "gone"), "ConnectionResetError: [Errno 104] gone"),
        (ConnectionResetError("gone"), "ConnectionResetError: gone"),
        (ConnectionResetError(), "ConnectionResetError"),
        (_caused(RuntimeError("broken"), OSError(5, "I/O")), "OSError: [Errno 5] I/O"),
        (_caused(OSError(0, "a"), OSError(5, "I/O")), "OSError: [Errno 0] a"),
        (_caused(RuntimeError("a"), ValueError("b")), "RuntimeError: a"),
        (ExceptionGroup("x", [ValueError("a")]), "ValueError: a"),
        (
            ExceptionGroup("x", [ValueError(n) for n in range(5)]),
            "ValueError: 0; ValueError: 1; ValueError: 2; 2 more",
        ),
    ],
)
def test_an_error_is_described_in_one_line(error: BaseException, text: str) -> None:
    """By its type, its text, and the cause of a broken stream."""
    assert describe(error) == text
