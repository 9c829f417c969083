"""What Envoy says about overloaded and failing endpoints to the proxy's configuration."""

from typing import Any, Final

from envoy.config.core.v3 import base_pb2
from google.protobuf import json_format

from proto.mesh.v1 import policy_pb2
from proto.mesh.v1.resilience_pb2 import CircuitBreakerPolicySpec
from sidecar.policy.breaker import BreakerConfig
from sidecar.policy.outlier import OutlierDetection
from sidecar.proxy.config import Budget, Thresholds
from sidecar.xds.supported import ConfigError
from sidecar.xds.values import number_or, seconds, seconds_or

BREAKER: Final = "remora.breaker"
PERCENTAGES: Final = (
    "max_ejection_percent",
    "enforcing_consecutive_5xx",
    "enforcing_consecutive_gateway_failure",
    "enforcing_success_rate",
    "enforcing_failure_percentage",
    "enforcing_consecutive_local_origin_failure",
    "enforcing_local_origin_success_rate",
    "enforcing_failure_percentage_local_origin",
    "failure_percentage_threshold",
)
COUNTS: Final = (
    "consecutive_5xx",
    "consecutive_gateway_failure",
    "consecutive_local_origin_failure",
    "success_rate_minimum_hosts",
    "success_rate_request_volume",
    "success_rate_stdev_factor",
    "failure_percentage_minimum_hosts",
    "failure_percentage_request_volume",
)
"""Fields of OutlierDetection that have the same name here."""


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


def breaker(metadata: Any, path: str) -> BreakerConfig | None:
    """The metadata `remora.breaker` of a cluster: a CircuitBreakerPolicySpec with `mode` and `breaker`, as JSON."""
    if BREAKER not in metadata.filter_metadata:
        return None
    spec = CircuitBreakerPolicySpec()
    place = f"{path}.filter_metadata[{BREAKER}]"
    try:
        json_format.ParseDict(json_format.MessageToDict(metadata.filter_metadata[BREAKER]), spec)
    except json_format.ParseError as error:
        raise ConfigError(place, f"is no CircuitBreakerPolicySpec: {error} (RMR0144)") from None
    given, base = spec.breaker, BreakerConfig()
    open_s = seconds_or(given, "open", base.open_s)
    window_s = seconds_or(given, "window", base.window_s)
    if open_s <= 0 or window_s <= 0:
        raise ConfigError(f"{place}.breaker", "open and window must be above 0 (RMR0144)")
    return BreakerConfig(
        window_s=window_s,
        minimum_calls=given.minimum_calls or base.minimum_calls,
        failure_percent=float(given.failure_percent or base.failure_percent),
        slow_s=seconds(given.slow_call),
        slow_percent=float(given.slow_percent or base.slow_percent),
        open_s=open_s,
        max_open_s=seconds_or(given, "max_open", max(base.max_open_s, open_s)),
        probes=given.probes or base.probes,
        is_enforced=spec.mode == policy_pb2.Enforce,
    )


def outlier_detection(message: Any, path: str) -> OutlierDetection:
    """cluster.v3.OutlierDetection."""
    base = OutlierDetection()
    base_s = seconds_or(message, "base_ejection_time", base.base_ejection_s)
    interval_s = seconds_or(message, "interval", base.interval_s)
    if interval_s <= 0:
        raise ConfigError(f"{path}.interval", f"{interval_s:g} s: above 0 is needed (RMR0140)")
    if base_s <= 0:
        raise ConfigError(f"{path}.base_ejection_time", f"{base_s:g} s: above 0 is needed (RMR0140)")
    for name in PERCENTAGES:
        if number_or(message, name, 0) > 100:
            raise ConfigError(f"{path}.{name}", f"{getattr(message, name).value}: at most 100 is possible (RMR0140)")
    return OutlierDetection(
        interval_s=interval_s,
        base_ejection_s=base_s,
        max_ejection_s=seconds_or(message, "max_ejection_time", max(base.max_ejection_s, base_s)),
        max_ejection_jitter_s=seconds_or(message, "max_ejection_time_jitter", base.max_ejection_jitter_s),
        max_ejection_percent=number_or(message, "max_ejection_percent", base.max_ejection_percent),
        always_ejects_one=bool(message.always_eject_one_host.value),
        splits_local_origin=message.split_external_local_origin_errors,
        uneject_on_check=message.successful_active_health_check_uneject_host.value
        if message.HasField("successful_active_health_check_uneject_host")
        else base.uneject_on_check,
        **{name: number_or(message, name, getattr(base, name)) for name in (*PERCENTAGES[1:], *COUNTS)},
    )


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
