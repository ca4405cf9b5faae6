"""OpenSSH behind the proxy: it checks its stream, and ends at one wrong byte.

An sshd for these tests lets in the user that runs them, with a key made for this.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from concurrent.futures import ThreadPoolExecutor
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
_FILE_SIZE = 20_000_000


def _may_log_in() -> bool:
    # Without PAM, sshd checks the user's shell and, if it may, /etc/shadow.
    try:
        user = pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    with contextlib.suppress(OSError):
        for line in Path("/etc/shadow").read_text().splitlines():
            if line.startswith(f"{user.pw_name}:!"):
                return False
    try:
        return subprocess.run([user.pw_shell, "-c", "exit 0"]).returncode == 0
    except OSError:
        return False


pytestmark = [
    pytest.mark.long,
    needs("ssh", "scp", "sshd", "ssh-keygen"),
    pytest.mark.skipif(
        not _may_log_in(), reason="sshd needs a user that has a shell and is not locked"
    ),
]


@pytest.fixture
def proxy(start: Start, serve: Serve, tmp_path: Path) -> Trioserve:
    for key in ("host", "user"):
        subprocess.run(
            [
                *(program("ssh-keygen"), "-q", "-t", "ed25519", "-N", ""),
                *("-f", str(tmp_path / key)),
            ],
            check=True,
            timeout=PATIENCE,
        )
    config = tmp_path / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1\n"
        f"HostKey {tmp_path}/host\n"
        f"AuthorizedKeysFile {tmp_path}/user.pub\n"
        f"AuthenticationMethods publickey\n"
        f"StrictModes no\n"  # everybody may write to /tmp
        f"UsePAM no\n"
        f"PidFile none\n"
        f"PermitUserRC no\n"
        f"SetEnv HOME={tmp_path}\n"  # what a shell reads at its start may print
        f"Subsystem sftp internal-sftp\n"
    )
    if os.getuid() == 0:
        # It needs this empty directory, which the system makes at boot.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    _, port = on_free_port(
        lambda port: start(
            program("sshd"), "-D", "-e", "-f", str(config), "-p", str(port)
        ),
        "Server listening on 127.0.0.1",
    )
    return serve("proxy", f"127.0.0.1:{port}")


@pytest.fixture
def options(proxy: Trioserve, tmp_path: Path) -> list[str]:
    """Options of ssh and scp: through the proxy, without the user's settings."""
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"test {(tmp_path / 'host.pub').read_text()}")
    settings = {
        "Port": proxy.port,
        "BatchMode": "yes",
        "LogLevel": "ERROR",
        "IdentityFile": tmp_path / "user",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "HostKeyAlias": "test",
        "UserKnownHostsFile": known_hosts,
        "GlobalKnownHostsFile": os.devnull,
        "StrictHostKeyChecking": "yes",
    }
    return ["-F", os.devnull, *(f"-o{name}={x}" for name, x in settings.items())]


def test_a_command_has_its_output_and_its_exit_status(
    proxy: Trioserve, options: list[str]
) -> None:
    for status in (0, 42):
        ended = _ssh(options, f"printf out; printf err >&2; exit {status}")
        assert (ended.stdout, ended.stderr) == (b"out", b"err")
        assert ended.returncode == status
    assert [report["outcome"] for report in proxy.stop()] == ["ok", "ok"]


def test_bytes_through_cat_come_back_unchanged(
    proxy: Trioserve, options: list[str]
) -> None:
    data = random_bytes(_SIZE)
    ended = _ssh(options, "cat", data)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout) == _SIZE
    assert sha256(ended.stdout) == sha256(data)
    (report,) = proxy.stop()
    assert report["outcome"] == "ok"
    # ssh adds something, but less than a tenth.
    assert _SIZE < report["bytes_received"] < 1.1 * _SIZE
    assert _SIZE < report["bytes_sent"] < 1.1 * _SIZE


def test_a_command_that_waits_for_eof_answers_after_it(
    proxy: Trioserve, options: list[str]
) -> None:
    data = random_bytes(_SIZE)
    ended = _ssh(options, "sha256sum", data)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [sha256(data).encode(), b"-"]
    assert [report["outcome"] for report in proxy.stop()] == ["ok"]


def test_a_session_that_is_open_when_the_proxy_drains_ends_well(
    proxy: Trioserve,
    options: list[str],
    threads: ThreadPoolExecutor,
    closing: contextlib.ExitStack,
) -> None:
    data = random_bytes(_SIZE)
    session = subprocess.Popen(
        [program("ssh"), *options, "127.0.0.1", "cat; exit 7"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    closing.enter_context(session)
    closing.callback(session.kill)
    assert session.stdin
    assert session.stdout
    session.stdin.write(b"hello\n")
    session.stdin.flush()
    line = threads.submit(session.stdout.readline)
    assert line.result(PATIENCE) == b"hello\n"

    proxy.terminate()
    assert proxy.event("draining")["open"] == 1
    output, _ = session.communicate(data, PATIENCE)
    assert sha256(output) == sha256(data)
    assert session.returncode == 7
    summary = proxy.event("drained")
    assert proxy.wait() == 0
    assert (summary["finished"], summary["cut"]) == (1, 0)
    (report,) = proxy.reports()
    assert (report["outcome"], report["draining"]) == ("ok", True)


def test_scp_copies_a_file_there_and_back(
    proxy: Trioserve, options: list[str], tmp_path: Path
) -> None:
    here, there, back = (tmp_path / name for name in ("here", "there", "back"))
    here.write_bytes(random_bytes(_FILE_SIZE))
    _scp(options, str(here), f"127.0.0.1:{there}")
    _scp(options, f"127.0.0.1:{there}", str(back))
    for copy in (there, back):
        assert copy.stat().st_size == _FILE_SIZE
        assert sha256(copy.read_bytes()) == sha256(here.read_bytes())
    reports = sorted(proxy.stop(), key=lambda report: int(report["id"]))
    assert [report["outcome"] for report in reports] == ["ok", "ok"]
    upload, download = reports
    assert upload["bytes_received"] > _FILE_SIZE > upload["bytes_sent"]
    assert download["bytes_sent"] > _FILE_SIZE > download["bytes_received"]


def _ssh(
    options: list[str], command: str, data: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program("ssh"), *options, "127.0.0.1", command],
        input=data,
        capture_output=True,
        timeout=PATIENCE,
    )


def _scp(options: list[str], source: str, destination: str) -> None:
    scp = subprocess.run(
        [program("scp"), "-q", *options, source, destination],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert scp.returncode == 0, scp.stderr
