"""Envoy's messages to the proxy's configuration, one pure function per message.

Each takes a message that `supported.refuse_unsupported` has let through and raises ConfigError for values that are not taken.
"""

import ipaddress
from dataclasses import replace
from typing import Any, Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2, health_check_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2

from sidecar.http2.connection import Settings
from sidecar.http2.headers import MAX_BYTES, MAX_FIELDS
from sidecar.policy.balancing import Assignment, Labels
from sidecar.policy.hosts import Health
from sidecar.policy.priority import OVERPROVISIONING
from sidecar.policy.zones import Locality
from sidecar.proxy.config import (
    ChainMatch,
    ClusterConfig,
    Codec,
    ConnectionLife,
    Direction,
    DirectResponse,
    EndpointConfig,
    FilterChain,
    HttpManager,
    ListenerConfig,
    LoadAssignment,
    Redirect,
    RetryPolicy,
    Route,
    RouteTable,
    TcpProxy,
    TlsMatch,
    VirtualHost,
)
from sidecar.xds import balancing, breakers, filters, routing, tls
from sidecar.xds.checks import health_check
from sidecar.xds.retries import hedged, retry_policy
from sidecar.xds.supported import ConfigError, refuse_unsupported, unpack
from sidecar.xds.values import number_or, seconds, seconds_or

_SOCKET_MATCH: Final = "envoy.transport_socket_match"
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_HEALTH: Final = {
    health_check_pb2.UNHEALTHY: Health.UNHEALTHY,
    health_check_pb2.TIMEOUT: Health.UNHEALTHY,
    health_check_pb2.DRAINING: Health.LEAVING,
    health_check_pb2.DEGRADED: Health.DEGRADED,
}
MAX_PRIORITY: Final = 128
"""Envoy's own bound."""
MAX_HEADERS_KIB: Final = 8192
"""Envoy's own bound."""
LARGEST_STREAM_WINDOW: Final = 1024 * 1024
"""To which windows grow that the configuration leaves to us."""
_HTTP2_BOUNDS: Final = {
    "initial_stream_window_size": (65_535, 2**31 - 1),
    "initial_connection_window_size": (65_535, 2**31 - 1),
    "max_concurrent_streams": (1, 2**31 - 1),
}
"""Envoy's own."""


def _host_port(address: Any, path: str) -> tuple[str, int]:
    socket = address.socket_address
    if address.WhichOneof("address") != "socket_address" or socket.protocol != 0:
        raise ConfigError(path, "a TCP socket_address is needed here (RMR0105)")
    try:
        ipaddress.ip_address(socket.address)
    except ValueError:
        raise ConfigError(
            f"{path}.socket_address.address", f'"{socket.address}" is no IP address; names are not resolved (RMR0105)'
        ) from None
    if not 0 <= socket.port_value <= 65535:
        raise ConfigError(f"{path}.socket_address.port_value", f"{socket.port_value} is no port (RMR0105)")
    return socket.address, socket.port_value


def _http2(options: Any, path: str) -> Settings:
    base = Settings()
    field = "override_stream_error_on_invalid_http_message"
    if options.HasField(field) and not getattr(options, field).value:
        raise ConfigError(
            f"{path}.{field}",
            "only true is supported: a malformed message ends its stream, never the connection (RMR0119)",
        )
    for name, (least, most) in _HTTP2_BOUNDS.items():
        if options.HasField(name) and not least <= getattr(options, name).value <= most:
            raise ConfigError(
                f"{path}.{name}", f"{getattr(options, name).value}: {least} to {most} are possible (RMR0119)"
            )
    is_fixed = options.HasField("initial_stream_window_size")
    return Settings(
        initial_stream_window=options.initial_stream_window_size.value if is_fixed else base.initial_stream_window,
        largest_stream_window=0 if is_fixed else LARGEST_STREAM_WINDOW,
        initial_connection_window=options.initial_connection_window_size.value
        if options.HasField("initial_connection_window_size")
        else base.initial_connection_window,
        max_concurrent_streams=options.max_concurrent_streams.value
        if options.HasField("max_concurrent_streams")
        else base.max_concurrent_streams,
    )


