"""The part of the table of supported fields that is about load balancing; see `supported`."""

from typing import Final

from envoy.extensions.load_balancing_policies.common.v3 import common_pb2
from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from envoy.extensions.load_balancing_policies.maglev.v3 import maglev_pb2
from envoy.extensions.load_balancing_policies.random.v3 import random_pb2
from envoy.extensions.load_balancing_policies.ring_hash.v3 import ring_hash_pb2
from envoy.extensions.load_balancing_policies.round_robin.v3 import round_robin_pb2
from envoy.extensions.load_balancing_policies.subset.v3 import subset_pb2

from proto.mesh.v1 import balancing_pb2

MODULES: Final = (
    balancing_pb2,
    common_pb2,
    least_request_pb2,
    maglev_pb2,
    random_pb2,
    ring_hash_pb2,
    round_robin_pb2,
    subset_pb2,
)

_CLUSTER: Final = "envoy.config.cluster.v3."
_ENDPOINT: Final = "envoy.config.endpoint.v3."
_ROUTE: Final = "envoy.config.route.v3."
_EXTENSION: Final = "envoy.extensions.load_balancing_policies."

FIELDS: Final[dict[str, str]] = {
    "envoy.config.core.v3.RuntimeDouble": "default_value runtime_key",
    _CLUSTER + "Cluster.CommonLbConfig": "healthy_panic_threshold zone_aware_lb_config locality_weighted_lb_config "
    "consistent_hashing_lb_config",
    _CLUSTER + "Cluster.CommonLbConfig.ZoneAwareLbConfig": "routing_enabled min_cluster_size fail_traffic_on_panic",
    _CLUSTER + "Cluster.CommonLbConfig.LocalityWeightedLbConfig": "",
    _CLUSTER + "Cluster.CommonLbConfig.ConsistentHashingLbConfig": "use_hostname_for_hashing",
    _CLUSTER + "Cluster.SlowStartConfig": "slow_start_window aggression min_weight_percent",
    _CLUSTER + "Cluster.RoundRobinLbConfig": "slow_start_config",
    _CLUSTER + "Cluster.LeastRequestLbConfig": "choice_count active_request_bias slow_start_config",
    _CLUSTER + "Cluster.RingHashLbConfig": "minimum_ring_size hash_function maximum_ring_size",
    _CLUSTER + "Cluster.MaglevLbConfig": "table_size",
    _CLUSTER + "Cluster.LbSubsetConfig": "fallback_policy default_subset subset_selectors locality_weight_aware "
    "scale_locality_weight panic_mode_any list_as_any",
    _CLUSTER + "Cluster.LbSubsetConfig.LbSubsetSelector": "keys fallback_policy fallback_keys_subset",
    _CLUSTER + "LoadBalancingPolicy": "policies",
    _CLUSTER + "LoadBalancingPolicy.Policy": "typed_extension_config",
    _EXTENSION + "common.v3.LocalityLbConfig": "zone_aware_lb_config locality_weighted_lb_config",
    _EXTENSION + "common.v3.LocalityLbConfig.ZoneAwareLbConfig": "routing_enabled min_cluster_size "
    "fail_traffic_on_panic",
    _EXTENSION + "common.v3.LocalityLbConfig.LocalityWeightedLbConfig": "",
    _EXTENSION + "common.v3.ConsistentHashingLbConfig": "use_hostname_for_hashing",
    _EXTENSION + "common.v3.SlowStartConfig": "slow_start_window aggression min_weight_percent",
    _EXTENSION + "round_robin.v3.RoundRobin": "slow_start_config locality_lb_config",
    _EXTENSION + "random.v3.Random": "locality_lb_config",
    _EXTENSION + "least_request.v3.LeastRequest": "choice_count active_request_bias slow_start_config "
    "locality_lb_config enable_full_scan selection_method",
    _EXTENSION + "ring_hash.v3.RingHash": "hash_function minimum_ring_size maximum_ring_size "
    "consistent_hashing_lb_config locality_weighted_lb_config",
    _EXTENSION + "maglev.v3.Maglev": "table_size consistent_hashing_lb_config locality_weighted_lb_config",
    _EXTENSION + "subset.v3.Subset": "fallback_policy default_subset subset_selectors locality_weight_aware "
    "scale_locality_weight panic_mode_any list_as_any subset_lb_policy",
    _EXTENSION + "subset.v3.Subset.LbSubsetSelector": "keys fallback_policy fallback_keys_subset",
    "envoy.config.bootstrap.v3.ClusterManager": "local_cluster_name",
    _ROUTE + "RouteAction.HashPolicy": "header cookie connection_properties query_parameter terminal",
    _ROUTE + "RouteAction.HashPolicy.Header": "header_name regex_rewrite",
    _ROUTE + "RouteAction.HashPolicy.Cookie": "name ttl path attributes",
    _ROUTE + "RouteAction.HashPolicy.CookieAttribute": "name value",
    _ROUTE + "RouteAction.HashPolicy.ConnectionProperties": "source_ip",
    _ROUTE + "RouteAction.HashPolicy.QueryParameter": "name",
    "envoy.type.matcher.v3.RegexMatchAndSubstitute": "pattern substitution",
    "remora.mesh.v1.PeakEwma": "first_latency decay penalty is_locality_weighted",
    _ENDPOINT + "ClusterLoadAssignment": "cluster_name endpoints policy",
    _ENDPOINT + "ClusterLoadAssignment.Policy": "overprovisioning_factor weighted_priority_health",
    _ENDPOINT + "LocalityLbEndpoints": "locality lb_endpoints load_balancing_weight priority",
}
