"""Real data planes on a real control plane: whatever the mesh, nothing is refused, everything is active, and calls go where they should."""

import asyncio
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from control_plane.translate import view
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ORDER, ROUTES, Snapshot, build
from proto.mesh.v1 import api_pb2, service_pb2
from remora.agent import bootstrap
from remora.agent.bootstrap import NodeSpec
from tests.control_plane import strategies
from tests.control_plane.plane import NO_PROXY, Plane, plane_on
from tests.differential import engines
from tests.differential.engines import ENGINES, Engine
from tests.ports import free_ports
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")

NODE_ID: Final = "cart.shop~1"
VARIANTS: Final = ("GRPC", "DELTA_GRPC")
"""State of the world, and delta, as a bootstrap says."""
MESH: Final = """\
apiVersion: remora.dev/v1
kind: Service
metadata: {name: warehouse, namespace: shop}
spec: {ports: [{port: 50051}, {port: 50052}], selector: {service: warehouse}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: kinds, namespace: shop}
spec:
  parentRefs: [{name: warehouse}, {name: anywhere, port: 1}, {name: anywhere}]
  rules:
    - matches:
        - method: {service: bookstore.v1.Warehouse, method: Reserve}
          headers: [{name: x-user, value: "a b"}, {name: x-version, type: RegularExpression, value: "v[12]{1,900}"}]
        - method: {service: bookstore.v1.Warehouse}
        - method: {method: Reserve}
        - method: {type: RegularExpression, service: "(?i:shop)\\\\.(a|b)|c", method: "\\\\w+"}
      backendRefs: [{name: warehouse, weight: 90}, {name: other, namespace: office, weight: 10}, {name: none, weight: 0}]
    - backendRefs: [{name: warehouse}, {name: warehouse}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: port, namespace: shop}
spec:
  parentRefs: [{name: warehouse, port: 50052}]
  rules: [{backendRefs: [{name: other, namespace: office}]}]
---
apiVersion: remora.dev/v1
kind: LoadBalancingPolicy
metadata: {name: balance, namespace: shop}
spec: {targetRefs: [{name: warehouse}], algorithm: LeastRequest, choices: 3, slowStart: 10s, failover: [eu, us/a]}
---
apiVersion: remora.dev/v1
kind: LoadBalancingPolicy
metadata: {name: latency, namespace: shop}
spec: {targetRefs: [{name: anywhere}], algorithm: PeakEwma, decay: 5s, penalty: 1s}
---
apiVersion: remora.dev/v1
kind: LoadBalancingPolicy
metadata: {name: ring, namespace: shop}
spec:
  targetRefs: [{name: none}]
  algorithm: RingHash
  ringSize: 4096
  hashOn: [{header: x-user, terminal: true}, {cookie: session, cookieTtl: 60s}, {queryParameter: page}, {source: RemoteAddress}, {source: Path}]
  localityWeights: {eu: 10, us/a: 90}
  panicThreshold: 30
---
apiVersion: remora.dev/v1
kind: LoadBalancingPolicy
metadata: {name: all, namespace: office}
spec: {algorithm: Maglev, hashOn: [{header: x-user}]}
---
apiVersion: remora.dev/v1
kind: CircuitBreakerPolicy
metadata: {name: break, namespace: shop}
spec:
  limits: {maxConnections: 5, maxPendingRequests: 6, maxRequests: 7000, retryBudgetPercent: 30}
  ejection: {consecutiveErrors: 3, interval: 1s, baseTime: 2s, maxTime: 3s, maxPercent: 90, failurePercent: 60, minimumCalls: 9}
  breaker: {failurePercent: 99, minimumCalls: 10000, window: 1s, slowCall: 9s, slowPercent: 70, open: 1s, maxOpen: 2s, probes: 2}
---
apiVersion: remora.dev/v1
kind: CircuitBreakerPolicy
metadata: {name: look, namespace: office}
spec: {mode: Shadow, ejection: {}, breaker: {}, limits: {}}
---
apiVersion: remora.dev/v1
kind: RetryPolicy
metadata: {name: again, namespace: shop}
spec: {on: [Reset, Unavailable, ResourceExhausted], retries: 3, idempotencyKey: x-key, perTryTimeout: 20s, backoff: 5ms, maxBackoff: 7ms}
---
apiVersion: remora.dev/v1
kind: RetryPolicy
metadata: {name: hedged, namespace: office}
spec: {idempotent: true, hedge: {delay: 20s}}
---
apiVersion: remora.dev/v1
kind: TimeoutPolicy
metadata: {name: late, namespace: shop}
spec: {request: 30s, idle: 40s}
---
apiVersion: remora.dev/v1
kind: FaultPolicy
metadata: {name: fault, namespace: shop}
spec: {headers: {x-fault: "yes"}, delay: {duration: 1ms, percent: 0.5}, abort: {status: ABORTED}, maxActive: 3}
---
apiVersion: remora.dev/v1
kind: RateLimitPolicy
metadata: {name: limit, namespace: shop}
spec: {targetRefs: [{name: cart}], requests: 100000, interval: 50ms, burst: 1}
---
apiVersion: remora.dev/v1
kind: RateLimitPolicy
metadata: {name: shadow, namespace: shop}
spec: {targetRefs: [{name: carts}], requests: 1, mode: Shadow}
---
apiVersion: remora.dev/v1
kind: Service
metadata: {name: carts, namespace: shop}
spec: {selector: {service: cart}}
"""


