"""What gRPC's own xDS client is told: the same clusters, routes and endpoints, in the form and to the extent that it takes.

gRPC asks by name: a listener that is named as the target of the channel (`xds:///warehouse.shop`), the routes that it names, and so on
(gRFC A27). It refuses what it cannot do where it knows the field, and ignores in silence what it does not know; so a message is built
here from the fields that it is known to honour, and `capabilities` says what is left out. Pure; equal input shares its bytes.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import address_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import api_listener_pb2, listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2

from control_plane.translate import resources
from control_plane.translate.capabilities import enforces
from control_plane.translate.clients import Profile
from control_plane.translate.resilience import FAULT_FILTER
from control_plane.translate.resources import REMEMBERED
from control_plane.translate.view import ServiceView

PREFIX: Final = "grpc|"
"""Of route tables: they are other ones than those of sidecars."""
SERVER_TEMPLATE: Final = "grpc/server?xds.resource.listening_address=%s"
"""`server_listener_resource_name_template` of the bootstrap (gRFC A36)."""
_RETRY_ON: Final = frozenset(("cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"))
"""gRFC A44."""
_DETECTIONS: Final = (
    "interval",
    "base_ejection_time",
    "max_ejection_time",
    "max_ejection_percent",
    "enforcing_success_rate",
    "success_rate_minimum_hosts",
    "success_rate_request_volume",
    "success_rate_stdev_factor",
    "failure_percentage_threshold",
    "enforcing_failure_percentage",
    "failure_percentage_minimum_hosts",
    "failure_percentage_request_volume",
)
"""Fields of cluster.v3.OutlierDetection (gRFC A50)."""
_ALGORITHMS: Final = {
    cluster_pb2.Cluster.LEAST_REQUEST: "LeastRequest",
    cluster_pb2.Cluster.RING_HASH: "RingHash",
}


def listeners(service: ServiceView, has_short_name: bool) -> Iterator[tuple[str, bytes]]:
    """By name, for every way to call a service: with and without its ports and, inside of its namespace, without that."""
    own = _own_ports(service)
    for name in [service.host, service.name] if has_short_name else [service.host]:
        for port in (0, *sorted({*service.ports, *own})):
            target = f"{name}:{port}" if port else name
            yield target, _client_listener(target, table_name(service.host, port if port in own else 0))


def table_name(host: str, port: int) -> str:
    """The name of a service's route table; one for all ports that have no rules of their own."""
    return f"{PREFIX}{host}:{port}" if port else f"{PREFIX}{host}"


def _own_ports(service: ServiceView) -> set[int]:
    own = {rule.port for rule in service.rules if rule.port}
    return own & set(service.ports) if service.ports else own


def tables(service: ServiceView, profile: Profile) -> Iterator[tuple[str, bytes]]:
    """By name, the route tables of a service: what the sidecars' table says of it, one virtual host each."""
    message = route_pb2.RouteConfiguration.FromString(resources.virtual_hosts(resources.routing_part(service), False))
    for host in message.virtual_hosts:
        name = f"{PREFIX}{host.name}"
        yield name, _table(name, host.SerializeToString(deterministic=True), profile)


@lru_cache(REMEMBERED)
def _table(name: str, virtual_host: bytes, profile: Profile) -> bytes:
    given = route_components_pb2.VirtualHost.FromString(virtual_host)
    host = route_components_pb2.VirtualHost(name=given.name, domains=["*"])
    host.routes.extend(_route(route) for route in given.routes)
    return _bytes(route_pb2.RouteConfiguration(name=name, virtual_hosts=[host]))


def _route(given: Any) -> Any:
    route = route_components_pb2.Route(name=given.name)
    match = given.match
    for name in ("prefix", "path"):
        if match.HasField(name):
            setattr(route.match, name, getattr(match, name))
    if match.HasField("safe_regex"):
        route.match.safe_regex.regex = match.safe_regex.regex
    route.match.headers.extend(map(_header, match.headers))
    if match.HasField("runtime_fraction"):
        route.match.runtime_fraction.CopyFrom(match.runtime_fraction)
    fault = (
        _fault(given.typed_per_filter_config[FAULT_FILTER]) if FAULT_FILTER in given.typed_per_filter_config else None
    )
    if fault is not None:
        route.typed_per_filter_config[FAULT_FILTER].CopyFrom(fault)
    if given.HasField("route"):
        route.route.CopyFrom(_action(given.route))
    else:
        route.non_forwarding_action.SetInParent()
    return route


