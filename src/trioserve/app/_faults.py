"""What a proxy is to break on purpose: options, or a file that says both.

Words of the command line or the environment in, faults and a seed out. Nothing
here knows what they do to a connection.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from trioserve.faults import Faults, parse_faults

from ._options import option
from ._values import format_bytes, printable

Command = TypeVar("Command", bound=Callable[..., Any])

_FORM: Final = 'use an object like {"faults": "up:reset@4096", "seed": 7}'

#: Bytes; a case has a hundred.
_LARGEST: Final = 1_000_000


@dataclasses.dataclass(frozen=True)
class Case:
    """Faults, and the seed that they were found with; None if it was not said."""

    faults: Faults
    seed: int | None = None

    def __str__(self) -> str:
        return str(self.faults)


def fault_options() -> Callable[[Command], Command]:
    """Add them to a command: what to break, and how chance decides."""

    def decorate(command: Command) -> Command:
        command = option(
            "--seed",
            type=_seed,
            metavar="N",
            show_default="0, or that of the file",
            help="Decides what is random in the faults.",
        )(command)
        return option(
            "--fault",
            type=_case,
            metavar="FAULTS",
            help="Break connections on purpose: 'latency=50ms; down:reset@4096',"
            " or @FILE with a case of JSON; see trioserve help faults.",
        )(command)

    return decorate


def _case(text: str) -> Case:
    try:
        case = _read_case(text[1:]) if text[:1] == "@" else Case(parse_faults(text))
    except ValueError as error:
        raise click.BadParameter(printable(str(error))) from None
    if not case.faults:
        raise click.BadParameter("no fault is in it; use one like 'latency=50ms'")
    return case


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a whole number") from None


def _read_case(path: str) -> Case:
    try:
        found = json.loads(_read_file(path))
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON; {_FORM}") from None
    match found:
        case {"faults": str(faults), "seed": int(seed)} if not isinstance(seed, bool):
            case = Case(parse_faults(faults), seed)
        case {"faults": str(faults)} if "seed" not in found:
            case = Case(parse_faults(faults))
        case _:
            raise ValueError(f"there is no case in {path}; {_FORM}")
    if not case.faults:
        raise ValueError(f"there are no faults in {path}; {_FORM}")
    return case


def _read_file(path: str) -> bytes:
    # Never waits, and never reads without end.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise OSError(errno.EFBIG, f"it has more than {format_bytes(_LARGEST)}")
    return text
