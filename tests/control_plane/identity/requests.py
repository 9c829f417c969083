"""Signing requests, good or wrong in one point, and the proofs that go with them."""

from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from control_plane.identity import possession
from proto.mesh.v1 import identity_pb2

TRUST_DOMAIN: Final = "shop.test"
CART: Final = "spiffe://shop.test/ns/shop/sa/cart"


def key() -> ec.EllipticCurvePrivateKey:
    """A key as an agent makes it."""
    return ec.generate_private_key(ec.SECP256R1())


def signing_request(
    private: Any = None,
    *,
    uris: tuple[str, ...] = (),
    dns: tuple[str, ...] = (),
    is_authority: bool = False,
    common_name: str = "",
) -> bytes:
    """PKCS#10 in DER."""
    private = private or key()
    names = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    general: list[x509.GeneralName] = [x509.UniformResourceIdentifier(each) for each in uris]
    general += [x509.DNSName(each) for each in dns]
    if general:
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
    if is_authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    digest = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(private, digest).public_bytes(serialization.Encoding.DER)


def of_another_key() -> bytes:
    """A request whose signature was made with another key than the one that it holds: somebody else's key, in a certificate of ours."""
    mine, theirs = key(), key()
    honest = x509.load_der_x509_csr(signing_request(mine))
    mine_der = mine.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    theirs_der = theirs.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    data = honest.public_bytes(serialization.Encoding.DER)
    assert mine_der in data
    return data.replace(mine_der, theirs_der)


def rsa_key(bits: int, exponent: int = 65_537) -> rsa.RSAPrivateKey:
    """Slow from 4096 bits on."""
    return rsa.generate_private_key(exponent, bits)


def renewal(
    chain: bytes, private: ec.EllipticCurvePrivateKey, data: bytes, node_id: str = "cart~1"
) -> identity_pb2.Possession:
    """The proof for a renewal."""
    return possession.show(chain, private, possession.payload(possession.RENEW, data, node_id.encode()))
