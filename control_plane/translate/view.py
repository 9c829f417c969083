"""What translation needs of the mesh, service by service: values that can be compared and remembered.

A service whose view did not change is not translated again, and its bytes are shared by all nodes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias, TypeVar

from control_plane.registry.state import State, selects
from control_plane.resources import precedence
from control_plane.resources.check import weight
from control_plane.resources.kinds import DEFAULT_NAMESPACE, MESH_NAMESPACE
from control_plane.translate.node import Node
from proto.mesh.v1 import api_pb2, policy_pb2, resilience_pb2, route_pb2, service_pb2

Key = tuple[str, str]
"""Namespace and name of a service."""
K = TypeVar("K")
RESILIENCE: Final = ("CircuitBreakerPolicy", "RetryPolicy", "TimeoutPolicy", "FaultPolicy")
MAX_KEYS: Final = 10_000
"""Of a rate limit that says nothing else."""


MutualTls: TypeAlias = policy_pb2.AuthenticationPolicySpec.MutualTls.ValueType


@dataclass(frozen=True, slots=True)
class PeerView:
    """How a service and its callers know each other."""

    mutual_tls: MutualTls
    """`Permissive`, `Strict` or `Disable`."""
    identities: tuple[str, ...]
    """SPIFFE IDs that its instances may have."""


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
    mutual_tls: bool = False
    """Its sidecar has an identity."""


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
    hash_on: bytes = b""
    """Of what keys are made, for the first of the backends that says so: a LoadBalancingPolicySpec with `hash_on`."""
    filters: tuple[bytes, ...] = ()
    """Each a serialised RouteFilter; the namespace of a mirror's backend is filled in."""


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A service and everything that concerns its callers."""

    namespace: str
    name: str
    ports: tuple[int, ...]
    balancing: bytes
    """The serialised LoadBalancingPolicySpec, without its targets and without what its keys are made of."""
    rules: tuple[RuleView, ...]
    """In order of precedence."""
    endpoints: tuple[EndpointView, ...]
    hash_on: bytes = b""
    """The part of it that says of what keys are made."""
    peer: PeerView | None = None
    """None in a mesh without identities."""
    breaking: bytes = b""
    """The serialised CircuitBreakerPolicySpec, without its targets."""
    calling: bytes = b""
    """The serialised Calling: what holds for calls to it."""

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
    algorithm: policy_pb2.RateLimitPolicySpec.Algorithm.ValueType = policy_pb2.RateLimitPolicySpec.TokenBucket
    max_wait_ns: int = 0
    keys: tuple[tuple[str, policy_pb2.LimitKey.Source.ValueType], ...] = ()
    """(header, source) of what tells calls apart; one of the two is set."""
    max_keys: int = 0
    is_shared: bool = False
    """It is for all instances together; each enforces its share."""

    def share(self, instances: int) -> "LimitView":
        """What one of so many instances enforces, so that all together take what the limit says."""
        if not self.is_shared or instances <= 1:
            return self
        algorithms = policy_pb2.RateLimitPolicySpec
        if self.algorithm in (algorithms.SlidingWindow, algorithms.SlidingLog, algorithms.Concurrency):
            return replace(self, requests=_share(self.requests, instances), burst=_share(self.burst, instances))
        # As many in a longer time: exact, where a share of the calls would be rounded.
        return replace(self, interval_ns=self.interval_ns * instances, burst=_share(self.burst, instances))


def _share(count: int, instances: int) -> int:
    """Rounded up: each instance takes at least one."""
    return -(-count // instances)


@dataclass(frozen=True, slots=True)
class LimitTarget:
    """A service that a rate limit counts for."""

    service: Key
    selector: Mapping[str, str]
    limit: LimitView


@dataclass(frozen=True, slots=True)
class AccessView:
    """One authorization policy, attached to one place."""

    policy: str
    """`NAMESPACE/NAME`."""
    namespace: str
    """Of the policy; names without a namespace are of this one."""
    place: Key
    """A service; all of its namespace, with an empty name; or the mesh, both empty."""
    selector: tuple[tuple[str, str], ...]
    """What chooses the instances of that service."""
    spec: bytes
    """The serialised AuthorizationPolicySpec without its targets."""


@dataclass(frozen=True, slots=True)
class TokensView:
    """What an authentication policy says of tokens."""

    policy: str
    """`NAMESPACE/NAME`."""
    spec: bytes
    """The serialised AuthenticationPolicySpec with nothing else in it."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What the resources say, service by service; instances come and go without touching it."""

    names: frozenset[Key] = frozenset()
    """Services that are there without instances: declared, or the parent or backend of a route."""
    services: Mapping[Key, service_pb2.ServiceSpec] = field(default_factory=dict)
    balancing: Mapping[Key, api_pb2.Resource] = field(default_factory=dict)
    rules: Mapping[Key, list[RuleView]] = field(default_factory=dict)
    selectors: Mapping[str, Mapping[Key, Mapping[str, str]]] = field(default_factory=dict)
    """By namespace: the services that choose their instances by labels."""
    limits: tuple[LimitTarget, ...] = ()
    """Every service that a rate limit counts for, in order."""
    resilience: Mapping[str, Mapping[Key, api_pb2.Resource]] = field(default_factory=dict)
    """By kind: CircuitBreakerPolicy, RetryPolicy, TimeoutPolicy, FaultPolicy."""
    trust_domain: str = ""
    """Empty in a mesh without identities."""
    mutual_tls: Mapping[Key, MutualTls] = field(default_factory=dict)
    """By service, by namespace with an empty name, and for the mesh with both empty: what policies say."""
    access: tuple[AccessView, ...] = ()
    """Every authorization policy with every place that it is attached to, in order of names."""
    tokens: Mapping[Key, TokensView] = field(default_factory=dict)
    """By what they are attached to, as in `mutual_tls`: what policies say of tokens."""

    @property
    def has_shares(self) -> bool:
        """True if what an instance enforces depends on how many there are."""
        return any(target.limit.is_shared for target in self.limits)


