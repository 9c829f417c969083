"""From all hosts of a cluster to the one for a call: priority level, health, locality, and among what is left the cluster's algorithm.

Made anew when hosts come, go, or change their health; what is the same for every call is decided here, so that in the usual case (one level,
enough healthy hosts, no weights of localities) nothing but the algorithm itself is left to do per call. Where localities or levels count, a
call draws one of them first, as Envoy does (`LoadBalancerBase`, `ZoneAwareLoadBalancerBase`, `ThreadAwareLoadBalancerBase`).
"""

import heapq
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, Generic

from sidecar.policy import hashing, priority
from sidecar.policy.balance import (
    ANY,
    Balancer,
    LeastOfAll,
    LeastRequest,
    PeakEwma,
    RandomChoice,
    RoundRobin,
    WeightedLeastRequest,
    WeightedRoundRobin,
    Wish,
)
from sidecar.policy.balancing import Assignment, Balance, Balancing
from sidecar.policy.hosts import Group, H, Health, Level
from sidecar.policy.zones import Home, Locality, Zoning, zoning

_CHANCES: Final = 2**32


class Nobody(Generic[H]):
    """There is no host to choose."""

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> H | None:
        return None


class Lazily(Generic[H]):
    """A balancer that is made when it is first asked."""

    def __init__(self, make: Callable[[float], Balancer[H]]) -> None:
        self._make = make
        self._made: Balancer[H] | None = None

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> H | None:
        if self._made is None:
            self._made = self._make(now)
        return self._made.pick(wish, attempt, now)


class Ring(Generic[H]):
    """Ketama: each host has many places on a ring of hashes (Envoy: RING_HASH)."""

    def __init__(self, hosts: Sequence[tuple[H, float]], chance: Random, least: int, most: int) -> None:
        self._hosts = tuple(host for host, _ in hosts)
        self._chance = chance
        self._hashes, self._places = hashing.ring([(host.hash_name, share) for host, share in hosts], least, most)

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> H | None:
        if not self._hashes:
            return None
        key = self._chance.getrandbits(64) if wish.hash is None else wish.hash
        return self._hosts[hashing.on_ring(self._hashes, self._places, key, attempt)]


class Maglev(Generic[H]):
    """A table in which hosts take turns to choose their places (Envoy: MAGLEV)."""

    def __init__(self, hosts: Sequence[tuple[H, float]], chance: Random, size: int) -> None:
        self._hosts = tuple(host for host, _ in hosts)
        self._chance = chance
        self._table = hashing.maglev([(host.hash_name, share) for host, share in hosts], size)

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> H | None:
        if not self._table:
            return None
        key = self._chance.getrandbits(64) if wish.hash is None else wish.hash
        return self._hosts[hashing.in_table(self._table, key, attempt)]


class Localities(Generic[H]):
    """Each locality by its weight, evenly spread."""

    def __init__(self, parts: Sequence[tuple[float, Balancer[H]]], chance: Random) -> None:
        self._heap = [(chance.random() / weight, order, weight, part) for order, (weight, part) in enumerate(parts)]
        heapq.heapify(self._heap)

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> H | None:
        deadline, order, weight, part = self._heap[0]
        heapq.heapreplace(self._heap, (deadline + 1.0 / weight, order, weight, part))
        return part.pick(wish, attempt, now)


class Zones(Generic[H]):
    """The caller's own locality first, as far as it can take the calls."""

    def __init__(
        self, how: Zoning, parts: Sequence[Balancer[H]], everywhere: Balancer[H], enabled: float, chance: Random
    ) -> None:
        self._how = how
        self._parts = tuple(parts)
        self._everywhere = everywhere
        self._enabled = enabled
        self._chance = chance

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> H | None:
        chance = self._chance
        if self._enabled < 1.0 and chance.random() >= self._enabled:
            return self._everywhere.pick(wish, attempt, now)
        first, second = int(chance.random() * _CHANCES), int(chance.random() * _CHANCES)
        return self._parts[self._how.at(first, second)].pick(wish, attempt, now)


