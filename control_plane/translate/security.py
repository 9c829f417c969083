"""Mutual TLS in Envoy's messages: whose certificate is shown, and whose is taken.

The certificate and the roots come to a node by SDS from its own agent; what is said here is only by which name, and which identities
the other side may have.
"""

from functools import lru_cache
from typing import Any, Final

from envoy.config.core.v3 import base_pb2, config_source_pb2, grpc_service_pb2
from envoy.config.listener.v3 import listener_components_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import any_pb2, duration_pb2, wrappers_pb2

from control_plane.translate.view import PeerView
from proto.mesh.v1 import policy_pb2

IDENTITY: Final = "identity"
TRUST: Final = "trust"
"""Names of the secrets that an agent serves."""
MATCH: Final = "envoy.transport_socket_match"
"""Metadata of endpoints."""
MUTUAL_TLS: Final = "mutual_tls"
PLAIN_TEXT: Final = "plain_text"
_SOCKET: Final = "envoy.transport_sockets."


def secure(cluster: Any, peer: PeerView, source: str) -> None:
    """Say how a cluster's endpoints are spoken to by a caller with an identity."""
    match peer.mutual_tls:
        case policy_pb2.AuthenticationPolicySpec.Disable:
            return
        case policy_pb2.AuthenticationPolicySpec.Strict:
            cluster.transport_socket.CopyFrom(_upstream(peer.identities, source))
        case _:
            matches = cluster.transport_socket_matches
            matches.add(name=MUTUAL_TLS, transport_socket=_upstream(peer.identities, source)).match.update(
                {MUTUAL_TLS: "true"}
            )
            matches.add(name=PLAIN_TEXT, transport_socket=_raw())


@lru_cache(64)
def downstream(source: str) -> Any:
    """For the chain that takes mutual TLS: anybody whom the mesh knows may come."""
    context = tls_pb2.DownstreamTlsContext(
        common_tls_context=_common(source), require_client_certificate=wrappers_pb2.BoolValue(value=True)
    )
    context.common_tls_context.validation_context_sds_secret_config.CopyFrom(_secret(TRUST, source))
    return _socket("tls", context)


def tls_inspector() -> Any:
    """Finds out on one port who speaks TLS."""
    packed = any_pb2.Any()
    packed.Pack(tls_inspector_pb2.TlsInspector())
    return listener_components_pb2.ListenerFilter(name="envoy.filters.listener.tls_inspector", typed_config=packed)


def _upstream(identities: tuple[str, ...], source: str) -> Any:
    """Only to one of these identities: a good chain is not enough, the mesh has other services."""
    context = tls_pb2.UpstreamTlsContext(common_tls_context=_common(source))
    combined = context.common_tls_context.combined_validation_context
    combined.validation_context_sds_secret_config.CopyFrom(_secret(TRUST, source))
    for identity in identities:
        combined.default_validation_context.match_typed_subject_alt_names.add(
            san_type=common_pb2.SubjectAltNameMatcher.URI, matcher=string_pb2.StringMatcher(exact=identity)
        )
    return _socket("tls", context)


def _common(source: str) -> Any:
    return tls_pb2.CommonTlsContext(
        tls_params=common_pb2.TlsParameters(
            tls_minimum_protocol_version=common_pb2.TlsParameters.TLSv1_3,
            tls_maximum_protocol_version=common_pb2.TlsParameters.TLSv1_3,
        ),
        tls_certificate_sds_secret_configs=[_secret(IDENTITY, source)],
        alpn_protocols=["h2"],
    )


def _secret(name: str, source: str) -> Any:
    service = grpc_service_pb2.GrpcService(envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name=source))
    by_grpc = config_source_pb2.ApiConfigSource(
        api_type=config_source_pb2.ApiConfigSource.GRPC,
        transport_api_version=config_source_pb2.V3,
        grpc_services=[service],
    )
    return secret_pb2.SdsSecretConfig(
        name=name,
        sds_config=config_source_pb2.ConfigSource(
            api_config_source=by_grpc,
            resource_api_version=config_source_pb2.V3,
            initial_fetch_timeout=duration_pb2.Duration(),  # as long as it takes: without it there is no call
        ),
    )


def _raw() -> Any:
    return _socket("raw_buffer", raw_buffer_pb2.RawBuffer())


def _socket(name: str, config: Any) -> Any:
    packed = any_pb2.Any()
    packed.Pack(config, deterministic=True)
    return base_pb2.TransportSocket(name=_SOCKET + name, typed_config=packed)
