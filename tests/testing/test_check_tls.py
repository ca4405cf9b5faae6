"""Checks of handlers behind TLS: laws are about plain bytes, faults about TLS."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from support import one_in
from testing import natural, protocols, zoo
from testing.natural import SHOUTS
from testing.zoo import Entry, Lines, Stream
from trioserve import (
    Connection,
    ConnectionReport,
    Reason,
    TlsFacts,
    _record,
    _serving,
)
from trioserve._lifecycle import Lifecycle
from trioserve.faults import parse_faults
from trioserve.testing import (
    Case,
    Event,
    HandlerFailure,
    MemoryNetwork,
    MemoryStream,
    Peer,
    Run,
    check_handler,
    run_conversation,
    sweep_cancellations,
)
from trioserve.testing._blame import Blame
from trioserve.testing._case import Setting
from trioserve.testing._certificates import SERVER_NAME, contexts
from trioserve.testing._checker import Checker, cuts_of, ends_of
from trioserve.testing._tls_client import OVERHEAD, Records, TlsClient
from trioserve.testing._trial import Trial, try_case
from trioserve.testing._variations import EFFORTS, Effort

HELLO = Peer().send(b"hello\n").expect(b"HELLO\n")


async def shout(stream: Stream) -> None:
    async for data in stream:
        await stream.send_all(data.upper())


def talk(handler: Any = shout, *peers: Peer, **options: Any) -> Run:
    return run_conversation(handler, *(peers or (SHOUTS,)), tls=True, **options)


@functools.cache
def handshake() -> tuple[int, int]:
    """The bytes that the client sends and receives in a handshake."""
    return talk().received[0][0].handshake


# -- the conversation


def test_peers_and_handlers_have_plain_bytes() -> None:
    facts = list[TlsFacts | None]()

    async def looks(conn: Connection) -> None:
        facts.append(conn.tls)
        await shout(conn)

    run = talk(looks)
    ((heard,),), (report,) = run.received, run.reports
    assert (heard.data, heard.tail, heard.sent) == (b"ONE\nTWO\n", "eof", 8)
    assert (report.bytes_received, report.bytes_sent) == (8, 8)
    assert report.reason is Reason.CLIENT_CLOSED
    assert report.tls is not None
    assert (report.tls.bytes_received, report.tls.bytes_sent) == heard.wire
    (seen,) = facts
    assert seen is not None
    assert (seen.version, seen.sni) == ("TLSv1.3", SERVER_NAME)
    assert (seen.bytes_received, seen.bytes_sent) == heard.handshake == handshake()


def test_the_timeline_has_what_is_plain() -> None:
    rows = [(row.who, row.what) for row in talk(shout, HELLO).timeline.rows]
    assert rows == [
        ("peer 1", "connects"),
        ("handler 1", "is accepted"),
        ("peer 1", "has shaken hands"),
        ("peer 1", "sends 6 bytes: b'hello\\n'"),
        ("handler 1", "receives 28 encrypted bytes"),
        ("handler 1", "sends 28 encrypted bytes"),
        ("peer 1", "receives 6 bytes: b'HELLO\\n'"),
        ("peer 1", "sends EOF"),
        ("handler 1", "receives 24 encrypted bytes"),
        ("handler 1", "returns"),
        ("handler 1", "sends 24 encrypted bytes"),
        ("peer 1", "receives EOF"),
        ("handler 1", "closes"),
        ("peer 1", "closes"),
    ]


def test_the_same_arguments_give_the_same_run_in_each_process() -> None:
    """Neither keys nor signatures, tickets or the time make a difference.

    Without TLS, the kit does not import trustme.
    """
    program = (
        "import sys\n"
        "from testing import test_check_tls as t\n"
        "t.run_conversation(t.shout, t.HELLO)\n"
        "assert 'trustme' not in sys.modules\n"
        "print(t.outcome_in_pieces())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONHASHSEED": "1"},
    )
    assert ran.stdout == f"{outcome_in_pieces()}\n"


def outcome_in_pieces() -> str:
    run = talk(shout, faults="slice=1..900", seed=3, copies=2)
    return f"{run.timeline}\n{run.received} {run.steps} {run.seconds}"


@pytest.mark.parametrize("steps", [(), (b"quit\n",)])
def test_either_end_may_close_first(steps: tuple[bytes, ...]) -> None:
    async def quits(stream: Stream) -> None:
        async for line in Lines(stream):
            await stream.send_all(line.upper() + b"\n")
            if line == b"quit":
                return

    peer = HELLO.send(b"quit\n").expect(b"QUIT\n").expect_eof() if steps else HELLO
    (report,) = talk(quits, peer).reports
    closed = Reason.SERVER_CLOSED if steps else Reason.CLIENT_CLOSED
    assert report.reason is closed


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (HELLO.half_close().expect_eof(), Reason.CLIENT_CLOSED),
        (HELLO.close(), Reason.CLIENT_CLOSED),
        (HELLO.reset(), Reason.CLIENT_RESET),
    ],
    ids=str,
)
def test_a_peer_may_end_in_each_way(peer: Peer, reason: Reason) -> None:
    assert talk(shout, peer).reports[0].reason is reason


def test_a_handler_that_aborts_is_seen_as_a_reset() -> None:
    async def aborts(conn: Connection) -> None:
        await conn.receive_some()
        conn.abort()

    talk(aborts, Peer().send(b"x").expect_reset())


# -- chunks


async def notes(stream: Stream) -> list[bytes]:
    return [bytes(data) async for data in stream]


def chunks(faults: str, data: bytes = b"abcdef") -> list[bytes]:
    """What a handler receives of a message."""
    got = list[bytes]()

    async def collects(stream: Stream) -> None:
        got.extend(await notes(stream))

    talk(collects, Peer().send(data), faults=faults)
    assert b"".join(got) == data
    return got


def test_a_cut_of_encrypted_bytes_cuts_a_message_at_each_byte() -> None:
    begin, _ = handshake()
    seen = [chunks(f"up:cut@{begin + at}") for at in range(20, 22 + 6 + 1)]
    whole = [b"abcdef"]
    parts = [[b"abcdef"[:at], b"abcdef"[at:]] for at in range(1, 6)]
    assert seen == [whole] * 3 + parts + [whole]


def test_slices_cut_messages_into_records_of_their_size() -> None:
    assert chunks("up:slice=1..1") == [b"a", b"b", b"c", b"d", b"e", b"f"]
    assert {*map(len, chunks("up:slice=1..3", bytes(100)))} == {1, 2, 3}
    assert len(chunks("", bytes(40_000))) <= 3


def test_slices_cut_handshakes_into_pieces_of_a_record() -> None:
    """With single bytes, a handshake takes tens of steps, not a thousand."""
    sliced = talk(shout, HELLO, faults="up:slice=1..1")
    assert talk(shout, HELLO).begun < sliced.begun < 100


def test_a_record_has_room_in_the_network() -> None:
    """So a flood in a narrow network is one of small pieces, as without TLS."""
    sizes = set[int]()

    async def measures(stream: Stream) -> None:
        sizes.update(map(len, await notes(stream)))

    for buffer in (10, 24, 64):
        talk(measures, Peer().send(bytes(84)), buffer=buffer)
    assert sizes == {1, 2, 42}


def test_a_record_ends_at_the_first_cut_within_it() -> None:
    records = Records(parse_faults("up:cut@30; up:cut@125; up:cut@140").up, "seed")
    sizes = [records.next(at, 100) for at in (0, 8, 30, 100, 118, 200)]
    assert sizes == [8, 95, 73, 3, 100, 100]


# -- faults of the encrypted bytes


#: Some of the places of a conversation, and all of them.
STEPS = [29, pytest.param(1, marks=pytest.mark.nightly)]


@pytest.mark.parametrize("step", STEPS)
def test_a_truncation_at_any_byte_is_no_eof_for_the_handler(step: int) -> None:
    peer = Peer().send(b"one\n").send(b"two\n")
    begin, whole = handshake()[0], handshake()[0] + 26 + 26 + 24
    for at in [*range(0, whole, step), begin, whole - 1, whole]:
        ends = list[str]()

        async def reads(stream: Stream, ends: list[str] = ends) -> None:
            try:
                await notes(stream)
                ends.append("eof")
            except trio.BrokenResourceError:
                ends.append("broken")
                raise

        run = talk(reads, peer, faults=f"up:close@{at}")
        if at < begin:
            reason = Reason.TLS_FAILED if at else Reason.CLIENT_CLOSED
            assert (ends, run.reports[0].reason) == ([], reason)
        else:
            assert ends == ["eof" if at == whole else "broken"]


@pytest.mark.parametrize(
    "peer",
    [
        Peer().send(b"one\n"),
        Peer().send(b"one\n").send(b"two\n"),
        Peer().send(bytes(9)),
    ],
    ids=str,
)
def test_a_check_ends_what_peers_send_after_each_number_of_plain_bytes(
    peer: Peer,
) -> None:
    heard = list[int]()

    async def counts(stream: Stream) -> None:
        heard.append(len(b"".join(await notes(stream))))

    places = ends_of(talk(counts, peer))
    (most,) = heard
    heard.clear()
    for at in places:
        talk(counts, peer, faults=f"up:eof@{at}")
    assert heard == [*range(most)]


def test_a_check_cuts_and_ends_messages_where_it_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    varied = dict[str, list[Case]]()

    def note(_: Checker, kind: str, cases: Iterable[Case]) -> int:
        varied[kind] = list(cases)
        return 0

    base, (begin, _) = talk(shout, HELLO), handshake()
    monkeypatch.setattr(Checker, "all_of", note)
    check_handler(shout, HELLO, tls=True)
    ups = [case.faults.up for case in varied["a broken network"]]
    eofs = [t.bytes for up in ups for t in up.terminations if t.kind == "eof"]
    assert [at for at in eofs if at is not None and at >= begin] == ends_of(base)
    cuts = [at for case in varied["chunks"] for at in case.faults.up.cuts]
    assert [at for at in cuts if at >= begin] == cuts_of(base)


@pytest.mark.parametrize(("explore", "some"), [("quick", 3), ("thorough", None)])
def test_how_much_of_a_handshake_is_tried(
    explore: Any, some: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No handler runs there, so a few places are enough; a thorough check tries all."""
    places = dict[str, int]()

    def note(_: Checker, kind: str, cases: Iterable[Case]) -> int:
        resets = [
            t.bytes
            for case in cases
            for t in case.faults.down.terminations
            if t.kind == "reset"
        ]
        places[kind] = sum(at is not None and at < begin for at in resets)
        return 0

    _, begin = handshake()
    monkeypatch.setattr(Checker, "all_of", note)
    check_handler(shout, HELLO, tls=True, explore=explore)
    assert places["a broken network"] == (begin if some is None else some)


