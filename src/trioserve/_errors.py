"""Errors: what is in them, which end the program, which are no peer's doing.

An error comes from a handler, and its class may have been written to say anything:
its attributes raise, its ``__class__`` is another one, a group has no end. Nothing
here asks the error itself; what is asked is its type, and the attributes that
``BaseException`` has and no subclass can change.
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

#: No layer may keep these to itself.
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
    """``error``, or of a group the errors in it, however deep they are.

    A group that is in another one twice counts once.
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
    """The part of ``error`` that is of these kinds: one error, or a group of ours."""
    return _together([each for each in leaves(error) if is_a(each, kinds)])


def without(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The part of ``error`` that is not of this kind: one error, or a group of ours."""
    return _together([each for each in leaves(error) if not is_a(each, kind)])


def inner_group(
    group: BaseExceptionGroup[BaseException],
) -> BaseExceptionGroup[BaseException] | None:
    """The group in ``group``, if there is nothing else in it."""
    members = _members(group)
    if len(members) == 1 and is_a(members[0], BaseExceptionGroup):
        inner: BaseExceptionGroup[BaseException] = members[0]
        return inner
    return None


def _together(errors: list[BaseException]) -> BaseException | None:
    if len(errors) > 1:
        # An error that has no class to show can't be put into a group.
        with contextlib.suppress(BaseException):
            return BaseExceptionGroup("out of a group of errors", errors)
    return errors[0] if errors else None


def behind(error: BaseException) -> Iterator[BaseException]:
    """``error``, what it was raised from or while handling, and all behind that."""
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


def passing(error: BaseException) -> BaseException | None:
    """The part of ``error`` that nobody may keep to himself, or None.

    That is what ends the program, and Trio's ``Cancelled`` where that is cancelled.
    """
    cancelled = trio.current_effective_deadline() == -math.inf
    return only(error, (*PROGRAM_ENDS, trio.Cancelled) if cancelled else PROGRAM_ENDS)


@contextlib.contextmanager
def isolated() -> Generator[None]:
    """Keep to itself whatever is raised in the block and may be kept.

    A system task that raises ends the program.
    """
    try:
        yield
    except BaseException as error:  # noqa: ASYNC103 - isolation
        passes = passing(error)
        if passes is error:
            raise
        if passes is not None:
            raise passes from None  # noqa: ASYNC104 - what it has to know


def selves_in(error: BaseException) -> Iterator[object]:
    """Of the methods that ``error`` came through, whose they were."""
    # Only the frames know: what is raised has nothing of who has raised it. But one
    # that runs keeps what its locals were when it was asked; this error was one: a
    # cycle.
    running = {id(frame) for frame, _ in traceback.walk_stack(sys._getframe())}
    for frame, _ in traceback.walk_tb(_traceback(error)):
        if id(frame) not in running:
            yield frame.f_locals.get("self")


def cause_of(error: BaseException) -> BaseException | None:
    """What ``error`` was raised from."""
    found: BaseException | None = _cause(error)
    return found


def errno_of(error: BaseException | None) -> int | None:
    """The number that the system has given to ``error``, if it has."""
    code = _errno(error) if is_a(error, OSError) else None
    return code if type(code) is int else None


def again(error: OSError) -> OSError:
    """The same once more, with no traceback; of a type of the system's, not its own."""
    kind = socket.gaierror if is_a(error, socket.gaierror) else OSError
    return kind(*_args(error))


#: Characters of an error's text and traceback that are logged, at the beginning and
#: again at the end. What a client has sent may be in it.
_MOST_LOGGED: Final = 32_768


def log_error(
    logger: logging.Logger,
    level: int,
    message: str,
    *args: object,
    error: BaseException | None,
) -> None:
    """Log a message, and the traceback of ``error`` if it can be formatted.

    Of one that is long the beginning and the end are logged, as a part of the message.

    It raises nothing but what ends the program, whatever ``error`` is, and whatever
    the log's handlers do with it.
    """
    if error is not None:
        text = _formatted(error)
        if text is None:
            # A handler whose formatter fails prints that failure, and not the message.
            message, error = f"{message} (its traceback can't be formatted)", None
        elif (left_out := len(text) - 2 * _MOST_LOGGED) > 0:
            begin, end = text[:_MOST_LOGGED], text[-_MOST_LOGGED:]
            message, error = f"{message}\n%s\n[%d characters left out]\n%s", None
            args = (*args, begin, left_out, end)
    try:
        logger.log(level, message, *args, exc_info=error, stacklevel=2)
    except PROGRAM_ENDS:
        raise
    except BaseException:  # noqa: ASYNC103 - isolation
        with contextlib.suppress(Exception):
            logger.log(level, message, *args, stacklevel=2)


@trio.lowlevel.enable_ki_protection  # so that what is raised here is the error's own
def _formatted(error: BaseException) -> str | None:
    try:
        str(error)
        return "".join(traceback.format_exception(error))
    except BaseException:  # noqa: ASYNC103 - the error's own doing
        return None  # noqa: ASYNC104 - it is no news


#: What this machine or this process has too little of: descriptors, memory, buffers,
#: epoll watches. Linux's manual pages of socket(2), connect(2) and epoll_ctl(2).
_SHORTAGES: Final = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)
)


def is_shortage(error: BaseException | None) -> bool:
    """Whether ``error`` says that this machine lacks something, and no peer does.

    Of connect(2), EADDRNOTAVAIL is one too (no local port is free), which
    whoever connects has to know: of bind(2) it is not.
    """
    return errno_of(error) in _SHORTAGES


#: What this machine does not let us do: a filter of system calls, a kernel without one
#: of them, a kind of file that can't, an epoll that won't. No network and no peer
#: brings these about.
_DENIALS: Final = frozenset(
    (
        *(errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.EIO),
        *(errno.ESPIPE, errno.EEXIST, errno.ELOOP),
    )
)

#: A descriptor was closed behind our back: it is nobody's, or something else by now.
_CLOSED: Final = frozenset((errno.EBADF, errno.ENOTSOCK, errno.ENOENT))


def is_ours(error: BaseException | None) -> bool:
    """Whether this machine says no, to whatever is done with any socket."""
    return errno_of(error) in _DENIALS or is_shortage(error)


def is_closed(error: BaseException | None) -> bool:
    """Whether ``error`` says that a descriptor was closed by somebody else."""
    return errno_of(error) in _CLOSED