@dataclass(frozen=True, slots=True)
class Present:
    """The instances, by what they are asked for by."""

    instances: Mapping[bytes, service_pb2.Instance] = field(default_factory=dict)
    """By key in the store."""
    by_service: Mapping[Key, tuple[service_pb2.Instance, ...]] = field(default_factory=dict)
    """By the service that they registered for, in order of id."""
    by_node: Mapping[str, tuple[service_pb2.Instance, ...]] = field(default_factory=dict)
    """The instances beside each node, in order of id."""


@dataclass(frozen=True, slots=True)
class MeshView:
    """The mesh at one revision, as far as it does not depend on who looks."""

    revision: int
    by_name: Mapping[Key, ServiceView] = field(default_factory=dict)
    """In order of the name."""
    declared: Declared = field(default_factory=Declared)
    present: Present = field(default_factory=Present)

    @property
    def services(self) -> tuple[ServiceView, ...]:
        """In order of the name."""
        return tuple(self.by_name.values())


def cluster_name(namespace: str, name: str) -> str:
    """The xDS name of a service's cluster."""
    return f"outbound|{name}.{namespace}"


def mesh(state: State) -> MeshView:
    """The view of a state. Backends that nobody declared or registered are there too, with no endpoints."""
    found, there = declared(state), present(state)
    names = sorted(found.names | there.by_service.keys())
    return MeshView(state.revision, {key: service(key, found, there) for key in names}, found, there)


def service(key: Key, declared: Declared, present: Present) -> ServiceView:
    """The view of one service."""
    spec = declared.services.get(key)
    balancing, hash_on = _balancing(key, declared)
    return ServiceView(
        namespace=key[0],
        name=key[1],
        ports=tuple(port.port for port in spec.ports) if spec is not None else (),
        balancing=balancing,
        rules=tuple(_keyed(rule, declared) for rule in declared.rules.get(key, ())),
        endpoints=tuple(map(_endpoint, _instances(key, declared, present))),
        hash_on=hash_on,
        peer=_peer(key, declared, present) if declared.trust_domain else None,
        breaking=_breaking(key, declared),
        calling=_calling(key, declared),
    )


