"""What the mesh says of a resource: its conditions, as in the Gateway API."""

from control_plane.registry.state import State
from control_plane.resources import kinds
from control_plane.translate.view import is_parent_allowed
from proto.mesh.v1 import api_pb2, meta_pb2


def status(state: State, resource: api_pb2.Resource) -> meta_pb2.Status:
    """The conditions of a stored resource, computed from the state that it is part of."""
    found = [_condition(resource, "Accepted", True, "Accepted", "")]
    if resource.HasField("grpc_route"):
        found = [_accepted(resource), _resolved(state, resource)]
    elif not resource.HasField("service"):
        found.append(_targets(state, resource))
    return meta_pb2.Status(conditions=found)


def _condition(resource: api_pb2.Resource, kind: str, holds: bool, reason: str, message: str) -> meta_pb2.Condition:
    return meta_pb2.Condition(
        type=kind,
        status="True" if holds else "False",
        reason=reason,
        message=message,
        observed_generation=resource.metadata.generation,
    )


def _accepted(route: api_pb2.Resource) -> meta_pb2.Condition:
    refused = [parent for parent in route.grpc_route.parent_refs if not is_parent_allowed(route, parent)]
    if refused:
        text = f"parent {refused[0].name}.{refused[0].namespace} is in another namespace; a route steers services of its own"
        return _condition(route, "Accepted", False, "NotAllowedByNamespace", text)
    return _condition(route, "Accepted", True, "Accepted", "")


def _is_known(state: State, namespace: str, name: str) -> bool:
    return state.service(namespace, name) is not None or bool(state.instances_of(namespace, name))


def _resolved(state: State, route: api_pb2.Resource) -> meta_pb2.Condition:
    own = route.metadata.namespace or kinds.DEFAULT_NAMESPACE
    for number, rule in enumerate(route.grpc_route.rules):
        for backend in rule.backend_refs:
            namespace = backend.namespace or own
            if not _is_known(state, namespace, backend.name):
                text = f"spec.rules[{number}]: no service {backend.name}.{namespace} yet; calls to it get UNAVAILABLE"
                return _condition(route, "ResolvedRefs", False, "BackendNotFound", text)
    return _condition(route, "ResolvedRefs", True, "ResolvedRefs", "")


def _targets(state: State, policy: api_pb2.Resource) -> meta_pb2.Condition:
    own = policy.metadata.namespace or kinds.DEFAULT_NAMESPACE
    spec = getattr(policy, str(policy.WhichOneof("spec")))
    for number, target in enumerate(spec.target_refs):
        if not _is_known(state, own, target.name):
            text = f"spec.targetRefs[{number}]: no service {target.name}.{own} yet"
            return _condition(policy, "ResolvedRefs", False, "TargetNotFound", text)
    return _condition(policy, "ResolvedRefs", True, "ResolvedRefs", "")
