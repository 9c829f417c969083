"""A control plane that does as a test tells it: it writes down requests, and answers when told."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import any_pb2, json_format

from sidecar.xds.discovery import CLUSTER, ENDPOINTS, LISTENER, ROUTES
from tests.sidecar import bootstraps

PATIENCE_S: Final = 10.0
TYPES: Final = {"cds": CLUSTER, "eds": ENDPOINTS, "lds": LISTENER, "rds": ROUTES}


class Ads(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """One server; `requests` are those of the stream that is open now."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.streams = 0
        self.port = 0
        self._nonce = 0
        self._out: asyncio.Queue[Any] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None
        self._news = asyncio.Condition()

    async def start(self, port: int = 0) -> None:
        """Listen."""
        self._server = grpc.aio.server()
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()

    async def stop(self) -> None:
        """Cut every stream and listen no more."""
        assert self._server is not None
        await self._server.stop(None)
        self.requests = []

    async def StreamAggregatedResources(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for response in self._serve(requests):
            yield response

    async def DeltaAggregatedResources(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for response in self._serve(requests):
            yield response

    async def _serve(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        self.streams += 1
        self.requests = []
        out = self._out = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests))
        try:
            while True:
                yield await out.get()
        finally:
            reader.cancel()

    async def _read(self, requests: AsyncIterator[Any]) -> None:
        async for request in requests:
            async with self._news:
                self.requests.append(request)
                self._news.notify_all()

    def send(self, kind: str, version: str, *resources: dict[str, Any]) -> str:
        """Answer with these resources; the nonce."""
        self._nonce += 1
        packed = []
        for resource in resources:
            item = any_pb2.Any()
            if "broken" in resource:
                item = any_pb2.Any(type_url=TYPES[kind], value=b"\xff\xff")
            else:
                json_format.ParseDict({"@type": TYPES[kind], **resource}, item)
            packed.append(item)
        nonce = f"nonce-{self._nonce}"
        self._out.put_nowait(
            discovery_pb2.DiscoveryResponse(
                type_url=TYPES.get(kind, kind), version_info=version, nonce=nonce, resources=packed
            )
        )
        return nonce

    def tell(self, kind: str, *resources: tuple[str, str, dict[str, Any]], gone: tuple[str, ...] = ()) -> str:
        """Say by delta that there are these (name, version, resource), and that others have gone; the nonce."""
        self._nonce += 1
        response = discovery_pb2.DeltaDiscoveryResponse(
            type_url=TYPES[kind], nonce=f"nonce-{self._nonce}", removed_resources=gone
        )
        for name, version, resource in resources:
            item = response.resources.add(name=name, version=version)
            json_format.ParseDict({"@type": TYPES[kind], **resource}, item.resource)
        self._out.put_nowait(response)
        return str(response.nonce)

    async def delta_request(self, kind: str, nonce: str = "", **names: list[str]) -> Any:
        """The first delta request of a type that answers a nonce, and says these names (`subscribe`, `unsubscribe`)."""

        def fits(request: Any) -> bool:
            return (
                request.type_url == TYPES[kind]
                and request.response_nonce == nonce
                and all(list(getattr(request, f"resource_names_{what}")) == names[what] for what in names)
            )

        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: any(map(fits, self.requests)))
        return next(request for request in self.requests if fits(request))

    async def request(self, kind: str, nonce: str = "", names: tuple[str, ...] | None = None) -> Any:
        """The first request of a type that answers a nonce, and asks for names if they are given."""

        def fits(request: Any) -> bool:
            return (
                request.type_url == TYPES[kind]
                and request.response_nonce == nonce
                and (names is None or tuple(request.resource_names) == names)
            )

        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: any(map(fits, self.requests)))
        return next(request for request in self.requests if fits(request))


def eds_cluster(name: str, **options: Any) -> dict[str, Any]:
    """A cluster whose endpoints come by EDS."""
    made = bootstraps.cluster(name, type="EDS", eds_cluster_config={"eds_config": {"ads": {}}}, **options)
    del made["load_assignment"]
    return made


def endpoints(name: str, *ports: int) -> dict[str, Any]:
    """A ClusterLoadAssignment of loopback ports."""
    return {
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": bootstraps.address(port)}} for port in ports]}],
    }


def routes(name: str, cluster: str) -> dict[str, Any]:
    """A RouteConfiguration that sends every call to a cluster."""
    host = {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}
    return {"name": name, "virtual_hosts": [host]}


def listener(name: str, port: int, routes: str) -> dict[str, Any]:
    """A listener whose routes come by RDS."""
    made = bootstraps.listener(name, port, "unused")
    manager = made["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["route_config"]
    manager["rds"] = {"route_config_name": routes, "config_source": {"ads": {}}}
    return made


def bootstrap(port: int, api_type: str = "GRPC") -> dict[str, Any]:
    """A bootstrap that takes everything from a control plane."""
    ads = {"api_type": api_type, "grpc_services": [{"envoy_grpc": {"cluster_name": "control-plane"}}]}
    return bootstraps.static(
        [],
        [bootstraps.cluster("control-plane", port)],
        node={"id": "orders-1", "cluster": "orders"},
        dynamic_resources={"lds_config": {"ads": {}}, "cds_config": {"ads": {}}, "ads_config": ads},
    )
