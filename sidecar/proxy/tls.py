"""TLS of listeners and clusters: contexts from configuration, and what is asked of a peer's certificate beyond its chain.

A context is made once for each distinct `TlsConfig`, so a new certificate is a new configuration and a new context: connections that stand keep
the old one, new ones get the new one. The keys are read from anonymous memory, never from a file of ours. What a configuration only refers to
(SDS) is put in by `resolved`, for each new connection as it is then.
"""

import ipaddress
import os
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from time import time
from typing import Any, Final, TypeAlias, cast

from sidecar.policy import pattern
from sidecar.proxy.config import (
    ClusterConfig,
    EndpointConfig,
    SanMatch,
    SecretRef,
    TlsCertificate,
    TlsConfig,
    TlsVersion,
)

Secrets: TypeAlias = Mapping[SecretRef, TlsCertificate | bytes]

MAX_CONTEXTS: Final = 256

_VERSIONS: Final = {TlsVersion.V1_2: ssl.TLSVersion.TLSv1_2, TlsVersion.V1_3: ssl.TLSVersion.TLSv1_3}
_PYTHON_KINDS: Final = {"DNS": "DNS", "URI": "URI", "EMAIL": "email", "IP_ADDRESS": "IP Address"}


class TlsError(Exception):
    """A certificate, key or CA that cannot be used; the text says which and why, never what a key holds."""


@lru_cache(maxsize=MAX_CONTEXTS)
def server_context(config: TlsConfig) -> ssl.SSLContext:
    """For a listener. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if not config.certificates:
        raise TlsError("a listener needs a certificate")
    _prepare(context, config)
    if config.trusted_ca:
        context.verify_mode = ssl.CERT_REQUIRED if config.requires_client_certificate else ssl.CERT_OPTIONAL
    return context


@lru_cache(maxsize=MAX_CONTEXTS)
def client_context(config: TlsConfig) -> ssl.SSLContext:
    """For connections to endpoints. Without `trusted_ca` any certificate is taken, as Envoy does. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # names are compared as configured, see `refusal`
    context.verify_mode = ssl.CERT_REQUIRED if config.trusted_ca else ssl.CERT_NONE
    _prepare(context, config)
    return context


def resolved(config: TlsConfig, secrets: Secrets) -> TlsConfig:
    """The configuration with the secrets that it refers to. Raises TlsError for one that has not come: never does without."""
    if not config.refs:
        return config
    missing = [ref for ref in config.refs if ref not in secrets]
    if missing:
        raise TlsError(f"the secret {missing[0]} has not come yet")
    fresh = config
    if config.certificate_ref is not None:
        certificate = secrets[config.certificate_ref]
        if not isinstance(certificate, TlsCertificate):
            raise TlsError(f"the secret {config.certificate_ref} is no certificate")
        fresh = replace(fresh, certificates=(certificate,), certificate_ref=None)
    if config.trust_ref is not None:
        trusted = secrets[config.trust_ref]
        if not isinstance(trusted, bytes):
            raise TlsError(f"the secret {config.trust_ref} is no validation context")
        fresh = replace(fresh, trusted_ca=trusted, trust_ref=None)
    return fresh


def chosen(cluster: ClusterConfig, endpoint: EndpointConfig) -> TlsConfig | None:
    """How an endpoint is spoken to; None is plain text (Envoy: cluster.v3.Cluster.transport_socket_matches)."""
    for match in cluster.tls_matches:
        if all(label in endpoint.tls_labels for label in match.labels):
            return match.tls
    return cluster.tls


def security(cluster: ClusterConfig, endpoint: EndpointConfig) -> str:
    """Label of metrics: what calls to an endpoint go over, `mutual_tls` or `tls`; empty is plain text."""
    config = chosen(cluster, endpoint)
    return config.security if config is not None else ""


def with_alpn(config: TlsConfig, protocol: str) -> TlsConfig:
    """The same with the protocol that a cluster speaks, where none was given."""
    return config if config.alpn or not protocol else replace(config, alpn=(protocol,))


