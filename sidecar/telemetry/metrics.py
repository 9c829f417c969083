"""The counters of the data path as Prometheus metrics, put together at scrape time.

Label values are bounded by configuration: services, versions and policies that the control plane named, gRPC statuses, Envoy's flags.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar.telemetry.clusters import RESOURCES, ClusterState
from sidecar.telemetry.stats import BUCKETS_S, MAX_PEERS, OTHER_PEERS, CallStats, Stats

STATUS_NAMES = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
    "NOT_GRPC",
]


class StatsCollector(Collector):
    """Reads `Stats` for prometheus-client."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        labels = ["direction", "service", "version", "security"]
        requests = CounterMetricFamily(
            "remora_requests",
            "Finished calls, by grpc-status and Envoy response flag.",
            labels=[*labels, "grpc_status", "flags"],
        )
        durations = HistogramMetricFamily(
            "remora_request_duration_seconds", "From a call's first header to its status.", labels=labels
        )
        for key, calls in list(stats.calls.items()):
            for status, flag, count in _by_status(calls):
                requests.add_metric([*key, STATUS_NAMES[status], flag], count)
            total = 0
            buckets: list[tuple[str, float]] = []
            for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), calls.buckets, strict=True):
                total += count
                buckets.append((bound, float(total)))
            if total:
                durations.add_metric(list(key), buckets, sum_value=calls.sum_s)
        yield requests
        yield durations
        limited = CounterMetricFamily(
            "remora_rate_limited",
            "Calls that a rate limit refused (mode Enforce) or would have (Shadow).",
            labels=["policy", "mode"],
        )
        for policy, limit in list(stats.limits.items()):
            limited.add_metric([policy, "Enforce"], limit.refused)
            limited.add_metric([policy, "Shadow"], limit.would_refuse)
        yield limited
        yield from _of_filters(stats)
        peers = CounterMetricFamily(
            "remora_peer_calls",
            "Calls that came in, by whom the client's certificate is for, and what the connection is.",
            labels=["peer", "security"],
        )
        by_peer = Counter(dict(stats.peers))
        for identity, security, begun in stats.live_peers():
            by_peer[(identity, security) if len(by_peer) < MAX_PEERS else (OTHER_PEERS, security)] += begun
        for (identity, security), begun in by_peer.items():
            peers.add_metric([identity, security], begun)
        yield peers
        access = CounterMetricFamily(
            "remora_access",
            "Calls that access rules let pass or refused (mode Enforce), or would have (Shadow).",
            labels=["rules", "mode", "verdict"],
        )
        for rules, counted in list(stats.access.items()):
            access.add_metric([rules, "Enforce", "allowed"], counted.allowed)
            access.add_metric([rules, "Enforce", "denied"], counted.denied)
            access.add_metric([rules, "Shadow", "allowed"], counted.shadow_allowed)
            access.add_metric([rules, "Shadow", "denied"], counted.shadow_denied)
        yield access
        tokens = CounterMetricFamily(
            "remora_tokens", "Calls that a token was asked of: accepted, or why they were refused.", labels=["verdict"]
        )
        for verdict, count in list(stats.tokens.items()):
            tokens.add_metric([verdict], count)
        yield tokens
        retries = CounterMetricFamily("remora_retries", "Further tries of calls.", labels=["service", "reason"])
        for (service, reason), count in list(stats.retries.items()):
            retries.add_metric([service, reason], count)
        yield retries
        checks = CounterMetricFamily(
            "remora_health_changes", "Changes of health that active checks found.", labels=["service", "version", "to"]
        )
        for (service, version, failed), count in list(stats.checks.items()):
            checks.add_metric([service, version, "failing" if failed else "healthy"], count)
        yield checks
        faults = CounterMetricFamily("remora_faults", "Faults that were injected on purpose.", labels=["kind"])
        for kind, count in list(stats.faults.items()):
            faults.add_metric([kind], count)
        yield faults
        shed = CounterMetricFamily(
            "remora_shed",
            "Calls refused before a service is overloaded (mode Enforce), or that would have been (Shadow).",
            labels=["filter", "mode"],
        )
        for (name, is_enforced), count in list(stats.shed.items()):
            shed.add_metric([name, "Enforce" if is_enforced else "Shadow"], count)
        yield shed
        yield from _of_clusters(stats.clusters())
        yield CounterMetricFamily(
            "remora_protocol_errors", "Peers and requests that broke HTTP/2.", value=stats.protocol_errors
        )
        connections, running = stats.running()
        yield GaugeMetricFamily("remora_connections", "Connections of clients that are open.", value=connections)
        yield GaugeMetricFamily("remora_calls_running", "Calls that run, and opaque connections.", value=running)
        ended = CounterMetricFamily(
            "remora_ended", "Connections and calls that were ended because of a time.", labels=["why"]
        )
        for why, count in list(stats.ended.items()):
            ended.add_metric([why], count)
        yield ended
        opaque = CounterMetricFamily(
            "remora_tcp_connections", "Opaque connections, by Envoy response flag.", labels=["service", "flags"]
        )
        for (service, flag), count in list(stats.tcp.items()):
            opaque.add_metric([service, flag], count)
        yield opaque
        exceeded = CounterMetricFamily("remora_limit_exceeded", "Peers that ran into a limit.", labels=["limit"])
        for name, count in list(stats.exceeded.items()):
            exceeded.add_metric([name], count)
        yield exceeded
        yield CounterMetricFamily(
            "remora_connections_refused", "Connections over the limit of a listener.", value=stats.connections_refused
        )
        yield CounterMetricFamily(
            "remora_detect_timeouts",
            "Connections whose client did not say in time what it speaks.",
            value=stats.detect_timeouts,
        )
        yield CounterMetricFamily(
            "remora_no_filter_chain", "Connections that no filter chain took.", value=stats.no_filter_chain
        )
        yield CounterMetricFamily(
            "remora_tls_handshakes_failed",
            "TLS handshakes with clients that failed, and clients whose certificate names nobody that may come.",
            value=stats.handshakes_failed,
        )
        yield CounterMetricFamily(
            "remora_decision_misses", "Header blocks that had to be read.", value=stats.decision_misses
        )
        yield CounterMetricFamily(
            "remora_config_rejected",
            "Configurations of the control plane that were refused.",
            value=stats.config_rejected,
        )
        yield GaugeMetricFamily(
            "remora_control_plane_connected",
            "1 while the control plane can be reached.",
            value=stats.control_plane_connected,
        )


