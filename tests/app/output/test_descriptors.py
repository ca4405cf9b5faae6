from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from trioserve.app.output._descriptors import ends_torn, open_to_append


def test_a_file_that_cannot_be_read_does_not_count_as_torn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "lines"
    path.write_text("ha")
    fd = open_to_append(str(path))

    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        assert not ends_torn(fd, str(path))
    # Another file has the name now.
    path.rename(tmp_path / "old")
    path.write_text("whole\n")
    assert not ends_torn(fd, str(path))
    os.close(fd)
