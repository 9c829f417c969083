"""The clusters of a process as they are now: /clusters, in Envoy's text and JSON (admin.v3.Clusters), and gauges.

Endpoint by endpoint: connections, calls, and why one gets no calls. Counters that Envoy keeps for each endpoint are kept here by service and
version only, in the metrics.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

RESOURCES: Final = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
HEALTHY: Final = "healthy"
_JSON_FLAGS: Final = {
    "failed_outlier_check": "failed_outlier_check",
    "failed_active_hc": "failed_active_health_check",
}


@dataclass(frozen=True, slots=True)
class EndpointState:
    """One endpoint."""

    host: str
    port: int
    connections: int
    active: int
    """Calls that run or wait."""
    pending: int
    """Calls that wait for a connection."""
    weight: int
    priority: int
    locality: tuple[str, str, str]
    hostname: str
    flags: tuple[str, ...]
    """Envoy's health flags; none if it is healthy."""
    success_rate: float
    """Percent in the last interval of outlier detection; -1 if it is not known."""


@dataclass(frozen=True, slots=True)
class LimitState:
    """The limits of one priority, and what there is of each resource."""

    priority: str
    """`default` or `high`."""
    limits: tuple[int, ...]
    """In the order of RESOURCES."""
    used: tuple[int, ...]
    tracks_remaining: bool


@dataclass(frozen=True, slots=True)
class BreakerState:
    """A classic breaker."""

    state: str
    """`closed`, `open` or `half-open`."""
    cause: str
    """Why it is not closed."""
    opened: int
    """How often it opened."""
    refused: int
    """Calls that it refused, or would have."""
    is_enforced: bool

    def __str__(self) -> str:
        return f"{self.state} ({self.cause})" if self.cause else self.state


@dataclass(frozen=True, slots=True)
class ClusterState:
    """One cluster."""

    name: str
    service: str
    """Label of metrics."""
    limits: tuple[LimitState, ...]
    endpoints: tuple[EndpointState, ...]
    ejected: int
    """Endpoints that outlier detection has ejected."""
    detections: tuple[tuple[str, bool, int], ...]
    """What detected an outlier, whether it ejected, how often."""
    overflows: int
    """Ejections that the highest share did not allow."""
    breaker: BreakerState | None = None
    """Its classic breaker, if it has one."""


def as_text(clusters: Sequence[ClusterState]) -> str:
    """Envoy's text form."""
    return "".join(f"{line}\n" for cluster in clusters for line in _lines(cluster))


def _lines(cluster: ClusterState) -> Iterator[str]:
    name = cluster.name
    yield f"{name}::observability_name::{name}"
    for limit in cluster.limits:
        for resource, value in zip(RESOURCES, limit.limits, strict=True):
            yield f"{name}::{limit.priority}_priority::{resource}::{value}"
    if cluster.breaker is not None:
        yield f"{name}::breaker::{cluster.breaker}"
    for endpoint in cluster.endpoints:
        place = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        region, zone, sub_zone = endpoint.locality
        for key, told in (
            ("cx_active", str(endpoint.connections)),
            ("rq_active", str(endpoint.active)),
            ("rq_pending_active", str(endpoint.pending)),
            ("hostname", endpoint.hostname),
            ("health_flags", "".join(f"/{flag}" for flag in endpoint.flags) or HEALTHY),
            ("weight", str(endpoint.weight)),
            ("region", region),
            ("zone", zone),
            ("sub_zone", sub_zone),
            ("priority", str(endpoint.priority)),
            ("success_rate", f"{endpoint.success_rate:g}"),
        ):
            yield f"{name}::{place}:{endpoint.port}::{key}::{told}"


def as_json(clusters: Sequence[ClusterState]) -> str:
    """Envoy's JSON form."""
    return json.dumps({"cluster_statuses": [_status(cluster) for cluster in clusters]}, indent=1)


def _status(cluster: ClusterState) -> dict[str, Any]:
    status: dict[str, Any] = {
        "name": cluster.name,
        "host_statuses": [_host(endpoint) for endpoint in cluster.endpoints],
        "circuit_breakers": {
            "thresholds": [
                {"priority": limit.priority.upper(), **dict(zip(RESOURCES, limit.limits, strict=True))}
                for limit in cluster.limits
            ]
        },
        "observability_name": cluster.name,
    }
    return {**status, "breaker": str(cluster.breaker)} if cluster.breaker is not None else status


def _host(endpoint: EndpointState) -> dict[str, Any]:
    gauges = (
        ("cx_active", endpoint.connections),
        ("rq_active", endpoint.active),
        ("rq_pending_active", endpoint.pending),
    )
    region, zone, sub_zone = endpoint.locality
    host = {
        "address": {"socket_address": {"address": endpoint.host, "port_value": endpoint.port}},
        "stats": [{"type": "GAUGE", "name": name, "value": str(value)} for name, value in gauges],
        "health_status": {
            "eds_health_status": "UNHEALTHY" if "failed_eds_health" in endpoint.flags else "HEALTHY",
            **{_JSON_FLAGS[flag]: True for flag in endpoint.flags if flag in _JSON_FLAGS},
        },
        "weight": endpoint.weight,
        "priority": endpoint.priority,
        "hostname": endpoint.hostname,
        "locality": {"region": region, "zone": zone, "sub_zone": sub_zone},
    }
    return {**host, "success_rate": {"value": endpoint.success_rate}} if endpoint.success_rate >= 0 else host
