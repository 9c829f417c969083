"""Envoy's filters that delay, abort and refuse calls to the proxy's configuration."""

from typing import Any, Final

from sidecar.policy.gradient import AdaptiveConcurrency as Gradient
from sidecar.proxy.config import AdaptiveConcurrency, AdmissionControl, Fault
from sidecar.xds.matching import header_match
from sidecar.xds.supported import ConfigError
from sidecar.xds.values import number_or, seconds, seconds_or

_DENOMINATORS: Final = {0: 100, 1: 10_000, 2: 1_000_000}
MIN_SUCCESS_RATE: Final = 1.0
"""Percent; Envoy's own bound."""


def fault(message: Any, path: str) -> Fault:
    """extensions.filters.http.fault.v3.HTTPFault."""
    delay, abort = message.delay, message.abort
    by = delay.WhichOneof("fault_delay_secifier")  # Envoy's own spelling
    if message.HasField("delay") and by is None:
        raise ConfigError(f"{path}.delay", "fixed_delay or header_delay is needed (RMR0142)")
    if by == "fixed_delay" and seconds(delay.fixed_delay) <= 0:
        raise ConfigError(f"{path}.delay.fixed_delay", f"{seconds(delay.fixed_delay):g} s: above 0 is needed (RMR0142)")
    kind = abort.WhichOneof("error_type")
    if message.HasField("abort") and kind is None:
        raise ConfigError(f"{path}.abort", "http_status, grpc_status or header_abort is needed (RMR0142)")
    if kind == "http_status" and not 200 <= abort.http_status < 600:
        raise ConfigError(f"{path}.abort.http_status", f"{abort.http_status}: 200 to 599 are possible (RMR0142)")
    if kind == "grpc_status" and abort.grpc_status > 16:
        raise ConfigError(f"{path}.abort.grpc_status", f"{abort.grpc_status}: 0 to 16 are possible (RMR0142)")
    return Fault(
        delay_s=seconds(delay.fixed_delay),
        delay_share=_share(delay.percentage),
        delay_by_header=by == "header_delay",
        delay_denominator=_DENOMINATORS[delay.percentage.denominator],
        abort_http=abort.http_status if kind == "http_status" else 0,
        abort_grpc=abort.grpc_status if kind == "grpc_status" else None,
        abort_share=_share(abort.percentage),
        abort_by_header=kind == "header_abort",
        abort_denominator=_DENOMINATORS[abort.percentage.denominator],
        headers=tuple(header_match(item, f"{path}.headers[{n}]") for n, item in enumerate(message.headers)),
        max_active=message.max_active_faults.value if message.HasField("max_active_faults") else None,
    )


def _share(percentage: Any) -> float:
    return min(1.0, float(percentage.numerator) / _DENOMINATORS[percentage.denominator])


def admission_control(message: Any, path: str) -> AdmissionControl:
    """extensions.filters.http.admission_control.v3.AdmissionControl."""
    base = AdmissionControl()
    criteria = message.success_criteria
    if message.WhichOneof("evaluation_criteria") is None:
        raise ConfigError(f"{path}.success_criteria", "is needed (RMR0143)")
    threshold = _percent(message, "sr_threshold", base.threshold)
    if threshold * 100.0 < MIN_SUCCESS_RATE:
        raise ConfigError(f"{path}.sr_threshold", f"{threshold * 100:g} %: at least 1 % is needed (RMR0143)")
    window_s = seconds_or(message, "sampling_window", base.window_s)
    if window_s < 1.0:
        raise ConfigError(f"{path}.sampling_window", f"{window_s:g} s: at least 1 s is needed (RMR0143)")
    grpc = tuple(criteria.grpc_criteria.grpc_success_status)
    http = tuple((item.start, item.end) for item in criteria.http_criteria.http_success_status)
    return AdmissionControl(
        is_enabled=_is_enabled(message),
        http_success=http or base.http_success,
        grpc_success=grpc or base.grpc_success,
        window_s=float(int(window_s)),
        threshold=threshold,
        aggression=max(1.0, message.aggression.default_value) if message.HasField("aggression") else base.aggression,
        rps_threshold=message.rps_threshold.default_value,
        max_rejection=_percent(message, "max_rejection_probability", base.max_rejection),
    )


def _percent(message: Any, name: str, unset: float) -> float:
    """A core.v3.RuntimePercent as a share."""
    return min(1.0, getattr(message, name).default_value.value / 100.0) if message.HasField(name) else unset


def _is_enabled(message: Any) -> bool:
    """A core.v3.RuntimeFeatureFlag in the field `enabled`."""
    flag = message.enabled
    return bool(flag.default_value.value) if message.HasField("enabled") and flag.HasField("default_value") else True


def adaptive_concurrency(message: Any, path: str) -> AdaptiveConcurrency:
    """extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency."""
    config = message.gradient_controller_config
    place = f"{path}.gradient_controller_config"
    if not message.HasField("gradient_controller_config"):
        raise ConfigError(place, "is needed (RMR0143)")
    limits, least = config.concurrency_limit_params, config.min_rtt_calc_params
    update_s = seconds(limits.concurrency_update_interval)
    if update_s <= 0:
        where = f"{place}.concurrency_limit_params.concurrency_update_interval"
        raise ConfigError(where, f"{update_s:g} s: above 0 is needed (RMR0143)")
    if not least.HasField("interval") and not least.HasField("fixed_value"):
        raise ConfigError(f"{place}.min_rtt_calc_params", "interval or fixed_value is needed (RMR0143)")
    base = Gradient(update_s)
    status = message.concurrency_limit_exceeded_status.code
    return AdaptiveConcurrency(
        Gradient(
            update_s,
            percentile=config.sample_aggregate_percentile.value / 100.0
            if config.HasField("sample_aggregate_percentile")
            else base.percentile,
            max_limit=number_or(limits, "max_concurrency_limit", base.max_limit),
            min_rtt_interval_s=0.0 if least.HasField("fixed_value") else seconds(least.interval),
            fixed_min_rtt_s=seconds(least.fixed_value),
            min_rtt_calls=number_or(least, "request_count", base.min_rtt_calls),
            min_rtt_jitter=least.jitter.value / 100.0 if least.HasField("jitter") else base.min_rtt_jitter,
            min_concurrency=number_or(least, "min_concurrency", base.min_concurrency),
            buffer=least.buffer.value / 100.0 if least.HasField("buffer") else base.buffer,
            refuses_with=status if status >= 400 else base.refuses_with,
        ),
        is_enabled=_is_enabled(message),
    )
