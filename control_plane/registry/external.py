"""Services outside of the mesh: their addresses, given or found by DNS, are instances like all others, so every data plane has them.

One replica does it for all, in its term. Instances of external services have no lease: what was found last stays while nobody resolves, or
the name is not answered for. Their ids begin with `external-`; whoever else registers such an id of an external service is taken out.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final, Protocol

from control_plane.registry import keys
from control_plane.registry.dns import Answer, NotResolved
from control_plane.registry.mirror import Mirror
from control_plane.registry.state import State
from control_plane.resources.kinds import DEFAULT_NAMESPACE
from control_plane.store.contract import MAX_TXN_OPS, Delete, Put, Store
from control_plane.store.election import Term
from proto.mesh.v1 import api_pb2, service_pb2

log = logging.getLogger("remora.registry")

PREFIX: Final = "external-"
RETRY_S: Final = 5.0
"""After a name was not resolved."""
MAX_AT_ONCE: Final = 16
"""Names that are asked for at a time."""
LONGEST_S: Final = 60.0
"""Between two looks."""

Name = str


class Resolving(Protocol):
    """What finds addresses."""

    async def resolve(self, name: str) -> Answer: ...


@dataclass(slots=True)
class _Known:
    """What is known of a name."""

    due: float = 0.0
    """When it is to be asked for again; monotonic seconds."""
    addresses: tuple[str, ...] | None = None
    """None until it was resolved for the first time."""
    is_failing: bool = False


def wanted(state: State, known: Mapping[Name, tuple[str, ...]]) -> dict[bytes, service_pb2.Instance]:
    """The instances that stand for external services, by key; of a name that is not known yet those that are there stay."""
    found: dict[bytes, service_pb2.Instance] = {}
    for resource in state.of_kind("Service"):
        if not resource.service.HasField("external"):
            continue
        external = resource.service.external
        if external.dns and external.dns not in known:
            found.update(_there(state, resource))
            continue
        for instance in _instances(resource, known):
            found[keys.instance(instance.namespace, instance.service, instance.id)] = instance
    return found


def _instances(resource: api_pb2.Resource, known: Mapping[Name, tuple[str, ...]]) -> Iterator[service_pb2.Instance]:
    external = resource.service.external
    places = [(each.address, each.port, each.weight or 1) for each in external.addresses]
    places += [(address, external.port, 1) for address in known.get(external.dns, ())]
    for address, port, weight in places:
        yield service_pb2.Instance(
            id=f"{PREFIX}{address.replace(':', '.')}-{port}",
            service=resource.metadata.name,
            namespace=resource.metadata.namespace or DEFAULT_NAMESPACE,
            address=address,
            port=port,
            weight=weight,
            health=service_pb2.HEALTHY,
        )


def _there(state: State, resource: api_pb2.Resource) -> Iterator[tuple[bytes, service_pb2.Instance]]:
    prefix = keys.instance(resource.metadata.namespace or DEFAULT_NAMESPACE, resource.metadata.name, PREFIX)
    yield from ((key, item) for key, item in state.instances.items() if key.startswith(prefix))


def changes(state: State, wanted: Mapping[bytes, service_pb2.Instance]) -> list[Put | Delete]:
    """What brings the stored instances to those that are wanted."""
    mark = f"/{PREFIX}".encode()
    there = {key: item for key, item in state.instances.items() if mark in key}
    ops: list[Put | Delete] = [Delete(key) for key in sorted(there.keys() - wanted.keys())]
    for key, instance in sorted(wanted.items()):
        known = service_pb2.Instance()
        known.CopyFrom(there.get(key, known))
        known.health = instance.health  # which an operator may have had drained
        if known != instance:
            ops.append(Put(key, instance.SerializeToString(deterministic=True)))
    return ops


class External:
    """Keeps the instances of external services while a term lasts."""

    def __init__(
        self, store: Store, mirror: Mirror, resolver: Resolving, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._resolver = resolver
        self._clock = clock
        self._names: dict[Name, _Known] = {}
        self._changed = asyncio.Event()
        mirror.on_change(lambda _: self._changed.set())

    async def run(self, term: Term) -> None:
        """Until the term is over. Raises Deposed, StoreError."""
        while True:
            self._changed.clear()
            await self._resolve_due()
            await self._settle(term)
            wait_s = min([LONGEST_S, *(known.due - self._clock() for known in self._names.values())])
            try:
                async with asyncio.timeout(max(wait_s, 0.0)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _settle(self, term: Term) -> None:
        state = self._mirror.state
        known = {name: each.addresses for name, each in self._names.items() if each.addresses is not None}
        ops = changes(state, wanted(state, known))
        revision = 0
        for start in range(0, len(ops), MAX_TXN_OPS):
            revision = (await term.txn(self._store, (), ops[start : start + MAX_TXN_OPS])).revision
        if revision:
            await self._mirror.reached(revision)

    async def _resolve_due(self) -> None:
        names = {
            item.service.external.dns for item in self._mirror.state.of_kind("Service") if item.service.external.dns
        }
        self._names = {name: self._names.get(name, _Known()) for name in sorted(names)}
        due = [name for name, known in self._names.items() if known.due <= self._clock()]
        for start in range(0, len(due), MAX_AT_ONCE):
            await asyncio.gather(*map(self._resolve, due[start : start + MAX_AT_ONCE]))

    async def _resolve(self, name: Name) -> None:
        known = self._names[name]
        try:
            found = await self._resolver.resolve(name)
        except NotResolved as error:
            if not known.is_failing:
                log.warning(
                    "external name %s: %s; %s",
                    name,
                    error,
                    "what was found last stays" if known.addresses else "it has no endpoints",
                )
            known.is_failing, known.due = True, self._clock() + RETRY_S
            return
        if known.is_failing:
            log.info("external name %s is resolved again", name)
        known.is_failing, known.addresses, known.due = False, found.addresses, self._clock() + found.ttl_s
