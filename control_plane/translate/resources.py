"""Views to Envoy's messages, serialised: pure, and remembered so that equal views share their bytes.

Each function returns the bytes of one message; its field choices are Envoy's, see the names.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import address_pb2, base_pb2, config_source_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from google.protobuf import any_pb2, duration_pb2, struct_pb2, wrappers_pb2

from control_plane.translate import authorization, balancing, resilience, security, tokens
from control_plane.translate.limits import filter_config
from control_plane.translate.resilience import MAX_REQUESTS
from control_plane.translate.route_filters import apply_filter
from control_plane.translate.view import (
    AccessView,
    LimitView,
    MutualTls,
    PeerView,
    RuleView,
    ServiceView,
    TokensView,
    cluster_name,
)
from proto.mesh.v1 import policy_pb2, service_pb2
from proto.mesh.v1 import route_pb2 as mesh_route_pb2

REMEMBERED: Final = 65_536
"""Translated resources that are kept; more than any mesh of this size has."""
INBOUND: Final = "inbound"
OUTBOUND: Final = "outbound"
OUTBOUND_MESH: Final = "outbound_mesh"
TUNNEL: Final = "outbound_tunnel"
LIMIT_PLACES: Final = 4
"""Rate limits that an instance may have without a change of its listener."""
CONNECT_TIMEOUT_S: Final = 1
MAX_REGEX_PROGRAM: Final = 1_000_000
"""Instructions of RE2; above what the largest pattern has that `control_plane.resources.regex` takes."""

_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_MANAGER: Final = "envoy.filters.network.http_connection_manager"
PANIC_SHARE: Final = 0.5
"""With fewer healthy instances than this share of the healthy and the held ones, those that are held get calls too."""
# What a later release may have stored is taken for what does least harm: one bad value must not keep the rest from being served.
_HEALTH: Final = {
    service_pb2.HEALTH_UNKNOWN: health_check_pb2.UNKNOWN,
    service_pb2.HEALTHY: health_check_pb2.HEALTHY,
    service_pb2.UNHEALTHY: health_check_pb2.UNHEALTHY,
    service_pb2.DRAINING: health_check_pb2.DRAINING,
}


def _any(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message, deterministic=True)
    return packed


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def _uint(value: int) -> wrappers_pb2.UInt32Value:
    return wrappers_pb2.UInt32Value(value=value)


def _none() -> duration_pb2.Duration:
    """0 seconds, which is Envoy's way to say `no time-out`."""
    return duration_pb2.Duration()


def _ads() -> Any:
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(), resource_api_version=config_source_pb2.V3
    )


def _address(host: str, port: int) -> Any:
    return address_pb2.Address(socket_address=address_pb2.SocketAddress(address=host, port_value=port))


def _http2_options() -> dict[str, any_pb2.Any]:
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.explicit_http_config.http2_protocol_options.SetInParent()
    return {_HTTP_OPTIONS: _any(options)}


# -- clusters and endpoints ---------------------------------------------------------------------------


@lru_cache(REMEMBERED)
def cluster(
    name: str,
    balance: bytes,
    peer: PeerView | None = None,
    identity_source: str = "",
    breaking: bytes = b"",
) -> bytes:
    """The cluster of a service, its endpoints by EDS. `balance` is its LoadBalancingPolicySpec, `identity_source` where the caller's certificate comes from,
    `breaking` its CircuitBreakerPolicySpec."""
    message = cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=_ads()),
        connect_timeout=duration_pb2.Duration(seconds=CONNECT_TIMEOUT_S),
        typed_extension_protocol_options=_http2_options(),
    )
    resilience.protect(message, breaking)
    balancing.balance(message, balance)
    if peer is not None and identity_source:
        security.secure(message, peer, identity_source)
    return _bytes(message)


def endpoints(service: ServiceView) -> bytes:
    """The endpoints of a service, grouped by locality."""
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster_name(service.namespace, service.name))
    places = balancing.Places(service.balancing)
    held = health_check_pb2.UNKNOWN if _needs_held(service) else health_check_pb2.UNHEALTHY
    for locality in sorted({endpoint.locality for endpoint in service.endpoints}):
        members = [endpoint for endpoint in service.endpoints if endpoint.locality == locality]
        region, zone, sub_zone = locality
        group = message.endpoints.add(
            locality=base_pb2.Locality(region=region, zone=zone, sub_zone=sub_zone),
            load_balancing_weight=places.weight(locality, sum(endpoint.weight for endpoint in members)),
            priority=places.priority(locality, service.endpoints),
        )
        for endpoint in members:
            labels = struct_pb2.Struct()
            labels.update({"version": endpoint.version, "instance": endpoint.id})
            metadata = base_pb2.Metadata(filter_metadata={"envoy.lb": labels})
            if endpoint.mutual_tls:
                metadata.filter_metadata[security.MATCH].update({security.MUTUAL_TLS: "true"})
            group.lb_endpoints.append(
                endpoint_components_pb2.LbEndpoint(
                    endpoint=endpoint_components_pb2.Endpoint(address=_address(endpoint.address, endpoint.port)),
                    health_status=held
                    if endpoint.health == service_pb2.HELD
                    else _HEALTH.get(endpoint.health, health_check_pb2.UNHEALTHY),
                    load_balancing_weight=_uint(endpoint.weight),
                    metadata=metadata,
                )
            )
    return _bytes(message)


