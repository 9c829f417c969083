"""What Envoy's messages become, and which values are refused: with the place, the value, and what would be right."""

import re
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import pytest

from sidecar.http2.connection import Settings
from sidecar.policy.balance import SlowStart
from sidecar.policy.balancing import Balance, Balancing
from sidecar.policy.breaker import BreakerConfig
from sidecar.policy.checking import Checking
from sidecar.policy.gradient import AdaptiveConcurrency as Gradient
from sidecar.policy.hosts import Health
from sidecar.policy.outlier import OutlierDetection
from sidecar.policy.tokens import Demands
from sidecar.proxy.access import (
    Access,
    AccessPolicy,
    AccessRules,
    Action,
    AddressIn,
    All,
    Always,
    ClaimIs,
    End,
    HeaderIs,
    Network,
    Not,
    PathIs,
    PeerIs,
    PortIn,
    ServerNameIs,
    Some,
)
from sidecar.proxy.config import (
    AdaptiveConcurrency,
    AdmissionControl,
    Algorithm,
    Budget,
    CheckConfig,
    CheckKind,
    ClusterConfig,
    Codec,
    ConnectionLife,
    Direction,
    DirectResponse,
    EndpointConfig,
    Fault,
    HashPolicy,
    HashSource,
    HeaderChange,
    HeaderChanges,
    HeaderMatch,
    HttpFilter,
    LimitAction,
    LimitActions,
    LimitDescriptor,
    LimiterConfig,
    LoadAssignment,
    LocalRateLimit,
    MirrorPolicy,
    OnExisting,
    PythonFilter,
    Redirect,
    ResetHeader,
    RetryPolicy,
    Rewrite,
    Route,
    RouteMatch,
    Said,
    SecretRef,
    Thresholds,
    ValuePart,
)
from sidecar.proxy.tokens import AllOf, AnyOf, Optional, TokenOf, TokenProvider, TokenRule, Tokens, TokensOfRoute
from sidecar.xds.bootstrap import load, parse
from sidecar.xds.supported import ConfigError
from tests.sidecar import bootstraps
from tests.sidecar.bootstraps import ABSENT, changed
from tests.sidecar.xds.everything import document

CLUSTER: Final = "static_resources.clusters"
LISTENER: Final = "static_resources.listeners[0]"
MANAGER: Final = f"{LISTENER}.filter_chains[0].filters[0].typed_config"
HOST: Final = f"{MANAGER}.route_config.virtual_hosts[0]"
ROUTE: Final = f"{HOST}.routes[0]"
LIMIT: Final = f"{MANAGER}.http_filters[0].typed_config"
OPTIONS: Final = "typed_extension_protocol_options.envoy/extensions/upstreams/http/v3/HttpProtocolOptions"


