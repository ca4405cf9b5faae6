"""Variations: each kind of case differs from the plain one in what it varies."""

from __future__ import annotations

import dataclasses
import random

import pytest

from trioserve import Connection, echo
from trioserve.testing import Case, Peer, run_conversation
from trioserve.testing._variations import EFFORTS, Variations, sample

PLAIN = Case((Peer().send(b"hello").receive(5),))
CROWD = dataclasses.replace(PLAIN, copies=3)
QUICK = EFFORTS["quick"]


def varied(case: Case) -> set[str]:
    """The fields in which a case differs from the plain one."""
    names = [field.name for field in dataclasses.fields(case)]
    return {n for n in names if getattr(case, n) != getattr(PLAIN, n)}


def test_each_kind_of_case_varies_only_its_own_fields() -> None:
    kinds = Variations(PLAIN, CROWD, rounds=2)
    assert varied(kinds.again()) == {"rounds"}
    for case in kinds.schedules(QUICK):
        assert "seed" in varied(case) <= {"seed", "order"}
    for case in kinds.chunkings([1, 4], QUICK):
        assert "faults" in varied(case) <= {"faults", "seed"}
    for case in kinds.crowd():
        assert "copies" in varied(case) <= {"copies", "faults", "seed"}
    for case in kinds.disturbed("cancel", [0, 3]):
        assert varied(case) == {"disturbance", "at_step", "rounds"}
    for case in kinds.disturbed("drain", [0, 3]):
        assert varied(case) == {"disturbance", "at_step"}
    for case in kinds.broken(up=[1], down=[2]):
        assert varied(case) == {"faults", "rounds", "buffer"}
    for case in kinds.plays(QUICK):
        assert "play" in varied(case) <= {"play", "seed", "buffer"}
    for case in kinds.many(30):
        assert varied(case) == {"disturbance", "at_step", "rounds", "disturbed"}
    for case in kinds.floods(run_conversation(echo, *PLAIN.peers)):
        assert varied(case) == {"flood", "buffer"}


async def answers_once(stream: Connection) -> None:
    await stream.send_all(await stream.receive_some())


def test_a_message_after_which_the_handler_closes_is_not_repeated() -> None:
    """No client sends it twice, so an error about the second one is no mistake."""
    plain = Case((Peer().send(b"hello").expect(b"hello").expect_eof(),))
    kinds = Variations(plain, plain, rounds=2)
    run = run_conversation(answers_once, *plain.peers)
    assert list(kinds.floods(run)) == []
    assert list(kinds.hostile(run, ["repeated"])) == []
    assert [case.play for case in kinds.hostile(run, ["endless"])] == ["endless"]


def test_bytes_of_a_long_conversation_are_cut_into_pieces() -> None:
    long = Variations(PLAIN, CROWD, rounds=1).with_grain_for(6400, 10, 6400)
    assert str(long.byte_by_byte().faults) == "up:slice=100"
    assert next(long.slow()).buffer == 200


def test_there_are_fewer_runs_if_they_are_expensive() -> None:
    assert QUICK.for_runs_of(10) == QUICK
    less = QUICK.for_runs_of(3 * QUICK.cost)
    assert (less.cuts, less.steps) == (QUICK.cuts // 3, QUICK.steps // 3)
    assert QUICK.for_runs_of(1e9).cuts == 3


@pytest.mark.parametrize("most", [2, 5, 9])
def test_a_sample_has_the_first_and_the_last_and_is_in_order(most: int) -> None:
    chosen = sample(range(9), most, random.Random(0))
    assert len(chosen) == most
    assert (chosen[0], chosen[-1]) == (0, 8)
    assert chosen == sorted(set(chosen))