@pytest.mark.long("most of a check")
def test_a_check_finds_what_only_an_eof_within_a_message_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = Effort(cuts=3, schedules=3, steps=3, offsets=6, handshake=3, cost=150)
    monkeypatch.setitem(cast(dict[str, Effort], EFFORTS), "quick", few)
    (entry,) = (e for e in zoo.MISTAKES if e.name == "unpacks_a_short_header")
    with pytest.raises(HandlerFailure, match="breaks law 'errors'") as failed:
        check_handler(entry.make(), *entry.peers, tls=True)
    assert "up:eof@" in str(failed.value.case.faults)


def test_a_check_cuts_messages_between_all_plain_bytes() -> None:
    data = b"abcdef"
    places = cuts_of(run_conversation(notes, Peer().send(data), tls=True))
    seen = [chunks(f"up:cut@{at}", data) for at in places]
    assert seen == [[data[:at], data[at:]] for at in range(1, 6)]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_handshake_may_be_cut_at_any_byte(way: str, step: int) -> None:
    plain = talk().received
    for at in range(1, handshake()[way == "down"] + 1, 4 * step):
        assert talk(faults=f"{way}:cut@{at}").received == plain


BREAKS = [
    (way, kind)
    for way in ("up", "down")
    for kind in ("reset", "stall", "vanish", "eof", "close")
]


