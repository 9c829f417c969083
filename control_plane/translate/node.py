"""Who asks: what a node says of itself in its xDS `Node` (metadata written by `remora bootstrap`)."""

from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from control_plane.resources.kinds import DEFAULT_NAMESPACE


class BadNode(Exception):
    """A node that says too little, or nonsense, of itself; the text names the field."""


@dataclass(frozen=True, slots=True)
class Node:
    """A data plane and the instance that it stands beside."""

    id: str
    service: str
    namespace: str
    version: str
    engine: str
    """`remora`, `envoy` or `grpc`."""
    admin_address: str = ""
    inbound_address: str = "127.0.0.1"
    inbound_port: int = 0
    """0: takes no calls."""
    app_address: str = "127.0.0.1"
    app_port: int = 0
    outbound_address: str = "127.0.0.1"
    outbound_port: int = 0
    """0: makes no calls by CONNECT."""


def read(message: Any) -> Node:
    """From core.v3.Node. Raises BadNode."""
    plain = json_format.MessageToDict(message.metadata)

    def text(name: str, default: str = "") -> str:
        value = plain.get(name, default)
        if not isinstance(value, str):
            raise BadNode(f"node.metadata.{name}: {value} is no text")
        return value

    def port(name: str) -> int:
        value = plain.get(name, 0)
        if not isinstance(value, int | float) or value != int(value) or not 0 <= value <= 65535:
            raise BadNode(f"node.metadata.{name}: {value} is no port")
        return int(value)

    if not message.id or not text("service"):
        raise BadNode("node.id and node.metadata.service must be given; `remora bootstrap` writes them")
    agent = message.user_agent_name
    engine = "grpc" if agent.startswith("gRPC") else "envoy" if agent == "envoy" else "remora"
    return Node(
        id=message.id,
        service=text("service"),
        namespace=text("namespace", DEFAULT_NAMESPACE) or DEFAULT_NAMESPACE,
        version=text("version"),
        engine=engine,
        admin_address=text("admin_address"),
        inbound_address=text("inbound_address", "127.0.0.1"),
        inbound_port=port("inbound_port"),
        app_address=text("app_address", "127.0.0.1"),
        app_port=port("app_port"),
        outbound_address=text("outbound_address", "127.0.0.1"),
        outbound_port=port("outbound_port"),
    )
