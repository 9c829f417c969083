"""Subsets: a call that asks for labels goes to hosts that have them (Envoy: SubsetLoadBalancer).

A subset is a cluster of its own, with its own levels, panic and turns. Which subsets there are is known from the labels of the hosts; the
balancer of one is made at the first call that asks for it.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from sidecar.policy.balance import ANY, Balancer, Wish
from sidecar.policy.balancing import Fallback, Labels, Subsetting
from sidecar.policy.hosts import Group, Host, Level
from sidecar.policy.spread import Lazily


class Labelled(Host, Protocol):
    """A host with labels."""

    labels: Mapping[str, Hashable]
    """A list of values is a tuple; nothing else is."""


L = TypeVar("L", bound=Labelled)


class Subsets(Generic[L]):
    """The subsets of a cluster."""

    def __init__(
        self, levels: Sequence[Level[L]], how: Subsetting, make: Callable[[Sequence[Level[L]], float], Balancer[L]]
    ) -> None:
        self._how = how
        self._levels = tuple(levels)
        self._make = make
        self._selectors = {selector.keys: selector for selector in how.selectors}
        self._subsets: dict[Labels, Balancer[L]] = {}
        for selector in how.selectors:
            for labels in self._found(selector.keys):
                self._subsets[labels] = self._of(labels)
        self._any = self._of(())
        self._default = self._of(how.default)

    def _found(self, keys: tuple[str, ...]) -> set[Labels]:
        """Every combination of values that hosts have for these names."""
        found: set[Labels] = set()
        for level in self._levels:
            for group in level:
                for host in group.hosts:
                    combinations: list[Labels] = [()]
                    for key in keys:
                        value = host.labels.get(key, _MISSING)
                        values = value if self._how.takes_lists_as_any and isinstance(value, tuple) else (value,)
                        combinations = [(*start, (key, each)) for start in combinations for each in values]
                    found.update(labels for labels in combinations if all(value is not _MISSING for _, value in labels))
        return found

    def _of(self, labels: Labels) -> Balancer[L]:
        return Lazily(lambda now: self._make([self._part(level, labels) for level in self._levels], now))

    def _part(self, level: Level[L], labels: Labels) -> Level[L]:
        """The hosts of a level that have all these labels."""
        groups: list[Group[L]] = []
        for group in level:
            hosts = tuple(host for host in group.hosts if all(self._has(host, *label) for label in labels))
            weight = group.weight if self._how.keeps_locality_weights else 0
            if self._how.scales_locality_weights and group.hosts:
                weight = int(weight * len(hosts) / len(group.hosts) + 0.5)
            groups.append(replace(group, hosts=hosts, weight=weight))
        return tuple(groups)

    def _has(self, host: L, key: str, wanted: Hashable) -> bool:
        value = host.labels.get(key, _MISSING)
        if self._how.takes_lists_as_any and isinstance(value, tuple):
            return wanted in value
        return value == wanted

    def pick(self, wish: Wish = ANY, attempt: int = 0, now: float = 0.0) -> L | None:
        match = wish.match
        while match:
            subset = self._subsets.get(match)
            if subset is not None:
                return subset.pick(wish, attempt, now)
            selector = self._selectors.get(tuple(key for key, _ in match))
            if selector is None or selector.fallback is None:
                break
            if selector.fallback is not Fallback.KEYS:
                return self._fall_back(selector.fallback, wish, attempt, now)
            match = tuple(label for label in match if label[0] in selector.fallback_keys)
        host = self._fall_back(self._how.fallback, wish, attempt, now)
        if host is None and self._how.uses_any_in_panic and self._how.fallback is not Fallback.NOTHING:
            return self._any.pick(wish, attempt, now)
        return host

    def _fall_back(self, fallback: Fallback, wish: Wish, attempt: int, now: float) -> L | None:
        if fallback is Fallback.ANY:
            return self._any.pick(wish, attempt, now)
        if fallback is Fallback.DEFAULT:
            return self._default.pick(wish, attempt, now)
        return None


class _Missing:
    """No value: the host has no such label."""


_MISSING = _Missing()
