"""What policies say of failing calls to Envoy's messages: limits, ejection and the breaker on a cluster; retries, times and faults on a route.

The breaker is nothing that Envoy has: it stands in the cluster's metadata, which engines that do not know it leave alone.
"""

from typing import Any, Final

from envoy.config.cluster.v3 import circuit_breaker_pb2, outlier_detection_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.common.fault.v3 import fault_pb2 as common_fault_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.type.matcher.v3 import string_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import any_pb2, json_format, wrappers_pb2

from proto.mesh.v1 import policy_pb2
from proto.mesh.v1.resilience_pb2 import Calling, CircuitBreakerPolicySpec, FaultPolicySpec, RetryPolicySpec

BREAKER: Final = "remora.breaker"
"""Key of a cluster's metadata; the value is a CircuitBreakerPolicySpec with `mode` and `breaker`, as JSON."""
HEDGE: Final = "remora.hedge"
"""Key of a route's metadata; the value is a RetryPolicySpec.Hedge, as JSON."""
FAULT_FILTER: Final = "fault"
MAX_REQUESTS: Final = 100_000
"""Wide enough not to be a limit by itself: limits are what a policy sets."""
RETRIES: Final = 2
SAFE: Final = ("connect-failure", "refused-stream", "reset-before-request")
"""Only where the call provably never reached the application."""
MAX_EJECTION_PERCENT: Final = 50
"""Envoy's own 10 would never eject one of three instances."""
MINIMUM_CALLS: Final = 50
MINIMUM_HOSTS: Final = 2
RETRY_PERCENT: Final = 20
RETRIES_AT_LEAST: Final = 3
_CONDITIONS: Final = {
    RetryPolicySpec.Reset: "reset",
    RetryPolicySpec.Unavailable: "unavailable",
    RetryPolicySpec.Cancelled: "cancelled",
    RetryPolicySpec.DeadlineExceeded: "deadline-exceeded",
    RetryPolicySpec.Internal: "internal",
    RetryPolicySpec.ResourceExhausted: "resource-exhausted",
}
_STATUSES: Final = [
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
]
_MILLION: Final = percent_pb2.FractionalPercent.MILLION


def _uint(value: int) -> wrappers_pb2.UInt32Value:
    return wrappers_pb2.UInt32Value(value=value)


# -- clusters -----------------------------------------------------------------------------------------


def protect(cluster: Any, breaking: bytes) -> None:
    """Put a CircuitBreakerPolicySpec on a cluster; empty bytes are no policy."""
    spec = CircuitBreakerPolicySpec.FromString(breaking)
    is_shadow = spec.mode == policy_pb2.Shadow
    limits = CircuitBreakerPolicySpec.Limits() if is_shadow else spec.limits
    threshold = circuit_breaker_pb2.CircuitBreakers.Thresholds(
        max_connections=_uint(limits.max_connections or MAX_REQUESTS),
        max_pending_requests=_uint(limits.max_pending_requests or MAX_REQUESTS),
        max_requests=_uint(limits.max_requests or MAX_REQUESTS),
        max_retries=_uint(MAX_REQUESTS),
    )
    if spec.HasField("limits") and not is_shadow:
        threshold.track_remaining = True
        threshold.retry_budget.budget_percent.value = limits.retry_budget_percent or RETRY_PERCENT
        threshold.retry_budget.min_retry_concurrency.value = RETRIES_AT_LEAST
    cluster.circuit_breakers.thresholds.append(threshold)
    if spec.HasField("ejection"):
        cluster.outlier_detection.CopyFrom(_ejection(spec.ejection, is_enforced=not is_shadow))
    if spec.HasField("breaker"):
        own = CircuitBreakerPolicySpec(mode=spec.mode, breaker=spec.breaker)
        cluster.metadata.filter_metadata[BREAKER].update(json_format.MessageToDict(own))


