"""Streams of proxyless clients, which ask by name: what is there, what is not, what they may not have."""

from typing import Any, Final

import grpc
import pytest
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from control_plane.ads.service import MAX_STREAMS_PER_NODE, STREAMS_OF_PROXYLESS
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ROUTES
from tests.control_plane.plane import Plane
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")

CLUSTERS: Final = ["outbound|warehouse.shop"]


class Stream:
    """A stream of a grpcio client that is called cart.shop."""

    def __init__(self, plane: Plane, **metadata: Any) -> None:
        self.call: Any = ads_pb2_grpc.AggregatedDiscoveryServiceStub(plane.channel).StreamAggregatedResources()
        self._metadata: dict[str, Any] = metadata or {"service": "cart", "namespace": "shop"}
        self._nonces: dict[str, str] = {}

    async def say(self, url: str, *names: str, **fields: Any) -> None:
        """A request, which answers the last response of the type."""
        given = {"response_nonce": self._nonces.get(url, ""), **fields}
        request = discovery_pb2.DiscoveryRequest(type_url=url, resource_names=names, **given)
        request.node.id = "cart"
        request.node.user_agent_name = "gRPC C-core linux Python"
        request.node.user_agent_version = "C-core 58.0.0 Python 1.85.3"
        request.node.metadata.update(self._metadata)
        await self.call.write(request)

    async def hear(self) -> Any:
        response = await self.call.read()
        assert response is not grpc.aio.EOF
        self._nonces[response.type_url] = response.nonce
        return response

    async def asked(self, url: str, *names: str, **fields: Any) -> Any:
        """The answer to a request."""
        await self.say(url, *names, **fields)
        return await self.hear()

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """How the control plane ends it."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while True:
                assert await self.call.read() is not grpc.aio.EOF
        return caught.value.code(), caught.value.details() or ""


async def test_a_target_is_found_from_its_listener_to_its_endpoints(plane: Plane) -> None:
    await plane.register("warehouse.shop", "w1", 4711)
    stream = Stream(plane)
    (packed,) = (await stream.asked(LISTENER, "warehouse.shop")).resources
    assert listener_pb2.Listener.FromString(packed.value).HasField("api_listener")
    for url, name in ((ROUTES, "grpc|warehouse.shop"), (CLUSTER, CLUSTERS[0]), (ENDPOINTS, CLUSTERS[0])):
        (packed,) = (await stream.asked(url, name)).resources
    (group,) = endpoint_pb2.ClusterLoadAssignment.FromString(packed.value).endpoints
    assert [each.endpoint.address.socket_address.port_value for each in group.lb_endpoints] == [4711]
    for url, name in ((LISTENER, "warehouse.shop"), (ROUTES, "grpc|warehouse.shop"), (CLUSTER, CLUSTERS[0])):
        await stream.say(url, name)
    await stream.say(ENDPOINTS, CLUSTERS[0])
    await eventually_async(lambda: plane.running.ads.is_programmed(plane.running.mirror.state.revision))
    stream.call.cancel()


async def test_what_is_not_there_is_said_and_what_comes_later_is_sent(plane: Plane) -> None:
    await plane.register("cart.shop", "c1")
    stream = Stream(plane)
    answer = await stream.asked(LISTENER, "cart.shop", "warehouse.shop")
    assert [error.resource_name.name for error in answer.resource_errors] == ["warehouse.shop"]
    assert (answer.resource_errors[0].error_detail.code, len(answer.resources)) == (5, 1)
    assert answer.resource_errors[0].error_detail.message.startswith("no service is called warehouse.shop")
    await stream.say(LISTENER, "cart.shop", "warehouse.shop")
    await plane.register("warehouse.shop", "w1")
    answer = await stream.hear()
    assert (len(answer.resources), len(answer.resource_errors)) == (2, 0)
    stream.call.cancel()


SECRET: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


@pytest.mark.parametrize("url", [SECRET, "type.googleapis.com/envoy.config.listener.v2.Listener", "", "x" * 100])
async def test_a_type_that_it_may_not_have(plane: Plane, url: str) -> None:
    await plane.register("warehouse.shop", "w1")
    stream = Stream(plane)
    await stream.asked(LISTENER, "warehouse.shop")
    await stream.say(url, "default")
    code, text = await stream.end()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith(f'type "{url}" is not served; served: {CLUSTER}, ')


async def test_a_version_from_the_future_changes_nothing(plane: Plane) -> None:
    """As of a node that comes from a control plane with another store."""
    await plane.register("warehouse.shop", "w1")
    stream = Stream(plane)
    answer = await stream.asked(LISTENER, "warehouse.shop", version_info="999999999", response_nonce="77")
    assert (len(answer.resources), answer.version_info) == (1, str(plane.running.mirror.state.revision))
    stream.call.cancel()


async def test_a_refusal_with_details_that_nobody_can_read(plane: Plane) -> None:
    await plane.register("warehouse.shop", "w1")
    stream = Stream(plane)
    await stream.asked(LISTENER, "warehouse.shop")
    error = discovery_pb2.DiscoveryRequest().error_detail
    error.code, error.message = 3, "I cannot read it"
    error.details.add(type_url="type.googleapis.com/no.such.Thing", value=b"\xff\xff\xff")
    await stream.say(LISTENER, "warehouse.shop", error_detail=error)

    async def is_said() -> bool:
        node = (await plane.nodes())["cart"]
        return [each.nack_reason for each in node.types] == ["I cannot read it"]

    await eventually_async(is_said)
    stream.call.cancel()


async def test_who_does_not_say_who_it_is(plane: Plane) -> None:
    stream = Stream(plane, role="none")
    await stream.say(LISTENER, "warehouse.shop")
    assert await stream.end() == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "node.id and node.metadata.service must be given; `remora bootstrap` writes them",
    )


async def test_a_program_has_a_stream_for_each_of_its_targets_and_is_one_node(plane: Plane) -> None:
    await plane.register("warehouse.shop", "w1")
    streams = [Stream(plane) for _ in range(MAX_STREAMS_PER_NODE * 2)]
    for stream in streams:
        await stream.asked(LISTENER, "warehouse.shop")
    nodes = await plane.nodes()
    assert list(nodes) == ["cart"] and nodes["cart"].client == "gRPC C-core 1.85"
    assert [each.version_acked for each in nodes["cart"].types] == [""], "of the one that is furthest behind"
    assert len(streams) < MAX_STREAMS_PER_NODE * STREAMS_OF_PROXYLESS
    for stream in streams:
        stream.call.cancel()
