"""What the proxy is told to do: frozen values, built by `sidecar.xds` from Envoy's messages.

Defaults are Envoy's, so that an unset field means the same in both engines.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from sidecar.http2.connection import Settings
from sidecar.policy.balancing import Assignment, Balancing, Labels
from sidecar.policy.breaker import BreakerConfig
from sidecar.policy.checking import Checking
from sidecar.policy.gradient import AdaptiveConcurrency as GradientConfig
from sidecar.policy.hosts import Health
from sidecar.policy.outlier import OutlierDetection
from sidecar.policy.zones import Locality


class Secret:
    """Bytes that no log, dump or traceback shows. Compared and hashed by value."""

    __slots__ = ("value",)

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "(secret)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


class TlsVersion(Enum):
    """What may be spoken; older ones are not (Envoy: tls.v3.TlsParameters)."""

    V1_2 = "TLSv1_2"
    V1_3 = "TLSv1_3"


@dataclass(frozen=True, slots=True)
class TlsCertificate:
    """What this side shows (Envoy: tls.v3.TlsCertificate), as PEM."""

    chain: bytes
    key: Secret


@dataclass(frozen=True, slots=True)
class SanMatch:
    """A name that the peer's certificate may be for (Envoy: tls.v3.SubjectAltNameMatcher). One of the four forms is set."""

    kind: str
    """DNS, URI, EMAIL or IP_ADDRESS."""
    exact: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    regex: str | None = None
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A secret that somebody else brings (Envoy: tls.v3.SdsSecretConfig)."""

    source: str
    """The static cluster whose endpoint serves it (SDS)."""
    name: str

    def __str__(self) -> str:
        return f'"{self.name}" from "{self.source}"'


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """TLS on a listener or to a cluster (Envoy: tls.v3.DownstreamTlsContext, UpstreamTlsContext).

    Certificates, keys and CAs are values: a rotated one makes a new configuration. Those that are referred to are in
    `Configuration.secrets`: a rotated one there changes neither listeners nor clusters, only what new connections use.
    """

    certificates: tuple[TlsCertificate, ...] = ()
    """At least one on a listener; one for each kind of key."""
    certificate_ref: SecretRef | None = None
    """Instead of `certificates`."""
    trust_ref: SecretRef | None = None
    """Instead of `trusted_ca`."""
    trusted_ca: bytes = b""
    """PEM; whom the peer's chain must lead to. Empty: on a listener clients are not asked, to a cluster anybody is taken."""
    sans: tuple[SanMatch, ...] = ()
    """One of these must be in the peer's certificate; empty for any. Needs `trusted_ca`."""
    alpn: tuple[str, ...] = ()
    """Protocols in the order of preference; to an HTTP/2 cluster `h2` if none is given."""
    minimum: TlsVersion = TlsVersion.V1_2
    maximum: TlsVersion = TlsVersion.V1_3
    requires_client_certificate: bool = False
    """A listener's clients must show a certificate, as they must where there are `sans`; otherwise one that is shown must be good."""
    sni: str = ""
    """The name that is sent to an endpoint; empty sends none."""

    @property
    def refs(self) -> tuple[SecretRef, ...]:
        """The secrets without which there is no connection."""
        return tuple(ref for ref in (self.certificate_ref, self.trust_ref) if ref is not None)

    @property
    def security(self) -> str:
        """Label of metrics for calls to endpoints: `mutual_tls` if this side shows a certificate, else `tls`."""
        return "mutual_tls" if self.certificates or self.certificate_ref is not None else "tls"


@dataclass(frozen=True, slots=True)
class TlsMatch:
    """How endpoints with these labels are spoken to (Envoy: cluster.v3.Cluster.TransportSocketMatch)."""

    name: str
    labels: tuple[tuple[str, Hashable], ...]
    """All of them must be the endpoint's."""
    tls: TlsConfig | None = None
    """None is plain text."""