class DataPlane:
    """An engine beside cart.shop, and what it says of itself."""

    def __init__(self, plane: Plane, engine: Engine, spec: NodeSpec) -> None:
        self.plane = plane
        self.engine = engine
        self.outbound = f"127.0.0.1:{spec.outbound[1]}"
        self._admin = f"http://127.0.0.1:{spec.admin[1]}"

    async def get(self, path: str) -> str:
        """From its admin endpoint."""

        def read() -> str:
            with urllib.request.urlopen(self._admin + path, timeout=10) as answer:
                return str(answer.read().decode())

        return await asyncio.to_thread(read)

    async def has_all(self) -> bool:
        """True once it has acknowledged the newest revision in full."""
        revision = self.plane.running.mirror.state.revision
        streams = list(self.plane.running.ads.streams.values())
        is_up = bool(streams) and ROUTES in streams[0].subscriptions
        return is_up and self.plane.running.ads.is_programmed(revision)

    async def has_all_or_refuses(self) -> bool:
        """There is nothing to wait for any more."""
        return await self.has_all() or bool(await self.refusals())

    async def refusals(self) -> list[str]:
        """What it has refused, in its own words."""
        nodes = (await self.plane.nodes()).values()
        return [f"{item.type_url}: {item.nack_reason}" for node in nodes for item in node.types if item.version_nacked]

    def snapshot(self) -> Snapshot:
        """What it is to have."""
        (stream,) = self.plane.running.ads.streams.values()
        return build(view.mesh(self.plane.running.mirror.state), stream.node)

    async def holds(self) -> dict[str, dict[str, Any]]:
        """What Envoy says that it has: by type and name, active ones only."""
        found: dict[str, dict[str, Any]] = {url: {} for url in ORDER}
        for part in json.loads(await self.get("/config_dump?include_eds"))["configs"]:
            assert not part.get("dynamic_warming_clusters"), "a cluster is warming"
            for item in part.get("dynamic_active_clusters", []):
                found[CLUSTER][item["cluster"]["name"]] = item["cluster"]
            for item in part.get("dynamic_listeners", []):
                assert "error_state" not in item and "warming_state" not in item, item
                found[LISTENER][item["name"]] = item["active_state"]["listener"]
            for item in part.get("dynamic_route_configs", []):
                found[ROUTES][item["route_config"]["name"]] = item["route_config"]
            for item in part.get("dynamic_endpoint_configs", []):
                name = item["endpoint_config"]["cluster_name"]
                if name.startswith("outbound|"):  # the others are those of static clusters
                    found[ENDPOINTS][name] = item["endpoint_config"]
        return found


