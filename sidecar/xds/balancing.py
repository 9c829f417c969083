"""Envoy's settings of load balancing to ours: a cluster's fields, the extensions that may stand in their place, labels of endpoints."""

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, Final

from envoy.config.cluster.v3 import cluster_pb2
from google.protobuf import struct_pb2

from sidecar.policy.balance import SlowStart
from sidecar.policy.balancing import Balance, Balancing, Fallback, Labels, Selector, Subsetting, ZoneAware
from sidecar.proxy.config import HashPolicy, HashSource
from sidecar.xds.supported import ConfigError, is_known, unpack
from sidecar.xds.values import number_or, rewriting, seconds

MAX_RING: Final = 8 * 1024 * 1024
MAX_TABLE: Final = 5_000_011
"""Envoy's own bounds."""
_POLICIES: Final = {
    cluster_pb2.Cluster.ROUND_ROBIN: Balance.ROUND_ROBIN,
    cluster_pb2.Cluster.RANDOM: Balance.RANDOM,
    cluster_pb2.Cluster.LEAST_REQUEST: Balance.LEAST_REQUEST,
    cluster_pb2.Cluster.RING_HASH: Balance.RING_HASH,
    cluster_pb2.Cluster.MAGLEV: Balance.MAGLEV,
}
_FALLBACKS: Final = (Fallback.NOTHING, Fallback.ANY, Fallback.DEFAULT)
_SELECTOR_FALLBACKS: Final = (None, *_FALLBACKS, Fallback.KEYS)


def balancing(message: Any, path: str) -> Balancing:
    """The fields of cluster.v3.Cluster that are about balancing."""
    common = message.common_lb_config
    panic = common.healthy_panic_threshold.value if common.HasField("healthy_panic_threshold") else 50.0
    if not 0.0 <= panic <= 100.0:
        raise ConfigError(f"{path}.common_lb_config.healthy_panic_threshold", f"{panic:g} is no percentage (RMR0116)")
    base = Balancing(panic_threshold=panic)
    if message.HasField("load_balancing_policy"):
        if message.HasField("lb_subset_config"):
            raise ConfigError(f"{path}.lb_subset_config", "does not count beside load_balancing_policy (RMR0116)")
        found = _first(base, message.load_balancing_policy, f"{path}.load_balancing_policy")
        # Envoy's extensions have settings of localities of their own; ours takes the cluster's.
        return _localities(found, common, f"{path}.common_lb_config") if found.policy is Balance.PEAK_EWMA else found
    if message.lb_policy not in _POLICIES:
        name = cluster_pb2.Cluster.LbPolicy.Name(message.lb_policy)
        known = ", ".join(cluster_pb2.Cluster.LbPolicy.Name(policy) for policy in _POLICIES)
        raise ConfigError(f"{path}.lb_policy", f"{name}: supported are {known} (RMR0116)")
    base = _localities(replace(base, policy=_POLICIES[message.lb_policy]), common, f"{path}.common_lb_config")
    if common.consistent_hashing_lb_config.use_hostname_for_hashing:
        base = replace(base, hashes_hostname=True)
    match message.lb_policy:
        case cluster_pb2.Cluster.ROUND_ROBIN:
            base = _slow_start(base, message.round_robin_lb_config, f"{path}.round_robin_lb_config")
        case cluster_pb2.Cluster.LEAST_REQUEST:
            base = _least_request(base, message.least_request_lb_config, f"{path}.least_request_lb_config")
        case cluster_pb2.Cluster.RING_HASH:
            base = _ring_hash(base, message.ring_hash_lb_config, f"{path}.ring_hash_lb_config")
        case cluster_pb2.Cluster.MAGLEV:
            base = _maglev(base, message.maglev_lb_config, f"{path}.maglev_lb_config")
    if message.HasField("lb_subset_config"):
        base = replace(base, subsetting=_subsetting(message.lb_subset_config, f"{path}.lb_subset_config"))
    return base


def _first(base: Balancing, message: Any, path: str) -> Balancing:
    """cluster.v3.LoadBalancingPolicy: the first that is known counts; those before it are for other engines."""
    names = []
    for number, item in enumerate(message.policies):
        packed = item.typed_extension_config.typed_config
        if is_known(packed):
            place = f"{path}.policies[{number}].typed_extension_config.typed_config"
            policy: Any = unpack(packed, place)
            convert = _EXTENSIONS.get(policy.DESCRIPTOR.name)
            if convert is not None:
                return convert(base, policy, place)
        names.append(packed.type_url.rpartition(".")[2] or "none")
    raise ConfigError(f"{path}.policies", f"none is supported: {', '.join(names) or 'it is empty'} (RMR0116)")


