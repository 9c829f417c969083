"""Two replicas on one etcd: whoever is asked answers for the nodes of both."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from control_plane.api import replicas
from control_plane.registry import keys
from control_plane.store.contract import Put
from control_plane.translate.snapshot import ROUTES
from proto.mesh.v1 import api_pb2, service_pb2
from tests.control_plane.api.refusals import refused
from tests.control_plane.plane import Node, Plane, plane_on
from tests.etcd import EtcdCluster, etcd_cluster
from tests.ports import free_ports
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")

SERVICE = "apiVersion: remora.dev/v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{}}\n"


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest_asyncio.fixture(loop_scope="session")
async def planes(etcd: EtcdCluster) -> AsyncIterator[tuple[Plane, Plane]]:
    """Two that know of each other."""
    await asyncio.to_thread(etcd.wipe)
    async with plane_on(etcd.target, has_http=True) as one, plane_on(etcd.target, has_http=True) as two:
        await eventually_async(lambda: all(each.running.replicas.others for each in (one, two)))
        yield one, two


async def wait(plane: Plane, revision: int, seconds: int) -> Any:
    request = api_pb2.WaitProgrammedRequest(revision=revision)
    request.timeout.FromSeconds(seconds)
    return await plane.resources.WaitProgrammed(request)


async def following(stack: AsyncExitStack, plane: Plane, node_id: str) -> Node:
    """A node that has everything."""
    node = await stack.enter_async_context(Node(plane, node_id))
    await node.follow()
    await eventually_async(lambda: ROUTES in node.held)
    return node


async def test_a_change_has_arrived_when_the_nodes_of_all_replicas_say_so(planes: tuple[Plane, Plane]) -> None:
    one, two = planes
    async with AsyncExitStack() as stack:
        await following(stack, one, "cart.shop~1")
        slow = await following(stack, two, "cart.shop~2")
        first = await one.apply(SERVICE.format(name="first"))
        assert (await wait(one, first.revision, 10)).nodes == 2
        slow.is_silent = True
        second = await one.apply(SERVICE.format(name="second"))
        code, text = await refused(wait(one, second.revision, 1))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert text == (
            f"replica {two.address}: 1 of 1 nodes have not acknowledged revision {second.revision}: cart.shop~2 has not answered"
        )
        await slow.close()
        assert (await wait(one, second.revision, 10)).nodes == 1


async def test_status_shows_the_nodes_of_all_replicas_and_where_they_are(planes: tuple[Plane, Plane]) -> None:
    one, two = planes
    async with AsyncExitStack() as stack:
        await following(stack, one, "cart.shop~1")
        await following(stack, two, "cart.shop~2")
        assert {node.id: node.replica for node in (await one.nodes()).values()} == {
            "cart.shop~1": "",
            "cart.shop~2": two.address,
        }
        assert sorted(await two.nodes()) == ["cart.shop~1", "cart.shop~2"]


async def test_an_instance_is_drained_when_the_callers_at_all_replicas_know(planes: tuple[Plane, Plane]) -> None:
    one, two = planes
    await one.register("stock.shop", "s1")
    async with AsyncExitStack() as stack:
        far = await following(stack, two, "cart.shop~2")
        key = api_pb2.InstanceKey(service="stock", namespace="shop", id="s1")

        def drain(**options: Any) -> Any:
            request = api_pb2.DrainRequest(instance=key, **options)
            request.wait.FromSeconds(2)
            return one.registry.Drain(request)

        assert (await drain()).acknowledged
        listed = await two.registry.ListInstances(api_pb2.ListInstancesRequest(service="stock", namespace="shop"))
        assert [each.health for each in listed.instances] == [service_pb2.DRAINING]
        far.is_silent = True
        assert not (await drain(undo=True)).acknowledged
    key.id = "nobody"
    assert (await refused(one.registry.Drain(api_pb2.DrainRequest(instance=key))))[0] is grpc.StatusCode.NOT_FOUND


async def test_a_replica_that_died_is_waited_for_until_its_lease_has_ended(planes: tuple[Plane, Plane]) -> None:
    one, _ = planes
    [dead] = free_ports(1)
    store = one.running.store
    await store.txn((), [Put(keys.REPLICAS + b"dead", f"127.0.0.1:{dead}".encode(), await store.grant(replicas.TTL_S))])
    await eventually_async(lambda: len(one.running.replicas.others) == 2)
    assert (await one.mesh.Nodes(api_pb2.NodesRequest())).silent_replicas == [f"127.0.0.1:{dead}"]
    applied = await one.apply(SERVICE.format(name="third"))
    code, text = await refused(wait(one, applied.revision, 1))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED and f"replica 127.0.0.1:{dead}: " in text
    begin = monotonic()
    await wait(one, applied.revision, 20)
    assert monotonic() - begin < replicas.TTL_S + 4
    assert not (await one.mesh.Nodes(api_pb2.NodesRequest())).silent_replicas


async def test_a_replica_that_was_killed_and_came_back_is_one(planes: tuple[Plane, Plane]) -> None:
    """What it had written about itself before stays until the lease ends: nobody is asked twice, and nobody asks himself."""
    one, two = planes
    store = one.running.store
    for plane in planes:
        await store.txn((), [Put(keys.REPLICAS + plane.address.encode(), plane.address.encode(), await store.grant(5))])
    await eventually_async(lambda: all(len(each.running.replicas._there) == 4 for each in planes))
    async with AsyncExitStack() as stack:
        await following(stack, one, "cart.shop~1")
        await following(stack, two, "cart.shop~2")
        applied = await one.apply(SERVICE.format(name="fourth"))
        assert (await wait(one, applied.revision, 10)).nodes == 2
        assert len((await one.mesh.Nodes(api_pb2.NodesRequest())).nodes) == 2


async def test_one_of_them_sweeps_and_the_other_takes_over(etcd: EtcdCluster) -> None:
    await asyncio.to_thread(etcd.wipe)

    async def sweeps(plane: Plane) -> float:
        url = f"http://127.0.0.1:{plane.running.http_port}/metrics"
        text = await asyncio.to_thread(lambda: urlopen(url, timeout=5).read().decode())
        found = {family.name: family.samples for family in text_string_to_metric_families(text)}
        return float(found["remora_control_plane_sweeps"][0].value)

    async with plane_on(etcd.target, has_http=True) as stays:
        async with plane_on(etcd.target, has_http=True) as goes:

            async def one_sweeps() -> bool:
                return await sweeps(stays) + await sweeps(goes) == 1

            await eventually_async(one_sweeps)
            assert await goes.running.store.get(keys.OWNER) is not None
        await eventually_async(lambda: sweeps(stays))


async def test_who_is_held_is_shown_and_let_go(planes: tuple[Plane, Plane]) -> None:
    one, two = planes
    granted = [await one.register("stock.shop", f"s{number}") for number in range(3)]
    for each in granted:
        await one.running.store.revoke(each.lease_id)  # as if it had ended
    held = [api_pb2.HeldService(namespace="shop", service="stock", instances=3)]
    for plane in planes:

        async def shows(plane: Plane = plane) -> bool:
            return list((await plane.mesh.Nodes(api_pb2.NodesRequest())).held) == held

        await eventually_async(shows)
    listed = await two.registry.ListInstances(api_pb2.ListInstancesRequest(service="stock", namespace="shop"))
    assert [each.health for each in listed.instances] == [service_pb2.HELD] * 3
    assert (await two.registry.Release(api_pb2.ReleaseRequest(service="other", namespace="shop"))).released == 0
    assert (await two.registry.Release(api_pb2.ReleaseRequest(service="stock", namespace="shop"))).released == 3
    await eventually_async(lambda: not one.running.mirror.state.instances)


async def test_nobody_says_of_himself_that_he_is_held(planes: tuple[Plane, Plane]) -> None:
    one, _ = planes
    instance = service_pb2.Instance(id="s", service="stock", address="10.0.0.1", port=1, health=service_pb2.HELD)
    code, text = await refused(one.registry.Register(api_pb2.RegisterRequest(instance=instance)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT and "instance.health" in text
    key = api_pb2.InstanceKey(service="stock", id="s")
    request = api_pb2.SetHealthRequest(instance=key, health=service_pb2.HELD)
    assert (await refused(one.registry.SetHealth(request)))[0] is grpc.StatusCode.INVALID_ARGUMENT
