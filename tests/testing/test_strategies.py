"""The strategies: the values that they draw, and what these shrink to."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

import trioserve.testing
from support import one_of_each
from trioserve import Connection
from trioserve.faults import Faults, parse_faults
from trioserve.testing import (
    Peer,
    chunkings,
    faults,
    run_conversation,
    schedules,
    scripts,
)

T = TypeVar("T")

MANY: Final = settings(max_examples=1000, database=None, derandomize=True)
SOME: Final = settings(max_examples=50, database=None, derandomize=True, deadline=None)

DIGITS: Final = b"0123456789"
LINES: Final = st.sampled_from([b"a\n", b"bc\n"])


def anything(_: object) -> bool:
    return True


def smallest(
    strategy: st.SearchStrategy[T], condition: Callable[[T], object] = anything
) -> T:
    return find(strategy, lambda value: bool(condition(value)), settings=MANY)


def beginnings(chunks: list[bytes]) -> set[bytes]:
    return {chunk[:1] for chunk in chunks}


# -- chunkings


@SOME
@given(data=st.data(), whole=st.binary(max_size=200))
def test_chunks_make_up_the_data_and_none_is_empty(
    data: st.DataObject, whole: bytes
) -> None:
    chunks = data.draw(chunkings(whole))
    assert b"".join(chunks) == whole
    assert all(chunks)


@pytest.mark.parametrize(("data", "chunks"), [(b"", []), (b"x", [b"x"])])
def test_data_of_one_byte_or_none_is_not_cut(data: bytes, chunks: list[bytes]) -> None:
    assert smallest(chunkings(data)) == chunks


def test_every_chunking_of_a_few_bytes_is_drawn() -> None:
    seen = set[tuple[bytes, ...]]()

    @settings(MANY, phases=[Phase.generate])
    @given(chunkings(b"abcd"))
    def draw(chunks: list[bytes]) -> None:
        seen.add(tuple(chunks))

    draw()
    assert len(seen) == 2**3


CHUNKINGS: Final[list[tuple[Callable[[list[bytes]], object], list[bytes]]]] = [
    (anything, [DIGITS]),
    (lambda c: len(c) > 2, [b"0", b"1", b"23456789"]),
    (lambda c: len(c) == 10, [DIGITS[n : n + 1] for n in range(10)]),
    (lambda c: b"7" in beginnings(c), [b"0123456", b"789"]),
    (lambda c: {b"3", b"7"} <= beginnings(c), [b"012", b"3456", b"789"]),
    (lambda c: b"45" in c, [b"0123", b"45", b"6789"]),
    (lambda c: len(c[0]) < 6, [b"0", b"123456789"]),
]


@pytest.mark.parametrize(("condition", "chunks"), one_of_each(CHUNKINGS))
def test_a_chunking_shrinks_to_few_cuts_and_then_to_early_ones(
    condition: Callable[[list[bytes]], object], chunks: list[bytes]
) -> None:
    assert smallest(chunkings(DIGITS), condition) == chunks


def test_a_late_cut_is_found_and_is_the_only_one() -> None:
    def is_late(chunks: list[bytes]) -> bool:
        return any(at > 900 for at in itertools.accumulate(map(len, chunks[:-1])))

    assert [len(chunk) for chunk in smallest(chunkings(bytes(1000)), is_late)] == [
        901,
        99,
    ]


# -- scripts


SCRIPTS: Final[list[tuple[dict[str, Any], Callable[[Peer], object], Peer]]] = [
    ({}, anything, Peer().half_close().receive_until_eof()),
    ({}, lambda p: p.leaves, Peer().close()),
    ({"ends": ["reset"]}, anything, Peer().reset()),
    (
        {},
        lambda p: len(p.sends) > 3,
        Peer().send(b"a\n").send(b"a\n").half_close().receive_until_eof(),
    ),
    (
        {"reply": bytes.upper},
        lambda p: p.sends,
        Peer().send(b"a\n").half_close().expect(b"A\n").expect_eof(),
    ),
    ({"reply": bytes.upper}, anything, Peer().half_close().expect_eof()),
    (
        {"reply": bytes.upper},
        lambda p: ".expect(b'A\\n').send" in repr(p),
        Peer()
        .send(b"a\n").expect(b"A\n").send(b"a\n")
        .half_close().expect(b"A\n").expect_eof(),
    ),
    (
        {"most": 3},
        lambda p: ".resume_reading().send" in repr(p),
        Peer().pause_reading().resume_reading().send(b"a\n").half_close().receive_until_eof(),
    ),
    (
        {},
        lambda p: ".half_close().resume_reading" in repr(p),
        Peer().pause_reading().half_close().resume_reading().receive_until_eof(),
    ),
    (
        {},
        lambda p: ".wait" in repr(p),
        Peer().wait(0.1).half_close().receive_until_eof(),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "condition", "script"), one_of_each(SCRIPTS, by=0))
def test_a_script_shrinks_to_the_steps_that_matter(
    options: dict[str, Any], condition: Callable[[Peer], object], script: Peer
) -> None:
    assert smallest(scripts(LINES, **options), condition) == script


@SOME
@given(scripts(LINES))
def test_a_script_prints_as_the_python_that_makes_it(script: Peer) -> None:
    assert eval(repr(script)) == script


async def shout(stream: Connection) -> None:
    async for data in stream:
        await stream.send_all(data.upper())


@settings(SOME, suppress_health_check=[HealthCheck.too_slow])
@given(script=scripts(LINES, reply=bytes.upper), seed=schedules())
def test_a_correct_handler_passes_every_script(script: Peer, seed: int) -> None:
    run_conversation(shout, script, seed=seed)


# -- faults


@SOME
@given(faults())
def test_faults_can_be_written_in_the_grammar(drawn: Faults) -> None:
    assert parse_faults(str(drawn)) == drawn


FAULTS: Final[list[tuple[dict[str, Any], Callable[[Faults], object], str]]] = [
    ({}, anything, ""),
    ({}, lambda f: f.refuse, "refuse"),
    ({}, lambda f: f.up.cuts, "up:cut@1"),
    ({}, lambda f: f.down.slice, "down:slice=1"),
    ({}, lambda f: f.up.bandwidth, "up:bandwidth=10/s"),
    ({}, lambda f: f.up.latency, "up:latency=100ms"),
    ({}, lambda f: f.up.slow_close, "up:slow_close=100ms"),
    ({}, lambda f: "reset" in str(f), "up:reset@0"),
    ({}, lambda f: "stall@1s" in str(f), "up:stall@1s"),
    ({"kinds": ["eof", "vanish"]}, bool, "up:eof@0"),
    ({"kinds": []}, anything, ""),
    ({"most_bytes": 1}, lambda f: f.up.cuts, "up:cut@1"),
]


@pytest.mark.parametrize(("options", "condition", "text"), one_of_each(FAULTS, by=0))
def test_faults_shrink_to_one_item(
    options: dict[str, Any], condition: Callable[[Faults], object], text: str
) -> None:
    assert str(smallest(faults(**options), condition)) == text


@SOME
@given(faults(kinds=["cut", "slice", "reset"], most_bytes=4))
def test_kinds_and_most_bytes_bound_the_faults(drawn: Faults) -> None:
    for direction in (drawn.up, drawn.down):
        assert not direction.latency
        assert not direction.bandwidth
        assert all(cut < 4 for cut in direction.cuts)
        assert direction.slice is None or direction.slice[1] <= 4
        assert all(end.kind == "reset" for end in direction.terminations)
        assert all((end.bytes or 0) <= 4 for end in direction.terminations)
    assert not drawn.refuse


def test_an_unknown_kind_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match=r"kinds must be some of .*, not 'lag'"):
        faults(kinds=["lag"])  # type: ignore[list-item]


# -- how they are printed


def test_a_failure_prints_values_as_python() -> None:
    @settings(MANY, phases=[Phase.generate, Phase.shrink])
    @given(drawn=faults(), script=scripts(LINES), chunks=chunkings(b"hello"))
    def fails(drawn: Faults, script: Peer, chunks: list[bytes]) -> None:
        assert not (drawn.refuse and script.leaves and len(chunks) > 1)

    with pytest.raises(AssertionError) as caught:
        fails()
    told = "\n".join(caught.value.__notes__)
    assert "drawn=parse_faults('refuse')," in told
    assert "script=Peer().close()," in told
    assert "chunks=[b'h', b'ello']," in told


# -- Hypothesis is imported when it is needed

WITHOUT = """
import sys
sys.modules["hypothesis"] = None
import trioserve.testing
{}
"""


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )


def test_importing_the_test_kit_does_not_import_hypothesis() -> None:
    program = "import sys, trioserve.testing; print('hypothesis' in sys.modules)"
    assert python(program).stdout == "False\n"


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", one_of_each([("ServeMachine",), ("chunkings",)]))
def test_without_hypothesis_it_says_what_to_install(name: str) -> None:
    ran = python(WITHOUT.format(f"from trioserve.testing import {name}"))
    assert ran.stderr.splitlines()[-1] == (
        f"ImportError: trioserve.testing.{name} needs Hypothesis:"
        ' pip install "trioserve[testing]"'
    )
    ran = python(WITHOUT.format("trioserve.testing.Driver().close(); print('fine')"))
    assert ran.stdout == "fine\n"


def test_every_public_name_exists_and_no_other() -> None:
    assert all(getattr(trioserve.testing, name) for name in trioserve.testing.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = trioserve.testing.nonsense


def test_another_missing_module_is_not_blamed_on_hypothesis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "trioserve.testing._strategies", None)
    with pytest.raises(ModuleNotFoundError, match="_strategies"):
        _ = trioserve.testing.__getattr__("chunkings")
