"""How calls are shared out among priority levels: by how many of each level's hosts are healthy, and what happens when too few are.

Everything is in whole percent and rounded down as Envoy rounds, so that the same hosts give the same shares in both engines
(Envoy: LoadBalancerBase; docs "priority levels", "degraded endpoints", "panic threshold").
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

OVERPROVISIONING: Final = 140
"""Percent: a level of which 72 of 100 hosts are healthy still takes all that is meant for it."""


@dataclass(frozen=True, slots=True)
class Census:
    """The hosts of one level, or their weights (Envoy: weighted_priority_health). Those that leave on purpose are in none of the three."""

    hosts: int
    healthy: int
    degraded: int = 0


@dataclass(frozen=True, slots=True)
class Shares:
    """Percent of the calls that each level's healthy hosts and degraded hosts get; in all 100."""

    healthy: tuple[int, ...]
    degraded: tuple[int, ...]
    panic: tuple[bool, ...] = field(default=())
    """Levels that use all their hosts, whatever their health."""

    def at(self, number: int) -> tuple[int, bool]:
        """The level for a number, and whether its degraded hosts are meant."""
        left = number % 100 + 1
        for level, share in enumerate(self.healthy):
            left -= share
            if left <= 0:
                return level, False
        for level, share in enumerate(self.degraded):
            left -= share
            if left <= 0:
                return level, True
        return 0, False


def shares(
    levels: Sequence[Census],
    *,
    overprovisioning: int = OVERPROVISIONING,
    panic_threshold: float = 50.0,
    weights: Sequence[Census] = (),
    everybody: Sequence[int] = (),
) -> Shares:
    """The shares of some levels, most important first.

    `panic_threshold` is in percent, 0 for never. Availability counts `weights` where they are given, panic always counts hosts.
    `everybody` are the hosts of each level with those that leave on purpose.
    """
    by = weights or levels
    health = [_available(level.healthy, level.hosts, overprovisioning) for level in by]
    degraded = [_available(level.degraded, level.hosts, overprovisioning) for level in by]
    total = min(100, sum(health) + sum(degraded))
    if total:
        result = _distribute(health, degraded, total)
    else:
        result = Shares((100,) + (0,) * (len(levels) - 1), (0,) * len(levels))
        if not panic_threshold:
            return Shares(result.healthy, result.degraded, (False,) * len(levels))
    panic = tuple(total < 100 and is_in_panic(level, panic_threshold) for level in levels)
    if all(panic):
        result = _by_size(everybody or [level.hosts for level in levels])
    return Shares(result.healthy, result.degraded, panic)


def _available(good: int, hosts: int, overprovisioning: int) -> int:
    return min(100, overprovisioning * good // hosts) if hosts > 0 else 0


def _distribute(health: list[int], degraded: list[int], total: int) -> Shares:
    """Healthy hosts first, level by level; what they cannot take goes to degraded ones, and what rounding left over to the first."""
    left = 100
    found: list[list[int]] = []
    for availability in (health, degraded):
        row: list[int] = []
        for percent in availability:
            share = min(left, percent * 100 // total)
            row.append(share)
            left -= share
        found.append(row)
    to_healthy, to_degraded = found
    if left:
        row, availability = (to_healthy, health) if any(health) else (to_degraded, degraded)
        row[next(level for level, percent in enumerate(availability) if percent)] += left
    return Shares(tuple(to_healthy), tuple(to_degraded))


def is_in_panic(level: Census, threshold: float) -> bool:
    """True if so few hosts are usable that those would break under the load."""
    if not level.hosts:
        return threshold > 0
    return 100.0 * level.healthy / level.hosts + 100.0 * level.degraded / level.hosts < threshold


def _by_size(sizes: Sequence[int]) -> Shares:
    """All levels are in panic: each gets what its number of hosts is worth."""
    total = sum(sizes)
    if not total:
        return Shares((100,) + (0,) * (len(sizes) - 1), (0,) * len(sizes))
    row = [100 * size // total for size in sizes]
    row[next(level for level, size in enumerate(sizes) if size)] += 100 - sum(row)
    return Shares(tuple(row), (0,) * len(sizes))
