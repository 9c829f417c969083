"""Services outside of the mesh: their addresses are endpoints like all others, and follow the names."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import pytest_asyncio

from control_plane.registry import dns, external, keys
from control_plane.resources.errors import InvalidResource
from control_plane.resources.load import load
from control_plane.translate.snapshot import ENDPOINTS
from proto.mesh.v1 import api_pb2, service_pb2
from tests.control_plane.api.refusals import refused
from tests.control_plane.plane import Node, Plane, plane_on
from tests.control_plane.registry.name_server import NameServer, serving
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")

GIVEN: Final = """\
apiVersion: remora.dev/v1
kind: Service
metadata: {name: bank, namespace: shop}
spec: {external: {addresses: [{address: 192.0.2.1, port: 443}, {address: "2001:db8::1", port: 444, weight: 3}]}}
"""
NAMED: Final = """\
apiVersion: remora.dev/v1
kind: Service
metadata: {name: bank, namespace: shop}
spec: {external: {dns: pay.example, port: 443}}
"""


@pytest_asyncio.fixture(loop_scope="session")
async def names() -> AsyncIterator[NameServer]:
    async with serving() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def plane(tmp_path: Path, names: NameServer) -> AsyncIterator[Plane]:
    async with plane_on(tmp_path / "store", name_servers=[names.address]) as running:
        yield running


async def endpoints(plane: Plane) -> list[str]:
    asked = api_pb2.ListInstancesRequest(service="bank", namespace="shop")
    found = (await plane.registry.ListInstances(asked)).instances
    return [f"{each.address}:{each.port}" for each in found if each.health == service_pb2.HEALTHY]


async def until(plane: Plane, *expected: str) -> None:
    """Wait for exactly these endpoints."""

    async def is_so() -> bool:
        return await endpoints(plane) == list(expected)

    await eventually_async(is_so, message=f"not {expected}")


async def resolved(plane: Plane) -> str:
    """The condition on the references of the service."""
    shown = await plane.resources.Get(api_pb2.GetRequest(kind="Service", namespace="shop", name="bank"))
    (found,) = [each for each in shown.status.conditions if each.type == "ResolvedRefs"]
    return f"{found.status} {found.message}"


async def test_given_addresses_are_endpoints_until_they_are_taken_back(plane: Plane) -> None:
    await plane.apply(GIVEN)
    await until(plane, "192.0.2.1:443", "2001:db8::1:444")
    async with Node(plane, "one") as node:
        await node.follow()
        await eventually_async(lambda: b"192.0.2.1" in node.held.get(ENDPOINTS, {}).get("outbound|bank.shop", b""))
    await plane.apply(GIVEN.replace("{address: 192.0.2.1, port: 443}, ", ""))
    await until(plane, "2001:db8::1:444")
    await plane.resources.Delete(api_pb2.DeleteRequest(kind="Service", namespace="shop", name="bank"))
    await until(plane)


async def test_a_name_is_asked_for_again_when_its_time_is_over(plane: Plane, names: NameServer) -> None:
    names.knows("pay.example", "192.0.2.2", "192.0.2.1", ttl=1)
    await plane.apply(NAMED)
    await until(plane, "192.0.2.1:443", "192.0.2.2:443")
    names.knows("pay.example", "192.0.2.3", ttl=3600)
    await until(plane, "192.0.2.3:443")
    assert await resolved(plane) == "True "
    count = len(names.asked)
    await plane.register("other.shop", "o1")  # changes of the mesh are no reason to ask
    await plane.apply(NAMED.replace("port: 443", "port: 444"))
    await until(plane, "192.0.2.3:444")
    assert len(names.asked) == count


async def test_while_a_name_is_not_answered_for_the_last_addresses_stay(
    plane: Plane, names: NameServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dns, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(external, "RETRY_S", 0.05)
    await plane.apply(NAMED)
    expected = "False spec.external.dns: pay.example has no address yet; calls to it get UNAVAILABLE"

    async def is_said() -> bool:
        return await resolved(plane) == expected

    await eventually_async(is_said)
    said = "external name pay.example: there is no name pay.example; it has no endpoints"
    await eventually_async(lambda: said in caplog.text)
    names.knows("pay.example", "192.0.2.1", ttl=1)
    await until(plane, "192.0.2.1:443")
    names.is_mute = True
    count = len(names.asked)
    await eventually_async(lambda: len(names.asked) > count + 2 * dns.ATTEMPTS)
    await until(plane, "192.0.2.1:443")
    names.is_mute = False
    names.knows("pay.example", "192.0.2.2", ttl=1)
    await until(plane, "192.0.2.2:443")


async def test_what_an_operator_drained_is_not_put_back(plane: Plane) -> None:
    await plane.apply(GIVEN)
    await until(plane, "192.0.2.1:443", "2001:db8::1:444")
    key = api_pb2.InstanceKey(service="bank", namespace="shop", id="external-192.0.2.1-443")
    await plane.registry.Drain(api_pb2.DrainRequest(instance=key))
    await until(plane, "2001:db8::1:444")
    revision = plane.running.mirror.state.revision
    await plane.register("other.shop", "o1")
    await eventually_async(lambda: plane.running.mirror.state.revision > revision)
    await asyncio.sleep(0)
    assert await endpoints(plane) == ["2001:db8::1:444"]
    assert plane.running.mirror.state.revision == revision + 1, "nothing was written for it"


async def test_who_has_the_id_of_an_external_instance_without_right_is_taken_out(plane: Plane) -> None:
    await plane.apply(GIVEN)
    await until(plane, "192.0.2.1:443", "2001:db8::1:444")
    await plane.register("bank.shop", "external-evil", 1)
    await until(plane, "192.0.2.1:443", "2001:db8::1:444")
    stored = await plane.running.store.range(keys.instance("shop", "bank", ""))
    assert len(stored.items) == 2 and not any(item.lease for item in stored.items)


BAD: Final[dict[str, str]] = {
    "external: {}": "spec.external: says not where it is; give dns, or addresses, and not both (RMR0025)",
    "external: {dns: a.b}": "spec.external.port: is missing; a name needs the port behind it (RMR0025)",
    "external: {dns: 'a b', port: 1}": "spec.external.dns: ",
    "external: {addresses: [{address: a.b, port: 1}]}": "spec.external.addresses[0].address: ",
}


@pytest.mark.parametrize("spec", BAD)
async def test_what_says_not_where_it_is(plane: Plane, spec: str) -> None:
    (given,) = load(GIVEN, "f")
    text = GIVEN[: GIVEN.index("spec:")] + f"spec: {{{spec}}}\n"
    with pytest.raises(InvalidResource) as caught:
        load(text, "f")
    assert BAD[spec] in str(caught.value)
    given.service.external.Clear()
    given.service.external.port = 1
    answer: Any = plane.resources.Apply(api_pb2.ApplyRequest(resources=[given]))
    assert (await refused(answer))[0] is grpc.StatusCode.INVALID_ARGUMENT
