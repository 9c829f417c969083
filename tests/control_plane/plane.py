"""A control plane that runs, and what speaks to it: the API's stubs, and nodes that speak ADS over real gRPC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from control_plane.api.server import ControlPlane, running
from control_plane.resources.load import load
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ROUTES
from proto.mesh.v1 import api_pb2, api_pb2_grpc, service_pb2

NO_PROXY: Final = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
LOOPBACK: Final = ("127.0.0.1", 0)
MESSAGES: Final[dict[str, Any]] = {
    CLUSTER: cluster_pb2.Cluster,
    ENDPOINTS: endpoint_pb2.ClusterLoadAssignment,
    LISTENER: listener_pb2.Listener,
    ROUTES: route_pb2.RouteConfiguration,
}


class Plane:
    """A running control plane and a channel to it."""

    def __init__(self, running: ControlPlane, channel: grpc.aio.Channel) -> None:
        self.running = running
        self.channel = channel
        self.resources: Any = api_pb2_grpc.ResourcesStub(channel)
        self.registry: Any = api_pb2_grpc.RegistryStub(channel)
        self.mesh: Any = api_pb2_grpc.MeshStub(channel)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.running.port}"

    async def apply(self, text: str, **request: Any) -> api_pb2.ApplyResponse:
        """Apply YAML."""
        answer: api_pb2.ApplyResponse = await self.resources.Apply(
            api_pb2.ApplyRequest(resources=load(text, "test.yaml"), **request)
        )
        return answer

    async def register(self, name: str, instance_id: str, port: int = 50051, **fields: Any) -> api_pb2.RegisterResponse:
        """Register an instance of NAME.NAMESPACE on loopback."""
        service, _, namespace = name.partition(".")
        instance = service_pb2.Instance(
            id=instance_id, service=service, namespace=namespace, address="127.0.0.1", port=port, **fields
        )
        answer: api_pb2.RegisterResponse = await self.registry.Register(api_pb2.RegisterRequest(instance=instance))
        return answer

    async def nodes(self) -> dict[str, Any]:
        """What the control plane knows of its nodes, by id."""
        return {node.id: node for node in (await self.mesh.Nodes(api_pb2.NodesRequest())).nodes}


@asynccontextmanager
async def plane_on(store: Path | str, *, has_http: bool = False, port: int = 0, **options: Any) -> AsyncIterator[Plane]:
    """A control plane on a store, with a channel of its own; `options` are those of `running`."""
    async with (
        running((LOOPBACK[0], port), str(store), LOOPBACK if has_http else None, **options) as plane,
        grpc.aio.insecure_channel(f"127.0.0.1:{plane.port}", options=NO_PROXY) as channel,
    ):
        yield Plane(plane, channel)


class Node:
    """A data plane: one ADS stream. Follows as Envoy does, unless it is told to refuse or to be silent."""

    def __init__(self, plane: Plane | str, node_id: str, *, window: int = 0, **metadata: Any) -> None:
        """`window` is how many bytes it takes off the wire ahead of reading; 0 for gRPC's own choice."""
        address = plane if isinstance(plane, str) else plane.address
        narrow = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", window)) if window else ()
        self._channel = grpc.aio.insecure_channel(address, options=(*NO_PROXY, *narrow))
        self._metadata: dict[str, Any] = {"service": "cart", "namespace": "shop", "outbound_port": 15001, **metadata}
        self.id = node_id
        self.held: dict[str, dict[str, bytes]] = {}
        self.refuses: str | None = None
        """The type that it refuses."""
        self.is_silent = False
        """Reads, and does not answer."""
        self._nonces: dict[str, str] = {}
        self._names: dict[str, list[str]] = {}
        self.stream: Any = ads_pb2_grpc.AggregatedDiscoveryServiceStub(self._channel).StreamAggregatedResources()
        self._task: asyncio.Task[None] | None = None

    async def say(self, url: str, names: list[str] | None = None, *, refuses: str = "") -> None:
        """A request for a type, with the last nonce."""
        if names is not None:
            self._names[url] = names
        request = discovery_pb2.DiscoveryRequest(
            type_url=url, resource_names=self._names.get(url, []), response_nonce=self._nonces.get(url, "")
        )
        if not self._nonces:
            request.node.id = self.id
            request.node.user_agent_name = "envoy"
            request.node.metadata.update(self._metadata)
        if refuses:
            request.error_detail.message = refuses
        await self.stream.write(request)

    async def read(self) -> Any:
        """The next response, taken note of and not answered. Raises AioRpcError when the stream has ended."""
        async with asyncio.timeout(10):
            response = await self.stream.read()
        assert response is not grpc.aio.EOF
        self._nonces[response.type_url] = response.nonce
        return response

    async def follow(self) -> "Node":
        """Ask for everything, and keep up in the background."""
        await self.say(CLUSTER)
        self._task = asyncio.create_task(self._follow())
        return self

    async def _follow(self) -> None:
        with suppress(grpc.aio.AioRpcError):
            while (response := await self.stream.read()) is not grpc.aio.EOF:
                await self._hear(response)

    async def _hear(self, response: Any) -> None:
        url = response.type_url
        self._nonces[url] = response.nonce
        if self.is_silent:
            return
        if self.refuses == url:
            await self.say(url, refuses="I do not like it")
            return
        fresh = {_name(item): item.value for item in response.resources}
        is_first = url not in self.held
        self.held[url] = fresh if url in (CLUSTER, LISTENER) else {**self.held.get(url, {}), **fresh}
        await self.say(url)
        if url == CLUSTER:
            names = sorted(name for name in fresh if name.startswith("outbound|"))
            if names != self._names.get(ENDPOINTS, []):
                await self.say(ENDPOINTS, names)
            if is_first:
                await self.say(LISTENER)
        elif url == LISTENER:
            names = sorted(_route_tables(response.resources))
            if names != self._names.get(ROUTES, []):
                await self.say(ROUTES, names)

    async def close(self) -> None:
        """End the stream."""
        self.stream.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()

    async def __aenter__(self) -> "Node":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _name(item: Any) -> str:
    """The name of a packed resource."""
    message = MESSAGES[item.type_url].FromString(item.value)
    return str(message.cluster_name if item.type_url == ENDPOINTS else message.name)


def _route_tables(listeners: Any) -> set[str]:
    """The RDS names that listeners refer to."""
    found = set()
    for item in listeners:
        manager = http_connection_manager_pb2.HttpConnectionManager()
        listener_pb2.Listener.FromString(item.value).filter_chains[0].filters[-1].typed_config.Unpack(manager)
        if manager.HasField("rds"):
            found.add(manager.rds.route_config_name)
    return found
