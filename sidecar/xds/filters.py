"""Envoy's HTTP filters to the proxy's configuration: the chain of a connection manager, and what hosts and routes configure instead."""

from collections.abc import Callable
from typing import Any, Final

from envoy.extensions.common.ratelimit.v3 import ratelimit_pb2

from proto.mesh.v1 import policy_pb2
from sidecar.proxy.config import (
    Algorithm,
    FilterConfig,
    HttpFilter,
    LimitAction,
    LimitActions,
    LimitDescriptor,
    LimiterConfig,
    LocalRateLimit,
    Overrides,
    Said,
)
from sidecar.xds.access import access, access_of_route
from sidecar.xds.faults import adaptive_concurrency, admission_control, fault
from sidecar.xds.matching import header_match
from sidecar.xds.python_filter import python_filter
from sidecar.xds.supported import ConfigError, unpack
from sidecar.xds.tokens import tokens, tokens_of_route
from sidecar.xds.values import fraction, number_or, seconds

DRAFT_03: Final = ratelimit_pb2.DRAFT_VERSION_03
_ALGORITHMS: Final = {
    policy_pb2.RateLimitPolicySpec.TokenBucket: Algorithm.TOKEN_BUCKET,
    policy_pb2.RateLimitPolicySpec.LeakyBucket: Algorithm.LEAKY_BUCKET,
    policy_pb2.RateLimitPolicySpec.SlidingWindow: Algorithm.SLIDING_WINDOW,
    policy_pb2.RateLimitPolicySpec.SlidingLog: Algorithm.SLIDING_LOG,
    policy_pb2.RateLimitPolicySpec.Gcra: Algorithm.GCRA,
    policy_pb2.RateLimitPolicySpec.Concurrency: Algorithm.CONCURRENCY,
}
MAX_STAGE: Final = 10
"""Envoy's own bound."""

MIN_FILL_INTERVAL_S: Final = 0.05
"""Envoy's own bound on a token bucket's fill interval."""


def http_filters(filters: Any, path: str) -> tuple[HttpFilter, ...]:
    """The HTTP filters of a connection manager, in order, without the router."""
    found: list[HttpFilter] = []
    for number, http_filter in enumerate(filters):
        place = f"{path}.http_filters[{number}].typed_config"
        message: Any = unpack(http_filter.typed_config, place)
        kind = message.DESCRIPTOR.name
        is_last = number == len(filters) - 1
        if (kind == "Router") != is_last:
            raise ConfigError(place, "the router, and only it, is the last filter (RMR0109)")
        if kind not in _READERS and not is_last:
            raise ConfigError(place, f"{kind} is no HTTP filter (RMR0109)")
        if not is_last:
            # Without a bucket it does something only where a host or a route gives it one (as in Envoy).
            is_idle = kind == "LocalRateLimit" and not message.HasField("token_bucket")
            is_idle = is_idle or (
                kind == "HTTPFault" and not message.HasField("delay") and not message.HasField("abort")
            )
            found.append(HttpFilter(http_filter.name, None if is_idle else _READERS[kind](message, place)))
    if not filters:
        raise ConfigError(f"{path}.http_filters", "the router is missing (RMR0109)")
    return tuple(found)


def overrides(configs: Any, path: str) -> Overrides:
    """`typed_per_filter_config` of a virtual host or a route."""
    found: list[tuple[str, FilterConfig]] = []
    for name in sorted(configs):
        place = f"{path}.typed_per_filter_config[{name}]"
        message: Any = unpack(configs[name], place)
        read = _READERS.get(message.DESCRIPTOR.name)
        if read is None:
            raise ConfigError(place, f"{message.DESCRIPTOR.name} is no configuration of an HTTP filter (RMR0109)")
        found.append((name, read(message, place)))
    return tuple(found)


def local_rate_limit(message: Any, path: str) -> LocalRateLimit:
    """extensions.filters.http.local_ratelimit.v3.LocalRateLimit."""
    descriptors = tuple(
        LimitDescriptor(
            tuple((entry.key, entry.value) for entry in item.entries),
            _bucket(item, f"{path}.descriptors[{number}]"),
        )
        for number, item in enumerate(message.descriptors)
    )
    _refuse_doubles(descriptors, f"{path}.descriptors")
    is_limited = message.HasField("token_bucket") or not descriptors
    if message.stage > MAX_STAGE:
        raise ConfigError(f"{path}.stage", f"{message.stage}: at most {MAX_STAGE} is possible (RMR0110)")
    base = LocalRateLimit("", None)
    return LocalRateLimit(
        stat_prefix=message.stat_prefix,
        limiter=_bucket(message, path) if is_limited else None,
        enabled=fraction(message.filter_enabled),
        enforced=fraction(message.filter_enforced),
        as_resource_exhausted=message.rate_limited_as_resource_exhausted,
        descriptors=descriptors,
        actions=limit_actions(message.rate_limits, f"{path}.rate_limits"),
        stage=message.stage,
        counts_all=message.always_consume_default_token_bucket.value
        if message.HasField("always_consume_default_token_bucket")
        else True,
        max_keys=number_or(message, "max_dynamic_descriptors", base.max_keys),
        tells_limits=message.enable_x_ratelimit_headers == DRAFT_03,
    )


