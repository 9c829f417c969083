"""Zone-aware routing: as much as possible stays in the caller's zone, without overloading anybody (Envoy: ZoneAwareLbConfig).

Callers of one service are spread over zones, and so are the hosts that they call. If the caller's zone has a larger share of the hosts
than of the callers, all of its calls stay; if not, what is too much goes to zones that have more hosts than callers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sidecar.policy.priority import Census

Locality = tuple[str, str, str]
"""Region, zone, sub-zone."""


@dataclass(frozen=True, slots=True)
class Home:
    """The caller's own service: where its instances run."""

    locality: Locality
    """Of this caller."""
    callers: tuple[tuple[Locality, int], ...]
    """Healthy instances by locality."""
    census: Census
    """All instances: if too few are healthy, their places say nothing."""
    is_known: bool
    """The caller's own locality has instances, healthy or not."""
    zones: int
    """Localities that have an instance, healthy or not."""


@dataclass(frozen=True, slots=True)
class Zoning:
    """How calls are shared out among localities, the caller's own first."""

    local: int
    """Of 10,000 calls, those that stay in the first; 10,000 is all."""
    others: tuple[int, ...] = ()
    """For the rest: running sum of the room that each locality has left, of 10,000."""

    def at(self, first: int, second: int) -> int:
        """The locality for two numbers by chance, below 2**32 each."""
        if first % 10_000 < self.local:
            return 0
        if not self.others[-1]:
            return second % len(self.others)
        threshold = second % self.others[-1]
        return next(place for place, room in enumerate(self.others) if threshold < room)


def zoning(home: Home, upstream: Sequence[tuple[Locality, int]], min_cluster_size: int) -> Zoning | None:
    """How to share out among localities with so many healthy hosts each, the caller's own first; None if zones are not to count.

    An empty locality in front stands for a caller's zone without hosts.
    """
    hosts = sum(count for _, count in upstream)
    if len(upstream) < 2 or home.zones < 2 or not home.is_known or hosts < min_cluster_size:
        return None
    callers: Mapping[Locality, int] = dict(home.callers)
    total = sum(callers.values())
    shares = [
        (10_000 * count // hosts if hosts else 0, 10_000 * callers.get(place, 0) // total if count and total else 0)
        for place, count in upstream
    ]
    is_local = upstream[0][0] == home.locality
    theirs, ours = shares[0]
    if is_local and theirs > 0 and theirs >= ours:
        return Zoning(10_000)
    room: list[int] = []
    for number, (theirs_there, ours_there) in enumerate(shares):
        before = room[-1] if room else 0
        spare = theirs_there - ours_there
        room.append(before + spare if spare > 0 and not (number == 0 and is_local) else before)
    return Zoning(theirs * 10_000 // ours if is_local and ours else 0, tuple(room))