def _life(common: Any, http2: Any, path: str) -> ConnectionLife:
    """core.v3.HttpProtocolOptions, and the keepalive of core.v3.Http2ProtocolOptions."""
    base = ConnectionLife()
    keepalive = http2.connection_keepalive
    interval = seconds(keepalive.interval)
    timeout = seconds(keepalive.timeout)
    if http2.HasField("connection_keepalive") and (timeout <= 0 or (keepalive.HasField("interval") and interval <= 0)):
        raise ConfigError(f"{path}.connection_keepalive", "interval and timeout must be above 0 (RMR0127)")
    return ConnectionLife(
        idle_timeout_s=seconds_or(common, "idle_timeout", base.idle_timeout_s),
        max_duration_s=seconds_or(common, "max_connection_duration", base.max_duration_s),
        max_requests=number_or(common, "max_requests_per_connection", base.max_requests),
        keepalive_interval_s=interval,
        keepalive_timeout_s=timeout,
        keepalive_jitter=keepalive.interval_jitter.value / 100
        if keepalive.HasField("interval_jitter")
        else base.keepalive_jitter,
    )


# -- listeners ----------------------------------------------------------------------------------------


def listener(message: Any) -> ListenerConfig:
    """listener.v3.Listener."""
    name = message.name
    path = f"listener[{name}]"
    refuse_unsupported(message, path)
    if not message.filter_chains and not message.HasField("default_filter_chain"):
        raise ConfigError(f"{path}.filter_chains", "at least one filter chain is needed (RMR0106)")
    chains = tuple(
        _filter_chain(chain, f"{path}.filter_chains[{number}]") for number, chain in enumerate(message.filter_chains)
    )
    _refuse_twins(chains, path)
    default_chain = None
    if message.HasField("default_filter_chain"):
        default_chain = _filter_chain(message.default_filter_chain, f"{path}.default_filter_chain")
    inspectors = _inspectors(message.listener_filters, path)
    is_internal = message.HasField("internal_listener")
    host, port = ("", 0) if is_internal else _host_port(message.address, f"{path}.address")
    base = ListenerConfig(name, chains)
    return ListenerConfig(
        name,
        chains,
        default_chain=default_chain,
        inspects_tls="TlsInspector" in inspectors or any(_needs_hello(chain.match) for chain in chains),
        inspects_http="HttpInspector" in inspectors,
        inspect_timeout_s=seconds_or(message, "listener_filters_timeout", base.inspect_timeout_s),
        goes_on_after_timeout=message.continue_on_listener_filters_timeout,
        buffer_limit=number_or(message, "per_connection_buffer_limit_bytes", base.buffer_limit),
        host=host,
        port=port,
        is_internal=is_internal,
        direction={0: Direction.UNSPECIFIED, 1: Direction.INBOUND, 2: Direction.OUTBOUND}[message.traffic_direction],
    )


def _inspectors(filters: Any, path: str) -> list[str]:
    """Names of the listener filters' types."""
    found: list[str] = []
    for number, item in enumerate(filters):
        place = f"{path}.listener_filters[{number}].typed_config"
        name = unpack(item.typed_config, place).DESCRIPTOR.name
        if name not in ("TlsInspector", "HttpInspector"):
            raise ConfigError(place, f"{name} is no listener filter (RMR0126)")
        found.append(name)
    return found


def _needs_hello(match: ChainMatch) -> bool:
    """True if the match can only be decided with a TLS client's hello: the inspector is then there unasked, as in Envoy."""
    return match.transport == "tls" or bool(match.server_names)


def _refuse_twins(chains: tuple[FilterChain, ...], path: str) -> None:
    seen: dict[tuple[str, str, str], int] = {}
    for number, chain in enumerate(chains):
        match = chain.match
        for server_name in match.server_names or ("",):
            for application in match.applications or ("",):
                other = seen.setdefault((server_name, match.transport, application), number)
                if other != number:
                    raise ConfigError(
                        f"{path}.filter_chains[{number}].filter_chain_match",
                        f"matches the same as chain {other} (RMR0126)",
                    )
    names = [chain.name for chain in chains if chain.name]
    if len(set(names)) != len(names):
        raise ConfigError(f"{path}.filter_chains", "two chains have the same name (RMR0126)")


def _chain_match(message: Any, path: str) -> ChainMatch:
    if message.transport_protocol not in ("", "tls", "raw_buffer"):
        raise ConfigError(
            f"{path}.transport_protocol", f'"{message.transport_protocol}": tls and raw_buffer are supported (RMR0126)'
        )
    for number, name in enumerate(message.server_names):
        if "*" in name and not (name.startswith("*.") and name.count("*") == 1):
            raise ConfigError(
                f"{path}.server_names[{number}]", f'"{name}": * stands for whole first labels only (RMR0126)'
            )
    return ChainMatch(
        tuple(name.lower() for name in message.server_names),
        message.transport_protocol,
        tuple(message.application_protocols),
    )


