from __future__ import annotations

import resource
import stat
from pathlib import Path

import pytest

from trioserve.app._port_file import PortFile


def test_it_has_the_ports_a_line_each_until_it_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "port"
    file = PortFile(str(path), [8080, 8080, 9090])
    assert path.read_text() == "8080\n9090\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_it_replaces_an_older_file_and_leaves_a_newer_one(tmp_path: Path) -> None:
    path = tmp_path / "port"
    path.write_text("1\n")
    first = PortFile(str(path), [2])
    second = PortFile(str(path), [3])
    first.remove()
    assert path.read_text() == "3\n"
    second.remove()
    assert not path.exists()


def test_nothing_is_left_if_it_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(FileExistsError):
        PortFile(str(folder), [1])
    with pytest.raises(FileNotFoundError):
        PortFile(str(tmp_path / "no" / "port"), [1])
    assert list(tmp_path.iterdir()) == [folder]


def test_on_a_full_disk_nothing_is_left(tmp_path: Path) -> None:
    """A limit of the file size stands in for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            PortFile(str(tmp_path / "port"), [1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