@asynccontextmanager
async def beside_cart(plane: Plane, name: str, folder: Path, variant: str = "DELTA_GRPC") -> AsyncIterator[DataPlane]:
    """Start an engine on a control plane and wait until it has everything."""
    inbound, app, outbound, admin = free_ports(4)
    spec = NodeSpec(
        node_id=NODE_ID,
        service="cart",
        namespace="shop",
        version="v1",
        control_planes=(("127.0.0.1", plane.running.port),),
        inbound=("127.0.0.1", inbound),
        app=("127.0.0.1", app),
        outbound=("127.0.0.1", outbound),
        admin=("127.0.0.1", admin),
    )
    document = bootstrap.envoy(spec)
    document["dynamic_resources"]["ads_config"]["api_type"] = variant
    engine = await asyncio.to_thread(engines.launch, name, document, folder)
    try:
        found = DataPlane(plane, engine, spec)
        await eventually_async(
            found.has_all, timeout_s=30, message=f"{name} does not come up:\n{engine.log.read_text()}"
        )
        yield found
    finally:
        await asyncio.to_thread(engine.stop)


async def fill(plane: Plane) -> None:
    """The mesh above, with instances of every kind."""
    await plane.apply(MESH)
    await plane.register("warehouse.shop", "w1", locality=service_pb2.Locality(region="eu", zone="eu-1"), weight=7)
    await plane.register("warehouse.shop", "w2", health=service_pb2.DRAINING)
    await plane.register("other.office", "o1")
    six = service_pb2.Instance(id="o2", service="other", namespace="office", address="::1", port=1)
    await plane.registry.Register(api_pb2.RegisterRequest(instance=six))
    await plane.register("cart.shop", "c1", node_id=NODE_ID, labels={"tier": "gold"})
    await eventually_async(lambda: len(plane.running.mirror.state.instances) == 5)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_envoy_has_every_resource_active(plane: Plane, tmp_path: Path, variant: str) -> None:
    await fill(plane)
    async with beside_cart(plane, "envoy", tmp_path, variant) as envoy:
        wanted = envoy.snapshot()
        assert {url: sorted(items) for url, items in (await envoy.holds()).items()} == {
            url: sorted(wanted.types[url]) for url in ORDER
        }
        assert await envoy.refusals() == []
        stats = await envoy.get("/stats?filter=update_rejected|update_failure")
        assert re.findall(r"^(.*update_rejected): [1-9]", stats, re.MULTILINE) == []

        # What goes is taken out, in an order that never leaves a route without its cluster.
        for kind, name in (
            ("GRPCRoute", "kinds"),
            ("GRPCRoute", "port"),
            ("RateLimitPolicy", "limit"),
            ("Service", "warehouse"),
        ):
            await plane.resources.Delete(api_pb2.DeleteRequest(kind=kind, namespace="shop", name=name))
            await eventually_async(envoy.has_all)
        await plane.registry.Deregister(
            api_pb2.DeregisterRequest(instance=api_pb2.InstanceKey(service="other", namespace="office", id="o1"))
        )
        await eventually_async(envoy.has_all)
        wanted = envoy.snapshot()
        assert "outbound|anywhere.shop" not in wanted.types[CLUSTER]
        held = await envoy.holds()
        assert sorted(held[CLUSTER]) == sorted(wanted.types[CLUSTER])
        assert len(held[ENDPOINTS]["outbound|other.office"]["endpoints"]) == 1
        assert await envoy.refusals() == []


@pytest.mark.parametrize("name", ENGINES)
async def test_whatever_the_mesh_nothing_is_refused(plane: Plane, tmp_path: Path, name: str) -> None:
    loop = asyncio.get_running_loop()
    async with beside_cart(plane, name, tmp_path) as engine:

        async def round_of(resources: list[api_pb2.Resource], instances: list[service_pb2.Instance]) -> None:
            by_key = {
                (item.WhichOneof("spec"), item.metadata.namespace, item.metadata.name): item for item in resources
            }
            for item in by_key.values():
                item.metadata.resource_version = 0
            await plane.resources.Apply(api_pb2.ApplyRequest(resources=by_key.values()))
            for instance in instances:
                await plane.registry.Register(api_pb2.RegisterRequest(instance=instance))
            await eventually_async(engine.has_all_or_refuses, timeout_s=10, message="not acknowledged")
            refused = await engine.refusals()
            assert not refused, refused

        @settings(
            max_examples=25,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            st.lists(strategies.resources(), min_size=3, max_size=10),
            st.lists(strategies.instances(), min_size=1, max_size=4),
        )
        def rounds(resources: list[api_pb2.Resource], instances: list[service_pb2.Instance]) -> None:
            asyncio.run_coroutine_threadsafe(round_of(resources, instances), loop).result(30)

        await asyncio.to_thread(rounds)
        if name == "envoy":
            wanted = engine.snapshot()
            held = await engine.holds()
            assert {url: sorted(items) for url, items in held.items()} == {
                url: sorted(wanted.types[url]) for url in ORDER
            }


