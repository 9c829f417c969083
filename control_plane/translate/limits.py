"""A rate limit as the configuration of an HTTP filter: Envoy's own where Envoy has one, the mesh's own where it has not."""

from typing import Any, Final

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.common.ratelimit.v3 import ratelimit_pb2
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2
from envoy.type.v3 import percent_pb2, token_bucket_pb2
from google.protobuf import duration_pb2, wrappers_pb2

from control_plane.translate.view import LimitView
from proto.mesh.v1 import filters_pb2, policy_pb2

_AS_BUCKET: Final = frozenset((policy_pb2.RateLimitPolicySpec.TokenBucket, policy_pb2.RateLimitPolicySpec.Gcra))
"""What Envoy's token bucket does exactly."""
_ONLY_HERE: Final = frozenset((policy_pb2.RateLimitPolicySpec.Concurrency,))
"""What Envoy has no local form for."""
WIDE_OPEN: Final = 2**31 - 1


def is_enforced_by(limit: LimitView, engine: str) -> bool:
    """False if a node of this kind cannot enforce a limit at all."""
    return engine == "remora" or limit.algorithm not in _ONLY_HERE


def is_exact_on(limit: LimitView, engine: str) -> bool:
    """False if a node of this kind enforces it only nearly: as a token bucket of the same rate."""
    return engine == "remora" or limit.algorithm in _AS_BUCKET


def filter_config(limit: LimitView, engine: str) -> Any:
    """The message for `typed_per_filter_config`; None if this kind of node has none for it."""
    if engine == "remora" and (limit.algorithm != policy_pb2.RateLimitPolicySpec.TokenBucket):
        return _own(limit)
    return _envoys(limit) if is_enforced_by(limit, engine) else None


def _interval(nanoseconds: int) -> duration_pb2.Duration:
    interval = duration_pb2.Duration()
    interval.FromNanoseconds(nanoseconds)
    return interval


def _own(limit: LimitView) -> Any:
    return filters_pb2.RateLimitFilter(
        policy=limit.policy,
        is_enforced=limit.is_enforced,
        algorithm=limit.algorithm,
        requests=limit.requests,
        interval=_interval(limit.interval_ns),
        burst=limit.burst,
        max_wait=_interval(limit.max_wait_ns),
        keys=[policy_pb2.LimitKey(header=header, source=source) for header, source in limit.keys],
        max_keys=limit.max_keys,
    )


def _envoys(limit: LimitView) -> Any:
    all_calls = base_pb2.RuntimeFractionalPercent(default_value=percent_pb2.FractionalPercent(numerator=100))
    none = base_pb2.RuntimeFractionalPercent(default_value=percent_pb2.FractionalPercent(numerator=0))
    bucket = token_bucket_pb2.TokenBucket(
        max_tokens=limit.burst,
        tokens_per_fill=wrappers_pb2.UInt32Value(value=limit.requests),
        fill_interval=_interval(limit.interval_ns),
    )
    message = local_rate_limit_pb2.LocalRateLimit(
        stat_prefix=limit.policy,
        token_bucket=bucket,
        filter_enabled=all_calls,
        filter_enforced=all_calls if limit.is_enforced else none,
        rate_limited_as_resource_exhausted=True,
    )
    if limit.keys:
        entries = [ratelimit_pb2.RateLimitDescriptor.Entry(key=_name(header, source)) for header, source in limit.keys]
        message.descriptors.add(entries=entries, token_bucket=bucket)
        message.rate_limits.add(actions=[_action(header, source) for header, source in limit.keys])
        message.max_dynamic_descriptors.value = limit.max_keys
        # Every call has a descriptor, so the bucket for the others is never asked; Envoy wants one all the same.
        message.always_consume_default_token_bucket.value = False
        message.token_bucket.max_tokens = message.token_bucket.tokens_per_fill.value = WIDE_OPEN
    return message


def _name(header: str, source: policy_pb2.LimitKey.Source.ValueType) -> str:
    return header or policy_pb2.LimitKey.Source.Name(source)


def _action(header: str, source: policy_pb2.LimitKey.Source.ValueType) -> Any:
    action = route_components_pb2.RateLimit.Action()
    if source == policy_pb2.LimitKey.RemoteAddress:
        action.remote_address.SetInParent()
    else:
        action.request_headers.header_name = ":path" if source == policy_pb2.LimitKey.Method else header
        action.request_headers.descriptor_key = _name(header, source)
    return action
