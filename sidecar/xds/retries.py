"""Envoy's retry policy to the proxy's."""

from dataclasses import replace
from typing import Any, Final

from google.protobuf import json_format

from proto.mesh.v1.resilience_pb2 import RetryPolicySpec
from sidecar.policy.retry import CONDITIONS
from sidecar.proxy.config import ResetHeader, RetryPolicy
from sidecar.xds.matching import header_match
from sidecar.xds.supported import ConfigError
from sidecar.xds.values import number_or, seconds, seconds_or

HEDGE: Final = "remora.hedge"
PREVIOUS_HOSTS: Final = "envoy.retry_host_predicates.previous_hosts"
BACKOFF_FACTOR: Final = 10
"""The longest back-off, in times of the first, where nothing is said."""


def retry_policy(message: Any, path: str) -> RetryPolicy:
    """route.v3.RetryPolicy."""
    conditions = tuple(condition.strip() for condition in message.retry_on.split(",") if condition.strip())
    for condition in conditions:
        if condition not in CONDITIONS:
            raise ConfigError(
                f"{path}.retry_on", f'"{condition}" is not supported; supported: {", ".join(CONDITIONS)} (RMR0115)'
            )
    for number, predicate in enumerate(message.retry_host_predicate):
        if predicate.name != PREVIOUS_HOSTS:
            raise ConfigError(
                f"{path}.retry_host_predicate[{number}]", f'"{predicate.name}" is not supported (RMR0115)'
            )
    base = RetryPolicy()
    backoff_base_s, backoff_max_s = _backoff(message, base, path)
    limited = message.rate_limited_retry_back_off
    if message.HasField("rate_limited_retry_back_off") and not limited.reset_headers:
        raise ConfigError(f"{path}.rate_limited_retry_back_off.reset_headers", "at least one is needed (RMR0115)")
    return RetryPolicy(
        on=conditions,
        num_retries=number_or(message, "num_retries", base.num_retries),
        per_try_timeout_s=seconds(message.per_try_timeout),
        per_try_idle_timeout_s=seconds(message.per_try_idle_timeout),
        status_codes=tuple(message.retriable_status_codes),
        headers=_matches(message.retriable_headers, f"{path}.retriable_headers"),
        request_headers=_matches(message.retriable_request_headers, f"{path}.retriable_request_headers"),
        backoff_base_s=backoff_base_s,
        backoff_max_s=backoff_max_s,
        reset_headers=tuple(
            ResetHeader(header.name.lower().encode(), is_time=bool(header.format)) for header in limited.reset_headers
        ),
        reset_max_s=seconds_or(limited, "max_interval", base.reset_max_s),
        avoid_previous_hosts=bool(message.retry_host_predicate),
        host_selection_attempts=int(message.host_selection_retry_max_attempts) or 1,
    )


def hedged(retry: RetryPolicy | None, metadata: Any, path: str) -> RetryPolicy | None:
    """With the metadata `remora.hedge` of a route: a RetryPolicySpec.Hedge, as JSON."""
    if HEDGE not in metadata.filter_metadata:
        return retry
    given = RetryPolicySpec.Hedge()
    place = f"{path}.filter_metadata[{HEDGE}]"
    try:
        json_format.ParseDict(json_format.MessageToDict(metadata.filter_metadata[HEDGE]), given)
    except json_format.ParseError as error:
        raise ConfigError(place, f"is no hedge of a RetryPolicySpec: {error} (RMR0144)") from None
    if seconds(given.delay) <= 0:
        raise ConfigError(f"{place}.delay", "must be above 0 (RMR0144)")
    return replace(retry or RetryPolicy(num_retries=0), hedges=given.tries or 1, hedge_delay_s=seconds(given.delay))


def _matches(messages: Any, path: str) -> Any:
    return tuple(header_match(message, f"{path}[{number}]") for number, message in enumerate(messages))


def _backoff(message: Any, base: RetryPolicy, path: str) -> tuple[float, float]:
    """Seconds of the first wait, at most, and of the longest."""
    if not message.HasField("retry_back_off"):
        return base.backoff_base_s, base.backoff_max_s
    first = seconds(message.retry_back_off.base_interval)
    if first < 0.001:
        raise ConfigError(f"{path}.retry_back_off.base_interval", f"{first:g} s: at least 1 ms is needed (RMR0115)")
    longest = seconds_or(message.retry_back_off, "max_interval", first * BACKOFF_FACTOR)
    if longest < first:
        raise ConfigError(
            f"{path}.retry_back_off.max_interval", f"{longest:g} s: less than base_interval, {first:g} s (RMR0115)"
        )
    return first, longest