class Levels(Generic[H]):
    """Priority levels by their shares; a call's key, if it has one, decides for a level too."""

    def __init__(
        self,
        shares: priority.Shares,
        healthy: Sequence[Balancer[H]],
        degraded: Sequence[Balancer[H]],
        is_hashed: bool,
        chance: Random,
    ) -> None:
        self._shares = shares
        self._healthy = tuple(healthy)
        self._degraded = tuple(degraded)
        self._is_hashed = is_hashed
        self._chance = chance

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> H | None:
        number = wish.hash if self._is_hashed else None
        level, is_degraded = self._shares.at(int(self._chance.random() * 100) if number is None else number)
        return (self._degraded if is_degraded else self._healthy)[level].pick(wish, attempt, now)


def spread(
    levels: Sequence[Level[H]],
    how: Balancing,
    chance: Random,
    now: float,
    assignment: Assignment | None = None,
    home: Home | None = None,
) -> Balancer[H]:
    """The balancer over all hosts of a cluster, most important level first."""
    made: _Spread[H] = _Spread(how, chance, now, assignment or Assignment(), home)
    return made.over(levels)


class _Spread(Generic[H]):
    """What all parts of one balancer are made by."""

    def __init__(self, how: Balancing, chance: Random, now: float, assignment: Assignment, home: Home | None) -> None:
        self._how = how
        self._chance = chance
        self._now = now
        self._assignment = assignment
        self._home = home

    def over(self, levels: Sequence[Level[H]]) -> Balancer[H]:
        if not levels:
            return Nobody()
        shares = priority.shares(
            [_census(level) for level in levels],
            overprovisioning=self._assignment.overprovisioning,
            panic_threshold=self._how.panic_threshold,
            weights=[_census(level, by_weight=True) for level in levels] if self._assignment.counts_weights else (),
            everybody=[sum(len(group.hosts) for group in level) for level in levels],
        )
        healthy: list[Balancer[H]] = []
        degraded: list[Balancer[H]] = []
        for number, level in enumerate(levels):
            if shares.panic[number]:
                good = bad = self._in_panic(level)
            else:
                good = self._of_health(level, number, Health.HEALTHY)
                # A hashed balancer has one ring, and degraded hosts are not on it.
                bad = good if self._how.is_hashed else self._of_health(level, number, Health.DEGRADED)
            healthy.append(good)
            degraded.append(bad)
        if len(levels) == 1 and (shares.healthy[0] == 100 or healthy[0] is degraded[0]):
            return healthy[0]
        return Levels(shares, healthy, degraded, self._how.is_hashed, self._chance)

    def _in_panic(self, level: Level[H]) -> Balancer[H]:
        if self._how.zone_aware.fails_in_panic and not self._how.is_hashed:
            return Nobody()
        if self._how.is_hashed:
            return self._hashed([(group, group.hosts) for group in level])
        return self._flat([host for group in level for host in group.hosts])

    def _of_health(self, level: Level[H], number: int, health: Health) -> Balancer[H]:
        members = [(group, tuple(host for host in group.hosts if host.health is health)) for group in level]
        if self._how.is_hashed:
            return self._hashed(members)
        flat = [host for _, hosts in members for host in hosts]
        if self._how.is_locality_weighted:
            return self._by_weight(members) or self._flat(flat)
        if self._home is not None and number == 0:
            return self._by_zone(members, self._home) or self._flat(flat)
        return self._flat(flat)

    def _by_weight(self, members: Sequence[tuple[Group[H], tuple[H, ...]]]) -> Balancer[H] | None:
        """Localities by weight, less for those with few such hosts (Envoy: effectiveLocalityWeight); None if no weight is left."""
        parts: list[tuple[float, Balancer[H]]] = []
        for group, hosts in members:
            staying = sum(host.health is not Health.LEAVING for host in group.hosts)
            if staying and hosts and group.weight:
                ratio = min(1.0, self._assignment.overprovisioning / 100.0 * len(hosts) / staying)
                parts.append((group.weight * ratio, self._flat(hosts)))
        return Localities(parts, self._chance) if parts else None

    def _by_zone(self, members: Sequence[tuple[Group[H], tuple[H, ...]]], home: Home) -> Balancer[H] | None:
        members = sorted(members, key=lambda item: (item[0].locality != home.locality, item[0].locality))
        how = zoning(
            home, [(group.locality, len(hosts)) for group, hosts in members], self._how.zone_aware.min_cluster_size
        )
        if how is None:
            return None
        if priority.is_in_panic(home.census, self._how.panic_threshold):
            return Nobody() if self._how.zone_aware.fails_in_panic else None
        flat = self._flat([host for _, hosts in members for host in hosts])
        return Zones(how, [self._flat(hosts) for _, hosts in members], flat, self._how.zone_aware.enabled, self._chance)

    def _flat(self, hosts: Sequence[H]) -> Balancer[H]:
        """The algorithm itself."""
        how, chance = self._how, self._chance
        is_even = len({host.weight for host in hosts}) <= 1
        slow_start = how.slow_start
        if slow_start is not None and all(self._now - host.since >= slow_start.window_s for host in hosts):
            slow_start = None
        match how.policy:
            case Balance.RANDOM:
                return RandomChoice(hosts, chance)
            case Balance.PEAK_EWMA:
                return PeakEwma(hosts, chance)
            case Balance.LEAST_REQUEST:
                if slow_start is not None or not is_even:
                    return WeightedLeastRequest(hosts, chance, how.active_request_bias, slow_start, self._now)
                return LeastRequest(hosts, chance, how.choices) if how.choices else LeastOfAll(hosts, chance)
            case _:
                if slow_start is not None or not is_even:
                    return WeightedRoundRobin(hosts, chance, slow_start, self._now)
                return RoundRobin(hosts, chance)

    def _hashed(self, members: Sequence[tuple[Group[H], tuple[H, ...]]]) -> Balancer[H]:
        """A ring or a table over all, each host with its part of 1."""
        weighted: list[tuple[H, float]] = []
        if self._how.is_locality_weighted and any(group.weight for group, _ in members):
            total = sum(group.weight for group, _ in members)
            for group, hosts in members:
                if group.weight:
                    weighted += _normalised(hosts, group.weight / total)
        else:
            weighted = _normalised([host for _, hosts in members for host in hosts], 1.0)
        how, chance = self._how, self._chance
        if how.policy is Balance.MAGLEV:
            return Lazily(lambda now: Maglev(weighted, chance, how.table_size))
        return Lazily(lambda now: Ring(weighted, chance, how.min_ring_size, how.max_ring_size))


def home_of(levels: Sequence[Level[H]], locality: Locality) -> Home:
    """What the instances of a caller's own service say of where calls come from."""
    level = levels[0] if levels else ()
    healthy = [(group.locality, sum(host.health is Health.HEALTHY for host in group.hosts)) for group in level]
    is_known = any(group.locality == locality and group.hosts for group in level)
    return Home(locality, tuple(healthy), _census(level), is_known, len(level))


def _normalised(hosts: Sequence[H], whole: float) -> list[tuple[H, float]]:
    total = sum(host.weight for host in hosts)
    return [(host, host.weight * whole / total) for host in hosts]


def _census(level: Level[H], *, by_weight: bool = False) -> priority.Census:
    counts = dict.fromkeys(Health, 0)
    for group in level:
        for host in group.hosts:
            counts[host.health] += host.weight if by_weight else 1
    hosts = counts[Health.HEALTHY] + counts[Health.DEGRADED] + counts[Health.UNHEALTHY]
    return priority.Census(hosts, counts[Health.HEALTHY], counts[Health.DEGRADED])
