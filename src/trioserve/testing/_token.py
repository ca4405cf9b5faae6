"""Tokens: a case of a check in a few characters, which ``repeat`` runs again.

A case is written as a tape: one value for each of its fields, where 0 is the default,
and no zeros at the end. In front of it are marks of the version, of the handler's name
and of the conversation, so that a token is not taken for one of another check.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import zlib
from typing import Any, Final, get_args

from trioserve.faults import parse_faults

from ._case import Case, Disturbance, Order, Play
from ._peer import Peer

#: It changes when the same tape is another case.
_VERSION: Final = "a"

#: Characters of a mark.
_MARK: Final = 4

#: Fields whose values are written as their numbers.
_WORDS: Final[dict[str, tuple[object, ...]]] = {
    "disturbance": (None, *get_args(Disturbance)),
    "play": (None, *get_args(Play)),
    "order": get_args(Order),
}

_FAULTS: Final = ("faults", "server_faults")


class Tokens:
    """The tokens of one check.

    Args:
      handler: the name of the handler.
      plain: the plain conversation.
      scripts: the scripts of all cases; those of the plain one are the first. The
        scripts of a case are some of these, some without some of their steps.
      client: the name of a client that is code, or "".
    """

    def __init__(
        self, handler: str, plain: Case, scripts: tuple[Peer, ...], client: str = ""
    ) -> None:
        self._handler = handler
        self._plain = plain
        self._scripts = scripts
        self._marks = _mark(handler), _mark(f"{scripts!r} {client}")

    def of(self, case: Case, *, compares: bool) -> str:
        """The token of a case.

        Args:
          compares: whether it is compared with the plain conversation.
        """
        edits = 0 if case.peers == self._plain.peers else self._edits(case.peers)
        tape: list[Any] = [edits, int(compares)]
        for field in dataclasses.fields(Case)[1:]:
            value = getattr(case, field.name)
            is_default = value == getattr(self._plain, field.name)
            tape.append(0 if is_default else _written(field.name, value))
        while tape and not tape[-1]:
            tape.pop()
        text = json.dumps(tape, separators=(",", ":"))
        written = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
        return "".join([_VERSION, *self._marks, written])

    def case(self, token: str) -> tuple[Case, bool]:
        """The case of a token, and whether it is compared with the plain one.

        Raises:
          ValueError: it is not a token of this version, handler and conversation.
        """
        ours = _VERSION, *self._marks
        of = [
            ("of this version of trioserve", 0, 1),
            (f"of the handler {self._handler}", 1, 1 + _MARK),
            ("of this conversation", 1 + _MARK, 1 + 2 * _MARK),
        ]
        for mark, (what, begin, end) in zip(ours, of, strict=True):
            if token[begin:end] != mark:
                raise ValueError(f"repeat must be a token {what}, not {token!r}")
        try:
            written = token[1 + 2 * _MARK :]
            text = base64.urlsafe_b64decode(written + "=" * (-len(written) % 4))
            return self._read(json.loads(text))
        except (binascii.Error, ValueError, TypeError, LookupError):
            raise ValueError(f"repeat must be a whole token, not {token!r}") from None

    def _read(self, tape: list[Any]) -> tuple[Case, bool]:
        padded: list[Any] = [*tape, 0, 0]
        edits, compares, *values = padded
        changes = dict[str, Any]()
        if edits:
            changes["peers"] = tuple(self._edited(*edit) for edit in edits)
        fields = [field.name for field in dataclasses.fields(Case)[1:]]
        for name, value in zip(fields, values, strict=False):
            if value:
                changes[name] = _read(name, value)
        return dataclasses.replace(self._plain, **changes), bool(compares)

    def _edits(self, peers: tuple[Peer, ...]) -> list[list[int]]:
        """For each peer, the number of its script, and the steps that are left out."""
        edits = list[list[int]]()
        for peer in peers:
            found = (
                [number, *left_out]
                for number, script in enumerate(self._scripts)
                if (left_out := _left_out(script, peer)) is not None
            )
            edits.append(min(found, key=len))
        return edits

    def _edited(self, number: int, *left_out: int) -> Peer:
        steps = enumerate(self._scripts[number].steps)
        return Peer(tuple(step for at, step in steps if at not in left_out))


def _written(name: str, value: Any) -> Any:
    """The value of a field on a tape; it is not the default."""
    if name in _FAULTS:
        return str(value)
    if name == "at_step":
        return value + 1
    return _WORDS[name].index(value) if name in _WORDS else value


def _read(name: str, value: Any) -> Any:
    """The value of a field from a tape."""
    if name in _FAULTS:
        return parse_faults(value)
    if name == "at_step":
        return value - 1
    return _WORDS[name][value] if name in _WORDS else value


def _left_out(script: Peer, peer: Peer) -> list[int] | None:
    """The steps of a script that a peer does not have; None if it has others."""
    left_out, wanted = list[int](), list(peer.steps)
    for at, step in enumerate(script.steps):
        if wanted and step == wanted[0]:
            wanted.pop(0)
        else:
            left_out.append(at)
    return None if wanted else left_out


def _mark(text: str) -> str:
    return f"{zlib.crc32(text.encode()) & 0xFFFF:0{_MARK}x}"
