"""The options that inject faults: a text with faults, or the name of a file.

Text of the command line or the environment in, faults and a seed out. Nothing
here knows what a fault does to a connection.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
from collections.abc import Callable
from typing import Final

import click

from trioserve.faults import Faults, parse_faults

from ._environment import Command, option
from ._values import format_bytes, printable

_FORM: Final = 'use an object like {"faults": "up:reset@4096", "seed": 7}'

#: Bytes; a typical file has a hundred.
_LARGEST: Final = 1_000_000


@dataclasses.dataclass(frozen=True)
class SeededFaults:
    """Faults and their seed; None if no seed was given with them."""

    faults: Faults
    seed: int | None = None

    def __str__(self) -> str:
        return str(self.faults)


def fault_options() -> Callable[[Command], Command]:
    """A decorator that adds the options ``--fault`` and ``--seed``."""

    def decorate(command: Command) -> Command:
        command = option(
            "--seed",
            type=_seed,
            metavar="N",
            show_default="0, or the seed in the file",
            help="Seed for the random values of the faults.",
        )(command)
        return option(
            "--fault",
            type=_faults,
            metavar="FAULTS",
            help="Break connections on purpose: 'latency=50ms; down:reset@4096',"
            " or @FILE with JSON; see 'trioserve help faults'.",
        )(command)

    return decorate


def _faults(text: str) -> SeededFaults:
    try:
        found = _read(text[1:]) if text[:1] == "@" else SeededFaults(parse_faults(text))
    except ValueError as error:
        raise click.BadParameter(printable(str(error))) from None
    if not found.faults:
        raise click.BadParameter("there is no fault; use one like 'latency=50ms'")
    return found


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a whole number") from None


def _read(path: str) -> SeededFaults:
    try:
        found = json.loads(_read_file(path))
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON; {_FORM}") from None
    match found:
        case {"faults": str(faults), "seed": int(seed)} if not isinstance(seed, bool):
            seeded = SeededFaults(parse_faults(faults), seed)
        case {"faults": str(faults)} if "seed" not in found:
            seeded = SeededFaults(parse_faults(faults))
        case _:
            raise ValueError(f"there are no faults in {path}; {_FORM}")
    if not seeded.faults:
        raise ValueError(f"there are no faults in {path}; {_FORM}")
    return seeded


def _read_file(path: str) -> bytes:
    # Don't wait for the writer of a pipe, and don't read a device without end.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise OSError(errno.EFBIG, f"it has more than {format_bytes(_LARGEST)}")
    return text
