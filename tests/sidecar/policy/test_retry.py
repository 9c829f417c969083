"""Conditions, back-off, what servers ask for, and budgets: by table, and against what they mean."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.retry import (
    CONDITIONS,
    NEVER,
    Backoff,
    Cause,
    Rules,
    most_retries,
    pushback,
    reset_after,
    told_to_wait,
)

NO_STATUS = -1


@pytest.mark.parametrize(
    ("condition", "causes"),
    [
        ("connect-failure", {Cause.CONNECT}),
        ("reset-before-request", {Cause.CONNECT}),
        ("refused-stream", {Cause.REFUSED}),
        ("reset", set(Cause)),
        ("5xx", set(Cause)),
        ("gateway-error", set(Cause)),
        ("unavailable", set()),
        ("retriable-headers", set()),
    ],
)
def test_a_condition_takes_these_failures(condition: str, causes: set[Cause]) -> None:
    assert Rules([condition]).causes == causes


@pytest.mark.parametrize(
    ("condition", "taken", "left"),
    [
        ("5xx", [500, 503, 599], [200, 404, 429]),
        ("gateway-error", [502, 503, 504], [500, 501, 505]),
        ("retriable-4xx", [409], [400, 404, 500]),
        ("reset", [], [503]),
    ],
)
def test_a_condition_takes_these_http_statuses(condition: str, taken: list[int], left: list[int]) -> None:
    rules = Rules([condition])
    assert [code for code in taken + left if rules.takes(code, NO_STATUS)] == taken


@pytest.mark.parametrize(
    ("condition", "status"),
    [("cancelled", 1), ("deadline-exceeded", 4), ("resource-exhausted", 8), ("internal", 13), ("unavailable", 14)],
)
def test_a_condition_takes_its_grpc_status_and_no_other(condition: str, status: int) -> None:
    rules = Rules([condition])
    assert [code for code in range(NO_STATUS, 17) if rules.takes(200, code)] == [status]


def test_statuses_of_the_policy_count_only_where_the_condition_names_them() -> None:
    assert Rules(["retriable-status-codes"], [418]).takes(418, NO_STATUS)
    assert not Rules(["reset"], [418]).takes(418, NO_STATUS)


@given(st.sets(st.sampled_from(CONDITIONS)), st.sets(st.integers(100, 599), max_size=3))
def test_several_conditions_take_what_each_of_them_takes(conditions: set[str], codes: set[int]) -> None:
    together = Rules(conditions, codes)
    alone = [Rules([condition], codes) for condition in conditions]
    assert together.causes == frozenset().union(*(rules.causes for rules in alone))
    for http_status in range(100, 600):
        assert together.takes(http_status, NO_STATUS) == any(rules.takes(http_status, NO_STATUS) for rules in alone)
    for status in range(17):
        assert together.takes(200, status) == any(rules.takes(200, status) for rules in alone)
    assert together.reads_answers == any(rules.reads_answers for rules in alone)


@given(st.floats(0.001, 10), st.floats(1, 100), st.integers(1, 30), st.integers(0, 2**32))
def test_the_nth_wait_is_at_most_the_first_doubled_n_times_and_never_above_the_longest(
    base: float, factor: float, count: int, seed: int
) -> None:
    backoff, chance = Backoff(base, base * factor), Random(seed)
    for number in range(count):
        bound = min(base * 2**number, base * factor)
        share = chance.random()
        assert backoff.draw(share) == pytest.approx(bound * share)


@given(st.floats(0, 1e4), st.floats(0, 1, exclude_max=True))
def test_a_server_that_names_a_time_is_never_asked_earlier(seconds: float, share: float) -> None:
    assert seconds <= told_to_wait(seconds, share) <= 1.5 * seconds


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [(b"0", 0.0), (b"250", 0.25), (b"-1", NEVER), (b"soon", NEVER), (b"", NEVER), (b"9" * 40, NEVER), (b"1.5", NEVER)],
)
def test_push_back(value: bytes, wait_s: float) -> None:
    assert pushback(value) == wait_s


@pytest.mark.parametrize(
    ("value", "is_time", "wait_s"),
    [
        (b"7", False, 7.0),
        (b"0", False, 0.0),
        (b"x", False, NEVER),
        (b"1007", True, 7.0),
        (b"1000", True, NEVER),
        (b"7", True, NEVER),
    ],
)
def test_a_rate_limits_header(value: bytes, is_time: bool, wait_s: float) -> None:
    assert reset_after(value, is_time, 1000.0) == wait_s


@pytest.mark.parametrize(
    ("active", "percent", "least", "most"),
    [(0, 20, 3, 3), (14, 20, 3, 3), (15, 20, 3, 3), (20, 20, 3, 4), (9, 0, 0, 0)],
)
def test_a_budget_is_a_share_of_what_runs_but_not_less_than_its_least(
    active: int, percent: float, least: int, most: int
) -> None:
    assert most_retries(active, percent, least) == most
