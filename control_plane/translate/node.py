"""Who asks: what a node says of itself in its xDS `Node` (metadata written by `remora bootstrap`)."""

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf import struct_pb2

from control_plane.resources.errors import quoted
from control_plane.resources.kinds import DEFAULT_NAMESPACE
from control_plane.translate.clients import SIDECAR, Profile, profile

MAX_ID: Final = 256
"""Characters; as of `Instance.node_id`."""
MAX_BYTES: Final = 16 * 1024
"""Of all that a node says of itself; it is kept as long as the node is connected."""
LOOPBACK: Final = "127.0.0.1"
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_LABEL_OR_NOTHING: Final = re.compile(rf"({_LABEL.pattern})?", re.ASCII)
_VERSION: Final = re.compile(r"[A-Za-z0-9._+-]{0,63}", re.ASCII)
_ANYTHING: Final = re.compile(r"[ -~]{0,256}", re.ASCII)


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
    identity_source: str = ""
    """The static cluster of its bootstrap that serves its certificate (SDS); empty if it has none, and calls in plain text only."""
    profile: Profile = SIDECAR
    """Which client it is, and how new."""
    said: bytes = field(default=b"", compare=False, repr=False)
    """The core.v3.Node that it sent, serialised, but for the list of its extensions, which is long."""


def read(message: Any) -> Node:
    """From core.v3.Node. Raises BadNode."""
    fields = message.metadata.fields
    if not message.id or "service" not in fields or not fields["service"].string_value:
        raise BadNode("node.id and node.metadata.service must be given; `remora bootstrap` writes them")
    kept = type(message)()
    kept.CopyFrom(message)
    kept.ClearField("extensions")
    said = kept.SerializeToString()
    if len(said) > MAX_BYTES:
        raise BadNode(f"node: {len(said)} bytes beside its extensions; at most {MAX_BYTES} are taken")
    if len(message.id) > MAX_ID:
        raise BadNode(f"node.id: {len(message.id)} characters; at most {MAX_ID} are taken")

    def text(name: str, form: re.Pattern[str], what: str) -> str:
        value = fields[name] if name in fields else struct_pb2.Value(string_value="")
        if value.WhichOneof("kind") != "string_value" or not form.fullmatch(value.string_value):
            raise BadNode(f"node.metadata.{name}: {_shown(value)} is no {what}")
        return str(value.string_value)

    def address(name: str) -> str:
        given = text(name, _ANYTHING, "IP address") or LOOPBACK
        try:
            return str(ipaddress.ip_address(given))
        except ValueError:
            raise BadNode(f"node.metadata.{name}: {_shown(fields[name])} is no IP address") from None

    def port(name: str) -> int:
        value = fields[name] if name in fields else struct_pb2.Value(number_value=0)
        number = value.number_value
        if value.WhichOneof("kind") != "number_value" or not 0 <= number <= 65535 or not number.is_integer():
            raise BadNode(f"node.metadata.{name}: {_shown(value)} is no port")
        return int(number)

    agent = message.user_agent_name
    engine = "grpc" if agent.startswith("gRPC") else "envoy" if agent == "envoy" else "remora"
    return Node(
        id=message.id,
        service=text("service", _LABEL, "name of a service"),
        namespace=text("namespace", _LABEL_OR_NOTHING, "namespace") or DEFAULT_NAMESPACE,
        version=text("version", _VERSION, "version"),
        engine=engine,
        admin_address=text("admin_address", _ANYTHING, "address"),
        inbound_address=address("inbound_address"),
        inbound_port=port("inbound_port"),
        app_address=address("app_address"),
        app_port=port("app_port"),
        outbound_address=address("outbound_address"),
        outbound_port=port("outbound_port"),
        identity_source=text("identity_source", _ANYTHING, "name of a cluster"),
        profile=profile(agent, message.user_agent_version),
        said=said,
    )


def _shown(value: struct_pb2.Value) -> str:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return quoted(value.string_value)
    return f"{value.number_value:g}" if kind == "number_value" else f"a {str(kind).partition('_')[0]}"
