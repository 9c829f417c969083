"""What translation needs of the mesh, service by service: values that can be compared and remembered.

A service whose view did not change is not translated again, and its bytes are shared by all nodes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from control_plane.registry.state import State, selects
from control_plane.resources import precedence
from control_plane.resources.check import weight
from control_plane.resources.kinds import DEFAULT_NAMESPACE
from control_plane.translate.node import Node
from proto.mesh.v1 import api_pb2, policy_pb2, route_pb2, service_pb2


@dataclass(frozen=True, slots=True)
class EndpointView:
    """An instance as callers see it."""

    id: str
    address: str
    port: int
    version: str
    weight: int
    health: service_pb2.Health.ValueType
    locality: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class RuleView:
    """One match of one rule of a route, with where it leads."""

    name: str
    """`NAMESPACE/ROUTE/rule-N`."""
    match: bytes
    """The serialised GRPCRouteMatch; empty matches every call."""
    backends: tuple[tuple[str, int], ...]
    """(cluster name, weight above 0), each cluster once."""
    port: int = 0
    """The port of the service that the rule is for; 0: all."""


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A service and everything that concerns its callers."""

    namespace: str
    name: str
    ports: tuple[int, ...]
    algorithm: policy_pb2.LoadBalancingPolicySpec.Algorithm.ValueType
    rules: tuple[RuleView, ...]
    """In order of precedence."""
    endpoints: tuple[EndpointView, ...]

    @property
    def host(self) -> str:
        """`NAME.NAMESPACE`."""
        return f"{self.name}.{self.namespace}"


@dataclass(frozen=True, slots=True)
class LimitView:
    """A rate limit as the callee's sidecar enforces it."""

    policy: str
    """`NAMESPACE/NAME`."""
    requests: int
    burst: int
    interval_ns: int
    is_enforced: bool


@dataclass(frozen=True, slots=True)
class MeshView:
    """The mesh at one revision, as far as it does not depend on who looks."""

    revision: int
    services: tuple[ServiceView, ...]
    limits: tuple[tuple[str, Mapping[str, str], LimitView], ...] = ()
    """(namespace, selector, limit) of every service that a rate limit counts for; in order of the service."""
    by_node: Mapping[str, tuple[service_pb2.Instance, ...]] = field(default_factory=dict)
    """The instances beside each node."""


def cluster_name(namespace: str, name: str) -> str:
    """The xDS name of a service's cluster."""
    return f"outbound|{name}.{namespace}"


def mesh(state: State) -> MeshView:
    """The view of a state. Backends that nobody declared or registered are there too, with no endpoints."""
    names = dict.fromkeys(state.service_names())
    routes = state.of_kind("GRPCRoute")
    for route in routes:
        for rule in route.grpc_route.rules:
            for backend in rule.backend_refs:
                names.setdefault((backend.namespace or _namespace(route), backend.name))
        for parent in route.grpc_route.parent_refs:
            if is_parent_allowed(route, parent):
                names.setdefault((_namespace(route), parent.name))
    balancing = targets(state, "LoadBalancingPolicy")
    rules = _rules(routes)
    by_service, by_node = _indexed(state)
    services = []
    for namespace, name in sorted(names):
        declared = state.service(namespace, name)
        policy = balancing.get((namespace, name))
        services.append(
            ServiceView(
                namespace=namespace,
                name=name,
                ports=tuple(port.port for port in declared.service.ports) if declared is not None else (),
                algorithm=policy.load_balancing_policy.algorithm
                if policy is not None
                else policy_pb2.LoadBalancingPolicySpec.RoundRobin,
                rules=tuple(rules.get((namespace, name), ())),
                endpoints=tuple(
                    _endpoint(instance)
                    for instance in (
                        state.instances_of(namespace, name)
                        if declared is not None and declared.service.selector
                        else by_service.get((namespace, name), ())
                    )
                ),
            )
        )
    return MeshView(state.revision, tuple(services), _limits(state), by_node)


def _indexed(
    state: State,
) -> tuple[dict[tuple[str, str], list[service_pb2.Instance]], dict[str, tuple[service_pb2.Instance, ...]]]:
    """The instances by the service that they registered for, in order of id, and by the node beside them."""
    by_service: dict[tuple[str, str], list[service_pb2.Instance]] = {}
    by_node: dict[str, tuple[service_pb2.Instance, ...]] = {}
    for instance in sorted(state.instances.values(), key=lambda instance: instance.id):
        by_service.setdefault((instance.namespace, instance.service), []).append(instance)
        if instance.node_id:
            by_node[instance.node_id] = (*by_node.get(instance.node_id, ()), instance)
    return by_service, by_node


