"""Which instances are kept although their leases ended: those that vanished together with most others. Pure: `now` is a parameter.

One lease that ends says that an instance died. Many that end at once say more likely that nobody could renew them: no control plane, or
no network to it. So when more than a share of a service's instances, or of the mesh's, vanish within a time, those are *held*: they stay in
the registry until they register again, or somebody lets them go. Who is held gets calls only while fewer than half of a service's instances are
healthy (`control_plane/translate`), as in Envoy's panic mode.

Each instance is in one of these places; a deregistered one is in none. An event costs the same, however many there are.

    alive --lease ends--> recent --within the time, with most others--> held
                            |--the time passes--> gone                    |
      ^----------------registers again-----------------------------------'
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Threshold:
    """When leases that end are a wave."""

    share: float = SHARE
    """Of the instances that are there or vanished within the time; more than this is a wave."""
    within_s: float = 30.0
    of_service: int = 2
    """At least so many of one service…"""
    of_mesh: int = 3
    """… or of the whole mesh."""


@dataclass(slots=True)
class _Group:
    """The instances of a service, or of the mesh."""

    alive: int = 0
    recent: dict[bytes, float] = field(default_factory=dict)
    """When the lease ended, in that order."""
    held: set[bytes] = field(default_factory=set)

    def is_wave(self, share: float, at_least: int) -> bool:
        missing = len(self.recent) + len(self.held)
        return missing >= at_least and missing > share * (self.alive + missing)


def service_of(key: bytes) -> bytes:
    """`NAMESPACE/SERVICE` of an instance's key."""
    namespace, service = key.split(b"/")[-3:-1]
    return namespace + b"/" + service


class Waves:
    """Told of every instance that comes, goes, or loses its lease."""

    def __init__(self, threshold: Threshold | None = None) -> None:
        self._threshold = threshold or Threshold()
        self._mesh = _Group()
        self._services: dict[bytes, _Group] = {}
        self._alive: set[bytes] = set()
        self._gone: set[bytes] = set()
        self.held_since: dict[bytes, float] = {}
        """Who is held, and since when."""
        self.waves = 0
        """Times that holding began while nobody was held."""

    @property
    def held(self) -> Mapping[bytes, float]:
        return self.held_since

    def sync(self, alive: set[bytes], listed: set[bytes], now: float) -> None:
        """Everything at once: who has a lease, and who is on the roster. What was known stays known."""
        known = self._alive | self._mesh.recent.keys() | self.held_since.keys() | self._gone
        for key in sorted(known | listed):
            self._place(key, key in alive, key in listed, now)
        for key in sorted(listed - alive):
            self._judge(key, now)

    def on(self, key: bytes, is_alive: bool, is_listed: bool, now: float) -> None:
        """An instance as it is now: has it a lease, and is it on the roster? Off the roster, its loss is no loss."""
        self._place(key, is_alive, is_listed, now)
        self._judge(key, now)

    def _place(self, key: bytes, is_alive: bool, is_listed: bool, now: float) -> None:
        self._pass(now)
        if is_listed and not is_alive:
            if key in self._mesh.recent or key in self.held_since or key in self._gone:
                return
            self._remove(key)
            for group in self._groups(key):
                group.recent[key] = now
            return
        if is_listed and key in self._alive:
            return
        self._remove(key)
        if is_listed:
            self._alive.add(key)
            for group in self._groups(key):
                group.alive += 1

    def _groups(self, key: bytes) -> tuple[_Group, _Group]:
        return self._mesh, self._services.setdefault(service_of(key), _Group())

    def _remove(self, key: bytes) -> None:
        was_alive = key in self._alive
        self._alive.discard(key)
        self._gone.discard(key)
        self.held_since.pop(key, None)
        name = service_of(key)
        for group in self._groups(key):
            group.alive -= was_alive
            group.recent.pop(key, None)
            group.held.discard(key)
        of_service = self._services[name]
        if not (of_service.alive or of_service.recent or of_service.held):
            del self._services[name]

    def _pass(self, now: float) -> None:
        """Who vanished too long ago is gone."""
        recent = self._mesh.recent
        while recent:
            key = next(iter(recent))
            if now - recent[key] <= self._threshold.within_s:
                return
            self._remove(key)
            self._gone.add(key)

    def _judge(self, key: bytes, now: float) -> None:
        limits = self._threshold
        if self._mesh.is_wave(limits.share, limits.of_mesh):
            self._hold(list(self._mesh.recent), now)
        of_service = self._services.get(service_of(key))
        if of_service is not None and of_service.is_wave(limits.share, limits.of_service):
            self._hold(list(of_service.recent), now)

    def _hold(self, found: Iterable[bytes], now: float) -> None:
        for key in found:
            self.waves += not self.held_since
            self.held_since[key] = now
            for group in self._groups(key):
                del group.recent[key]
                group.held.add(key)

    def gone(self, now: float) -> frozenset[bytes]:
        """Who vanished alone, and may be forgotten."""
        self._pass(now)
        return frozenset(self._gone)
