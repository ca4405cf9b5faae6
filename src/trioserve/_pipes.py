"""Pipes: splice(2) moves bytes through them, without a copy in this process.

Their number is small and fixed. Linux gives a user other than root 64 MiB of pipe
buffers over all processes; beyond that a new pipe holds 8 KiB, without an error
(pipe(7), "pipe-user-pages-soft"). This module does not know which flows are bulk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import math
import os
from typing import Final, Protocol

logger = logging.getLogger("trioserve")

#: Pipes of one run, how many of them are deep, and their sizes in bytes: 14 MiB in all.
#: A flow uses a pipe for as long as it takes to fill and empty it, and keeps it only if
#: its sink is full. So most bytes go through one pipe, a deep one: eight flows cost a
#: third less than through one pipe of 256 KiB, and a fifth less than through eight.
MOST: Final = 32
DEEP: Final = 8
DEEP_SIZE: Final = 1_048_576
SIZE: Final = 262_144

#: A smaller pipe is not worth its system calls.
_MIN_SIZE: Final = 65_536

#: After this many seconds without a byte, another flow may get the pipe.
_STALE: Final = 1.0

#: os.splice came with Python 3.10 and is Linux's own.
SUPPORTED: Final = hasattr(os, "splice")


class Pipe:
    """A non-blocking pipe.

    Attributes:
      size: bytes that it can hold.
      filled: bytes that are in it.
      moved_at: when bytes last went through it; set by the borrower.
      failed: set if it must not be used again.
    """

    __slots__ = (
        "failed",
        "filled",
        "moved_at",
        "reader",
        "size",
        "writer",
    )

    def __init__(self, size: int) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.size = _made_as_deep_as(self.writer, size)
        except BaseException:
            self.close()
            raise
        self.failed = False
        self.filled = 0
        self.moved_at = 0.0

    def fill(self, source: int, most: int) -> int:
        """Move bytes that a socket has into the empty pipe; return how many.

        They are at most ``most``, and what the pipe can hold. 0 means EOF or the mark
        of urgent data.

        Raises:
          OSError: as from recv(2); EINVAL if this kind of file can't be spliced.
        """
        most = min(most, self.size)
        self.filled = os.splice(source, self.writer, most, flags=_FLAGS)
        return self.filled

    def drain(self, sink: int) -> int:
        """Move bytes from the pipe to a socket, and return how many.

        Raises:
          OSError: as from send(2); or its descriptor was closed and reused.
        """
        # Ask for exactly the bytes in it: if asked for more, the kernel expects more
        # (MSG_MORE) and holds the last segment back for 200 ms.
        count = os.splice(self.reader, sink, self.filled, flags=_FLAGS)
        if not count:
            raise _lost()
        self.filled -= count
        return count

    def read(self) -> bytes:
        """Read all bytes out of it.

        Raises:
          OSError: its descriptor was closed and reused; the bytes are lost.
        """
        data = b""
        while self.filled:
            part = os.read(self.reader, self.filled)
            if not part:
                raise _lost()
            self.filled -= len(part)
            data += part
        return data

    def close(self) -> None:
        """Close both ends; bytes in it are lost."""
        for fd in (self.reader, self.writer):
            with contextlib.suppress(OSError):  # it is closed, even if that fails
                os.close(fd)


def _lost() -> OSError:
    # Raised, because callers would retry a result of 0 without end.
    return OSError(errno.EIO, "a pipe has lost its bytes: its descriptor was reused")


def _made_as_deep_as(pipe: int, size: int) -> int:
    """Set the size if that is allowed; return the size that it has."""
    try:
        return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
    except OSError:  # EPERM: the user's pipe memory is used up
        return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


_FLAGS: Final = getattr(os, "SPLICE_F_NONBLOCK", 0) | getattr(os, "SPLICE_F_MOVE", 0)


class Borrower(Protocol):
    """A bulk flow that keeps a pipe with bytes in it."""

    def give_up_pipe(self) -> None:
        """Call :meth:`Pipes.take_back`, and go on without a pipe.

        Raises:
          OSError: the bytes in the pipe are lost.
        """

    def on_pipe_lost(self, error: OSError) -> None:
        """Called if :meth:`give_up_pipe` has raised ``error``."""


class Pipes:
    """A pool of at most ``most`` pipes, made when they are needed and reused.

    Attributes:
      flows: the number of flows that splice; counted by them.
      lent: the number of pipes in use.
      borrowed: the pipes that are kept with bytes in them, by borrower.
    """

    def __init__(self, most: int = MOST) -> None:
        self.flows = 0
        self.lent = 0
        self.borrowed: dict[Borrower, Pipe] = {}
        self._most = most
        self._free: list[Pipe] = []
        self._forbidden = False
        self._none_before = -math.inf

    def empty(self, now: float) -> Pipe | None:
        """An empty pipe, to be filled and emptied at once; None if all are in use.

        If bytes stay in it, call :meth:`keep` before anything else. If all are in use,
        and the one that has been silent longest has been so for a second or more, this
        takes it from its borrower.
        """
        if self._free:
            return self._free[-1]
        pipe = self.take()
        if pipe is None and self.borrowed and now >= self._none_before:
            stalest = min(self.borrowed, key=self._moved_at)
            # No other becomes stale before this one does.
            self._none_before = self._moved_at(stalest) + _STALE
            if now >= self._none_before:
                try:
                    stalest.give_up_pipe()
                except OSError as error:
                    stalest.on_pipe_lost(error)
                    # Both may be pumps of one relay, which has just ended.
                    return None
                pipe = self.take()
        if pipe is not None:
            self.give_back(pipe)
        return pipe

    def keep(self, borrower: Borrower, pipe: Pipe, now: float) -> None:
        """Let a borrower keep the pipe that :meth:`empty` has just returned."""
        kept = self._free.pop()
        assert kept is pipe
        self.lent += 1
        pipe.moved_at = now
        self.borrowed[borrower] = pipe

    def _moved_at(self, borrower: Borrower) -> float:
        return self.borrowed[borrower].moved_at

    def take_back(self, borrower: Borrower, pipe: Pipe) -> None:
        """Take back a pipe that is kept."""
        del self.borrowed[borrower]
        self.give_back(pipe)

    def take(self) -> Pipe | None:
        """Take an empty pipe; None if all are in use or no more can be made."""
        pipe = self._free.pop() if self._free else self._make()
        if pipe is not None:
            self.lent += 1
        return pipe

    def _make(self) -> Pipe | None:
        if self.lent >= self._most:
            return None
        try:
            pipe = Pipe(DEEP_SIZE if self.lent < DEEP else SIZE)
        except OSError:  # out of descriptors, or of memory, or not allowed
            return None
        if pipe.size < _MIN_SIZE:
            pipe.close()
            return None
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Keep a pipe for reuse; close it if it holds bytes or has failed."""
        self.lent -= 1
        if pipe.filled or pipe.failed:
            pipe.close()
        else:
            self._free.append(pipe)

    def forbid(self, error: OSError) -> None:
        """Stop lending pipes, because the system does not allow splice(2)."""
        if not self._forbidden:
            self._forbidden = True
            self._most = 0
            self.close()
            logger.warning("splice(2) can't be used: %s; bulk is copied", error)

    def close(self) -> None:
        """Close the pipes that are not in use."""
        for pipe in self._free:
            pipe.close()
        self._free.clear()
