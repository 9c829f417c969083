"""What each kind of node enforces of a policy: the matrix, and what is missing where. Pure.

A field or a value that has a row is enforced by the clients that the row names, from the version on that it says; one without a row by
sidecars only, since gRPC's own clients ignore in silence what they do not know. What is not enforced is not sent either
(`proxyless`), and is said: in the policy's conditions, on `apply`, and in `remora status`.

Sources: gRPC's table of xDS features (grpc/doc/grpc_xds_features.md) and the gRFCs that the rows name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from control_plane.resources import kinds
from control_plane.translate.clients import SIDECARS, Client, Profile, Version
from control_plane.translate.view import is_off
from proto.mesh.v1 import api_pb2, policy_pb2

NEVER: Final[Version] = (1 << 31,)
_ALL: Final[Version] = (0,)


class Side(Enum):
    """Who enforces a kind of policy."""

    CALLER = "caller"
    CALLEE = "callee"


_SIDES: Final = {
    "RateLimitPolicy": Side.CALLEE,
    "AuthenticationPolicy": Side.CALLEE,
    "AuthorizationPolicy": Side.CALLEE,
}


def side(kind: str) -> Side:
    """On which side a policy of a kind is enforced."""
    return _SIDES.get(kind, Side.CALLER)


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that a policy can ask for."""

    what: str
    """In words, such as `least request`."""
    since: Mapping[Client, Version] = field(default_factory=dict)
    """Who enforces it, from which version on; sidecars that are not named enforce it, gRPC clients that are not named do not."""
    otherwise: str = ""
    """What a client does instead; a sentence's second half."""
    source: str = ""


def _since(
    core: Version | None, java: Version | None, go: Version | None, node: Version | None
) -> dict[Client, Version]:
    found = {Client.CORE: core, Client.JAVA: java, Client.GO: go, Client.NODE: node}
    return {client: version for client, version in found.items() if version is not None}


_ROUND: Final = "it goes round robin"
_BUCKET: Final = "it takes a token bucket of the same rate"
_NOT_ENVOY: Final = {Client.ENVOY: NEVER}
_HASHED: Final = _since((1, 40), (1, 40), (1, 41), (1, 10))
_FAULTS: Final = _since((1, 37), (1, 37), (1, 37), (1, 4))
_ANYWHERE: Final = _since(_ALL, _ALL, _ALL, _ALL)
MATRIX: Final[Mapping[tuple[str, str, str], Row]] = {
    # (kind, field of the spec, value of an enumeration or "")
    ("LoadBalancingPolicy", "algorithm", "RoundRobin"): Row("round robin", _ANYWHERE, source="gRFC A27"),
    ("LoadBalancingPolicy", "algorithm", "Random"): Row("random balancing", {}, _ROUND),
    ("LoadBalancingPolicy", "algorithm", "LeastRequest"): Row(
        "least request", _since(None, (1, 48), None, None), _ROUND, "gRFC A48"
    ),
    ("LoadBalancingPolicy", "algorithm", "RingHash"): Row("ring hash", _HASHED, _ROUND, "gRFC A42"),
    ("LoadBalancingPolicy", "algorithm", "Maglev"): Row("maglev", {}, _ROUND),
    ("LoadBalancingPolicy", "algorithm", "PeakEwma"): Row("peak EWMA", _NOT_ENVOY, "it balances in its own way"),
    ("LoadBalancingPolicy", "hash_on", ""): Row("key but a header", _HASHED, "other keys do not count", "gRFC A42"),
    ("LoadBalancingPolicy", "ring_size", ""): Row("size of a ring", _HASHED, source="gRFC A42"),
    ("LoadBalancingPolicy", "choices", ""): Row(
        "number of choices", _since(None, (1, 48), None, None), source="gRFC A48"
    ),
    ("LoadBalancingPolicy", "decay", ""): Row("decay of latencies", _NOT_ENVOY),
    ("LoadBalancingPolicy", "penalty", ""): Row("penalty for overload", _NOT_ENVOY),
    ("LoadBalancingPolicy", "prefer_zone", ""): Row("zones", {}, "it uses all zones alike"),
    ("LoadBalancingPolicy", "failover", ""): Row("failover", _ANYWHERE, source="gRFC A27"),
    ("LoadBalancingPolicy", "locality_weights", ""): Row("weights of localities", _ANYWHERE, source="gRFC A27"),
    ("RateLimitPolicy", "algorithm", "LeakyBucket"): Row("leaky bucket", _NOT_ENVOY, _BUCKET),
    ("RateLimitPolicy", "algorithm", "SlidingWindow"): Row("sliding window", _NOT_ENVOY, _BUCKET),
    ("RateLimitPolicy", "algorithm", "SlidingLog"): Row("sliding log", _NOT_ENVOY, _BUCKET),
    ("RateLimitPolicy", "algorithm", "Concurrency"): Row(
        "local limit of calls at once", _NOT_ENVOY, "it lets all calls through"
    ),
    ("RateLimitPolicy", "max_wait", ""): Row("way to hold a call", _NOT_ENVOY, "it refuses it"),
    ("CircuitBreakerPolicy", "limits", ""): Row("limits but that of calls at once"),
    ("CircuitBreakerPolicy", "ejection", ""): Row(
        "ejection by errors in a row", otherwise="it goes by shares of failures", source="gRFC A50"
    ),
    ("CircuitBreakerPolicy", "breaker", ""): Row("breaker that opens and closes", _NOT_ENVOY),
    ("RetryPolicy", "retries", ""): Row("number of retries", _ANYWHERE, source="gRFC A44"),
    ("RetryPolicy", "on", ""): Row("retries", _ANYWHERE, source="gRFC A44"),
    ("RetryPolicy", "idempotent", ""): Row("retries", _ANYWHERE, source="gRFC A44"),
    ("RetryPolicy", "backoff", ""): Row("back-off", _ANYWHERE, source="gRFC A44"),
    ("RetryPolicy", "max_backoff", ""): Row("back-off", _ANYWHERE, source="gRFC A44"),
    ("RetryPolicy", "hedge", ""): Row("hedging", _NOT_ENVOY),
    ("RetryPolicy", "per_try_timeout", ""): Row("time-out of one try"),
    ("RetryPolicy", "idempotency_key", ""): Row("way to retry only calls with a header", otherwise="it retries none"),
    ("TimeoutPolicy", "request", ""): Row("time-out of a request", _ANYWHERE, source="gRFC A31"),
    ("TimeoutPolicy", "idle", ""): Row("time-out of silent calls"),
    ("FaultPolicy", "delay", ""): Row("injected delays", _FAULTS, source="gRFC A33"),
    ("FaultPolicy", "abort", ""): Row("injected aborts", _FAULTS, source="gRFC A33"),
    ("FaultPolicy", "headers", ""): Row("faults of some calls only", otherwise="it injects none"),
    ("FaultPolicy", "max_active", ""): Row("bound on faults at once", _FAULTS, source="gRFC A33"),
    ("GRPCRoute", "rules", ""): Row("routes", _ANYWHERE, source="gRFC A28"),
    ("GRPCRoute", "parent_refs", ""): Row("routes", _ANYWHERE, source="gRFC A28"),
}


