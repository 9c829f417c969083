"""What the proxy is told to do: frozen values, built by `sidecar.xds` from Envoy's messages.

Defaults are Envoy's, so that an unset field means the same in both engines.
"""

from dataclasses import dataclass, field
from enum import Enum

from sidecar.http2.connection import Settings


class Balance(Enum):
    """How an endpoint is chosen (Envoy: cluster.v3.Cluster.LbPolicy)."""

    ROUND_ROBIN = "round_robin"
    RANDOM = "random"
    LEAST_REQUEST = "least_request"


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """One address behind a cluster (Envoy: endpoint.v3.LbEndpoint)."""

    host: str
    port: int
    weight: int = 1
    is_usable: bool = True
    """False while its health is UNHEALTHY, DRAINING or TIMEOUT: no new calls, running ones finish."""
    version: str = ""
    """From the metadata `envoy.lb`: label of metrics."""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """A group of endpoints that take the same calls (Envoy: cluster.v3.Cluster)."""

    name: str
    connect_timeout_s: float = 5.0
    balance: Balance = Balance.ROUND_ROBIN
    endpoints: tuple[EndpointConfig, ...] = ()
    """Static endpoints; empty for EDS."""
    eds_name: str | None = None
    """Name of the ClusterLoadAssignment that brings the endpoints; None for static ones."""
    internal_listener: str | None = None
    """Set if the cluster leads to a listener of this process (Envoy: core.v3.EnvoyInternalAddress)."""
    max_connections: int = 1024
    """Open connections to all endpoints (Envoy: circuit_breakers.thresholds)."""
    max_pending_requests: int = 1024
    """Calls that wait for a connection; one more is refused with flag UO."""
    max_requests: int = 1024
    """Calls at once; one more is refused with flag UO."""
    max_retries: int = 3
    """Retries at once."""
    panic_threshold: float = 0.5
    """When the usable share of the endpoints is below this, all are used (Envoy: common_lb_config.healthy_panic_threshold)."""
    http2: Settings = field(default_factory=Settings)


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """A condition on one header (Envoy: route.v3.HeaderMatcher)."""

    name: bytes
    exact: bytes | None = None
    prefix: bytes | None = None
    suffix: bytes | None = None
    regex: str | None = None
    present: bool | None = None
    invert: bool = False


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """Which calls a route takes (Envoy: route.v3.RouteMatch). One of the path forms is set, or `connect`."""

    prefix: bytes | None = None
    path: bytes | None = None
    regex: str | None = None
    connect: bool = False
    headers: tuple[HeaderMatch, ...] = ()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a call that failed is tried again (Envoy: route.v3.RetryPolicy)."""

    on_connect_failure: bool = False
    """The connection could not be made."""
    on_refused_stream: bool = False
    """The peer said that it did not process the call (REFUSED_STREAM, GOAWAY)."""
    on_reset_before_request: bool = False
    """The connection ended before the call was sent."""
    num_retries: int = 1
    avoid_previous_hosts: bool = False
    host_selection_attempts: int = 1
    """How often to draw again for a host that was not tried."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where matching calls go (Envoy: route.v3.Route)."""

    match: RouteMatch
    clusters: tuple[tuple[str, int], ...]
    """Cluster names with weights above 0."""
    name: str = ""
    timeout_s: float = 15.0
    """Longest time for the whole response, seconds; 0 is none."""
    retry: RetryPolicy | None = None


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """The routes of some authorities (Envoy: route.v3.VirtualHost)."""

    name: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...]


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All virtual hosts of a listener (Envoy: route.v3.RouteConfiguration)."""

    name: str
    virtual_hosts: tuple[VirtualHost, ...] = ()


@dataclass(frozen=True, slots=True)
class LocalRateLimit:
    """A token bucket of this process (Envoy: extensions.filters.http.local_ratelimit.v3.LocalRateLimit)."""

    stat_prefix: str
    max_tokens: int
    tokens_per_fill: int
    fill_interval_s: float
    enabled: float = 0.0
    """Share of calls that are counted, 0 to 1."""
    enforced: float = 0.0
    """Share of those that are refused when the bucket is empty, 0 to 1; 0 is shadow mode."""
    as_resource_exhausted: bool = False
    """Refuse with RESOURCE_EXHAUSTED instead of UNAVAILABLE."""


@dataclass(frozen=True, slots=True)
class HttpManager:
    """How HTTP is spoken on a listener (Envoy: HttpConnectionManager)."""

    stat_prefix: str
    routes: RouteTable | None = None
    """Inline routes; None if `rds_name` brings them."""
    rds_name: str | None = None
    filters: tuple[LocalRateLimit, ...] = ()
    """In order; the router is always last and not listed."""
    takes_connect: bool = False
    http2: Settings = field(default_factory=Settings)
    stream_idle_timeout_s: float = 300.0
    """A stream without a byte for so long is ended; 0 is never."""


class Direction(Enum):
    """Whose calls a listener takes (Envoy: core.v3.TrafficDirection)."""

    UNSPECIFIED = "unspecified"
    INBOUND = "inbound"
    OUTBOUND = "outbound"


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """A socket, or an internal address, with what is spoken there (Envoy: listener.v3.Listener)."""

    name: str
    manager: HttpManager
    host: str = ""
    port: int = 0
    is_internal: bool = False
    direction: Direction = Direction.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything at one moment: swapped, never edited."""

    listeners: tuple[ListenerConfig, ...] = ()
    clusters: tuple[ClusterConfig, ...] = ()
    route_tables: tuple[RouteTable, ...] = ()
    """Those that came by RDS."""
    endpoints: tuple[tuple[str, tuple[EndpointConfig, ...]], ...] = ()
    """By name of the ClusterLoadAssignment."""
