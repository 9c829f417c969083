"""Identities as the mesh names them (SPIFFE-ID): `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/NAME`."""

import re
from dataclasses import dataclass
from typing import Final

from cryptography import x509

DEFAULT_TRUST_DOMAIN: Final = "remora.local"
MAX_ID: Final = 2048
"""Bytes (SPIFFE-ID §2.3)."""
_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}", re.ASCII)
_LABEL: Final = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_FORM: Final = re.compile(rf"spiffe://({_DOMAIN.pattern})/ns/({_LABEL})/sa/({_LABEL})", re.ASCII)


class BadIdentity(ValueError):
    """No identity of a mesh; the text says what it is instead."""


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A service of a trust domain."""

    trust_domain: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.name}"

    @property
    def service(self) -> str:
        """`NAME.NAMESPACE`."""
        return f"{self.name}.{self.namespace}"


def parse(text: str) -> SpiffeId:
    """Raises BadIdentity."""
    found = _FORM.fullmatch(text) if len(text) <= MAX_ID else None
    if found is None:
        raise BadIdentity(f'"{text[:200]}" is not spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/NAME')
    return SpiffeId(found[1], found[2], found[3])


def is_trust_domain(text: str) -> bool:
    """True for a name that a trust domain may have (SPIFFE-ID §2.1)."""
    return _DOMAIN.fullmatch(text) is not None


def of_certificate(certificate: x509.Certificate) -> SpiffeId:
    """Whose certificate it is: exactly one URI (X.509-SVID §2). Raises BadIdentity."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        raise BadIdentity("the certificate is for nobody: it has no subject alternative name") from None
    found = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(found) != 1:
        raise BadIdentity(f"the certificate has {len(found)} URIs; exactly one is an identity")
    return parse(found[0])
