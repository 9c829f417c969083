"""grpcurl lists, describes and calls everything, with nothing but reflection."""

import asyncio
import json
from typing import Any, Final

import pytest

from proto.mesh.v1 import api_pb2, identity_pb2
from tests.control_plane.plane import Plane
from tests.tools import need

pytestmark = pytest.mark.asyncio(loop_scope="session")

SERVICES: Final = [
    "envoy.service.discovery.v3.AggregatedDiscoveryService",
    "envoy.service.status.v3.ClientStatusDiscoveryService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "remora.mesh.v1.Identity",
    "remora.mesh.v1.Mesh",
    "remora.mesh.v1.Registry",
    "remora.mesh.v1.Resources",
]


async def grpcurl(*arguments: str) -> tuple[int, str]:
    """Exit code and everything that is said."""
    process = await asyncio.create_subprocess_exec(
        need("grpcurl"),
        "-plaintext",
        "-max-time",
        "10",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def call(plane: Plane, method: str, request: object) -> Any:
    """The answer to a call."""
    code, output = await grpcurl("-d", json.dumps(request), plane.address, method)
    assert code == 0, output
    return json.loads(output)


async def test_everything_is_listed(plane: Plane) -> None:
    code, output = await grpcurl(plane.address, "list")
    assert (code, output.split()) == (0, SERVICES)
    ours = (*api_pb2.DESCRIPTOR.services_by_name.values(), *identity_pb2.DESCRIPTOR.services_by_name.values())
    for service in ours:
        code, output = await grpcurl(plane.address, "list", service.full_name)
        assert (code, output.split()) == (0, sorted(method.full_name for method in service.methods))


async def test_everything_is_described(plane: Plane) -> None:
    for name in [*SERVICES, "remora.mesh.v1.Resource", "remora.mesh.v1.GRPCRouteSpec"]:
        code, output = await grpcurl(plane.address, "describe", name)
        assert code == 0, output
        assert output.startswith(f"{name} is a ")
    code, output = await grpcurl(plane.address, "describe", "remora.mesh.v1.Registry.Register")
    assert "rpc Register ( .remora.mesh.v1.RegisterRequest ) returns ( .remora.mesh.v1.RegisterResponse );" in output


async def test_everything_is_called(plane: Plane) -> None:
    route = {
        "metadata": {"name": "split", "namespace": "shop"},
        "grpc_route": {
            "parent_refs": [{"name": "warehouse"}],
            "rules": [{"backend_refs": [{"name": "warehouse-v1", "weight": 9}, {"name": "warehouse-v2"}]}],
        },
    }
    resources, registry = "remora.mesh.v1.Resources", "remora.mesh.v1.Registry"
    applied = await call(plane, f"{resources}/Apply", {"resources": [route]})
    assert applied["applied"][0]["outcome"] == "CREATED"
    named = {"kind": "grpcroute", "namespace": "shop", "name": "split"}
    shown = await call(plane, f"{resources}/Get", named)
    assert shown["grpc_route"] == route["grpc_route"]
    assert len((await call(plane, f"{resources}/List", {}))["resources"]) == 1
    assert await call(plane, f"{resources}/WaitProgrammed", {"revision": applied["revision"]}) == {}
    instance = {"id": "w1", "service": "warehouse", "namespace": "shop", "address": "127.0.0.1", "port": 50051}
    lease = await call(plane, f"{registry}/Register", {"instance": instance, "ttl": "30s"})
    assert lease["ttl"] == "30s"
    assert await call(plane, f"{registry}/KeepAlive", {"leaseId": lease["lease_id"]}) == {"ttl": "30s"}
    key = {"service": "warehouse", "namespace": "shop", "id": "w1"}
    await call(plane, f"{registry}/SetHealth", {"instance": key, "health": "DRAINING"})
    await plane.running.mirror.reached(3)
    found = await call(plane, f"{registry}/ListInstances", {"service": "warehouse", "namespace": "shop"})
    assert found["instances"][0]["health"] == "DRAINING"
    assert await call(plane, f"{registry}/Deregister", {"instance": key}) == {}
    assert "nodes" not in (await call(plane, "remora.mesh.v1.Mesh/Nodes", {}))
    await call(plane, f"{resources}/Delete", named)


async def test_a_watch(plane: Plane) -> None:
    code, output = await grpcurl("-max-time", "0.5", "-d", "{}", plane.address, "remora.mesh.v1.Resources/Watch")
    assert '"type": "SYNCED"' in output
    assert "DeadlineExceeded" in output and code != 0


async def test_ads(plane: Plane) -> None:
    request = {
        "node": {"id": "grpcurl", "metadata": {"service": "cart", "namespace": "shop", "outbound_port": 15001}},
        "typeUrl": "type.googleapis.com/envoy.config.listener.v3.Listener",
    }
    code, output = await grpcurl(
        "-d",
        json.dumps(request),
        plane.address,
        "envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
    )
    assert code == 0, output
    assert sorted(item["name"] for item in json.loads(output)["resources"]) == ["outbound", "outbound_mesh"]


@pytest.mark.parametrize("service", ["", *SERVICES[:2], *SERVICES[4:]])
async def test_health(plane: Plane, service: str) -> None:
    assert await call(plane, "grpc.health.v1.Health/Check", {"service": service}) == {"status": "SERVING"}


async def test_a_refusal_reads_well(plane: Plane) -> None:
    code, output = await grpcurl(
        "-d", '{"kind": "Service", "name": "A"}', plane.address, "remora.mesh.v1.Resources/Get"
    )
    assert code != 0
    assert "Code: InvalidArgument" in output
    assert 'name: "A" has a form that is not allowed; it must match' in output