@dataclass(frozen=True, slots=True)
class ConnectionLife:
    """How long connections live, and how it is found that a peer is gone (Envoy: core.v3.HttpProtocolOptions, KeepaliveSettings)."""

    idle_timeout_s: float = 3600.0
    """A connection without a call for so long is closed; 0 is never. Found within an eighth of it."""
    max_duration_s: float = 0.0
    """So old a connection takes no new calls and is closed when the running ones are over; 0 is never (Envoy: max_connection_duration)."""
    max_requests: int = 0
    """After so many calls a connection takes no more; 0 is no limit (Envoy: max_requests_per_connection)."""
    keepalive_interval_s: float = 0.0
    """How often a peer is asked for a sign of life by PING; 0 is never (Envoy: connection_keepalive.interval)."""
    keepalive_timeout_s: float = 0.0
    """A peer that has not answered by then is gone: the connection is cut, its calls fail with UNAVAILABLE."""
    keepalive_jitter: float = 0.15
    """Each interval is longer by chance, up to this share."""


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """One address behind a cluster (Envoy: endpoint.v3.LbEndpoint)."""

    host: str
    port: int
    weight: int = 1
    health: Health = Health.HEALTHY
    """What is not usable gets no new calls; running ones finish."""
    version: str = ""
    """From the metadata `envoy.lb`: label of metrics."""
    priority: int = 0
    """Level; 0 is used first."""
    locality: Locality = ("", "", "")
    locality_weight: int = 0
    """Of all endpoints of the locality together (Envoy: LocalityLbEndpoints.load_balancing_weight)."""
    labels: tuple[tuple[str, Hashable], ...] = ()
    """The metadata `envoy.lb`, for subsets."""
    hostname: str = ""
    tls_labels: tuple[tuple[str, Hashable], ...] = ()
    """The metadata `envoy.transport_socket_match`, for `ClusterConfig.tls_matches`."""


@dataclass(frozen=True, slots=True)
class LoadAssignment:
    """The endpoints of a cluster (Envoy: endpoint.v3.ClusterLoadAssignment)."""

    name: str
    endpoints: tuple[EndpointConfig, ...] = ()
    policy: Assignment = field(default_factory=Assignment)


class Codec(Enum):
    """Which HTTP is spoken (Envoy: HttpConnectionManager.codec_type, HttpProtocolOptions.explicit_http_config)."""

    AUTO = "auto"
    """On a listener: as ALPN said, or as the first bytes say."""
    HTTP1 = "http1"
    HTTP2 = "http2"


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds retries by the calls that run (Envoy: cluster.v3.CircuitBreakers.Thresholds.RetryBudget)."""

    percent: float = 20.0
    """Of the calls that run or wait; so many may be retries."""
    least: int = 3
    """So many may be, however few calls run."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How many calls a cluster takes at once, of one priority (Envoy: cluster.v3.CircuitBreakers.Thresholds)."""

    max_pending_requests: int = 1024
    """Calls that wait for a connection; one more is refused with flag UO."""
    max_requests: int = 1024
    """Calls at once; one more is refused with flag UO."""
    max_retries: int = 3
    """Retries at once, where there is no budget."""
    retry_budget: Budget | None = None
    """Bounds retries instead of `max_retries`."""
    tracks_remaining: bool = False
    """Metrics say how many more it takes."""


class CheckKind(Enum):
    """By what an endpoint is asked how it is."""

    GRPC = "grpc"
    """grpc.health.v1."""
    HTTP = "http"
    TCP = "tcp"


