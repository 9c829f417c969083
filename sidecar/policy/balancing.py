"""How a cluster chooses its endpoints: frozen values, in Envoy's words and with Envoy's defaults."""

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum

from sidecar.policy.balance import SlowStart
from sidecar.policy.priority import OVERPROVISIONING

Labels = tuple[tuple[str, Hashable], ...]
"""Names and values, in order of the names."""


class Balance(Enum):
    """How one of several hosts is chosen (Envoy: cluster.v3.Cluster.LbPolicy)."""

    ROUND_ROBIN = "round_robin"
    RANDOM = "random"
    LEAST_REQUEST = "least_request"
    RING_HASH = "ring_hash"
    MAGLEV = "maglev"
    PEAK_EWMA = "peak_ewma"
    """Not in Envoy."""


class Fallback(Enum):
    """What a call gets whose subset is not there (Envoy: LbSubsetFallbackPolicy)."""

    NOTHING = "no_fallback"
    ANY = "any_endpoint"
    DEFAULT = "default_subset"
    KEYS = "keys_subset"
    """Only of a selector: look again, by fewer keys."""


@dataclass(frozen=True, slots=True)
class Selector:
    """Names of labels by which hosts are put into subsets (Envoy: LbSubsetSelector)."""

    keys: tuple[str, ...]
    """In order."""
    fallback: Fallback | None = None
    """Instead of the cluster's."""
    fallback_keys: tuple[str, ...] = ()
    """For KEYS: some of `keys`, in order."""


@dataclass(frozen=True, slots=True)
class Subsetting:
    """Subsets of a cluster by labels (Envoy: cluster.v3.Cluster.LbSubsetConfig)."""

    selectors: tuple[Selector, ...] = ()
    fallback: Fallback = Fallback.NOTHING
    default: Labels = ()
    """Labels of the default subset."""
    keeps_locality_weights: bool = False
    """Envoy: locality_weight_aware."""
    scales_locality_weights: bool = False
    """A locality's weight counts for the part of its hosts that is in the subset (Envoy: scale_locality_weight)."""
    uses_any_in_panic: bool = False
    """Where even the fallback has nobody, any host will do (Envoy: panic_mode_any)."""
    takes_lists_as_any: bool = False
    """A label that is a list stands for each of its values (Envoy: list_as_any)."""


@dataclass(frozen=True, slots=True)
class ZoneAware:
    """Calls stay in their zone as far as that is fair (Envoy: ZoneAwareLbConfig)."""

    enabled: float = 1.0
    """Share of the calls, 0 to 1."""
    min_cluster_size: int = 6
    """Fewer healthy hosts are used without regard to zones."""
    fails_in_panic: bool = False
    """In a panic calls fail, instead of going to all hosts (Envoy: fail_traffic_on_panic)."""


@dataclass(frozen=True, slots=True)
class Balancing:
    """All settings of a cluster's balancer."""

    policy: Balance = Balance.ROUND_ROBIN
    choices: int = 2
    """Hosts that LEAST_REQUEST draws; 0 looks at all (Envoy: choice_count, selection_method)."""
    active_request_bias: float = 1.0
    """How much running calls count beside weights (LEAST_REQUEST)."""
    slow_start: SlowStart | None = None
    """For ROUND_ROBIN and LEAST_REQUEST."""
    min_ring_size: int = 1024
    max_ring_size: int = 8 * 1024 * 1024
    table_size: int = 65_537
    """Of MAGLEV; a prime."""
    hashes_hostname: bool = False
    """Hosts are hashed by their names instead of by their addresses (Envoy: use_hostname_for_hashing)."""
    first_latency_s: float = 0.03
    """Of a host of which nothing is known (PEAK_EWMA)."""
    decay_s: float = 10.0
    """An answer still counts for 1/e after so long (PEAK_EWMA)."""
    penalty_s: float = 5.0
    """An answer RESOURCE_EXHAUSTED or UNAVAILABLE counts as so slow, or as the push-back that it gives (PEAK_EWMA)."""
    panic_threshold: float = 50.0
    """Percent of usable hosts below which all are used; 0 is never (Envoy: healthy_panic_threshold)."""
    is_locality_weighted: bool = False
    """Localities get calls by their weights (Envoy: locality_weighted_lb_config)."""
    zone_aware: ZoneAware = ZoneAware()
    """Counts where the process's own cluster is known and localities are not weighted."""
    subsetting: Subsetting | None = None

    @property
    def is_hashed(self) -> bool:
        """True if a call's key decides."""
        return self.policy in (Balance.RING_HASH, Balance.MAGLEV)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What comes with the endpoints (Envoy: ClusterLoadAssignment.Policy)."""

    overprovisioning: int = OVERPROVISIONING
    counts_weights: bool = False
    """A level's health goes by its hosts' weights (Envoy: weighted_priority_health)."""
