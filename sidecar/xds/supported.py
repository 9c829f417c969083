"""Which fields of Envoy's messages this sidecar honours: everything else is refused by name, never ignored.

The table is the reference for users too: what stands here works as Envoy documents it.
"""

from collections.abc import Iterator
from typing import Any, Final

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.bootstrap.internal_listener.v3 import internal_listener_pb2
from envoy.extensions.filters.http.adaptive_concurrency.v3 import adaptive_concurrency_pb2
from envoy.extensions.filters.http.admission_control.v3 import admission_control_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2 as jwt_authn_pb2
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import any_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message
from xds.type.v3 import typed_struct_pb2

from proto.mesh.v1 import filters_pb2
from sidecar.xds import balancing_fields

# Imported so that their types can be packed into `Any`.
KNOWN_MODULES: Final = (
    adaptive_concurrency_pb2,
    admission_control_pb2,
    fault_pb2,
    bootstrap_pb2,
    cluster_pb2,
    endpoint_pb2,
    listener_pb2,
    route_pb2,
    internal_listener_pb2,
    jwt_authn_pb2,
    local_rate_limit_pb2,
    rbac_pb2,
    router_pb2,
    http_connection_manager_pb2,
    previous_hosts_pb2,
    http_protocol_options_pb2,
    base_pb2,
    http_inspector_pb2,
    raw_buffer_pb2,
    tcp_proxy_pb2,
    tls_inspector_pb2,
    tls_pb2,
    filters_pb2,
    *balancing_fields.MODULES,
)

MAX_DEPTH: Final = 64
_TYPED_STRUCT: Final = typed_struct_pb2.TypedStruct.DESCRIPTOR.full_name


