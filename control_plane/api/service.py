"""The control plane's gRPC API (remora.mesh.v1): parse, check, call, answer."""

import asyncio
import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Final

import grpc

from control_plane.ads.core import NodeStream
from control_plane.ads.service import AdsService, short
from control_plane.ads.subscription import Subscription
from control_plane.api.refused import Refused
from control_plane.api.replicas import Replicas, Verdict, is_from_replica
from control_plane.api.writing import Author, Writer, Written
from control_plane.registry import keys, state
from control_plane.registry.mirror import Mirror
from control_plane.registry.registry import DEFAULT_TTL_S, Registry
from control_plane.registry.state import State
from control_plane.resources import kinds
from control_plane.resources.check import check
from control_plane.store.contract import Store
from control_plane.translate.conditions import Conditions
from control_plane.translate.coverage import Coverage
from proto.mesh.v1 import api_pb2, api_pb2_grpc, meta_pb2

log = logging.getLogger("remora.api")

MAX_RESOURCES: Final = 100
"""In one request, so in one transaction."""
MAX_RESOURCE_BYTES: Final = 512 * 1024
MAX_APPLY_BYTES: Final = 1_000_000
"""Of all resources of one request: they go into one transaction, and etcd takes 1.5 MiB."""
DEFAULT_WAIT_S: Final = 30.0
CAUGHT_UP_S: Final = 5.0
"""How long an answer waits for the change that it is about to be served."""
MAX_BEHIND: Final = 3
"""Nodes that one condition names."""
MAX_NAMED: Final = 20
"""Nodes that one message names."""

Context = grpc.aio.ServicerContext[Any, Any]


def _kind(name: str) -> str:
    kind = kinds.named(name)
    if kind is None:
        known = ", ".join(kind.name for kind in kinds.KINDS)
        text = f'kind "{name}" is not known; known: {known} (RMR0007)'
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)
    return kind.name


def _namespace(name: str) -> str:
    return name or kinds.DEFAULT_NAMESPACE


