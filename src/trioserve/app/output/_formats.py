"""Records for machines: one line of JSON or logfmt each.

Mappings in, lines out. Nothing here knows what a record is about.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping

_BARE = re.compile(r"[!#-<>-\[\]-~]+")  # ASCII without space, ", =, \


def as_json(record: Mapping[str, object]) -> str:
    """One line of JSON."""
    return json.dumps(record, separators=(",", ":"))


def as_logfmt(record: Mapping[str, object]) -> str:
    """One line of ``key=value``; a mapping gives ``key.inner=value``."""
    return " ".join(_pairs("", record))


def _pairs(prefix: str, record: Mapping[str, object]) -> Iterator[str]:
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _pairs(prefix + _key(key) + ".", value)
        else:
            yield f"{prefix}{_key(key)}={_logfmt_value(value)}"


@functools.lru_cache(1024)
def _key(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)


def _logfmt_value(value: object) -> str:
    # The common types first: the line of a connection has thirty values.
    if value is None:
        return "null"
    if type(value) is int:
        return str(value)
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) else json.dumps(value)
    text = json.dumps(value, default=str)
    return json.dumps(text) if isinstance(value, list | tuple) else text