def _filter_chain(message: Any, path: str) -> FilterChain:
    """listener.v3.FilterChain."""
    if len(message.filters) != 1:
        raise ConfigError(f"{path}.filters", "exactly one filter is supported (RMR0106)")
    place = f"{path}.filters[0].typed_config"
    packed = unpack(message.filters[0].typed_config, place)
    manager: HttpManager | None = None
    proxy: TcpProxy | None = None
    if isinstance(packed, http_connection_manager_pb2.HttpConnectionManager):
        manager = http_manager(packed, place)
    elif isinstance(packed, tcp_proxy_pb2.TcpProxy):
        proxy = _tcp_proxy(packed, place)
    else:
        raise ConfigError(place, "the HttpConnectionManager and the TcpProxy are supported (RMR0106)")
    return FilterChain(
        name=message.name,
        match=_chain_match(message.filter_chain_match, f"{path}.filter_chain_match"),
        manager=manager,
        tcp=proxy,
        tls=tls.downstream(message.transport_socket, f"{path}.transport_socket")
        if message.HasField("transport_socket")
        else None,
    )


def _tcp_proxy(message: Any, path: str) -> TcpProxy:
    if message.WhichOneof("cluster_specifier") != "cluster":
        raise ConfigError(path, "cluster is needed (RMR0112)")
    base = TcpProxy(message.stat_prefix, message.cluster)
    return TcpProxy(
        message.stat_prefix,
        message.cluster,
        idle_timeout_s=seconds_or(message, "idle_timeout", base.idle_timeout_s),
        max_connect_attempts=number_or(message, "max_connect_attempts", base.max_connect_attempts),
    )


def http_manager(message: Any, path: str) -> HttpManager:
    """HttpConnectionManager."""
    codecs = {0: Codec.AUTO, 1: Codec.HTTP1, 2: Codec.HTTP2}
    if message.codec_type not in codecs:
        raise ConfigError(f"{path}.codec_type", "AUTO, HTTP1 and HTTP2 are supported (RMR0107)")
    specifier = message.WhichOneof("route_specifier")
    if specifier is None:
        raise ConfigError(path, "route_config or rds is needed (RMR0108)")
    _needs_ads(message.rds.config_source, f"{path}.rds.config_source")
    upgrades = {upgrade.upgrade_type.lower() for upgrade in message.upgrade_configs if _is_enabled(upgrade)}
    return HttpManager(
        stat_prefix=message.stat_prefix,
        routes=route_table(message.route_config) if specifier == "route_config" else None,
        rds_name=message.rds.route_config_name if specifier == "rds" else None,
        filters=filters.http_filters(message.http_filters, path),
        takes_connect="connect" in upgrades,
        upgrades=frozenset(upgrades - {"connect"}),
        codec=codecs[message.codec_type],
        http2=replace(
            _http2(message.http2_protocol_options, f"{path}.http2_protocol_options"),
            max_header_bytes=_header_bytes(message, path),
            max_header_fields=_header_fields(message.common_http_protocol_options, path),
        ),
        life=_life(
            message.common_http_protocol_options, message.http2_protocol_options, f"{path}.http2_protocol_options"
        ),
        stream_idle_timeout_s=seconds_or(message, "stream_idle_timeout", 300.0),
        delayed_close_s=seconds_or(message, "delayed_close_timeout", 1.0),
        drain_timeout_s=seconds_or(message, "drain_timeout", 5.0),
        max_stream_duration_s=seconds_or(message.common_http_protocol_options, "max_stream_duration", 0.0),
    )


