"""What the clusters are like now, as plain values for those who ask."""

from collections.abc import Iterable

from sidecar.policy.breaker import Breaker, State
from sidecar.policy.hosts import Health
from sidecar.proxy.cluster import Cluster, Endpoint, Load
from sidecar.telemetry.clusters import BreakerState, ClusterState, EndpointState, LimitState


def of_clusters(clusters: Iterable[Cluster]) -> list[ClusterState]:
    """Asked in another thread too: lists are copied before they are walked."""
    return [_cluster(cluster) for cluster in clusters]


def _cluster(cluster: Cluster) -> ClusterState:
    detector = cluster.outliers.detector if cluster.outliers is not None else None
    return ClusterState(
        name=cluster.name,
        service=cluster.label,
        limits=(_limits("default", cluster, cluster.load), _limits("high", cluster, cluster.high_load)),
        endpoints=tuple(_endpoint(endpoint) for endpoint in list(cluster.endpoints.values())),
        ejected=detector.ejected if detector is not None else 0,
        detections=tuple(
            (why.value, is_enforced, count) for (why, is_enforced), count in list(detector.detections.items())
        )
        if detector is not None
        else (),
        overflows=detector.overflows if detector is not None else 0,
        breaker=_breaker(cluster.breaker) if cluster.breaker is not None else None,
    )


def _breaker(breaker: Breaker) -> BreakerState:
    cause = breaker.cause.value if breaker.state is not State.CLOSED and breaker.cause is not None else ""
    return BreakerState(breaker.state.value, cause, breaker.opened, breaker.refused, breaker.config.is_enforced)


def _limits(priority: str, cluster: Cluster, load: Load) -> LimitState:
    limits = load.limits
    return LimitState(
        priority,
        (cluster.config.max_connections, limits.max_pending_requests, limits.max_requests, load.most_retries()),
        (cluster.connections, load.pending, load.active, load.retrying),
        limits.tracks_remaining,
    )


def _endpoint(endpoint: Endpoint) -> EndpointState:
    config = endpoint.config
    record = endpoint.record
    return EndpointState(
        host=config.host,
        port=config.port,
        connections=len(endpoint.connections),
        active=endpoint.active,
        pending=len(endpoint.waiting),
        weight=endpoint.weight,
        priority=config.priority,
        locality=config.locality,
        hostname=config.hostname,
        flags=tuple(_flags(endpoint)),
        success_rate=record.success_rate if record is not None else -1.0,
    )


def _flags(endpoint: Endpoint) -> Iterable[str]:
    """Envoy's health flags."""
    if endpoint.record is not None and endpoint.record.is_ejected:
        yield "failed_outlier_check"
    if endpoint.checker is not None and endpoint.checker.has_failed:
        yield "failed_active_hc"
        if endpoint.checker.is_late:
            yield "active_hc_timeout"
    match endpoint.config.health:
        case Health.UNHEALTHY:
            yield "failed_eds_health"
        case Health.DEGRADED:
            yield "degraded_eds_health"
        case Health.LEAVING:
            yield "eds_status_draining"
