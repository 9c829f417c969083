"""Certificates: a root, an intermediate authority below it, leaves below that. No files, no clock: `now` is a parameter."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.identity.signing_request import PublicKey
from control_plane.identity.spiffe import SpiffeId

ROOT_LIFE: Final = timedelta(days=3650)
INTERMEDIATE_LIFE: Final = timedelta(days=365)
LEAF_LIFE: Final = timedelta(hours=24)
SHORTEST_LEAF_LIFE: Final = timedelta(seconds=5)
BACKDATED: Final = timedelta(minutes=5)
"""Certificates are good from so long before they are made: clocks differ."""
_USES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class BadAuthority(Exception):
    """Certificate and key that cannot be an authority of the mesh; the text says why, never what a key holds."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A signed leaf."""

    chain: bytes
    """PEM: the leaf, then what signed it, without the root."""
    serial: str
    """Hexadecimal."""
    root: str
    """Fingerprint of the root that it leads to."""
    not_before: datetime
    not_after: datetime


class Authority:
    """A certificate that may sign, with its key and the way up to its root."""

    def __init__(self, chain: tuple[x509.Certificate, ...], key: PrivateKey) -> None:
        """`chain` begins with the signing certificate and ends with the root. Raises BadAuthority."""
        _check(chain, key)
        self.chain = chain
        self._key = key

    def __repr__(self) -> str:
        return f"Authority({self.certificate.subject.rfc4514_string()})"

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def root(self) -> x509.Certificate:
        return self.chain[-1]

    @property
    def not_after(self) -> datetime:
        return min(certificate.not_valid_after_utc for certificate in self.chain)

    @property
    def is_due(self) -> bool:
        """True if the root itself would sign leaves: then an intermediate is to be made."""
        return len(self.chain) == 1

    def key_pem(self) -> bytes:
        """For a file that only we can read."""
        return pem_of(self._key)

    def is_half_over(self, now: datetime) -> bool:
        """True if it is time for another one."""
        certificate = self.certificate
        return now >= certificate.not_valid_before_utc + (self.not_after - certificate.not_valid_before_utc) / 2

    def intermediate(self, now: datetime, life: timedelta = INTERMEDIATE_LIFE) -> "Authority":
        """A new authority below this root, which can sign leaves and nothing else."""
        key = ec.generate_private_key(ec.SECP256R1())
        number = x509.random_serial_number()
        names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "remora")]
        names.append(x509.NameAttribute(NameOID.COMMON_NAME, f"remora intermediate {number:x}"[:64]))
        until = min(now + life, self.not_after)
        builder = _builder(self.certificate, x509.Name(names), key.public_key(), number, now - BACKDATED, until)
        builder = _as_authority(builder, path_length=0)
        return Authority((builder.sign(self._key, hashes.SHA256()), *self.chain), key)

    def sign(self, key: PublicKey, identity: SpiffeId, now: datetime, life: timedelta = LEAF_LIFE) -> Issued:
        """A leaf: one name, both ends of a connection (X.509-SVID)."""
        number = x509.random_serial_number()
        until = min(now + life, self.not_after)
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "remora"),
                x509.NameAttribute(NameOID.COMMON_NAME, identity.name),
            ]
        )
        builder = _builder(self.certificate, name, key, number, now - BACKDATED, until)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(digital_signature=True), critical=True)
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        uri = x509.UniformResourceIdentifier(str(identity))
        builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        leaf = builder.sign(self._key, hashes.SHA256())
        return Issued(
            chain=b"".join(map(pem, (leaf, *self.chain[:-1]))),
            serial=f"{number:x}",
            root=fingerprint(self.root),
            not_before=leaf.not_valid_before_utc,
            not_after=leaf.not_valid_after_utc,
        )


def new_root(trust_domain: str, now: datetime, life: timedelta = ROOT_LIFE) -> Authority:
    """A root that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    number = x509.random_serial_number()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "remora"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"remora root {number:x}"[:64]),
        ]
    )
    builder = _builder(None, name, key.public_key(), number, now - BACKDATED, now + life)
    uri = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    return Authority((_as_authority(builder, path_length=1).sign(key, hashes.SHA256()),), key)


def _builder(
    issuer: x509.Certificate | None, name: x509.Name, key: PublicKey, number: int, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    above = issuer.public_key() if issuer is not None else key
    assert isinstance(above, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer is not None else name)
        .public_key(key)
        .serial_number(number)
        .not_valid_before(max(start, issuer.not_valid_before_utc) if issuer is not None else start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above), critical=False)
    )


def _as_authority(builder: x509.CertificateBuilder, path_length: int) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    return builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)


def _usage(**on: bool) -> x509.KeyUsage:
    off = dict.fromkeys(_USES, False)
    return x509.KeyUsage(**{**off, **on})


def _check(chain: tuple[x509.Certificate, ...], key: PrivateKey) -> None:
    if not chain:
        raise BadAuthority("there is no certificate")
    if _public(chain[0].public_key()) != _public(key.public_key()):
        raise BadAuthority("the key is not that of the (first) certificate")
    for below, above in zip(chain, (*chain[1:], chain[-1]), strict=True):
        try:
            below.verify_directly_issued_by(above)
        except Exception:  # noqa: BLE001 - it raises four kinds, all of which say the same to a user
            raise BadAuthority(
                f"{below.subject.rfc4514_string()} is not signed by the certificate after it; give the whole chain, root last"
            ) from None
    for certificate in chain:
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        except x509.ExtensionNotFound:
            constraints = x509.BasicConstraints(ca=False, path_length=None)
        if not constraints.ca:
            raise BadAuthority(f"{certificate.subject.rfc4514_string()} is no authority (basic constraints: CA)")


def _public(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey), "checked before"
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def load(chain: bytes, key: bytes) -> Authority:
    """An authority from PEM: its certificate first, its root last. Raises BadAuthority."""
    try:
        certificates = x509.load_pem_x509_certificates(chain)
    except ValueError as error:
        raise BadAuthority(f"the certificates cannot be read: {str(error).splitlines()[0][:200]}") from None
    try:
        loaded = serialization.load_pem_private_key(key, None)
    except TypeError:
        raise BadAuthority("the key is encrypted, and there is no way to give its password") from None
    except ValueError:
        raise BadAuthority("the key cannot be read; a PEM private key is needed") from None
    if not isinstance(loaded, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise BadAuthority("the key is of a kind that is not taken; use EC or RSA")
    for certificate in certificates:
        if not isinstance(certificate.public_key(), ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise BadAuthority(f"{certificate.subject.rfc4514_string()} has a key of a kind that is not taken")
    return Authority(tuple(certificates), loaded)


def pem(certificate: x509.Certificate) -> bytes:
    """PEM of one certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def pem_of(key: PrivateKey) -> bytes:
    """PEM of a private key."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def fingerprint(certificate: x509.Certificate) -> str:
    """By which a root is named."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def utc_now() -> datetime:
    """The clock of those who have one."""
    return datetime.now(UTC)
