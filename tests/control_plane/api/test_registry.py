"""The instances' entrance, and what nodes are told of it."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2

from control_plane.translate.snapshot import ENDPOINTS, ROUTES
from proto.mesh.v1 import api_pb2, service_pb2
from tests.control_plane.api.refusals import refused
from tests.control_plane.plane import Node, Plane, plane_on
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = api_pb2.InstanceKey(service="warehouse", namespace="shop", id="w1")


def set_health(plane: Plane, health: service_pb2.Health.ValueType, wait_s: int = 0) -> Any:
    request = api_pb2.SetHealthRequest(instance=KEY, health=health)
    request.wait.FromSeconds(wait_s)
    return plane.registry.SetHealth(request)


async def listed(plane: Plane, service: str = "warehouse") -> dict[str, service_pb2.Instance]:
    answer = await plane.registry.ListInstances(api_pb2.ListInstancesRequest(service=service, namespace="shop"))
    return {item.id: item for item in answer.instances}


def health_of(node: Node) -> str:
    """How the node's only endpoint of warehouse.shop is; empty if it has none."""
    data = node.held.get(ENDPOINTS, {}).get("outbound|warehouse.shop", b"")
    groups = endpoint_pb2.ClusterLoadAssignment.FromString(data).endpoints
    return health_check_pb2.HealthStatus.Name(groups[0].lb_endpoints[0].health_status) if groups else ""


async def test_register_keep_alive_list_deregister(plane: Plane) -> None:
    granted = await plane.register("warehouse.shop", "w1", version="v1")
    assert granted.ttl.seconds == 10
    renewed = await plane.registry.KeepAlive(api_pb2.KeepAliveRequest(lease_id=granted.lease_id))
    assert renewed.ttl.seconds == 10
    await eventually_async(lambda: len(plane.running.mirror.state.instances) == 1)
    assert (await listed(plane))["w1"].version == "v1"
    await plane.registry.Deregister(api_pb2.DeregisterRequest(instance=KEY))
    await eventually_async(lambda: not plane.running.mirror.state.instances)
    assert await listed(plane) == {}
    await plane.registry.Deregister(api_pb2.DeregisterRequest(instance=KEY))
    assert await refused(plane.registry.KeepAlive(api_pb2.KeepAliveRequest(lease_id=granted.lease_id))) == (
        grpc.StatusCode.NOT_FOUND,
        "the lease has ended or never was; register again",
    )


@pytest.mark.parametrize(("asked_ns", "granted_s"), [(5_000_000_000, 5), (5_000_000_001, 6), (3600_000_000_000, 3600)])
async def test_a_lease_is_granted_in_whole_seconds(plane: Plane, asked_ns: int, granted_s: int) -> None:
    instance = service_pb2.Instance(id="w1", service="warehouse", address="::1", port=1)
    request = api_pb2.RegisterRequest(instance=instance)
    request.ttl.FromNanoseconds(asked_ns)
    assert (await plane.registry.Register(request)).ttl.seconds == granted_s


async def test_an_instance_by_every_name_that_leads_to_it(plane: Plane) -> None:
    await plane.apply(
        """\
apiVersion: remora.dev/v1
kind: Service
metadata: {name: warehouse-v2, namespace: shop}
spec: {selector: {service: warehouse, version: v2}}
"""
    )
    await plane.register("warehouse.shop", "w1", version="v1")
    await plane.register("warehouse.shop", "w2", version="v2")
    await eventually_async(lambda: len(plane.running.mirror.state.instances) == 2)
    assert sorted(await listed(plane)) == ["w1", "w2"]
    assert sorted(await listed(plane, "warehouse-v2")) == ["w2"]


async def test_health_reaches_every_caller(plane: Plane) -> None:
    await plane.register("warehouse.shop", "w1")
    async with Node(plane, "caller") as node:
        await node.follow()
        await eventually_async(lambda: health_of(node) == "HEALTHY")
        await set_health(plane, service_pb2.UNHEALTHY)
        await eventually_async(lambda: health_of(node) == "UNHEALTHY")


async def test_draining_returns_when_no_caller_sends_new_calls_any_more(plane: Plane) -> None:
    await plane.register("warehouse.shop", "w1")
    async with Node(plane, "one") as one, Node(plane, "two") as two:
        await one.follow()
        await two.follow()
        await eventually_async(lambda: ROUTES in one.held and ROUTES in two.held)
        assert (await set_health(plane, service_pb2.DRAINING, 10)).acknowledged
        assert health_of(one) == health_of(two) == "DRAINING"


async def test_draining_gives_up_on_a_caller_that_is_silent_and_says_so(plane: Plane) -> None:
    await plane.register("warehouse.shop", "w1")
    async with Node(plane, "silent") as node:
        await node.follow()
        await eventually_async(lambda: ROUTES in node.held)
        node.is_silent = True
        assert not (await set_health(plane, service_pb2.DRAINING, 1)).acknowledged


async def test_health_without_waiting_tells_whether_all_know_already(plane: Plane) -> None:
    await plane.register("warehouse.shop", "w1")
    await eventually_async(lambda: len(plane.running.mirror.state.instances) == 1)
    await set_health(plane, service_pb2.UNHEALTHY)
    await eventually_async(lambda: plane.running.ads.is_programmed(plane.running.mirror.state.revision))
    assert (await set_health(plane, service_pb2.UNHEALTHY)).acknowledged  # nothing to tell, nobody to tell it to


async def test_health_of_an_instance_that_is_not_there(plane: Plane) -> None:
    assert await refused(set_health(plane, service_pb2.DRAINING)) == (
        grpc.StatusCode.NOT_FOUND,
        "no instance w1 of warehouse.shop",
    )


async def test_many_register_at_once(plane: Plane) -> None:
    await asyncio.gather(*(plane.register("warehouse.shop", f"w{number}") for number in range(100)))
    await eventually_async(lambda: len(plane.running.mirror.state.instances) == 100)
    assert len(await listed(plane)) == 100


async def test_leases_outlive_a_restart_of_the_control_plane(tmp_path: Path) -> None:
    async with plane_on(tmp_path) as plane:
        granted = await plane.register("warehouse.shop", "w1")
        revision = plane.running.mirror.state.revision
    async with plane_on(tmp_path) as plane:
        assert sorted(await listed(plane)) == ["w1"]
        assert plane.running.mirror.state.revision >= revision
        await plane.registry.KeepAlive(api_pb2.KeepAliveRequest(lease_id=granted.lease_id))
        async with Node(plane, "caller") as node:
            await node.follow()
            await eventually_async(lambda: health_of(node) == "HEALTHY")
