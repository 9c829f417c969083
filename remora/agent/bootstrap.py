"""The bootstrap of a data plane: Envoy's v3 file, the same for our sidecar and for Envoy; JSON for gRPC's own client."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

_TYPE = "type.googleapis.com/envoy.extensions."
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_HTTP2: Final = {
    "@type": f"{_TYPE}upstreams.http.v3.HttpProtocolOptions",
    "explicit_http_config": {
        # Without it a control plane that is stopped, or whose network is gone, keeps its nodes.
        "http2_protocol_options": {"connection_keepalive": {"interval": "10s", "timeout": "4s"}}
    },
}


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A data plane that is to be: who it is, where it listens, where the control plane is."""

    node_id: str
    service: str
    namespace: str
    version: str
    control_planes: tuple[tuple[str, int], ...]
    """Replicas, of which any will do."""
    inbound: tuple[str, int]
    """Where callers reach the instance; port 0 for none."""
    app: tuple[str, int]
    """Where the program listens."""
    outbound: tuple[str, int]
    """Where the program's gRPC library sends CONNECT; port 0 for none."""
    admin: tuple[str, int]
    locality: tuple[str, str, str] = ("", "", "")
    """Region, zone, sub-zone; empty where nothing is known."""
    identity_socket: str = ""
    """Unix socket where its certificate is served (SDS); empty if it has none."""


IDENTITY: Final = "identity"
"""Name of the cluster that is that socket."""
LOCAL: Final = "local"
"""Name of the cluster of the instance and those like it."""


def node(spec: NodeSpec) -> dict[str, Any]:
    """core.v3.Node: how the control plane recognises the data plane."""
    return {
        "id": spec.node_id,
        "cluster": f"{spec.service}.{spec.namespace}",
        **({"locality": _locality(spec)} if any(spec.locality) else {}),
        "metadata": {
            "service": spec.service,
            "namespace": spec.namespace,
            "version": spec.version,
            "inbound_address": spec.inbound[0],
            "inbound_port": spec.inbound[1],
            "app_address": spec.app[0],
            "app_port": spec.app[1],
            "outbound_address": spec.outbound[0],
            "outbound_port": spec.outbound[1],
            "admin_address": f"{spec.admin[0]}:{spec.admin[1]}",
            **({"identity_source": IDENTITY} if spec.identity_socket else {}),
        },
    }


def _locality(spec: NodeSpec) -> dict[str, str]:
    parts = zip(("region", "zone", "sub_zone"), spec.locality, strict=True)
    return {name: part for name, part in parts if part}


def _local(spec: NodeSpec) -> list[dict[str, Any]]:
    """The cluster of the instance and those like it: a caller that knows its zone must know where the others are, to be fair."""
    if not any(spec.locality):
        return []
    return [
        {
            "name": LOCAL,
            "type": "EDS",
            "connect_timeout": "1s",
            "eds_cluster_config": {
                "service_name": f"outbound|{spec.service}.{spec.namespace}",
                "eds_config": {"ads": {}, "resource_api_version": "V3"},
            },
        }
    ]


def _discovery(addresses: Iterable[tuple[str, int]]) -> str:
    """How Envoy is to find these: a STATIC cluster takes IP addresses only."""
    try:
        for host, _ in addresses:
            ip_address(host.strip("[]"))
    except ValueError:
        return "STRICT_DNS"
    return "STATIC"


def _address(where: tuple[str, int]) -> dict[str, Any]:
    return {"socket_address": {"address": where[0].strip("[]"), "port_value": where[1]}}


def _identity(spec: NodeSpec) -> list[dict[str, Any]]:
    """The cluster that serves the certificate, if there is one."""
    if not spec.identity_socket:
        return []
    return [
        {
            "name": IDENTITY,
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {_HTTP_OPTIONS: _HTTP2},
            "load_assignment": {
                "cluster_name": IDENTITY,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": spec.identity_socket}}}}]}],
            },
        }
    ]


def envoy(spec: NodeSpec) -> dict[str, Any]:
    """Envoy's bootstrap, which our sidecar reads too."""
    by_ads = {"ads": {}, "resource_api_version": "V3"}
    return {
        "node": node(spec),
        "admin": {"address": _address(spec.admin)},
        **({"cluster_manager": {"local_cluster_name": LOCAL}} if any(spec.locality) else {}),
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {"@type": f"{_TYPE}bootstrap.internal_listener.v3.InternalListener"},
            }
        ],
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "control_plane"}}],
            },
            "lds_config": by_ads,
            "cds_config": by_ads,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "control_plane",
                    "type": _discovery(spec.control_planes),
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": {_HTTP_OPTIONS: _HTTP2},
                    "load_assignment": {
                        "cluster_name": "control_plane",
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {"endpoint": {"address": _address(each)}} for each in spec.control_planes
                                ]
                            }
                        ],
                    },
                },
                *_identity(spec),
                *_local(spec),
            ]
        },
    }


def grpc(spec: NodeSpec) -> dict[str, Any]:
    """The bootstrap of gRPC's own xDS client (gRFC A27): `GRPC_XDS_BOOTSTRAP` names the file, the target is `xds:///NAME.NAMESPACE`.

    An xDS-enabled server (gRFC A36) finds its listener by it, if it listens on the port of `app`.
    """
    return {
        "xds_servers": [
            {
                "server_uri": f"{host}:{port}",
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }
            for host, port in spec.control_planes  # gRPC goes through them in order (gRFC A71)
        ],
        "node": {
            "id": spec.node_id,
            "cluster": f"{spec.service}.{spec.namespace}",
            "metadata": {
                "service": spec.service,
                "namespace": spec.namespace,
                "version": spec.version,
                "app_address": spec.app[0].strip("[]"),
                "app_port": spec.app[1],
            },
        },
        "server_listener_resource_name_template": "grpc/server?xds.resource.listening_address=%s",
    }


WRITERS: Final[dict[str, Callable[[NodeSpec], dict[str, Any]]]] = {"remora": envoy, "envoy": envoy, "grpc": grpc}
"""By engine."""
