"""Choosing an endpoint: round robin, random, least request (Envoy: cluster.v3.Cluster.LbPolicy).

A balancer is made anew for each set of usable endpoints; chance comes from a `random.Random` that is passed in.
"""

import heapq
from collections.abc import Sequence
from random import Random
from typing import Generic, Protocol, TypeVar


class Weighted(Protocol):
    """What a balancer reads of an endpoint."""

    weight: int
    active: int
    """Calls that run there now."""


E = TypeVar("E", bound=Weighted)
E_co = TypeVar("E_co", bound=Weighted, covariant=True)


class Balancer(Protocol[E_co]):
    """Chooses one endpoint, or None if there is none."""

    def pick(self) -> E_co | None: ...


class RoundRobin(Generic[E]):
    """Each in turn, from a start by chance so that many callers do not all begin with the first."""

    def __init__(self, endpoints: Sequence[E], chance: Random) -> None:
        self._endpoints = tuple(endpoints)
        self._next = chance.randrange(len(endpoints)) if endpoints else 0

    def pick(self) -> E | None:
        endpoints = self._endpoints
        if not endpoints:
            return None
        index = self._next
        if index >= len(endpoints):
            index = 0
        self._next = index + 1
        return endpoints[index]


class WeightedRoundRobin(Generic[E]):
    """Earliest deadline first: an endpoint of weight w comes w times as often, evenly spread (as Envoy's EDF scheduler)."""

    def __init__(self, endpoints: Sequence[E], chance: Random) -> None:
        self._heap = [
            (chance.random() / max(1, endpoint.weight), order, endpoint) for order, endpoint in enumerate(endpoints)
        ]
        heapq.heapify(self._heap)

    def pick(self) -> E | None:
        if not self._heap:
            return None
        deadline, order, endpoint = self._heap[0]
        heapq.heapreplace(self._heap, (deadline + 1.0 / max(1, endpoint.weight), order, endpoint))
        return endpoint


class RandomChoice(Generic[E]):
    """Any, by chance."""

    def __init__(self, endpoints: Sequence[E], chance: Random) -> None:
        self._endpoints = tuple(endpoints)
        self._chance = chance

    def pick(self) -> E | None:
        if not self._endpoints:
            return None
        return self._endpoints[int(self._chance.random() * len(self._endpoints))]


class LeastRequest(Generic[E]):
    """The one with fewer active calls of two drawn by chance (power of two choices)."""

    def __init__(self, endpoints: Sequence[E], chance: Random) -> None:
        self._endpoints = tuple(endpoints)
        self._chance = chance

    def pick(self) -> E | None:
        endpoints = self._endpoints
        if not endpoints:
            return None
        count = len(endpoints)
        first = endpoints[int(self._chance.random() * count)]
        second = endpoints[int(self._chance.random() * count)]
        return first if first.active <= second.active else second


class WeightedLeastRequest(Generic[E]):
    """For endpoints of different weight: earliest deadline first, each weight divided by the calls that run there (as Envoy)."""

    def __init__(self, endpoints: Sequence[E], chance: Random) -> None:
        self._heap = [(chance.random() * _gap(endpoint), order, endpoint) for order, endpoint in enumerate(endpoints)]
        heapq.heapify(self._heap)

    def pick(self) -> E | None:
        if not self._heap:
            return None
        deadline, order, endpoint = self._heap[0]
        heapq.heapreplace(self._heap, (deadline + _gap(endpoint), order, endpoint))
        return endpoint


def _gap(endpoint: Weighted) -> float:
    """How long an endpoint is left alone after a pick, in turns of one of weight 1."""
    return (endpoint.active + 1) / max(1, endpoint.weight)