@dataclass(frozen=True, slots=True)
class CheckConfig:
    """An active health check (Envoy: core.v3.HealthCheck)."""

    kind: CheckKind
    timing: Checking
    host: str = ""
    """What the request is addressed to; empty is the cluster's name."""
    service: str = ""
    """The service that grpc.health.v1 is asked for."""
    path: str = ""
    method: str = "GET"
    codec: Codec = Codec.HTTP2
    expected: tuple[tuple[int, int], ...] = ()
    """HTTP statuses of success: from, and up to but not with."""
    retriable: tuple[tuple[int, int], ...] = ()
    """HTTP statuses that must come `unhealthy_threshold` times in a row to count."""
    send: bytes = b""
    receive: tuple[bytes, ...] = ()
    """TCP: the answer must contain these, in order."""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """A group of endpoints that take the same calls (Envoy: cluster.v3.Cluster)."""

    name: str
    connect_timeout_s: float = 5.0
    balancing: Balancing = field(default_factory=Balancing)
    endpoints: LoadAssignment = LoadAssignment("")
    """Static endpoints; empty for EDS."""
    eds_name: str | None = None
    """Name of the ClusterLoadAssignment that brings the endpoints; None for static ones."""
    internal_listener: str | None = None
    """Set if the cluster leads to a listener of this process (Envoy: core.v3.EnvoyInternalAddress)."""
    max_connections: int = 1024
    """Open connections to all endpoints (Envoy: circuit_breakers.thresholds, of priority DEFAULT: priorities share connections here)."""
    thresholds: Thresholds = Thresholds()
    high_thresholds: Thresholds = Thresholds()
    """For calls on routes of priority HIGH."""
    checks: tuple[CheckConfig, ...] = ()
    """Endpoints are asked how they are; all checks must be passed."""
    breaker: BreakerConfig | None = None
    """The classic breaker; Envoy has none (from the metadata `remora.breaker`)."""
    outlier_detection: OutlierDetection | None = None
    """When an endpoint is taken out of balancing for what it answers; None is never."""
    codec: Codec = Codec.HTTP2
    http2: Settings = field(default_factory=Settings)
    tls: TlsConfig | None = None
    """How endpoints are spoken to; None is plain text (Envoy: transport_socket)."""
    tls_matches: tuple[TlsMatch, ...] = ()
    """The first whose labels an endpoint has counts for it instead of `tls` (Envoy: transport_socket_matches)."""
    life: ConnectionLife = ConnectionLife()
    buffer_limit: int = 64 * 1024
    """Bytes that wait for an endpoint's socket before data is held back (Envoy: per_connection_buffer_limit_bytes, there 1 MiB if unset)."""


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
    contains: bytes | None = None
    between: tuple[int, int] | None = None
    """A whole number from the first up to, not with, the second."""
    ignore_case: bool = False
    """The patterns are in lower case then."""
    missing_is_empty: bool = False


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """What an HTTP filter is configured by: one dataclass per kind of filter, equal if they ask for the same."""


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """Which calls a route takes (Envoy: route.v3.RouteMatch). One of the path forms is set, or `connect`."""

    prefix: bytes | None = None
    path: bytes | None = None
    regex: str | None = None
    connect: bool = False
    headers: tuple[HeaderMatch, ...] = ()
    folder: bytes | None = None
    """The path itself, or all below it (Envoy: path_separated_prefix)."""
    ignore_case: bool = False
    """Of the path; the patterns are in lower case then."""
    query: tuple[HeaderMatch, ...] = ()
    """Conditions on parameters of the query, by name."""
    is_grpc: bool = False
    """gRPC calls only."""


class OnExisting(Enum):
    """What becomes of a header that is there already (Envoy: core.v3.HeaderValueOption.HeaderAppendAction)."""

    APPEND = "APPEND_IF_EXISTS_OR_ADD"
    KEEP = "ADD_IF_ABSENT"
    OVERWRITE = "OVERWRITE_IF_EXISTS_OR_ADD"
    OVERWRITE_ONLY = "OVERWRITE_IF_EXISTS"


@dataclass(frozen=True, slots=True)
class ValuePart:
    """A piece of a header's value: a text, or another header (Envoy: `%REQ(HEADER?OTHERWISE):LONGEST%`)."""

    text: bytes = b""
    header: bytes = b""
    otherwise: bytes = b""
    longest: int = 0
    """0: as it is."""


@dataclass(frozen=True, slots=True)
class HeaderChange:
    """A header that is set (Envoy: core.v3.HeaderValueOption)."""

    name: bytes
    value: tuple[ValuePart, ...]
    on_existing: OnExisting = OnExisting.APPEND
    keeps_empty: bool = False


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """Headers that are taken out, and then those that are set."""

    add: tuple[HeaderChange, ...] = ()
    remove: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Rewrite:
    """How path and authority go on (Envoy: route.v3.RouteAction). At most one form of each is set."""

    prefix: bytes | None = None
    """Instead of what the route matched."""
    pattern: str | None = None
    substitution: str = ""
    host: bytes | None = None
    host_header: bytes | None = None
    host_pattern: str | None = None
    """On the path."""
    host_substitution: str = ""


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """A cluster that gets copies of a share of the calls (Envoy: route.v3.RouteAction.RequestMirrorPolicy)."""

    cluster: str
    share: float = 1.0
    """0 to 1."""
    keeps_host: bool = False
    """False: the authority gets `-shadow`."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where else a client is sent (Envoy: route.v3.RedirectAction)."""

    status: int = 301
    scheme: bytes = b""
    host: bytes = b""
    port: int = 0
    path: bytes = b""
    rewrite: Rewrite | None = None
    strips_query: bool = False


