from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trioserve.app.reports._bounded_sums import BoundedSums


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 9))))
def test_sums_are_exact_or_lower_bounds_and_exact_tells_which(
    adds: list[tuple[str, int]],
) -> None:
    bounded, sums = BoundedSums(remembered=2), dict[str, list[int]]()
    for name, number in adds:
        bounded.add(name, 1, number)
        first, second = sums.get(name, (0, 0))
        sums[name] = [first + 1, second + number]
    found = {name: [*numbers] for name, *numbers in bounded.most(10)}
    assert len(found) <= 4
    assert bounded.exact is (len(sums) <= 4)
    if bounded.exact:
        assert found == sums
    for name, numbers in found.items():
        assert all(map(int.__le__, numbers, sums[name]))


def test_names_with_the_largest_sums_are_kept() -> None:
    bounded = BoundedSums(remembered=2)
    for number in range(1000):
        bounded.add("often", 1)
        bounded.add(f"once-{number}", 1)
    assert bounded.most(1) == [("often", 1000)]
    assert not bounded.exact