class Resources(api_pb2_grpc.ResourcesServicer):
    """The operator's entrance."""

    def __init__(self, store: Store, mirror: Mirror, ads: AdsService, replicas: Replicas) -> None:
        self._replicas = replicas
        self._writer = Writer(store)
        self._mirror = mirror
        self._ads = ads
        self._judged = Conditions(mirror.state)
        self._covering = _Covering(ads)

    async def Apply(self, request: api_pb2.ApplyRequest, context: Context) -> api_pb2.ApplyResponse:
        _refuse(_faults(request.resources, request.ByteSize()))
        author = Author(request.by or _address_of(context))
        written = await self._writer.apply(request.resources, author, is_dry=request.dry_run)
        revision = await self._told(written, is_dry=request.dry_run)
        return api_pb2.ApplyResponse(applied=written.applied, revision=revision)

    async def Diff(self, request: api_pb2.DiffRequest, context: Context) -> api_pb2.DiffResponse:
        _refuse(_faults(request.resources, request.ByteSize()))
        written = await self._writer.apply(request.resources, Author(""), is_dry=True)
        await self._told(written, is_dry=True)
        response = api_pb2.DiffResponse()
        for before, applied in zip(written.before, written.applied, strict=True):
            response.differences.add(
                before=before, after=applied.resource, outcome=applied.outcome, changes=applied.changes
            )
        return response

    async def History(self, request: api_pb2.HistoryRequest, context: Context) -> api_pb2.HistoryResponse:
        kind, namespace = _kind(request.kind), _namespace(request.namespace)
        known = await self._writer.history(kind, namespace, request.name)
        if not known:
            text = f"no {kind} {namespace}/{request.name}, and no past of one"
            raise Refused(grpc.StatusCode.NOT_FOUND, text)
        return api_pb2.HistoryResponse(revisions=known)

    async def Rollback(self, request: api_pb2.RollbackRequest, context: Context) -> api_pb2.RollbackResponse:
        written = await self._writer.rollback(
            _kind(request.kind),
            _namespace(request.namespace),
            request.name,
            request.revision,
            request.by or _address_of(context),
            is_dry=request.dry_run,
        )
        revision = await self._told(written, is_dry=request.dry_run)
        return api_pb2.RollbackResponse(applied=written.applied[0], revision=revision, to_revision=written.to_revision)

    async def _told(self, written: Written, *, is_dry: bool) -> int:
        """The revision that an answer is about, once it is served; gives the resources their status."""
        if written.revision:
            await self._caught_up(written.revision)
        conditions = self._conditions()
        if is_dry:
            now = self._mirror.state
            supposed = {state.key_of(applied.resource): applied.resource for applied in written.applied}
            conditions = Conditions(State(now.revision, {**now.resources, **supposed}, now.instances))
        for applied in written.applied:
            applied.resource.status.CopyFrom(conditions.status(applied.resource))
            self._say_coverage(applied.resource)
        return written.revision or self._mirror.state.revision

    async def _caught_up(self, revision: int) -> None:
        """Wait until a change of ours is served; not for ever, since it is stored in any case."""
        try:
            async with asyncio.timeout(CAUGHT_UP_S):
                await self._mirror.reached(revision)
        except TimeoutError:
            log.warning("revision %d is stored, and not seen in the watch after %g s", revision, CAUGHT_UP_S)

    def _conditions(self) -> Conditions:
        """The conditions of the present state, found once for all calls that look at it."""
        if self._judged.state is not self._mirror.state:
            self._judged = Conditions(self._mirror.state)
        return self._judged

    async def Get(self, request: api_pb2.GetRequest, context: Context) -> api_pb2.Resource:
        kind = _kind(request.kind)
        namespace = _namespace(request.namespace)
        found = self._mirror.state.resources.get(keys.resource(kind, namespace, request.name))
        if found is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"no {kind} {namespace}/{request.name}")
        return self._shown(found, _Progress(self._ads.streams.values()))

    async def List(self, request: api_pb2.ListRequest, context: Context) -> api_pb2.ListResponse:
        names = [_kind(request.kind)] if request.kind else [kind.name for kind in kinds.KINDS]
        now, progress = self._mirror.state, _Progress(self._ads.streams.values())
        found = [
            self._shown(resource, progress)
            for name in names
            for resource in now.of_kind(name)
            if request.namespace in ("", resource.metadata.namespace)
        ]
        return api_pb2.ListResponse(resources=found, revision=now.revision)

    async def Delete(self, request: api_pb2.DeleteRequest, context: Context) -> api_pb2.DeleteResponse:
        by = request.by or _address_of(context)
        revision = await self._writer.delete(_kind(request.kind), _namespace(request.namespace), request.name, by)
        await self._caught_up(revision)
        return api_pb2.DeleteResponse(revision=revision)

    async def Watch(self, request: api_pb2.WatchRequest, context: Context) -> AsyncIterator[api_pb2.WatchEvent]:
        kind = _kind(request.kind) if request.kind else ""
        prefix = keys.RESOURCES + (kind.encode() + b"/" if kind else b"")
        known: dict[bytes, api_pb2.Resource] = {}
        is_synced = False
        while True:
            now = self._mirror.state
            fresh = {key: resource for key, resource in now.resources.items() if key.startswith(prefix)}
            for key, resource in fresh.items():
                if known.get(key) is not resource and known.get(key) != resource:
                    shown = self._shown(resource, _Progress(self._ads.streams.values()))
                    yield api_pb2.WatchEvent(resource=shown, revision=now.revision)
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
        asked = self._replicas.programmed(request.revision, wait_s) if not is_from_replica(context) else _nobody()
        is_done, others = await asyncio.gather(self._ads.programmed(request.revision, wait_s), asked)
        faults = [] if is_done else [self._why_not(request.revision)]
        faults += [verdict.why_not for verdict in others if verdict.why_not]
        if faults:
            raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "; ".join(faults))
        return api_pb2.WaitProgrammedResponse(nodes=len(self._ads.streams) + sum(verdict.nodes for verdict in others))

    def _why_not(self, revision: int) -> str:
        now = self._mirror.state.revision
        if now < revision:
            stale_s = self._mirror.stale_s
            away = f"; the store has not been reached for {stale_s:.0f} s" if stale_s else ""
            return f"revision {revision} is not served yet; revision {now} is{away}"
        behind = self._ads.behind(revision)
        named = "; ".join(map(_why_behind, behind[:MAX_NAMED]))
        rest = f"; and {len(behind) - MAX_NAMED} more" if len(behind) > MAX_NAMED else ""
        return (
            f"{len(behind)} of {len(self._ads.streams)} nodes have not acknowledged revision {revision}: {named}{rest}"
        )

    def _shown(self, resource: api_pb2.Resource, progress: "_Progress") -> api_pb2.Resource:
        """A resource with its status as of now."""
        shown = api_pb2.Resource()
        shown.CopyFrom(resource)
        shown.status.CopyFrom(self._conditions().status(resource))
        self._say_coverage(shown)
        shown.status.conditions.append(progress.condition(resource))
        return shown

    def _say_coverage(self, resource: api_pb2.Resource) -> None:
        """Add a condition if the resource is not enforced wherever it concerns."""
        text = self._covering.at(self._mirror.state).summary(resource)
        if text:
            resource.status.conditions.add(
                type="Enforced",
                status="False",
                reason="NotSupported",
                message=text,
                observed_generation=resource.metadata.generation,
            )


