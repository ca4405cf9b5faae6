"""Pipes: what splice(2) moves bytes through, without a copy in this process.

A small, fixed number of them: a user who isn't root gets 64 MiB of pipe from
Linux, all processes together, and beyond that every new pipe holds 8 KiB and
nobody is told (pipe(7), "pipe-user-pages-soft"). What goes through a pipe, and
who needs one most, is not known here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import Final

#: Pipes of one run, and bytes in each, if the system grants them: 14 MiB in all.
#: A few flows alternate with their peers, and want depth; many don't.
MOST: Final = 32
DEEP: Final = 8
DEEP_SIZE: Final = 1_048_576
SIZE: Final = 262_144

#: Bytes that a pipe has to hold to be worth its system calls.
_LEAST: Final = 65_536

#: os.splice came with Python 3.10 and is Linux's own.
SUPPORTED: Final = hasattr(os, "splice")


class Pipe:
    """A pipe that never waits.

    Attributes:
      filled: bytes that are in it.
      moved, moved_at: bytes that went through it, and when the last did, as
        its user has it.
      little: what the kernel might hold of its sink's bytes before there were many.
      failed: whether it is not to be used again.
    """

    __slots__ = (
        "failed",
        "filled",
        "little",
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
        self.little = 0

    def fill(self, source: int) -> int:
        """Move what there is from a socket into the empty pipe.

        Nothing, or 0 bytes, may be the mark of urgent data, as well as what it
        means of recv(2).

        Raises:
          OSError: as recv(2) would; EINVAL if this kind can't be spliced.
        """
        self.filled = os.splice(source, self.writer, self.size, flags=_FLAGS)
        return self.filled

    def drain(self, sink: int) -> int:
        """Move some of what is in it to a socket, and return how much.

        Raises:
          OSError: as send(2) would; or it is something else by now.
        """
        # Exactly what is there: asked for more, the kernel would hold back the
        # last segment for what may follow (MSG_MORE), for 200 ms.
        count = os.splice(self.reader, sink, self.filled, flags=_FLAGS)
        if not count:
            raise _lost()
        self.filled -= count
        return count

    def read(self) -> bytes:
        """All that is in it, which empties it.

        Raises:
          OSError: it is something else by now, and its bytes are lost.
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
        for fd in (self.reader, self.writer):
            with contextlib.suppress(OSError):  # it is closed whatever this says
                os.close(fd)


def _lost() -> OSError:
    # Asked again, it would say nothing for ever.
    return OSError(errno.EIO, "a pipe has lost its bytes: its number is another's")


def _made_as_deep_as(pipe: int, size: int) -> int:
    """Let it hold ``size`` bytes, if that is allowed; how many it holds."""
    try:
        return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
    except OSError:  # EPERM: the user has no more
        return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


_FLAGS: Final = getattr(os, "SPLICE_F_NONBLOCK", 0) | getattr(os, "SPLICE_F_MOVE", 0)


class Pipes:
    """At most ``most`` pipes, made when they are needed and used again.

    Attributes:
      lent: those in use.
    """

    def __init__(self, most: int = MOST) -> None:
        self.lent = 0
        self._most = most
        self._free: list[Pipe] = []

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
        """Take it back; one with bytes in it, or that failed, is never lent again."""
        self.lent -= 1
        if pipe.filled or pipe.failed:
            pipe.close()
        else:
            self._free.append(pipe)

    def stop(self) -> None:
        """Lend none any more: the system does not let us use them."""
        self._most = 0
        self.close()

    def close(self) -> None:
        """Close those that are not in use."""
        for pipe in self._free:
            pipe.close()
        self._free.clear()
