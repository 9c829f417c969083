"""What a node says of itself: taken, or refused with field and value."""

from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2

from control_plane.translate import node as node_reader
from control_plane.translate.node import BadNode, Node


def said(metadata: dict[str, Any], **node: Any) -> Node:
    message = base_pb2.Node(**{"id": "orders.shop~1", **node})
    message.metadata.update({"service": "orders", **metadata})
    return node_reader.read(message)


def test_the_least_that_a_node_must_say() -> None:
    node = said({})
    assert (node.id, node.service, node.namespace, node.version) == ("orders.shop~1", "orders", "default", "")
    assert (node.inbound_port, node.outbound_port, node.app_address) == (0, 0, "127.0.0.1")


def test_all_that_a_node_can_say() -> None:
    node = said(
        {
            "namespace": "shop",
            "version": "1.2.3+b",
            "admin_address": "127.0.0.1:9901",
            "inbound_address": "::1",
            "inbound_port": 50051,
            "app_port": 9000.0,
            "outbound_address": "10.0.0.1",
            "outbound_port": 15001,
        }
    )
    assert (node.namespace, node.version, node.admin_address) == ("shop", "1.2.3+b", "127.0.0.1:9901")
    assert (node.inbound_address, node.inbound_port, node.app_port) == ("::1", 50051, 9000)
    assert (node.outbound_address, node.outbound_port) == ("10.0.0.1", 15001)


@pytest.mark.parametrize(
    ("agent", "engine"),
    [("envoy", "envoy"), ("gRPC C-core linux Python", "grpc"), ("remora", "remora"), ("", "remora")],
)
def test_the_engine_is_read_from_the_user_agent(agent: str, engine: str) -> None:
    assert said({}, user_agent_name=agent).engine == engine


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"service": "Orders"}, 'node.metadata.service: "Orders" is no name of a service'),
        ({"service": "orders\n"}, r'node.metadata.service: "orders\n" is no name of a service'),
        ({"service": "x" * 64}, "is no name of a service"),
        ({"namespace": "a.b"}, 'node.metadata.namespace: "a.b" is no namespace'),
        ({"namespace": 5}, "node.metadata.namespace: 5 is no namespace"),
        ({"namespace": None}, "node.metadata.namespace: a null is no namespace"),
        ({"version": ["v1"]}, "node.metadata.version: a list is no version"),
        ({"version": "v 1"}, 'node.metadata.version: "v 1" is no version'),
        ({"admin_address": {"a": 1}}, "node.metadata.admin_address: a struct is no address"),
        ({"inbound_address": "localhost"}, 'node.metadata.inbound_address: "localhost" is no IP address'),
        ({"inbound_port": 65536}, "node.metadata.inbound_port: 65536 is no port"),
        ({"inbound_port": -1}, "node.metadata.inbound_port: -1 is no port"),
        ({"outbound_port": 1.5}, "node.metadata.outbound_port: 1.5 is no port"),
        ({"app_port": "80"}, 'node.metadata.app_port: "80" is no port'),
        ({"app_port": True}, "node.metadata.app_port: a bool is no port"),
        ({"app_port": float("nan")}, "node.metadata.app_port: nan is no port"),
        ({"app_port": float("inf")}, "node.metadata.app_port: inf is no port"),
    ],
)
def test_nonsense_is_refused_by_field_and_value(metadata: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadNode) as caught:
        said(metadata)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(("node_id", "service"), [("", "orders"), ("a", ""), ("a", 5)])
def test_a_node_without_id_or_service_is_told_what_to_do(node_id: str, service: str | int) -> None:
    with pytest.raises(BadNode, match="`remora bootstrap` writes them"):
        said({"service": service}, id=node_id)


def test_an_id_without_end_is_refused() -> None:
    with pytest.raises(BadNode, match="at most 256"):
        said({}, id="x" * 257)


def test_other_metadata_is_left_alone() -> None:
    assert said({"team": {"deep": [float("nan")]}}).service == "orders"
