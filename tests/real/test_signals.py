"""SIGTERM during transfers: each ends well, or with a reset."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from real.tools import (
    PATIENCE,
    Received,
    Serve,
    Target,
    all_of,
    needs_linux,
    random_bytes,
    receive,
    receive_exactly,
    send,
    send_forever,
    total,
)

pytestmark = pytest.mark.long

_SIZE = 4 << 20
_SMALL_BUFFER = 1 << 16


@needs_linux
def test_fifty_transfers_end_well_before_it_exits(
    serve: Serve,
    target: Target,
    threads: ThreadPoolExecutor,
    closing: contextlib.ExitStack,
) -> None:
    proxy = serve("proxy", target.address)
    files = [random_bytes(_SIZE, seed) for seed in range(50)]
    downloads: list[socket.socket] = []
    uploads: list[Future[None]] = []
    for file in files:
        client, server = (closing.enter_context(s) for s in target.through(proxy))
        # Too much for the buffers on the way: no transfer ends before it is read.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALL_BUFFER)
        uploads.append(threads.submit(send, server, file))
        assert receive_exactly(client, 1) == file[:1]
        downloads.append(client)
    proxy.terminate()
    assert proxy.event("draining")["open"] == 50
    assert not any(upload.done() for upload in uploads)

    for client in downloads:
        client.shutdown(socket.SHUT_WR)
    received = list(threads.map(receive, downloads, timeout=PATIENCE))
    assert received == [all_of(file[1:]) for file in files]
    for upload in uploads:
        upload.result(PATIENCE)
    summary = proxy.event("drained")
    assert proxy.wait() == 0
    assert (summary["finished"], summary["cut"], summary["refused"]) == (50, 0, 0)
    assert (summary["accepted"], summary["bytes_sent"]) == (50, 50 * _SIZE)
    reports = proxy.reports()
    assert total(reports, "bytes_sent") == 50 * _SIZE
    assert {report["outcome"] for report in reports} == {"ok"}


@needs_linux
def test_transfers_that_do_not_end_in_time_are_reset_on_both_sides(
    serve: Serve,
    target: Target,
    threads: ThreadPoolExecutor,
    closing: contextlib.ExitStack,
) -> None:
    proxy = serve("proxy", target.address, "--drain", "1s")
    senders: list[Future[ConnectionError]] = []
    receivers: list[Future[Received]] = []
    for number in range(20):
        client, server = (closing.enter_context(s) for s in target.through(proxy))
        source, sink = (server, client) if number % 2 else (client, server)
        senders.append(threads.submit(send_forever, source))
        assert receive_exactly(sink, 1)
        receivers.append(threads.submit(receive, sink))
    proxy.terminate()
    assert proxy.event("draining")["open"] == 20
    summary = proxy.event("drained")
    assert proxy.wait() == 3
    # After a FIN, the sender would get EPIPE.
    errors = [sender.result(PATIENCE) for sender in senders]
    assert [type(error) for error in errors] == 20 * [ConnectionResetError]
    assert all(receiver.result(PATIENCE).reset for receiver in receivers)
    assert (summary["finished"], summary["cut"], summary["refused"]) == (0, 20, 0)
    assert 1 <= summary["seconds"] < 25  # the default of --drain
    assert [report["reason"] for report in proxy.reports()] == 20 * ["cut"]