def _bucket(message: Any, path: str) -> LimiterConfig:
    """The `token_bucket` of a message (type.v3.TokenBucket)."""
    bucket = message.token_bucket
    interval = seconds(bucket.fill_interval)
    if not message.HasField("token_bucket") or bucket.max_tokens < 1:
        raise ConfigError(f"{path}.token_bucket.max_tokens", f"{bucket.max_tokens}: at least 1 is needed (RMR0110)")
    if interval < MIN_FILL_INTERVAL_S:
        raise ConfigError(
            f"{path}.token_bucket.fill_interval",
            f"{interval:g} s: at least {MIN_FILL_INTERVAL_S:g} s is needed (RMR0110)",
        )
    fill = bucket.tokens_per_fill.value if bucket.HasField("tokens_per_fill") else 1
    if fill < 1:
        raise ConfigError(f"{path}.token_bucket.tokens_per_fill", f"{fill}: at least 1 is needed (RMR0110)")
    return LimiterConfig(fill, interval, bucket.max_tokens)


def _refuse_doubles(descriptors: tuple[LimitDescriptor, ...], path: str) -> None:
    seen: set[tuple[tuple[str, str], ...]] = set()
    for number, item in enumerate(descriptors):
        if not item.entries:
            raise ConfigError(f"{path}[{number}].entries", "at least one entry is needed (RMR0110)")
        if item.entries in seen:
            raise ConfigError(f"{path}[{number}]", "the same descriptor stands here twice (RMR0110)")
        seen.add(item.entries)


def limit_actions(messages: Any, path: str) -> tuple[LimitActions, ...]:
    """`rate_limits` of a virtual host, a route or a filter (route.v3.RateLimit)."""
    found = []
    for number, item in enumerate(messages):
        place = f"{path}[{number}]"
        stage = item.stage.value
        if stage > MAX_STAGE:
            raise ConfigError(f"{place}.stage", f"{stage}: at most {MAX_STAGE} is possible (RMR0110)")
        if not item.actions:
            raise ConfigError(f"{place}.actions", "at least one action is needed (RMR0110)")
        actions = tuple(_limit_action(action, f"{place}.actions[{n}]") for n, action in enumerate(item.actions))
        found.append(LimitActions(actions, stage))
    return tuple(found)


def _limit_action(message: Any, path: str) -> LimitAction:
    match message.WhichOneof("action_specifier"):
        case "request_headers":
            action = message.request_headers
            return LimitAction(
                Said.HEADER,
                action.descriptor_key,
                header=action.header_name.lower().encode(),
                is_optional=action.skip_if_absent,
            )
        case "generic_key":
            action = message.generic_key
            return LimitAction(Said.GENERIC, action.descriptor_key or "generic_key", action.descriptor_value)
        case "remote_address":
            return LimitAction(Said.REMOTE_ADDRESS, "remote_address")
        case "destination_cluster":
            return LimitAction(Said.DESTINATION_CLUSTER, "destination_cluster")
        case "header_value_match":
            action = message.header_value_match
            return LimitAction(
                Said.HEADER_MATCH,
                action.descriptor_key or "header_match",
                action.descriptor_value,
                matches=tuple(header_match(item, f"{path}.headers[{n}]") for n, item in enumerate(action.headers)),
                expects_match=action.expect_match.value if action.HasField("expect_match") else True,
            )
    raise ConfigError(path, "an action is missing (RMR0110)")


def own_rate_limit(message: Any, path: str) -> LocalRateLimit:
    """remora.mesh.v1.RateLimitFilter: limits for which Envoy has no form."""
    limiter = LimiterConfig(
        message.requests,
        seconds(message.interval),
        message.burst,
        _ALGORITHMS[message.algorithm],
        seconds(message.max_wait),
    )
    if limiter.requests < 1 or (limiter.interval_s < MIN_FILL_INTERVAL_S and message.HasField("interval")):
        raise ConfigError(path, f"{limiter.requests} in {limiter.interval_s:g} s is no rate (RMR0110)")
    actions = tuple(_key_action(key) for key in message.keys)
    entries = tuple((action.key, "") for action in actions)
    return LocalRateLimit(
        stat_prefix=message.policy,
        limiter=None if actions else limiter,
        enabled=1.0,
        enforced=1.0 if message.is_enforced else 0.0,
        as_resource_exhausted=True,
        descriptors=(LimitDescriptor(entries, limiter),) if actions else (),
        actions=(LimitActions(actions),) if actions else (),
        counts_all=False,
        max_keys=message.max_keys,
    )


def _key_action(key: Any) -> LimitAction:
    if key.source == policy_pb2.LimitKey.RemoteAddress:
        return LimitAction(Said.REMOTE_ADDRESS, "remote_address")
    header = b":path" if key.source == policy_pb2.LimitKey.Method else key.header.lower().encode()
    return LimitAction(Said.HEADER, header.decode(), header=header, is_empty_if_missing=True)


_READERS: Final[dict[str, Callable[[Any, str], FilterConfig]]] = {
    "AdaptiveConcurrency": adaptive_concurrency,
    "AdmissionControl": admission_control,
    "HTTPFault": fault,
    "JwtAuthentication": tokens,
    "PythonFilter": python_filter,
    "LocalRateLimit": local_rate_limit,
    "PerRouteConfig": tokens_of_route,
    "RBAC": access,
    "RBACPerRoute": access_of_route,
    "RateLimitFilter": own_rate_limit,
}
"""By name of the message."""