def _of_clusters(clusters: Iterable[ClusterState]) -> Iterator[Metric]:
    """Who is ejected, and how much more each cluster takes, where it is asked to say."""
    ejected = GaugeMetricFamily(
        "remora_outliers_ejected", "Endpoints that outlier detection keeps from calls.", labels=["service"]
    )
    found = CounterMetricFamily(
        "remora_outliers_detected",
        "Outliers that were detected, and ejected (mode Enforce) or not (Shadow).",
        labels=["service", "detector", "mode"],
    )
    overflows = CounterMetricFamily(
        "remora_outliers_kept", "Outliers that were not ejected because too many are already.", labels=["service"]
    )
    remaining = GaugeMetricFamily(
        "remora_limit_remaining",
        "How much more a cluster takes of what is limited, where track_remaining is set.",
        labels=["service", "priority", "limit"],
    )
    open_now = GaugeMetricFamily("remora_breaker_open", "1 while a breaker is not closed.", labels=["service"])
    opened = CounterMetricFamily("remora_breaker_opened", "Times that a breaker opened.", labels=["service"])
    refused = CounterMetricFamily(
        "remora_breaker_refused",
        "Calls that a breaker refused (mode Enforce), or would have (Shadow).",
        labels=["service", "mode"],
    )
    for cluster in clusters:
        breaker = cluster.breaker
        if breaker is not None:
            open_now.add_metric([cluster.service], breaker.state != "closed")
            opened.add_metric([cluster.service], breaker.opened)
            refused.add_metric([cluster.service, "Enforce" if breaker.is_enforced else "Shadow"], breaker.refused)
        if cluster.detections or cluster.ejected:
            ejected.add_metric([cluster.service], cluster.ejected)
            overflows.add_metric([cluster.service], cluster.overflows)
        for detector, is_enforced, count in cluster.detections:
            found.add_metric([cluster.service, detector, "Enforce" if is_enforced else "Shadow"], count)
        for limit in cluster.limits:
            for name, most, used in zip(RESOURCES, limit.limits, limit.used, strict=True):
                if limit.tracks_remaining:
                    remaining.add_metric([cluster.service, limit.priority, name], max(0, most - used))
    yield from (ejected, found, overflows, remaining, open_now, opened, refused)


def _by_status(calls: CallStats) -> Iterator[tuple[int, str, int]]:
    for status, count in enumerate(calls.statuses):
        if count:
            yield status, "", count
    for (status, flag), count in list(calls.flagged.items()):
        yield status, flag, count


def _of_filters(stats: Stats) -> Iterator[Metric]:
    """Filters in plain Python; nothing where there are none."""
    if not stats.filters:
        return
    calls = CounterMetricFamily(
        "remora_filter_calls", "Calls that a Python filter saw, by what came of it.", labels=["filter", "outcome"]
    )
    seconds = CounterMetricFamily("remora_filter_seconds", "Time spent in a Python filter.", labels=["filter"])
    overruns = CounterMetricFamily(
        "remora_filter_overruns", "Times that a Python filter took longer than its budget.", labels=["filter"]
    )
    off = CounterMetricFamily(
        "remora_filter_switched_off", "Times that a Python filter was switched off for that.", labels=["filter"]
    )
    for name, each in list(stats.filters.items()):
        for outcome in ("passed", "answered", "failed", "skipped"):
            calls.add_metric([name, outcome], getattr(each, outcome))
        seconds.add_metric([name], each.seconds)
        overruns.add_metric([name], each.overruns)
        off.add_metric([name], each.switched_off)
    yield from (calls, seconds, overruns, off)