@pytest.mark.parametrize(
    ("way", "kind", "step"),
    [*((*each, 29) for each in BREAKS), *one_in(10, [(*each, 1) for each in BREAKS])],
)
def test_a_handshake_that_breaks_anywhere_leaves_nothing(
    way: str, kind: str, step: int
) -> None:
    for at in range(0, handshake()[way == "down"], 7 * step):
        run = talk(faults=f"{way}:{kind}@{at}", rounds=2)
        assert len(run.reports) == 2
        assert [each.data for each in run.received[1]] == [b"ONE\nTWO\n"]


@pytest.mark.parametrize("what", ["cancel", "drain", "eof", "reset", "stall", "vanish"])
def test_a_disturbance_at_any_step_of_the_handshake(what: Any) -> None:
    for step in range(talk().begun + 1):
        run = talk(disturbance=what, at_step=step)
        assert len(run.reports) == 1


def test_a_fin_is_no_eof_for_the_handler() -> None:
    run = talk(disturbance="eof", at_step=20)
    assert run.reports[0].reason is Reason.CLIENT_RESET
    assert "bytes may be missing" in (run.reports[0].error or "")
    assert "peer 1      sends FIN without close_notify" in str(run.timeline)


@pytest.mark.parametrize(
    ("at", "end"),
    [
        (0, "broken"),
        (23, "broken"),
        (24, "EOF after b''"),
        (22 + 24, "EOF after b''"),
        (22 + 24 + 1, "EOF after b'o'"),
        (22 + 24 + 2, "EOF after b'on'"),
        (22 + 24 + 3, "EOF after b'one'"),
    ],
)
def test_eof_comes_anywhere_in_a_message(at: int, end: str) -> None:
    """A close_notify of 24 bytes is sent before the FIN, if there is room for it."""
    ends = list[str]()

    async def reads(stream: Stream) -> None:
        try:
            ends.append(f"EOF after {b''.join(await notes(stream))!r}")
        except trio.BrokenResourceError:
            ends.append("broken")
            raise

    talk(
        reads, Peer().send(b"one").send(b"two"), faults=f"up:eof@{handshake()[0] + at}"
    )
    assert ends == [end]


