"""Errors: their parts, which ones end the program, which ones no peer has caused.

An error may come from a handler, and its class may lie: its attributes may raise, its
``__class__`` may be another one, a group may be infinite. So this module reads only
the type, and attributes through ``BaseException``'s own descriptors, which no subclass
can change.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
import sys
import traceback
from collections.abc import Generator, Iterator
from typing import Any, Final

import trio

#: These must never be caught and kept.
PROGRAM_ENDS: Final = (KeyboardInterrupt, SystemExit)


_members: Final = BaseExceptionGroup.__dict__["exceptions"].__get__
_cause: Final = BaseException.__dict__["__cause__"].__get__
_context: Final = BaseException.__dict__["__context__"].__get__
_traceback: Final = BaseException.__dict__["__traceback__"].__get__
_args: Final = BaseException.__dict__["args"].__get__
_errno: Final = OSError.__dict__["errno"].__get__


def is_a(thing: object, kinds: type[Any] | tuple[type[Any], ...]) -> bool:
    """Whether ``thing`` is of one of these types, whatever its ``__class__`` says."""
    return issubclass(type(thing), kinds)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The error, or all errors inside a group, at any depth.

    A group that occurs several times counts once.
    """
    seen = set[int]()
    left = [error]
    while left:
        each = left.pop()
        if not is_a(each, BaseExceptionGroup):
            yield each
        elif id(each) not in seen:
            seen.add(id(each))
            left += reversed(_members(each))


def only(
    error: BaseException, kinds: tuple[type[BaseException], ...]
) -> BaseException | None:
    """The part of ``error`` of these types: one error, or a new group; or None."""
    return _regrouped([each for each in leaves(error) if is_a(each, kinds)])


def without(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The part of ``error`` not of this type: one error, or a new group; or None."""
    return _regrouped([each for each in leaves(error) if not is_a(each, kind)])


def inner_group(
    group: BaseExceptionGroup[BaseException],
) -> BaseExceptionGroup[BaseException] | None:
    """The group that is the only member of ``group``, if it is one."""
    members = _members(group)
    if len(members) == 1 and is_a(members[0], BaseExceptionGroup):
        inner: BaseExceptionGroup[BaseException] = members[0]
        return inner
    return None


def _regrouped(errors: list[BaseException]) -> BaseException | None:
    if len(errors) > 1:
        # An error whose __class__ raises can't be put into a group.
        with contextlib.suppress(BaseException):
            return BaseExceptionGroup("out of a group of errors", errors)
    return errors[0] if errors else None


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The error and all in its chain: causes, contexts, and members of groups."""
    seen = set[int]()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            left += (_context(each), _cause(each))
            if is_a(each, BaseExceptionGroup):
                left += _members(each)


def must_propagate(error: BaseException) -> BaseException | None:
    """The part of ``error`` that must be raised further, or None.

    These are errors that end the program, and ``trio.Cancelled`` if this task is
    cancelled.
    """
    cancelled = trio.current_effective_deadline() == -math.inf
    return only(error, (*PROGRAM_ENDS, trio.Cancelled) if cancelled else PROGRAM_ENDS)


@contextlib.contextmanager
def isolated() -> Generator[None]:
    """Suppress all errors in the block, except those that must be raised further.

    For system tasks: an exception in one would end the program.
    """
    try:
        yield
    except BaseException as error:  # noqa: ASYNC103 - isolation
        passes = must_propagate(error)
        if passes is error:
            raise
        if passes is not None:
            raise passes from None  # noqa: ASYNC104 - the rest is suppressed


def selves_of_frames(error: BaseException) -> Iterator[object]:
    """The ``self`` of each method that ``error`` was raised through."""
    # Only the frames have it. Frames that still run are skipped: reading f_locals
    # makes a frame keep a copy of its locals, with this error among them: a cycle.
    running = {id(frame) for frame, _ in traceback.walk_stack(sys._getframe())}
    for frame, _ in traceback.walk_tb(_traceback(error)):
        if id(frame) not in running:
            yield frame.f_locals.get("self")


def cause_of(error: BaseException) -> BaseException | None:
    """The ``__cause__`` of ``error``."""
    found: BaseException | None = _cause(error)
    return found


def errno_of(error: BaseException | None) -> int | None:
    """The errno of ``error``, if it has one."""
    code = _errno(error) if is_a(error, OSError) else None
    return code if type(code) is int else None


def copy_of(error: OSError) -> OSError:
    """A copy without traceback, as a plain ``OSError`` or ``gaierror``."""
    kind = socket.gaierror if is_a(error, socket.gaierror) else OSError
    return kind(*_args(error))


#: Of an error's text and traceback, this many characters at each end are logged.
#: They may have bytes from a client.
_MAX_LOGGED: Final = 32_768


def log_error(
    logger: logging.Logger,
    level: int,
    message: str,
    *args: object,
    error: BaseException | None,
) -> None:
    """Log a message, and the traceback of ``error`` if it can be formatted.

    If the traceback is long, its beginning and end are logged, as a part of the
    message. This raises only errors that end the program, even if the class of
    ``error`` or a logging handler misbehaves.
    """
    if error is not None:
        text = _formatted(error)
        if text is None:
            # If a formatter fails, a logging handler prints only that failure.
            message, error = f"{message} (its traceback can't be formatted)", None
        elif (left_out := len(text) - 2 * _MAX_LOGGED) > 0:
            begin, end = text[:_MAX_LOGGED], text[-_MAX_LOGGED:]
            message, error = f"{message}\n%s\n[%d characters left out]\n%s", None
            args = (*args, begin, left_out, end)
    try:
        logger.log(level, message, *args, exc_info=error, stacklevel=2)
    except PROGRAM_ENDS:
        raise
    except BaseException:  # noqa: ASYNC103 - isolation
        with contextlib.suppress(Exception):
            logger.log(level, message, *args, stacklevel=2)


@trio.lowlevel.enable_ki_protection  # so that exceptions here are the error's own
def _formatted(error: BaseException) -> str | None:
    try:
        str(error)
        return "".join(traceback.format_exception(error))
    except BaseException:  # noqa: ASYNC103 - the error's own doing
        return None  # noqa: ASYNC104 - the caller logs that it failed


#: Shortages of this machine or process: descriptors, memory, buffers, epoll watches.
#: Linux's manual pages of socket(2), connect(2) and epoll_ctl(2).
_SHORTAGES: Final = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)
)


def is_shortage(error: BaseException | None) -> bool:
    """Whether ``error`` is a shortage of this machine.

    EADDRNOTAVAIL is not in the list: from connect(2) it is a shortage (no local port
    is free), but from bind(2) it is not.
    """
    return errno_of(error) in _SHORTAGES


#: Refusals of this machine: a filter of system calls, a system call that the kernel
#: lacks, a wrong kind of file, an epoll that can't watch it. No network and no peer
#: causes these.
_DENIALS: Final = frozenset(
    (
        *(errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.EIO),
        *(errno.ESPIPE, errno.EEXIST, errno.ELOOP),
    )
)

#: Other code has closed the descriptor, and perhaps reused it.
_CLOSED: Final = frozenset((errno.EBADF, errno.ENOTSOCK, errno.ENOENT))


def is_ours(error: BaseException | None) -> bool:
    """Whether ``error`` is a shortage or a refusal of this machine."""
    return errno_of(error) in _DENIALS or is_shortage(error)


def is_closed(error: BaseException | None) -> bool:
    """Whether ``error`` says that other code has closed the descriptor."""
    return errno_of(error) in _CLOSED
