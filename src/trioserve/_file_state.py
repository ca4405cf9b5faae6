"""File state: whether a file was written, replaced or given other permissions."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

#: What of a file changes then; for one that is not there, why not.
FileState: TypeAlias = tuple[int, ...] | str


def state_of(file: Path) -> FileState:
    """The state of a file now; a link counts as what it leads to."""
    try:
        found = file.stat()
    except OSError as error:
        return str(error.strerror)
    numbers = found.st_dev, found.st_ino, found.st_size
    return *numbers, found.st_mtime_ns, found.st_ctime_ns