def _namespace(resource: api_pb2.Resource) -> str:
    return resource.metadata.namespace or DEFAULT_NAMESPACE


def is_parent_allowed(route: api_pb2.Resource, parent: route_pb2.ParentReference) -> bool:
    """A route steers the services of its own namespace only."""
    return parent.namespace in ("", _namespace(route))


def _endpoint(instance: service_pb2.Instance) -> EndpointView:
    place = instance.locality
    return EndpointView(
        instance.id,
        instance.address,
        instance.port,
        instance.version,
        instance.weight or 1,
        instance.health,
        (place.region, place.zone, place.sub_zone),
    )


def is_off(policy: api_pb2.Resource) -> bool:
    """True for a policy that is to be as if it were not there."""
    return getattr(getattr(policy, str(policy.WhichOneof("spec"))), "mode", None) == policy_pb2.Off


def targets(state: State, kind: str) -> dict[tuple[str, str], api_pb2.Resource]:
    """The policy of a kind that counts for each service."""
    found: dict[tuple[str, str], api_pb2.Resource] = {}
    for resource in precedence.order(state.of_kind(kind)):
        if is_off(resource):
            continue
        spec = getattr(resource, str(resource.WhichOneof("spec")))
        for target in spec.target_refs:
            found.setdefault((_namespace(resource), target.name), resource)
    return found


def _rules(routes: list[api_pb2.Resource]) -> dict[tuple[str, str], list[RuleView]]:
    """Per service the matches of all its routes, in the Gateway API's order of precedence (GRPCRouteRule)."""
    found: dict[tuple[str, str], list[tuple[tuple[int, int, int, int], RuleView]]] = {}
    for age, route in enumerate(precedence.order(routes)):
        parents = [parent for parent in route.grpc_route.parent_refs if is_parent_allowed(route, parent)]
        views = list(_views(route, age))
        for parent in parents:
            bound = [(rank, replace(rule, port=parent.port)) for rank, rule in views]
            found.setdefault((_namespace(route), parent.name), []).extend(bound)
    return {key: [view for _, view in sorted(views, key=lambda item: item[0])] for key, views in found.items()}


def _views(route: api_pb2.Resource, age: int) -> Iterator[tuple[tuple[int, int, int, int], RuleView]]:
    namespace = _namespace(route)
    for number, rule in enumerate(route.grpc_route.rules):
        shares: dict[str, int] = {}
        for backend in rule.backend_refs:
            if weight(backend):
                cluster = cluster_name(backend.namespace or namespace, backend.name)
                shares[cluster] = shares.get(cluster, 0) + weight(backend)
        for match in rule.matches or [route_pb2.GRPCRouteMatch()]:
            rank = (-len(match.method.service), -len(match.method.method), -len(match.headers), age)
            name = f"{namespace}/{route.metadata.name}/rule-{number}"
            yield rank, RuleView(name, match.SerializeToString(deterministic=True), tuple(shares.items()))


def _limits(state: State) -> tuple[tuple[str, Mapping[str, str], LimitView], ...]:
    found = []
    for (namespace, target), policy in sorted(targets(state, "RateLimitPolicy").items()):
        spec = policy.rate_limit_policy
        limit = LimitView(
            policy=f"{namespace}/{policy.metadata.name}",
            requests=spec.requests,
            burst=spec.burst or spec.requests,
            interval_ns=spec.interval.ToNanoseconds() if spec.HasField("interval") else 1_000_000_000,
            is_enforced=spec.mode == policy_pb2.Enforce,
        )
        found.append((namespace, state.selector(namespace, target), limit))
    return tuple(found)


def limits(mesh: MeshView, node: Node) -> tuple[LimitView, ...]:
    """The rate limits for calls to the instance beside a node, by any of its names; each policy once."""
    # Before it has registered, what the node says of itself; its labels come with the registration.
    said = service_pb2.Instance(service=node.service, namespace=node.namespace, version=node.version)
    beside = [said, *mesh.by_node.get(node.id, ())]
    found = [
        limit
        for namespace, selector, limit in mesh.limits
        if namespace == node.namespace
        and any(instance.namespace == namespace and selects(selector, instance) for instance in beside)
    ]
    return tuple(dict.fromkeys(found))
