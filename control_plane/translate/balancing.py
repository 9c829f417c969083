"""A LoadBalancingPolicySpec as Envoy has it: on the cluster, on its endpoints, on the routes that lead to it."""

from collections.abc import Iterable
from typing import Any, Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from google.protobuf import any_pb2, duration_pb2, json_format, wrappers_pb2
from xds.type.v3 import typed_struct_pb2

from control_plane.translate.view import EndpointView
from proto.mesh.v1 import balancing_pb2, policy_pb2

Locality = tuple[str, str, str]
_SPEC: Final = policy_pb2.LoadBalancingPolicySpec
_ALGORITHMS: Final = {
    _SPEC.RoundRobin: cluster_pb2.Cluster.ROUND_ROBIN,
    _SPEC.Random: cluster_pb2.Cluster.RANDOM,
    _SPEC.LeastRequest: cluster_pb2.Cluster.LEAST_REQUEST,
    _SPEC.RingHash: cluster_pb2.Cluster.RING_HASH,
    _SPEC.Maglev: cluster_pb2.Cluster.MAGLEV,
}

MIN_ZONED: Final = 2
"""Endpoints from which on zones are looked at."""


def _uint(number: int) -> wrappers_pb2.UInt32Value:
    return wrappers_pb2.UInt32Value(value=number)


def balance(cluster: Any, data: bytes) -> None:
    """Put a serialised spec into its cluster."""
    spec = _SPEC.FromString(data)
    common = cluster.common_lb_config
    # 0 is no panic: an endpoint that is draining or not healthy gets no calls, however few are left.
    common.healthy_panic_threshold.value = spec.panic_threshold
    if spec.algorithm == _SPEC.PeakEwma:  # which says the rest itself: Envoy refuses to be told twice
        cluster.load_balancing_policy.CopyFrom(_peak_ewma(spec))
        return
    if spec.locality_weights:
        common.locality_weighted_lb_config.SetInParent()
    else:
        _zones(common.zone_aware_lb_config, spec)
    cluster.lb_policy = _ALGORITHMS.get(spec.algorithm, cluster_pb2.Cluster.ROUND_ROBIN)
    if spec.algorithm == _SPEC.LeastRequest and spec.choices:
        cluster.least_request_lb_config.choice_count.value = spec.choices
    if spec.algorithm == _SPEC.RingHash and spec.ring_size:
        cluster.ring_hash_lb_config.minimum_ring_size.value = spec.ring_size
    if spec.HasField("slow_start"):
        owner = (
            cluster.least_request_lb_config if spec.algorithm == _SPEC.LeastRequest else cluster.round_robin_lb_config
        )
        owner.slow_start_config.slow_start_window.CopyFrom(spec.slow_start)


def _zones(config: Any, spec: policy_pb2.LoadBalancingPolicySpec) -> None:
    """Envoy looks at zones unless it is told not to, as soon as it knows its own."""
    config.routing_enabled.value = 100 if spec.prefer_zone else 0
    if spec.prefer_zone:
        config.min_cluster_size.value = MIN_ZONED


def _peak_ewma(spec: policy_pb2.LoadBalancingPolicySpec) -> Any:
    """Ours first, for sidecars that know it; what comes nearest in Envoy is the fewest calls of two.

    As a TypedStruct: an `Any` of a type that Envoy does not know would make its admin endpoint unable to show its configuration.
    """
    is_weighted = bool(spec.locality_weights)
    min_zoned = MIN_ZONED if spec.prefer_zone and not is_weighted else 0
    ours = balancing_pb2.PeakEwma(is_locality_weighted=is_weighted, min_zoned=min_zoned)
    for name in ("decay", "penalty"):
        if spec.HasField(name):
            getattr(ours, name).CopyFrom(getattr(spec, name))
    theirs = least_request_pb2.LeastRequest()
    if spec.locality_weights:
        theirs.locality_lb_config.locality_weighted_lb_config.SetInParent()
    else:
        _zones(theirs.locality_lb_config.zone_aware_lb_config, spec)
    policies = cluster_pb2.LoadBalancingPolicy()
    typed = typed_struct_pb2.TypedStruct(type_url=f"type.googleapis.com/{ours.DESCRIPTOR.full_name}")
    typed.value.update(json_format.MessageToDict(ours))
    for name, message in (("remora.peak_ewma", typed), ("envoy.load_balancing_policies.least_request", theirs)):
        packed = any_pb2.Any()
        packed.Pack(message, deterministic=True)
        policies.policies.add(typed_extension_config=extension_pb2.TypedExtensionConfig(name=name, typed_config=packed))
    return policies


class Places:
    """What a serialised spec says of localities."""

    def __init__(self, data: bytes) -> None:
        spec = _SPEC.FromString(data)
        self._failover = list(spec.failover)
        self._weights = dict(spec.locality_weights)

    def weight(self, locality: Locality, unset: int) -> wrappers_pb2.UInt32Value | None:
        """Of a locality; `unset` if the spec names no weights, None if it names others."""
        if not self._weights:
            return _uint(unset)
        name = max((name for name in self._weights if _is_in(locality, name)), key=len, default=None)
        return _uint(self._weights[name]) if name is not None else None

    def priority(self, locality: Locality, endpoints: Iterable[EndpointView]) -> int:
        """The level of a locality: levels are numbered without gaps, whatever is not there."""
        if not self._failover:
            return 0
        there = sorted({self._rank(endpoint.locality) for endpoint in endpoints})
        return there.index(self._rank(locality))

    def _rank(self, locality: Locality) -> int:
        return next((rank for rank, name in enumerate(self._failover) if _is_in(locality, name)), len(self._failover))


def _is_in(locality: Locality, name: str) -> bool:
    """True if a locality is what `REGION`, `REGION/ZONE` or `REGION/ZONE/SUBZONE` names, or lies there."""
    parts = name.split("/")
    return list(locality[: len(parts)]) == parts


def hash_policies(data: bytes) -> list[Any]:
    """Of what keys are made, from a spec that says only that."""
    found = []
    for key in _SPEC.FromString(data).hash_on:
        policy = route_components_pb2.RouteAction.HashPolicy(terminal=key.terminal)
        if key.header:
            policy.header.header_name = key.header
        elif key.cookie:
            policy.cookie.name = key.cookie
            if key.HasField("cookie_ttl"):
                policy.cookie.ttl.CopyFrom(duration_pb2.Duration(seconds=key.cookie_ttl.seconds))
        elif key.query_parameter:
            policy.query_parameter.name = key.query_parameter
        elif key.source == policy_pb2.HashKey.RemoteAddress:
            policy.connection_properties.source_ip = True
        else:
            policy.header.header_name = ":path"
        found.append(policy)
    return found