def _needs_held(service: ServiceView) -> bool:
    """True if so many are held that they must carry calls: a time-out to a dead one is retried, to an overloaded one it is not."""
    held = sum(endpoint.health == service_pb2.HELD for endpoint in service.endpoints)
    healthy = sum(endpoint.health == service_pb2.HEALTHY for endpoint in service.endpoints)
    return healthy < PANIC_SHARE * (healthy + held)


@lru_cache(REMEMBERED)
def inbound_cluster(host: str, port: int) -> bytes:
    """The application beside the sidecar."""
    return _bytes(
        cluster_pb2.Cluster(
            name=INBOUND,
            type=cluster_pb2.Cluster.STATIC,
            connect_timeout=duration_pb2.Duration(seconds=CONNECT_TIMEOUT_S),
            typed_extension_protocol_options=_http2_options(),
            circuit_breakers=circuit_breaker_pb2.CircuitBreakers(
                thresholds=[
                    circuit_breaker_pb2.CircuitBreakers.Thresholds(
                        max_connections=_uint(MAX_REQUESTS),
                        max_pending_requests=_uint(MAX_REQUESTS),
                        max_requests=_uint(MAX_REQUESTS),
                    )
                ]
            ),
            load_assignment=_single(INBOUND, endpoint_components_pb2.Endpoint(address=_address(host, port))),
        )
    )


@lru_cache(1)
def tunnel_cluster() -> bytes:
    """From the CONNECT listener to the listener that speaks HTTP/2 inside the tunnel."""
    inside = address_pb2.Address(
        envoy_internal_address=address_pb2.EnvoyInternalAddress(server_listener_name=OUTBOUND_MESH)
    )
    return _bytes(
        cluster_pb2.Cluster(
            name=TUNNEL,
            type=cluster_pb2.Cluster.STATIC,
            load_assignment=_single(TUNNEL, endpoint_components_pb2.Endpoint(address=inside)),
        )
    )


def _single(name: str, endpoint: Any) -> Any:
    return endpoint_pb2.ClusterLoadAssignment(
        cluster_name=name,
        endpoints=[
            endpoint_components_pb2.LocalityLbEndpoints(
                lb_endpoints=[endpoint_components_pb2.LbEndpoint(endpoint=endpoint)]
            )
        ],
    )


# -- routes -------------------------------------------------------------------------------------------


def route_configuration(services: Iterable[ServiceView], namespace: str) -> bytes:
    """All services as virtual hosts, as a node in `namespace` may call them."""
    message = route_pb2.RouteConfiguration(name=OUTBOUND)
    for service in services:
        message.virtual_hosts.extend(_virtual_hosts(service, service.namespace == namespace))
    return _bytes(message)


@lru_cache(REMEMBERED)
def virtual_hosts(service: ServiceView, has_short_name: bool) -> bytes:
    """The part of `route_configuration` that is about one service: a message is its fields, one after the other."""
    return _bytes(route_pb2.RouteConfiguration(virtual_hosts=_virtual_hosts(service, has_short_name)))


def routing_part(service: ServiceView) -> ServiceView:
    """The service without what routes do not depend on: endpoints come and go without touching routes."""
    return replace(service, balancing=b"", breaking=b"", endpoints=(), peer=None)


def _virtual_hosts(service: ServiceView, has_short_name: bool) -> tuple[Any, ...]:
    """One for all ports, and one for each port that has rules of its own."""
    names = [service.host, service.name] if has_short_name else [service.host]
    own = {rule.port for rule in service.rules if rule.port}
    if service.ports:
        own &= set(service.ports)  # a port that the service does not have is not called
    domains: list[str] = []
    for name in names:
        domains.append(name)
        domains += [f"{name}:{port}" for port in service.ports if port not in own]
        if not service.ports:
            domains.append(f"{name}:*")
    hosts = [_virtual_host(service, service.host, domains, 0)]
    hosts += [
        _virtual_host(service, f"{service.host}:{port}", [f"{name}:{port}" for name in names], port)
        for port in sorted(own)
    ]
    return tuple(hosts)