def _localities(base: Balancing, message: Any, path: str) -> Balancing:
    """CommonLbConfig, or LocalityLbConfig of an extension."""
    if message.HasField("locality_weighted_lb_config"):
        return replace(base, is_locality_weighted=True)
    if not message.HasField("zone_aware_lb_config"):
        return base
    zone = message.zone_aware_lb_config
    enabled = zone.routing_enabled.value if zone.HasField("routing_enabled") else 100.0
    if not 0.0 <= enabled <= 100.0:
        raise ConfigError(f"{path}.zone_aware_lb_config.routing_enabled", f"{enabled:g} is no percentage (RMR0116)")
    return replace(
        base,
        zone_aware=ZoneAware(enabled / 100.0, number_or(zone, "min_cluster_size", 6), zone.fail_traffic_on_panic),
    )


def _slow_start(base: Balancing, message: Any, path: str) -> Balancing:
    if not message.HasField("slow_start_config"):
        return base
    config = message.slow_start_config
    window = seconds(config.slow_start_window)
    aggression = config.aggression.default_value if config.HasField("aggression") else 1.0
    least = config.min_weight_percent.value if config.HasField("min_weight_percent") else 10.0
    if window < 0.001 or aggression <= 0.0 or not 0.0 <= least <= 100.0:
        raise ConfigError(
            f"{path}.slow_start_config",
            "a window of 1 ms or more, an aggression above 0 and a percentage are needed (RMR0116)",
        )
    return replace(base, slow_start=SlowStart(window, aggression, least / 100.0))


def _least_request(base: Balancing, message: Any, path: str) -> Balancing:
    choices = number_or(message, "choice_count", 2)
    bias = message.active_request_bias.default_value if message.HasField("active_request_bias") else 1.0
    if choices < 2:
        raise ConfigError(f"{path}.choice_count", f"{choices}: 2 or more are needed (RMR0116)")
    if bias < 0.0:
        raise ConfigError(f"{path}.active_request_bias", f"{bias:g}: 0 or more is needed (RMR0116)")
    base = _slow_start(base, message, path)
    return replace(base, policy=Balance.LEAST_REQUEST, choices=choices, active_request_bias=bias)


def _ring_hash(base: Balancing, message: Any, path: str) -> Balancing:
    least = number_or(message, "minimum_ring_size", 1024)
    most = number_or(message, "maximum_ring_size", MAX_RING)
    if message.hash_function not in _XX_HASH[message.DESCRIPTOR.full_name]:
        raise ConfigError(f"{path}.hash_function", "only XX_HASH is supported (RMR0116)")
    if not 1 <= least <= most <= MAX_RING:
        raise ConfigError(
            path, f"a ring of {least} to {most}: the sizes must be in order, and at most {MAX_RING} (RMR0116)"
        )
    return replace(base, policy=Balance.RING_HASH, min_ring_size=least, max_ring_size=most)


_XX_HASH: Final = {
    "envoy.config.cluster.v3.Cluster.RingHashLbConfig": (0,),
    "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash": (
        0,
        1,
    ),  # the first is the default, which is the same
}


def _maglev(base: Balancing, message: Any, path: str) -> Balancing:
    size = number_or(message, "table_size", 65_537)
    if size > MAX_TABLE or not _is_prime(size):
        raise ConfigError(f"{path}.table_size", f"{size}: a prime up to {MAX_TABLE} is needed (RMR0116)")
    return replace(base, policy=Balance.MAGLEV, table_size=size)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _subsetting(message: Any, path: str) -> Subsetting:
    selectors: list[Selector] = []
    for number, item in enumerate(message.subset_selectors):
        place = f"{path}.subset_selectors[{number}]"
        keys = tuple(sorted(set(item.keys)))
        fallback_keys = tuple(sorted(set(item.fallback_keys_subset)))
        fallback = _SELECTOR_FALLBACKS[item.fallback_policy]
        if fallback is Fallback.KEYS and not (fallback_keys and set(fallback_keys) < set(keys)):
            raise ConfigError(f"{place}.fallback_keys_subset", "some of the keys are needed, not all (RMR0116)")
        if fallback is not Fallback.KEYS and fallback_keys:
            raise ConfigError(f"{place}.fallback_keys_subset", "counts with KEYS_SUBSET only (RMR0116)")
        if keys:
            selectors.append(Selector(keys, fallback, fallback_keys))
    return Subsetting(
        selectors=tuple(selectors),
        fallback=_FALLBACKS[message.fallback_policy],
        default=labels(message.default_subset),
        keeps_locality_weights=message.locality_weight_aware,
        scales_locality_weights=message.scale_locality_weight,
        uses_any_in_panic=message.panic_mode_any,
        takes_lists_as_any=message.list_as_any,
    )


def labels(struct: struct_pb2.Struct) -> Labels:
    """A Struct as values that can be compared and looked up, in order of the names. A list becomes a tuple, and nothing else does."""
    return tuple(sorted(((name, _label(value)) for name, value in struct.fields.items()), key=lambda item: item[0]))


def _label(value: struct_pb2.Value) -> Hashable:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            return value.number_value
        case "bool_value":
            return b"true" if value.bool_value else b"false"  # True would be equal to 1
        case "list_value":
            return tuple(_label(item) for item in value.list_value.values)
        case "struct_value":
            return frozenset((name, _label(item)) for name, item in value.struct_value.fields.items())
    return None


