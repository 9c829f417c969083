"""Results in a row and intervals of active checks, against a model that keeps every result."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.checking import Checking, Health, Result

TIMING = Checking(
    timeout_s=1.0,
    interval_s=10.0,
    unhealthy_threshold=3,
    healthy_threshold=2,
    unhealthy_interval_s=20.0,
    unhealthy_edge_interval_s=3.0,
    healthy_edge_interval_s=4.0,
    no_traffic_interval_s=50.0,
    no_traffic_healthy_interval_s=60.0,
)
results = st.lists(st.sampled_from(Result), max_size=40)


def passing_by_definition(results: list[Result], unhealthy: int, healthy: int) -> bool:
    """Replay from the beginning: what the last results in a row against the state amount to."""
    is_passing = results[0] is Result.PASSED
    against: list[Result] = []
    for result in results[1:]:
        is_good = result is Result.PASSED
        if is_good == is_passing:
            against = []
            continue
        against.append(result)
        if result is Result.FAILED or len(against) >= (healthy if is_good else unhealthy):
            is_passing, against = is_good, []
    return is_passing


@given(results, st.integers(1, 4), st.integers(1, 4))
def test_health_is_what_the_results_in_a_row_say(results: list[Result], unhealthy: int, healthy: int) -> None:
    health = Health(replace(TIMING, unhealthy_threshold=unhealthy, healthy_threshold=healthy))
    assert not health.is_passing and not health.is_known
    for number, result in enumerate(results, 1):
        before = health.is_passing
        has_changed, _ = health.take(result, has_traffic=True)
        assert health.is_passing == passing_by_definition(results[:number], unhealthy, healthy)
        assert has_changed == (before != health.is_passing)


@pytest.mark.parametrize("first", list(Result))
def test_the_first_check_decides(first: Result) -> None:
    health = Health(TIMING)
    health.take(first, has_traffic=True)
    assert health.is_passing == (first is Result.PASSED)


def waits(*results: Result, has_traffic: bool = True) -> list[float]:
    health = Health(TIMING)
    return [health.take(result, has_traffic=has_traffic)[1] for result in results]


def test_the_next_check_comes_sooner_while_something_changes() -> None:
    good, bad = Result.PASSED, Result.UNREACHABLE
    assert waits(good, good, bad, bad, bad, bad, good, good, good) == [4.0, 10.0, 4.0, 4.0, 3.0, 20.0, 3.0, 4.0, 10.0]


def test_without_traffic_there_is_less_haste() -> None:
    assert waits(Result.PASSED, Result.FAILED, has_traffic=False) == [60.0, 50.0]