def _prepare(context: ssl.SSLContext, config: TlsConfig) -> None:
    context.minimum_version = _VERSIONS[config.minimum]
    context.maximum_version = _VERSIONS[config.maximum]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate CA may be the anchor (as in Envoy)
    if config.alpn:
        context.set_alpn_protocols(list(config.alpn))
    for certificate in config.certificates:
        _load(context, certificate)
    if config.trusted_ca:
        try:
            context.load_verify_locations(cadata=config.trusted_ca.decode("ascii", "replace"))
        except (ssl.SSLError, ValueError) as error:
            raise TlsError(f"trusted_ca: {_reason(error)}") from None


def _load(context: ssl.SSLContext, certificate: TlsCertificate) -> None:
    def no_password() -> str:
        raise TlsError("the private key is encrypted, and there is no way to give its password")

    try:
        with _as_file(certificate.key.value + b"\n" + certificate.chain) as path:
            context.load_cert_chain(path, password=no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise TlsError(f"certificate and key: {_reason(error)}") from None


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path from which OpenSSL reads the data: in memory where the system has that, else a file that only we can read."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("tls", os.MFD_CLOEXEC)
        try:
            os.write(number, data)
            yield f"/proc/self/fd/{number}"
        finally:
            os.close(number)
    else:
        with tempfile.NamedTemporaryFile(prefix="remora-tls-") as file:
            file.write(data)
            file.flush()
            yield file.name


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else str(error)


def describe(error: OSError) -> str:
    """Why a handshake failed, in few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: the certificate is not accepted: {error.verify_message.lower()}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {_reason(error)}"
    return (os.strerror(error.errno) if error.errno else str(error)).lower()


def refusal(config: TlsConfig, peer: ssl.SSLObject) -> str:
    """Why the peer is not taken although its chain is good; empty if it is taken (Envoy: match_typed_subject_alt_names)."""
    if not config.trusted_ca:
        return ""
    certificate = peer.getpeercert()
    if certificate and ssl.cert_time_to_seconds(str(certificate["notAfter"])) < time():
        return "its certificate has ended"  # a session that is resumed is not checked again
    if not config.sans:
        return ""
    names = cast(tuple[tuple[str, str], ...], (certificate or {}).get("subjectAltName", ()))
    for match in config.sans:
        kind = _PYTHON_KINDS[match.kind]
        if any(kind == found and _holds(match, value) for found, value in names):
            return ""
    shown = ", ".join(f"{kind}:{value}" for kind, value in names[:4])
    return f"its certificate is for {shown or 'nobody'}"


_ATTRIBUTES: Final = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
}


def subject(certificate: Any) -> str:
    """The subject of what `getpeercert` gave, last part first (RFC 2253)."""
    parts = [part for group in certificate.get("subject", ()) for part in group]
    return ",".join(f"{_ATTRIBUTES.get(name, name)}={value}" for name, value in reversed(parts))


def peer_identity(peer: Any) -> str:
    """The URI that a peer's checked certificate is for (SPIFFE); empty if it showed none, or has not exactly one."""
    certificate = peer.getpeercert() if peer is not None else None
    names = cast(tuple[tuple[str, str], ...], (certificate or {}).get("subjectAltName", ()))
    found = [value for kind, value in names if kind == "URI"]
    return found[0] if len(found) == 1 else ""


def _holds(match: SanMatch, value: str) -> bool:
    if match.kind == "IP_ADDRESS":
        value = str(ipaddress.ip_address(value.strip()))
    wanted = match.exact if match.exact is not None else match.prefix if match.prefix is not None else match.suffix
    if match.ignore_case:
        value, wanted = value.lower(), wanted.lower() if wanted is not None else None
    if match.exact is not None:
        return value == wanted or (match.kind == "DNS" and _wildcard_holds(value, match.exact))
    if match.prefix is not None:
        return value.startswith(wanted or "")
    if match.suffix is not None:
        return value.endswith(wanted or "")
    assert match.regex is not None
    return pattern.matches(match.regex, value.encode())


def _wildcard_holds(pattern: str, name: str) -> bool:
    """A name in the certificate whose first label is `*` stands for exactly one label (RFC 6125 §6.4.3)."""
    pattern, name = pattern.lower(), name.lower()
    if not pattern.startswith("*."):
        return pattern == name
    label, _, rest = name.partition(".")
    return bool(label) and rest == pattern[2:]