def _ejection(given: CircuitBreakerPolicySpec.Ejection, *, is_enforced: bool) -> Any:
    full = 100 if is_enforced else 0
    detection = outlier_detection_pb2.OutlierDetection(
        enforcing_consecutive_5xx=_uint(full),
        enforcing_success_rate=_uint(0),
        enforcing_failure_percentage=_uint(full if given.failure_percent else 0),
        max_ejection_percent=_uint(given.max_percent or MAX_EJECTION_PERCENT),
    )
    if given.consecutive_errors:
        detection.consecutive_5xx.value = given.consecutive_errors
    if given.failure_percent:
        detection.failure_percentage_threshold.value = given.failure_percent
        detection.failure_percentage_minimum_hosts.value = MINIMUM_HOSTS
        detection.failure_percentage_request_volume.value = given.minimum_calls or MINIMUM_CALLS
    for name, field in (
        ("interval", "interval"),
        ("base_time", "base_ejection_time"),
        ("max_time", "max_ejection_time"),
    ):
        if given.HasField(name):  # type: ignore[arg-type]
            getattr(detection, field).CopyFrom(getattr(given, name))
    return detection


# -- routes -------------------------------------------------------------------------------------------


def call(route: Any, calling: bytes) -> None:
    """Put retries, times and faults on a route to a service; empty bytes are what holds without a policy."""
    found = Calling.FromString(calling)
    route.route.retry_policy.CopyFrom(_retry(found.retry))
    if found.retry.HasField("hedge"):
        route.metadata.filter_metadata[HEDGE].update(json_format.MessageToDict(found.retry.hedge))
    if found.timeout.HasField("request"):
        route.route.timeout.CopyFrom(found.timeout.request)
    if found.timeout.HasField("idle"):
        route.route.idle_timeout.CopyFrom(found.timeout.idle)
    if found.HasField("fault"):
        packed = any_pb2.Any()
        packed.Pack(_fault(found.fault), deterministic=True)
        route.typed_per_filter_config[FAULT_FILTER].CopyFrom(packed)


def _retry(given: RetryPolicySpec) -> Any:
    previous = any_pb2.Any()
    previous.Pack(previous_hosts_pb2.PreviousHostsPredicate(), deterministic=True)
    words = [*SAFE, *dict.fromkeys(_CONDITIONS[each] for each in given.on if each in _CONDITIONS)]
    policy = route_components_pb2.RetryPolicy(
        retry_on=",".join(words),
        num_retries=_uint(given.retries if given.HasField("retries") else RETRIES),
        retry_host_predicate=[
            route_components_pb2.RetryPolicy.RetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts", typed_config=previous
            )
        ],
        host_selection_retry_max_attempts=5,
    )
    if given.HasField("per_try_timeout"):
        policy.per_try_timeout.CopyFrom(given.per_try_timeout)
    if given.HasField("backoff"):
        policy.retry_back_off.base_interval.CopyFrom(given.backoff)
        if given.HasField("max_backoff"):
            policy.retry_back_off.max_interval.CopyFrom(given.max_backoff)
    if given.idempotency_key and not given.idempotent:
        policy.retriable_request_headers.add(name=given.idempotency_key, present_match=True)
    return policy


def _fault(given: FaultPolicySpec) -> Any:
    fault = fault_pb2.HTTPFault()
    if given.HasField("delay"):
        fault.delay.CopyFrom(
            common_fault_pb2.FaultDelay(fixed_delay=given.delay.duration, percentage=_percent(given.delay))
        )
    if given.HasField("abort"):
        status = _STATUSES.index(given.abort.status) if given.abort.status in _STATUSES else _STATUSES.index("UNKNOWN")
        fault.abort.CopyFrom(fault_pb2.FaultAbort(grpc_status=status, percentage=_percent(given.abort)))
    for name, value in sorted(given.headers.items()):
        fault.headers.add(name=name, string_match=string_pb2.StringMatcher(exact=value))
    if given.max_active:
        fault.max_active_faults.value = given.max_active
    return fault


def _percent(part: FaultPolicySpec.Delay | FaultPolicySpec.Abort) -> percent_pb2.FractionalPercent:
    """Its share of the calls; what says nothing means all."""
    percent = part.percent if part.HasField("percent") else 100.0
    return percent_pb2.FractionalPercent(numerator=round(percent * 10_000), denominator=_MILLION)
