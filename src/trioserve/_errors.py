"""Errors: which ones end the program, and how to find them in a group."""

from __future__ import annotations

from typing import Final

#: No layer may keep these to itself.
PROGRAM_ENDS: Final = (KeyboardInterrupt, SystemExit)


def only(
    error: BaseException, kinds: tuple[type[BaseException], ...]
) -> BaseException | None:
    """The part of ``error`` that is of these kinds."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(kinds)
    return error if isinstance(error, kinds) else None