def test_a_fin_is_no_eof_for_the_peer() -> None:
    run = talk(faults=f"down:eof@{handshake()[1] + 26}")
    ((heard,),) = run.received
    assert (heard.data, heard.tail) == (b"ONE\n", "reset")
    assert "finds that TLS is broken: it ended without" in str(run.timeline)


@pytest.mark.long("a cancel at each step")
def test_a_sweep_is_one_of_encrypted_bytes() -> None:
    assert sweep_cancellations(shout, HELLO, tls=True) > talk().begun


async def fails_on_a_cut_word(stream: Stream) -> None:
    async for data in stream:
        assert data != b"W"
        await stream.send_all(data)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_script_is_shortened_to_the_message_that_is_cut(number: int) -> None:
    """A cut counts encrypted bytes, so it moves by those of the messages before it."""
    messages = [b"a", b"b", b"c"]
    messages[number] = b"Word"
    peer, begin = Peer(), handshake()[0]
    for message in messages:
        peer = peer.send(message).receive(len(message))
    setting = Setting(tls=True)

    def attempt(case: Case) -> Trial:
        run, seen = try_case(fails_on_a_cut_word, case, setting)
        return Trial(seen, run.steps)

    cut = begin + 23 * number + 22 + 1
    case = Case((peer,), faults=parse_faults(f"up:cut@{cut}"))
    seen = attempt(case).seen
    assert seen is not None
    shortest, _ = Blame(attempt, overhead=OVERHEAD).shortest(case, seen)
    assert [step.value for step in shortest.peers[0].steps] == [b"Word", 4]
    assert str(shortest.faults) == f"up:cut@{begin + 23}"


# -- laws


async def reads_on_while_it_sends(stream: Stream) -> None:
    """It receives all, whether its answer is taken or not."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, b"x" * 300)
        await notes(stream)


def test_the_law_of_memory_counts_plain_bytes() -> None:
    """Ten of them are a record of 32 bytes."""
    peer = Peer().pause_reading().send(b"x" * 200).half_close().resume_reading()
    peer = peer.expect(b"x" * 300)
    options: dict[str, Any] = {"faults": "up:slice=10..10", "buffer": 200}
    talk(reads_on_while_it_sends, peer, memory=200, **options)
    with pytest.raises(HandlerFailure, match="breaks law 'memory'"):
        talk(reads_on_while_it_sends, peer, memory=100, **options)


@pytest.mark.parametrize(
    ("lie", "how"),
    [
        ({"bytes_sent": 5}, "its peer has sent 6 bytes and received 6, but .* 6 and 5"),
        ({"bytes_received": 7}, "its peer has sent 6 bytes .* says 7 and 6"),
        ({"tls": None}, r"\d+ bytes were received .* but the report says"),
    ],
)
def test_a_report_is_compared_with_the_peer_and_the_network(
    lie: dict[str, Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = _record.report_of

    def lies(life: Lifecycle, others: int) -> ConnectionReport:
        report = honest(life, others)
        assert report.tls is not None
        more = report.tls.bytes_received + ("tls" in lie)
        facts = dataclasses.replace(report.tls, bytes_received=more)
        return dataclasses.replace(report, **{**lie, "tls": facts})

    monkeypatch.setattr(_serving, "report_of", lies)
    with pytest.raises(HandlerFailure, match=f"'record': {how}"):
        talk(shout, HELLO)


@pytest.mark.long("many drains of single bytes")
def test_half_a_message_that_a_drain_leaves_behind() -> None:
    """The idle scope ends while a part of a line is in the handler's buffer."""

    async def loses(conn: Connection) -> None:
        buffer = data = b""
        while True:
            with conn.idle():
                data = await conn.receive_some()
            if conn.draining.is_set() or not data:
                return
            buffer += data
            if buffer.endswith(b"\n"):
                await conn.send_all(buffer)
                buffer = b""

    peer, faults = Peer().send(b"one\n").expect(b"one\n"), "up:slice=1..1"
    plain = talk(loses, peer, faults=faults)
    with pytest.raises(HandlerFailure, match="after 1 bytes: the last 1 are lost"):
        for step in range(plain.begun, plain.steps):
            talk(loses, peer, faults=faults, disturbance="drain", at_step=step)


