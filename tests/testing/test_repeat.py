"""Tokens of failing cases, and how they are kept for the next time."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pytest_trioserve
from testing import natural, zoo
from testing.natural import SHOUTS
from trioserve import Connection
from trioserve.faults import parse_faults
from trioserve.testing import (
    Case,
    HandlerFailure,
    Peer,
    check_client,
    check_handler,
    run_conversation,
)
from trioserve.testing._case import Handler
from trioserve.testing._derived import AnyPeer
from trioserve.testing._explain import Explainer
from trioserve.testing._kept import Kept
from trioserve.testing._plays import without_closing_message
from trioserve.testing._token import Tokens

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parents[1]

PLAIN = Case((SHOUTS, Peer().send(b"x").receive(1)))
CROWD = tuple(Peer().send(b"%d" % number).receive(1) for number in range(3))
TOKENS = Tokens("shout", PLAIN, PLAIN.peers + CROWD)

FAULTS = ["", "up:cut@1", "up:slice=1..3", "down:reset@0; up:eof@9", "latency=0.1s"]


PARTS = slice(2, None), slice(1), slice(0)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Cases of all fields; their scripts are those of PLAIN and CROWD, or shorter."""
    shorter = without_closing_message(SHOUTS), *(Peer(SHOUTS.steps[at]) for at in PARTS)
    some = [*PLAIN.peers, *CROWD, *shorter]
    peers = st.lists(st.sampled_from(some), min_size=1, max_size=4)
    disturbance = draw(st.sampled_from([None, "cancel", "drain", "eof", "vanish"]))
    return Case(
        tuple(draw(peers)) if draw(st.booleans()) else PLAIN.peers,
        faults=parse_faults(draw(st.sampled_from(FAULTS))),
        server_faults=parse_faults(draw(st.sampled_from(FAULTS))),
        seed=draw(st.integers()),
        disturbance=disturbance,  # type: ignore[arg-type]
        at_step=None if disturbance is None else draw(st.integers(0, 5000)),
        play=draw(st.sampled_from([None, "pipelined", "writes_first"])),
        order=draw(st.sampled_from(["shuffled", "held_back", "priorities"])),
        copies=draw(st.integers(1, 3)),
        rounds=draw(st.integers(1, 11)),
        disturbed=draw(st.integers(1, 11)),
        buffer=draw(st.sampled_from([2, 16384])),
        read_delay=draw(st.sampled_from([0.0, 1.0, 0.1])),
        flood=draw(st.sampled_from([0, 131_072])),
    )


@settings(deadline=None)
@given(cases(), st.booleans())
def test_a_token_is_read_as_it_was_written(case: Case, compares: bool) -> None:
    token = TOKENS.of(case, compares=compares)
    assert TOKENS.case(token) == (case, compares)
    assert token.isascii()
    assert token.replace("-", "").replace("_", "").isalnum()


def test_a_token_is_short() -> None:
    assert len(TOKENS.of(PLAIN, compares=False)) <= 12
    case = Case(PLAIN.peers, disturbance="cancel", at_step=12, rounds=2)
    assert len(TOKENS.of(case, compares=False)) <= 42


def token_with(data: bytes) -> str:
    marks = TOKENS.of(PLAIN, compares=False)[:9]
    return marks + base64.urlsafe_b64encode(data).decode().rstrip("=")


@settings(deadline=None, max_examples=30)
@given(st.text() | st.binary().map(token_with))
def test_no_text_is_read_with_another_error(text: str) -> None:
    try:
        case, _ = TOKENS.case(text)
    except ValueError as error:
        assert str(error).startswith("repeat must be a ")
        assert "\n" not in str(error)
    else:
        assert isinstance(case, Case)


@settings(deadline=None, max_examples=30)
@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=2), inner),
    )
)
def test_no_tape_is_read_with_another_error(tape: object) -> None:
    token = token_with(json.dumps(tape).encode())
    try:
        TOKENS.case(token)
    except ValueError as error:
        assert str(error).startswith("repeat must be a whole token, not ")


# -- a check that repeats


async def shout(stream: Connection) -> None:
    """It takes each receive for one message."""
    async for data in stream:
        await stream.send_all(data.upper() if data.endswith(b"\n") else b"what?\n")


async def shout_well(stream: Connection) -> None:
    async for data in stream:
        await stream.send_all(data.upper())


def failure_of(handler: Handler, *peers: AnyPeer, **options: Any) -> HandlerFailure:
    with pytest.raises(HandlerFailure) as failed:
        check_handler(handler, *peers, **options)
    return failed.value


