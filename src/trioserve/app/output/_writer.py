"""Output that never blocks: a bounded queue and a thread for each destination.

Lines in, bytes on a file descriptor out. Nothing here knows what a line means,
and nothing here knows Trio: whoever writes only appends to a queue.
"""

from __future__ import annotations

import collections
import errno
import os
import select
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

_BATCH = 512

#: Seconds between two writes, while there is something to write.
_PAUSE = 0.01

#: Seconds after which a writer that waits for room sees that it is to end.
_LOOK = 0.05

#: Seconds in which one that is to end does, unless it hangs in a system call.
_GRACE = 0.5

#: Writes only what there is room for; 0 if this system has no such flag.
_NOWAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)

#: What it says of the flag where it does not know it.
_UNSUPPORTED: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ESPIPE}


def open_to_append(path: str) -> int:
    """Open a file to write at its end, and make it if there is none.

    Never waits: to open a named pipe that nobody reads is an error (ENXIO), where
    open(2) would wait for a reader.

    Raises:
      OSError: it can't be opened.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o644)


class LineWriter:
    """Writes lines to a file descriptor from a thread of its own.

    A reader that is slow, gone, or a disk that is full costs lines, never
    time: what finds the queue full or can't be written is counted in
    :attr:`lost`, and the next lines are tried again.

    Each destination has its own thread, so that a log nobody reads can't hold
    up the reports.

    A file that was renamed or removed, as it is to rotate it, is left, and made
    anew under its name. What can't be opened, like a named pipe without a reader,
    is tried again with every line. Half a line at the end of a file, left by what
    was killed or by a disk that was full, is ended before the next one begins.

    Args:
      fd: where to write; None to open ``path`` for it.
      close_fd: whether to close it after the last line.
      path: of the file behind ``fd``, to be opened again if it is rotated; or None.
      capacity: how many lines may wait.
      on_lost: called in the writer's thread when lines get through again, with
        how many did not.
      on_error: called in the writer's thread with each *new* kind of error.
      on_reopened: called in the writer's thread after :meth:`reopen`, with what
        went wrong if the old file is still written to.
    """

    def __init__(
        self,
        fd: int | None,
        *,
        close_fd: bool = False,
        path: str | None = None,
        capacity: int = 10_000,
        on_lost: Callable[[int], None] | None = None,
        on_error: Callable[[OSError], None] | None = None,
        on_reopened: Callable[[OSError | None], None] | None = None,
    ) -> None:
        self._fd = fd
        self._close_fd = close_fd
        self._path = path
        self._capacity = capacity
        self._on_lost = on_lost
        self._on_error = on_error
        self._on_reopened = on_reopened
        self._lines: collections.deque[str] = collections.deque()
        self._wake = threading.Condition()
        self._closing = False
        self._over = False
        self._in_hand = 0  # lines that are being written, and not yet whole
        self._reopening = False
        self._idle = False
        self._lost = 0
        self._lost_unsaid = 0
        self._errors_said: set[int | None] = set()
        self._torn = fd is not None and _ends_torn(fd, path)
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Lines that were dropped or could not be written as a whole, so far."""
        return self._lost

    def write(self, line: str) -> bool:
        """Queue a line, without its newline. Never blocks; from any thread.

        Returns whether there was room for it.
        """
        with self._wake:
            if self._over or len(self._lines) >= self._capacity:
                self._count_lost(1)
                return False
            self._lines.append(line)
            if self._idle:
                self._idle = False
                self._wake.notify()
            return True

    def reopen(self) -> bool:
        """Open the file anew, soon; return whether it has a name to do so."""
        with self._wake:
            self._reopening = self._path is not None
            self._wake.notify()
        return self._path is not None

    def close(self, within: float) -> bool:
        """Write what is queued and stop, waiting ``within`` seconds at most.

        Returns whether that was enough. If it wasn't, what is not yet written as
        a whole counts as lost, and is not written any more.
        """
        with self._wake:
            if self._over:
                return not self._thread.is_alive()
            self._closing = True
            self._wake.notify()
        self._thread.join(within)
        if not self._thread.is_alive():
            return True
        with self._wake:
            self._over = True
            self._count_lost(len(self._lines))
            self._lines.clear()
        # It counts what it has in hand, so that no line of that is written after
        # it was counted. A write that hangs can't be ended, nor known of.
        self._thread.join(_GRACE)
        self._lose_in_hand()
        return False

    def _run(self) -> None:
        self._follow()
        while (batch := self._take()) is not None:
            self._follow()
            if not batch:
                continue
            try:
                self._write(batch)
            except OSError as error:
                self._failed(error)
            else:
                self._say_lost()
        if self._close_fd and self._fd is not None:
            os.close(self._fd)

    def _follow(self) -> None:
        # If it can't be opened, the old file is better than none.
        asked, self._reopening = self._reopening, False
        if self._path is None:
            return
        if self._fd is not None and not (asked or _is_elsewhere(self._fd, self._path)):
            return
        failed: OSError | None = None
        try:
            made = open_to_append(self._path)
        except OSError as error:
            failed = error
        else:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = made
            self._torn = _ends_torn(made, self._path)
        if asked and self._on_reopened is not None:
            self._on_reopened(failed)
        elif failed is not None:
            self._failed(failed)

    def _take(self) -> list[str] | None:
        # The next lines; none if there is only a file to open anew; None is the end.
        with self._wake:
            # To be woken costs more than to write a line: under load they are
            # taken together. The first one after a silence is written at once.
            self._wake.wait_for(self._has_no_time, _PAUSE)
            self._idle = not self._lines
            self._wake.wait_for(self._has_work)
            self._idle = False
            count = min(len(self._lines), _BATCH)
            if not count and not self._reopening:
                self._over = True
                return None
            self._in_hand = count
            return [self._lines.popleft() for _ in range(count)]

    def _has_work(self) -> bool:
        return bool(self._lines) or self._reopening or self._closing

    def _has_no_time(self) -> bool:
        return self._closing or len(self._lines) >= _BATCH

    def _write(self, batch: list[str]) -> None:
        text = "".join(line + "\n" for line in batch)
        begin = 0
        if self._torn:
            text, begin = "\n" + text, 1
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        done = 0
        try:
            if self._fd is None:
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
            while done < len(data) and not self._over:
                count = _write_some(self._fd, data[done:])
                whole = bytes(data[max(begin, done) : done + count]).count(b"\n")
                done += count
                with self._wake:
                    self._in_hand = max(0, self._in_hand - whole)
        finally:
            # A full disk may take half a line: the next one must not go on
            # behind it.
            if done:
                self._torn = data[done - 1] != ord("\n")
            self._lose_in_hand()

    def _lose_in_hand(self) -> None:
        with self._wake:
            self._count_lost(self._in_hand)
            self._in_hand = 0

    def _failed(self, error: OSError) -> None:
        if error.errno not in self._errors_said:
            self._errors_said.add(error.errno)
            if self._on_error is not None:
                self._on_error(error)

    def _say_lost(self) -> None:
        with self._wake:
            unsaid, self._lost_unsaid = self._lost_unsaid, 0
        if unsaid and not self._over and self._on_lost is not None:
            self._on_lost(unsaid)

    def _count_lost(self, count: int) -> None:
        self._lost += count
        self._lost_unsaid += count


