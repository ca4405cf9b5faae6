"""Records for machines: one line of JSON or logfmt each.

Mappings in, lines out. Nothing here knows what a record is about.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Final

_BARE = re.compile(r"[!#-<>-\[\]-~]+")  # ASCII without space, ", =, \


# Made once: json.dumps() with arguments would make one for each call.
_compact: Final = json.JSONEncoder(separators=(",", ":")).encode
_readable: Final = json.JSONEncoder(default=str).encode


def as_json(record: Mapping[str, object]) -> str:
    """One line of JSON."""
    return _compact(record)


def as_logfmt(record: Mapping[str, object]) -> str:
    """One line of ``key=value``; a mapping gives ``key.inner=value``."""
    pairs: list[str] = []
    _add_pairs(pairs, "", record)
    return " ".join(pairs)


def _add_pairs(pairs: list[str], prefix: str, record: Mapping[str, object]) -> None:
    # The line of a connection has thirty values, so there is no call for the common
    # types.
    for name, value in record.items():
        key = prefix + _key(name)
        if value is None:
            pairs.append(f"{key}=null")
        elif type(value) is int:
            pairs.append(f"{key}={value}")
        elif isinstance(value, dict):
            _add_pairs(pairs, key + ".", value)
        elif isinstance(value, str) and _BARE.fullmatch(value):
            pairs.append(f"{key}={value}")
        else:
            pairs.append(f"{key}={_quoted(value)}")


@functools.lru_cache(1024)
def _key(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)


def _quoted(value: object) -> str:
    text = _readable(value)
    return _readable(text) if isinstance(value, list | tuple) else text