REFUSED: Final[dict[str, tuple[str, Any, str]]] = {
    "a balancer that is not there": (
        f"{CLUSTER}[0].lb_policy",
        "CLUSTER_PROVIDED",
        "cluster[stock].lb_policy: CLUSTER_PROVIDED: supported are ROUND_ROBIN",
    ),
    "a cluster by DNS": (f"{CLUSTER}[1].type", "STRICT_DNS", "cluster[accounts].type: STRICT_DNS: STATIC and EDS"),
    "a name for an address": (
        f"{CLUSTER}[1].load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
        "localhost",
        'load_assignment[accounts].endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: "localhost" is no IP address',
    ),
    "a port above 65535": (
        f"{CLUSTER}[1].load_assignment.endpoints[0].lb_endpoints[1].endpoint.address.socket_address.port_value",
        70_000,
        "load_assignment[accounts].endpoints[0].lb_endpoints[1].endpoint.address.socket_address.port_value: 70000 is no port",
    ),
    "UDP": (f"{LISTENER}.address.socket_address.protocol", "UDP", "listener[outbound].address: a TCP socket_address"),
    "an endpoint of no weight": (
        f"{CLUSTER}[1].load_assignment.endpoints[0].lb_endpoints[0].load_balancing_weight",
        0,
        "load_assignment[accounts].endpoints[0].lb_endpoints[0].load_balancing_weight: 0: 1 or more",
    ),
    "a level that is out of bounds": (
        f"{CLUSTER}[1].load_assignment.endpoints[0].priority",
        129,
        "load_assignment[accounts].endpoints[0].priority: 129: 0 to 128",
    ),
    "no overprovisioning": (
        f"{CLUSTER}[1].load_assignment.policy.overprovisioning_factor",
        0,
        "load_assignment[accounts].policy.overprovisioning_factor: 0: 1 or more",
    ),
    "a panic that is no percentage": (
        f"{CLUSTER}[0].common_lb_config.healthy_panic_threshold",
        {"value": 101},
        "cluster[stock].common_lb_config.healthy_panic_threshold: 101 is no percentage",
    ),
    "zones for more than all calls": (
        f"{CLUSTER}[1].common_lb_config.zone_aware_lb_config.routing_enabled",
        {"value": 101},
        "zone_aware_lb_config.routing_enabled: 101 is no percentage",
    ),
    "a choice of one": (
        f"{CLUSTER}[0].least_request_lb_config.choice_count",
        1,
        "cluster[stock].least_request_lb_config.choice_count: 1: 2 or more",
    ),
    "a bias below nothing": (
        f"{CLUSTER}[0].least_request_lb_config.active_request_bias.default_value",
        -1.0,
        "cluster[stock].least_request_lb_config.active_request_bias: -1: 0 or more",
    ),
    "a slow start that takes no time": (
        f"{CLUSTER}[0].least_request_lb_config.slow_start_config.slow_start_window",
        "0s",
        "cluster[stock].least_request_lb_config.slow_start_config: a window of 1 ms or more",
    ),
    "a ring that ends before it begins": (
        f"{CLUSTER}[4].ring_hash_lb_config.maximum_ring_size",
        2,
        "cluster[ring].ring_hash_lb_config: a ring of 7 to 2: the sizes must be in order",
    ),
    "hostnames of a static cluster": (f"{CLUSTER}[4].type", "STATIC", "cluster[ring]: use_hostname_for_hashing is for"),
    "a hash function that is not there": (
        f"{CLUSTER}[4].ring_hash_lb_config.hash_function",
        "MURMUR_HASH_2",
        "cluster[ring].ring_hash_lb_config.hash_function: only XX_HASH",
    ),
    "a table whose size is no prime": (
        f"{CLUSTER}[5].maglev_lb_config.table_size",
        65_536,
        "cluster[maglev].maglev_lb_config.table_size: 65536: a prime up to 5000011",
    ),
    "a fallback to all keys": (
        f"{CLUSTER}[5].lb_subset_config.subset_selectors[0].fallback_keys_subset",
        ["version", "stage"],
        "cluster[maglev].lb_subset_config.subset_selectors[0].fallback_keys_subset: some of the keys",
    ),
    "a fallback to keys without saying so": (
        f"{CLUSTER}[5].lb_subset_config.subset_selectors[0].fallback_policy",
        "ANY_ENDPOINT",
        "cluster[maglev].lb_subset_config.subset_selectors[0].fallback_keys_subset: counts with KEYS_SUBSET only",
    ),
    "subsets beside a policy that does not know them": (
        f"{CLUSTER}[7].lb_subset_config",
        {"fallback_policy": "ANY_ENDPOINT"},
        "cluster[typed].lb_subset_config: does not count beside load_balancing_policy",
    ),
    "a list of policies of which none is known": (
        f"{CLUSTER}[7].load_balancing_policy.policies",
        [],
        "cluster[typed].load_balancing_policy.policies: none is supported: it is empty",
    ),
    "a key that is made of nothing": (
        f"{ROUTE.replace('routes[0]', 'routes[1]')}.route.hash_policy",
        [{"connection_properties": {}}],
        "route.hash_policy[0]: header, cookie, query_parameter or connection_properties.source_ip is needed",
    ),
    "a home that is not there": (
        "cluster_manager.local_cluster_name",
        "elsewhere",
        'cluster_manager.local_cluster_name: there is no static cluster "elsewhere"; add it',
    ),
    "a struct that is no extension": (
        f"{CLUSTER}[10].load_balancing_policy.policies[0].typed_extension_config.typed_config.value",
        {"decay": "soon"},
        "the struct is no xds.type.v3.TypedStruct of a message",
    ),
    "an average that forgets at once": (
        f"{CLUSTER}[8].load_balancing_policy.policies[0].typed_extension_config.typed_config.decay",
        "0s",
        "typed_config.decay: must be above 0",
    ),
    "limits of high priority": (
        f"{CLUSTER}[0].circuit_breakers.thresholds[0].priority",
        "HIGH",
        "cluster[stock].circuit_breakers.thresholds[0].max_connections: priorities share connections",
    ),
    "a check without a time": (
        f"{CLUSTER}[0].health_checks[1].interval",
        "0s",
        "cluster[stock].health_checks[1].interval: above 0 s is needed",
    ),
    "a check of what is no path": (
        f"{CLUSTER}[0].health_checks[1].http_health_check.path",
        "healthz",
        'cluster[stock].health_checks[1].http_health_check.path: "healthz" is no path',
    ),
    "a hedge that is none": (
        f"{ROUTE}.metadata.filter_metadata.remora/hedge.delay",
        "soon",
        "metadata.filter_metadata[remora.hedge]: is no hedge of a RetryPolicySpec: ",
    ),
    "a breaker that is none": (
        f"{CLUSTER}[0].metadata.filter_metadata.remora/breaker.breaker.probes",
        "many",
        "cluster[stock].metadata.filter_metadata[remora.breaker]: is no CircuitBreakerPolicySpec: ",
    ),
    "ejection that never ends its first interval": (
        f"{CLUSTER}[0].outlier_detection.interval",
        "0s",
        "cluster[stock].outlier_detection.interval: 0 s: above 0 is needed",
    ),
    "more than all endpoints": (
        f"{CLUSTER}[0].outlier_detection.max_ejection_percent",
        101,
        "cluster[stock].outlier_detection.max_ejection_percent: 101: at most 100 is possible",
    ),
    "an error with a status that there is not": (
        f"{ROUTE}.typed_per_filter_config.fault.abort.http_status",
        99,
        "typed_per_filter_config[fault].abort.http_status: 99: 200 to 599 are possible",
    ),
    "an upstream that speaks whatever it likes": (
        f"{CLUSTER}[0].{OPTIONS}.explicit_http_config",
        {},
        "cluster[stock].typed_extension_protocol_options[envoy.extensions.upstreams.http.v3.HttpProtocolOptions]: explicit_http_config",
    ),
    "an extension of the upstream that is not known": (
        f"{CLUSTER}[0].typed_extension_protocol_options",
        {"x": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
        'cluster[stock].typed_extension_protocol_options: "x" is not supported',
    ),
    "no filter chain": (f"{LISTENER}.filter_chains", [], "listener[mesh].filter_chains: at least one"),
    "a chain without filters": (
        f"{LISTENER}.filter_chains[0].filters",
        [],
        "listener[outbound].filter_chains[0].filters: exactly one filter",
    ),
    "two chains for the same": (
        f"{LISTENER}.filter_chains[1].filter_chain_match",
        {"transport_protocol": "raw_buffer", "application_protocols": ["h2c"]},
        "listener[outbound].filter_chains[1].filter_chain_match: matches the same as chain 0",
    ),
    "HTTP/3": (
        f"{MANAGER}.codec_type",
        "HTTP3",
        "listener[outbound].filter_chains[0].filters[0].typed_config.codec_type: ",
    ),
    "headers of no size": (f"{MANAGER}.max_request_headers_kb", 0, "max_request_headers_kb: 0: 1 to 8192 are possible"),
    "no headers": (
        f"{MANAGER}.common_http_protocol_options.max_headers_count",
        0,
        "common_http_protocol_options.max_headers_count: 0: at least 1 is needed",
    ),
    "no router": (f"{MANAGER}.http_filters", [], ".http_filters: the router is missing"),
    "a router that is not the last": (
        f"{MANAGER}.http_filters",
        [{"name": "r", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]
        * 2,
        ".http_filters[0].typed_config: the router, and only it, is the last filter",
    ),
    "neither routes nor their name": (f"{MANAGER}.route_config", ABSENT, ": route_config or rds is needed"),
    "a bucket that holds nothing": (f"{LIMIT}.token_bucket.max_tokens", 0, ".token_bucket.max_tokens: 0: at least 1"),
    "a bucket that is never filled": (
        f"{LIMIT}.token_bucket.tokens_per_fill",
        0,
        ".token_bucket.tokens_per_fill: 0: at least 1",
    ),
    "a bucket that is filled all the time": (
        f"{LIMIT}.token_bucket.fill_interval",
        "0.01s",
        ".token_bucket.fill_interval: 0.01 s: at least 0.05 s",
    ),
    "a window below HTTP/2's first": (
        f"{MANAGER}.http2_protocol_options.initial_stream_window_size",
        1000,
        ".http2_protocol_options.initial_stream_window_size: 1000: 65535 to 2147483647",
    ),
    "a window above HTTP/2's largest": (
        f"{MANAGER}.http2_protocol_options.initial_connection_window_size",
        2**31,
        ".http2_protocol_options.initial_connection_window_size: 2147483648: 65535 to 2147483647",
    ),
    "no streams": (
        f"{MANAGER}.http2_protocol_options.max_concurrent_streams",
        0,
        ".http2_protocol_options.max_concurrent_streams: 0: 1 to 2147483647",
    ),
    "connections that end with a malformed message": (
        f"{MANAGER}.http2_protocol_options.override_stream_error_on_invalid_http_message",
        False,
        ".http2_protocol_options.override_stream_error_on_invalid_http_message: only true",
    ),
    "a keepalive without an interval": (
        f"{MANAGER}.http2_protocol_options.connection_keepalive.interval",
        "0s",
        ".http2_protocol_options.connection_keepalive: interval and timeout must be above 0",
    ),
    "no domains": (f"{HOST}.domains", [], "route_config[outbound].virtual_hosts[orders].domains: at least one"),
    "a domain twice": (
        f"{HOST}.domains",
        ["a.shop", "A.shop"],
        'virtual_hosts[orders].domains: "A.shop" stands in two',
    ),
    "weights of nothing": (
        f"{HOST}.routes[1].route.weighted_clusters.clusters",
        [{"name": "stock", "weight": 0}],
        "routes[1].route.weighted_clusters: the weights add up to 0",
    ),
    "a route to nowhere": (
        f"{HOST}.routes[1].route",
        {"timeout": "1s"},
        "routes[1].route: cluster or weighted_clusters",
    ),
    "a match of nothing": (
        f"{HOST}.routes[1].match",
        {},
        "routes[1].match: prefix, path, path_separated_prefix, safe_regex or connect_matcher",
    ),
    "a broken regular expression": (
        f"{HOST}.routes[2].match.safe_regex.regex",
        "[a",
        'routes[2].match.safe_regex.regex: "[a" is no regular expression',
    ),
    "a header without a pattern": (
        f"{ROUTE}.match.headers[0].string_match",
        {},
        "routes[0].match.headers[0].string_match: exact, prefix, suffix, contains or safe_regex is needed",
    ),
    "a condition for retries that nobody knows": (
        f"{ROUTE}.route.retry_policy.retry_on",
        "refused-stream, sometimes",
        'routes[0].route.retry_policy.retry_on: "sometimes" is not supported; supported: 5xx, cancelled',
    ),
    "a back-off that goes backwards": (
        f"{ROUTE}.route.retry_policy.retry_back_off.max_interval",
        "0.010s",
        "retry_policy.retry_back_off.max_interval: 0.01 s: less than base_interval, 0.05 s",
    ),
    "a back-off of nothing": (
        f"{ROUTE}.route.retry_policy.retry_back_off.base_interval",
        "0s",
        "retry_policy.retry_back_off.base_interval: 0 s: at least 1 ms is needed",
    ),
    "a rate limit's back-off without a header": (
        f"{ROUTE}.route.retry_policy.rate_limited_retry_back_off.reset_headers",
        [],
        "retry_policy.rate_limited_retry_back_off.reset_headers: at least one is needed",
    ),
    "another host predicate": (
        f"{ROUTE}.route.retry_policy.retry_host_predicate[0].name",
        "other",
        'routes[0].route.retry_policy.retry_host_predicate[0]: "other" is not supported',
    ),
    "CONNECT that leads nowhere": (
        f"{HOST}.routes[3].route.upgrade_configs",
        [],
        "routes[3].route.upgrade_configs: a connect_matcher needs one",
    ),
    "an upgrade of a call": (
        f"{ROUTE}.route.upgrade_configs",
        [{"upgrade_type": "CONNECT"}],
        "routes[0].route.upgrade_configs[0]: only CONNECT, behind a connect_matcher",
    ),
    "a field that Envoy does not have": ("static_resources.lissteners", [], 'no field named "lissteners"'),
    "a control plane by REST": (
        "dynamic_resources.ads_config.api_type",
        "REST",
        "dynamic_resources.ads_config: api_type GRPC",
    ),
    "no control plane": (
        "dynamic_resources.ads_config.grpc_services",
        [],
        "dynamic_resources.ads_config: api_type GRPC",
    ),
    "a control plane that is not there": (
        "dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name",
        "nowhere",
        'dynamic_resources.ads_config.grpc_services[0]: static cluster "nowhere"',
    ),
    "listeners from elsewhere": (
        "dynamic_resources.lds_config",
        {"initial_fetch_timeout": "1s"},
        "dynamic_resources.lds_config: `ads: {}` is needed",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_value_that_is_not_taken_is_refused_with_its_place_and_a_way_out(what: str, tmp_path: Path) -> None:
    path, value, expected = REFUSED[what]
    tree = document(tmp_path)
    if what == "no filter chain":
        path = "static_resources.listeners[1].filter_chains"
    with pytest.raises(ConfigError) as caught:
        parse(changed(tree, path, value))
    text = str(caught.value)
    assert expected in text
    assert "\n" not in text
    assert re.search(r"\(RMR0\d{3}\)$", text), text


def test_clusters(tmp_path: Path) -> None:
    stock, accounts, mesh, control_plane, *_ = parse(document(tmp_path)).configuration.clusters
    assert stock == ClusterConfig(
        name="stock",
        connect_timeout_s=1.0,
        balancing=Balancing(
            Balance.LEAST_REQUEST,
            choices=3,
            active_request_bias=0.5,
            slow_start=SlowStart(20.0, aggression=2.0, least=0.2),
            panic_threshold=25.0,
        ),
        eds_name="stock.shop",
        max_connections=5,
        thresholds=Thresholds(6, 7, 8, Budget(25.0, 4), tracks_remaining=True),
        high_thresholds=Thresholds(max_requests=9),
        checks=(
            CheckConfig(
                CheckKind.GRPC,
                Checking(1.0, 2.0, 6, 7, 10.0, 11.0, 12.0, 8.0, 9.0, 3.0, 4.0, 5.0),
                host="stock.shop",
                service="stock",
            ),
            CheckConfig(
                CheckKind.HTTP,
                Checking(1.0, 2.0, 3, 4, 2.0, 2.0, 2.0),
                host="stock",
                path="/healthz",
                method="HEAD",
                expected=((200, 300),),
                retriable=((500, 600),),
            ),
            CheckConfig(CheckKind.TCP, Checking(1.0, 2.0, 3, 4, 2.0, 2.0, 2.0), send=b"pi", receive=(b"po",)),
        ),
        breaker=BreakerConfig(window_s=3.0, failure_percent=40.0, is_enforced=False),
        outlier_detection=OutlierDetection(
            consecutive_5xx=11,
            consecutive_gateway_failure=12,
            consecutive_local_origin_failure=13,
            interval_s=14.0,
            base_ejection_s=15.0,
            max_ejection_s=16.0,
            max_ejection_jitter_s=17.0,
            max_ejection_percent=18,
            always_ejects_one=True,
            enforcing_consecutive_5xx=19,
            enforcing_consecutive_gateway_failure=20,
            enforcing_consecutive_local_origin_failure=21,
            enforcing_success_rate=22,
            enforcing_local_origin_success_rate=23,
            enforcing_failure_percentage=24,
            enforcing_failure_percentage_local_origin=25,
            success_rate_minimum_hosts=26,
            success_rate_request_volume=27,
            success_rate_stdev_factor=28,
            failure_percentage_threshold=29,
            failure_percentage_minimum_hosts=30,
            failure_percentage_request_volume=31,
            splits_local_origin=True,
            uneject_on_check=False,
        ),
        http2=Settings(initial_stream_window=70_000, largest_stream_window=0),
        life=ConnectionLife(idle_timeout_s=45.0),
        buffer_limit=65_537,
        tls=stock.tls,
        tls_matches=stock.tls_matches,
    )
    assert stock.tls is not None and stock.tls.sni == "stock.shop"
    [in_mesh] = stock.tls_matches
    assert (in_mesh.name, in_mesh.labels) == ("mesh", (("mesh", "true"),))
    assert in_mesh.tls is not None and in_mesh.tls.refs == (
        SecretRef("identity", "identity"),
        SecretRef("identity", "trust"),
    )
    assert accounts.endpoints.endpoints[0].tls_labels == (("mesh", "true"),)
    assert accounts.balancing.policy is Balance.RANDOM and accounts.codec is Codec.HTTP1
    assert accounts.endpoints.endpoints == (
        EndpointConfig(
            "127.0.0.1",
            7001,
            weight=3,
            health=Health.LEAVING,
            version="v2",
            priority=1,
            locality=("eu", "a", "1"),
            locality_weight=1,
            labels=(("version", "v2"),),
            hostname="accounts-1",
            tls_labels=accounts.endpoints.endpoints[0].tls_labels,
        ),
        EndpointConfig("::1", 7002, priority=1, locality=("eu", "a", "1"), locality_weight=1),
    )
    assert mesh.internal_listener == "mesh"
    assert control_plane == ClusterConfig(
        "control-plane",
        endpoints=LoadAssignment("control-plane", (EndpointConfig("127.0.0.1", 15010),)),
        http2=control_plane.http2,
    )


def network(text: str) -> Network:
    return ip_network(text)


TOKENS: Final = Tokens(
    (
        TokenProvider(
            "ann",
            b'{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}',
            Demands("ann.test", 10.0, must_expire=True, max_lifetime_s=3600.0),
            audiences=("shop",),
            headers=((b"x-token", b"T "),),
            parameters=(b"token",),
            is_forwarded=True,
            payload_header=b"x-payload",
            pads_payload=True,
            claim_headers=((b"x-sub", "sub"),),
            payload_key="ann",
            header_key="head",
            lists=("scope",),
        ),
        TokenProvider("bob", b'{"keys": []}', Demands()),
    ),
    rules=(
        TokenRule(RouteMatch(prefix=b"/named"), TokenOf("ann", ("office",))),
        TokenRule(RouteMatch(prefix=b"/any"), AnyOf((TokenOf("ann"), Optional()))),
        TokenRule(RouteMatch(prefix=b"/all"), AllOf((TokenOf("ann"), Optional(takes_bad=True)))),
    ),
    named=(("ann", TokenOf("ann")), ("office", TokenOf("ann", ("office",)))),
)
ACCESS: Final = Access(
    rules=AccessRules(
        Action.DENY,
        (
            AccessPolicy(
                "some",
                Some(
                    (
                        All((Some((Not(Always()),)),)),
                        HeaderIs(HeaderMatch(b"x-a", present=True)),
                        PathIs(HeaderMatch(b"", exact=b"/p")),
                        AddressIn(End.OWN, network("10.0.0.0/8")),
                        PortIn(80, 81),
                        PortIn(1, 9),
                        ServerNameIs(HeaderMatch(b"", exact=b"s")),
                        ClaimIs("f", ("k",), 2.0, is_in_list=True, invert=True),
                    )
                ),
                Some(
                    (
                        All((Some((Not(Always()),)),)),
                        PeerIs(HeaderMatch(b"", suffix=b"/sa/a")),
                        AddressIn(End.SOCKET, network("10.1.0.0/16")),
                        AddressIn(End.SOCKET, network("10.2.0.0/16")),
                        AddressIn(End.CLIENT, network("10.3.0.0/16")),
                        HeaderIs(HeaderMatch(b"x-b", present=True)),
                        PathIs(HeaderMatch(b"", exact=b"/q")),
                        ClaimIs("f", ("k",), True),
                        ClaimIs("f", ("k",), HeaderMatch(b"", exact=b"v")),
                        ClaimIs("f", ("k",), None),
                    )
                ),
            ),
        ),
    ),
    shadow=AccessRules(Action.DENY),
    stat_prefix="real",
    shadow_prefix="trial",
)


def test_listeners(tmp_path: Path) -> None:
    outbound, mesh = parse(document(tmp_path)).configuration.listeners
    assert (outbound.host, outbound.port, outbound.direction) == ("127.0.0.1", 15001, Direction.OUTBOUND)
    assert (mesh.is_internal, mesh.direction) == (True, Direction.UNSPECIFIED)
    manager = outbound.chains[0].manager
    assert manager is not None
    assert manager.takes_connect and manager.codec is Codec.HTTP2
    assert manager.stream_idle_timeout_s == 60.0 and manager.max_stream_duration_s == 90.0
    assert manager.http2 == Settings(
        initial_stream_window=131_072,
        initial_connection_window=1_048_576,
        max_concurrent_streams=100,
        largest_stream_window=0,
        max_header_bytes=90 * 1024,
        max_header_fields=50,
    )
    assert manager.life == ConnectionLife(30.0, 600.0, 1000, 10.0, 3.0, 0.05)
    assert manager.filters[-4:] == (
        HttpFilter("plain", PythonFilter("sample", '{"a": 1.0}', True, 0.004, 4, 50.0)),
        HttpFilter(
            "fault",
            Fault(
                0.5,
                0.05,
                abort_grpc=14,
                abort_share=0.0006,
                abort_denominator=10_000,
                headers=(HeaderMatch(b"x-fault", present=True),),
                max_active=7,
            ),
        ),
        HttpFilter("admission", AdmissionControl(False, ((200, 300),), (0, 5), 20.0, 0.9, 2.0, 4, 0.7)),
        HttpFilter(
            "adaptive", AdaptiveConcurrency(Gradient(0.2, 0.9, 500, 30.0, 0.0, 40, 0.2, 4, 0.3, 429), is_enabled=False)
        ),
    )
    assert manager.filters[:-4] == (
        HttpFilter(
            "envoy.filters.http.local_ratelimit",
            LocalRateLimit(
                "orders",
                LimiterConfig(5, 2.0, 10),
                enabled=0.05,
                enforced=0.25,
                as_resource_exhausted=True,
                descriptors=(LimitDescriptor((("user", "ann"), ("tier", "")), LimiterConfig(1, 1.0, 3)),),
                actions=(LimitActions((LimitAction(Said.HEADER, "user", header=b"x-user", is_optional=True),), 1),),
                stage=1,
                counts_all=False,
                max_keys=30,
                tells_limits=True,
            ),
        ),
        HttpFilter("tokens", TOKENS),
        HttpFilter("access", ACCESS),
        HttpFilter(
            "own",
            LocalRateLimit(
                "shop/own",
                None,
                enabled=1.0,
                enforced=1.0,
                as_resource_exhausted=True,
                descriptors=(
                    LimitDescriptor(
                        (("x-user", ""), ("remote_address", "")),
                        LimiterConfig(7, 3.0, 8, Algorithm.LEAKY_BUCKET, 2.0),
                    ),
                ),
                actions=(
                    LimitActions(
                        (
                            LimitAction(Said.HEADER, "x-user", header=b"x-user", is_empty_if_missing=True),
                            LimitAction(Said.REMOTE_ADDRESS, "remote_address"),
                        )
                    ),
                ),
                counts_all=False,
                max_keys=50,
            ),
        ),
    )
    assert outbound.default_chain is not None and outbound.default_chain.manager is not None
    assert outbound.default_chain.manager.rds_name == "rest"
    tcp = outbound.chains[1].tcp
    assert tcp is not None and (tcp.cluster, tcp.idle_timeout_s, tcp.max_connect_attempts) == ("accounts", 50.0, 2)


def test_routes(tmp_path: Path) -> None:
    manager = parse(document(tmp_path)).configuration.listeners[0].chains[0].manager
    assert manager is not None and manager.routes is not None
    host, _ = manager.routes.virtual_hosts
    assert host.domains == ("orders.shop", "*.orders.shop")
    assert host.limit_actions == (LimitActions((LimitAction(Said.REMOTE_ADDRESS, "remote_address"),)),)
    assert host.overrides == (
        ("adaptive", AdaptiveConcurrency(Gradient(0.3, fixed_min_rtt_s=0.01))),
        ("envoy.filters.http.local_ratelimit", LocalRateLimit("host", LimiterConfig(1, 1.0, 20))),
        ("fault", Fault(delay_share=0.08, delay_by_header=True, abort_share=0.09, abort_by_header=True)),
    )
    retry = RetryPolicy(("unavailable",))
    headers = (
        HeaderMatch(b"x-exact", exact=b"ann"),
        HeaderMatch(b"x-prefix", prefix=b"an", invert=True),
        HeaderMatch(b"x-suffix", suffix=b"nn"),
        HeaderMatch(b"x-regex", regex="a.*"),
        HeaderMatch(b"x-absent", present=False),
    )
    assert host.routes == (
        Route(
            RouteMatch(path=b"/shop.Orders/Get", headers=headers),
            (("stock", 1),),
            name="exact",
            timeout_s=7.0,
            retry=RetryPolicy(
                ("connect-failure", "refused-stream", "retriable-status-codes", "retriable-headers"),
                num_retries=4,
                per_try_timeout_s=3.0,
                per_try_idle_timeout_s=2.0,
                status_codes=(418,),
                headers=(HeaderMatch(b"x-again", present=True),),
                request_headers=(HeaderMatch(b"x-may", present=True),),
                backoff_base_s=0.05,
                backoff_max_s=0.3,
                reset_headers=(ResetHeader(b"x-until", is_time=True),),
                reset_max_s=9.0,
                avoid_previous_hosts=True,
                host_selection_attempts=6,
                hedges=2,
                hedge_delay_s=0.05,
            ),
            replay_limit=2000,
            is_urgent=True,
            idle_timeout_s=20.0,
            max_duration_s=40.0,
            grpc_timeout_max_s=25.0,
            overrides=(
                ("envoy.filters.http.local_ratelimit", LocalRateLimit("exact", LimiterConfig(1, 1.0, 30))),
                ("fault", Fault(abort_http=418, abort_share=0.01)),
            ),
            limit_actions=(
                LimitActions(
                    (
                        LimitAction(Said.GENERIC, "area", "north"),
                        LimitAction(Said.DESTINATION_CLUSTER, "destination_cluster"),
                    )
                ),
                LimitActions(
                    (
                        LimitAction(
                            Said.HEADER_MATCH,
                            "vip",
                            "yes",
                            matches=(HeaderMatch(b"x-vip", present=True),),
                            expects_match=False,
                        ),
                    )
                ),
            ),
        ),
        Route(
            RouteMatch(prefix=b"/shop."),
            (("stock", 3), ("accounts", 1)),
            labels=((("stage", "canary"), ("version", "v2")), (("version", "v2"),)),
            hash_policies=(
                HashPolicy(HashSource.HEADER, b"x-user", is_terminal=True, rewrite=("^(.).*", r"\1")),
                HashPolicy(
                    HashSource.COOKIE,
                    b"session",
                    cookie_ttl_s=60,
                    cookie_path=b"/shop",
                    cookie_attributes=((b"SameSite", b"Strict"),),
                ),
                HashPolicy(HashSource.CLIENT),
                HashPolicy(HashSource.QUERY, b"user"),
            ),
            retry=retry,
            replay_limit=1000,
        ),
        Route(RouteMatch(regex="/[a-z]+"), (("accounts", 1),), retry=retry, replay_limit=1000),
        Route(RouteMatch(connect=True), (("mesh", 1),), retry=retry, replay_limit=1000),
    )


def text(value: bytes) -> tuple[ValuePart, ...]:
    return (ValuePart(value),)


def test_what_routes_change_and_answer(tmp_path: Path) -> None:
    manager = parse(document(tmp_path)).configuration.listeners[0].chains[0].manager
    assert manager is not None and manager.routes is not None
    table = manager.routes
    assert table.has_specific_last
    assert table.request_changes == HeaderChanges((HeaderChange(b"x-table", text(b"t")),), (b"x-a",))
    assert table.response_changes == HeaderChanges((HeaderChange(b"x-table", text(b"u")),), (b"x-b",))
    host = table.virtual_hosts[1]
    assert host.request_changes == HeaderChanges((HeaderChange(b"x-host", text(b"h"), OnExisting.KEEP),), (b"x-c",))
    overwritten = HeaderChange(b"x-host", text(b"i"), OnExisting.OVERWRITE)
    assert host.response_changes == HeaderChanges((overwritten,), (b"x-d",))
    value = (ValuePart(b"<"), ValuePart(b"", b"x-a", b":path", 5), ValuePart(b">"))
    stock = (("stock", 1),)
    contains = HeaderMatch(b"x-v", contains=b"abc", ignore_case=True)
    between = HeaderMatch(b"x-n", between=(-5, 5), missing_is_empty=True)
    assert [replace(route, retry=None, labels=()) for route in host.routes] == [
        Route(
            RouteMatch(
                path=b"/upper",
                ignore_case=True,
                is_grpc=True,
                query=(HeaderMatch(b"a", exact=b"b"), HeaderMatch(b"c", present=False)),
            ),
            stock,
            request_changes=HeaderChanges((HeaderChange(b"x-route", value, keeps_empty=True),), (b"x-e",)),
            response_changes=HeaderChanges((HeaderChange(b"x-route", (ValuePart(b"5"), ValuePart(b"%"))),), (b"x-f",)),
            rewrite=Rewrite(prefix=b"/new", host=b"new.shop"),
        ),
        Route(
            RouteMatch(folder=b"/folder", headers=(contains, between)),
            stock,
            rewrite=Rewrite(pattern="(a)", substitution=r"\1\\", host_pattern="/(.)", host_substitution=r"\1"),
        ),
        Route(
            RouteMatch(prefix=b"/h"),
            stock,
            rewrite=Rewrite(host_header=b"x-to"),
            mirrors=(MirrorPolicy("accounts", 0.05, keeps_host=True),),
            overrides=(("access", Access(AccessRules(Action.ALLOW))), ("tokens", TokensOfRoute("ann"))),
        ),
        Route(RouteMatch(prefix=b"/a"), (), answer=Redirect(302, b"https", b"there", 81, b"/p", None, True)),
        Route(RouteMatch(prefix=b"/untold"), stock, overrides=(("tokens", TokensOfRoute()),)),
        Route(RouteMatch(prefix=b"/b"), (), answer=Redirect(scheme=b"ftp", rewrite=Rewrite(prefix=b"/q"))),
        Route(RouteMatch(prefix=b"/c"), (), answer=Redirect(rewrite=Rewrite(pattern="c", substitution="d"))),
        Route(RouteMatch(prefix=b"/d"), (), answer=DirectResponse(404, b"none")),
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"request_headers_to_add": [{"header": {"key": ":path", "value": "/x"}}]}, "cannot be changed here"),
        ({"response_headers_to_remove": ["Host"]}, "cannot be changed here"),
        ({"response_headers_to_add": [{"header": {"key": "x", "value": "%REQ(A)%"}}]}, "only %REQ"),
        ({"request_headers_to_add": [{"header": {"key": "x", "value": "50%"}}]}, "only %REQ"),
        (
            {"route": {"cluster": "stock", "prefix_rewrite": "/", "regex_rewrite": {"substitution": ""}}},
            "goes not with",
        ),
        (
            {"route": {"cluster": "stock", "regex_rewrite": {"pattern": {"regex": "a"}, "substitution": r"\1"}}},
            "names a group that is not there",
        ),
        ({"direct_response": {"status": 99}}, "200 to 599"),
        ({"direct_response": {"status": 200, "body": {"inline_string": "x" * 5000}}}, "5000 bytes"),
        ({"match": {"path_separated_prefix": "/x/"}, "route": {"cluster": "stock"}}, "is no path without /"),
    ],
)
def test_changes_that_cannot_be_made_are_refused(change: dict[str, Any], fault: str) -> None:
    listener = bootstraps.listener("main", 1, "stock")
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["route_config"]["virtual_hosts"][0]["routes"] = [
        {"match": {"prefix": "/"}, **({} if "direct_response" in change else {"route": {"cluster": "stock"}}), **change}
    ]
    with pytest.raises(ConfigError, match=fault):
        parse(bootstraps.static([listener], [bootstraps.cluster("stock", 1)]))


def test_control_planes_may_be_named_by_dns_and_calls_cannot_be_sent_there(tmp_path: Path) -> None:
    asked = document(tmp_path)
    name = asked["dynamic_resources"]["ads_config"]["grpc_services"][0]["envoy_grpc"]["cluster_name"]
    [steering] = [each for each in asked["static_resources"]["clusters"] if each["name"] == name]
    steering["type"] = "STRICT_DNS"
    lb_endpoints = steering["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = {"socket_address": {"address": "control.mesh", "port_value": 1}}
    lb_endpoints.append({"endpoint": {"address": address}})
    bootstrap = parse(asked)
    assert bootstrap.ads == (("127.0.0.1", 15010), ("control.mesh", 1))
    assert name not in {cluster.name for cluster in bootstrap.configuration.clusters}


def test_the_rest_of_a_bootstrap(tmp_path: Path) -> None:
    bootstrap = parse(document(tmp_path))
    assert bootstrap.admin == ("127.0.0.1", 9901)
    assert bootstrap.ads == (("127.0.0.1", 15010),)
    assert b"orders-1" in bootstrap.node
    assert parse({}).ads == () and parse({}).admin is None


@pytest.mark.parametrize("enabled", [True, False, None])
def test_an_upgrade_may_be_turned_off(tmp_path: Path, enabled: bool | None) -> None:
    tree = document(tmp_path)
    upgrade = {"upgrade_type": "CONNECT"} if enabled is None else {"upgrade_type": "CONNECT", "enabled": enabled}
    manager = parse(changed(tree, f"{MANAGER}.upgrade_configs", [upgrade])).configuration.listeners[0].chains[0].manager
    assert manager is not None and manager.takes_connect is (enabled is not False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read: "),
        ("a: [", "is no YAML: "),
        ("- a\n- b\n", "is no mapping; an Envoy v3 bootstrap is needed (RMR0121)"),
        ("static_resources: 1\n", "(RMR0122)"),
        ("static_resources: {clusters: [{name: x, type: LOGICAL_DNS}]}", "cluster[x].type: LOGICAL_DNS"),
        ("\xff\xfe", "(RMR012"),
    ],
)
def test_a_file_that_is_no_bootstrap_is_refused_in_one_line_with_its_name(
    tmp_path: Path, text: str | None, expected: str
) -> None:
    path = tmp_path / "bootstrap.yaml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_is_taken_too(tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.json"
    path.write_text('{"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9}}}}')
    assert load(path).admin == ("127.0.0.1", 9)
