"""Choosing one of several hosts: in turn, by chance, by load, by latency (Envoy: cluster.v3.Cluster.LbPolicy).

A balancer is made anew for each set of hosts; chance comes from a `random.Random` that is passed in, time as `now`. What a pick costs does
not grow with the hosts, but for the weighted ones: those keep a heap, which grows with the logarithm.
"""

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import exp
from random import Random
from typing import Final, Generic, Protocol, TypeVar


class Wish:
    """What one call asks of a balancer; equal for all calls with the same header block."""

    __slots__ = ("hash", "match")

    def __init__(self, hash: int | None = None, match: tuple[tuple[str, Hashable], ...] = ()) -> None:
        self.hash = hash
        """The key for consistent hashing, 64 bits; None lets chance decide."""
        self.match = match
        """Labels that the host must have, in order of their names (Envoy: metadata_match)."""


ANY: Final = Wish()
"""Asks for nothing."""


class Weighted(Protocol):
    """What a balancer reads of a host."""

    weight: int
    active: int
    """Calls that run there now."""


class Warming(Weighted, Protocol):
    """A host that may have come lately."""

    since: float
    """When it came, or became healthy."""


class Timed(Weighted, Protocol):
    """A host whose answers are timed."""

    latency: "Latency"


E = TypeVar("E", bound=Weighted)
E_co = TypeVar("E_co", bound=Weighted, covariant=True)
W = TypeVar("W", bound=Warming)
T = TypeVar("T", bound=Timed)


class Balancer(Protocol[E_co]):
    """Chooses one host, or None if there is none."""

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> E_co | None:
        """`attempt` counts the picks before this one that did not suit the same call."""
        ...


class RoundRobin(Generic[E]):
    """Each in turn, from a start by chance so that many callers do not all begin with the first."""

    def __init__(self, endpoints: Sequence[E], chance: Random) -> None:
        self._endpoints = tuple(endpoints)
        self._next = chance.randrange(len(endpoints)) if endpoints else 0

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> E | None:
        endpoints = self._endpoints
        if not endpoints:
            return None
        index = self._next
        if index >= len(endpoints):
            index = 0
        self._next = index + 1
        return endpoints[index]


class RandomChoice(Generic[E]):
    """Any, by chance."""

    def __init__(self, endpoints: Sequence[E], chance: Random) -> None:
        self._endpoints = tuple(endpoints)
        self._chance = chance

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> E | None:
        if not self._endpoints:
            return None
        return self._endpoints[int(self._chance.random() * len(self._endpoints))]


class LeastRequest(Generic[E]):
    """The one with the fewest active calls of some drawn by chance (power of two choices)."""

    def __init__(self, endpoints: Sequence[E], chance: Random, choices: int = 2) -> None:
        self._endpoints = tuple(endpoints)
        self._chance = chance
        self._more = choices - 1

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> E | None:
        endpoints = self._endpoints
        if not endpoints:
            return None
        count = len(endpoints)
        best = endpoints[int(self._chance.random() * count)]
        for _ in range(self._more):
            other = endpoints[int(self._chance.random() * count)]
            if other.active < best.active:
                best = other
        return best


class LeastOfAll(Generic[E]):
    """The one with the fewest active calls of all; of several, any (Envoy: LeastRequest.FULL_SCAN). Costs more the more hosts there are."""

    def __init__(self, endpoints: Sequence[E], chance: Random) -> None:
        self._endpoints = tuple(endpoints)
        self._chance = chance

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> E | None:
        if not self._endpoints:
            return None
        least = min(endpoint.active for endpoint in self._endpoints)
        idle = [endpoint for endpoint in self._endpoints if endpoint.active == least]
        return idle[int(self._chance.random() * len(idle))]


@dataclass(frozen=True, slots=True)
class SlowStart:
    """A host that has just come gets few calls at first (Envoy: SlowStartConfig)."""

    window_s: float
    """After so long it gets its whole share."""
    aggression: float = 1.0
    """1 is linear; above, the share grows fast at first and slowly later."""
    least: float = 0.1
    """Part of its weight that it has at least."""

    def factor(self, age_s: float) -> float:
        """The part of its weight that a host of this age has."""
        if age_s >= self.window_s:
            return 1.0
        part = max(0.001, age_s) / self.window_s
        return max(part if self.aggression == 1.0 else part ** (1.0 / self.aggression), self.least)


