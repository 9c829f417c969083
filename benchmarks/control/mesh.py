"""The mesh that is measured, and the changes that are made to it: values, the same for every control plane."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zlib import crc32

from control_plane.registry import keys
from control_plane.registry.format import settle
from control_plane.registry.registry import record
from control_plane.store import open_store
from proto.mesh.v1 import api_pb2, service_pb2

NAMESPACE: Final = "default"
SERVICE: Final = "service-{:05d}"
"""The name of a service, by its number."""
FLEET: Final = "fleet"
"""The service whose instances are restarted."""
FLEET_SIZE: Final = 100
INSTANCES: Final = 2
"""Behind each of the other services."""
MIN_SERVICES: Final = 10
"""As many as the changes speak of."""
_TXN_ITEMS: Final = 100
_FIRST_PORT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Arrive:
    """An instance registers, or registers again as another version."""

    service: str
    instance: str
    version: str


@dataclass(frozen=True, slots=True)
class Leave:
    """An instance deregisters."""

    service: str
    instance: str


@dataclass(frozen=True, slots=True)
class Reroute:
    """The one route of a service gets another match."""

    service: str
    header: str


Change = Arrive | Leave | Reroute


def instance(service: str, name: str, version: str) -> service_pb2.Instance:
    """One that is healthy, at an address that follows from its name."""
    place = crc32(name.encode()) % 50_000
    return service_pb2.Instance(
        id=name,
        service=service,
        namespace=NAMESPACE,
        address="127.0.0.1",
        port=_FIRST_PORT + place,
        version=version,
        weight=1,
        health=service_pb2.HEALTHY,
    )


def route(change: Reroute) -> api_pb2.Resource:
    """A GRPCRoute with one rule: calls with that header go where all others go."""
    resource = api_pb2.Resource()
    resource.metadata.name = f"{change.service}-route"
    resource.metadata.namespace = NAMESPACE
    resource.grpc_route.parent_refs.add(name=change.service)
    rule = resource.grpc_route.rules.add()
    rule.matches.add().headers.add(name="x-version", value=change.header)
    rule.backend_refs.add(name=change.service)
    return resource


def instances(services: int) -> Iterator[service_pb2.Instance]:
    """All that are there at the start: two behind each service, and the fleet."""
    for number in range(services - 1):
        name = SERVICE.format(number)
        for which in range(INSTANCES):
            yield instance(name, f"{name}-{which}", "v1")
    for number in range(FLEET_SIZE):
        yield instance(FLEET, f"{FLEET}-{number:03d}", "mark-000000")


async def seed(folder: Path, services: int) -> None:
    """Write a mesh into an embedded store, as if its instances had registered, without leases: they stay."""
    store = await open_store(str(folder))
    try:
        await settle(store)
        puts = [
            op
            for item in instances(services)
            for op in record(item, keys.instance(NAMESPACE, item.service, item.id), 0)
        ]
        for at in range(0, len(puts), _TXN_ITEMS):
            await store.txn((), puts[at : at + _TXN_ITEMS])
    finally:
        await store.close()
