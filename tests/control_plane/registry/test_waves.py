"""Which instances are kept when their leases end: by examples, and against a slow model that counts anew each time."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from control_plane.registry import keys
from control_plane.registry.waves import Threshold, Waves, service_of

LIMITS = Threshold(share=0.5, within_s=30.0, of_service=2, of_mesh=3)


def key(name: str) -> bytes:
    """Of `service/instance` in namespace shop."""
    service, _, instance = name.partition("/")
    return keys.instance("shop", service, instance)


@dataclass
class Told:
    """Waves and a clock."""

    waves: Waves = field(default_factory=lambda: Waves(LIMITS))
    now: float = 0.0

    def come(self, *names: str) -> None:
        for name in names:
            self.waves.on(key(name), True, True, self.now)

    def vanish(self, *names: str) -> None:
        for name in names:
            self.waves.on(key(name), False, True, self.now)

    def leave(self, *names: str) -> None:
        for name in names:
            self.waves.on(key(name), False, False, self.now)

    @property
    def held(self) -> set[str]:
        return {"/".join(found.decode().split("/")[-2:]) for found in self.waves.held}

    @property
    def gone(self) -> set[str]:
        return {"/".join(found.decode().split("/")[-2:]) for found in self.waves.gone(self.now)}


def crowd(count: int, service: str = "cart") -> list[str]:
    return [f"{service}/{number}" for number in range(count)]


def test_one_of_many_that_vanishes_has_died() -> None:
    it = Told()
    it.come(*crowd(4))
    it.vanish("cart/0")
    assert it.held == set() == it.gone
    it.now = 31
    assert it.gone == {"cart/0"}


def test_most_that_vanish_together_are_held_the_first_ones_too() -> None:
    it = Told()
    it.come(*crowd(4), *crowd(9, "other"))
    it.vanish("cart/0", "cart/1")
    assert it.held == set(), "half is not most"
    it.now = 20
    it.vanish("cart/2")
    assert it.held == {"cart/0", "cart/1", "cart/2"}
    it.now = 10_000
    assert it.held == {"cart/0", "cart/1", "cart/2"} and it.gone == set()
    assert it.waves.waves == 1


def test_those_that_vanish_one_after_the_other_over_hours_are_not_held() -> None:
    it = Told()
    it.come(*crowd(6), *crowd(9, "other"))
    for number in range(6):
        it.now += 3600
        it.vanish(f"cart/{number}")
        assert it.held == set()
    it.now += 31
    assert it.gone == set(crowd(6))


def test_the_last_one_that_vanishes_alone_is_not_held_but_a_whole_mesh_of_single_ones_is() -> None:
    it = Told()
    it.come("a/1", "b/1", "c/1", "d/1")
    it.vanish("a/1", "b/1")
    assert it.held == set()
    it.vanish("c/1")
    assert it.held == {"a/1", "b/1", "c/1"}


def test_who_registers_again_is_not_held_and_the_others_stay() -> None:
    it = Told()
    it.come(*crowd(4))
    it.vanish(*crowd(4))
    it.come("cart/0", "cart/1", "cart/2")
    assert it.held == {"cart/3"}
    it.leave("cart/3")  # an operator lets it go
    assert it.held == set() == it.gone


def test_who_leaves_as_one_should_does_not_count() -> None:
    it = Told()
    it.come(*crowd(10))
    it.leave(*crowd(9))
    it.vanish("cart/9")
    assert it.held == set()


def test_what_was_lost_while_nobody_looked_counts_as_lost_now() -> None:
    """A control plane that starts finds a roster without leases."""
    it = Told(now=500.0)
    there = {key(name) for name in crowd(5)}
    it.waves.sync(set(), there, it.now)
    assert it.held == set(crowd(5))
    other = Told()
    other.waves.sync({key("cart/0"), key("cart/1"), key("cart/2")}, there, 0.0)
    assert other.held == set()
    other.now = 31
    assert other.gone == {"cart/3", "cart/4"}


def test_looking_anew_changes_nothing_that_is_known() -> None:
    it = Told()
    it.come(*crowd(5), *crowd(5, "other"))
    it.vanish("cart/0", "cart/1", "cart/2")
    assert len(it.held) == 3
    it.now = 1000
    it.waves.sync(
        {key(name) for name in (*crowd(5)[3:], *crowd(5, "other"))},
        {key(name) for name in (*crowd(5), *crowd(5, "other"))},
        it.now,
    )
    assert set(it.waves.held.values()) == {0.0}
    it.waves.sync({key(name) for name in crowd(5)}, {key(name) for name in crowd(5)}, it.now)
    assert it.held == set()


class Model(RuleBasedStateMachine):
    """Counts by looking at everybody, each time."""

    NAMES: ClassVar = [key(f"{service}/{number}") for service in "abc" for number in range(4)]

    def __init__(self) -> None:
        super().__init__()
        self.waves = Waves(LIMITS)
        self.now = 0.0
        self.place: dict[bytes, str] = {}
        self.lost_at: dict[bytes, float] = {}

    def _pass(self) -> None:
        for name, place in self.place.items():
            if place == "recent" and self.now - self.lost_at[name] > LIMITS.within_s:
                self.place[name] = "gone"

    def _of(self, names: list[bytes], *places: str) -> list[bytes]:
        return [name for name in names if self.place.get(name) in places]

    def _judge(self, names: list[bytes], at_least: int) -> None:
        missing = len(self._of(names, "recent", "held"))
        there = len(self._of(names, "alive"))
        if missing >= at_least and missing > LIMITS.share * (there + missing):
            for name in self._of(names, "recent"):
                self.place[name] = "held"

    @rule(name=st.sampled_from(NAMES), is_alive=st.booleans(), is_listed=st.sampled_from([True, True, True, False]))
    def event(self, name: bytes, is_alive: bool, is_listed: bool) -> None:
        self.waves.on(name, is_alive, is_listed, self.now)
        self._pass()
        if not is_listed:
            self.place.pop(name, None)
        elif is_alive:
            self.place[name] = "alive"
        elif self.place.get(name) in (None, "alive"):
            self.place[name], self.lost_at[name] = "recent", self.now
        self._judge(self.NAMES, LIMITS.of_mesh)
        self._judge([each for each in self.NAMES if service_of(each) == service_of(name)], LIMITS.of_service)

    @rule(seconds=st.sampled_from([0.5, 10.0, 29.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def agrees(self) -> None:
        assert set(self.waves.held) == set(self._of(self.NAMES, "held"))
        self._pass()
        assert self.waves.gone(self.now) == set(self._of(self.NAMES, "gone"))


TestModel = Model.TestCase


@given(st.permutations(crowd(7)), st.integers(0, 7))
def test_the_order_of_a_wave_does_not_matter(order: list[str], count: int) -> None:
    it = Told()
    it.come(*order, *crowd(20, "other"))
    it.vanish(*order[:count])
    assert it.held == (set(order[:count]) if count > 3 else set())


@pytest.mark.parametrize("count", [10_000])
def test_a_wave_of_a_whole_mesh_costs_no_more_for_each(count: int) -> None:
    """Ten thousand take a moment; if each looked at all the others, this would take an hour."""
    it = Told()
    names = [f"s{number % 100}/{number}" for number in range(count)]
    it.come(*names)
    it.vanish(*names)
    assert len(it.held) == count
    it.come(*names)
    assert it.held == set()
