"""What Envoy says about overloaded and failing endpoints to the proxy's configuration."""

from typing import Any

from envoy.config.core.v3 import base_pb2

from sidecar.proxy.config import Budget, Thresholds
from sidecar.xds.supported import ConfigError
from sidecar.xds.values import number_or


def thresholds(message: Any, path: str) -> tuple[int, dict[int, Thresholds]]:
    """cluster.v3.CircuitBreakers: most connections, and the limits of each priority."""
    found: dict[int, Thresholds] = {}
    connections = 1024
    for number, item in enumerate(message.thresholds):
        if item.priority in found:
            continue  # the first one counts, as in Envoy
        found[item.priority] = _thresholds(item, f"{path}.thresholds[{number}]")
        if item.priority == base_pb2.DEFAULT:
            connections = number_or(item, "max_connections", connections)
    unset = Thresholds()
    return connections, {priority: found.get(priority, unset) for priority in (base_pb2.DEFAULT, base_pb2.HIGH)}


def _thresholds(message: Any, path: str) -> Thresholds:
    base = Thresholds()
    if message.priority != base_pb2.DEFAULT and message.HasField("max_connections"):
        raise ConfigError(
            f"{path}.max_connections", "priorities share connections: set it for priority DEFAULT (RMR0118)"
        )
    budget = None
    if message.HasField("retry_budget"):
        unset = Budget()
        percent = message.retry_budget.budget_percent
        budget = Budget(
            percent=percent.value if message.retry_budget.HasField("budget_percent") else unset.percent,
            least=number_or(message.retry_budget, "min_retry_concurrency", unset.least),
        )
    return Thresholds(
        max_pending_requests=number_or(message, "max_pending_requests", base.max_pending_requests),
        max_requests=number_or(message, "max_requests", base.max_requests),
        max_retries=number_or(message, "max_retries", base.max_retries),
        retry_budget=budget,
        tracks_remaining=message.track_remaining,
    )
