"""Signing requests of strangers (PKCS#10): what is taken from one is its key, and only if it is worth having."""

from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from control_plane.identity.spiffe import SpiffeId

MAX_BYTES: Final = 8192
LEAST_RSA_BITS: Final = 2048
MOST_RSA_BITS: Final = 4096
"""Above it, checking a signature costs the mesh more than the key is worth."""
RSA_EXPONENT: Final = 65_537
CURVES: Final = ("secp256r1", "secp384r1")
DIGESTS: Final = ("sha256", "sha384", "sha512")

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class BadRequest(Exception):
    """A request that is not signed; the text says why."""


def read(data: bytes, identity: SpiffeId) -> PublicKey:
    """The key of a request by `identity`, after it was shown that the sender has its other half. Raises BadRequest."""
    if len(data) > MAX_BYTES:
        raise BadRequest(f"the signing request has {len(data)} bytes; at most {MAX_BYTES} are read")
    try:
        request = x509.load_der_x509_csr(data)
        key = request.public_key()
        digest = request.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadRequest(f"the signing request is no PKCS#10 in DER, or of an unknown kind: {_first(error)}") from None
    found = accepted(key)
    if digest is None or digest.name not in DIGESTS:
        raise BadRequest(f"the signing request is signed over {digest.name if digest else 'no digest'}; use SHA-256")
    try:
        is_signed = request.is_signature_valid
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        is_signed = False
    if not is_signed:
        raise BadRequest("the signing request is not signed with its own key")
    _check_names(request, identity)
    return found


def accepted(key: object) -> PublicKey:
    """The key if it is of a kind and size that the mesh takes. Raises BadRequest."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in CURVES:
            raise BadRequest(f"a key on the curve {key.curve.name}; P-256 and P-384 are taken")
        return key
    if isinstance(key, rsa.RSAPublicKey):
        if not LEAST_RSA_BITS <= key.key_size <= MOST_RSA_BITS:
            raise BadRequest(f"an RSA key of {key.key_size} bits; {LEAST_RSA_BITS} to {MOST_RSA_BITS} are taken")
        if key.public_numbers().e != RSA_EXPONENT:
            raise BadRequest(f"an RSA key with the exponent {key.public_numbers().e}; {RSA_EXPONENT} is taken")
        return key
    raise BadRequest("a key of a kind that is not taken; use EC P-256")


def _check_names(request: x509.CertificateSigningRequest, identity: SpiffeId) -> None:
    """Whoever asks for a name gets that or nothing, never another certificate than it believes."""
    try:
        extensions = request.extensions
    except ValueError as error:
        raise BadRequest(f"the extensions of the signing request cannot be read: {_first(error)}") from None
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise BadRequest("the signing request asks to be an authority; only leaves are signed")
        if isinstance(value, x509.SubjectAlternativeName):
            names = [str(name.value) for name in value]
            if names != [str(identity)]:
                raise BadRequest(f"the signing request is for {', '.join(names)[:300] or 'nobody'}, not for {identity}")


def _first(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0][:200]
