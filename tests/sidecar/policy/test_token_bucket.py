"""The token bucket against what a rate limit means, and by hand."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.token_bucket import TokenBucket

# Powers of two and multiples of 1/64 s: floats hold them exactly, so the model and the bucket never differ by rounding.
gaps = st.lists(st.integers(min_value=0, max_value=640).map(lambda ticks: ticks / 64), max_size=60)
sizes = st.integers(min_value=1, max_value=12)
fills = st.integers(min_value=1, max_value=8)
intervals = st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0, 8.0])


def allowed_by_definition(taken: list[Fraction], now: Fraction, size: int, rate: Fraction) -> bool:
    """In no span of time may more be taken than the bucket holds, and what flows in meanwhile."""
    starts = [*taken, now]
    return all(1 + sum(start <= at for at in taken) <= size + rate * (now - start) for start in starts)


@given(gaps, sizes, fills, intervals)
def test_a_token_is_given_exactly_when_the_limit_allows_it(
    gaps: list[float], size: int, fill: int, interval: float
) -> None:
    bucket = TokenBucket(size, fill, interval, 0.0)
    taken: list[Fraction] = []
    now = 0.0
    for gap in gaps:
        now += gap
        may = allowed_by_definition(taken, Fraction(now), size, Fraction(fill) / Fraction(interval))
        assert bucket.take(now) is may
        if may:
            taken.append(Fraction(now))


@given(gaps, sizes, fills, intervals)
def test_who_waits_as_long_as_told_gets_a_token_and_no_earlier(
    gaps: list[float], size: int, fill: int, interval: float
) -> None:
    bucket = TokenBucket(size, fill, interval, 0.0)
    now = 0.0
    for gap in gaps:
        now += gap
        if bucket.take(now):
            continue
        wait = bucket.retry_after_s(now)
        assert wait > 0.0
        assert not bucket.take(now + wait * 0.99)
        now += wait * 1.01
        assert bucket.take(now)


def test_a_full_bucket_has_no_wait() -> None:
    assert TokenBucket(1, 1, 1.0, 0.0).retry_after_s(0.0) == 0.0


@pytest.mark.parametrize("idle_s", [1.0, 1e6])
def test_a_bucket_holds_no_more_than_its_size_however_long_nobody_comes(idle_s: float) -> None:
    bucket = TokenBucket(3, 1, 1.0, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    taken = [bucket.take(idle_s) for _ in range(5)]
    assert taken.count(True) == min(3, int(idle_s))


def test_the_rate_holds_over_an_hour() -> None:
    bucket = TokenBucket(10, 7, 0.5, 0.0)
    taken = sum(bucket.take(tick / 100) for tick in range(360_000))
    assert abs(taken - (10 + 14 * 3600)) <= 1
