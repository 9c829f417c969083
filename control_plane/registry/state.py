"""All resources and instances at one revision: a value, replaced and never edited."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import DecodeError

from control_plane.registry import keys
from control_plane.resources import kinds
from control_plane.store.contract import Event, EventType, KeyValue
from proto.mesh.v1 import api_pb2, identity_pb2, service_pb2

log = logging.getLogger("remora.registry")

T = TypeVar("T")


class Unreadable(Exception):
    """A stored value that this release cannot make sense of."""


@dataclass(frozen=True, slots=True)
class State:
    """What the mesh is told to be, and who is there."""

    revision: int = 0
    resources: Mapping[bytes, api_pb2.Resource] = field(default_factory=dict)
    """By key in the store."""
    instances: Mapping[bytes, service_pb2.Instance] = field(default_factory=dict)
    """By key in the store."""
    trust: identity_pb2.Trust | None = None
    """Whom the mesh trusts; None for a mesh without identities."""
    held: frozenset[bytes] = frozenset()
    """Instances whose leases ended together with most others, and that are kept (`waves`)."""
    changed: frozenset[bytes] | None = field(default=None, compare=False)
    """Keys that may differ from the state before; None if that is not known."""

    def of_kind(self, kind: str) -> list[api_pb2.Resource]:
        """The resources of a kind, in order of key."""
        prefix = keys.RESOURCES + kind.encode() + b"/"
        return [self.resources[key] for key in sorted(self.resources) if key.startswith(prefix)]

    def service(self, namespace: str, name: str) -> api_pb2.Resource | None:
        """A declared service."""
        return self.resources.get(keys.resource("Service", namespace, name))

    def instances_of(self, namespace: str, name: str) -> list[service_pb2.Instance]:
        """The instances behind a service's name, its selector applied; in order of id."""
        selector = self.selector(namespace, name)
        found = [
            instance
            for instance in self.instances.values()
            if instance.namespace == namespace and selects(selector, instance)
        ]
        return sorted(found, key=lambda instance: instance.id)

    def selector(self, namespace: str, name: str) -> Mapping[str, str]:
        """What chooses the instances behind a service's name, in its namespace."""
        declared = self.service(namespace, name)
        chosen = dict(declared.service.selector) if declared is not None else {}
        return chosen or {"service": name}

    def service_names(self) -> list[tuple[str, str]]:
        """(namespace, name) of every service: declared, or there by its instances."""
        declared = {(item.metadata.namespace, item.metadata.name) for item in self.of_kind("Service")}
        running = {(instance.namespace, instance.service) for instance in self.instances.values()}
        return sorted(declared | running)


def selects(selector: Mapping[str, str], instance: service_pb2.Instance) -> bool:
    """True if an instance has every label that is asked for; `service` and `version` are labels of every instance."""
    own = {"service": instance.service, "version": instance.version}
    return all((own[key] if key in own else instance.labels.get(key)) == value for key, value in selector.items())


def stored(resource: api_pb2.Resource) -> bytes:
    """The stored form: the resource version is the store's own, and the status is computed, so neither is kept."""
    plain = api_pb2.Resource()
    plain.CopyFrom(resource)
    plain.metadata.resource_version = 0
    plain.ClearField("status")
    return plain.SerializeToString(deterministic=True)


def read_instance(item: KeyValue) -> service_pb2.Instance:
    """An instance from its stored form. Raises Unreadable."""
    try:
        return service_pb2.Instance.FromString(item.value)
    except DecodeError:
        raise Unreadable(f"what is stored as {_shown(item.key)} is no instance") from None


def read(item: KeyValue) -> api_pb2.Resource:
    """A resource from its stored form. Raises Unreadable."""
    try:
        resource = api_pb2.Resource.FromString(item.value)
    except DecodeError:
        raise Unreadable(f"what is stored as {_shown(item.key)} is no resource") from None
    if resource.WhichOneof("spec") is None:
        raise Unreadable(f"what is stored as {_shown(item.key)} is of a kind that this release does not know")
    resource.metadata.resource_version = item.mod_revision
    return resource


def key_of(resource: api_pb2.Resource) -> bytes:
    """Where a resource is stored."""
    metadata = resource.metadata
    return keys.resource(kinds.of(resource).name, metadata.namespace or kinds.DEFAULT_NAMESPACE, metadata.name)


def read_trust(item: KeyValue) -> identity_pb2.Trust:
    """The mesh's trust from its stored form. Raises Unreadable."""
    try:
        return identity_pb2.Trust.FromString(item.value)
    except DecodeError:
        raise Unreadable(f"what is stored as {_shown(item.key)} is no trust") from None


def load(
    resources: Iterable[KeyValue], instances: Iterable[KeyValue], revision: int, trust: Iterable[KeyValue] = ()
) -> State:
    """A state from a whole listing."""
    return State(
        revision,
        dict(_readable(resources, read)),
        dict(_readable(instances, read_instance)),
        dict(_readable(trust, read_trust)).get(keys.TRUST),
    )


def _readable(items: Iterable[KeyValue], parse: Callable[[KeyValue], T]) -> Iterator[tuple[bytes, T]]:
    """What can be read of some items. One bad value, or one of a later release, must not keep the rest from being served."""
    for item in items:
        try:
            yield item.key, parse(item)
        except Unreadable as error:
            log.error("left out of revision %d: %s", item.mod_revision, error)


def _shown(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def advance(state: State, events: Iterable[Event]) -> State:
    """The state after some events of the store."""
    resources, instances = dict(state.resources), dict(state.instances)
    revision, changed, trust = state.revision, set(), state.trust
    for event in events:
        revision = event.revision
        changed.add(event.key)
        if event.key.startswith(keys.RESOURCES):
            resources.pop(event.key, None)
            resources.update(_readable(_put(event), read))
        elif event.key.startswith(keys.INSTANCES):
            instances.pop(event.key, None)
            instances.update(_readable(_put(event), read_instance))
        elif event.key == keys.TRUST:
            trust = dict(_readable(_put(event), read_trust)).get(event.key)
    return State(revision, resources, instances, trust, changed=frozenset(changed))


def _put(event: Event) -> list[KeyValue]:
    """What an event leaves: one item, or none if it deletes."""
    if event.type is EventType.DELETE:
        return []
    return [KeyValue(event.key, event.value, 0, event.revision, event.lease)]
