"""Envoy's bootstrap file (YAML or JSON) to what this process is told at its start."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2
from google.protobuf import json_format
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sidecar.proxy.config import Configuration, Limits, SecretRef
from sidecar.xds import convert, runtime, tls
from sidecar.xds.supported import ConfigError, refuse_unsupported

_GRPC: Final = config_source_pb2.ApiConfigSource.GRPC
_DELTA_GRPC: Final = config_source_pb2.ApiConfigSource.DELTA_GRPC
MAX_FILE_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A bootstrap, read and checked."""

    configuration: Configuration
    """From `static_resources`."""
    admin: tuple[str, int] | None
    """Where the admin endpoint listens; None for nowhere."""
    ads: tuple[tuple[str, int], ...]
    """HOST, PORT of every control plane that can be asked; empty if the configuration is all static."""
    is_delta: bool
    """They are asked by delta, not by state of the world."""
    limits: Limits
    """From `layered_runtime`."""
    node: bytes
    """The serialised core.v3.Node to present there."""
    secret_sources: tuple[tuple[str, str], ...] = ()
    """Static clusters by name, as gRPC's targets: `SecretRef.source` names one. One at a Unix socket (`pipe`) is only that."""


def load(path: Path) -> Bootstrap:
    """Read a bootstrap file. Raises ConfigError."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ConfigError(str(path), f"{size} bytes; at most {MAX_FILE_BYTES} are read (RMR0120)")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(str(path), f"cannot be read: {reason} (RMR0120)") from None
    try:
        document = _read(text)
    except YAMLError as error:
        raise ConfigError(str(path), f"is no YAML: {' '.join(str(error).split())} (RMR0121)") from None
    if not isinstance(document, dict):
        raise ConfigError(str(path), "is no mapping; an Envoy v3 bootstrap is needed (RMR0121)")
    try:
        return parse(document)
    except ConfigError as error:
        raise ConfigError(str(path), str(error)) from None


def _read(text: str) -> Any:
    """YAML, or JSON, which is YAML too, but takes YAML's reader a hundred times as long. Raises YAMLError."""
    if text.startswith("{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass  # YAML's own braces, or no YAML either: its reader says where
    return YAML(typ="safe").load(text)


def parse(document: dict[str, Any]) -> Bootstrap:
    """A bootstrap from its JSON form. Raises ConfigError."""
    message: Any = bootstrap_pb2.Bootstrap()
    try:
        json_format.ParseDict(document, message)
    except json_format.ParseError as error:
        raise ConfigError("", f"{' '.join(str(error).split())} (RMR0122)") from None
    return read(message)


def read(message: Any) -> Bootstrap:
    """A bootstrap from bootstrap.v3.Bootstrap. Raises ConfigError."""
    refuse_unsupported(message)
    static = message.static_resources
    steering = _control_plane(message)
    ads = _endpoints(steering) if steering is not None else ()
    configuration = Configuration(
        listeners=tuple(convert.listener(item) for item in static.listeners),
        # A control plane that is found by DNS is found by gRPC; calls cannot be routed to it.
        clusters=tuple(
            convert.cluster(item)
            for item in static.clusters
            if not (_is_by_dns(item) and item is steering) and not _pipe(item)
        ),
        local_cluster=_local_cluster(message),
        locality=(message.node.locality.region, message.node.locality.zone, message.node.locality.sub_zone),
    )
    _check_routes(configuration)
    static_secrets = tuple((SecretRef("", item.name), tls.secret(item)) for item in static.secrets)
    configuration = replace(configuration, secrets=static_secrets)
    sources = {cluster.name: _target(cluster) for cluster in static.clusters}
    check_secrets(configuration, sources)
    return Bootstrap(
        configuration=configuration,
        admin=(message.admin.address.socket_address.address, message.admin.address.socket_address.port_value)
        if message.HasField("admin")
        else None,
        ads=ads,
        is_delta=message.dynamic_resources.ads_config.api_type == _DELTA_GRPC,
        limits=runtime.limits(message.layered_runtime),
        node=message.node.SerializeToString(deterministic=True),
        secret_sources=tuple(sources.items()),
    )


def check_secrets(configuration: Configuration, sources: Mapping[str, str]) -> None:
    """Every secret is static, or comes from a static cluster. Raises ConfigError."""
    for ref in sorted(configuration.secret_refs, key=str):
        if not ref.source and ref not in dict(configuration.secrets):
            raise ConfigError(f"secret[{ref.name}]", "is not among static_resources.secrets (RMR0125)")
        if ref.source and not sources.get(ref.source):
            raise ConfigError(
                f"secret[{ref.name}]", f'there is no static cluster "{ref.source}" with an endpoint to ask (RMR0125)'
            )


def _pipe(cluster: Any) -> str:
    """The Unix socket of a cluster's only endpoint; empty if it has another kind."""
    addresses = [
        item.endpoint.address for locality in cluster.load_assignment.endpoints for item in locality.lb_endpoints
    ]
    return str(addresses[0].pipe.path) if len(addresses) == 1 and addresses[0].HasField("pipe") else ""


def _target(cluster: Any) -> str:
    """Where gRPC finds a cluster; empty if it has no address."""
    if _pipe(cluster):
        return f"unix:{_pipe(cluster)}"
    for locality in cluster.load_assignment.endpoints:
        for item in locality.lb_endpoints:
            socket = item.endpoint.address.socket_address
            host = f"[{socket.address}]" if ":" in socket.address else socket.address
            return f"{host}:{socket.port_value}" if host else ""
    return ""


def _local_cluster(message: Any) -> str:
    """The cluster of the instances to which this process belongs; as in Envoy it must be a static one, its endpoints may come by EDS."""
    name = str(message.cluster_manager.local_cluster_name)
    if name and all(cluster.name != name for cluster in message.static_resources.clusters):
        raise ConfigError(
            "cluster_manager.local_cluster_name", f'there is no static cluster "{name}"; add it (RMR0131)'
        )
    return name


def _check_routes(configuration: Configuration) -> None:
    """Static routes lead to static clusters, unless they say that they need not."""
    known = {cluster.name for cluster in configuration.clusters}
    for listener in configuration.listeners:
        chains = [*listener.chains, *([listener.default_chain] if listener.default_chain else [])]
        tables = [chain.manager.routes for chain in chains if chain.manager and chain.manager.routes]
        for table in tables:
            named = {name for host in table.virtual_hosts for route in host.routes for name, _ in route.clusters}
            missing = sorted(named - known)
            if missing and table.validates_clusters is not False:
                raise ConfigError(
                    f"listener[{listener.name}]: route_config[{table.name}]",
                    f'there is no static cluster "{missing[0]}"; add it, or say validate_clusters: false (RMR0131)',
                )


def _control_plane(message: Any) -> Any:
    """The cluster that `ads_config` names, whose endpoints are the control planes; None if there is no `dynamic_resources`."""
    if not message.HasField("dynamic_resources"):
        return None
    dynamic = message.dynamic_resources
    path = "dynamic_resources.ads_config"
    if dynamic.ads_config.api_type not in (_GRPC, _DELTA_GRPC) or len(dynamic.ads_config.grpc_services) != 1:
        raise ConfigError(path, "api_type GRPC or DELTA_GRPC with one grpc_service is needed (RMR0123)")
    for field in ("lds_config", "cds_config"):
        if not getattr(dynamic, field).HasField("ads"):
            raise ConfigError(f"dynamic_resources.{field}", "`ads: {}` is needed (RMR0123)")
    name = dynamic.ads_config.grpc_services[0].envoy_grpc.cluster_name
    for cluster in message.static_resources.clusters:
        if cluster.name == name and _endpoints(cluster):
            return cluster
    raise ConfigError(f"{path}.grpc_services[0]", f'static cluster "{name}" with an endpoint is needed (RMR0123)')


def _is_by_dns(cluster: Any) -> bool:
    return bool(cluster.type == cluster_pb2.Cluster.STRICT_DNS)


def _endpoints(cluster: Any) -> tuple[tuple[str, int], ...]:
    if not _is_by_dns(cluster):
        return tuple((endpoint.host, endpoint.port) for endpoint in convert.cluster(cluster).endpoints.endpoints)
    sockets = [
        item.endpoint.address.socket_address
        for locality in cluster.load_assignment.endpoints
        for item in locality.lb_endpoints
    ]
    return tuple((socket.address, socket.port_value) for socket in sockets if socket.address)
