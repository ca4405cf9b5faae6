"""git daemon behind the proxy: every object in a repository has its hash as name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from real.tools import (
    PATIENCE,
    Serve,
    Start,
    Trioserve,
    needs,
    on_free_port,
    program,
    random_bytes,
    sha256,
)

_SIZE = 5_000_000

pytestmark = [needs("git", "git-daemon"), pytest.mark.long]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the user's and the machine's settings of git."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "0")
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "Test")
        monkeypatch.setenv(f"{name}_EMAIL", "test@example.org")


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A bare repository with some commits."""
    work, bare = tmp_path / "work", tmp_path / "served" / "original.git"
    _git(tmp_path, "init", "--quiet", "--initial-branch=main", str(work))
    (work / "link").symlink_to("folder/big")
    (work / "folder").mkdir()
    for number in range(3):
        big = work / "folder" / "big"
        big.write_bytes(random_bytes(_SIZE, number))
        for name in range(100):
            (work / "folder" / f"{name}").write_text(f"{name}.{number}\n")
        _commit(work, f"Number {number}")
    _git(work, "tag", "--annotate", "--message", "One", "v1", "HEAD~1")
    _git(tmp_path, "clone", "--quiet", "--bare", str(work), str(bare))
    return bare


@pytest.fixture
def proxy(start: Start, serve: Serve, original: Path) -> Trioserve:
    _, port = on_free_port(
        lambda port: start(
            *(program("git-daemon"), "--listen=127.0.0.1", f"--port={port}"),
            *("--verbose", "--export-all", "--enable=receive-pack"),
            *(f"--base-path={original.parent}", str(original.parent)),
        ),
        "Ready to rumble",
    )
    return serve("proxy", f"127.0.0.1:{port}")


@pytest.fixture
def clone(proxy: Trioserve, tmp_path: Path) -> Path:
    path = tmp_path / "clone"
    url = f"git://{proxy.address}/original.git"
    _git(tmp_path, "clone", "--quiet", url, str(path))
    return path


def test_a_clone_is_the_original_again(
    proxy: Trioserve, original: Path, clone: Path
) -> None:
    _check_whole(clone)
    for name in ("HEAD", "HEAD^{tree}", "v1", "v1^{tree}"):
        assert _git(clone, "rev-parse", name) == _git(original, "rev-parse", name)
    assert _git(clone, "rev-list", "--count", "HEAD") == "3"
    assert _git(clone, "status", "--porcelain") == ""
    assert sha256((clone / "link").read_bytes()) == sha256(random_bytes(_SIZE, 2))
    (report,) = proxy.stop()
    assert report["outcome"] == "ok"
    assert report["bytes_sent"] > 3 * _SIZE > report["bytes_received"]


def test_what_is_pushed_is_there_and_can_be_fetched(
    proxy: Trioserve, original: Path, clone: Path, tmp_path: Path
) -> None:
    (clone / "new").write_bytes(random_bytes(_SIZE, 9))
    _commit(clone, "New")
    _git(clone, "push", "--quiet", "origin", "main")
    _check_whole(original)
    assert _git(original, "rev-parse", "main") == _git(clone, "rev-parse", "HEAD")
    # The repository that it was cloned from does not have it yet.
    work = tmp_path / "work"
    url = f"git://{proxy.address}/original.git"
    _git(work, "pull", "--quiet", "--ff-only", url, "main")
    assert sha256((work / "new").read_bytes()) == sha256(random_bytes(_SIZE, 9))
    reports = sorted(proxy.stop(), key=lambda report: int(report["id"]))
    assert [report["outcome"] for report in reports] == ["ok", "ok", "ok"]
    _, push, pull = reports
    assert push["bytes_received"] > _SIZE > push["bytes_sent"]
    assert pull["bytes_sent"] > _SIZE > pull["bytes_received"]


def _commit(work: Path, message: str) -> None:
    _git(work, "add", "--all")
    _git(work, "commit", "--quiet", "--message", message)


def _check_whole(repository: Path) -> None:
    # Every object has the hash that is its name, and none is missing.
    _git(repository, "fsck", "--full", "--strict", "--no-progress")


def _git(folder: Path, *words: str) -> str:
    git = subprocess.run(
        [program("git"), "-C", str(folder), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert git.returncode == 0, git.stderr
    return git.stdout.strip()
