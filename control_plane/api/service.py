"""The control plane's gRPC API (remora.mesh.v1): parse, check, call, answer."""

from collections.abc import AsyncIterator
from time import time
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import Message

from control_plane.ads.core import NodeStream
from control_plane.ads.service import AdsService
from control_plane.registry import keys, state
from control_plane.registry.mirror import Mirror
from control_plane.registry.registry import DEFAULT_TTL_S, InstanceNotFound, Registry, TooBusy
from control_plane.resources import kinds, rules
from control_plane.resources.check import check
from control_plane.store.contract import Compare, Delete, LeaseNotFound, Put, Store, StoreError, StoreUnavailable
from control_plane.translate import conditions
from proto.mesh.v1 import api_pb2, api_pb2_grpc, meta_pb2

MAX_RESOURCE_BYTES: Final = 512 * 1024
DEFAULT_WAIT_S: Final = 30.0
LONGEST_WAIT_S: Final = 3600.0
MAX_ATTEMPTS: Final = 5
"""Tries of an apply that collides with another."""

Context = grpc.aio.ServicerContext[Any, Any]


async def _refuse(context: Context, code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("abort does not return")


async def _validated(context: Context, request: Message) -> None:
    found = [str(fault) for fault in rules.faults(request)]
    if found:
        await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "\n".join(found))


async def _kind(context: Context, name: str) -> str:
    kind = kinds.named(name)
    if kind is None:
        known = ", ".join(kind.name for kind in kinds.KINDS)
        await _refuse(
            context, grpc.StatusCode.INVALID_ARGUMENT, f'kind "{name}" is not known; known: {known} (RMR0007)'
        )
    return kind.name


def _namespace(name: str) -> str:
    return name or kinds.DEFAULT_NAMESPACE