def _balancing(key: Key, declared: Declared) -> tuple[bytes, bytes]:
    """What the closest policy says: of endpoints, and of keys."""
    for place in (key, (key[0], ""), ("", "")):
        policy = declared.balancing.get(place)
        if policy is not None:
            spec = policy_pb2.LoadBalancingPolicySpec()
            spec.CopyFrom(policy.load_balancing_policy)
            keys = policy_pb2.LoadBalancingPolicySpec(hash_on=spec.hash_on)
            spec.ClearField("target_refs")
            spec.ClearField("hash_on")
            return spec.SerializeToString(deterministic=True), keys.SerializeToString(deterministic=True)
    return b"", b""


def _closest(kind: str, key: Key, declared: Declared) -> Any:
    """The spec of the policy of a kind that counts for a service, without its targets; None if there is none."""
    policies = declared.resilience.get(kind, {})
    for place in (key, (key[0], ""), ("", "")):
        policy = policies.get(place)
        if policy is not None:
            given = getattr(policy, str(policy.WhichOneof("spec")))
            spec = type(given)()
            spec.CopyFrom(given)
            spec.ClearField("target_refs")
            return spec
    return None


def _breaking(key: Key, declared: Declared) -> bytes:
    spec = _closest("CircuitBreakerPolicy", key, declared)
    return spec.SerializeToString(deterministic=True) if spec is not None else b""


def _calling(key: Key, declared: Declared) -> bytes:
    found = {
        name: _closest(kind, key, declared)
        for name, kind in (("retry", "RetryPolicy"), ("timeout", "TimeoutPolicy"), ("fault", "FaultPolicy"))
    }
    return resilience_pb2.Calling(**found).SerializeToString(deterministic=True)


def _keyed(rule: RuleView, declared: Declared) -> RuleView:
    """The rule with the keys that its backends choose by."""
    for name, _ in rule.backends:
        service, _, namespace = name.removeprefix("outbound|").rpartition(".")
        found = _balancing((namespace, service), declared)[1]
        if found:
            return replace(rule, hash_on=found)
    return rule


def _peer(key: Key, declared: Declared, present: Present) -> PeerView:
    selector = declared.selectors.get(key[0], {}).get(key)
    if selector is None:
        names = {key[1]}
    elif "service" in selector:
        names = {selector["service"]}
    else:
        names = {instance.service for instance in _instances(key, declared, present)} or {key[1]}
    identities = sorted(f"spiffe://{declared.trust_domain}/ns/{key[0]}/sa/{name}" for name in names)
    return PeerView(mutual_tls(key, declared), tuple(identities))


def mutual_tls(key: Key, declared: Declared) -> MutualTls:
    """What counts for a service: what is closest to it."""
    for place in (key, (key[0], ""), ("", "")):
        found = declared.mutual_tls.get(place, policy_pb2.AuthenticationPolicySpec.Inherit)
        if found != policy_pb2.AuthenticationPolicySpec.Inherit:
            return found
    return policy_pb2.AuthenticationPolicySpec.Permissive


def inbound_mutual_tls(mesh: MeshView, node: Node) -> MutualTls:
    """What the instance beside a node takes: `Strict` if any of its names is."""
    modes = {mutual_tls(key, mesh.declared) for key in _names_beside(mesh, node)}
    strict = policy_pb2.AuthenticationPolicySpec.Strict
    return strict if strict in modes else policy_pb2.AuthenticationPolicySpec.Permissive


def inbound_tokens(mesh: MeshView, node: Node) -> tuple[TokensView, ...]:
    """What policies say of the tokens of calls to the instance beside a node: the closest for each of its names, each once."""
    declared = mesh.declared.tokens
    if not declared:
        return ()
    found = []
    for namespace, name in sorted(_names_beside(mesh, node)):
        view = next(filter(None, map(declared.get, ((namespace, name), (namespace, ""), ("", "")))), None)
        if view is not None:
            found.append(view)
    return tuple(dict.fromkeys(found))


