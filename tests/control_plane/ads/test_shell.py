"""ADS over real gRPC: who is served, who is refused, and who is dropped."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import discovery_pb2

from control_plane.ads import service as ads_service
from control_plane.ads.request import MAX_NAMES
from control_plane.ads.service import AdsService
from control_plane.translate import view
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ORDER, ROUTES, build
from proto.mesh.v1 import api_pb2
from tests.control_plane.plane import Node, Plane
from tests.control_plane.translate import meshes
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def ended(stream: Any, *requests: Any) -> tuple[grpc.StatusCode, str]:
    """How a stream ends on which this is said."""
    for request in requests:
        await stream.write(request)
    async with asyncio.timeout(10):
        with suppress(grpc.aio.AioRpcError):
            while await stream.read() is not grpc.aio.EOF:
                pass
        return await stream.code(), await stream.details()


async def test_two_nodes_get_what_is_theirs_and_every_change(plane: Plane) -> None:
    await plane.register("warehouse.shop", "w1")
    async with Node(plane, "one", inbound_port=5001, app_port=9001) as one, Node(plane, "two") as two:
        await one.follow()
        await two.follow()
        await eventually_async(lambda: ROUTES in one.held and ROUTES in two.held)
        assert sorted(one.held[LISTENER]) == ["inbound", "outbound", "outbound_mesh"]
        assert sorted(two.held[LISTENER]) == ["outbound", "outbound_mesh"]
        await plane.register("accounts.shop", "a1")
        await eventually_async(lambda: "outbound|accounts.shop" in one.held[ENDPOINTS])
        await eventually_async(lambda: "outbound|accounts.shop" in two.held[ENDPOINTS])
        assert "outbound|accounts.shop" in one.held[CLUSTER] and "outbound|accounts.shop" in two.held[CLUSTER]


async def test_a_node_holds_exactly_the_snapshot(plane: Plane) -> None:
    await plane.register("warehouse.shop", "w1", version="v1")
    async with Node(plane, "one", inbound_port=5001, app_port=9001) as node:
        await node.follow()
        (stream,) = await eventually_async(lambda: list(plane.running.ads.streams.values()))
        revision = plane.running.mirror.state.revision
        await eventually_async(lambda: stream.programmed == revision and len(node.held) == 4)
        snapshot = build(view.mesh(plane.running.mirror.state), stream.node)
        assert node.held == {url: dict(snapshot.types[url]) for url in ORDER}


async def test_what_is_known_of_a_node(plane: Plane) -> None:
    async with Node(plane, "cart.shop~1", version="v2", admin_address="127.0.0.1:9901") as node:
        await node.follow()
        await eventually_async(lambda: ROUTES in node.held)
        shown = await eventually_async(_settled(plane, "cart.shop~1"))
        assert (shown.service, shown.namespace, shown.version, shown.engine) == ("cart", "shop", "v2", "envoy")
        assert shown.admin_address == "127.0.0.1:9901"
        for item in shown.types:
            assert item.version_sent == item.version_acked != ""
            assert (item.version_nacked, item.nack_reason) == ("", "")
            assert 0 < item.lag_ms < 10_000
    await eventually_async(lambda: not plane.running.ads.streams)
    assert await plane.nodes() == {}


def _settled(plane: Plane, node_id: str) -> Callable[[], Awaitable[Any]]:
    async def look() -> Any:
        node = (await plane.nodes()).get(node_id)
        if node is None or len(node.types) < 3:
            return None
        # Of an empty mesh there are no endpoints to send.
        return node if all(item.version_acked for item in node.types if item.type_url != ENDPOINTS) else None

    return look


async def test_a_node_that_comes_back_is_told_everything_again(plane: Plane) -> None:
    await plane.register("warehouse.shop", "w1")
    async with Node(plane, "one") as node:
        await node.follow()
        await eventually_async(lambda: ROUTES in node.held)
        before = node.held
    async with Node(plane, "one") as node:
        await node.follow()
        await eventually_async(lambda: node.held == before)
        assert list(await plane.nodes()) == ["one"]


async def test_a_nack_is_shown_and_logged_and_stops_nothing_else(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    async with Node(plane, "picky") as node, Node(plane, "good") as good:
        node.refuses = LISTENER
        await node.follow()
        await good.follow()
        await eventually_async(lambda: ROUTES in good.held)
        with caplog.at_level(logging.ERROR):
            types = await eventually_async(_refused(plane, "picky"))
        assert types[LISTENER].nack_reason == "I do not like it"
        assert (types[LISTENER].version_acked, types[LISTENER].version_nacked) == ("", types[LISTENER].version_sent)
        assert types[CLUSTER].version_nacked == ""
        await plane.register("warehouse.shop", "w1")
        await eventually_async(lambda: "outbound|warehouse.shop" in node.held.get(ENDPOINTS, {}))
        await eventually_async(lambda: "outbound|warehouse.shop" in good.held.get(ENDPOINTS, {}))
    assert "node picky refused Listener: I do not like it" in caplog.text


def _refused(plane: Plane, node_id: str) -> Callable[[], Awaitable[Any]]:
    async def look() -> Any:
        node = (await plane.nodes()).get(node_id)
        types = {item.type_url: item for item in node.types} if node else {}
        return types if LISTENER in types and types[LISTENER].version_nacked else None

    return look


CALLS_ACCOUNTS = """\
apiVersion: remora.dev/v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {dependencies: {services: [{name: accounts}]}}
"""


async def test_a_node_is_told_of_what_its_service_says_that_it_calls(plane: Plane) -> None:
    for name in ("accounts", "warehouse"):
        await plane.register(f"{name}.shop", "1")
    async with Node(plane, "cart.shop~1") as node:
        await node.follow()
        await eventually_async(
            lambda: {"outbound|accounts.shop", "outbound|warehouse.shop"} <= node.held.get(CLUSTER, {}).keys()
        )
        await plane.apply(CALLS_ACCOUNTS)
        only = {"outbound_tunnel", "outbound|accounts.shop"}
        await eventually_async(lambda: node.held[CLUSTER].keys() == only)
        await eventually_async(lambda: plane.running.ads.is_programmed(plane.running.mirror.state.revision))
        before = plane.running.ads.pushes.copy()
        await plane.register("warehouse.shop", "2")
        await plane.register("audit.shop", "1")
        await eventually_async(lambda: plane.running.ads.is_programmed(plane.running.mirror.state.revision))
        assert plane.running.ads.pushes == before, "nothing of that is told"
        await plane.resources.Delete(api_pb2.DeleteRequest(kind="Service", namespace="shop", name="cart"))
        await eventually_async(lambda: "outbound|audit.shop" in node.held[CLUSTER])


# -- who is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (discovery_pb2.DiscoveryRequest(type_url=CLUSTER), "node.id and node.metadata.service must be given"),
        ("bad port", "node.metadata.inbound_port: 70000 is no port"),
        (
            "bad type",
            'type "type.googleapis.com/x" is not served; served: type.googleapis.com/envoy.config.cluster.v3.Cluster',
        ),
        ("names", f"{MAX_NAMES + 1} names; at most {MAX_NAMES} are taken"),
    ],
    ids=["no node", "bad node", "bad type", "too many names"],
)
async def test_a_first_request_that_is_refused(plane: Plane, request_: Any, text: str) -> None:
    request = request_ if not isinstance(request_, str) else discovery_pb2.DiscoveryRequest(type_url=ENDPOINTS)
    if isinstance(request_, str):
        request.node.id = "x"
        request.node.metadata.update({"service": "cart", "inbound_port": 70000 if request_ == "bad port" else 1})
        request.type_url = "type.googleapis.com/x" if request_ == "bad type" else ENDPOINTS
        request.resource_names.extend(str(number) for number in range(MAX_NAMES + 1 if request_ == "names" else 0))
    async with Node(plane, "x") as node:
        code, details = await ended(node.stream, request)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith(text)
    assert not plane.running.ads.streams


async def test_a_later_request_that_is_refused_ends_the_stream_with_the_reason(plane: Plane) -> None:
    async with Node(plane, "x") as node:
        await node.say(CLUSTER)
        await node.read()
        code, details = await ended(node.stream, discovery_pb2.DiscoveryRequest(type_url="nonsense"))
        assert (code, details[:29]) == (grpc.StatusCode.INVALID_ARGUMENT, 'type "nonsense" is not served')
    await eventually_async(lambda: not plane.running.ads.streams)


@pytest.mark.parametrize("is_first", [True, False])
async def test_bytes_that_are_no_request(plane: Plane, is_first: bool, caplog: pytest.LogCaptureFixture) -> None:
    method = f"/{ads_service.SERVICE}/StreamAggregatedResources"
    stream: Any = plane.channel.stream_stream(method)()
    if not is_first:
        good = discovery_pb2.DiscoveryRequest(type_url=CLUSTER)
        good.node.id = "x"
        good.node.metadata.update({"service": "cart"})
        await stream.write(good.SerializeToString())
        await stream.read()
    code, details = await ended(stream, b"\xff\xff")
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "2 bytes that are no DiscoveryRequest")
    assert "Traceback" not in caplog.text


async def test_a_stream_that_says_nothing_is_ended(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ads_service, "FIRST_REQUEST_S", 0.05)
    async with Node(plane, "x") as node:
        code, details = await ended(node.stream)
        assert (code, details) == (grpc.StatusCode.DEADLINE_EXCEEDED, "no request within 0.05 s")


async def test_a_client_that_goes_without_a_word(plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        async with Node(plane, "x") as node:
            await node.say(CLUSTER)
            await node.read()
    async with Node(plane, "y") as node:
        await node.stream.done_writing()
        assert (await ended(node.stream))[0] is grpc.StatusCode.OK
    await eventually_async(lambda: not plane.running.ads.streams)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# -- limits -----------------------------------------------------------------------------------------------


class Served:
    """An AdsService with limits of its own, on a server of its own."""

    def __init__(self, **limits: Any) -> None:
        self.ads = AdsService(**limits)
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((self.ads.handler(),))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> "Served":
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(None)


async def test_more_nodes_than_are_served_are_told_so() -> None:
    async with Served(max_streams=1) as served:
        served.ads.on_state(meshes.read("instance warehouse.shop w1 10.0.0.1:50051").state)
        async with Node(served.address, "one") as one, Node(served.address, "two") as two:
            await one.say(CLUSTER)
            await one.read()
            await two.say(CLUSTER)
            assert await ended(two.stream) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "1 nodes are connected already; at most 1 are served",
            )


async def test_a_slow_reader_is_dropped_and_told_and_others_do_not_wait_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    instances = "\n".join(f"instance service-{number}.shop i{number} 10.0.0.1:50051" for number in range(500))
    async with Served(slow_reader_s=0.3) as served:
        served.ads.on_state(meshes.read(instances).state)
        async with Node(served.address, "slow", window=4096) as slow, Node(served.address, "fast") as fast:
            await slow.say(CLUSTER)
            await eventually_async(lambda: served.ads.pushes["Cluster"] == 1)
            await fast.follow()
            await eventually_async(lambda: len(fast.held.get(CLUSTER, {})) == 501)
            with caplog.at_level(logging.INFO):
                await eventually_async(lambda: served.ads.slow_readers == 1)
            assert [stream.node.id for stream in served.ads.streams.values()] == ["fast"]
            assert "node slow disconnected: the node did not read a response for 0.3 s" in caplog.text
            assert await ended(slow.stream) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "the node did not read a response for 0.3 s; connect again",
            )


async def test_a_slow_reader_that_never_reads_again_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    instances = "\n".join(f"instance service-{number}.shop i{number} 10.0.0.1:50051" for number in range(500))
    async with Served(slow_reader_s=0.1) as served:
        served.ads.on_state(meshes.read(instances).state)
        async with Node(served.address, "slow", window=4096) as slow:
            await slow.say(CLUSTER)
            await eventually_async(lambda: served.ads.slow_readers == 1)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_one_node_has_a_few_streams_at_most() -> None:
    async with Served(max_streams_per_node=1) as served:
        served.ads.on_state(meshes.read("instance warehouse.shop w1 10.0.0.1:50051").state)
        async with Node(served.address, "one") as one, Node(served.address, "one") as twin:
            await one.say(CLUSTER)
            await one.read()
            await twin.say(CLUSTER)
            assert await ended(twin.stream) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "node one has 1 streams already; give each node an id of its own",
            )
        await eventually_async(lambda: not served.ads.streams)
        async with Node(served.address, "one") as one:
            await one.say(CLUSTER)
            await one.read()


async def test_a_node_that_is_silent_holds_up_nobody_for_long() -> None:
    async with Served() as served:
        served.ads.on_state(meshes.read("instance warehouse.shop w1 10.0.0.1:50051").state)
        async with Node(served.address, "silent") as silent, Node(served.address, "good") as good:
            for node in (silent, good):
                await node.follow()
            await eventually_async(lambda: ROUTES in silent.held and ROUTES in good.held)
            silent.is_silent = True
            for revision in range(1, 6):
                text = f"instance warehouse.shop w1 10.0.0.{revision}:1"
                state = replace(meshes.read(text).state, revision=meshes.REVISION + revision)
                served.ads.on_state(state)
                wanted = build(view.mesh(state), next(iter(served.ads.streams.values())).node).types[ENDPOINTS]
                await eventually_async(lambda wanted=wanted: good.held[ENDPOINTS] == wanted)  # type: ignore[misc]
            assert [stream.node.id for stream in served.ads.behind(state.revision)] == ["silent"]


async def test_changes_that_come_at_once_are_few_pushes() -> None:
    async with Served() as served:
        served.ads.on_state(meshes.read("instance warehouse.shop w1 10.0.0.1:50051").state)
        async with Node(served.address, "one") as node:
            await node.follow()
            await eventually_async(lambda: ROUTES in node.held)
            states = [
                replace(
                    meshes.read(f"instance warehouse.shop w1 10.0.0.1:{number}").state,
                    revision=meshes.REVISION + number,
                )
                for number in range(1, 101)
            ]
            before = served.ads.pushes["ClusterLoadAssignment"]
            for state in states:
                served.ads.on_state(state)
                await asyncio.sleep(0)
            await eventually_async(lambda: served.ads.is_programmed(meshes.REVISION + 100))
            assert served.ads.pushes["ClusterLoadAssignment"] - before <= 5
            wanted = build(view.mesh(state), next(iter(served.ads.streams.values())).node)
            assert node.held[ENDPOINTS] == wanted.types[ENDPOINTS]


async def test_large_responses_take_turns_and_a_node_that_does_not_read_keeps_nobody_from_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ads_service, "LARGE_AT_ONCE", 1)
    instances = "\n".join(f"instance service-{number}.shop i{number} 10.0.0.1:50051" for number in range(500))
    async with Served(slow_reader_s=0.3) as served:
        served.ads.on_state(meshes.read(instances).state)
        async with Node(served.address, "slow", window=4096) as slow, Node(served.address, "fast") as fast:
            await slow.say(CLUSTER)
            await eventually_async(lambda: served.ads.pushes["Cluster"] == 1)
            await fast.follow()
            await eventually_async(lambda: ROUTES in fast.held)
            assert served.ads.slow_readers == 1, "it had its time before"
