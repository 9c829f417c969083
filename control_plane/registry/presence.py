"""Who is there, as callers are to see it: the instances with leases, those that are held, and what an operator said of them.

Three things stand in the store for an instance: its record, which ends with its lease; its line on the *roster*, which does not, so that the
end of a lease and a deregistration can be told apart, also by a control plane that starts later; and perhaps an operator's word that it is
drained, which outlives restarts of its program.
"""

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from time import monotonic
from typing import Final

from google.protobuf.message import DecodeError

from control_plane.registry import keys
from control_plane.registry.state import State
from control_plane.registry.waves import Waves, service_of
from control_plane.store.contract import Event, EventType, KeyValue
from proto.mesh.v1 import service_pb2

log = logging.getLogger("remora.registry")

MAX_NAMED: Final = 5
"""Services that one line of the log names."""


class Presence:
    """Follows roster and drains; puts them over a state. Not pure only in that it says loudly what it decides."""

    def __init__(self, waves: Waves | None = None, clock: Callable[[], float] = monotonic) -> None:
        self.waves = waves or Waves()
        self.clock = clock
        self._roster: dict[bytes, bytes] = {}
        """Instances as they registered last, by the key of the instance."""
        self._drained: set[bytes] = set()
        self._over: dict[bytes, service_pb2.Instance] = {}
        """What differs from the records, by key."""
        self._told: set[bytes] = set()
        """Services of which it was said that instances are held."""

    def drained_and_gone(self, there: Container[bytes]) -> frozenset[bytes]:
        """Instances that an operator drained and that are not there."""
        return frozenset(key for key in self._drained if key not in there)

    def load(self, raw: State, items: Iterable[KeyValue]) -> State:
        """From a whole listing."""
        self._roster, self._drained = {}, set()
        for item in items:
            self._take(item.key, item.value)
        self.waves.sync(set(raw.instances), self._roster.keys() - self._drained, self.clock())
        self._tell()
        return self._put_over(raw, frozenset())

    def follow(self, raw: State, events: Iterable[Event]) -> State:
        """After some events, which `raw` has seen already."""
        touched: set[bytes] = set()
        for event in events:
            key = self._take(event.key, event.value if event.type is EventType.PUT else None)
            if key is None and event.key.startswith(keys.INSTANCES):
                key = event.key
            if key is not None:
                touched.add(key)
        now = self.clock()
        for key in sorted(touched):
            # Who is drained means to leave: his loss is none.
            self.waves.on(key, key in raw.instances, key in self._roster and key not in self._drained, now)
        self._tell()
        return self._put_over(raw, touched)

    def _take(self, key: bytes, value: bytes | None) -> bytes | None:
        """Note a key of ours, or its end (None); the instance that it is about."""
        if key.startswith(keys.ROSTER):
            about = keys.INSTANCES + key.removeprefix(keys.ROSTER)
            self._roster.pop(about, None)
            if value is not None:
                self._roster[about] = value
            return about
        if key.startswith(keys.DRAINED):
            about = keys.INSTANCES + key.removeprefix(keys.DRAINED)
            (self._drained.discard if value is None else self._drained.add)(about)
            return about
        return None

    def _put_over(self, raw: State, touched: Iterable[bytes]) -> State:
        before = self._over
        over: dict[bytes, service_pb2.Instance] = {}
        for key in self.waves.held:
            instance = before.get(key)
            if instance is None or instance.health != service_pb2.HELD or key in touched:
                instance = self._held(key)
            if instance is not None:
                over[key] = instance
        for key in self._drained & raw.instances.keys():
            over[key] = _with_health(raw.instances[key], service_pb2.DRAINING)
        self._over = over
        if not over and not before:
            return raw
        changed = None
        if raw.changed is not None:
            differs = {key for key in over.keys() | before.keys() if over.get(key) != before.get(key)}
            changed = raw.changed | differs | frozenset(touched)
        return replace(raw, instances={**raw.instances, **over}, held=frozenset(self.waves.held), changed=changed)

    def _held(self, key: bytes) -> service_pb2.Instance | None:
        try:
            return _with_health(service_pb2.Instance.FromString(self._roster[key]), service_pb2.HELD)
        except DecodeError:
            log.error("what is on the roster as %s is no instance", key.decode(errors="backslashreplace"))
            return None

    def _tell(self) -> None:
        """Say of whose service holding begins and ends."""
        counts = Counter(map(service_of, self.waves.held))
        fresh = sorted(counts.keys() - self._told)
        if fresh:
            log.error(
                "the leases of most instances of %s ended within seconds (%d so far): they are held, and served while fewer than half "
                "are healthy, until they register again or `remora release` lets them go",
                _names(fresh), sum(counts[service] for service in fresh),
            )  # fmt: skip
        over = sorted(self._told - counts.keys())
        if over:
            log.warning("no instance of %s is held any more", _names(over))
        self._told = set(counts)


def _names(services: Sequence[bytes]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(services) - MAX_NAMED} other services" if len(services) > MAX_NAMED else ""
    return ", ".join(map(_name, services[:MAX_NAMED])) + more


def _name(service: bytes) -> str:
    namespace, _, name = service.decode(errors="backslashreplace").partition("/")
    return f"{name}.{namespace}"


def _with_health(instance: service_pb2.Instance, health: service_pb2.Health.ValueType) -> service_pb2.Instance:
    found = service_pb2.Instance()
    found.CopyFrom(instance)
    found.health = health
    return found