def _names_beside(mesh: MeshView, node: Node) -> set[Key]:
    """The services that the instance beside a node is of."""
    said = service_pb2.Instance(service=node.service, namespace=node.namespace, version=node.version)
    beside = [said, *mesh.present.by_node.get(node.id, ())]
    names = {(node.namespace, instance.service) for instance in beside if instance.namespace == node.namespace}
    for key, selector in mesh.declared.selectors.get(node.namespace, {}).items():
        if any(instance.namespace == node.namespace and selects(selector, instance) for instance in beside):
            names.add(key)
    return names


def _instances(key: Key, declared: Declared, present: Present) -> Iterable[service_pb2.Instance]:
    """The instances behind a service's name, in order of id."""
    selector = declared.selectors.get(key[0], {}).get(key)
    if selector is None:
        return present.by_service.get(key, ())
    names = [(key[0], selector["service"])] if "service" in selector else present.by_service
    there = (item for name in names if name[0] == key[0] for item in present.by_service.get(name, ()))
    return sorted((item for item in there if selects(selector, item)), key=order)


def order(instance: service_pb2.Instance) -> tuple[str, str, str]:
    """Instances stand in the order of their ids."""
    return instance.id, instance.service, instance.namespace


def declared(state: State) -> Declared:
    """What the resources of a state say."""
    services = {(item.metadata.namespace, item.metadata.name): item.service for item in state.of_kind("Service")}
    selectors: dict[str, dict[Key, Mapping[str, str]]] = {}
    for key, spec in services.items():
        if spec.selector:
            selectors.setdefault(key[0], {})[key] = dict(spec.selector)
    names = set(services)
    routes = state.of_kind("GRPCRoute")
    for route in routes:
        for rule in route.grpc_route.rules:
            names.update((backend.namespace or _namespace(route), backend.name) for backend in backends(rule))
        for parent in route.grpc_route.parent_refs:
            if is_parent_allowed(route, parent):
                names.add((_namespace(route), parent.name))
    return Declared(
        frozenset(names),
        services,
        targets(state, "LoadBalancingPolicy"),
        _rules(routes),
        selectors,
        _limits(state),
        {kind: found for kind in RESILIENCE if (found := targets(state, kind))},
        state.trust.trust_domain if state.trust is not None else "",
        _mutual_tls(state),
        _access(state),
        _tokens(state),
    )


def present(state: State) -> Present:
    """Who is there."""
    by_service: dict[Key, list[service_pb2.Instance]] = {}
    by_node: dict[str, list[service_pb2.Instance]] = {}
    for instance in sorted(state.instances.values(), key=order):
        by_service.setdefault((instance.namespace, instance.service), []).append(instance)
        if instance.node_id:
            by_node.setdefault(instance.node_id, []).append(instance)
    return Present(state.instances, _tuples(by_service), _tuples(by_node))


def _tuples(found: Mapping[K, list[service_pb2.Instance]]) -> dict[K, tuple[service_pb2.Instance, ...]]:
    return {key: tuple(items) for key, items in found.items()}


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
        instance.mutual_tls,
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
        for place in _places(resource, spec):
            found.setdefault(place, resource)
    return found


def _places(policy: api_pb2.Resource, spec: Any) -> list[Key]:
    """What a policy is attached to: services, or all of its namespace (with an empty name), or the mesh (both empty)."""
    namespace = _namespace(policy)
    wide = ("", "") if namespace == MESH_NAMESPACE else (namespace, "")
    return [(namespace, target.name) for target in spec.target_refs] or [wide]


def _mutual_tls(state: State) -> dict[Key, MutualTls]:
    """What the policies say, by what they are attached to; the older of two counts."""
    found: dict[Key, MutualTls] = {}
    for policy in precedence.order(state.of_kind("AuthenticationPolicy")):
        spec = policy.authentication_policy
        if is_off(policy):
            continue
        says = spec.mutual_tls
        if spec.mode == policy_pb2.Shadow and says == policy_pb2.AuthenticationPolicySpec.Strict:
            says = policy_pb2.AuthenticationPolicySpec.Permissive
        for place in _places(policy, spec):
            found.setdefault(place, says)
    return found