@pytest.mark.parametrize("name", ENGINES)
async def test_what_a_data_plane_has_already_is_not_sent_again_when_it_comes_back(tmp_path: Path, name: str) -> None:
    [port] = free_ports(1)
    async with AsyncExitStack() as stack:
        async with plane_on(tmp_path / "store", port=port) as first:
            await fill(first)
            engine = await stack.enter_async_context(beside_cart(first, name, tmp_path))
        async with plane_on(tmp_path / "store", port=port) as engine.plane:
            await eventually_async(engine.has_all, timeout_s=30, message=f"{name} does not come back")
            assert engine.plane.running.ads.pushes == {}
            await engine.plane.register("other.office", "o3")
            await eventually_async(engine.has_all)
            assert engine.plane.running.ads.pushes == {"ClusterLoadAssignment": 1}


# -- calls -----------------------------------------------------------------------------------------------


class Server:
    """A gRPC server that says who it is, by the name that it is healthy under."""

    def __init__(self, name: str) -> None:
        self._server = grpc.aio.server()
        self._health = health.aio.HealthServicer()
        self._name = name
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    async def __aenter__(self) -> "Server":
        await self._health.set(self._name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)


async def ask(engine: DataPlane, target: str, who: str) -> str:
    """Call a name of the mesh: `yes` if the one who answers is called that, `no` if not, else status and reason."""
    proxy = (("grpc.enable_http_proxy", 1), ("grpc.http_proxy", f"http://{engine.outbound}"))
    async with grpc.aio.insecure_channel(target, options=(*NO_PROXY[1:], *proxy)) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=who), timeout=5)
        except grpc.aio.AioRpcError as error:
            return "no" if error.code() is grpc.StatusCode.NOT_FOUND else f"{error.code().name}: {error.details()}"
        return "yes"


def answers(engine: DataPlane, target: str, who: str, wanted: str = "yes") -> Callable[[], Any]:
    async def look() -> bool:
        return await ask(engine, target, who) == wanted

    return look


@pytest.mark.parametrize("name", ENGINES)
async def test_a_call_to_a_service_that_is_not_there_yet_is_unavailable_until_it_is(
    plane: Plane, tmp_path: Path, name: str
) -> None:
    await plane.apply(
        """\
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: to-v2, namespace: shop}
spec:
  parentRefs: [{name: warehouse}]
  rules: [{backendRefs: [{name: warehouse-v2}]}]
"""
    )
    async with beside_cart(plane, name, tmp_path) as engine, Server("v2") as v2:
        status = await ask(engine, "warehouse.shop:50051", "v2")
        assert status.startswith("UNAVAILABLE: "), status
        await plane.register("warehouse-v2.shop", "w1", v2.port)
        await eventually_async(answers(engine, "warehouse.shop:50051", "v2"))
        assert await ask(engine, "warehouse:1", "v2") == "yes", "the short name, at any port"
        assert (await ask(engine, "nobody.shop:50051", "v2")).startswith(("UNIMPLEMENTED: ", "UNAVAILABLE: "))


@pytest.mark.parametrize("name", ENGINES)
async def test_a_route_of_one_port_steers_calls_to_that_port(plane: Plane, tmp_path: Path, name: str) -> None:
    async with Server("old") as old, Server("new") as new, beside_cart(plane, name, tmp_path) as engine:
        await plane.register("warehouse.shop", "w1", old.port)
        await plane.register("canary.shop", "w1", new.port)
        await plane.apply(
            """\
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: one-port, namespace: shop}
spec:
  parentRefs: [{name: warehouse, port: 50052}]
  rules: [{backendRefs: [{name: canary}]}]
"""
        )
        await eventually_async(engine.has_all)
        await eventually_async(answers(engine, "warehouse.shop:50052", "new"))
        assert await ask(engine, "warehouse.shop:50051", "old") == "yes"
        assert await ask(engine, "warehouse.shop:50051", "new") == "no"