def test_a_handler_that_closes_without_room_for_it_leaves_no_task() -> None:

    async def closes(stream: Stream) -> None:
        with trio.move_on_after(1):
            await stream.send_all(b"x" * 1000)
        await stream.aclose()

    for step in range(8, 40, 4):
        talk(closes, HELLO, buffer=100, disturbance="stall", at_step=step)


def checked(entry: Entry) -> None:
    check_handler(entry.make(), *entry.peers, without=entry.without, tls=True)


OTHER_LAWS = {
    # Beside a send that is not quite over, a close sends no close_notify.
    "eof_closes_the_stream": "schedule",
    # With the steps of TLS, it happens in each order that is tried.
    "two_steps_within_one": "errors",
}


@pytest.mark.parametrize(
    "entry", one_in(6, [(e,) for e in natural.MISTAKES[::3]]), ids=str
)
def test_a_mistake_is_found_by_the_same_law(entry: Entry) -> None:
    with pytest.raises(HandlerFailure) as failed:
        checked(entry)
    assert failed.value.law == OTHER_LAWS.get(entry.name, entry.law)
    assert "tls=True" in failed.value.again


@pytest.mark.nightly("whole checks")
@pytest.mark.parametrize("entry", natural.CORRECT[::4], ids=str)
def test_a_correct_handler_is_not_accused(entry: Entry) -> None:
    checked(entry)


# -- what is printed


async def takes_each_chunk_for_a_line(stream: Stream) -> None:
    async for data in stream:
        await stream.send_all(b"%d\n" % len(data))


@pytest.mark.long("a whole check")
def test_the_case_that_is_printed_fails_alike() -> None:
    lines = Peer().send(b"one\n").expect(b"4\n")
    with pytest.raises(HandlerFailure) as failed:
        check_handler(takes_each_chunk_for_a_line, lines, tls=True)
    failure = failed.value
    assert failure.law == "chunking"
    names: dict[str, Any] = {"run_conversation": run_conversation, "Peer": Peer}
    names["takes_each_chunk_for_a_line"] = takes_each_chunk_for_a_line
    with pytest.raises(HandlerFailure) as again:
        eval(failure.again, names)
    assert again.value.how == failure.how
    with pytest.raises(HandlerFailure) as repeated:
        check_handler(
            takes_each_chunk_for_a_line, lines, tls=True, repeat=failure.repeat
        )
    assert str(repeated.value) == str(failure)
    with pytest.raises(ValueError, match="a token of this conversation"):
        check_handler(takes_each_chunk_for_a_line, lines, repeat=failure.repeat)


