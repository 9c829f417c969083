"""A mesh as a text, and what is made of it as a text.

node cart.shop version=v1 inbound=127.0.0.1:8080
instance warehouse.shop w1 127.0.0.1:50051 version=v1 weight=2 health=DRAINING label.team=books mtls=yes
trust shop.test
show routes endpoints
---
(resources, as YAML)
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2

from control_plane.registry import keys, state
from control_plane.registry.state import State
from control_plane.resources import kinds
from control_plane.resources.load import load
from control_plane.store.contract import KeyValue
from control_plane.translate import node as node_reader
from control_plane.translate import view
from control_plane.translate.conditions import Conditions
from control_plane.translate.node import Node
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ROUTES, Snapshot, build
from proto.mesh.v1 import api_pb2, filters_pb2, identity_pb2, policy_pb2, service_pb2

REVISION: Final = 7


@dataclass(frozen=True, slots=True)
class Mesh:
    """A state, and who looks at it."""

    state: State
    node: Node
    shown: tuple[str, ...]

    def snapshot(self) -> Snapshot:
        return build(view.mesh(self.state), self.node)


def state_of(resources: list[api_pb2.Resource], instances: list[service_pb2.Instance], trust_domain: str = "") -> State:
    """As the store would hold them."""
    trust = identity_pb2.Trust(trust_domain=trust_domain, generation=1).SerializeToString()
    return state.load(
        [KeyValue(state.key_of(resource), state.stored(resource), 1, 1) for resource in resources],
        [
            KeyValue(keys.instance(each.namespace, each.service, each.id), each.SerializeToString(), 1, 1)
            for each in instances
        ],
        REVISION,
        [KeyValue(keys.TRUST, trust, 1, 1)] if trust_domain else [],
    )


def node_of(service: str, namespace: str, engine: str = "envoy", **metadata: str | int) -> Node:
    """A node as it would say of itself."""
    message = base_pb2.Node(id=f"{service}.{namespace}~1", user_agent_name=engine)
    message.metadata.update({"service": service, "namespace": namespace, **metadata})
    return node_reader.read(message)


def read(text: str) -> Mesh:
    """From the text above."""
    head, _, documents = ("\n" + text).partition("\n---\n")
    instances: list[service_pb2.Instance] = []
    node = node_of("cart", "shop", outbound_port=15001)
    shown: tuple[str, ...] = ("routes",)
    trust_domain = ""
    for line in head.strip().splitlines():
        verb, *words = line.split()
        options = dict(word.split("=", 1) for word in words if "=" in word)
        if verb == "show":
            shown = tuple(words)
        elif verb == "trust":
            trust_domain = words[0]
        elif verb == "node":
            name, _, namespace = words[0].partition(".")
            metadata: dict[str, str | int] = {"version": options.get("version", "")}
            if "identity" in options:
                metadata["identity_source"] = options["identity"]
            for where in ("inbound", "outbound"):
                if where in options:
                    host, _, port = options[where].rpartition(":")
                    metadata |= {f"{where}_address": host, f"{where}_port": int(port), "app_port": 9000}
            node = node_of(name, namespace, options.get("engine", "envoy"), **metadata)
        else:
            instances.append(_instance(words, options))
    resources = load(documents, "mesh.yaml") if documents else []
    return Mesh(state_of(resources, instances, trust_domain), node, shown)


def _instance(words: list[str], options: dict[str, str]) -> service_pb2.Instance:
    service, _, namespace = words[0].partition(".")
    host, _, port = words[2].rpartition(":")
    made = service_pb2.Instance(
        id=words[1],
        service=service,
        namespace=namespace,
        address=host.strip("[]"),
        port=int(port),
        health=service_pb2.HEALTHY,
    )
    for name, value in options.items():
        if name.startswith("label."):
            made.labels[name.removeprefix("label.")] = value
        elif name == "health":
            made.health = service_pb2.Health.Value(value)
        elif name in ("region", "zone"):
            setattr(made.locality, name, value)
        elif name == "weight":
            made.weight = int(value)
        elif name == "mtls":
            made.mutual_tls = value == "yes"
        else:
            setattr(made, name, value)
    return made


def written(mesh: Mesh) -> str:
    """What is to be shown of what is made of a mesh."""
    snapshot = mesh.snapshot()
    assert snapshot.dangling() == []
    lines: list[str] = []
    for part in mesh.shown:
        lines += _WRITERS[part](mesh, snapshot)
    return "\n".join(lines)


def _clusters(mesh: Mesh, snapshot: Snapshot) -> Iterator[str]:
    for name, data in sorted(snapshot.types[CLUSTER].items()):
        cluster = cluster_pb2.Cluster.FromString(data)
        kind = cluster_pb2.Cluster.DiscoveryType.Name(cluster.type)
        yield f"cluster {name}: {kind} {cluster_pb2.Cluster.LbPolicy.Name(cluster.lb_policy)}"


def _endpoints(mesh: Mesh, snapshot: Snapshot) -> Iterator[str]:
    for name, data in sorted(snapshot.types[ENDPOINTS].items()):
        groups = endpoint_pb2.ClusterLoadAssignment.FromString(data).endpoints
        yield f"endpoints {name}:" + ("" if groups else " none")
        for group in groups:
            place = "/".join(filter(None, (group.locality.region, group.locality.zone)))
            yield f"  {place or 'anywhere'} weight {group.load_balancing_weight.value}"
            for each in group.lb_endpoints:
                address = each.endpoint.address.socket_address
                health = health_check_pb2.HealthStatus.Name(each.health_status)
                yield f"    {address.address}:{address.port_value} weight {each.load_balancing_weight.value} {health}"


def _routes(mesh: Mesh, snapshot: Snapshot) -> Iterator[str]:
    for data in snapshot.types[ROUTES].values():
        for host in route_pb2.RouteConfiguration.FromString(data).virtual_hosts:
            yield f"{host.name}: {' '.join(host.domains)}"
            for route in host.routes:
                yield f"  {_match(route.match)} -> {_action(route.route)} ({route.name})"
                yield from (f"    {line}" for line in _filters(route))


def _match(match: Any) -> str:
    how = match.WhichOneof("path_specifier")
    path = match.safe_regex.regex if how == "safe_regex" else getattr(match, how)
    words = [f"{'regex' if how == 'safe_regex' else how} {path}"]
    for header in match.headers:
        value = header.string_match
        words.append(f"{header.name}={value.exact}" if value.exact else f"{header.name}~{value.safe_regex.regex}")
    return " ".join(words)


def _filters(route: Any) -> Iterator[str]:
    for kind in ("request", "response"):
        for change in getattr(route, f"{kind}_headers_to_add"):
            how = base_pb2.HeaderValueOption.HeaderAppendAction.Name(change.append_action).partition("_")[0].lower()
            yield f"{kind} {how} {change.header.key}: {change.header.value}"
        for name in getattr(route, f"{kind}_headers_to_remove"):
            yield f"{kind} remove {name}"
    for policy in route.route.request_mirror_policies:
        share = policy.runtime_fraction.default_value
        whole = share.DESCRIPTOR.enum_types_by_name["DenominatorType"].values_by_number[share.denominator].name
        yield f"copies {share.numerator} of {whole} to {policy.cluster.replace('outbound|', '')}"


def _action(action: Any) -> str:
    shares = [f"{share.name} {share.weight.value}" for share in action.weighted_clusters.clusters]
    return ", ".join(shares).replace("outbound|", "") or action.cluster.replace("outbound|", "")


def _listeners(mesh: Mesh, snapshot: Snapshot) -> Iterator[str]:
    for name, data in sorted(snapshot.types[LISTENER].items()):
        listener = listener_pb2.Listener.FromString(data)
        address = listener.address.socket_address
        where = f"{address.address}:{address.port_value}" if address.address else "internal"
        yield f"listener {name}: {where}"
        manager = http_connection_manager_pb2.HttpConnectionManager()
        listener.filter_chains[0].filters[0].typed_config.Unpack(manager)
        places = [item for item in manager.http_filters if "local_ratelimit" in item.typed_config.type_url]
        if places:
            yield f"  places for rate limits: {len(places)}"
    for host in _inbound_hosts(snapshot):
        for name, packed in sorted(host.typed_per_filter_config.items()):
            if name.startswith("access."):
                yield from _access(name, packed)
            else:
                yield _limit(packed)


def _access(name: str, packed: Any) -> Iterator[str]:
    config = rbac_pb2.RBACPerRoute()
    packed.Unpack(config)
    for kind in ("rules", "shadow_rules"):
        if config.rbac.HasField(kind):
            rules = getattr(config.rbac, kind)
            yield f"{name} {kind}: {len(rules.policies)}"
            for title, policy in sorted(rules.policies.items()):
                yield f"  {title}: {' or '.join(map(_who, policy.principals))} may {' or '.join(map(_what, policy.permissions))}"


def _who(principal: Any) -> str:
    kind = principal.WhichOneof("identifier")
    if kind in ("and_ids", "or_ids"):
        ids = getattr(principal, kind).ids
        return f"({f' {kind[:-4]} '.join(map(_who, ids))})"
    if kind == "authenticated":
        name = principal.authenticated.principal_name
        how = name.WhichOneof("match_pattern")
        return f"{how} {getattr(name, how)}"
    if kind == "direct_remote_ip":
        return f"{principal.direct_remote_ip.address_prefix}/{principal.direct_remote_ip.prefix_len.value}"
    return str(kind)


def _what(permission: Any) -> str:
    kind = permission.WhichOneof("rule")
    if kind in ("and_rules", "or_rules"):
        rules = getattr(permission, kind).rules
        return f"({f' {kind[:-6]} '.join(map(_what, rules))})"
    if kind == "url_path":
        how = permission.url_path.path.WhichOneof("match_pattern")
        return f"{how} {getattr(permission.url_path.path, how)}"
    if kind == "header":
        return f"{permission.header.name}={permission.header.string_match.exact}"
    return str(kind)


def _limit(packed: Any) -> str:
    own, limit = filters_pb2.RateLimitFilter(), local_rate_limit_pb2.LocalRateLimit()
    if packed.Unpack(own):
        algorithm = policy_pb2.RateLimitPolicySpec.Algorithm.Name(own.algorithm)
        every = f"{own.requests} per {own.interval.ToNanoseconds() / 1e9:g}s, burst {own.burst}"
        keys = "".join(f", each {key.header or key.Source.Name(key.source)}" for key in own.keys)
        wait = f", wait {own.max_wait.ToNanoseconds() / 1e9:g}s" if own.max_wait.ToNanoseconds() else ""
        return f"own limit {own.policy}: {algorithm} {every}{wait}{keys}, {'enforced' if own.is_enforced else 'shadow'}"
    packed.Unpack(limit)
    bucket = limit.descriptors[0].token_bucket if limit.descriptors else limit.token_bucket
    keys = "".join(f", each {entry.key}" for item in limit.descriptors for entry in item.entries)
    enforced = limit.filter_enforced.default_value.numerator
    every = f"{bucket.tokens_per_fill.value} per {bucket.fill_interval.ToNanoseconds() / 1e9:g}s"
    return (
        f"limit {limit.stat_prefix}: {every}, burst {bucket.max_tokens}{keys}, {'enforced' if enforced else 'shadow'}"
    )


def _inbound_hosts(snapshot: Snapshot) -> Iterator[Any]:
    if "inbound" in snapshot.types[ROUTES]:
        yield from route_pb2.RouteConfiguration.FromString(snapshot.types[ROUTES]["inbound"]).virtual_hosts


def _conditions(mesh: Mesh, snapshot: Snapshot) -> Iterator[str]:
    conditions = Conditions(mesh.state)
    for resource in mesh.state.resources.values():
        yield kinds.describe(resource)
        for each in conditions.status(resource).conditions:
            yield re.sub(r"[: ]+$", "", f"  {each.type} {each.status} {each.reason}: {each.message}")


def _security(mesh: Mesh, snapshot: Snapshot) -> Iterator[str]:
    """What goes over what: of clusters, of their endpoints, of the inbound listener."""
    for name, data in sorted(snapshot.types[CLUSTER].items()):
        cluster = cluster_pb2.Cluster.FromString(data)
        if cluster.HasField("transport_socket"):
            yield f"cluster {name}: {_socket(cluster.transport_socket)}"
        for match in cluster.transport_socket_matches:
            labels = ",".join(match.match) or "others"
            yield f"cluster {name} {labels}: {_socket(match.transport_socket)}"
    for name, data in sorted(snapshot.types[ENDPOINTS].items()):
        for group in endpoint_pb2.ClusterLoadAssignment.FromString(data).endpoints:
            for each in group.lb_endpoints:
                labels = ",".join(each.metadata.filter_metadata.get("envoy.transport_socket_match", {}))
                yield f"endpoint {each.endpoint.address.socket_address.address} of {name}: {labels or 'no label'}"
    if "inbound" in snapshot.types[LISTENER]:
        listener = listener_pb2.Listener.FromString(snapshot.types[LISTENER]["inbound"])
        for chain in listener.filter_chains:
            yield f"inbound {chain.filter_chain_match.transport_protocol or 'any'}: {_socket(chain.transport_socket)}"


def _socket(socket: Any) -> str:
    context: Any = tls_pb2.UpstreamTlsContext()
    if not socket.typed_config.Unpack(context):
        context = tls_pb2.DownstreamTlsContext()
        if not socket.typed_config.Unpack(context):
            return "plain text"
    common = context.common_tls_context
    combined = common.combined_validation_context
    [shown] = common.tls_certificate_sds_secret_configs
    source = shown.sds_config.api_config_source.grpc_services[0].envoy_grpc.cluster_name
    trusted = common.validation_context_sds_secret_config.name or combined.validation_context_sds_secret_config.name
    names = [each.matcher.exact for each in combined.default_validation_context.match_typed_subject_alt_names]
    version = common_pb2.TlsParameters.TlsProtocol.Name(common.tls_params.tls_minimum_protocol_version)
    return f"{version} {shown.name} from {source}, {trusted}, to {' or '.join(names) or 'anybody of the mesh'}"


_WRITERS: Final = {
    "security": _security,
    "clusters": _clusters,
    "endpoints": _endpoints,
    "routes": _routes,
    "listeners": _listeners,
    "conditions": _conditions,
}
