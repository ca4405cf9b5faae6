"""How one side ends is how the other side sees it end: half-close, and reset."""

from __future__ import annotations

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from real.tools import (
    PATIENCE,
    Received,
    Serve,
    Target,
    all_of,
    is_silent,
    needs_linux,
    random_bytes,
    receive,
    reset,
    send,
    wait_until_taken,
)

_REQUEST = random_bytes(100_000, seed=1)
_REPLY = random_bytes(3_000_000, seed=2)


@pytest.mark.parametrize("first", ["client", "target"])
def test_after_a_half_close_by_either_side_the_other_direction_goes_on(
    serve: Serve, target: Target, threads: ThreadPoolExecutor, first: str
) -> None:
    proxy = serve("proxy", target.address)
    client, server = target.through(proxy)
    with client, server:
        early, late = (client, server) if first == "client" else (server, client)
        sending = threads.submit(send, early, _REQUEST)
        assert receive(late) == all_of(_REQUEST)
        sending.result(PATIENCE)
        # The other direction is open: a second later there is still no EOF.
        assert is_silent(early, 1.0)
        sending = threads.submit(send, late, _REPLY)
        assert receive(early) == all_of(_REPLY)
        sending.result(PATIENCE)
    (report,) = proxy.stop()
    sizes = [len(_REQUEST), len(_REPLY)]
    there, back = sizes if first == "client" else reversed(sizes)
    assert report["bytes_received"] == report["upstream_bytes_sent"] == there
    assert report["upstream_bytes_received"] == report["bytes_sent"] == back
    closed = {"client": "client_closed", "target": "server_closed"}
    assert report["reason"] == closed[first]


@needs_linux
@pytest.mark.parametrize("first", ["client", "target"])
def test_a_reset_arrives_as_a_reset_after_the_bytes_before_it(
    serve: Serve, target: Target, threads: ThreadPoolExecutor, first: str
) -> None:
    proxy = serve("proxy", target.address)
    sizes = [0, 1, *random.Random(1).choices(range(300_000), k=98)]
    for size in sizes:
        client, server = target.through(proxy)
        early, late = (client, server) if first == "client" else (server, client)
        with contextlib.closing(early), contextlib.closing(late):
            receiving = threads.submit(receive, late)
            early.sendall(_REPLY[:size])
            # A reset discards what is still in the sender's kernel.
            wait_until_taken(early)
            reset(early)
            received = receiving.result(PATIENCE)
            assert received.reset
            sent = all_of(_REPLY[:size])
            assert received == Received(sent.count, sent.sha256, received.error)
    reports = proxy.stop()
    reset_by = {"client": "client_reset", "target": "server_reset"}
    assert [report["reason"] for report in reports] == 100 * [reset_by[first]]
    sent_by = {"client": "bytes_received", "target": "upstream_bytes_received"}
    assert [report[sent_by[first]] for report in reports] == sizes