class Resources(api_pb2_grpc.ResourcesServicer):
    """The operator's entrance."""

    def __init__(self, store: Store, mirror: Mirror, ads: AdsService) -> None:
        self._store = store
        self._mirror = mirror
        self._ads = ads

    async def Apply(self, request: api_pb2.ApplyRequest, context: Context) -> api_pb2.ApplyResponse:
        faults: list[str] = []
        seen: set[bytes] = set()
        for resource in request.resources:
            if resource.WhichOneof("spec") is None:
                faults.append("a resource without a spec; set one (RMR0006)")
                continue
            name = kinds.describe(resource)
            faults += [f"{name}: {fault}" for fault in check(resource)]
            size = resource.ByteSize()
            if size > MAX_RESOURCE_BYTES:
                faults.append(f"{name}: {size} bytes; at most {MAX_RESOURCE_BYTES} are taken (RMR0001)")
            key = state.key_of(resource)
            if key in seen:
                faults.append(f"{name}: stands twice in one request; keep one (RMR0004)")
            seen.add(key)
        if not request.resources:
            faults.append("no resources; give at least one (RMR0003)")
        if faults:
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "\n".join(faults))
        try:
            return await self._apply(request, context)
        except StoreError as error:
            await _refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))

    async def _apply(self, request: api_pb2.ApplyRequest, context: Context) -> api_pb2.ApplyResponse:
        for _ in range(MAX_ATTEMPTS):
            response = api_pb2.ApplyResponse()
            compares: list[Compare] = []
            puts: list[Put | Delete] = []
            for given in request.resources:
                key = state.key_of(given)
                item = await self._store.get(key)
                old = state.read(item) if item is not None else None
                wanted = given.metadata.resource_version
                if wanted and wanted != (item.mod_revision if item else 0):
                    text = f"{kinds.describe(given)} was changed by somebody else; get it and apply again"
                    await _refuse(context, grpc.StatusCode.ABORTED, text)
                fresh, outcome = _merge(given, old)
                compares.append(Compare(key, item.mod_revision if item else 0))
                if outcome != api_pb2.ApplyResponse.UNCHANGED:
                    puts.append(Put(key, state.stored(fresh)))
                response.applied.add(resource=fresh, outcome=outcome)
            if request.dry_run or not puts:
                response.revision = self._mirror.state.revision
            else:
                result = await self._store.txn(compares, puts)
                if not result.succeeded:
                    continue
                response.revision = result.revision
                await self._mirror.reached(result.revision)
            for applied in response.applied:
                if applied.outcome != api_pb2.ApplyResponse.UNCHANGED and not request.dry_run:
                    applied.resource.metadata.resource_version = response.revision
                applied.resource.status.CopyFrom(conditions.status(self._mirror.state, applied.resource))
            return response
        await _refuse(context, grpc.StatusCode.ABORTED, "others change the same resources all the time; apply again")

    async def Get(self, request: api_pb2.GetRequest, context: Context) -> api_pb2.Resource:
        await _validated(context, request)
        kind = await _kind(context, request.kind)
        namespace = _namespace(request.namespace)
        found = self._mirror.state.resources.get(keys.resource(kind, namespace, request.name))
        if found is None:
            await _refuse(context, grpc.StatusCode.NOT_FOUND, f"no {kind} {namespace}/{request.name}")
        return self._shown(found)

    async def List(self, request: api_pb2.ListRequest, context: Context) -> api_pb2.ListResponse:
        await _validated(context, request)
        names = [await _kind(context, request.kind)] if request.kind else [kind.name for kind in kinds.KINDS]
        now = self._mirror.state
        found = [
            self._shown(resource)
            for name in names
            for resource in now.of_kind(name)
            if request.namespace in ("", resource.metadata.namespace)
        ]
        return api_pb2.ListResponse(resources=found, revision=now.revision)

    async def Delete(self, request: api_pb2.DeleteRequest, context: Context) -> api_pb2.DeleteResponse:
        await _validated(context, request)
        kind = await _kind(context, request.kind)
        namespace = _namespace(request.namespace)
        key = keys.resource(kind, namespace, request.name)
        try:
            if await self._store.get(key) is None:
                await _refuse(context, grpc.StatusCode.NOT_FOUND, f"no {kind} {namespace}/{request.name}")
            result = await self._store.txn((), [Delete(key)])
        except StoreError as error:
            await _refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))
        await self._mirror.reached(result.revision)
        return api_pb2.DeleteResponse(revision=result.revision)

    async def Watch(self, request: api_pb2.WatchRequest, context: Context) -> AsyncIterator[api_pb2.WatchEvent]:
        await _validated(context, request)
        kind = await _kind(context, request.kind) if request.kind else ""
        prefix = keys.RESOURCES + (kind.encode() + b"/" if kind else b"")
        known: dict[bytes, api_pb2.Resource] = {}
        is_synced = False
        while True:
            now = self._mirror.state
            fresh = {key: resource for key, resource in now.resources.items() if key.startswith(prefix)}
            for key, resource in fresh.items():
                if known.get(key) != resource:
                    yield api_pb2.WatchEvent(resource=self._shown(resource), revision=now.revision)
            for key, resource in known.items():
                if key not in fresh:
                    yield api_pb2.WatchEvent(type=api_pb2.WatchEvent.DELETED, resource=resource, revision=now.revision)
            if not is_synced:
                is_synced = True
                yield api_pb2.WatchEvent(type=api_pb2.WatchEvent.SYNCED, revision=now.revision)
            known = fresh
            await self._mirror.reached(now.revision + 1)

    async def WaitProgrammed(
        self, request: api_pb2.WaitProgrammedRequest, context: Context
    ) -> api_pb2.WaitProgrammedResponse:
        wait_s = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else DEFAULT_WAIT_S
        behind = await self._ads.programmed(request.revision, min(wait_s, LONGEST_WAIT_S))
        if behind:
            text = "; ".join(_why_behind(stream) for stream in behind[:20])
            await _refuse(
                context, grpc.StatusCode.DEADLINE_EXCEEDED, f"{len(behind)} nodes have not acknowledged: {text}"
            )
        return api_pb2.WaitProgrammedResponse(nodes=len(self._ads.streams))

    def _shown(self, resource: api_pb2.Resource) -> api_pb2.Resource:
        """A resource with its status as of now."""
        shown = api_pb2.Resource()
        shown.CopyFrom(resource)
        now = self._mirror.state
        shown.status.CopyFrom(conditions.status(now, resource))
        behind = self._ads.behind(resource.metadata.resource_version)
        shown.status.conditions.append(
            meta_pb2.Condition(
                type="Programmed",
                status="False" if behind else "True",
                reason="Pending" if behind else "Programmed",
                message=f"{len(behind)} of {len(self._ads.streams)} nodes have not acknowledged it" if behind else "",
                observed_generation=resource.metadata.generation,
            )
        )
        return shown


def _merge(
    given: api_pb2.Resource, old: api_pb2.Resource | None
) -> tuple[api_pb2.Resource, api_pb2.ApplyResponse.Outcome.ValueType]:
    """What to store, and what that means."""
    fresh = api_pb2.Resource()
    fresh.CopyFrom(given)
    fresh.ClearField("status")
    metadata = fresh.metadata
    metadata.namespace = _namespace(metadata.namespace)
    metadata.resource_version = 0
    if old is None:
        metadata.generation = 1
        metadata.creation_timestamp.FromNanoseconds(int(time() * 1e9))
        return fresh, api_pb2.ApplyResponse.CREATED
    metadata.generation = old.metadata.generation
    metadata.creation_timestamp.CopyFrom(old.metadata.creation_timestamp)
    if state.stored(fresh) == state.stored(old):
        return old, api_pb2.ApplyResponse.UNCHANGED
    spec = str(fresh.WhichOneof("spec"))
    if getattr(fresh, spec) != getattr(old, spec):
        metadata.generation += 1
    return fresh, api_pb2.ApplyResponse.CONFIGURED


