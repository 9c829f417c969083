"""Envoy's TLS messages to `TlsConfig`. Files are read here, so that a configuration holds what it will use.

What is to come by SDS is referred to: `secrets` brings it.
"""

import ipaddress
from pathlib import Path
from typing import Any, Final

from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2

from sidecar.proxy.config import SanMatch, Secret, SecretRef, TlsCertificate, TlsConfig, TlsVersion
from sidecar.proxy.tls import TlsError, client_context, server_context
from sidecar.xds.supported import ConfigError, refuse_unsupported, unpack
from sidecar.xds.values import regex

MAX_FILE_BYTES: Final = 1024 * 1024
"""Of one certificate, key or CA bundle."""

_VERSIONS: Final = {
    common_pb2.TlsParameters.TLSv1_2: TlsVersion.V1_2,
    common_pb2.TlsParameters.TLSv1_3: TlsVersion.V1_3,
}


def downstream(socket: Any, path: str) -> TlsConfig | None:
    """The `transport_socket` of a filter chain; None for plain text."""
    message = _context(socket, path, tls_pb2.DownstreamTlsContext)
    if message is None:
        return None
    place = f"{path}.typed_config"
    requires = message.require_client_certificate.value
    config = _common(message.common_tls_context, f"{place}.common_tls_context", requires=requires, sni="")
    if requires and not config.trusted_ca and config.trust_ref is None:
        raise ConfigError(
            f"{place}.require_client_certificate",
            "needs common_tls_context.validation_context.trusted_ca, or any certificate would do (RMR0124)",
        )
    if not config.refs:
        try:
            server_context(config)
        except TlsError as error:
            raise ConfigError(f"{place}.common_tls_context", f"{error} (RMR0124)") from None
    return config


def upstream(socket: Any, path: str) -> TlsConfig | None:
    """The `transport_socket` of a cluster; None for plain text."""
    message = _context(socket, path, tls_pb2.UpstreamTlsContext)
    if message is None:
        return None
    place = f"{path}.typed_config"
    config = _common(message.common_tls_context, f"{place}.common_tls_context", requires=True, sni=message.sni)
    if not config.refs:
        try:
            client_context(config)
        except TlsError as error:
            raise ConfigError(f"{place}.common_tls_context", f"{error} (RMR0124)") from None
    return config


def secret(message: Any) -> TlsCertificate | bytes:
    """A tls.v3.Secret: a certificate with its key, or whom to trust. Raises ConfigError."""
    path = f"secret[{message.name}]"
    refuse_unsupported(message, path)
    found: TlsCertificate | bytes
    match message.WhichOneof("type"):
        case "tls_certificate":
            found = _certificate(message.tls_certificate, f"{path}.tls_certificate")
            probe = TlsConfig(certificates=(found,))
        case "validation_context":
            context = message.validation_context
            if context.match_typed_subject_alt_names:
                raise ConfigError(
                    f"{path}.validation_context.match_typed_subject_alt_names",
                    "names stand in the configuration that refers to the secret, not in the secret (RMR0124)",
                )
            found = data_source(context.trusted_ca, f"{path}.validation_context.trusted_ca")
            probe = TlsConfig(trusted_ca=found)
        case _:
            raise ConfigError(path, "tls_certificate or validation_context is needed (RMR0124)")
    try:
        client_context(probe)
    except TlsError as error:
        raise ConfigError(path, f"{error} (RMR0124)") from None
    return found


def _context(socket: Any, path: str, kind: type[Any]) -> Any:
    message = unpack(socket.typed_config, f"{path}.typed_config")
    if message.DESCRIPTOR.name == "RawBuffer":
        return None
    if not isinstance(message, kind):
        raise ConfigError(f"{path}.typed_config", f"a {kind.DESCRIPTOR.name} is needed here (RMR0124)")
    return message


def _certificate(message: Any, path: str) -> TlsCertificate:
    return TlsCertificate(
        chain=data_source(message.certificate_chain, f"{path}.certificate_chain"),
        key=Secret(data_source(message.private_key, f"{path}.private_key")),
    )


def _ref(message: Any, path: str) -> SecretRef:
    """SdsSecretConfig; without `sds_config` the secret stands in the bootstrap."""
    source = message.sds_config.api_config_source
    if not message.HasField("sds_config"):
        return SecretRef("", message.name)
    if not message.sds_config.HasField("api_config_source") or source.api_type != 2 or len(source.grpc_services) != 1:
        raise ConfigError(
            f"{path}.sds_config", "api_config_source of api_type GRPC with one envoy_grpc service is needed (RMR0124)"
        )
    if not message.name:
        raise ConfigError(f"{path}.name", "the secret's name is needed (RMR0124)")
    return SecretRef(source.grpc_services[0].envoy_grpc.cluster_name, message.name)


