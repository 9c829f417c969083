"""The kinds of resources: their names in YAML, on the command line and in the schema."""

from dataclasses import dataclass
from typing import Final

from control_plane.resources.errors import quoted
from proto.mesh.v1 import api_pb2

REMORA: Final = "remora.dev/v1"
GATEWAY: Final = "gateway.networking.k8s.io/v1"
DEFAULT_NAMESPACE: Final = "default"
MESH_NAMESPACE: Final = "remora-system"
"""Policies without a target there are for the whole mesh."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of resource."""

    name: str
    """As `kind` in YAML."""
    field: str
    """Field of the oneof `spec` of the message `Resource`."""
    plural: str
    api_version: str = REMORA


KINDS: Final = (
    Kind("Service", "service", "services"),
    Kind("GRPCRoute", "grpc_route", "grpcroutes", GATEWAY),
    Kind("LoadBalancingPolicy", "load_balancing_policy", "loadbalancingpolicies"),
    Kind("RateLimitPolicy", "rate_limit_policy", "ratelimitpolicies"),
    Kind("CircuitBreakerPolicy", "circuit_breaker_policy", "circuitbreakerpolicies"),
    Kind("RetryPolicy", "retry_policy", "retrypolicies"),
    Kind("TimeoutPolicy", "timeout_policy", "timeoutpolicies"),
    Kind("FaultPolicy", "fault_policy", "faultpolicies"),
    Kind("AuthenticationPolicy", "authentication_policy", "authenticationpolicies"),
    Kind("AuthorizationPolicy", "authorization_policy", "authorizationpolicies"),
)
_BY_FIELD: Final = {kind.field: kind for kind in KINDS}
_BY_ANY_NAME: Final = {spelling: kind for kind in KINDS for spelling in (kind.name.lower(), kind.plural)}


def of(resource: api_pb2.Resource) -> Kind:
    """The kind of a resource whose spec is set."""
    return _BY_FIELD[str(resource.WhichOneof("spec"))]


def named(text: str) -> Kind | None:
    """The kind that a user means by `GRPCRoute`, `grpcroute` or `grpcroutes`."""
    return _BY_ANY_NAME.get(text.lower())


def describe(resource: api_pb2.Resource) -> str:
    """`KIND NAMESPACE/NAME`, for messages."""
    metadata = resource.metadata
    name = quoted(f"{metadata.namespace or DEFAULT_NAMESPACE}/{metadata.name}")
    return f"{of(resource).name} {name[1:-1]}"