def test_a_failure_prints_a_token_that_runs_its_case_alone() -> None:
    failure = failure_of(shout, SHOUTS)
    said = f"As a test, or as check_handler(..., repeat={failure.repeat!r}):"
    assert said in str(failure).splitlines()
    again = failure_of(shout, SHOUTS, repeat=failure.repeat)
    assert (again.case, str(again)) == (failure.case, str(failure))


def test_a_token_of_what_is_compared_with_the_plain_conversation() -> None:
    peer = Peer().send(b"abc").receive(3)

    async def reverses(stream: Connection) -> None:
        async for data in stream:
            await stream.send_all(data[::-1])

    failure = failure_of(reverses, peer)
    assert "compare=True" in failure.again
    again = failure_of(reverses, peer, repeat=failure.repeat)
    assert str(again) == str(failure)


@pytest.mark.long("a whole check")
def test_a_token_of_scripts_that_are_made_from_a_number() -> None:
    (entry,) = [one for one in natural.MISTAKES if one.name == "one_user_for_all"]
    failure = zoo.found(entry)
    assert failure is not None
    with pytest.raises(HandlerFailure) as again:
        entry.check(repeat=failure.repeat)
    assert str(again.value) == str(failure)
    assert len(again.value.case.peers) > 1


@pytest.mark.long("a whole check")
def test_a_token_of_a_client_that_is_checked() -> None:
    async def client(stream: Connection) -> None:
        await stream.send_all(b"hello")
        if await stream.receive_some() != b"HELLO":
            raise ValueError

    with pytest.raises(HandlerFailure) as failed:
        check_client(client, shout_well)
    with pytest.raises(HandlerFailure) as again:
        check_client(client, shout_well, repeat=failed.value.repeat)
    assert str(again.value) == str(failed.value)


def test_a_case_that_passes_now_is_the_only_one_that_runs() -> None:
    token = failure_of(shout, SHOUTS).repeat
    mended = shout_well
    mended.__name__ = "shout"
    checked = check_handler(mended, SHOUTS, repeat=token)
    assert checked.runs == {"the case that is repeated": 1}


def test_a_case_that_is_run_by_itself_has_no_token() -> None:
    with pytest.raises(HandlerFailure) as failed:
        run_conversation(shout, SHOUTS, faults="up:cut@1")
    assert not failed.value.repeat
    assert "repeat=" not in str(failed.value)


def test_a_token_of_something_else_is_refused_in_a_line() -> None:
    token = failure_of(shout, SHOUTS).repeat
    for wrong, handler, peer, said in (
        (token, shout_of_others, SHOUTS, "a token of the handler shout_of_others, "),
        (token, shout, Peer().send(b"x"), "a token of this conversation, "),
        ("0" + token[1:], shout, SHOUTS, "a token of this version of trioserve, "),
        (token[:-3] + "!", shout, SHOUTS, "a whole token, "),
    ):
        with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as refused:
            check_handler(handler, peer, repeat=wrong)
        assert str(refused.value) == f"repeat must be {said}not {wrong!r}"
    with pytest.raises(TypeError, match="repeat must be a token, as a failure has it"):
        check_handler(shout, SHOUTS, repeat=5)  # type: ignore[arg-type]


async def shout_of_others(stream: Connection) -> None:
    await shout(stream)


# -- failures that are kept


def test_what_is_kept_is_in_order_and_not_too_much(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "a" / "b")
    assert kept.tokens() == []
    for number in reversed(range(10)):
        kept.add(f"token{number}")
        kept.add(f"token{number}")
    kept.add("")
    kept.add("x" * 300)
    assert kept.tokens() == [f"token{number}" for number in range(8)]
    for number in range(10):
        kept.remove(f"token{number}")
        kept.remove(f"token{number}")
    assert kept.tokens() == []


def test_a_folder_that_cannot_be_used_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for kept in (Kept(None), Kept(tmp_path / "file" / "folder")):
        kept.add("token")
        kept.remove("token")
        assert kept.tokens() == []


