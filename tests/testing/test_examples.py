"""The examples that have a handler and a conversation keep every law."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
import trio

from support import one_in
from test_docs import ROOT
from trioserve import Reason
from trioserve.testing import Law, Peer, check_handler, run_conversation

#: Laws that do not apply to an example, with the reason.
EXCEPTIONS: dict[str, dict[Law, str]] = {
    "chat": {"alone": "each client receives what the others send"}
}


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


@pytest.mark.parametrize(
    "name", one_in(2, [("keyvalue",), ("chat",), ("rpc",), ("upgrade",)])
)
def test_an_example_keeps_every_law(name: str) -> None:
    names = example(name)
    check_handler(names["handler"], *names["PEERS"], without=EXCEPTIONS.get(name))


def test_a_chat_client_that_does_not_read_is_aborted_and_blocks_nobody() -> None:
    chat = example("chat")
    talk = b"hello\n" * 1000
    quick = chat["HELLO"].send(talk).expect(talk).meet("all was said")
    slow = (
        chat["HELLO"]
        .pause_reading()
        .meet("all was said")
        .resume_reading()
        .expect_reset()
    )
    run = run_conversation(
        chat["handler"],
        quick,
        slow,
        buffer=64,
        raises=[trio.ClosedResourceError],  # an aborted handler gets this
    )
    assert run.seconds < 10
    reasons = {report.reason for report in run.reports}
    assert reasons == {Reason.CLIENT_CLOSED, Reason.ABORTED}


@pytest.mark.parametrize(
    ("name", "sent", "received"),
    [
        ("keyvalue", b"GET x\nPUT x\n", b"nothing\nSET key value, or GET key\n"),
        ("keyvalue", b"GET x\n" + b"x" * 2000, b"nothing\n"),
        ("rpc", b'\0\x0c["most",1,2]', b"\0\x012"),
        ("upgrade", b"RAW\nRAW\nRAW\n", b"OK\nRAW\nRAW\n"),
    ],
)
def test_an_example_answers(name: str, sent: bytes, received: bytes) -> None:
    peer = Peer().send(sent).half_close().expect(received).expect_eof()
    run_conversation(example(name)["handler"], peer)