@dataclass(frozen=True, slots=True)
class DirectResponse:
    """An answer without an upstream (Envoy: route.v3.DirectResponseAction)."""

    status: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class ResetHeader:
    """A header that says when a limit of rate ends (Envoy: route.v3.RetryPolicy.ResetHeader)."""

    name: bytes
    is_time: bool = False
    """Its value is a point in time (seconds since 1970) instead of a number of seconds."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a call that failed is tried again (Envoy: route.v3.RetryPolicy)."""

    on: tuple[str, ...] = ()
    """Conditions, of `sidecar.policy.retry.CONDITIONS`."""
    num_retries: int = 1
    per_try_timeout_s: float = 0.0
    """From the end of the request to the first of the answer, of each try; 0 is none."""
    per_try_idle_timeout_s: float = 0.0
    """Longest time without anything sent or received within a try; 0 is none."""
    status_codes: tuple[int, ...] = ()
    """HTTP statuses of the condition `retriable-status-codes`."""
    headers: tuple[HeaderMatch, ...] = ()
    """Of answers, for the condition `retriable-headers`; one is enough."""
    request_headers: tuple[HeaderMatch, ...] = ()
    """Only requests with one of these are tried again; empty: all."""
    backoff_base_s: float = 0.025
    """The wait before the first further try is up to this, by chance; it doubles."""
    backoff_max_s: float = 0.25
    reset_headers: tuple[ResetHeader, ...] = ()
    """Headers of an answer that say how long to wait, instead of the back-off (Envoy: rate_limited_retry_back_off)."""
    reset_max_s: float = 300.0
    """A header that asks for more is not followed."""
    avoid_previous_hosts: bool = False
    host_selection_attempts: int = 1
    """How often to draw again for a host that was not tried."""
    hedges: int = 0
    """Further tries that are begun beside those that run; the first answer counts (from the metadata `remora.hedge`; Envoy has none)."""
    hedge_delay_s: float = 0.0
    """Without an answer for so long, the next one is begun."""


class Algorithm(Enum):
    """How calls are counted. Envoy has the first; the others come from the mesh's own resources."""

    TOKEN_BUCKET = "token bucket"
    LEAKY_BUCKET = "leaky bucket"
    SLIDING_WINDOW = "sliding window"
    SLIDING_LOG = "sliding log"
    GCRA = "gcra"
    CONCURRENCY = "concurrency"


@dataclass(frozen=True, slots=True)
class LimiterConfig:
    """So many calls in so much time."""

    requests: int
    """In `interval_s`; with CONCURRENCY at once."""
    interval_s: float = 1.0
    burst: int = 0
    """Most calls at once (TOKEN_BUCKET: size of the bucket, GCRA); 0 is `requests`."""
    algorithm: Algorithm = Algorithm.TOKEN_BUCKET
    max_wait_s: float = 0.0
    """Longest time that a call is held (LEAKY_BUCKET)."""


class Said(Enum):
    """What an entry of a descriptor is made of (Envoy: route.v3.RateLimit.Action)."""

    HEADER = "request_headers"
    GENERIC = "generic_key"
    REMOTE_ADDRESS = "remote_address"
    HEADER_MATCH = "header_value_match"
    DESTINATION_CLUSTER = "destination_cluster"


@dataclass(frozen=True, slots=True)
class LimitAction:
    """Makes one entry of a descriptor (Envoy: route.v3.RateLimit.Action)."""

    said: Said
    key: str
    value: str = ""
    """Of the entry, where it does not depend on the call."""
    header: bytes = b""
    is_optional: bool = False
    """Without the header the entry is left out, not the whole descriptor."""
    is_empty_if_missing: bool = False
    """A call without the header has an empty value: no caller gets round a limit by leaving it out. Not in Envoy's form."""
    matches: tuple["HeaderMatch", ...] = ()
    expects_match: bool = True


@dataclass(frozen=True, slots=True)
class LimitActions:
    """Makes one descriptor of a call, in a stage (Envoy: route.v3.RateLimit)."""

    actions: tuple[LimitAction, ...]
    stage: int = 0


