"""Each limiter against what its limit means, as slow and plain as it can be said, and by hand."""

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.limiting.concurrency import Concurrency
from sidecar.policy.limiting.gcra import Gcra
from sidecar.policy.limiting.keyed import Keyed
from sidecar.policy.limiting.leaky_bucket import LeakyBucket
from sidecar.policy.limiting.limiter import REFUSED, Limiter
from sidecar.policy.limiting.sliding_window import SlidingLog, SlidingWindow
from sidecar.policy.limiting.token_bucket import TokenBucket

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


# -- all of them --------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[int, float, float], Limiter]] = {
    "token bucket": lambda requests, interval, now: TokenBucket(requests, requests, interval, now),
    "gcra": lambda requests, interval, now: Gcra(requests, interval, requests, now),
    "leaky bucket": lambda requests, interval, now: LeakyBucket(requests, interval, 0.0, now),
    "leaky bucket with a queue": lambda requests, interval, now: LeakyBucket(requests, interval, interval, now),
    "sliding log": lambda requests, interval, now: SlidingLog(requests, interval),
    "sliding window": lambda requests, interval, now: SlidingWindow(requests, interval, now),
}
TINY = 1e-6
requests = st.sampled_from([1, 2, 4, 8])
makers = st.sampled_from(sorted(MAKERS))


@given(makers, gaps, requests, intervals)
def test_who_waits_as_long_as_told_is_let_go_and_no_earlier(
    name: str, gaps: list[float], count: int, interval: float
) -> None:
    limiter = MAKERS[name](count, interval, 0.0)
    now = 0.0
    for gap in gaps:
        now += gap
        if limiter.admit(now) != REFUSED:
            continue
        wait = limiter.retry_after_s(now)
        assert wait > 0.0
        assert limiter.admit(now + wait * 0.99 - TINY) == REFUSED
        now += wait + TINY
        assert limiter.retry_after_s(now) == 0.0
        assert limiter.admit(now) != REFUSED


@given(makers, gaps, requests, intervals)
def test_as_many_go_at_once_as_are_said_to_remain(name: str, gaps: list[float], count: int, interval: float) -> None:
    limiter = MAKERS[name](count, interval, 0.0)
    now = 0.0
    for gap in gaps:
        now += gap
        said = limiter.remaining(now)
        let_go = 0
        while limiter.admit(now) != REFUSED:
            let_go += 1
        assert let_go == said
        assert limiter.remaining(now) == 0


@given(makers, gaps, requests, intervals)
def test_what_is_as_new_behaves_like_a_new_one(name: str, gaps: list[float], count: int, interval: float) -> None:
    limiter = MAKERS[name](count, interval, 0.0)
    now = 0.0
    for gap in gaps:
        now += gap
        if limiter.is_as_new(now):
            fresh = MAKERS[name](count, interval, now)
            assert limiter.remaining(now) == fresh.remaining(now)
            assert limiter.admit(now) == pytest.approx(fresh.admit(now))
            assert limiter.retry_after_s(now) == pytest.approx(fresh.retry_after_s(now))
        else:
            limiter.admit(now)
    assert limiter.is_as_new(now + 3 * interval)


@given(gaps, sizes, fills, intervals)
def test_gcra_says_what_a_token_bucket_says(gaps: list[float], burst: int, count: int, interval: float) -> None:
    bucket, gcra = TokenBucket(burst, count, interval, 0.0), Gcra(count, interval, burst, 0.0)
    now = 0.0
    for gap in gaps:
        now += gap
        if abs(bucket.retry_after_s(now)) < TINY or abs(gcra.retry_after_s(now)) < TINY:
            now += 2 * TINY  # at the very edge rounding decides
        assert gcra.admit(now) == bucket.admit(now)


@given(gaps, requests, intervals)
def test_the_log_lets_go_exactly_what_fits_into_every_span(gaps: list[float], count: int, interval: float) -> None:
    limiter = SlidingLog(count, interval)
    let_go: list[float] = []
    now = 0.0
    for gap in gaps:
        now += gap
        may = sum(at > now - interval for at in let_go) < count
        assert (limiter.admit(now) == 0.0) is may
        if may:
            let_go.append(now)


@given(gaps, requests, intervals)
def test_the_counting_window_never_lets_twice_as_many_go_in_a_span_and_as_many_in_a_window(
    gaps: list[float], count: int, interval: float
) -> None:
    limiter = SlidingWindow(count, interval, 0.0)
    let_go: list[float] = []
    now = 0.0
    for gap in gaps:
        now += gap
        if limiter.admit(now) == 0.0:
            let_go.append(now)
        assert sum(int(at / interval) == int(now / interval) for at in let_go) <= count
        assert sum(at > now - interval for at in let_go) < 2 * count


@given(gaps, requests, intervals, st.sampled_from([0.0, 0.5, 4.0]))
def test_the_queue_lets_calls_leave_evenly_spaced_and_keeps_none_too_long(
    gaps: list[float], count: int, interval: float, max_wait: float
) -> None:
    limiter = LeakyBucket(count, interval, max_wait, 0.0)
    leaves: list[float] = []
    now = 0.0
    for gap in gaps:
        now += gap
        wait = limiter.admit(now)
        expected = max(now, leaves[-1] + interval / count) if leaves else now
        if expected - now > max_wait:
            assert wait == REFUSED
        else:
            assert wait == pytest.approx(expected - now)
            leaves.append(now + wait)


def test_at_most_so_many_run_at_once() -> None:
    limiter = Concurrency(2)
    assert [limiter.admit(0.0) for _ in range(3)] == [0.0, 0.0, REFUSED]
    limiter.release()
    assert (limiter.remaining(0.0), limiter.admit(0.0), limiter.admit(0.0)) == (1, 0.0, REFUSED)


# -- keys ---------------------------------------------------------------------------------------------


def by_key(count: int, max_keys: int) -> Keyed:
    return Keyed(lambda now: TokenBucket(count, count, 1.0, now), max_keys)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from([0.0, 0.25, 1.0])), max_size=40))
def test_each_key_has_its_own_count(calls: list[tuple[bytes, float]]) -> None:
    keyed = by_key(2, 10)
    alone = {key: TokenBucket(2, 2, 1.0, 0.0) for key in (b"a", b"b", b"c")}
    now = 0.0
    for key, gap in calls:
        now += gap
        assert keyed.of(key, now).admit(now) == alone[key].admit(now)


def test_a_flood_of_keys_takes_no_memory_and_gives_nobody_a_fresh_start() -> None:
    keyed = by_key(1, 100)
    assert keyed.of(b"old", 0.0).admit(0.0) == 0.0
    let_go = sum(keyed.of(b"%d" % number, 0.0).admit(0.0) == 0.0 for number in range(10_000))
    assert len(keyed) == 100
    assert let_go == 99 + 1  # those that found room, and one for all the others
    assert keyed.overflows == 10_000 - 99
    assert keyed.of(b"old", 0.0).admit(0.0) == REFUSED


def test_keys_that_rest_make_room() -> None:
    keyed = by_key(1, 2)
    for number in range(10):
        now = float(number)
        assert keyed.of(b"%d" % number, now).admit(now) == 0.0
    assert (len(keyed), keyed.overflows) == (2, 0)
