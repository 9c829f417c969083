"""Showing that one has the key of a certificate: a signature over what the request is about.

What is signed begins with a word that nothing else signs, and names the purpose: it can be taken for nothing else. Whoever listens can
repeat it, and gets nothing by that: a certificate for a key that it does not have.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509 import verification

from control_plane.identity import spiffe
from control_plane.identity.authority import PrivateKey, fingerprint
from control_plane.identity.spiffe import SpiffeId
from proto.mesh.v1 import identity_pb2

_WORD: Final = b"remora.possession.v1"
RENEW: Final = "renew"
CONFIRM: Final = "confirm"
MAX_CHAIN: Final = 4
"""Certificates above the leaf."""


class NotProven(Exception):
    """A proof that proves nothing; the text says why, as far as the one who failed may know."""


def payload(purpose: str, *parts: bytes) -> bytes:
    """What is signed. Parts cannot run into each other: each is led by its length."""
    return b"".join((_WORD, b" ", purpose.encode(), *(b"\n%d:%s" % (len(part), part) for part in parts)))


def confirmation(request: identity_pb2.ConfirmRequest) -> bytes:
    """What a ConfirmRequest is signed over."""
    words = (request.generation, int(request.leaves), request.signed_at)
    return payload(CONFIRM, request.node_id.encode(), *(b"%d" % word for word in words))


def show(chain: bytes, key: PrivateKey, data: bytes) -> identity_pb2.Possession:
    """The proof."""
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    else:
        signature = key.sign(data, ec.ECDSA(hashes.SHA256()))
    return identity_pb2.Possession(chain=chain, signature=signature)


@dataclass(frozen=True, slots=True)
class Shown:
    """A certificate whose key the sender has."""

    identity: SpiffeId
    serial: str
    """Hexadecimal."""
    root: str
    """Fingerprint of the root that it leads to."""
    not_after: datetime


def prove(given: identity_pb2.Possession, data: bytes, trust: identity_pb2.Trust, now: datetime) -> Shown:
    """Which certificate was shown. Raises NotProven."""
    try:
        leaf, *above = x509.load_pem_x509_certificates(given.chain)
    except ValueError:
        raise NotProven("what was shown is no certificate chain in PEM") from None
    if len(above) > MAX_CHAIN:
        raise NotProven(f"{len(above)} certificates above the leaf; at most {MAX_CHAIN} are looked at")
    _check_signature(leaf, given.signature, data)
    if now > leaf.not_valid_after_utc:
        raise NotProven(f"the certificate ended at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC; join again")
    try:
        identity = spiffe.of_certificate(leaf)
    except spiffe.BadIdentity as error:
        raise NotProven(str(error)) from None
    if identity.trust_domain != trust.trust_domain:
        raise NotProven(f"the certificate is of the trust domain {identity.trust_domain}, not {trust.trust_domain}")
    root = _root_of(leaf, above, trust, now)
    return Shown(identity, f"{leaf.serial_number:x}", root, leaf.not_valid_after_utc)


def _check_signature(leaf: x509.Certificate, signature: bytes, data: bytes) -> None:
    key = leaf.public_key()
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            raise NotProven("the certificate's key is of a kind that is not taken")
    except InvalidSignature:
        raise NotProven("the request is not signed with the certificate's key") from None


def _root_of(leaf: x509.Certificate, above: list[x509.Certificate], trust: identity_pb2.Trust, now: datetime) -> str:
    roots = [x509.load_pem_x509_certificate(root.certificate) for root in trust.roots]
    policy = verification.ExtensionPolicy.permit_all()
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(roots))
        .time(now)
        .max_chain_depth(MAX_CHAIN)
        .extension_policies(
            ca_policy=policy.require_present(x509.BasicConstraints, verification.Criticality.AGNOSTIC, _is_authority),
            ee_policy=policy,
        )
        .build_client_verifier()
    )
    try:
        chain = verifier.verify(leaf, above).chain
    except verification.VerificationError as error:
        raise NotProven(f"the certificate leads to no root that this mesh trusts: {_first(error)}") from None
    return fingerprint(chain[-1])


def _is_authority(_: object, __: x509.Certificate, constraints: x509.ExtensionType | None) -> None:
    if not isinstance(constraints, x509.BasicConstraints) or not constraints.ca:
        raise ValueError("a certificate in the chain is no authority")


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