def _header(given: Any) -> Any:
    """In the form that every version takes; string matchers are of gRFC A63."""
    header = route_components_pb2.HeaderMatcher(name=given.name, invert_match=given.invert_match)
    kind = given.string_match.WhichOneof("match_pattern") if given.HasField("string_match") else ""
    if kind == "exact" and not given.string_match.ignore_case:
        header.exact_match = given.string_match.exact
    elif kind == "safe_regex":
        header.safe_regex_match.regex = given.string_match.safe_regex.regex
    else:
        header.CopyFrom(given)
    return header


def _fault(given: Any) -> Any:
    """Delays and aborts, and how many at once (gRFC A33); None for those of some calls only, which gRPC would inject into all."""
    full, only = fault_pb2.HTTPFault(), fault_pb2.HTTPFault()
    given.Unpack(full)
    if full.headers:
        return None
    for name in ("delay", "abort", "max_active_faults"):
        if full.HasField(name):
            getattr(only, name).CopyFrom(getattr(full, name))
    return resources._any(only)


def _action(given: Any) -> Any:
    action = route_components_pb2.RouteAction()
    if given.HasField("weighted_clusters"):
        for share in given.weighted_clusters.clusters:
            action.weighted_clusters.clusters.add(name=share.name, weight=share.weight)
    else:
        action.cluster = given.cluster
    for policy in given.hash_policy:
        if policy.HasField("header"):
            action.hash_policy.add(header=policy.header, terminal=policy.terminal)
    if given.max_stream_duration.HasField("max_stream_duration"):
        action.max_stream_duration.max_stream_duration.CopyFrom(given.max_stream_duration.max_stream_duration)
    elif given.timeout.ToNanoseconds():
        # gRPC does not read `timeout`; this is the same for a call that is not a stream, and the limit of one that is.
        action.max_stream_duration.max_stream_duration.CopyFrom(given.timeout)
    if given.max_stream_duration.HasField("grpc_timeout_header_max"):
        action.max_stream_duration.grpc_timeout_header_max.CopyFrom(given.max_stream_duration.grpc_timeout_header_max)
    retry_on = [word for word in given.retry_policy.retry_on.split(",") if word.strip() in _RETRY_ON]
    has_retries = not given.retry_policy.HasField("num_retries") or given.retry_policy.num_retries.value > 0
    # gRPC cannot tell calls that may be repeated by a header, and repeats all or none: so none.
    if retry_on and has_retries and not given.retry_policy.retriable_request_headers:
        action.retry_policy.retry_on = ",".join(retry_on)
        for name in ("num_retries", "retry_back_off"):
            if given.retry_policy.HasField(name):
                getattr(action.retry_policy, name).CopyFrom(getattr(given.retry_policy, name))
    return action


@lru_cache(REMEMBERED)
def cluster(data: bytes, profile: Profile) -> bytes:
    """A sidecar's cluster as a client of a profile takes it."""
    given = cluster_pb2.Cluster.FromString(data)
    message = cluster_pb2.Cluster(
        name=given.name, type=cluster_pb2.Cluster.EDS, eds_cluster_config=given.eds_cluster_config
    )
    algorithm = _ALGORITHMS.get(given.lb_policy)
    if algorithm is not None and enforces("LoadBalancingPolicy", "algorithm", algorithm, profile):
        message.lb_policy = given.lb_policy
    if message.lb_policy == cluster_pb2.Cluster.RING_HASH:
        ring = given.ring_hash_lb_config
        for name in ("minimum_ring_size", "maximum_ring_size"):
            if ring.HasField(name):
                getattr(message.ring_hash_lb_config, name).CopyFrom(getattr(ring, name))
    elif message.lb_policy == cluster_pb2.Cluster.LEAST_REQUEST and given.HasField("least_request_lb_config"):
        message.least_request_lb_config.choice_count.CopyFrom(given.least_request_lb_config.choice_count)
    for threshold in given.circuit_breakers.thresholds:
        if threshold.HasField("max_requests"):  # of the others gRPC knows none; without this one it takes 1024
            only = circuit_breaker_pb2.CircuitBreakers.Thresholds(
                priority=threshold.priority, max_requests=threshold.max_requests
            )
            message.circuit_breakers.thresholds.append(only)
    if given.HasField("outlier_detection"):
        for name in _DETECTIONS:
            if given.outlier_detection.HasField(name):
                getattr(message.outlier_detection, name).CopyFrom(getattr(given.outlier_detection, name))
    return _bytes(message)


