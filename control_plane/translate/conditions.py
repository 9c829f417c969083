"""What the mesh says of a resource: its conditions, as in the Gateway API.

`Accepted` and `ResolvedRefs` say whether it has effect. `Conflicted` is there only where another resource decides the same, and then
on both: the older one counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from control_plane.registry.state import State
from control_plane.resources import kinds
from control_plane.resources.precedence import Age, age
from control_plane.translate.view import backends, is_off, is_parent_allowed
from proto.mesh.v1 import api_pb2, meta_pb2, route_pb2

MAX_NAMED: Final = 5
"""Conflicts that one message names; the rest are counted."""


@dataclass(frozen=True, slots=True, order=True)
class _Claim:
    """Something that one resource only can decide."""

    kind: str
    namespace: str
    service: str
    port: int = 0
    match: bytes = b""
    """The serialised GRPCRouteMatch of a route's rule."""

    def __str__(self) -> str:
        if not self.service:
            return "the whole mesh" if self.namespace == kinds.MESH_NAMESPACE else f"namespace {self.namespace}"
        service = f"{self.service}:{self.port}" if self.port else self.service
        return f"{_described(self.match)} to {service}" if self.kind == "GRPCRoute" else f"service {service}"


class Conditions:
    """The conditions of every resource at one state; what they have in common is found once."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._known = frozenset(state.service_names())
        self._claimed: dict[_Claim, list[Age]] = {}
        for resource in state.resources.values():
            for claim in _claims(resource):
                self._claimed.setdefault(claim, []).append(age(resource))

    def status(self, resource: api_pb2.Resource) -> meta_pb2.Status:
        """Of a resource, stored or not yet (a dry run)."""
        accepted = _condition(resource, "Accepted", True, "Accepted", "")
        if resource.HasField("service") and not (
            resource.service.HasField("dependencies") or resource.service.external.dns
        ):
            return meta_pb2.Status(conditions=[accepted])
        if resource.HasField("service"):
            refused, unresolved = None, self._address(resource) or self._dependencies(resource)
        elif resource.HasField("grpc_route"):
            refused, unresolved = self._parents(resource), self._backends(resource)
        else:
            refused, unresolved = self._overruled(resource), self._targets(resource)
        resolved = _condition(resource, "ResolvedRefs", True, "ResolvedRefs", "")
        found = [refused or accepted, unresolved or resolved]
        conflicts = [
            f"{claim}: {name} decides this too, and is {'older, so it counts' if is_older else 'younger, so it does not count'}"
            for claim, name, is_older in self._conflicts(resource)
        ]
        if conflicts:
            rest = [f"and {len(conflicts) - MAX_NAMED} more"] if len(conflicts) > MAX_NAMED else []
            text = "; ".join(conflicts[:MAX_NAMED] + rest)
            found.append(_condition(resource, "Conflicted", True, "OlderWins", text))
        return meta_pb2.Status(conditions=found)

    def _parents(self, route: api_pb2.Resource) -> meta_pb2.Condition | None:
        """What is wrong with the services that a route is bound to."""
        for parent in route.grpc_route.parent_refs:
            if not is_parent_allowed(route, parent):
                text = f"parent {parent.name}.{parent.namespace} is in another namespace; a route steers services of its own"
                return _condition(route, "Accepted", False, "NotAllowedByNamespace", text)
            declared = self.state.service(_namespace(route), parent.name)
            ports = [port.port for port in declared.service.ports] if declared is not None else []
            if parent.port and ports and parent.port not in ports:
                known = ", ".join(map(str, ports))
                text = f"service {parent.name}.{_namespace(route)} has no port {parent.port}; it has {known}"
                return _condition(route, "Accepted", False, "NoMatchingParent", text)
        return None

    def _backends(self, route: api_pb2.Resource) -> meta_pb2.Condition | None:
        for number, rule in enumerate(route.grpc_route.rules):
            for backend in backends(rule):
                namespace = backend.namespace or _namespace(route)
                if (namespace, backend.name) not in self._known:
                    text = (
                        f"spec.rules[{number}]: no service {backend.name}.{namespace} yet; calls to it get UNAVAILABLE"
                    )
                    return _condition(route, "ResolvedRefs", False, "BackendNotFound", text)
        return None

    def _address(self, service: api_pb2.Resource) -> meta_pb2.Condition | None:
        """An external name that was never resolved."""
        name = service.service.external.dns
        if not name or self.state.instances_of(_namespace(service), service.metadata.name):
            return None
        text = f"spec.external.dns: {name} has no address yet; calls to it get UNAVAILABLE"
        return _condition(service, "ResolvedRefs", False, "NameNotResolved", text)

    def _dependencies(self, service: api_pb2.Resource) -> meta_pb2.Condition | None:
        for number, each in enumerate(service.service.dependencies.services):
            namespace = each.namespace or _namespace(service)
            if (namespace, each.name) not in self._known:
                text = f"spec.dependencies.services[{number}]: no service {each.name}.{namespace} yet; it is told of when it comes"
                return _condition(service, "ResolvedRefs", False, "DependencyNotFound", text)
        return None

    def _overruled(self, policy: api_pb2.Resource) -> meta_pb2.Condition | None:
        """A policy that counts for none of its targets."""
        lost = {claim: name for claim, name, is_older in self._conflicts(policy) if is_older}
        if not lost or any(claim not in lost for claim in _claims(policy)):
            return None
        claim, name = next(iter(lost.items()))
        text = f"{name} is older and counts for {claim}; delete one of the two"
        return _condition(policy, "Accepted", False, "Conflicted", text)

    def _targets(self, policy: api_pb2.Resource) -> meta_pb2.Condition | None:
        spec = getattr(policy, str(policy.WhichOneof("spec")))
        for number, target in enumerate(spec.target_refs):
            if (_namespace(policy), target.name) not in self._known:
                text = f"spec.targetRefs[{number}]: no service {target.name}.{_namespace(policy)} yet"
                return _condition(policy, "ResolvedRefs", False, "TargetNotFound", text)
        return None

    def _conflicts(self, resource: api_pb2.Resource) -> Iterator[tuple[_Claim, str, bool]]:
        """(what, who else decides it, is it older) in order."""
        own = age(resource)
        for claim in sorted(set(_claims(resource))):
            for other in sorted(self._claimed.get(claim, ())):
                if other[1] != own[1]:
                    yield claim, other[1], other < own


def _claims(resource: api_pb2.Resource) -> Iterator[_Claim]:
    if resource.HasField("service") or resource.HasField("authorization_policy") or is_off(resource):
        return  # of authorization policies all count, so none is in another's way
    kind, namespace = kinds.of(resource).name, _namespace(resource)
    if not resource.HasField("grpc_route"):
        targets = getattr(resource, str(resource.WhichOneof("spec"))).target_refs
        for target in targets:
            yield _Claim(kind, namespace, target.name)
        if not targets:
            yield _Claim(kind, namespace, "")
        return
    for parent in resource.grpc_route.parent_refs:
        if is_parent_allowed(resource, parent):
            for rule in resource.grpc_route.rules:
                for match in rule.matches or [route_pb2.GRPCRouteMatch()]:
                    data = match.SerializeToString(deterministic=True)
                    yield _Claim(kind, namespace, parent.name, parent.port, data)


def _described(data: bytes) -> str:
    match = route_pb2.GRPCRouteMatch.FromString(data)
    words = [
        f"calls of {match.method.service or '*'}/{match.method.method or '*'}" if match.HasField("method") else "calls"
    ]
    words += [f"with {header.name}={header.value}" for header in match.headers]
    return " ".join(words)


def _namespace(resource: api_pb2.Resource) -> str:
    return resource.metadata.namespace or kinds.DEFAULT_NAMESPACE


def _condition(resource: api_pb2.Resource, kind: str, holds: bool, reason: str, message: str) -> meta_pb2.Condition:
    return meta_pb2.Condition(
        type=kind,
        status="True" if holds else "False",
        reason=reason,
        message=message,
        observed_generation=resource.metadata.generation,
    )
