"""TLS records: where they end, in bytes that are encrypted. RFC 8446, section 5.1"""

from __future__ import annotations

from typing import Final

#: The head of a record: its type, its version, and the length of its body.
_HEAD: Final = 5


class RecordEnds:
    """Follows the records of one direction, in pieces of any size."""

    __slots__ = ("_head", "_missing")

    def __init__(self) -> None:
        # Of the last record: its head, if that is not complete, or how many bytes of
        # its body are missing.
        self._head = b""
        self._missing = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        # Where the next record begins, in ``data``.
        at = self._missing
        if self._head:
            data = self._head + data
        size = len(data)
        while at + _HEAD <= size:
            at += _HEAD + (data[at + 3] << 8 | data[at + 4])
        self._head = data[at:]
        self._missing = at - size if at > size else 0

    @property
    def is_within_record(self) -> bool:
        """Whether the last byte is not the last one of its record."""
        return bool(self._missing or self._head)