class ConfigError(Exception):
    """A configuration that the sidecar does not take; the text names field, value and way out."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(f"{path}: {text}" if path else text)


_CORE: Final = "envoy.config.core.v3."
_ROUTE: Final = "envoy.config.route.v3."
_LISTENER: Final = "envoy.config.listener.v3."
_CLUSTER: Final = "envoy.config.cluster.v3."
_ENDPOINT: Final = "envoy.config.endpoint.v3."
_BOOTSTRAP: Final = "envoy.config.bootstrap.v3."
_HCM: Final = "envoy.extensions.filters.network.http_connection_manager.v3."
_TYPE: Final = "envoy.type.v3."
_MATCHER: Final = "envoy.type.matcher.v3."
_UPSTREAM: Final = "envoy.extensions.upstreams.http.v3."
_HTTP_FILTER: Final = "envoy.extensions.filters.http."
_JWT: Final = _HTTP_FILTER + "jwt_authn.v3."
_RBAC: Final = "envoy.config.rbac.v3."
_TLS: Final = "envoy.extensions.transport_sockets.tls.v3."

OPAQUE: Final = frozenset(
    (
        _CORE + "Node",
        _CORE + "Metadata",
        "google.protobuf.Duration",
        "google.protobuf.UInt32Value",
        "google.protobuf.UInt64Value",
        "google.protobuf.BoolValue",
        "google.protobuf.Struct",
    )
)
"""Messages whose every field is taken as it is."""

FIELDS: Final[dict[str, str]] = {
    _BOOTSTRAP
    + "Bootstrap": "node static_resources cluster_manager dynamic_resources admin bootstrap_extensions layered_runtime",
    _BOOTSTRAP + "LayeredRuntime": "layers",
    _BOOTSTRAP + "RuntimeLayer": "name static_layer",
    _BOOTSTRAP + "Bootstrap.StaticResources": "listeners clusters secrets",
    _BOOTSTRAP + "Bootstrap.DynamicResources": "lds_config cds_config ads_config",
    _BOOTSTRAP + "Admin": "address",
    _CORE + "ApiConfigSource": "api_type transport_api_version grpc_services set_node_on_first_message_only",
    _CORE + "GrpcService": "envoy_grpc",
    _CORE + "GrpcService.EnvoyGrpc": "cluster_name",
    _CORE + "ConfigSource": "ads api_config_source resource_api_version initial_fetch_timeout",
    _CORE + "AggregatedConfigSource": "",
    _CORE + "TypedExtensionConfig": "name typed_config",
    "envoy.extensions.bootstrap.internal_listener.v3.InternalListener": "",
    _CORE + "Address": "socket_address envoy_internal_address pipe",
    _CORE + "Pipe": "path",
    _CORE + "SocketAddress": "address port_value protocol",
    _CORE + "EnvoyInternalAddress": "server_listener_name endpoint_id",
    _CORE + "Http2ProtocolOptions": "initial_stream_window_size initial_connection_window_size max_concurrent_streams "
    "override_stream_error_on_invalid_http_message connection_keepalive",
    _CORE + "KeepaliveSettings": "interval timeout interval_jitter",
    _CORE
    + "HttpProtocolOptions": "idle_timeout max_connection_duration max_requests_per_connection max_stream_duration "
    "max_headers_count",
    _CORE + "RuntimeFractionalPercent": "default_value runtime_key",
    _CORE + "Locality": "region zone sub_zone",
    _CORE + "TransportSocket": "name typed_config",
    _CORE + "DataSource": "filename inline_bytes inline_string",
    _TLS + "DownstreamTlsContext": "common_tls_context require_client_certificate",
    _TLS + "UpstreamTlsContext": "common_tls_context sni",
    _TLS + "CommonTlsContext": "tls_params tls_certificates validation_context alpn_protocols "
    "tls_certificate_sds_secret_configs validation_context_sds_secret_config combined_validation_context",
    _TLS + "CommonTlsContext.CombinedCertificateValidationContext": "default_validation_context "
    "validation_context_sds_secret_config",
    _TLS + "SdsSecretConfig": "name sds_config",
    _TLS + "Secret": "name tls_certificate validation_context",
    _TLS + "TlsParameters": "tls_minimum_protocol_version tls_maximum_protocol_version",
    _TLS + "TlsCertificate": "certificate_chain private_key",
    _TLS + "CertificateValidationContext": "trusted_ca match_typed_subject_alt_names",
    _TLS + "SubjectAltNameMatcher": "san_type matcher",
    "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer": "",
    _LISTENER
    + "Listener": "name address filter_chains default_filter_chain internal_listener traffic_direction stat_prefix "
    "listener_filters listener_filters_timeout continue_on_listener_filters_timeout per_connection_buffer_limit_bytes",
    _LISTENER + "Listener.InternalListenerConfig": "",
    _LISTENER + "ListenerFilter": "name typed_config",
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector": "",
    "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector": "",
    _LISTENER + "FilterChain": "name filters filter_chain_match transport_socket",
    _LISTENER + "FilterChainMatch": "server_names transport_protocol application_protocols",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy": "stat_prefix cluster idle_timeout max_connect_attempts",
    _LISTENER + "Filter": "name typed_config",
    _HCM + "HttpConnectionManager": "stat_prefix codec_type rds route_config http_filters upgrade_configs "
    "http2_protocol_options common_http_protocol_options stream_idle_timeout drain_timeout max_request_headers_kb "
    "delayed_close_timeout",
    _HCM + "HttpConnectionManager.UpgradeConfig": "upgrade_type enabled",
    _HCM + "Rds": "config_source route_config_name",
    _HCM + "HttpFilter": "name typed_config",
    "envoy.extensions.filters.http.router.v3.Router": "",
    "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit": "stat_prefix token_bucket filter_enabled "
    "filter_enforced rate_limited_as_resource_exhausted descriptors stage rate_limits always_consume_default_token_bucket "
    "max_dynamic_descriptors enable_x_ratelimit_headers",
    "envoy.extensions.filters.http.rbac.v3.RBAC": "rules shadow_rules rules_stat_prefix shadow_rules_stat_prefix",
    "envoy.extensions.filters.http.rbac.v3.RBACPerRoute": "rbac",
    _JWT + "JwtAuthentication": "providers rules requirement_map",
    _JWT + "PerRouteConfig": "disabled requirement_name",
    _JWT
    + "JwtProvider": "issuer audiences require_expiration max_lifetime local_jwks forward from_headers from_params "
    "forward_payload_header pad_forward_payload_header payload_in_metadata normalize_payload_in_metadata "
    "header_in_metadata clock_skew_seconds claim_to_headers",
    _JWT + "JwtProvider.NormalizePayload": "space_delimited_claims",
    _JWT + "JwtHeader": "name value_prefix",
    _JWT + "JwtClaimToHeader": "header_name claim_name",
    _JWT + "RequirementRule": "match requires requirement_name",
    _JWT + "JwtRequirement": "provider_name provider_and_audiences requires_any requires_all allow_missing "
    "allow_missing_or_failed",
    _JWT + "ProviderWithAudiences": "provider_name audiences",
    _JWT + "JwtRequirementOrList": "requirements",
    _JWT + "JwtRequirementAndList": "requirements",
    "google.protobuf.Empty": "",
    _RBAC + "RBAC": "action policies",
    _RBAC + "Policy": "permissions principals",
    _RBAC + "Permission": "and_rules or_rules not_rule any header url_path destination_ip destination_port "
    "destination_port_range requested_server_name metadata",
    _RBAC + "Permission.Set": "rules",
    _RBAC + "Principal": "and_ids or_ids not_id any authenticated source_ip direct_remote_ip remote_ip header url_path "
    "metadata",
    _RBAC + "Principal.Set": "ids",
    _RBAC + "Principal.Authenticated": "principal_name",
    _CORE + "CidrRange": "address_prefix prefix_len",
    _TYPE + "Int32Range": "start end",
    _MATCHER + "PathMatcher": "path",
    _MATCHER + "MetadataMatcher": "filter path value invert",
    _MATCHER + "MetadataMatcher.PathSegment": "key",
    _MATCHER + "ValueMatcher": "string_match bool_match double_match present_match list_match",
    _MATCHER + "ListMatcher": "one_of",
    _MATCHER + "DoubleMatcher": "exact",
    "remora.mesh.v1.PythonFilter": "filter config on_error budget max_overruns off",
    "remora.mesh.v1.RateLimitFilter": "policy is_enforced algorithm requests interval burst max_wait keys max_keys",
    "remora.mesh.v1.LimitKey": "header source",
    "envoy.extensions.common.ratelimit.v3.LocalRateLimitDescriptor": "entries token_bucket",
    "envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.Entry": "key value",
    _ROUTE + "RateLimit": "stage actions",
    _ROUTE + "RateLimit.Action": "request_headers generic_key remote_address header_value_match destination_cluster",
    _ROUTE + "RateLimit.Action.RequestHeaders": "header_name descriptor_key skip_if_absent",
    _ROUTE + "RateLimit.Action.GenericKey": "descriptor_value descriptor_key",
    _ROUTE + "RateLimit.Action.RemoteAddress": "",
    _ROUTE + "RateLimit.Action.DestinationCluster": "",
    _ROUTE + "RateLimit.Action.HeaderValueMatch": "descriptor_key descriptor_value expect_match headers",
    _HTTP_FILTER + "fault.v3.HTTPFault": "delay abort headers max_active_faults",
    _HTTP_FILTER + "fault.v3.FaultAbort": "http_status grpc_status header_abort percentage",
    _HTTP_FILTER + "fault.v3.FaultAbort.HeaderAbort": "",
    "envoy.extensions.filters.common.fault.v3.FaultDelay": "fixed_delay header_delay percentage",
    "envoy.extensions.filters.common.fault.v3.FaultDelay.HeaderDelay": "",
    _HTTP_FILTER + "admission_control.v3.AdmissionControl": "enabled success_criteria sampling_window aggression "
    "sr_threshold rps_threshold max_rejection_probability",
    _HTTP_FILTER + "admission_control.v3.AdmissionControl.SuccessCriteria": "http_criteria grpc_criteria",
    _HTTP_FILTER + "admission_control.v3.AdmissionControl.SuccessCriteria.HttpCriteria": "http_success_status",
    _HTTP_FILTER + "admission_control.v3.AdmissionControl.SuccessCriteria.GrpcCriteria": "grpc_success_status",
    _CORE + "RuntimeFeatureFlag": "default_value runtime_key",
    _CORE + "RuntimeDouble": "default_value runtime_key",
    _CORE + "RuntimePercent": "default_value runtime_key",
    _CORE + "RuntimeUInt32": "default_value runtime_key",
    _TYPE + "Int32Range": "start end",
    _TYPE + "HttpStatus": "code",
    _HTTP_FILTER + "adaptive_concurrency.v3.AdaptiveConcurrency": "gradient_controller_config enabled "
    "concurrency_limit_exceeded_status",
    _HTTP_FILTER + "adaptive_concurrency.v3.GradientControllerConfig": "sample_aggregate_percentile "
    "concurrency_limit_params min_rtt_calc_params",
    _HTTP_FILTER
    + "adaptive_concurrency.v3.GradientControllerConfig.ConcurrencyLimitCalculationParams": "max_concurrency_limit "
    "concurrency_update_interval",
    _HTTP_FILTER
    + "adaptive_concurrency.v3.GradientControllerConfig.MinimumRTTCalculationParams": "interval fixed_value "
    "request_count jitter min_concurrency buffer",
    _TYPE + "TokenBucket": "max_tokens tokens_per_fill fill_interval",
    _TYPE + "FractionalPercent": "numerator denominator",
    _TYPE + "Percent": "value",
    _MATCHER + "RegexMatcher": "regex google_re2",
    _MATCHER + "RegexMatcher.GoogleRE2": "max_program_size",  # of RE2's programs; there are none here
    _MATCHER + "StringMatcher": "exact prefix suffix contains safe_regex ignore_case",
    _ROUTE
    + "RouteConfiguration": "name virtual_hosts validate_clusters request_headers_to_add request_headers_to_remove "
    "response_headers_to_add response_headers_to_remove most_specific_header_mutations_wins",
    _ROUTE + "VirtualHost": "name domains routes typed_per_filter_config rate_limits retry_policy "
    "request_body_buffer_limit request_headers_to_add request_headers_to_remove response_headers_to_add "
    "response_headers_to_remove",
    _ROUTE
    + "Route": "name metadata match route redirect direct_response typed_per_filter_config request_body_buffer_limit request_headers_to_add "
    "request_headers_to_remove response_headers_to_add response_headers_to_remove",
    _CORE + "HeaderValueOption": "header append append_action keep_empty_value",
    _CORE + "HeaderValue": "key value",
    _ROUTE
    + "RedirectAction": "https_redirect scheme_redirect host_redirect port_redirect path_redirect prefix_rewrite "
    "regex_rewrite response_code strip_query",
    _ROUTE + "DirectResponseAction": "status body",
    _MATCHER + "RegexMatchAndSubstitute": "pattern substitution",
    _ROUTE + "RouteMatch": "prefix path path_separated_prefix safe_regex connect_matcher headers case_sensitive "
    "query_parameters grpc",
    _ROUTE + "RouteMatch.GrpcRouteMatchOptions": "",
    _ROUTE + "QueryParameterMatcher": "name string_match present_match",
    _TYPE + "Int64Range": "start end",
    _ROUTE + "RouteMatch.ConnectMatcher": "",
    _ROUTE + "HeaderMatcher": "name string_match range_match present_match invert_match treat_missing_header_as_empty",
    _ROUTE
    + "RouteAction": "hash_policy metadata_match cluster weighted_clusters timeout retry_policy upgrade_configs idle_timeout "
    "max_stream_duration rate_limits prefix_rewrite regex_rewrite host_rewrite_literal host_rewrite_header "
    "host_rewrite_path_regex priority request_mirror_policies",
    _ROUTE + "RouteAction.RequestMirrorPolicy": "cluster runtime_fraction disable_shadow_host_suffix_append",
    _ROUTE + "RouteAction.MaxStreamDuration": "max_stream_duration grpc_timeout_header_max",
    _ROUTE + "RouteAction.UpgradeConfig": "upgrade_type connect_config enabled",
    _ROUTE + "RouteAction.UpgradeConfig.ConnectConfig": "",
    _ROUTE + "WeightedCluster": "clusters",
    _ROUTE + "WeightedCluster.ClusterWeight": "name weight metadata_match",
    _ROUTE
    + "RetryPolicy": "retry_on num_retries retry_host_predicate host_selection_retry_max_attempts per_try_timeout "
    "per_try_idle_timeout retriable_status_codes retriable_headers retriable_request_headers retry_back_off "
    "rate_limited_retry_back_off",
    _ROUTE + "RetryPolicy.RetryBackOff": "base_interval max_interval",
    _ROUTE + "RetryPolicy.RateLimitedRetryBackOff": "reset_headers max_interval",
    _ROUTE + "RetryPolicy.ResetHeader": "name format",
    _ROUTE + "RetryPolicy.RetryHostPredicate": "name typed_config",
    "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate": "",
    _CLUSTER
    + "Cluster": "metadata health_checks outlier_detection name type connect_timeout lb_policy load_assignment eds_cluster_config circuit_breakers "
    "typed_extension_protocol_options common_lb_config transport_socket transport_socket_matches per_connection_buffer_limit_bytes "
    "round_robin_lb_config least_request_lb_config ring_hash_lb_config maglev_lb_config lb_subset_config "
    "load_balancing_policy",
    _CLUSTER + "Cluster.TransportSocketMatch": "name match transport_socket",
    _CLUSTER + "Cluster.EdsClusterConfig": "eds_config service_name",
    _CLUSTER + "CircuitBreakers": "thresholds",
    _CORE
    + "HealthCheck": "timeout interval initial_jitter interval_jitter interval_jitter_percent unhealthy_threshold "
    "healthy_threshold http_health_check tcp_health_check grpc_health_check no_traffic_interval "
    "no_traffic_healthy_interval unhealthy_interval unhealthy_edge_interval healthy_edge_interval",
    _CORE + "HealthCheck.HttpHealthCheck": "host path expected_statuses retriable_statuses codec_client_type method",
    _CORE + "HealthCheck.TcpHealthCheck": "send receive",
    _CORE + "HealthCheck.GrpcHealthCheck": "service_name authority",
    _CORE + "HealthCheck.Payload": "text binary",
    _TYPE + "Int64Range": "start end",
    _CLUSTER + "OutlierDetection": "consecutive_5xx interval base_ejection_time max_ejection_percent "
    "enforcing_consecutive_5xx enforcing_success_rate success_rate_minimum_hosts success_rate_request_volume "
    "success_rate_stdev_factor consecutive_gateway_failure enforcing_consecutive_gateway_failure "
    "split_external_local_origin_errors consecutive_local_origin_failure "
    "enforcing_consecutive_local_origin_failure enforcing_local_origin_success_rate failure_percentage_threshold "
    "enforcing_failure_percentage enforcing_failure_percentage_local_origin failure_percentage_minimum_hosts "
    "failure_percentage_request_volume max_ejection_time max_ejection_time_jitter "
    "successful_active_health_check_uneject_host always_eject_one_host",
    _CLUSTER + "CircuitBreakers.Thresholds": "priority max_connections max_pending_requests max_requests max_retries "
    "retry_budget track_remaining",
    _CLUSTER + "CircuitBreakers.Thresholds.RetryBudget": "budget_percent min_retry_concurrency",
    _UPSTREAM + "HttpProtocolOptions": "explicit_http_config common_http_protocol_options",
    _UPSTREAM + "HttpProtocolOptions.ExplicitHttpConfig": "http2_protocol_options http_protocol_options",
    _CORE + "Http1ProtocolOptions": "",
    _ENDPOINT + "LbEndpoint": "endpoint health_status metadata load_balancing_weight",
    _ENDPOINT + "Endpoint": "address hostname",
    **balancing_fields.FIELDS,
}

_FIELD_SETS: Final = {name: frozenset(fields.split()) for name, fields in FIELDS.items()}


def is_known(packed: any_pb2.Any) -> bool:
    """True if the type of the message in an `Any`, or in a TypedStruct there, is supported."""
    name = packed.type_url.rpartition("/")[2]
    if name == _TYPED_STRUCT:
        name = typed_struct_pb2.TypedStruct.FromString(packed.value).type_url.rpartition("/")[2]
    return name in _FIELD_SETS


def _from_struct(packed: any_pb2.Any, path: str) -> Message:
    """The message in a TypedStruct: an extension in JSON's form, which engines that do not know it can still show."""
    try:
        struct = typed_struct_pb2.TypedStruct.FromString(packed.value)
        name = struct.type_url.rpartition("/")[2]
        if name not in _FIELD_SETS:
            raise ConfigError(path, f'extension "{name}" is not supported by this sidecar; remove it (RMR0101)')
        message = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))()
        return json_format.ParseDict(json_format.MessageToDict(struct.value), message)
    except (DecodeError, json_format.ParseError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(path, f"the struct is no {_TYPED_STRUCT} of a message: {text} (RMR0102)") from None


def unpack(packed: any_pb2.Any, path: str) -> Message:
    """The message in an `Any`. Raises ConfigError if its type is not supported or its bytes are broken."""
    name = packed.type_url.rpartition("/")[2]
    if name == _TYPED_STRUCT:
        return _from_struct(packed, path)
    if name not in _FIELD_SETS:
        raise ConfigError(path, f'extension "{name}" is not supported by this sidecar; remove it (RMR0101)')
    message = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))()
    try:
        message.ParseFromString(packed.value)
    except DecodeError as error:
        raise ConfigError(path, f"the bytes are no {name}: {error} (RMR0102)") from None
    return message


