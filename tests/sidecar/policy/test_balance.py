"""The balancers against slow models, and their chance by chi-square."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import chain
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.balance import (
    ANY,
    Latency,
    LeastOfAll,
    LeastRequest,
    PeakEwma,
    RandomChoice,
    RoundRobin,
    WeightedLeastRequest,
    WeightedRoundRobin,
)
from tests.differential.compare import CHI_SQUARE_LIMIT, chi_square
from tests.sidecar.policy.hosts import Host


def places(*weights: int) -> list[Host]:
    return [Host("abcdefghijkl"[number], weight) for number, weight in enumerate(weights)]


class Scripted(Random):
    """Chance that gives what it is told, and writes it down."""

    def __init__(self, numbers: Iterator[float]) -> None:
        super().__init__(0)
        self._numbers = numbers
        self.given: list[float] = []

    def random(self) -> float:
        self.given.append(next(self._numbers))
        return self.given[-1]


BALANCERS: list[Callable[[Sequence[Host], Random], Any]] = [
    RoundRobin,
    WeightedRoundRobin,
    RandomChoice,
    LeastRequest,
    LeastOfAll,
    WeightedLeastRequest,
    PeakEwma,
]


@pytest.mark.parametrize("balancer", BALANCERS)
def test_nobody_is_chosen_from_nobody(balancer: Callable[[Sequence[Host], Random], Any]) -> None:
    assert balancer([], Random(1)).pick() is None


@pytest.mark.parametrize("balancer", BALANCERS)
def test_a_single_endpoint_is_always_chosen(balancer: Callable[[Sequence[Host], Random], Any]) -> None:
    [only] = places(7)
    balance = balancer([only], Random(1))
    assert all(balance.pick() is only for _ in range(10))


@given(st.integers(min_value=1, max_value=12), st.integers(), st.integers(min_value=0, max_value=40))
def test_round_robin_repeats_one_order_of_all(count: int, seed: int, extra: int) -> None:
    endpoints = places(*[1] * count)
    balance = RoundRobin(endpoints, Random(seed))
    picks = [balance.pick() for _ in range(2 * count + extra)]
    assert sorted(pick.name for pick in picks[:count] if pick) == [each.name for each in endpoints]
    assert picks[count:] == picks[:-count]


def test_round_robin_begins_anywhere() -> None:
    chance = Random(3)
    starts = Counter(pick.name for _ in range(400) if (pick := RoundRobin(places(1, 1, 1, 1), chance).pick()))
    assert chi_square(starts, dict.fromkeys("abcd", 0.25)) < CHI_SQUARE_LIMIT[3]


weights = st.lists(st.sampled_from([1, 2, 4, 8, 16]), min_size=1, max_size=8)
dyadic = st.integers(min_value=0, max_value=1023).map(lambda number: number / 1024)


@given(weights, st.data())
def test_weighted_round_robin_keeps_everybodys_appointments(weights: list[int], data: st.DataObject) -> None:
    """The model: an endpoint of weight w has an appointment every 1/w, from a start by chance; all are kept in order of time."""
    endpoints = places(*weights)
    chance = Scripted(iter(lambda: data.draw(dyadic), None))
    balance = WeightedRoundRobin(endpoints, chance)
    wanted = 40
    appointments = sorted(
        chain.from_iterable(
            ((Fraction(start) / weight + Fraction(turn, weight), order) for turn in range(wanted))
            for order, (start, weight) in enumerate(zip(chance.given, weights, strict=True))
        )
    )
    assert [balance.pick() for _ in range(wanted)] == [endpoints[order] for _, order in appointments[:wanted]]


@given(st.lists(st.integers(min_value=1, max_value=100), min_size=1, max_size=12), st.integers())
def test_weighted_round_robin_is_never_off_by_more_than_a_turn(weights: list[int], seed: int) -> None:
    balance = WeightedRoundRobin(places(*weights), Random(seed))
    seen: Counter[str] = Counter()
    for turn in range(1, 300):
        pick = balance.pick()
        assert pick is not None
        seen[pick.name] += 1
        for endpoint in places(*weights):
            due = turn * endpoint.weight / sum(weights)
            assert abs(seen[endpoint.name] - due) < len(weights) + 1


def test_random_choice_gives_everybody_the_same() -> None:
    balance = RandomChoice(places(1, 9, 1, 1), Random(5))
    seen = Counter(pick.name for _ in range(4_000) if (pick := balance.pick()))
    assert chi_square(seen, dict.fromkeys("abcd", 0.25)) < CHI_SQUARE_LIMIT[3]


@given(st.lists(st.integers(min_value=0, max_value=5), min_size=2, max_size=8), dyadic, dyadic)
def test_least_request_takes_the_less_busy_of_the_two_that_chance_names(
    active: list[int], first: float, second: float
) -> None:
    endpoints = [Host(str(number), active=calls) for number, calls in enumerate(active)]
    pick = LeastRequest(endpoints, Scripted(iter([first, second]))).pick()
    drawn = [endpoints[int(number * len(endpoints))] for number in (first, second)]
    assert pick in drawn
    assert pick is not None and pick.active == min(each.active for each in drawn)


def test_least_request_leaves_a_busy_endpoint_nearly_alone() -> None:
    endpoints = places(1, 1, 1, 1)
    endpoints[0].active = 100
    balance = LeastRequest(endpoints, Random(7))
    seen = Counter(pick.name for _ in range(4_000) if (pick := balance.pick()))
    # Both draws must name it: 1/16; the others share the rest.
    assert chi_square(seen, {"a": 1 / 16, "b": 5 / 16, "c": 5 / 16, "d": 5 / 16}) < CHI_SQUARE_LIMIT[3]


@given(
    weights,
    st.lists(st.tuples(st.integers(min_value=0, max_value=7), st.integers(min_value=0, max_value=3)), max_size=40),
    st.data(),
)
def test_weighted_least_request_is_the_one_whose_turn_it_is(
    weights: list[int], changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    """The model: after a pick, an endpoint is left alone for (calls + 1) / weight; the next is whose time comes first."""
    endpoints = places(*weights)
    chance = Scripted(iter(lambda: data.draw(dyadic), None))
    balance = WeightedLeastRequest(endpoints, chance)
    due = [Fraction(start) / weight for start, weight in zip(chance.given, weights, strict=True)]
    for which, active in changes:
        endpoints[which % len(endpoints)].active = active
        turn = min(range(len(endpoints)), key=lambda order: (due[order], order))
        assert balance.pick() is endpoints[turn]
        due[turn] += Fraction(endpoints[turn].active + 1, endpoints[turn].weight)


@given(
    st.lists(st.integers(min_value=0, max_value=5), min_size=1, max_size=8), st.lists(dyadic, min_size=4, max_size=4)
)
def test_least_request_draws_as_often_as_it_is_told(active: list[int], drawn: list[float]) -> None:
    endpoints = [Host(str(number), active=calls) for number, calls in enumerate(active)]
    pick = LeastRequest(endpoints, Scripted(iter(drawn)), choices=4).pick()
    assert pick is not None
    assert pick.active == min(endpoints[int(number * len(endpoints))].active for number in drawn)


@given(st.lists(st.integers(min_value=0, max_value=3), min_size=1, max_size=8), st.integers())
def test_a_full_scan_finds_the_least_busy(active: list[int], seed: int) -> None:
    endpoints = [Host(str(number), active=calls) for number, calls in enumerate(active)]
    pick = LeastOfAll(endpoints, Random(seed)).pick()
    assert pick is not None and pick.active == min(active)


def test_without_a_bias_running_calls_do_not_count() -> None:
    endpoints = places(1, 3)
    endpoints[1].active = 50
    balance = WeightedLeastRequest(endpoints, Random(1), bias=0.0)
    seen = Counter(pick.name for _ in range(400) if (pick := balance.pick()))
    assert seen == {"a": 100, "b": 300}


seconds = st.floats(min_value=0.0, max_value=10.0)


@given(st.lists(st.tuples(seconds, seconds), max_size=30), seconds)
def test_latency_follows_a_rise_at_once_and_a_fall_slowly(answers: list[tuple[float, float]], later: float) -> None:
    """The model keeps every answer with its weight."""
    latency = Latency(0.03, 5.0, 0.0)
    now = 0.0
    parts = [(0.03, 1.0)]
    for gap, value in answers:
        now += gap
        latency.observe(value, now)
        if value >= sum(part * weight for part, weight in parts):
            parts = [(value, 1.0)]
        else:
            old = math.exp(-gap / 5.0)
            parts = [(part, weight * old) for part, weight in parts] + [(value, 1.0 - old)]
    expected = sum(part * weight for part, weight in parts)
    assert latency.seconds(now) == pytest.approx(expected)
    assert latency.seconds(now + later) == pytest.approx(expected * math.exp(-later / 5.0))


def test_the_faster_of_two_gets_the_calls_until_it_is_busy() -> None:
    slow, fast = places(1, 1)
    slow.latency.observe(1.0, 0.0)
    fast.latency.observe(0.1, 0.0)
    balance = PeakEwma([slow, fast], Random(1))
    assert all(balance.pick(ANY, 0, 0.0) is fast for _ in range(20))
    fast.active = 10
    assert all(balance.pick(ANY, 0, 0.0) is slow for _ in range(20))


def test_a_slow_endpoint_is_asked_again_when_it_has_been_left_alone_for_long() -> None:
    slow, fast = places(1, 1)
    slow.latency.observe(5.0, 0.0)
    balance = PeakEwma([slow, fast], Random(1))
    now = 0.0
    while balance.pick(ANY, 0, now) is fast:
        now += 1.0
        fast.latency.observe(0.03, now)
    assert 40.0 < now < 60.0, "5 s become 30 ms in 51 s of decay"