def test_tls_needs_trustme(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts.cache_clear()
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(
        ImportError, match=r"^tls=True needs trustme: pip install trustme$"
    ):
        talk()


def test_tls_is_true_or_false() -> None:
    with pytest.raises(TypeError, match=r"^tls must be True or False, not 1$"):
        run_conversation(shout, HELLO, tls=1)  # type: ignore[arg-type]


# -- clients that are code


async def says_hello(stream: trio.abc.HalfCloseableStream) -> None:
    await stream.send_all(b"hello\n")
    assert await stream.receive_some() == b"HELLO\n"


def test_a_client_that_is_code_has_a_stream_of_plain_bytes() -> None:
    run = talk_code(says_hello)
    ((heard,),), (report,) = run.received, run.reports
    assert (heard.data, heard.sent) == (b"HELLO\n", 6)
    assert report.reason is Reason.CLIENT_CLOSED


def talk_code(client: Any, handler: Any = shout, **options: Any) -> Run:
    return run_conversation(handler, client=client, tls=True, **options)


def test_real_protocol_code_talks_in_pieces() -> None:
    talk_code(
        protocols.http2_client,
        protocols.http2_server,
        faults="slice=1..2000",
        buffer=3000,
    )


@pytest.mark.nightly("a whole check")
def test_real_protocol_code_keeps_all_laws() -> None:
    check_handler(protocols.http_server, client=protocols.http_client, tls=True)


# -- the client's end


class Pair:
    """A TLS client, and the server's end of the stream below it."""

    def __init__(self) -> None:
        self.events = list[tuple[str, object]]()

    async def open(self, *, buffer: int = 16384) -> None:
        network = MemoryNetwork(buffer=buffer, on_event=self._note)
        listener = network.listen()
        self.below = await network.connect(listener)
        self.server: MemoryStream = await listener.accept()
        records = Records(parse_faults("").up, "")
        self.client = TlsClient(self.below, records, self._tell)

    async def begin(self) -> trio.SSLStream[MemoryStream]:
        """Shake hands, with Trio's own TLS at the other end."""
        server = trio.SSLStream(self.server, contexts().server, server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.do_handshake)
            nursery.start_soon(self.client.shake_hands)
        return server

    def _note(self, event: Event) -> None:
        if getattr(self, "client", None) and event.stream is self.below:
            self.client.note(event)

    def _tell(self, event: Event) -> None:
        self.events.append((event.kind, event.data))


@pytest.fixture
async def pair() -> Pair:
    made = Pair()
    await made.open()
    return made


async def test_it_talks_with_trios_own_tls(pair: Pair) -> None:
    server = await pair.begin()
    await pair.client.wait_send_all_might_not_block()
    await pair.client.send_all(b"hello")
    assert await server.receive_some() == b"hello"
    await server.send_all(b"HELLO")
    assert await pair.client.receive_some(2) == b"HE"
    assert await pair.client.receive_some() == b"LLO"
    await pair.client.aclose()
    await pair.client.aclose()
    assert await server.receive_some() == b""
    with pytest.raises(trio.ClosedResourceError, match="after EOF"):
        await pair.client.send_all(b"x")
    with pytest.raises(ValueError, match="max_bytes must be 1 or more"):
        await pair.client.receive_some(0)
    assert [kind for kind, _ in pair.events] == [
        "send", "receive", "receive", "send_eof",
    ]  # fmt: skip


async def test_a_server_that_does_not_speak_tls_breaks_it(pair: Pair) -> None:
    await pair.server.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(trio.BrokenResourceError, match="TLS is broken"):
        await pair.client.shake_hands()
    for call in (pair.client.receive_some, pair.client.send_eof):
        with pytest.raises(trio.BrokenResourceError, match="TLS is broken"):
            await call()
    await pair.client.aclose()
    assert [kind for kind, _ in pair.events] == ["receive_reset"]


async def test_a_connection_that_breaks_in_the_handshake_stays_broken(
    pair: Pair,
) -> None:
    pair.server.reset()
    with pytest.raises(trio.BrokenResourceError):
        await pair.client.shake_hands()
    with pytest.raises(trio.BrokenResourceError, match="broke in the handshake"):
        await pair.client.send_all(b"x")


async def test_a_fin_without_close_notify_breaks_it(pair: Pair) -> None:
    server = await pair.begin()
    await server.send_all(b"half of it")
    await pair.server.aclose()
    assert await pair.client.receive_some() == b"half of it"
    with pytest.raises(trio.BrokenResourceError, match="bytes may be missing"):
        await pair.client.receive_some()


async def test_a_send_that_is_cancelled_halfway_breaks_sending(pair: Pair) -> None:
    server = await pair.begin()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.client.send_all, bytes(40_000))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await pair.client.send_all(b"x")
            scope.cancel()
    with pytest.raises(trio.BrokenResourceError, match="cancelled halfway"):
        await pair.client.send_all(b"x")
    await server.send_all(b"still here")
    assert await pair.client.receive_some() == b"still here"
    await pair.client.aclose()