@dataclass(frozen=True, slots=True)
class LimitDescriptor:
    """Calls with this descriptor have a limit of their own (Envoy: extensions.common.ratelimit.v3.LocalRateLimitDescriptor)."""

    entries: tuple[tuple[str, str], ...]
    """Key and value; an empty value takes any, and each has its own count."""
    limiter: LimiterConfig


@dataclass(frozen=True, slots=True)
class LocalRateLimit(FilterConfig):
    """Limits of this process (Envoy: extensions.filters.http.local_ratelimit.v3.LocalRateLimit)."""

    stat_prefix: str
    limiter: LimiterConfig | None
    """For calls that no descriptor takes, or for all calls; None: these are not limited."""
    enabled: float = 0.0
    """Share of calls that are counted, 0 to 1."""
    enforced: float = 0.0
    """Share of those that are refused when the limit is reached, 0 to 1; 0 is shadow mode."""
    as_resource_exhausted: bool = False
    """Refuse with RESOURCE_EXHAUSTED instead of UNAVAILABLE."""
    descriptors: tuple[LimitDescriptor, ...] = ()
    actions: tuple[LimitActions, ...] = ()
    """Make descriptors of a call; empty: those of the route do."""
    stage: int = 0
    """Of the route's actions, those of this stage count."""
    counts_all: bool = True
    """`limiter` counts also what a descriptor takes (Envoy: always_consume_default_token_bucket)."""
    max_keys: int = 20
    """Of a descriptor with an empty value, so many values have a count of their own (Envoy: max_dynamic_descriptors)."""
    tells_limits: bool = False
    """Responses say limit, rest and time (Envoy: enable_x_ratelimit_headers)."""


@dataclass(frozen=True, slots=True)
class Fault(FilterConfig):
    """Delays and errors on purpose (Envoy: extensions.filters.http.fault.v3.HTTPFault)."""

    delay_s: float = 0.0
    delay_share: float = 0.0
    """Of the calls that are held for `delay_s`, 0 to 1."""
    delay_by_header: bool = False
    """`x-envoy-fault-delay-request` says how many milliseconds, `x-envoy-fault-delay-request-percentage` may lower the share."""
    delay_denominator: int = 100
    """What that header's number is a part of."""
    abort_http: int = 0
    """HTTP status of the error; 0 for none."""
    abort_grpc: int | None = None
    """gRPC status of the error, instead."""
    abort_share: float = 0.0
    """Of the calls that are answered with an error, 0 to 1; those that were held too."""
    abort_by_header: bool = False
    """`x-envoy-fault-abort-request` and `x-envoy-fault-abort-grpc-request` say with which status, `…-percentage` may lower the share."""
    abort_denominator: int = 100
    headers: tuple[HeaderMatch, ...] = ()
    """Only calls with all of these get a fault."""
    max_active: int | None = None
    """Calls with a fault that run at once; None is any number."""


GRPC_SUCCESS: Final = (0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 16)
"""What admission control takes for a success where nothing is said: what is the caller's fault, or nobody's."""


@dataclass(frozen=True, slots=True)
class AdmissionControl(FilterConfig):
    """Refuses calls by the share of failures (Envoy: extensions.filters.http.admission_control.v3.AdmissionControl)."""

    is_enabled: bool = True
    http_success: tuple[tuple[int, int], ...] = ((100, 500),)
    """From, and up to but not with, for what is not gRPC."""
    grpc_success: tuple[int, ...] = GRPC_SUCCESS
    window_s: float = 30.0
    threshold: float = 0.95
    """Share of successes from which on nothing is refused."""
    aggression: float = 1.0
    """Above 1 it refuses more, earlier."""
    rps_threshold: int = 0
    """With fewer calls a second nothing is refused."""
    max_rejection: float = 0.8
    """Largest share that is refused."""
    is_enforced: bool = True
    """False: counted, not refused."""


@dataclass(frozen=True, slots=True)
class AdaptiveConcurrency(FilterConfig):
    """Lets as many calls run as do not make them slower (Envoy: extensions.filters.http.adaptive_concurrency.v3)."""

    gradient: GradientConfig
    is_enabled: bool = True
    is_enforced: bool = True
    """False: counted, not refused."""


Overrides = tuple[tuple[str, FilterConfig], ...]
"""Filter's name and the configuration that counts instead of its own (Envoy: typed_per_filter_config)."""


