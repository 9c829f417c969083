"""Bootstraps for tests that start a sidecar by itself."""

import re
from typing import Any, Final

_HTTP: Final = "type.googleapis.com/envoy.extensions.filters.http."
_MANAGER: Final = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)
_UPSTREAM: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
ABSENT: Final = object()
"""For `changed`: nothing at all."""
ROUTER: Final = {"name": "envoy.filters.http.router", "typed_config": {"@type": _HTTP + "router.v3.Router"}}
HTTP2: Final = {
    _UPSTREAM: {"@type": "type.googleapis.com/" + _UPSTREAM, "explicit_http_config": {"http2_protocol_options": {}}}
}


def address(port: int) -> dict[str, Any]:
    """A loopback address."""
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def listener(name: str, port: int, cluster: str, **options: Any) -> dict[str, Any]:
    """A listener that sends every call to a cluster; `options` go into its connection manager."""
    manager = {
        "@type": _MANAGER,
        "stat_prefix": name,
        "route_config": {
            "name": name,
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}],
                }
            ],
        },
        "http_filters": [ROUTER],
        **options,
    }
    return {
        "name": name,
        "address": address(port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def cluster(name: str, *ports: int, **options: Any) -> dict[str, Any]:
    """A static cluster of loopback ports that speaks HTTP/2; `options` are fields of the cluster."""
    return {
        "name": name,
        "type": "STATIC",
        "typed_extension_protocol_options": HTTP2,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}} for port in ports]}],
        },
        **options,
    }


def static(listeners: list[dict[str, Any]], clusters: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """A bootstrap; `fields` are more of its own."""
    return {"static_resources": {"listeners": listeners, "clusters": clusters}, **fields}


def changed(tree: Any, path: str, value: Any) -> Any:
    """The tree with another value at `a.b[0].c`; ABSENT takes it away. A `/` in a key stands for a dot."""
    words = [word.replace("/", ".") for word in re.findall(r"[^.\[\]]+", path)]
    at = tree
    for word in words[:-1]:
        at = at[int(word)] if isinstance(at, list) else at[word]
    last: Any = int(words[-1]) if isinstance(at, list) else words[-1]
    if value is ABSENT:
        del at[last]
    else:
        at[last] = value
    return tree
