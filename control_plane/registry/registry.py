"""Who is there: instances under leases."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from control_plane.registry import keys
from control_plane.registry.state import read_instance
from control_plane.resources.kinds import DEFAULT_NAMESPACE
from control_plane.store.contract import Compare, Delete, LeaseNotFound, Put, Store
from proto.mesh.v1 import service_pb2

DEFAULT_TTL_S: Final = 10
MAX_ATTEMPTS: Final = 5
"""Tries of a change that collides with another; each means that somebody else got through."""


class InstanceNotFound(Exception):
    """No such instance is registered."""


class TooBusy(Exception):
    """A change collided with others again and again; nothing was done."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A granted lease."""

    lease_id: int
    ttl_s: int


def record(instance: service_pb2.Instance, key: bytes, lease: int) -> list[Put | Delete]:
    """What is written for an instance. One that drains means to leave: it is taken off the roster, so nobody will hold it."""
    value = instance.SerializeToString(deterministic=True)
    line = keys.roster(instance.namespace, instance.service, instance.id)
    is_leaving = instance.health == service_pb2.DRAINING
    return [Put(key, value, lease), Delete(line) if is_leaving else Put(line, value)]


class Registry:
    """Registers instances in the store. The state is read through `Mirror`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def register(self, instance: service_pb2.Instance, ttl_s: int) -> Registration:
        """Store an instance under a new lease; one with the same id is replaced."""
        stored = service_pb2.Instance()
        stored.CopyFrom(instance)
        stored.namespace = stored.namespace or DEFAULT_NAMESPACE
        stored.weight = stored.weight or 1
        if stored.health == service_pb2.HEALTH_UNKNOWN:
            stored.health = service_pb2.HEALTHY
        key = keys.instance(stored.namespace, stored.service, stored.id)
        old = await self._store.get(key)
        lease = await self._store.grant(ttl_s)
        await self._store.txn((), record(stored, key, lease))
        if old is not None and old.lease and old.lease != lease:
            await self._store.revoke(old.lease)  # its key has moved to the new lease
        return Registration(lease, ttl_s)

    async def keep_alive(self, lease_id: int) -> int:
        """Renew a lease; its TTL in seconds. Raises LeaseNotFound."""
        return await self._store.keep_alive(lease_id)

    async def set_health(
        self, namespace: str, service: str, instance_id: str, health: service_pb2.Health.ValueType
    ) -> int:
        """Change an instance's health; the revision of the change. Raises InstanceNotFound, TooBusy."""
        key = keys.instance(namespace or DEFAULT_NAMESPACE, service, instance_id)
        for _ in range(MAX_ATTEMPTS):
            item = await self._store.get(key)
            if item is None:
                raise InstanceNotFound(f"no instance {instance_id} of {service}.{namespace or DEFAULT_NAMESPACE}")
            instance = read_instance(item)
            if instance.health == health:
                return item.mod_revision
            instance.health = health
            try:
                result = await self._store.txn([Compare(key, item.mod_revision)], record(instance, key, item.lease))
            except LeaseNotFound:
                continue  # the lease ended meanwhile: the instance is gone, the next look will say so
            if result.succeeded:
                return result.revision
        raise TooBusy(f"instance {instance_id} changes all the time; try again")

    async def deregister(self, namespace: str, service: str, instance_id: str) -> None:
        """Take an instance out and end its lease; no error if it is not there."""
        place = (namespace or DEFAULT_NAMESPACE, service, instance_id)
        item = await self._store.get(keys.instance(*place))
        gone = [Delete(keys.instance(*place)), Delete(keys.roster(*place)), Delete(keys.drained(*place))]
        await self._store.txn((), gone)
        if item is not None and item.lease:
            await self._store.revoke(item.lease)

    async def drain(self, namespace: str, service: str, instance_id: str, is_drained: bool) -> int:
        """An operator's word that an instance gets no new calls, or gets them again; it outlives restarts of the program.

        The revision of the change. Raises InstanceNotFound.
        """
        place = (namespace or DEFAULT_NAMESPACE, service, instance_id)
        mark = keys.drained(*place)
        item = await self._store.get(keys.instance(*place))
        if item is None:
            raise InstanceNotFound(f"no instance {instance_id} of {service}.{place[0]}")
        change: Put | Delete = Put(mark, b"1") if is_drained else Delete(mark)
        return (await self._store.txn((), [change])).revision

    async def release(self, vanished: Iterable[bytes], guard: Sequence[Compare] = ()) -> int:
        """Forget instances whose leases have ended (keys of instances), with what was said of them; those that are back stay.

        How many are gone. With `guard` only while that holds.
        """
        count = 0
        for key in vanished:
            place = key.removeprefix(keys.INSTANCES)
            forgotten = [Delete(keys.ROSTER + place), Delete(keys.DRAINED + place)]
            count += (await self._store.txn([*guard, Compare(key, 0)], forgotten)).succeeded
        return count