class HashSource(Enum):
    """Of what a call's key is made (Envoy: route.v3.RouteAction.HashPolicy)."""

    HEADER = "header"
    COOKIE = "cookie"
    CLIENT = "source_ip"
    QUERY = "query_parameter"


@dataclass(frozen=True, slots=True)
class HashPolicy:
    """One part of a call's key for consistent hashing (Envoy: route.v3.RouteAction.HashPolicy)."""

    source: HashSource
    name: bytes = b""
    """Of the header, the cookie or the query parameter."""
    is_terminal: bool = False
    """If there is a key by now, later parts do not count."""
    rewrite: tuple[str, str] | None = None
    """Of a header's value: pattern and substitution."""
    cookie_ttl_s: int | None = None
    """A client without the cookie is given one for so long; 0 is for its session, None gives none."""
    cookie_path: bytes = b""
    cookie_attributes: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def header(self) -> bytes:
        """The header, lower case, in which it looks."""
        match self.source:
            case HashSource.COOKIE:
                return b"cookie"
            case HashSource.QUERY:
                return b":path"
            case HashSource.CLIENT:
                return b"x-forwarded-for"
        return self.name


@dataclass(frozen=True, slots=True)
class Route:
    """Where matching calls go (Envoy: route.v3.Route)."""

    match: RouteMatch
    clusters: tuple[tuple[str, int], ...]
    """Cluster names with weights above 0."""
    labels: tuple[Labels, ...] = ()
    """For each of `clusters` the subset that is asked for; empty if that is none (Envoy: metadata_match)."""
    hash_policies: tuple[HashPolicy, ...] = ()
    """Of what the key of a call is made, for clusters that choose by it."""
    name: str = ""
    timeout_s: float = 15.0
    """Longest time from the end of the request to the end of the response, seconds; 0 is none."""
    retry: RetryPolicy | None = None
    replay_limit: int | None = None
    """Bytes of a request that are kept for another try (Envoy: request_body_buffer_limit); unset, 64 KiB."""
    is_urgent: bool = False
    """Counts against the cluster's `high_thresholds` (Envoy: route.v3.RouteAction.priority)."""
    idle_timeout_s: float | None = None
    """Instead of the listener's `stream_idle_timeout_s`; 0 is never."""
    max_duration_s: float | None = None
    """Longest time from a call's first header to its end, instead of the listener's `max_stream_duration_s`; 0 is none."""
    grpc_timeout_max_s: float | None = None
    """`grpc-timeout` is honoured up to this, and instead of `max_duration_s`; 0 is without a bound. Unset, it is honoured as it is,
    beside `max_duration_s` (Envoy: max_stream_duration.grpc_timeout_header_max; there, unset, the header is left to the application)."""
    overrides: Overrides = ()
    limit_actions: tuple[LimitActions, ...] = ()
    """Make descriptors for rate limits; empty: those of the virtual host do (Envoy: rate_limits)."""
    request_changes: HeaderChanges = HeaderChanges()
    response_changes: HeaderChanges = HeaderChanges()
    rewrite: Rewrite | None = None
    answer: Redirect | DirectResponse | None = None
    """Instead of clusters."""
    mirrors: tuple[MirrorPolicy, ...] = ()


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """The routes of some authorities (Envoy: route.v3.VirtualHost)."""

    name: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...]
    overrides: Overrides = ()
    """Where a route has none of its own."""
    limit_actions: tuple[LimitActions, ...] = ()
    request_changes: HeaderChanges = HeaderChanges()
    response_changes: HeaderChanges = HeaderChanges()


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All virtual hosts of a listener (Envoy: route.v3.RouteConfiguration)."""

    name: str
    virtual_hosts: tuple[VirtualHost, ...] = ()
    validates_clusters: bool | None = None
    """Whether a cluster that is not there is refused with the table; unset, it is where both are static."""
    request_changes: HeaderChanges = HeaderChanges()
    """Those of route and virtual host come first."""
    response_changes: HeaderChanges = HeaderChanges()
    has_specific_last: bool = False
    """The changes of the route come last, and so win (Envoy: most_specific_header_mutations_wins)."""


@dataclass(frozen=True, slots=True)
class PythonFilter(FilterConfig):
    """A filter in plain Python, of an installed package (remora.mesh.v1.PythonFilter)."""

    name: str
    """Of its entry point."""
    settings: str = "{}"
    """What it is configured by, as JSON."""
    fails_closed: bool = False
    """Where it fails, or is off, calls are refused; else they go on without it."""
    budget_s: float = 0.005
    """A call of it that takes longer is an overrun."""
    max_overruns: int = 3
    """So many in a row switch it off."""
    off_s: float = 60.0
    """For so long; then it is tried again."""


@dataclass(frozen=True, slots=True)
class HttpFilter:
    """One step of the filter chain; virtual hosts and routes may give it another configuration by its name."""

    name: str
    config: FilterConfig | None = None
    """None: the filter does something only where a virtual host or a route configures it."""


@dataclass(frozen=True, slots=True)
class HttpManager:
    """How HTTP is spoken on a listener (Envoy: HttpConnectionManager)."""

    stat_prefix: str
    routes: RouteTable | None = None
    """Inline routes; None if `rds_name` brings them."""
    rds_name: str | None = None
    filters: tuple[HttpFilter, ...] = ()
    """In order; the router is always last and not listed."""
    takes_connect: bool = False
    upgrades: frozenset[str] = frozenset()
    """Protocols, lower case, to which an HTTP/1.1 client may go over; what follows is bytes (Envoy: upgrade_configs)."""
    codec: Codec = Codec.AUTO
    http2: Settings = field(default_factory=Settings)
    life: ConnectionLife = ConnectionLife()
    stream_idle_timeout_s: float = 300.0
    """A call in which neither side has sent anything for so long is ended; 0 is never. Found within a quarter of it."""
    max_stream_duration_s: float = 0.0
    """Longest time from a call's first header to its end; 0 is none."""
    delayed_close_s: float = 1.0
    """A client that broke the protocol gets so long to read why, before its socket is cut (Envoy: delayed_close_timeout)."""
    drain_timeout_s: float = 5.0
    """A client that was asked to go elsewhere opens no more calls once it answers our PING, and at the latest after so long."""