def _refuse(faults: Iterable[str]) -> None:
    """Raises Refused if there are faults."""
    found = list(faults)
    if found:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "\n".join(found))


def _address_of(context: Context) -> str:
    """Where a call comes from, without the port: `ipv4:127.0.0.1:4711` is 127.0.0.1."""
    return str(context.peer()).partition(":")[2].rpartition(":")[0]


def _faults(resources: Sequence[api_pb2.Resource], size: int) -> Iterator[str]:
    """Every fault of a request of so many bytes, each a line that says which resource it is in."""
    count = len(resources)
    if not count:
        yield "no resources; give at least one (RMR0003)"
    if count > MAX_RESOURCES:
        yield f"{count} resources in one request; at most {MAX_RESOURCES} are taken: apply in parts (RMR0001)"
        return
    if size > MAX_APPLY_BYTES:
        yield f"{size} bytes in one request; at most {MAX_APPLY_BYTES} are taken: apply in parts (RMR0001)"
        return
    seen: set[bytes] = set()
    for number, resource in enumerate(resources):
        if resource.WhichOneof("spec") is None:
            known = " or ".join(kind.field for kind in kinds.KINDS)
            yield f"resources[{number}]: has no spec; set {known} (RMR0006)"
            continue
        name = kinds.describe(resource)
        yield from (f"{name}: {fault}" for fault in check(resource))
        if resource.ByteSize() > MAX_RESOURCE_BYTES:
            yield f"{name}: {resource.ByteSize()} bytes; at most {MAX_RESOURCE_BYTES} are taken (RMR0001)"
        key = state.key_of(resource)
        if key in seen:
            yield f"{name}: stands twice in one request; keep one (RMR0004)"
        seen.add(key)


def _why_behind(stream: NodeStream) -> str:
    return f"{stream.node.id} {_refusal(stream) or 'has not answered'}"


def _refusal(stream: NodeStream) -> str:
    """What a node refused, and why; empty if it refused nothing."""
    for item in stream.subscriptions.values():
        if item.version_nacked:
            return f"refused {short(item.type_url)}: {item.nack_reason}"
    return ""


async def _nobody() -> list[Verdict]:
    return []


def _service_of(key: bytes) -> tuple[str, str]:
    """Namespace and service of an instance's key."""
    namespace, service = key.decode().split("/")[-3:-1]
    return namespace, service


