"""Admission control against all calls kept; adaptive concurrency against a server whose capacity is known."""

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.admission import SLICE_S, Admission
from sidecar.policy.gradient import AdaptiveConcurrency, Gradient

calls = st.lists(st.tuples(st.integers(0, 128).map(lambda ticks: ticks / 64), st.booleans()), max_size=80)


@given(calls, st.sampled_from([2.0, 5.0]), st.sampled_from([0.5, 0.95, 1.0]), st.sampled_from([1.0, 2.0]))
def test_the_chance_of_a_refusal_is_the_formula_over_all_calls_of_the_window(
    calls: list[tuple[float, bool]], window: float, threshold: float, aggression: float
) -> None:
    admission = Admission(window, threshold, aggression, 0, 0.8)
    slices: list[tuple[float, list[bool]]] = []
    now = 0.0
    for gap, is_success in calls:
        now += gap
        admission.record(is_success, now)
        slices = [item for item in slices if now - item[0] < window]
        if not slices or now - slices[-1][0] >= SLICE_S:
            slices.append((now, []))
        slices[-1][1].append(is_success)
        kept = [each for _, answers in slices for each in answers]
        share = max(0.0, (len(kept) - sum(kept) / threshold) / (len(kept) + 1))
        assert admission.chance(now) == pytest.approx(min(share ** (1 / aggression), 0.8))


def test_nothing_is_refused_while_nothing_fails_and_after_all_is_forgotten() -> None:
    admission = Admission(10.0, 0.95, 1.0, 0, 0.8)
    for _ in range(100):
        admission.record(True, 0.0)
    assert admission.chance(0.0) == 0.0
    for _ in range(1000):
        admission.record(False, 1.0)
    assert admission.chance(1.0) == 0.8
    assert admission.chance(11.0) == 0.0


def test_with_few_calls_a_second_nothing_is_refused() -> None:
    admission = Admission(10.0, 0.95, 1.0, 5, 0.8)
    for second in range(8):
        admission.record(False, float(second))
    assert admission.chance(8.0) == 0.0
    for _ in range(40):
        admission.record(False, 8.0)
    assert admission.chance(8.0) > 0.5


class Server:
    """Serves `capacity` calls at once, each for `service_s`; the rest queue."""

    def __init__(self, capacity: int, service_s: float) -> None:
        self.free_at = [0.0] * capacity
        self.service_s = service_s

    def end_of(self, now: float) -> float:
        free = heappop(self.free_at)
        end = max(now, free) + self.service_s
        heappush(self.free_at, end)
        return end


def limits_under_load(gradient: Gradient, server: Server, seconds: float, callers: int) -> list[int]:
    """The limit after every update, while as many callers as may be keep calling."""
    running: list[tuple[float, float]] = []
    limits: list[int] = []
    now = 0.0
    while now < seconds:
        while gradient.running < callers and gradient.enter():
            heappush(running, (server.end_of(now), now))
        at = running[0][0] if running else gradient.next_tick
        if gradient.next_tick and gradient.next_tick <= at:
            now = max(now, gradient.next_tick)
            gradient.tick(now)
            limits.append(gradient.limit)
            continue
        now, started = heappop(running)
        gradient.leave(started, now)
    return limits


ADAPTIVE = AdaptiveConcurrency(0.1, min_rtt_interval_s=1000.0, min_rtt_calls=10)


def test_the_limit_grows_while_the_server_is_not_full() -> None:
    limits = limits_under_load(Gradient(ADAPTIVE, Random(1), 0.0), Server(500, 0.01), 3.0, callers=500)
    assert limits[-1] >= 400


@pytest.mark.parametrize("capacity", [10, 40])
def test_the_limit_stays_near_what_the_server_can_do(capacity: int) -> None:
    limits = limits_under_load(Gradient(ADAPTIVE, Random(1), 0.0), Server(capacity, 0.01), 8.0, callers=1000)
    settled = limits[len(limits) // 2 :]
    assert capacity * 0.7 <= sum(settled) / len(settled) <= capacity * 2.5


def test_measuring_takes_the_limit_down_and_gives_it_back() -> None:
    config = AdaptiveConcurrency(0.1, min_rtt_interval_s=1.0, min_rtt_calls=10, min_rtt_jitter=0.0)
    gradient = Gradient(config, Random(1), 0.0)
    assert gradient.is_measuring and gradient.limit == 3
    limits = limits_under_load(gradient, Server(100, 0.01), 3.0, callers=100)
    assert max(limits) > 20 and limits.count(3) >= 2


def test_what_ran_before_a_measurement_is_no_part_of_it() -> None:
    config = AdaptiveConcurrency(0.1, min_rtt_interval_s=1.0, min_rtt_calls=1, min_rtt_jitter=0.0)
    gradient = Gradient(config, Random(1), 0.0)
    gradient.enter()
    gradient.leave(0.0, 0.01)
    gradient.enter()
    gradient.tick(1.01)
    assert gradient.is_measuring
    gradient.leave(0.5, 1.5)
    assert gradient.is_measuring and gradient.min_rtt_s == pytest.approx(0.01)


@given(st.integers(3, 1000), st.floats(0.0001, 10.0), st.floats(0.0001, 10.0))
def test_a_step_is_at_most_twice_or_half_and_a_root_and_within_bounds(limit: int, least: float, now_s: float) -> None:
    gradient = Gradient(AdaptiveConcurrency(0.1, fixed_min_rtt_s=least), Random(1), 0.0)
    gradient.limit = limit
    following = gradient.next_limit(now_s)
    assert 3 <= following <= 1000
    assert following <= 2 * limit + (2 * limit) ** 0.5
    assert following >= min(1000, int(limit / 2))


def test_no_call_is_lost_from_the_count() -> None:
    gradient = Gradient(ADAPTIVE, Random(1), 0.0)
    chance = Random(2)
    running = 0
    ends: list[Callable[[], None]] = [gradient.cancel, lambda: gradient.leave(0.0, 0.01)]
    for _ in range(1000):
        if chance.random() < 0.5 and gradient.enter():
            running += 1
        elif running:
            chance.choice(ends)()
            running -= 1
        assert gradient.running == running