class Direction(Enum):
    """Whose calls a listener takes (Envoy: core.v3.TrafficDirection)."""

    UNSPECIFIED = "unspecified"
    INBOUND = "inbound"
    OUTBOUND = "outbound"


@dataclass(frozen=True, slots=True)
class TcpProxy:
    """Bytes to one cluster and back, whatever they say (Envoy: extensions.filters.network.tcp_proxy.v3.TcpProxy)."""

    stat_prefix: str
    cluster: str
    idle_timeout_s: float = 3600.0
    """A connection on which neither side sends for so long is closed; 0 is never."""
    max_connect_attempts: int = 1
    """Endpoints that are tried, one after the other, before the client's connection is closed."""


@dataclass(frozen=True, slots=True)
class ChainMatch:
    """Which connections a filter chain takes (Envoy: listener.v3.FilterChainMatch). What is empty takes all."""

    server_names: tuple[str, ...] = ()
    """Of TLS (SNI), lower case; `*.example.com` takes every name under it."""
    transport: str = ""
    """`tls` or `raw_buffer`."""
    applications: tuple[str, ...] = ()
    """From ALPN, or as the HTTP inspector found: `h2c`, `http/1.1`, `http/1.0`."""


@dataclass(frozen=True, slots=True)
class FilterChain:
    """What is spoken on connections of one kind (Envoy: listener.v3.FilterChain). One of `manager` and `tcp` is set."""

    name: str = ""
    match: ChainMatch = ChainMatch()
    manager: HttpManager | None = None
    tcp: TcpProxy | None = None
    tls: TlsConfig | None = None
    """None is plain text (Envoy: transport_socket)."""

    @property
    def stat_prefix(self) -> str:
        """Label of metrics."""
        return self.manager.stat_prefix if self.manager is not None else self.tcp.stat_prefix if self.tcp else ""


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """A socket, or an internal address, with what is spoken there (Envoy: listener.v3.Listener)."""

    name: str
    chains: tuple[FilterChain, ...]
    """Each takes what matches it; the most specific match wins, in the order server name, transport, application."""
    default_chain: FilterChain | None = None
    """For connections that none of `chains` takes; None closes them."""
    inspects_tls: bool = False
    """Read a TLS client's hello before choosing a chain (Envoy: tls_inspector)."""
    inspects_http: bool = False
    """Read the first line before choosing a chain (Envoy: http_inspector)."""
    inspect_timeout_s: float = 15.0
    """A client that has not said by then what it speaks is closed, or see `goes_on_after_timeout`; 0 waits for ever (Envoy: listener_filters_timeout)."""
    goes_on_after_timeout: bool = False
    """Choose by what is known then: for protocols in which the server speaks first (Envoy: continue_on_listener_filters_timeout)."""
    buffer_limit: int = 64 * 1024
    """Bytes that wait for a client's socket before data is held back (Envoy: per_connection_buffer_limit_bytes, there 1 MiB if unset)."""
    host: str = ""
    port: int = 0
    is_internal: bool = False
    direction: Direction = Direction.UNSPECIFIED

    @property
    def all_chains(self) -> tuple[FilterChain, ...]:
        """Every chain, the default one last."""
        return self.chains if self.default_chain is None else (*self.chains, self.default_chain)

    @property
    def rds_names(self) -> tuple[str, ...]:
        """Route tables that must come from the control plane."""
        managers = (chain.manager for chain in self.all_chains)
        return tuple(manager.rds_name for manager in managers if manager is not None and manager.rds_name is not None)


