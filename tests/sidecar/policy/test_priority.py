"""Shares of priority levels: the table of Envoy's documentation, and a slow model in exact fractions."""

from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.priority import Census, shares

FROM_THE_DOCUMENTATION = [
    # healthy percent of each of three levels of 100 hosts; percent of the calls that each gets
    ((100, 100, 100), (100, 0, 0)),
    ((72, 72, 100), (100, 0, 0)),
    ((71, 71, 100), (99, 1, 0)),
    ((50, 60, 100), (70, 30, 0)),
    ((25, 100, 100), (35, 65, 0)),
    ((25, 25, 100), (35, 35, 30)),
]


@pytest.mark.parametrize(("healthy", "expected"), FROM_THE_DOCUMENTATION)
def test_a_level_hands_over_what_it_cannot_take(healthy: tuple[int, ...], expected: tuple[int, ...]) -> None:
    found = shares([Census(100, percent) for percent in healthy])
    assert found.healthy == expected
    assert found.degraded == (0, 0, 0)
    assert not any(found.panic)


levels = st.lists(
    st.tuples(*[st.integers(min_value=0, max_value=12)] * 3).map(lambda counts: Census(sum(counts), *counts[:2])),
    min_size=1,
    max_size=5,
)


@given(levels, st.sampled_from([100, 140, 200]), st.sampled_from([0.0, 20.0, 50.0, 100.0]))
def test_the_shares_are_those_of_the_model(levels: list[Census], factor: int, threshold: float) -> None:
    """The model: percentages as fractions, handed out in three rounds: healthy, degraded, what rounding left."""
    found = shares(levels, overprovisioning=factor, panic_threshold=threshold)

    def health(good: int, hosts: int) -> int:
        return min(100, floor(Fraction(factor * good, hosts))) if hosts else 0

    healthy = [health(level.healthy, level.hosts) for level in levels]
    degraded = [health(level.degraded, level.hosts) for level in levels]
    total = min(100, sum(healthy) + sum(degraded))
    usable = [Fraction(100 * (each.healthy + each.degraded), each.hosts) if each.hosts else 0 for each in levels]
    panic = [total < 100 and percent < threshold for percent in usable]
    if not total and not threshold:
        expected = [100] + [0] * (2 * len(levels) - 1)
        panic = [False] * len(levels)
    elif all(panic):
        sizes = [level.hosts for level in levels]
        expected = [floor(Fraction(100 * size, sum(sizes))) if sum(sizes) else 0 for size in sizes]
        expected[next((place for place, size in enumerate(sizes) if size), 0)] += 100 - sum(expected)
        expected += [0] * len(levels)
    else:
        expected, left = [], 100
        for percent in healthy + degraded:
            expected.append(min(left, floor(Fraction(100 * percent, total))))
            left -= expected[-1]
        places = [place for place, percent in enumerate(healthy + degraded) if percent]
        expected[places[0]] += left
    assert [*found.healthy, *found.degraded] == expected
    assert list(found.panic) == panic


@given(levels)
def test_every_call_finds_a_level_and_each_gets_its_share(levels: list[Census]) -> None:
    found = shares(levels)
    drawn = [found.at(number) for number in range(100)]
    for level in range(len(levels)):
        assert drawn.count((level, False)) == found.healthy[level]
        assert drawn.count((level, True)) == found.degraded[level]


def test_weights_count_for_health_and_hosts_for_panic() -> None:
    found = shares([Census(4, 1), Census(1, 1)], weights=[Census(10, 9), Census(1, 1)])
    assert found.healthy == (100, 0)
    found = shares([Census(4, 1)], weights=[Census(10, 5)])
    assert found.panic == (True,)


def test_those_who_leave_count_when_all_levels_are_in_a_panic() -> None:
    found = shares([Census(1, 0), Census(1, 0)], everybody=[3, 1])
    assert found.healthy == (75, 25)