def _virtual_host(service: ServiceView, name: str, domains: list[str], port: int) -> Any:
    host = route_components_pb2.VirtualHost(name=name, domains=domains)
    rules = dict.fromkeys(replace(rule, port=0) for rule in service.rules if rule.port in (0, port))
    default = RuleView("default", b"", ((cluster_name(service.namespace, service.name), 1),), hash_on=service.hash_on)
    for rule in rules or (default,):
        host.routes.append(_route(rule, service.calling))
    return host


def _route(rule: RuleView, calling: bytes) -> Any:
    action = route_components_pb2.RouteAction(
        timeout=_none(),
        hash_policy=balancing.hash_policies(rule.hash_on),
    )
    if len(rule.backends) == 1:
        action.cluster = rule.backends[0][0]
    else:
        for name, weight in rule.backends:
            action.weighted_clusters.clusters.add(name=name, weight=_uint(weight))
    route = route_components_pb2.Route(name=rule.name, match=_match(rule.match), route=action)
    resilience.call(route, calling)
    for data in rule.filters:
        apply_filter(mesh_route_pb2.RouteFilter.FromString(data), route)
    return route


def _regex(pattern: str) -> Any:
    # Envoy refuses programs of more than 100 instructions unless it is told otherwise, and a dozen of classes are as many.
    # The field is deprecated in favour of a runtime key, which only whoever starts Envoy can set.
    limit = regex_pb2.RegexMatcher.GoogleRE2(max_program_size=_uint(MAX_REGEX_PROGRAM))
    return regex_pb2.RegexMatcher(regex=pattern, google_re2=limit)


def _match(data: bytes) -> Any:
    match = mesh_route_pb2.GRPCRouteMatch.FromString(data)
    method = match.method
    headers = []
    for header in match.headers:
        if header.type == "RegularExpression":
            string = string_pb2.StringMatcher(safe_regex=_regex(header.value))
        else:
            string = string_pb2.StringMatcher(exact=header.value)
        headers.append(route_components_pb2.HeaderMatcher(name=header.name, string_match=string))
    if method.type == "RegularExpression":
        pattern = "/" + "/".join(f"(?:{part})" if part else "[^/]+" for part in (method.service, method.method))
        return route_components_pb2.RouteMatch(safe_regex=_regex(pattern), headers=headers)
    if method.method and not method.service:
        return route_components_pb2.RouteMatch(safe_regex=_regex(f"/[^/]+/{method.method}"), headers=headers)
    if method.service and method.method:
        return route_components_pb2.RouteMatch(path=f"/{method.service}/{method.method}", headers=headers)
    if method.service:
        return route_components_pb2.RouteMatch(prefix=f"/{method.service}/", headers=headers)
    return route_components_pb2.RouteMatch(prefix="/", headers=headers)


# -- listeners ----------------------------------------------------------------------------------------


def _chain(manager: Any, **what: Any) -> Any:
    return listener_components_pb2.FilterChain(
        filters=[listener_components_pb2.Filter(name=_MANAGER, typed_config=_any(manager))], **what
    )


def _listener(name: str, manager: Any, direction: int, **where: Any) -> bytes:
    return _bytes(
        listener_pb2.Listener(
            name=name,
            traffic_direction=direction,
            filter_chains=[_chain(manager)],
            **where,
        )
    )


def _router() -> Any:
    return http_connection_manager_pb2.HttpFilter(
        name="envoy.filters.http.router", typed_config=_any(router_pb2.Router())
    )


def _fault_filter() -> Any:
    """A place for faults; routes say which."""
    return http_connection_manager_pb2.HttpFilter(
        name=resilience.FAULT_FILTER, typed_config=_any(fault_pb2.HTTPFault())
    )


