"""Counters of the data path: plain numbers, written by one thread, read at scrape time.

A call costs one list look-up and one bisect here; names and labels are put to them only when somebody asks.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sidecar.telemetry.clusters import ClusterState

BUCKETS_S: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
"""Upper bounds of the latency histogram, seconds; one more bucket holds what is above."""

MAX_PEERS: Final = 1000
"""Identities of clients that are told apart."""
OTHER_PEERS: Final = "others"


class CallStats:
    """Calls of one (direction, service, version): by status and flag, and how long they took."""

    __slots__ = ("buckets", "flagged", "statuses", "sum_s")

    def __init__(self) -> None:
        self.statuses = [0] * 18
        """By grpc-status 0..16 for calls without a flag; 17 holds what is not a gRPC status."""
        self.flagged: dict[tuple[int, str], int] = {}
        """By (grpc-status, Envoy response flag)."""
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, status: int, flag: str, seconds: float) -> None:
        """Count one finished call."""
        if flag:
            key = (status, flag)
            self.flagged[key] = self.flagged.get(key, 0) + 1
        else:
            self.statuses[status] += 1
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds


@dataclass(slots=True)
class LimitStats:
    """What a rate limit did."""

    allowed: int = 0
    refused: int = 0
    would_refuse: int = 0
    held: int = 0


@dataclass(slots=True)
class AccessStats:
    """What access rules did, and what those on trial would have done."""

    allowed: int = 0
    denied: int = 0
    shadow_allowed: int = 0
    shadow_denied: int = 0


@dataclass(slots=True)
class FilterStats:
    """What a filter in plain Python did, and how long it took."""

    passed: int = 0
    answered: int = 0
    failed: int = 0
    skipped: int = 0
    """While it was off."""
    overruns: int = 0
    switched_off: int = 0
    seconds: float = 0.0


def _nothing_runs() -> tuple[int, int]:
    return 0, 0


def _no_clusters() -> list[ClusterState]:
    return []


def _no_peers() -> list[tuple[str, str, int]]:
    return []


@dataclass(slots=True)
class Stats:
    """All counters of a process."""

    calls: dict[tuple[str, str, str, str], CallStats] = field(default_factory=dict)
    """By (direction, service, version, security)."""
    limits: dict[str, LimitStats] = field(default_factory=dict)
    """By policy."""
    access: dict[str, AccessStats] = field(default_factory=dict)
    """By name of the rules (Envoy: rules_stat_prefix)."""
    filters: dict[str, FilterStats] = field(default_factory=dict)
    """Of filters in plain Python, by name."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Calls that a token was asked of, by verdict: `accepted`, `none` where it may be missing, or why not."""
    retries: dict[tuple[str, str], int] = field(default_factory=dict)
    """By (service, reason)."""
    checks: dict[tuple[str, str, bool], int] = field(default_factory=dict)
    """Changes of health that active checks found, by (service, version, to failing)."""
    faults: dict[str, int] = field(default_factory=dict)
    """Injected on purpose, by kind; `overflow`: not injected, as too many were active."""
    shed: dict[tuple[str, bool], int] = field(default_factory=dict)
    """Calls refused before a service is overloaded: by which filter, and whether it was enforced."""
    ended: dict[str, int] = field(default_factory=dict)
    """Connections and calls that were ended because of a time, by which."""
    peers: dict[tuple[str, str], int] = field(default_factory=dict)
    """Calls on inbound connections that have ended, by (the client's identity, security)."""
    live_peers: Callable[[], list[tuple[str, str, int]]] = _no_peers
    """Asked at scrape time: (identity, security, calls so far) of each inbound connection that is open."""
    tcp: dict[tuple[str, str], int] = field(default_factory=dict)
    """Opaque connections by (service, Envoy response flag)."""
    exceeded: dict[str, int] = field(default_factory=dict)
    """By the name of the limit that a peer ran into."""
    clusters: Callable[[], list[ClusterState]] = _no_clusters
    """Asked at scrape time: what the clusters are like."""
    running: Callable[[], tuple[int, int]] = _nothing_runs
    """Asked at scrape time: connections of clients that are open, and calls that run."""
    connections_refused: int = 0
    detect_timeouts: int = 0
    no_filter_chain: int = 0
    handshakes_failed: int = 0
    protocol_errors: int = 0
    decision_misses: int = 0
    config_rejected: int = 0
    control_plane_connected: int = 0

    def of_calls(self, direction: str, service: str, version: str, security: str = "") -> CallStats:
        """The counters for these labels, made at first use. `security` is what calls to an endpoint go over: empty is plain text."""
        key = (direction, service, version, security)
        found = self.calls.get(key)
        if found is None:
            found = self.calls[key] = CallStats()
        return found

    def of_limit(self, policy: str) -> LimitStats:
        """The counters of a policy, made at first use."""
        found = self.limits.get(policy)
        if found is None:
            found = self.limits[policy] = LimitStats()
        return found

    def of_filter(self, name: str) -> FilterStats:
        """The counters of a filter in plain Python, made at first use."""
        found = self.filters.get(name)
        if found is None:
            found = self.filters[name] = FilterStats()
        return found

    def count_peer(self, identity: str, security: str, calls: int) -> None:
        """An inbound connection has ended. Identities over the limit are counted together: whoever can make them has an authority."""
        key = (identity, security)
        if key not in self.peers and len(self.peers) >= MAX_PEERS:
            key = (OTHER_PEERS, security)
        self.peers[key] = self.peers.get(key, 0) + calls

    def of_access(self, rules: str) -> AccessStats:
        """The counters of some access rules, made at first use."""
        found = self.access.get(rules)
        if found is None:
            found = self.access[rules] = AccessStats()
        return found

    def count_token(self, verdict: str) -> None:
        """A call of which a token was asked passed, or was refused for a reason."""
        self.tokens[verdict] = self.tokens.get(verdict, 0) + 1

    def count_retry(self, service: str, reason: str) -> None:
        """One more try of a call."""
        key = (service, reason)
        self.retries[key] = self.retries.get(key, 0) + 1

    def count_check(self, service: str, version: str, *, failed: bool) -> None:
        """An active health check found an endpoint failing, or well again."""
        key = (service, version, failed)
        self.checks[key] = self.checks.get(key, 0) + 1

    def count_fault(self, kind: str) -> None:
        """A fault was injected on purpose."""
        self.faults[kind] = self.faults.get(kind, 0) + 1

    def count_shed(self, what: str, *, is_enforced: bool) -> None:
        """A call was refused, or would have been, before its service is overloaded."""
        key = (what, is_enforced)
        self.shed[key] = self.shed.get(key, 0) + 1

    def count_tcp(self, service: str, flag: str) -> None:
        """An opaque connection reached its endpoint, or did not, with Envoy's response flag."""
        key = (service, flag)
        self.tcp[key] = self.tcp.get(key, 0) + 1

    def count_ended(self, why: str) -> None:
        """A connection or a call was ended because of a time."""
        self.ended[why] = self.ended.get(why, 0) + 1

    def count_limit(self, name: str) -> None:
        """A peer ran into a limit."""
        self.exceeded[name] = self.exceeded.get(name, 0) + 1