# -- routes -------------------------------------------------------------------------------------------


def metadata_match(*messages: Any) -> Labels:
    """The subset that a route asks for, or one of its clusters: what is nearer to the cluster comes last, and counts."""
    found: dict[str, Hashable] = {}
    for message in messages:
        if "envoy.lb" in message.metadata_match.filter_metadata:
            found.update(labels(message.metadata_match.filter_metadata["envoy.lb"]))
    return tuple(sorted(found.items(), key=lambda item: item[0]))


def hash_policies(messages: Any, path: str) -> tuple[HashPolicy, ...]:
    """route.v3.RouteAction.hash_policy."""
    return tuple(_hash_policy(message, f"{path}[{number}]") for number, message in enumerate(messages))


def _hash_policy(message: Any, path: str) -> HashPolicy:
    terminal = message.terminal
    match message.WhichOneof("policy_specifier"):
        case "header":
            rewrite = message.header.regex_rewrite
            return HashPolicy(
                HashSource.HEADER,
                message.header.header_name.lower().encode(),
                terminal,
                rewrite=rewriting(rewrite, f"{path}.header.regex_rewrite")
                if message.header.HasField("regex_rewrite")
                else None,
            )
        case "cookie":
            cookie = message.cookie
            return HashPolicy(
                HashSource.COOKIE,
                cookie.name.encode(),
                terminal,
                cookie_ttl_s=int(seconds(cookie.ttl)) if cookie.HasField("ttl") else None,
                cookie_path=cookie.path.encode(),
                cookie_attributes=tuple((item.name.encode(), item.value.encode()) for item in cookie.attributes),
            )
        case "query_parameter":
            return HashPolicy(HashSource.QUERY, message.query_parameter.name.encode(), terminal)
        case "connection_properties" if message.connection_properties.source_ip:
            return HashPolicy(HashSource.CLIENT, is_terminal=terminal)
    raise ConfigError(path, "header, cookie, query_parameter or connection_properties.source_ip is needed (RMR0114)")


# -- extensions ---------------------------------------------------------------------------------------


def _round_robin_extension(base: Balancing, message: Any, path: str) -> Balancing:
    base = _localities(base, message.locality_lb_config, f"{path}.locality_lb_config")
    return _slow_start(replace(base, policy=Balance.ROUND_ROBIN), message, path)


def _random_extension(base: Balancing, message: Any, path: str) -> Balancing:
    return replace(_localities(base, message.locality_lb_config, f"{path}.locality_lb_config"), policy=Balance.RANDOM)


def _least_request_extension(base: Balancing, message: Any, path: str) -> Balancing:
    base = _least_request(_localities(base, message.locality_lb_config, f"{path}.locality_lb_config"), message, path)
    is_full = message.selection_method == 1 or message.enable_full_scan.value
    return replace(base, choices=0) if is_full else base


def _hashing(base: Balancing, message: Any) -> Balancing:
    return replace(
        base,
        hashes_hostname=message.consistent_hashing_lb_config.use_hostname_for_hashing,
        is_locality_weighted=message.HasField("locality_weighted_lb_config"),
    )


def _ring_hash_extension(base: Balancing, message: Any, path: str) -> Balancing:
    return _ring_hash(_hashing(base, message), message, path)


def _maglev_extension(base: Balancing, message: Any, path: str) -> Balancing:
    return _maglev(_hashing(base, message), message, path)


def _subset_extension(base: Balancing, message: Any, path: str) -> Balancing:
    inner = _first(base, message.subset_lb_policy, f"{path}.subset_lb_policy")
    if inner.subsetting is not None:
        raise ConfigError(f"{path}.subset_lb_policy", "subsets of subsets are not supported (RMR0116)")
    return replace(inner, subsetting=_subsetting(message, path))


def _peak_ewma_extension(base: Balancing, message: Any, path: str) -> Balancing:
    def positive(field: str, unset: float) -> float:
        value = seconds(getattr(message, field)) if message.HasField(field) else unset
        if value <= 0.0:
            raise ConfigError(f"{path}.{field}", "must be above 0 (RMR0116)")
        return value

    return replace(
        base,
        policy=Balance.PEAK_EWMA,
        is_locality_weighted=message.is_locality_weighted,
        zone_aware=ZoneAware(1.0 if message.min_zoned else 0.0, message.min_zoned),
        first_latency_s=positive("first_latency", base.first_latency_s),
        decay_s=positive("decay", base.decay_s),
        penalty_s=positive("penalty", base.penalty_s),
    )


_EXTENSIONS: Final[dict[str, Callable[[Balancing, Any, str], Balancing]]] = {
    "RoundRobin": _round_robin_extension,
    "Random": _random_extension,
    "LeastRequest": _least_request_extension,
    "RingHash": _ring_hash_extension,
    "Maglev": _maglev_extension,
    "Subset": _subset_extension,
    "PeakEwma": _peak_ewma_extension,
}