def _is_elsewhere(fd: int, path: str) -> bool:
    # Of a regular file: a pipe or a device is not rotated.
    try:
        ours = os.fstat(fd)
    except OSError:  # a file system that is gone: writing will say so
        return False
    if not stat.S_ISREG(ours.st_mode):
        return False
    try:
        return not os.path.samestat(ours, Path(path).stat())
    except OSError:
        return True


def _ends_torn(fd: int, path: str | None) -> bool:
    # Whether a regular file ends in half a line; no, if it may not be read.
    try:
        ours = os.fstat(fd)
        if not stat.S_ISREG(ours.st_mode) or not ours.st_size:
            return False
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        reader = os.open(path or f"/dev/fd/{fd}", flags)
        with os.fdopen(reader, "rb", buffering=0) as file:
            # By now another file may have the name.
            if not os.path.samestat(ours, os.fstat(reader)):
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False


def _write_some(fd: int, data: memoryview) -> int:
    # Returns how much it took; 0 if there was no room for a moment.
    try:
        return _write_now(fd, data)
    except BlockingIOError:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        poll.poll(_LOOK * 1000)
        return 0


def _write_now(fd: int, data: memoryview) -> int:
    # A pipe that was passed on to us may wait for room, and has to for those that
    # it is shared with; we would not know what it took while it waits.
    mode = os.fstat(fd).st_mode
    if _NOWAIT and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        try:
            return os.pwritev(fd, [data], -1, _NOWAIT)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    return os.write(fd, data)
