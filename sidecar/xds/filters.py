"""Envoy's HTTP filters to the proxy's configuration: the chain of a connection manager, and what hosts and routes configure instead."""

from collections.abc import Callable
from typing import Any, Final

from sidecar.proxy.config import FilterConfig, HttpFilter, LocalRateLimit, Overrides
from sidecar.xds.supported import ConfigError, unpack
from sidecar.xds.values import seconds

_DENOMINATORS: Final = {0: 100, 1: 10_000, 2: 1_000_000}
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


def _fraction(message: Any) -> float:
    value = message.default_value
    return min(1.0, float(value.numerator) / _DENOMINATORS[value.denominator])


def local_rate_limit(message: Any, path: str) -> LocalRateLimit:
    """extensions.filters.http.local_ratelimit.v3.LocalRateLimit."""
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
    return LocalRateLimit(
        stat_prefix=message.stat_prefix,
        max_tokens=bucket.max_tokens,
        tokens_per_fill=fill,
        fill_interval_s=interval,
        enabled=_fraction(message.filter_enabled),
        enforced=_fraction(message.filter_enforced),
        as_resource_exhausted=message.rate_limited_as_resource_exhausted,
    )


_READERS: Final[dict[str, Callable[[Any, str], FilterConfig]]] = {"LocalRateLimit": local_rate_limit}
"""By name of the message."""
