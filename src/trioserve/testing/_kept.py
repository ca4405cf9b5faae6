"""Kept failures: tokens of cases that have failed, to be tried first the next time.

Each token is the name of an empty file in a folder. So processes that run at the same
time need no lock, and no file can be half written. A folder that can't be read or
written keeps nothing; no error is raised.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

#: A longer token is not kept: a file's name has at most 255 bytes.
_LONGEST: Final = 200

#: More tokens are not tried.
_MOST: Final = 8


class Kept:
    """The failures that are kept in a folder.

    Args:
      folder: the folder, which may not exist yet; with None, nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def tokens(self) -> list[str]:
        """At most eight tokens, in order."""
        names = list[str]()
        if self._folder is not None:
            with contextlib.suppress(OSError):
                names = sorted(file.name for file in self._folder.iterdir())
        return names[:_MOST]

    def add(self, token: str) -> None:
        """Keep a token."""
        if self._folder is not None and 0 < len(token) <= _LONGEST:
            with contextlib.suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._folder.joinpath(token).touch()

    def remove(self, token: str) -> None:
        """Forget a token, if it is kept."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.joinpath(token).unlink()