def _common(message: Any, path: str, *, requires: bool, sni: str) -> TlsConfig:
    certificates = tuple(
        _certificate(item, f"{path}.tls_certificates[{number}]") for number, item in enumerate(message.tls_certificates)
    )
    certificate_ref = trust_ref = None
    by_sds = message.tls_certificate_sds_secret_configs
    if by_sds:
        if len(by_sds) > 1 or certificates:
            raise ConfigError(
                f"{path}.tls_certificate_sds_secret_configs", "one, and no tls_certificates beside it (RMR0124)"
            )
        certificate_ref = _ref(by_sds[0], f"{path}.tls_certificate_sds_secret_configs[0]")
    context, place = message.validation_context, f"{path}.validation_context"
    match message.WhichOneof("validation_context_type"):
        case "validation_context_sds_secret_config":
            where = f"{path}.validation_context_sds_secret_config"
            trust_ref = _ref(message.validation_context_sds_secret_config, where)
        case "combined_validation_context":
            combined, where = message.combined_validation_context, f"{path}.combined_validation_context"
            context, place = combined.default_validation_context, f"{where}.default_validation_context"
            trust_ref = _ref(
                combined.validation_context_sds_secret_config, f"{where}.validation_context_sds_secret_config"
            )
            if context.HasField("trusted_ca"):
                raise ConfigError(f"{place}.trusted_ca", "comes with the secret: give it there (RMR0124)")
    trusted_ca = data_source(context.trusted_ca, f"{place}.trusted_ca") if context.HasField("trusted_ca") else b""
    sans = tuple(
        _san(item, f"{place}.match_typed_subject_alt_names[{number}]")
        for number, item in enumerate(context.match_typed_subject_alt_names)
    )
    if sans and not trusted_ca and trust_ref is None:
        raise ConfigError(f"{place}.match_typed_subject_alt_names", "names mean nothing without trusted_ca (RMR0124)")
    params = f"{path}.tls_params"
    return TlsConfig(
        certificates=certificates,
        certificate_ref=certificate_ref,
        trust_ref=trust_ref,
        trusted_ca=trusted_ca,
        sans=sans,
        alpn=tuple(message.alpn_protocols),
        minimum=_version(message.tls_params.tls_minimum_protocol_version, params, TlsVersion.V1_2),
        maximum=_version(message.tls_params.tls_maximum_protocol_version, params, TlsVersion.V1_3),
        requires_client_certificate=requires or bool(sans),
        sni=sni,
    )


def _version(number: int, path: str, unset: TlsVersion) -> TlsVersion:
    if number == common_pb2.TlsParameters.TLS_AUTO:
        return unset
    found = _VERSIONS.get(number)
    if found is None:
        name = common_pb2.TlsParameters.TlsProtocol.Name(number)
        raise ConfigError(path, f"{name}: TLSv1_2 and TLSv1_3 are supported (RMR0124)")
    return found


def data_source(source: Any, path: str) -> bytes:
    """The bytes of a DataSource. Errors name the file, never what is in it."""
    match source.WhichOneof("specifier"):
        case "filename":
            try:
                with Path(source.filename).open("rb") as file:
                    data = file.read(MAX_FILE_BYTES + 1)
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise ConfigError(
                    f"{path}.filename", f'"{source.filename}" cannot be read: {reason} (RMR0125)'
                ) from None
            if len(data) > MAX_FILE_BYTES:
                raise ConfigError(f"{path}.filename", f'"{source.filename}" is over {MAX_FILE_BYTES} bytes (RMR0125)')
            return data
        case "inline_bytes":
            return bytes(source.inline_bytes)
        case "inline_string":
            return str(source.inline_string).encode()
    raise ConfigError(path, "filename, inline_bytes or inline_string is needed (RMR0125)")


def _san(message: Any, path: str) -> SanMatch:
    kind = common_pb2.SubjectAltNameMatcher.SanType.Name(message.san_type)
    if kind not in ("DNS", "URI", "EMAIL", "IP_ADDRESS"):
        raise ConfigError(f"{path}.san_type", f"{kind}: DNS, URI, EMAIL and IP_ADDRESS are supported (RMR0124)")
    matcher = message.matcher
    ignore_case = matcher.ignore_case
    match matcher.WhichOneof("match_pattern"):
        case "exact":
            exact = matcher.exact
            if kind == "IP_ADDRESS":
                try:
                    exact = str(ipaddress.ip_address(exact))
                except ValueError:
                    raise ConfigError(f"{path}.matcher.exact", f'"{exact}" is no IP address (RMR0124)') from None
            return SanMatch(kind, exact=exact, ignore_case=ignore_case)
        case "prefix":
            return SanMatch(kind, prefix=matcher.prefix, ignore_case=ignore_case)
        case "suffix":
            return SanMatch(kind, suffix=matcher.suffix, ignore_case=ignore_case)
        case "safe_regex":
            if ignore_case:
                raise ConfigError(f"{path}.matcher.ignore_case", "has no effect on safe_regex: remove it (RMR0124)")
            return SanMatch(kind, regex=regex(matcher.safe_regex, f"{path}.matcher.safe_regex"))
    raise ConfigError(f"{path}.matcher", "exact, prefix, suffix or safe_regex is needed (RMR0124)")