@lru_cache(REMEMBERED)
def inbound_listener(
    host: str,
    port: int,
    limits: int,
    identity_source: str = "",
    mutual_tls: MutualTls = policy_pb2.AuthenticationPolicySpec.Permissive,
    issuers: tuple[TokensView, ...] = (),
    engine: str = "",
) -> bytes:
    """Calls from the mesh to the application, with a place for each of its rate limits.

    The limits themselves come with the routes: Envoy reads routes per call, but keeps connections that it has on the listener that
    accepted them, and with it on the policy of that day. With an identity, callers show theirs: all of them, or (`Permissive`) those
    that have one, on the same port.
    """
    places = max(limits, LIMIT_PLACES)
    empty = local_rate_limit_pb2.LocalRateLimit(stat_prefix="none")
    manager = http_connection_manager_pb2.HttpConnectionManager(
        stat_prefix=INBOUND,
        rds=http_connection_manager_pb2.Rds(route_config_name=INBOUND, config_source=_ads()),
        http_filters=[
            *tokens.filters(issuers, engine),
            *(
                http_connection_manager_pb2.HttpFilter(name=name, typed_config=_any(rbac_pb2.RBAC()))
                for name in authorization.FILTERS
            ),
            *(
                http_connection_manager_pb2.HttpFilter(name=_limit_filter(number), typed_config=_any(empty))
                for number in range(places)
            ),
            _router(),
        ],
    )
    if not identity_source:
        return _listener(INBOUND, manager, base_pb2.INBOUND, address=_address(host, port))
    chains = [
        _chain(
            manager,
            name=security.MUTUAL_TLS,
            filter_chain_match=listener_components_pb2.FilterChainMatch(transport_protocol="tls"),
            transport_socket=security.downstream(identity_source),
        )
    ]
    if mutual_tls != policy_pb2.AuthenticationPolicySpec.Strict:
        plain = listener_components_pb2.FilterChainMatch(transport_protocol="raw_buffer")
        chains.append(_chain(manager, name=security.PLAIN_TEXT, filter_chain_match=plain))
    return _bytes(
        listener_pb2.Listener(
            name=INBOUND,
            traffic_direction=base_pb2.INBOUND,
            address=_address(host, port),
            listener_filters=[security.tls_inspector()],
            filter_chains=chains,
        )
    )


def _limit_filter(number: int) -> str:
    return f"rate_limit.{number}"


@lru_cache(REMEMBERED)
def inbound_routes(
    limits: tuple[LimitView, ...],
    engine: str,
    access: tuple[AccessView, ...] = (),
    trust_domain: str = "",
    issuers: tuple[TokensView, ...] = (),
) -> bytes:
    """Everything to the application, under what is asked of tokens, access rules and rate limits."""
    to_application = route_components_pb2.Route(
        name=INBOUND,
        match=route_components_pb2.RouteMatch(prefix="/"),
        route=route_components_pb2.RouteAction(cluster=INBOUND, timeout=_none()),
    )
    host = route_components_pb2.VirtualHost(name="*", domains=["*"], routes=[to_application])
    for asked in tokens.of_routes(issuers, engine):
        host.typed_per_filter_config[tokens.FILTER].CopyFrom(_any(asked))
    for name, rules in authorization.filter_configs(access, trust_domain):
        host.typed_per_filter_config[name].CopyFrom(_any(rules))
    for number, limit in enumerate(limits):
        config = filter_config(limit, engine)
        if config is not None:
            host.typed_per_filter_config[_limit_filter(number)].CopyFrom(_any(config))
    return _bytes(route_pb2.RouteConfiguration(name=INBOUND, virtual_hosts=[host]))


@lru_cache(REMEMBERED)
def outbound_listener(host: str, port: int) -> bytes:
    """CONNECT from the application's gRPC library (`grpc_proxy`)."""
    manager = http_connection_manager_pb2.HttpConnectionManager(
        stat_prefix="outbound_connect",
        upgrade_configs=[http_connection_manager_pb2.HttpConnectionManager.UpgradeConfig(upgrade_type="CONNECT")],
        route_config=route_pb2.RouteConfiguration(
            name="outbound_connect",
            virtual_hosts=[
                route_components_pb2.VirtualHost(
                    name="*",
                    domains=["*"],
                    routes=[
                        route_components_pb2.Route(
                            match=route_components_pb2.RouteMatch(
                                connect_matcher=route_components_pb2.RouteMatch.ConnectMatcher()
                            ),
                            route=route_components_pb2.RouteAction(
                                cluster=TUNNEL,
                                timeout=_none(),
                                upgrade_configs=[
                                    route_components_pb2.RouteAction.UpgradeConfig(
                                        upgrade_type="CONNECT",
                                        connect_config=route_components_pb2.RouteAction.UpgradeConfig.ConnectConfig(),
                                    )
                                ],
                            ),
                        )
                    ],
                )
            ],
        ),
        http_filters=[_router()],
    )
    return _listener(OUTBOUND, manager, base_pb2.OUTBOUND, address=_address(host, port))


@lru_cache(1)
def mesh_listener() -> bytes:
    """HTTP/2 inside the tunnel, to the names of the mesh."""
    manager = http_connection_manager_pb2.HttpConnectionManager(
        stat_prefix=OUTBOUND,
        codec_type=http_connection_manager_pb2.HttpConnectionManager.HTTP2,
        rds=http_connection_manager_pb2.Rds(route_config_name=OUTBOUND, config_source=_ads()),
        http_filters=[_fault_filter(), _router()],
    )
    return _listener(
        OUTBOUND_MESH, manager, base_pb2.OUTBOUND, internal_listener=listener_pb2.Listener.InternalListenerConfig()
    )