def test_a_kept_failure_is_tried_first_until_it_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, reports = Kept(tmp_path), list[str]()
    asked: Any = {"explore": None, "seed": None, "budget": None}
    checks = types.SimpleNamespace(kept=lambda: tmp_path, passed=reports, **asked)
    monkeypatch.setattr(pytest_trioserve, "running", lambda: checks)
    failure = failure_of(shout, SHOUTS)
    assert kept.tokens() == [failure.repeat]
    kept.add("what is this")
    ran = list[Case]()
    tried = Explainer.run

    def run(explainer: Explainer, case: Case) -> Any:
        ran.append(case)
        return tried(explainer, case)

    monkeypatch.setattr(Explainer, "run", run)
    assert str(failure_of(shout, SHOUTS)) == str(failure)
    # Three plain ones, the one that fails, and that once more for its timeline.
    assert ran[3:] == [failure.case, failure.case]
    assert kept.tokens() == [failure.repeat, "what is this"]
    mended = shout_well
    mended.__name__ = "shout"
    checked = check_handler(mended, SHOUTS, budget=0)
    assert checked.runs["what has failed before"] == 1
    assert kept.tokens() == ["what is this"]
    assert reports == [f"shout: {sum(checked.runs.values())} runs\n{checked}"]


# -- pytest

TEST = """
    from trioserve.testing import Peer, check_handler

    async def shout(stream):
        async for data in stream:
            await stream.send_all({answer})

    def test_shout():
        check_handler(shout, Peer().send(b"ab").expect(b"AB"))
"""
WRONG, RIGHT = "data.upper()[:2] if len(data) > 1 else b'?'", "data.upper()"


@pytest.fixture
def run_pytest(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """Run pytest here, where the plugin is not loaded by itself."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(answer: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(TEST.format(answer=answer))
        return pytester.runpytest_inprocess("-p", "pytest_trioserve", *options)

    return run


def test_pytest_shows_what_a_check_has_tried(
    run_pytest: Callable[..., pytest.RunResult],
) -> None:
    said = run_pytest(RIGHT, "-rA", "--trioserve-budget=0")
    said.assert_outcomes(passed=1)
    said.stdout.fnmatch_lines(
        ["*Captured trioserve.testing call*", "shout: * runs", "    2 runs: nothing"]
    )


def test_pytest_keeps_a_failure_until_the_test_passes(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    cache = pytester.path / ".pytest_cache" / "d" / "trioserve"
    run_pytest(WRONG).assert_outcomes(failed=1)
    (kept,) = cache.glob("*/*")
    run_pytest(WRONG, "-rA").assert_outcomes(failed=1)
    assert list(cache.glob("*/*")) == [kept]
    said = run_pytest(RIGHT, "-rA", "--trioserve-budget=0")
    said.stdout.fnmatch_lines(["    1 runs: what has failed before"])
    assert not list(cache.glob("*"))


@pytest.mark.long("two more processes for each of two runs of pytest")
def test_processes_of_pytest_keep_failures_of_the_same_test_at_once(
    run_pytest: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    """Each process of pytest-xdist runs each test here."""
    at_once = "--dist=each", "--tx=2*popen", "-p", "xdist"
    cache = pytester.path / ".pytest_cache" / "d" / "trioserve"
    run_pytest(WRONG, *at_once).assert_outcomes(failed=2)
    (kept,) = cache.glob("*/*")
    assert kept.read_bytes() == b""
    run_pytest(RIGHT, *at_once, "--trioserve-budget=0").assert_outcomes(passed=2)
    assert not list(cache.glob("*"))


def test_pytest_keeps_nothing_in_ci_and_without_a_cache(
    run_pytest: Callable[..., pytest.RunResult],
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_pytest(WRONG, "-p", "no:cacheprovider").assert_outcomes(failed=1)
    assert not (pytester.path / ".pytest_cache").exists()
    (pytester.path / "file").touch()
    no_folder = "-o", "cache_dir=file/cache", "-W", "ignore"
    run_pytest(WRONG, *no_folder).assert_outcomes(failed=1)
    monkeypatch.setenv("CI", "true")
    run_pytest(WRONG).assert_outcomes(failed=1)
    assert not list(pytester.path.glob(".pytest_cache/d/*/*"))


def test_options_of_pytest_are_those_of_each_check(
    run_pytest: Callable[..., pytest.RunResult],
) -> None:
    options = ["--trioserve-explore=thorough", "--trioserve-budget=0"]
    said = run_pytest(RIGHT, "-rA", "--trioserve-seed=3", *options)
    said.stdout.fnmatch_lines(["the budget ended within: the order of tasks"])
    assert "places" not in said.stdout.str()  # all would be tried
    said = run_pytest(RIGHT, "--trioserve-explore=slow")
    said.stderr.fnmatch_lines(["*--trioserve-explore: invalid choice: 'slow'*"])


@pytest.mark.usefixtures("traced")
def test_the_plugin_imports_nothing_of_trioserve() -> None:
    """It is loaded at the start of each pytest, whatever is tested."""
    code = "import sys, pytest_trioserve; print('trioserve' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout == "False\n"
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["pytest11"]
    assert points == {"pytest_trioserve": "pytest_trioserve"}
