"""Pipes: splice(2) moves bytes through them, without a copy in this process.

There is a small, fixed number of them. Linux gives a user other than root 64 MiB of
pipe for all processes together, and beyond that every new pipe holds 8 KiB and no
error says so (pipe(7), "pipe-user-pages-soft"). This module does not know which
flows are bulk, and between which sockets.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from typing import Final, Protocol

logger = logging.getLogger("trioserve")

#: Pipes of one run, and bytes in each, if the system grants them: 14 MiB in all.
#: With a few flows each alternates with its peer, and a deep pipe makes it faster; with
#: many it does not.
MOST: Final = 32
DEEP: Final = 8
DEEP_SIZE: Final = 1_048_576
SIZE: Final = 262_144

#: Bytes that a pipe has to hold to be worth its system calls.
_LEAST: Final = 65_536

#: Seconds in which a pipe has not moved a byte before another flow gets it.
_STALE: Final = 1.0

#: os.splice came with Python 3.10 and is Linux's own.
SUPPORTED: Final = hasattr(os, "splice")


class Pipe:
    """A pipe that never waits.

    Attributes:
      size: bytes that it can hold.
      filled: bytes that are in it.
      moved, moved_at: bytes that went through it, and when the last did; its
        borrower keeps them.
      lowat_before: the sink's TCP_NOTSENT_LOWAT before its borrower changed it.
      failed: whether it is not to be used again.
    """

    __slots__ = (
        "failed",
        "filled",
        "lowat_before",
        "moved",
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
        self.moved = 0
        self.moved_at = 0.0
        self.lowat_before = 0

    def fill(self, source: int) -> int:
        """Move what there is from a socket into the empty pipe; return how much.

        0 bytes may be EOF, or the mark of urgent data.

        Raises:
          OSError: as recv(2) would; EINVAL if this kind can't be spliced.
        """
        self.filled = os.splice(source, self.writer, self.size, flags=_FLAGS)
        return self.filled

    def drain(self, sink: int) -> int:
        """Move some of what is in it to a socket, and return how much.

        Raises:
          OSError: as send(2) would; or its descriptor is another file's by now.
        """
        # Exactly what is there: if more is asked for, the kernel expects more
        # (MSG_MORE), and holds the last segment back for 200 ms.
        count = os.splice(self.reader, sink, self.filled, flags=_FLAGS)
        if not count:
            raise _lost()
        self.filled -= count
        return count

    def read(self) -> bytes:
        """Empty it, and return what was in it.

        Raises:
          OSError: its descriptor is another file's by now, and its bytes are lost.
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
        """Close both ends, with what is in it."""
        for fd in (self.reader, self.writer):
            with contextlib.suppress(OSError):  # it is closed, even if that fails
                os.close(fd)


def _lost() -> OSError:
    # An error, for an empty result would be tried again, for ever.
    return OSError(errno.EIO, "a pipe has lost its bytes: its number is another's")


def _made_as_deep_as(pipe: int, size: int) -> int:
    """Let it hold ``size`` bytes if that is allowed; return how many it can hold."""
    try:
        return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
    except OSError:  # EPERM: the user has no more
        return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


_FLAGS: Final = getattr(os, "SPLICE_F_NONBLOCK", 0) | getattr(os, "SPLICE_F_MOVE", 0)


class Borrower(Protocol):
    """A flow of bulk that has a pipe."""

    def give_up_pipe(self) -> None:
        """Call :meth:`Pipes.take_back`, and go on without.

        Raises:
          OSError: the bytes that were in it are lost.
        """

    def on_pipe_lost(self, error: OSError) -> None:
        """:meth:`give_up_pipe` has raised this."""


class Pipes:
    """At most ``most`` pipes, made when they are needed and used again.

    Attributes:
      lent: how many are in use.
      borrowed: those that :meth:`lend` has lent, by borrower.
    """

    def __init__(self, most: int = MOST) -> None:
        self.lent = 0
        self.borrowed: dict[Borrower, Pipe] = {}
        self._most = most
        self._free: list[Pipe] = []
        self._forbidden = False

    def lend(self, borrower: Borrower, now: float) -> Pipe | None:
        """An empty pipe, or None.

        If all are in use, this takes one away from the borrower that has not moved a
        byte for longest, if that was a second or more.
        """
        pipe = self.take()
        if pipe is None and self.borrowed:
            stalest = min(self.borrowed, key=self._moved_at)
            if now - self._moved_at(stalest) >= _STALE:
                try:
                    stalest.give_up_pipe()
                except OSError as error:
                    stalest.on_pipe_lost(error)
                    # It may be of the same relay as the borrower.
                    return None
                pipe = self.take()
        if pipe is not None:
            pipe.moved, pipe.moved_at = 0, now
            self.borrowed[borrower] = pipe
        return pipe

    def _moved_at(self, borrower: Borrower) -> float:
        return self.borrowed[borrower].moved_at

    def take_back(self, borrower: Borrower, pipe: Pipe) -> None:
        """Take a pipe back that was lent by :meth:`lend`."""
        del self.borrowed[borrower]
        self.give_back(pipe)

    def take(self) -> Pipe | None:
        """An empty pipe, or None if there is none to be had."""
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
        if pipe.size < _LEAST:
            pipe.close()
            return None
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Use it again; but close it if it has bytes in it or has failed."""
        self.lent -= 1
        if pipe.filled or pipe.failed:
            pipe.close()
        else:
            self._free.append(pipe)

    def forbid(self, error: OSError) -> None:
        """Lend no pipe any more, for the system does not allow splice(2)."""
        if not self._forbidden:
            self._forbidden = True
            self._most = 0
            self.close()
            logger.warning("splice(2) can't be used: %s; bulk is copied", error)

    def close(self) -> None:
        """Close those that are not in use."""
        for pipe in self._free:
            pipe.close()
        self._free.clear()
