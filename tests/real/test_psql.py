"""PostgreSQL behind the proxy: rows in and out, and queries that take long."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from certificates import Authority
from real.tools import (
    PATIENCE,
    Process,
    Serve,
    Start,
    Trioserve,
    needs,
    on_free_port,
    program,
    random_bytes,
    sha256,
)

_ROWS = 100_000

#: Says that it runs, and then waits until another session creates the table `answer`.
_THINK = """
do $$ begin
    raise notice 'thinking';
    while not exists (select from pg_tables where tablename = 'answer') loop
        perform pg_sleep(0.01);
    end loop;
end $$
"""

pytestmark = [needs("initdb", "postgres", "psql", "setpriv"), pytest.mark.long]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """It has signed the server's certificate."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    return Authority(folder)


@pytest.fixture
def port(start: Start, authority: Authority) -> Iterator[int]:
    """The port of a PostgreSQL server for these tests, with TLS for those who ask."""
    # It refuses to run as root, and the user nobody can't reach `tmp_path`.
    with tempfile.TemporaryDirectory(prefix="trioserve-") as folder:
        command = ["env", f"--chdir={folder}"]
        cert = shutil.copy(authority.issue("localhost"), folder)
        Path(cert).chmod(0o600)
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            uid, gid = nobody.pw_uid, nobody.pw_gid
            os.chown(folder, uid, gid)
            os.chown(cert, uid, gid)
            command += ["setpriv", f"--reuid={uid}", f"--regid={gid}"]
            command += ["--clear-groups"]
        initdb = subprocess.run(
            [
                *(*command, program("initdb"), "--pgdata=data", "--no-sync"),
                *("--username=test", "--auth=trust"),
                *("--locale=C", "--encoding=UTF8"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert initdb.returncode == 0, initdb.stderr
        postgres, port = on_free_port(
            lambda port: start(
                *(*command, program("postgres"), "-D", "data", "-p", str(port)),
                *("-h", "127.0.0.1", "-k", folder, "-c", "fsync=off"),
                *("-c", "ssl=on", "-c", f"ssl_cert_file={cert}"),
                *("-c", f"ssl_key_file={cert}"),
            ),
            "ready to accept connections",
        )
        yield port
        # If killed, it would leave processes and shared memory behind.
        os.kill(postgres.pid, signal.SIGINT)
        assert postgres.wait() == 0


@pytest.fixture
def proxy(port: int, serve: Serve) -> Trioserve:
    return serve("proxy", f"127.0.0.1:{port}")


def test_rows_that_are_copied_in_come_out_the_same(proxy: Trioserve) -> None:
    digits = random_bytes(16 * _ROWS).hex()
    lines = (f"{n}\t{digits[32 * n : 32 * (n + 1)]}\n" for n in range(_ROWS))
    rows = "".join(lines).encode()
    assert _query(proxy.port, "create table t (n int, digits text)") == b""
    assert _query(proxy.port, "copy t from stdin", rows) == b""
    assert _query(proxy.port, "select count(*), sum(n) from t") == (
        f"{_ROWS}|{sum(range(_ROWS))}\n".encode()
    )
    copy = _query(proxy.port, "copy (select * from t order by n) to stdout")
    assert sha256(copy) == sha256(rows)
    reports = sorted(proxy.stop(), key=lambda report: int(report["id"]))
    assert [report["outcome"] for report in reports] == 4 * ["ok"]
    _, copied_in, _, copied_out = reports
    assert copied_in["bytes_received"] > len(rows) > copied_in["bytes_sent"]
    assert copied_out["bytes_sent"] > len(rows) > copied_out["bytes_received"]


def test_a_query_that_runs_when_the_proxy_drains_gets_its_answer(
    start: Start, proxy: Trioserve, port: int
) -> None:
    psql = _think(start, proxy)
    proxy.terminate()
    assert proxy.event("draining")["open"] == 1
    assert _query(port, "create table answer as select 42") == b""
    assert psql.wait() == 0
    assert psql.lines[-1] == "42"
    summary = proxy.event("drained")
    assert proxy.wait() == 0
    assert (summary["finished"], summary["cut"]) == (1, 0)
    (report,) = proxy.reports()
    assert (report["outcome"], report["draining"]) == ("ok", True)


def test_a_query_is_cancelled_over_a_connection_of_its_own(
    start: Start, proxy: Trioserve
) -> None:
    psql = _think(start, proxy)
    os.kill(psql.pid, signal.SIGINT)
    psql.until("canceling statement due to user request")
    assert psql.wait() == 1
    thinking, cancel = sorted(proxy.stop(), key=lambda report: int(report["id"]))
    assert (thinking["outcome"], cancel["outcome"]) == ("ok", "ok")
    # Length, code, process and secret, of four bytes each, and never an answer.
    assert (cancel["bytes_received"], cancel["bytes_sent"]) == (16, 0)


def test_tls_of_psql_passes_through(proxy: Trioserve, authority: Authority) -> None:
    """It verifies the chain and the name of the server, and not of the proxy."""
    tls = f"sslmode=verify-full sslrootcert={authority.path}"
    asked = "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()"
    assert _query(proxy.port, asked, tls=tls) == b"t|TLSv1.3\n"
    (report,) = proxy.stop()
    assert report["tls"] is None
    assert report["bytes_received"] > 500  # its ClientHello, among others


def test_psql_does_not_begin_with_tls(
    port: int, serve: Serve, authority: Authority
) -> None:
    """So a proxy that ends TLS can't, and says so."""
    cert = authority.issue("localhost")
    proxy = serve("proxy", f"127.0.0.1:{port}", "--tls-cert", cert)
    psql = subprocess.run(
        [*_psql(proxy.port, "sslmode=require"), "-c", "select 1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert psql.returncode == 2
    (report,) = proxy.stop()
    assert report["reason"] == "tls_failed"
    assert report["error"] == "it began with PostgreSQL's request for encryption"


def _think(start: Start, proxy: Trioserve) -> Process:
    # Start a query that can't be answered yet, and then reads `answer`.
    psql = start(*_psql(proxy.port), "-c", _THINK, "-c", "table answer")
    psql.until("thinking")
    return psql


def _query(
    port: int, query: str, data: bytes = b"", *, tls: str = "sslmode=disable"
) -> bytes:
    psql = subprocess.run(
        [*_psql(port, tls), "--quiet", "-c", query],
        input=data,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert psql.returncode == 0, psql.stderr
    return psql.stdout


def _psql(port: int, tls: str = "sslmode=disable") -> list[str]:
    server = f"host=localhost hostaddr=127.0.0.1 port={port} user=test dbname=postgres"
    options = f"{tls} gssencmode=disable client_encoding=UTF8"
    return [
        *(program("psql"), "--no-psqlrc", "--no-password", "--no-align"),
        *("--tuples-only", "--set=ON_ERROR_STOP=1", f"{server} {options}"),
    ]
