"""The bootstrap of a data plane: Envoy's v3 file, the same for our sidecar and for Envoy; JSON for gRPC's own client."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

_TYPE = "type.googleapis.com/envoy.extensions."


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


def node(spec: NodeSpec) -> dict[str, Any]:
    """core.v3.Node: how the control plane recognises the data plane."""
    return {
        "id": spec.node_id,
        "cluster": f"{spec.service}.{spec.namespace}",
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
        },
    }


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


def envoy(spec: NodeSpec) -> dict[str, Any]:
    """Envoy's bootstrap, which our sidecar reads too."""
    by_ads = {"ads": {}, "resource_api_version": "V3"}
    return {
        "node": node(spec),
        "admin": {"address": _address(spec.admin)},
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {"@type": f"{_TYPE}bootstrap.internal_listener.v3.InternalListener"},
            }
        ],
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
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
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": f"{_TYPE}upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
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
                }
            ]
        },
    }


def grpc(spec: NodeSpec) -> dict[str, Any]:
    """The bootstrap of gRPC's own xDS client (gRFC A27): `GRPC_XDS_BOOTSTRAP` names the file, the target is `xds:///NAME.NAMESPACE`."""
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
            "metadata": {"service": spec.service, "namespace": spec.namespace, "version": spec.version},
        },
    }


WRITERS: Final[dict[str, Callable[[NodeSpec], dict[str, Any]]]] = {"remora": envoy, "envoy": envoy, "grpc": grpc}
"""By engine."""