class WeightedRoundRobin(Generic[W]):
    """Earliest deadline first: a host of weight w comes w times as often, evenly spread (as Envoy's EDF scheduler)."""

    def __init__(
        self, endpoints: Sequence[W], chance: Random, slow_start: SlowStart | None = None, now: float = 0.0
    ) -> None:
        self._slow_start = slow_start
        self._heap = [
            (chance.random() * self._gap(endpoint, now), order, endpoint) for order, endpoint in enumerate(endpoints)
        ]
        heapq.heapify(self._heap)

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> W | None:
        if not self._heap:
            return None
        deadline, order, endpoint = self._heap[0]
        heapq.heapreplace(self._heap, (deadline + self._gap(endpoint, now), order, endpoint))
        return endpoint

    def _gap(self, endpoint: W, now: float) -> float:
        """How long a host is left alone after a pick, in turns of one of weight 1."""
        weight = float(max(1, endpoint.weight))
        if self._slow_start is not None:
            weight *= self._slow_start.factor(now - endpoint.since)
        return 1.0 / weight


class WeightedLeastRequest(Generic[W]):
    """For hosts of different weight: earliest deadline first, each weight divided by the calls that run there (as Envoy)."""

    def __init__(
        self,
        endpoints: Sequence[W],
        chance: Random,
        bias: float = 1.0,
        slow_start: SlowStart | None = None,
        now: float = 0.0,
    ) -> None:
        self._bias = bias
        """How much the running calls count; 0 is not at all (Envoy: active_request_bias)."""
        self._slow_start = slow_start
        self._heap = [
            (chance.random() * self._gap(endpoint, now), order, endpoint) for order, endpoint in enumerate(endpoints)
        ]
        heapq.heapify(self._heap)

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> W | None:
        if not self._heap:
            return None
        deadline, order, endpoint = self._heap[0]
        heapq.heapreplace(self._heap, (deadline + self._gap(endpoint, now), order, endpoint))
        return endpoint

    def _gap(self, endpoint: W, now: float) -> float:
        weight = float(max(1, endpoint.weight))
        if self._slow_start is not None:
            weight *= self._slow_start.factor(now - endpoint.since)
        calls = endpoint.active + 1
        return (float(calls) if self._bias == 1.0 else float(calls**self._bias)) / weight


class Latency:
    """How slow a host is: a mean that follows a rise at once and a fall slowly (peak EWMA), and falls while nothing is heard."""

    __slots__ = ("_at", "_seconds", "decay_s")

    def __init__(self, seconds: float, decay_s: float, now: float) -> None:
        self.decay_s = decay_s
        """After so long an answer still counts for 1/e."""
        self._seconds = seconds
        self._at = now

    def observe(self, seconds: float, now: float) -> None:
        """An answer took so long."""
        if seconds >= self._seconds:
            self._seconds = seconds
        else:
            old = exp(-max(0.0, now - self._at) / self.decay_s)
            self._seconds = self._seconds * old + seconds * (1.0 - old)
        self._at = now

    def seconds(self, now: float) -> float:
        """The estimate."""
        return self._seconds * exp(-max(0.0, now - self._at) / self.decay_s)


class PeakEwma(Generic[T]):
    """Of two drawn by chance the one where a call would wait less: latency times the calls that would run there, by weight.

    Not in Envoy. Follows Finagle and Linkerd.
    """

    def __init__(self, endpoints: Sequence[T], chance: Random) -> None:
        self._endpoints = tuple(endpoints)
        self._chance = chance

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> T | None:
        endpoints = self._endpoints
        count = len(endpoints)
        if count < 2:
            return endpoints[0] if count else None
        first = int(self._chance.random() * count)
        second = int(self._chance.random() * (count - 1))
        one, other = endpoints[first], endpoints[second + (second >= first)]
        return one if _cost(one, now) <= _cost(other, now) else other


def _cost(endpoint: Timed, now: float) -> float:
    return endpoint.latency.seconds(now) * (endpoint.active + 1) / max(1, endpoint.weight)