def _tokens(state: State) -> dict[Key, TokensView]:
    """What the policies say of tokens, by what they are attached to; the older of two counts."""
    found: dict[Key, TokensView] = {}
    for policy in precedence.order(state.of_kind("AuthenticationPolicy")):
        spec = policy.authentication_policy
        if is_off(policy) or not spec.jwt:
            continue
        part = policy_pb2.AuthenticationPolicySpec(jwt=spec.jwt, require=spec.require, mode=spec.mode)
        view = TokensView(f"{_namespace(policy)}/{policy.metadata.name}", part.SerializeToString(deterministic=True))
        for place in _places(policy, spec):
            found.setdefault(place, view)
    return found


def _access(state: State) -> tuple[AccessView, ...]:
    found = []
    for policy in filter(lambda policy: not is_off(policy), state.of_kind("AuthorizationPolicy")):
        spec = policy_pb2.AuthorizationPolicySpec()
        spec.CopyFrom(policy.authorization_policy)
        spec.ClearField("target_refs")
        data = spec.SerializeToString(deterministic=True)
        namespace = _namespace(policy)
        for place in _places(policy, policy.authorization_policy):
            selector = tuple(sorted(state.selector(*place).items())) if place[1] else ()
            found.append(AccessView(f"{namespace}/{policy.metadata.name}", namespace, place, selector, data))
    return tuple(sorted(found, key=lambda view: (view.policy, view.place)))


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
            data = match.SerializeToString(deterministic=True)
            filters = _filters(rule, namespace)
            yield rank, RuleView(name, data, tuple(shares.items()), filters=filters)


def _filters(rule: route_pb2.GRPCRouteRule, namespace: str) -> tuple[bytes, ...]:
    found = []
    for each in rule.filters:
        whole = route_pb2.RouteFilter()
        whole.CopyFrom(each)
        if whole.HasField("request_mirror") and not whole.request_mirror.backend_ref.namespace:
            whole.request_mirror.backend_ref.namespace = namespace
        found.append(whole.SerializeToString(deterministic=True))
    return tuple(found)


def backends(rule: route_pb2.GRPCRouteRule) -> Iterator[route_pb2.BackendRef]:
    """Every service that a rule names: where calls go, and where copies of them go."""
    yield from rule.backend_refs
    for each in rule.filters:
        if each.HasField("request_mirror"):
            yield each.request_mirror.backend_ref


def _limits(state: State) -> tuple[LimitTarget, ...]:
    found = []
    for (namespace, target), policy in sorted(targets(state, "RateLimitPolicy").items()):
        spec = policy.rate_limit_policy
        limit = LimitView(
            policy=f"{namespace}/{policy.metadata.name}",
            requests=spec.requests,
            burst=spec.burst or spec.requests,
            interval_ns=spec.interval.ToNanoseconds() if spec.HasField("interval") else 1_000_000_000,
            is_enforced=spec.mode == policy_pb2.Enforce,
            algorithm=spec.algorithm,
            max_wait_ns=spec.max_wait.ToNanoseconds(),
            keys=tuple((key.header, key.source) for key in spec.keys),
            max_keys=spec.max_keys or (MAX_KEYS if spec.keys else 0),
            is_shared=spec.scope == policy_pb2.RateLimitPolicySpec.Service,
        )
        found.append(LimitTarget((namespace, target), state.selector(namespace, target), limit))
    return tuple(found)


def limits(mesh: MeshView, node: Node) -> tuple[LimitView, ...]:
    """The rate limits for calls to the instance beside a node, by any of its names; each policy once."""
    # Before it has registered, what the node says of itself; its labels come with the registration.
    said = service_pb2.Instance(service=node.service, namespace=node.namespace, version=node.version)
    beside = [said, *mesh.present.by_node.get(node.id, ())]
    found = [
        target.limit.share(_live(mesh, target.service)) if target.limit.is_shared else target.limit
        for target in mesh.declared.limits
        if target.service[0] == node.namespace
        and any(item.namespace == node.namespace and selects(target.selector, item) for item in beside)
    ]
    return tuple(dict.fromkeys(found))


def _live(mesh: MeshView, key: Key) -> int:
    """Instances that share a service's calls now."""
    service = mesh.by_name.get(key)
    away = (service_pb2.UNHEALTHY, service_pb2.DRAINING)
    return sum(endpoint.health not in away for endpoint in service.endpoints) if service is not None else 0
