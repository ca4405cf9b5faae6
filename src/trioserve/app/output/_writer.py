"""Output that never blocks: a bounded queue and a thread for each destination.

Lines in, bytes on a file descriptor out. Nothing here knows what a line means, or
knows Trio: writing a line only appends it to a queue.
"""

from __future__ import annotations

import collections
import errno
import os
import threading
from collections.abc import Callable

from ._descriptors import ends_torn, is_rotated, open_to_append, write_some

#: Lines that are written together at most.
_BATCH = 512

#: Seconds between two writes while lines keep coming.
_PAUSE = 0.01

#: Seconds in which the thread ends when told to, unless a system call hangs.
_GRACE = 0.5


class LineWriter:
    """Writes lines to a file descriptor from its own thread.

    A slow reader, a missing reader, or a full disk costs lines, never time: a line
    for which the queue has no room, or which can't be written, is counted in
    :attr:`lost`; writing goes on with later lines.

    Each destination has its own thread, so that a log without a reader can't block
    the reports.

    If the file was renamed or removed, as by a rotation, a new one is created under
    its name. A path that can't be opened, like a named pipe without a reader, is
    tried again with every line. Half a line at the end of a file, left by a process
    that was killed or by a full disk, gets a newline before the next line.

    Args:
      fd: where to write; None to open ``path``.
      close_fd: whether to close the descriptor after the last line.
      path: of the file behind ``fd``, to be opened again if it is rotated; or None.
      capacity: how many lines may wait.
      on_lost: called in the writer's thread when lines can be written again, with
        the number of lines that were lost.
      on_error: called in the writer's thread with each *new* kind of error.
      on_reopened: called in the writer's thread after :meth:`reopen`; with the
        error if the old file stays in use, else with None.
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
        self._in_progress = 0  # lines of the batch that are not yet written whole
        self._reopening = False
        self._idle = False
        self._lost = 0
        self._lost_unreported = 0
        self._errors_reported: set[int | None] = set()
        self._torn = fd is not None and ends_torn(fd, path)
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Lines that were dropped or not written as a whole, so far."""
        return self._lost

    def write(self, line: str) -> bool:
        """Queue a line, without its newline. Never blocks; callable in any thread.

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
        """Have the thread reopen the file; return whether it has a path to open."""
        with self._wake:
            self._reopening = self._path is not None
            self._wake.notify()
        return self._path is not None

    def close(self, within: float) -> bool:
        """Write what is queued and stop, waiting ``within`` seconds at most.

        Returns whether that was enough. If not, lines that are not yet written
        whole count as lost, and are no longer written.
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
        # The thread itself counts the lines of its batch as lost, so that none is
        # written after that. If its write hangs, they are counted here.
        self._thread.join(_GRACE)
        self._lose_in_progress()
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
                self._report_lost()
        if self._close_fd and self._fd is not None:
            os.close(self._fd)

    def _follow(self) -> None:
        # Open the file that the path names now. If it can't be opened, keep the old
        # one.
        if self._path is None:
            return
        with self._wake:
            asked, self._reopening = self._reopening, False
        if self._fd is not None and not (asked or is_rotated(self._fd, self._path)):
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
            self._torn = ends_torn(made, self._path)
        if asked and self._on_reopened is not None:
            self._on_reopened(failed)
        elif failed is not None:
            self._failed(failed)

    def _take(self) -> list[str] | None:
        # The next lines; empty if there is only a file to reopen; None to end.
        with self._wake:
            # Waking a thread costs more than writing a line: under load, lines are
            # taken in batches. The first line after a pause is written at once.
            self._wake.wait_for(self._is_urgent, _PAUSE)
            self._idle = not self._lines
            self._wake.wait_for(self._has_work)
            self._idle = False
            count = min(len(self._lines), _BATCH)
            if not count and not self._reopening:
                self._over = True
                return None
            self._in_progress = count
            return [self._lines.popleft() for _ in range(count)]

    def _has_work(self) -> bool:
        return bool(self._lines) or self._reopening or self._closing

    def _is_urgent(self) -> bool:
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
                count = write_some(self._fd, data[done:])
                whole = bytes(data[max(begin, done) : done + count]).count(b"\n")
                done += count
                with self._wake:
                    self._in_progress = max(0, self._in_progress - whole)
        finally:
            # A full disk may take half a line: the next line must not continue it.
            if done:
                self._torn = data[done - 1] != ord("\n")
            self._lose_in_progress()

    def _lose_in_progress(self) -> None:
        with self._wake:
            self._count_lost(self._in_progress)
            self._in_progress = 0

    def _failed(self, error: OSError) -> None:
        if error.errno not in self._errors_reported:
            self._errors_reported.add(error.errno)
            if self._on_error is not None:
                self._on_error(error)

    def _report_lost(self) -> None:
        with self._wake:
            lost, self._lost_unreported = self._lost_unreported, 0
        if lost and not self._over and self._on_lost is not None:
            self._on_lost(lost)

    def _count_lost(self, count: int) -> None:
        self._lost += count
        self._lost_unreported += count
