"""The port file: from it, a script reads which port the server listens on.

A path and ports in, a file out, which is put in place atomically. Nothing here
knows a server.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path


class PortFile:
    """A file with port numbers, a line each, until it is removed.

    It replaces a regular file, and refuses to replace anything else: a device, a
    named pipe or a link.

    Raises:
      OSError: it can't be written.
    """

    def __init__(self, path: str, ports: Iterable[int]) -> None:
        self._path = Path(path)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(self._path.lstat().st_mode):
                raise OSError(
                    errno.EEXIST, "it exists, and is not a regular file", path
                )
        text = "".join(f"{port}\n" for port in dict.fromkeys(ports))
        # Renamed into place, so that no reader sees half of it. Kept open, because
        # the inode number of a deleted file may be reused for another one.
        self._handle: int | None
        self._handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".port-")
        made = Path(name)
        try:
            os.write(self._handle, text.encode())
            made.chmod(0o644)
            made.replace(self._path)
        except BaseException:
            os.close(self._handle)
            made.unlink()
            raise

    def remove(self) -> None:
        """Remove the file, unless another has taken its place. Idempotent."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._handle), self._path.stat()):
                self._path.unlink()
        os.close(self._handle)
        self._handle = None