def _why_behind(stream: NodeStream) -> str:
    for item in stream.subscriptions.values():
        if item.version_nacked:
            return f"{stream.node.id} refused {item.type_url.rpartition('.')[2]}: {item.nack_reason}"
    return f"{stream.node.id} has not answered"


class RegistryService(api_pb2_grpc.RegistryServicer):
    """The instances' entrance."""

    def __init__(self, registry: Registry, mirror: Mirror, ads: AdsService) -> None:
        self._registry = registry
        self._mirror = mirror
        self._ads = ads

    async def Register(self, request: api_pb2.RegisterRequest, context: Context) -> api_pb2.RegisterResponse:
        await _validated(context, request)
        ttl_s = -(-request.ttl.ToNanoseconds() // 1_000_000_000) if request.HasField("ttl") else DEFAULT_TTL_S
        try:
            granted = await self._registry.register(request.instance, ttl_s)
        except StoreError as error:
            await _refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))
        response = api_pb2.RegisterResponse(lease_id=granted.lease_id)
        response.ttl.FromSeconds(granted.ttl_s)
        return response

    async def KeepAlive(self, request: api_pb2.KeepAliveRequest, context: Context) -> api_pb2.KeepAliveResponse:
        try:
            ttl_s = await self._registry.keep_alive(request.lease_id)
        except LeaseNotFound as error:
            await _refuse(context, grpc.StatusCode.NOT_FOUND, f"{error}; register again")
        except StoreUnavailable as error:
            await _refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))
        response = api_pb2.KeepAliveResponse()
        response.ttl.FromSeconds(ttl_s)
        return response

    async def SetHealth(self, request: api_pb2.SetHealthRequest, context: Context) -> api_pb2.SetHealthResponse:
        await _validated(context, request)
        key = request.instance
        try:
            revision = await self._registry.set_health(key.namespace, key.service, key.id, request.health)
        except InstanceNotFound as error:
            await _refuse(context, grpc.StatusCode.NOT_FOUND, str(error))
        except (TooBusy, StoreError) as error:
            await _refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))
        wait_s = min(request.wait.ToNanoseconds() / 1e9, LONGEST_WAIT_S) if request.HasField("wait") else 0.0
        if not wait_s:
            return api_pb2.SetHealthResponse(acknowledged=not self._ads.behind(revision))
        return api_pb2.SetHealthResponse(acknowledged=not await self._ads.programmed(revision, wait_s))

    async def Deregister(self, request: api_pb2.DeregisterRequest, context: Context) -> api_pb2.DeregisterResponse:
        await _validated(context, request)
        key = request.instance
        try:
            await self._registry.deregister(key.namespace, key.service, key.id)
        except StoreError as error:
            await _refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))
        return api_pb2.DeregisterResponse()

    async def ListInstances(
        self, request: api_pb2.ListInstancesRequest, context: Context
    ) -> api_pb2.ListInstancesResponse:
        await _validated(context, request)
        found = self._mirror.state.instances_of(_namespace(request.namespace), request.service)
        return api_pb2.ListInstancesResponse(instances=found)


class MeshService(api_pb2_grpc.MeshServicer):
    """The view on what is connected."""

    def __init__(self, mirror: Mirror, ads: AdsService) -> None:
        self._mirror = mirror
        self._ads = ads

    async def Nodes(self, request: api_pb2.NodesRequest, context: Context) -> api_pb2.NodesResponse:
        streams = sorted(self._ads.streams.values(), key=lambda stream: stream.node.id)
        return api_pb2.NodesResponse(nodes=[_node(stream) for stream in streams], revision=self._mirror.state.revision)


def _node(stream: NodeStream) -> api_pb2.Node:
    node = stream.node
    return api_pb2.Node(
        id=node.id,
        service=node.service,
        namespace=node.namespace,
        version=node.version,
        engine=node.engine,
        admin_address=node.admin_address,
        types=[
            api_pb2.TypeState(
                type_url=item.type_url,
                version_sent=item.version_sent,
                version_acked=item.version_acked,
                version_nacked=item.version_nacked,
                nack_reason=item.nack_reason,
                lag_ms=item.lag_ms,
            )
            for item in stream.subscriptions.values()
        ],
    )