@dataclass(frozen=True, slots=True)
class Limits:
    """What strangers may take of this process, whatever the listener (Envoy: bootstrap.v3.LayeredRuntime; keys at each field)."""

    max_connections: int = 10_000
    """Open connections of a listener; one more is closed at once, the old ones live (`remora.max_connections`)."""
    listener_connections: tuple[tuple[str, int], ...] = ()
    """The same for one listener, by name (`envoy.resource_limits.listener.NAME.connection_limit`)."""
    max_buffered_bytes: int = 64 * 1024 * 1024
    """Of answers that a client's windows do not let through (`remora.max_buffered_bytes`). From a quarter of it on, streams from
    endpoints get narrow windows; above it, the stream that brings more is reset."""
    max_unread_bytes: int = 4 * 1024 * 1024
    """Answers to control frames and broken calls that gather while a peer reads nothing; more cuts its connection (`remora.max_unread_bytes`)."""
    max_control_frames_per_s: int = 10_000
    """Frames that cost us and carry nothing: PING, SETTINGS, PRIORITY, RST_STREAM, unknown (`remora.max_control_frames_per_second`)."""
    max_header_block_bytes: int = 128 * 1024
    """Of one header block with all its CONTINUATION frames; more ends the connection (`remora.max_header_block_bytes`)."""
    max_continuation_frames: int = 32
    """Of one header block; one more ends the connection (`remora.max_continuation_frames`)."""
    detect_timeout_s: int = 15
    """A connection that has not said which HTTP it speaks by then is closed (`remora.detect_timeout_seconds`)."""
    handshake_timeout_s: int = 15
    """A client whose TLS handshake is not over by then is closed (`remora.tls_handshake_timeout_seconds`)."""
    premature_resets: int = 500
    """A connection whose client reset so many calls early, half of all, is ended (`overload.premature_reset_total_stream_count`)."""
    premature_reset_s: float = 1.0
    """So young a call is reset early (`overload.premature_reset_min_stream_lifetime_seconds`)."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything at one moment: swapped, never edited."""

    listeners: tuple[ListenerConfig, ...] = ()
    clusters: tuple[ClusterConfig, ...] = ()
    route_tables: tuple[RouteTable, ...] = ()
    """Those that came by RDS."""
    endpoints: tuple[LoadAssignment, ...] = ()
    """Those that came by EDS."""
    local_cluster: str = ""
    """The cluster of the instances to which this process belongs; empty if it is not known (Envoy: local_cluster_name)."""
    locality: Locality = ("", "", "")
    """Where this process runs (Envoy: core.v3.Node.locality)."""
    secrets: tuple[tuple[SecretRef, TlsCertificate | bytes], ...] = ()
    """Those that came by SDS: certificates with their keys, and PEM of whom to trust."""

    @property
    def secret_refs(self) -> frozenset[SecretRef]:
        """The secrets that listeners and clusters refer to."""
        on_chains = (chain.tls for listener in self.listeners for chain in listener.all_chains)
        to_clusters = (
            tls for cluster in self.clusters for tls in (cluster.tls, *(each.tls for each in cluster.tls_matches))
        )
        return frozenset(ref for tls in (*on_chains, *to_clusters) if tls is not None for ref in tls.refs)