def _header_bytes(message: Any, path: str) -> int:
    """How long a request's headers may be."""
    kib = number_or(message, "max_request_headers_kb", MAX_BYTES // 1024)
    if not 0 < kib <= MAX_HEADERS_KIB:
        raise ConfigError(f"{path}.max_request_headers_kb", f"{kib}: 1 to {MAX_HEADERS_KIB} are possible (RMR0119)")
    return kib * 1024


def _header_fields(message: Any, path: str) -> int:
    count = number_or(message, "max_headers_count", MAX_FIELDS)
    if count < 1:
        place = f"{path}.common_http_protocol_options.max_headers_count"
        raise ConfigError(place, f"{count}: at least 1 is needed (RMR0119)")
    return count


def _is_enabled(upgrade: Any) -> bool:
    return bool(upgrade.enabled.value) if upgrade.HasField("enabled") else True


# -- routes -------------------------------------------------------------------------------------------


def route_table(message: Any) -> RouteTable:
    """route.v3.RouteConfiguration."""
    path = f"route_config[{message.name}]"
    refuse_unsupported(message, path)
    hosts: list[VirtualHost] = []
    seen: set[str] = set()
    for host in message.virtual_hosts:
        place = f"{path}.virtual_hosts[{host.name}]"
        for domain in host.domains:
            if domain.lower() in seen:
                raise ConfigError(f"{place}.domains", f'"{domain}" stands in two virtual hosts (RMR0111)')
            seen.add(domain.lower())
        if not host.domains:
            raise ConfigError(f"{place}.domains", "at least one domain is needed (RMR0111)")
        retry = retry_policy(host.retry_policy, f"{place}.retry_policy") if host.HasField("retry_policy") else None
        limit = _replay_limit(host, None)
        routes = tuple(
            _route(route, f"{place}.routes[{number}]", retry, limit) for number, route in enumerate(host.routes)
        )
        overrides = filters.overrides(host.typed_per_filter_config, place)
        actions = filters.limit_actions(host.rate_limits, f"{place}.rate_limits")
        changes = (routing.header_changes(host, "request", place), routing.header_changes(host, "response", place))
        hosts.append(VirtualHost(host.name, tuple(host.domains), routes, overrides, actions, *changes))
    validates = bool(message.validate_clusters.value) if message.HasField("validate_clusters") else None
    return RouteTable(
        message.name,
        tuple(hosts),
        validates,
        routing.header_changes(message, "request", path),
        routing.header_changes(message, "response", path),
        message.most_specific_header_mutations_wins,
    )


def _replay_limit(message: Any, unset: int | None) -> int | None:
    """Of a virtual host or a route: bytes of a request that are kept for another try."""
    return int(message.request_body_buffer_limit.value) if message.HasField("request_body_buffer_limit") else unset


def _route(message: Any, path: str, host_retry: RetryPolicy | None, host_replay_limit: int | None) -> Route:
    action = message.route
    kind = message.WhichOneof("action")
    answer: Redirect | DirectResponse | None = None
    clusters: tuple[tuple[str, int], ...] = ()
    labels: tuple[Labels, ...] = ()
    if kind == "redirect":
        answer = routing.redirect(message.redirect, f"{path}.redirect")
    elif kind == "direct_response":
        answer = routing.direct_response(message.direct_response, f"{path}.direct_response")
    elif kind == "route":
        clusters, labels = _clusters(action, f"{path}.route")
    else:
        raise ConfigError(path, "route, redirect or direct_response is needed (RMR0112)")
    longest = action.max_stream_duration
    match = routing.route_match(message.match, f"{path}.match")
    upgrades = [upgrade for upgrade in action.upgrade_configs if _is_enabled(upgrade)]
    for number, upgrade in enumerate(action.upgrade_configs):
        if upgrade.upgrade_type.upper() != "CONNECT" or not match.connect:
            raise ConfigError(
                f"{path}.route.upgrade_configs[{number}]",
                "only CONNECT, behind a connect_matcher, is supported (RMR0107)",
            )
    if match.connect and not any(upgrade.HasField("connect_config") for upgrade in upgrades):
        raise ConfigError(
            f"{path}.route.upgrade_configs", "a connect_matcher needs one of type CONNECT with connect_config (RMR0107)"
        )
    return Route(
        match=match,
        clusters=clusters,
        labels=labels if any(labels) else (),
        hash_policies=balancing.hash_policies(action.hash_policy, f"{path}.route.hash_policy"),
        name=message.name,
        timeout_s=seconds(action.timeout) if action.HasField("timeout") else 15.0,
        retry=hedged(
            retry_policy(action.retry_policy, f"{path}.route.retry_policy")
            if action.HasField("retry_policy")
            else host_retry,
            message.metadata,
            f"{path}.metadata",
        ),
        replay_limit=_replay_limit(message, host_replay_limit),
        is_urgent=action.priority == base_pb2.HIGH,
        idle_timeout_s=seconds(action.idle_timeout) if action.HasField("idle_timeout") else None,
        max_duration_s=seconds(longest.max_stream_duration) if longest.HasField("max_stream_duration") else None,
        grpc_timeout_max_s=seconds(longest.grpc_timeout_header_max)
        if longest.HasField("grpc_timeout_header_max")
        else None,
        overrides=filters.overrides(message.typed_per_filter_config, path),
        limit_actions=filters.limit_actions(action.rate_limits, f"{path}.route.rate_limits"),
        request_changes=routing.header_changes(message, "request", path),
        response_changes=routing.header_changes(message, "response", path),
        rewrite=routing.rewrite(action, f"{path}.route"),
        answer=answer,
        mirrors=routing.mirrors(action, f"{path}.route"),
    )


def _clusters(action: Any, path: str) -> tuple[tuple[tuple[str, int], ...], tuple[Labels, ...]]:
    """Where a route.v3.RouteAction leads: clusters with weights, and the labels that each one's endpoints must have."""
    specifier = action.WhichOneof("cluster_specifier")
    if specifier == "cluster":
        return ((action.cluster, 1),), (balancing.metadata_match(action),)
    if specifier != "weighted_clusters":
        raise ConfigError(path, "cluster or weighted_clusters is needed (RMR0112)")
    parts = [part for part in action.weighted_clusters.clusters if part.weight.value]
    if not parts:
        raise ConfigError(f"{path}.weighted_clusters", "the weights add up to 0 (RMR0113)")
    clusters = tuple((part.name, part.weight.value) for part in parts)
    return clusters, tuple(balancing.metadata_match(action, part) for part in parts)


# -- clusters -----------------------------------------------------------------------------------------


def cluster(message: Any) -> ClusterConfig:
    """cluster.v3.Cluster."""
    path = f"cluster[{message.name}]"
    refuse_unsupported(message, path)
    eds_name: str | None = None
    endpoints = LoadAssignment("")
    internal: str | None = None
    if message.type == cluster_pb2.Cluster.EDS:
        eds_name = message.eds_cluster_config.service_name or message.name
        _needs_ads(message.eds_cluster_config.eds_config, f"{path}.eds_cluster_config.eds_config")
    elif message.type == cluster_pb2.Cluster.STATIC:
        internal = _internal_listener(message.load_assignment)
        if internal is None:
            endpoints = load_assignment(message.load_assignment)
    else:
        name = cluster_pb2.Cluster.DiscoveryType.Name(message.type)
        raise ConfigError(f"{path}.type", f"{name}: STATIC and EDS are supported (RMR0116)")
    codec, http2, life = _cluster_http(message, path)
    max_connections, thresholds = breakers.thresholds(message.circuit_breakers, f"{path}.circuit_breakers")
    how = balancing.balancing(message, path)
    if how.hashes_hostname and eds_name is None:
        raise ConfigError(path, "use_hostname_for_hashing is for clusters whose endpoints come by EDS (RMR0116)")
    return ClusterConfig(
        name=message.name,
        connect_timeout_s=seconds(message.connect_timeout) if message.HasField("connect_timeout") else 5.0,
        balancing=how,
        endpoints=endpoints,
        eds_name=eds_name,
        internal_listener=internal,
        max_connections=max_connections,
        thresholds=thresholds[base_pb2.DEFAULT],
        high_thresholds=thresholds[base_pb2.HIGH],
        checks=tuple(
            health_check(item, codec, f"{path}.health_checks[{number}]")
            for number, item in enumerate(message.health_checks)
        ),
        breaker=breakers.breaker(message.metadata, f"{path}.metadata"),
        outlier_detection=breakers.outlier_detection(message.outlier_detection, f"{path}.outlier_detection")
        if message.HasField("outlier_detection")
        else None,
        codec=codec,
        http2=http2,
        tls=tls.upstream(message.transport_socket, f"{path}.transport_socket")
        if message.HasField("transport_socket")
        else None,
        tls_matches=_tls_matches(message.transport_socket_matches, f"{path}.transport_socket_matches"),
        life=life,
        buffer_limit=number_or(message, "per_connection_buffer_limit_bytes", 64 * 1024),
    )


def _tls_matches(messages: Any, path: str) -> tuple[TlsMatch, ...]:
    return tuple(
        TlsMatch(
            message.name,
            balancing.labels(message.match),
            tls.upstream(message.transport_socket, f"{path}[{number}].transport_socket")
            if message.HasField("transport_socket")
            else None,
        )
        for number, message in enumerate(messages)
    )


def _needs_ads(source: Any, path: str) -> None:
    if source.HasField("api_config_source"):
        raise ConfigError(f"{path}.api_config_source", "`ads: {}` is needed here (RMR0123)")


def _cluster_http(message: Any, path: str) -> tuple[Codec, Settings, ConnectionLife]:
    """Which HTTP the endpoints speak, and how; HTTP/1.1 where nothing is said, as in Envoy."""
    packed = message.typed_extension_protocol_options
    unknown = sorted(set(packed).difference((_HTTP_OPTIONS,)))
    if unknown:
        raise ConfigError(f"{path}.typed_extension_protocol_options", f'"{unknown[0]}" is not supported (RMR0117)')
    if _HTTP_OPTIONS not in packed:
        return Codec.HTTP1, Settings(), ConnectionLife()
    place = f"{path}.typed_extension_protocol_options[{_HTTP_OPTIONS}]"
    options: Any = unpack(packed[_HTTP_OPTIONS], place)
    explicit = options.explicit_http_config
    chosen = explicit.WhichOneof("protocol_config")
    if chosen is None:
        raise ConfigError(
            place,
            "explicit_http_config with http2_protocol_options, or with http_protocol_options for HTTP/1.1, is needed (RMR0117)",
        )
    if options.common_http_protocol_options.HasField("max_stream_duration"):
        raise ConfigError(
            f"{place}.common_http_protocol_options.max_stream_duration",
            "is supported on routes and listeners (RMR0117)",
        )
    http2 = explicit.http2_protocol_options
    where = f"{place}.explicit_http_config.http2_protocol_options"
    life = _life(options.common_http_protocol_options, http2, where)
    return (Codec.HTTP2 if chosen == "http2_protocol_options" else Codec.HTTP1), _http2(http2, where), life


def _internal_listener(assignment: Any) -> str | None:
    for locality in assignment.endpoints:
        for endpoint in locality.lb_endpoints:
            if endpoint.endpoint.address.HasField("envoy_internal_address"):
                return str(endpoint.endpoint.address.envoy_internal_address.server_listener_name)
    return None


def load_assignment(message: Any) -> LoadAssignment:
    """endpoint.v3.ClusterLoadAssignment."""
    path = f"load_assignment[{message.cluster_name}]"
    refuse_unsupported(message, path)
    factor = number_or(message.policy, "overprovisioning_factor", OVERPROVISIONING)
    if factor < 1:
        raise ConfigError(f"{path}.policy.overprovisioning_factor", f"{factor}: 1 or more is needed (RMR0130)")
    found: list[EndpointConfig] = []
    for place, locality in enumerate(message.endpoints):
        where = f"{path}.endpoints[{place}]"
        if locality.priority > MAX_PRIORITY:
            raise ConfigError(f"{where}.priority", f"{locality.priority}: 0 to {MAX_PRIORITY} are possible (RMR0130)")
        name = (locality.locality.region, locality.locality.zone, locality.locality.sub_zone)
        weight = locality.load_balancing_weight.value
        for number, item in enumerate(locality.lb_endpoints):
            found.append(_endpoint(item, f"{where}.lb_endpoints[{number}]", locality.priority, name, weight))
    policy = Assignment(overprovisioning=factor, counts_weights=message.policy.weighted_priority_health)
    return LoadAssignment(message.cluster_name, tuple(found), policy)


def _endpoint(item: Any, path: str, priority: int, locality: Locality, locality_weight: int) -> EndpointConfig:
    host, port = _host_port(item.endpoint.address, f"{path}.endpoint.address")
    weight = number_or(item, "load_balancing_weight", 1)
    if weight < 1:
        raise ConfigError(f"{path}.load_balancing_weight", f"{weight}: 1 or more is needed (RMR0130)")
    metadata = item.metadata.filter_metadata
    labels = balancing.labels(metadata["envoy.lb"]) if "envoy.lb" in metadata else ()
    tls_labels = balancing.labels(metadata[_SOCKET_MATCH]) if _SOCKET_MATCH in metadata else ()
    version = next((value for name, value in labels if name == "version"), "")
    return EndpointConfig(
        host,
        port,
        weight=weight,
        health=_HEALTH.get(item.health_status, Health.HEALTHY),
        version=version if isinstance(version, str) else "",
        priority=priority,
        locality=locality,
        locality_weight=locality_weight,
        labels=labels,
        hostname=item.endpoint.hostname,
        tls_labels=tls_labels,
    )