def refuse_unsupported(message: Message, path: str = "") -> None:
    """Walk a message; raise ConfigError at the first field that is set and not supported."""
    for fault in _faults(message, path, 0):
        raise fault


def _faults(message: Message, path: str, depth: int) -> Iterator[ConfigError]:
    if depth > MAX_DEPTH:
        yield ConfigError(path, f"nested deeper than {MAX_DEPTH} levels (RMR0103)")
        return
    name = message.DESCRIPTOR.full_name
    if name in OPAQUE:
        return
    if isinstance(message, any_pb2.Any):
        yield from _faults(unpack(message, path), path, depth + 1)
        return
    if isinstance(message, cluster_pb2.LoadBalancingPolicy):
        # Those that are not known are for other engines: the first that is counts.
        packed = [item.typed_extension_config.typed_config for item in message.policies]
        first = next(filter(is_known, packed), None)
        if first is not None:
            yield from _faults(first, path, depth + 1)
        return
    allowed = _FIELD_SETS.get(name)
    if allowed is None:
        yield ConfigError(path, f'"{name}" is not supported by this sidecar; remove it (RMR0101)')
        return
    for descriptor, value in message.ListFields():
        place = f"{path}.{descriptor.name}" if path else descriptor.name
        if descriptor.name not in allowed:
            supported = ", ".join(sorted(allowed)) or "none"
            yield ConfigError(
                place, f"this field is not supported by this sidecar; supported here: {supported} (RMR0101)"
            )
        elif descriptor.message_type is not None:
            yield from _inside(value, place, depth)


def _inside(value: Any, place: str, depth: int) -> Iterator[ConfigError]:
    """Faults inside a message field: single, repeated, or a map of messages."""
    if isinstance(value, Message):
        yield from _faults(value, place, depth + 1)
    elif hasattr(value, "items"):
        for key, item in value.items():
            if isinstance(item, Message):
                yield from _faults(item, f"{place}[{key}]", depth + 1)
    else:
        for number, item in enumerate(value):
            if isinstance(item, Message):
                yield from _faults(item, f"{place}[{number}]", depth + 1)