NOT_PROXYLESS: Final = {
    "RateLimitPolicy": "rate limit",
    "AuthenticationPolicy": "authentication by the mesh",
    "AuthorizationPolicy": "authorization by the mesh",
}
"""Kinds of which gRPC's own clients and servers enforce nothing, and what to call them."""
_FILTERS: Final = {
    "RequestHeaderModifier": "change of request headers",
    "ResponseHeaderModifier": "change of response headers",
    "RequestMirror": "mirror",
}
"""Filters of routes, which gRPC's own clients do not have, and what to call them."""


@dataclass(frozen=True, slots=True, order=True)
class Gap:
    """Something that a client does not enforce."""

    field: str
    """In YAML spelling, e.g. `spec.algorithm`."""
    text: str
    """Why, and what happens instead, in one clause."""


def gaps(resource: api_pb2.Resource, of: Profile) -> Iterator[Gap]:
    """What a client does not enforce of a resource, whichever side it stands on."""
    kind = kinds.of(resource)
    spec = getattr(resource, kind.field)
    if of.client is Client.REMORA or is_off(resource):
        return
    if of.is_proxyless and kind.name in NOT_PROXYLESS:
        yield Gap("spec", f"{of.client.value} has no {NOT_PROXYLESS[kind.name]}")
        return
    for each, value in spec.ListFields():
        if each.name != "target_refs":
            yield from _field_gaps(kind.name, each, value, of)
    if resource.HasField("grpc_route") and of.is_proxyless:
        for number, rule in enumerate(resource.grpc_route.rules):
            for place, each in enumerate(rule.filters):
                text = (
                    f"{of.client.value} has no {_FILTERS.get(each.type, each.type)}; it calls as if it were not there"
                )
                yield Gap(f"spec.rules[{number}].filters[{place}]", text)
    unset = [each for each in spec.DESCRIPTOR.fields if each.name == "algorithm" and not getattr(spec, each.name)]
    for each in unset:
        yield from _field_gaps(kind.name, each, 0, of)


def _field_gaps(kind: str, of: FieldDescriptor, value: Any, profile: Profile) -> Iterator[Gap]:
    name = ""
    if of.enum_type is not None and not of.is_repeated:
        named = of.enum_type.values_by_number.get(value)
        name = named.name if named is not None else ""
    row = MATRIX.get((kind, of.name, name)) or MATRIX.get((kind, of.name, ""))
    if of.name == "mode":
        row = Row("shadow mode", otherwise="it does not act") if value == policy_pb2.Shadow else None
        if row is None:
            return
    if row is None:
        row = Row(of.json_name)
    first = since(row, profile.client)
    if profile.version < first:
        later = f" before {'.'.join(map(str, first))}" if first != NEVER else ""
        text = f"{profile.client.value}{later} has no {row.what}" + (f"; {row.otherwise}" if row.otherwise else "")
        yield Gap(f"spec.{of.json_name}", text)


def since(row: Row, client: Client) -> Version:
    """The first version of a client that enforces what a row is about; NEVER if there is none."""
    return row.since.get(client, _ALL if client in SIDECARS else NEVER)


def enforces(kind: str, name: str, value: str, of: Profile) -> bool:
    """True if a client enforces what a row of the matrix is about."""
    return of.version >= since(MATRIX[kind, name, value], of.client)