class RegistryService(api_pb2_grpc.RegistryServicer):
    """The instances' entrance."""

    def __init__(self, registry: Registry, mirror: Mirror, ads: AdsService, replicas: Replicas) -> None:
        self._registry = registry
        self._replicas = replicas
        self._mirror = mirror
        self._ads = ads

    async def Register(self, request: api_pb2.RegisterRequest, context: Context) -> api_pb2.RegisterResponse:
        ttl_s = -(-request.ttl.ToNanoseconds() // 1_000_000_000) if request.HasField("ttl") else DEFAULT_TTL_S
        granted = await self._registry.register(request.instance, ttl_s)
        response = api_pb2.RegisterResponse(lease_id=granted.lease_id)
        response.ttl.FromSeconds(granted.ttl_s)
        return response

    async def KeepAlive(self, request: api_pb2.KeepAliveRequest, context: Context) -> api_pb2.KeepAliveResponse:
        ttl_s = await self._registry.keep_alive(request.lease_id)
        response = api_pb2.KeepAliveResponse()
        response.ttl.FromSeconds(ttl_s)
        return response

    async def SetHealth(self, request: api_pb2.SetHealthRequest, context: Context) -> api_pb2.SetHealthResponse:
        key = request.instance
        revision = await self._registry.set_health(key.namespace, key.service, key.id, request.health)
        return await self._acknowledged(revision, request.wait.ToNanoseconds() / 1e9)

    async def _acknowledged(self, revision: int, wait_s: float) -> api_pb2.SetHealthResponse:
        """Whether all nodes of all replicas have a revision, once they do or the time is over."""
        if not wait_s:
            return api_pb2.SetHealthResponse(acknowledged=self._ads.is_programmed(revision))
        is_done, others = await asyncio.gather(
            self._ads.programmed(revision, wait_s), self._replicas.programmed(revision, wait_s)
        )
        return api_pb2.SetHealthResponse(acknowledged=is_done and not any(verdict.why_not for verdict in others))

    async def Drain(self, request: api_pb2.DrainRequest, context: Context) -> api_pb2.SetHealthResponse:
        key = request.instance
        revision = await self._registry.drain(key.namespace, key.service, key.id, not request.undo)
        return await self._acknowledged(revision, request.wait.ToNanoseconds() / 1e9)

    async def Release(self, request: api_pb2.ReleaseRequest, context: Context) -> api_pb2.ReleaseResponse:
        prefix = (
            keys.instance(_namespace(request.namespace), request.service, "") if request.service else keys.INSTANCES
        )
        held = sorted(key for key in self._mirror.state.held if key.startswith(prefix))
        return api_pb2.ReleaseResponse(released=await self._registry.release(held))

    async def Deregister(self, request: api_pb2.DeregisterRequest, context: Context) -> api_pb2.DeregisterResponse:
        key = request.instance
        await self._registry.deregister(key.namespace, key.service, key.id)
        return api_pb2.DeregisterResponse()

    async def ListInstances(
        self, request: api_pb2.ListInstancesRequest, context: Context
    ) -> api_pb2.ListInstancesResponse:
        found = self._mirror.state.instances_of(_namespace(request.namespace), request.service)
        return api_pb2.ListInstancesResponse(instances=found)


class _Progress:
    """How far the nodes of this replica are, looked up once for many resources."""

    def __init__(self, streams: Iterable[NodeStream]) -> None:
        self._streams = sorted(streams, key=_programmed)

    def condition(self, resource: api_pb2.Resource) -> meta_pb2.Condition:
        """`Programmed`, of a stored resource."""
        count = bisect_left(self._streams, resource.metadata.resource_version, key=_programmed)
        behind = self._streams[:count]
        reason, text = "Programmed", ""
        if behind:
            reason = "Refused" if any(map(_refusal, behind)) else "Pending"
            most = sorted(behind, key=lambda stream: not _refusal(stream))[:MAX_BEHIND]
            rest = f"; and {count - MAX_BEHIND} more" if count > MAX_BEHIND else ""
            named = "; ".join(map(_why_behind, most)) + rest
            text = f"{count} of {len(self._streams)} nodes have not acknowledged it: {named}"
        return meta_pb2.Condition(
            type="Programmed",
            status="False" if behind else "True",
            reason=reason,
            message=text,
            observed_generation=resource.metadata.generation,
        )


def _programmed(stream: NodeStream) -> int:
    return stream.programmed


class _Covering:
    """The coverage of the present state by the nodes of this replica, found once as long as neither changes."""

    def __init__(self, ads: AdsService) -> None:
        self._ads = ads
        self._basis: tuple[State, int, int] | None = None
        self._found = Coverage(State(), ())

    def at(self, now: State) -> Coverage:
        """Of a state with the nodes that are connected now."""
        streams = self._ads.streams
        basis = now, next(reversed(streams), 0), len(streams)  # numbers of streams only grow
        if self._basis is None or self._basis[0] is not now or self._basis[1:] != basis[1:]:
            self._basis, self._found = basis, Coverage(now, (stream.node for stream in streams.values()))
        return self._found


class MeshService(api_pb2_grpc.MeshServicer):
    """The view on what is connected."""

    def __init__(self, mirror: Mirror, ads: AdsService, replicas: Replicas) -> None:
        self._replicas = replicas
        self._mirror = mirror
        self._ads = ads
        self._covering = _Covering(ads)

    async def Nodes(self, request: api_pb2.NodesRequest, context: Context) -> api_pb2.NodesResponse:
        now, stale_s = self._mirror.state, self._mirror.stale_s
        others, silent = await self._replicas.nodes() if not is_from_replica(context) else ([], [])
        coverage = self._covering.at(now)
        own = _nodes(self._ads.streams.values(), coverage)
        found = [*own, *others]
        response = api_pb2.NodesResponse(
            nodes=sorted(found, key=lambda node: node.id), revision=now.revision, silent_replicas=silent
        )
        if stale_s:
            response.stale.FromNanoseconds(int(stale_s * 1e9))
        for (namespace, service), count in sorted(Counter(map(_service_of, now.held)).items()):
            response.held.add(namespace=namespace, service=service, instances=count)
        return response


def _nodes(streams: Iterable[NodeStream], coverage: Coverage) -> list[api_pb2.Node]:
    """One for each node; a proxyless client has a stream for each target that it calls."""
    found: list[api_pb2.Node] = []
    of_client: dict[str, api_pb2.Node] = {}
    for stream in streams:
        if stream.node.profile.is_proxyless and stream.node.id in of_client:
            _add(of_client[stream.node.id], stream)
            continue
        found.append(_node(stream, coverage))
        if stream.node.profile.is_proxyless:
            of_client[stream.node.id] = found[-1]
    return found


def _add(node: api_pb2.Node, stream: NodeStream) -> None:
    """Another stream of the node: of each type, the one that is further behind is told."""
    types = {each.type_url: each for each in node.types}
    for each in map(_type, stream.subscriptions.values()):
        known = types.get(each.type_url)
        if known is None:
            node.types.append(each)
        elif _lateness(each) > _lateness(known):
            known.CopyFrom(each)


def _lateness(each: api_pb2.TypeState) -> tuple[bool, bool, float]:
    return bool(each.version_nacked), each.version_acked != each.version_sent, each.lag_ms


def _node(stream: NodeStream, coverage: Coverage) -> api_pb2.Node:
    node = stream.node
    return api_pb2.Node(
        id=node.id,
        service=node.service,
        namespace=node.namespace,
        version=node.version,
        engine=node.engine,
        client=str(node.profile),
        admin_address=node.admin_address,
        types=map(_type, stream.subscriptions.values()),
        not_enforced=[
            api_pb2.NotEnforced(policy=each.policy, field=each.gap.field, reason=each.gap.text)
            for each in coverage.of_node(node)
        ],
    )


def _type(item: Subscription) -> api_pb2.TypeState:
    return api_pb2.TypeState(
        type_url=item.type_url,
        version_sent=item.version_sent,
        version_acked=item.version_acked,
        version_nacked=item.version_nacked,
        nack_reason=item.nack_reason,
        lag_ms=item.lag_ms,
    )
