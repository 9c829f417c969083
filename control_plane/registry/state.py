"""All resources and instances at one revision: a value, replaced and never edited."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from control_plane.registry import keys
from control_plane.resources import kinds
from control_plane.store.contract import Event, EventType, KeyValue
from proto.mesh.v1 import api_pb2, service_pb2


@dataclass(frozen=True, slots=True)
class State:
    """What the mesh is told to be, and who is there."""

    revision: int = 0
    resources: Mapping[bytes, api_pb2.Resource] = field(default_factory=dict)
    """By key in the store."""
    instances: Mapping[bytes, service_pb2.Instance] = field(default_factory=dict)
    """By key in the store."""

    def of_kind(self, kind: str) -> list[api_pb2.Resource]:
        """The resources of a kind, in order of key."""
        prefix = keys.RESOURCES + kind.encode() + b"/"
        return [self.resources[key] for key in sorted(self.resources) if key.startswith(prefix)]

    def service(self, namespace: str, name: str) -> api_pb2.Resource | None:
        """A declared service."""
        return self.resources.get(keys.resource("Service", namespace, name))

    def instances_of(self, namespace: str, name: str) -> list[service_pb2.Instance]:
        """The instances behind a service's name, its selector applied; in order of id."""
        declared = self.service(namespace, name)
        selector = dict(declared.service.selector) if declared is not None else {}
        found = [
            instance
            for instance in self.instances.values()
            if instance.namespace == namespace and _selects(selector, name, instance)
        ]
        return sorted(found, key=lambda instance: instance.id)

    def service_names(self) -> list[tuple[str, str]]:
        """(namespace, name) of every service: declared, or there by its instances."""
        declared = {(item.metadata.namespace, item.metadata.name) for item in self.of_kind("Service")}
        running = {(instance.namespace, instance.service) for instance in self.instances.values()}
        return sorted(declared | running)


def _selects(selector: Mapping[str, str], name: str, instance: service_pb2.Instance) -> bool:
    if not selector:
        return instance.service == name
    labels = {**instance.labels, "service": instance.service, "version": instance.version}
    return all(labels.get(key) == value for key, value in selector.items())


def stored(resource: api_pb2.Resource) -> bytes:
    """The stored form: the resource version is the store's own, and the status is computed, so neither is kept."""
    plain = api_pb2.Resource()
    plain.CopyFrom(resource)
    plain.metadata.resource_version = 0
    plain.ClearField("status")
    return plain.SerializeToString(deterministic=True)


def read(item: KeyValue) -> api_pb2.Resource:
    """A resource from its stored form."""
    resource = api_pb2.Resource.FromString(item.value)
    resource.metadata.resource_version = item.mod_revision
    return resource


def key_of(resource: api_pb2.Resource) -> bytes:
    """Where a resource is stored."""
    metadata = resource.metadata
    return keys.resource(kinds.of(resource).name, metadata.namespace or kinds.DEFAULT_NAMESPACE, metadata.name)


def load(resources: Iterable[KeyValue], instances: Iterable[KeyValue], revision: int) -> State:
    """A state from a whole listing."""
    return State(
        revision,
        {item.key: read(item) for item in resources},
        {item.key: service_pb2.Instance.FromString(item.value) for item in instances},
    )


def advance(state: State, events: Iterable[Event]) -> State:
    """The state after some events of the store."""
    resources, instances = dict(state.resources), dict(state.instances)
    revision = state.revision
    for event in events:
        revision = event.revision
        if event.key.startswith(keys.RESOURCES):
            if event.type is EventType.DELETE:
                resources.pop(event.key, None)
            else:
                resources[event.key] = read(KeyValue(event.key, event.value, 0, event.revision))
        elif event.key.startswith(keys.INSTANCES):
            if event.type is EventType.DELETE:
                instances.pop(event.key, None)
            else:
                instances[event.key] = service_pb2.Instance.FromString(event.value)
    return State(revision, resources, instances)