@lru_cache(REMEMBERED)
def endpoints(data: bytes) -> bytes:
    """Endpoints as every gRPC takes them: grpc-go refuses two with one address, so of those the one that does best stays."""
    message = endpoint_pb2.ClusterLoadAssignment.FromString(data)
    best: dict[tuple[str, int], Any] = {}
    for group in message.endpoints:
        for endpoint in group.lb_endpoints:
            where = endpoint.endpoint.address.socket_address
            known = best.setdefault((where.address, where.port_value), endpoint)
            if _rank(endpoint) < _rank(known):
                best[where.address, where.port_value] = endpoint
    count = sum(len(group.lb_endpoints) for group in message.endpoints)
    if len(best) == count:
        return data
    kept = {id(endpoint) for endpoint in best.values()}
    for group in message.endpoints:
        stay = [endpoint for endpoint in group.lb_endpoints if id(endpoint) in kept]
        fresh = endpoint_pb2.ClusterLoadAssignment().endpoints.add()
        fresh.lb_endpoints.extend(stay)
        group.load_balancing_weight.value = max(1, sum(endpoint.load_balancing_weight.value for endpoint in stay))
        del group.lb_endpoints[:]
        group.lb_endpoints.extend(fresh.lb_endpoints)
    for number in reversed(range(len(message.endpoints))):
        if not message.endpoints[number].lb_endpoints:
            del message.endpoints[number]
    return _bytes(message)


def _rank(endpoint: Any) -> int:
    usable = (health_check_pb2.HEALTHY, health_check_pb2.UNKNOWN, health_check_pb2.DRAINING)
    return usable.index(endpoint.health_status) if endpoint.health_status in usable else len(usable)


# -- listeners ----------------------------------------------------------------------------------------


def _no_faults() -> Any:
    """The place for the faults of a route."""
    empty = resources._any(fault_pb2.HTTPFault())
    return http_connection_manager_pb2.HttpFilter(name=FAULT_FILTER, typed_config=empty)


@lru_cache(REMEMBERED)
def _client_listener(name: str, table: str) -> bytes:
    manager = http_connection_manager_pb2.HttpConnectionManager(
        rds=http_connection_manager_pb2.Rds(route_config_name=table, config_source=resources._ads()),
        http_filters=[_no_faults(), resources._router()],
    )
    return _bytes(
        listener_pb2.Listener(
            name=name, api_listener=api_listener_pb2.ApiListener(api_listener=resources._any(manager))
        )
    )


def server_listeners(host: str, port: int) -> Mapping[str, bytes]:
    """For an xDS-enabled server on a port, however it says that it listens there (gRFC A36)."""
    hosts = dict.fromkeys((host, "127.0.0.1", "0.0.0.0", "::1", "::"))
    found = {}
    for each in hosts:
        shown = f"[{each}]:{port}" if ":" in each else f"{each}:{port}"
        name = SERVER_TEMPLATE % shown
        found[name] = _server_listener(name, each, port)
    return found


@lru_cache(REMEMBERED)
def _server_listener(name: str, host: str, port: int) -> bytes:
    here = route_components_pb2.Route(
        match=route_components_pb2.RouteMatch(prefix="/"),
        non_forwarding_action=route_components_pb2.NonForwardingAction(),
    )
    table = route_pb2.RouteConfiguration(
        name=resources.INBOUND,
        virtual_hosts=[route_components_pb2.VirtualHost(name="*", domains=["*"], routes=[here])],
    )
    manager = http_connection_manager_pb2.HttpConnectionManager(
        stat_prefix=resources.INBOUND, route_config=table, http_filters=[resources._router()]
    )
    where = address_pb2.Address(socket_address=address_pb2.SocketAddress(address=host, port_value=port))
    chain = listener_components_pb2.FilterChain(
        filters=[listener_components_pb2.Filter(name=resources._MANAGER, typed_config=resources._any(manager))]
    )
    return _bytes(listener_pb2.Listener(name=name, address=where, filter_chains=[chain]))


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    return data
