from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from support import serving
from trioserve import (
    Connection,
    Layers,
    Limits,
    TlsOptions,
    by_server_name,
    echo,
    proxy,
)
from trioserve.app.output import _status
from trioserve.app.output._status import status_fields, status_text
from wire.hellos import hello, named


async def _wait(conn: Connection) -> None:
    while await conn.receive_some():
        pass


async def test_it_has_the_server_name(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(by_server_name({}, default=_wait)) as running:
        client = await running.connect()
        await client.send_all(hello(named()))
        await trio.sleep(1)
        text = "\n".join(status_text(running.server))
        (fields,) = status_fields(running.server)["connections"]
        assert fields["server_name"] == "git.example.org"
        assert (
            f"{client.socket.getsockname()[1]} for git.example.org: data, 1s, " in text
        )


async def test_it_has_the_end_of_each_certificate(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    now, ca = dt.datetime.now(dt.UTC).replace(tzinfo=None), trustme.CA()
    many = [f"{number}.example.org" for number in range(7)]
    paths = [str(tmp_path / name) for name in ("gone.pem", "many.pem")]
    cases = [(-1.5, []), (90.5, many)]
    for path, (days, here) in zip(paths, cases, strict=True):
        end = now + dt.timedelta(days=days)
        issued = ca.issue_cert(*here, common_name="x", not_after=end)
        issued.private_key_and_cert_chain_pem.write_to_path(path)
    async with serving(echo, layers=Layers(tls=TlsOptions(cert=paths))) as running:
        (tmp_path / "gone.pem").write_text("")
        running.server.reload_certificates()
        text = "\n".join(status_text(running.server))
        lines = re.sub("at .*? UTC", "at DATE", text).splitlines()
        gone, several = paths
        names = ", ".join([*many[:5], "2 others"])
        empty = f"{gone!r} has no certificate in it, in PEM"
        assert lines[1:4] == [
            "certificates:",
            f"  {gone} for no name: expired 1 day ago, at DATE; last error: {empty}",
            f"  {several} for {names}: expires in 90 days, at DATE",
        ]
        first, second = status_fields(running.server)["certificates"]
        assert (first["cert"], first["names"], first["error"]) == (gone, [], empty)
        assert (second["names"], second["error"]) == (many, None)
        assert second["days"] == pytest.approx(90.5, abs=0.1)
        assert re.fullmatch(r"[-\d]{10} [:\d]{8} UTC", second["expires"])


async def test_it_lists_connections_with_tokens_and_where_each_task_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        serving(_wait) as target,
        serving(proxy(target.address), limits=Limits(max_connections=2)) as front,
    ):
        client = await front.connect()
        await client.send_all(b"?")
        await trio.sleep(90)
        peer = f"127.0.0.1:{client.socket.getsockname()[1]}"
        lines = list(status_text(front.server))
        counters = "status: 1 open, 1 of 2 tokens, 1 accepted, 0 refused"
        assert lines[:3] == [
            f"{counters}, 1 B in, 0 B out, 0 reports lost",
            "tokens are held by (oldest first):",
            f"  conn-1 {peer} > {target.address}: data, 1m30s, 1 B in, 0 B out",
        ]
        tree = "\n".join(lines[lines.index("tasks:") :])
        standing = r"SocketTransport\.receive at trioserve/_socket_transport\.py:\d+"
        assert re.search(rf"\n  +conn-1 127\.0\.0\.1:\d+: {standing}\n", tree + "\n")
        assert "trioserve collector: Running.collect at tests/support.py:" in tree
        assert "TrioToken" not in tree

        fields = status_fields(front.server)
        assert json.loads(json.dumps(fields)) == fields
        assert fields["connections"] == [
            {
                "id": 1,
                "peer": peer,
                "direct_peer": None,
                "server_name": None,
                "target": target.address,
                "phase": "data",
                "age": 90.0,
                "bytes_received": 1,
                "bytes_sent": 0,
            }
        ]
        assert any(re.search(standing, task) for task in fields["tasks"])
        assert fields["limit"] == 2
        client.socket.close()


async def test_long_lists_are_cut_short(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(_status, "_MOST", 3)
    async with serving(_wait) as running:
        running.server._serving.accept_errors["EMFILE"] = 7
        for _ in range(12):
            await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        text = "\n".join(status_text(running.server))
        assert "\n  accept: 7 times EMFILE\n" in text
        assert re.findall(r"^  conn-(\d+)", text, re.MULTILINE) == ["1", "2", "3"]
        assert "\n  and 9 others\n" in text
        assert re.search(r"\n {4,}and \d+ others", text)
        assert len(status_fields(running.server)["connections"]) == 3
        for client in running.clients:
            client.socket.close()


async def test_tasks_are_listed_in_the_order_of_their_numbers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving(_wait) as running:
        for _ in range(11):
            await running.connect()
        await trio.testing.wait_all_tasks_blocked()
        text = "\n".join(status_text(running.server))
        tree = text[text.index("\ntasks:\n") :]
        numbers = re.findall(r"^ +conn-(\d+)", tree, re.MULTILINE)
        assert numbers == [str(number) for number in range(1, 12)]
        for client in running.clients:
            client.socket.close()


async def test_a_server_without_connections_lists_its_own_tasks() -> None:
    async with serving(_wait) as running:
        lines = list(status_text(running.server))
    assert lines[0].startswith("status: 0 open, 0 of 100 tokens")
    assert lines[1] == "tasks:"


async def test_a_task_that_has_ended_has_no_position() -> None:
    async def end() -> None:
        tasks.append(trio.lowlevel.current_task())

    tasks: list[trio.lowlevel.Task] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        nursery.start_soon(end)
    assert _status._position(tasks[0]) == "about to start or end"
