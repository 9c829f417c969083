"""Certificates for tests: an authority, and what it signs, good or wrong in one point."""

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOUR: Final = timedelta(hours=1)
BOTH_USES: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


@dataclass(frozen=True)
class Leaf:
    """A certificate with its key, as PEM."""

    chain: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """As files: chain and key."""
        chain, key = folder / f"{name}.pem", folder / f"{name}.key"
        chain.write_bytes(self.chain)
        key.write_bytes(self.key)
        return chain, key

    def load(self, context: ssl.SSLContext, folder: Path) -> None:
        """Show it on this context."""
        name = f"leaf-{abs(hash(self.chain))}"
        context.load_cert_chain(*self.write(folder, name))


class Authority:
    """A root that signs leaves, and authorities below it."""

    def __init__(self, name: str = "test root", above: "Authority | None" = None) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = above or self
        builder = self._builder(self._name, signer, self._key.public_key(), -HOUR, 24 * HOUR)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = builder.sign(signer._key, hashes.SHA256())
        self._above = above

    @property
    def pem(self) -> bytes:
        """The authority's own certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @staticmethod
    def _builder(
        name: x509.Name, signer: "Authority", key: ec.EllipticCurvePublicKey, start: timedelta, end: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(signer._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + start)
            .not_valid_after(now + end)
        )

    def sign(
        self,
        *,
        dns: tuple[str, ...] = (),
        uri: tuple[str, ...] = (),
        ip: tuple[str, ...] = (),
        start: timedelta = -HOUR,
        end: timedelta = 24 * HOUR,
        uses: tuple[x509.ObjectIdentifier, ...] = BOTH_USES,
    ) -> Leaf:
        """A leaf for these names, valid from `start` to `end` from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, (dns or ("leaf",))[0])])
        builder = self._builder(name, self, key.public_key(), start, end)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        names: list[x509.GeneralName] = [x509.DNSName(each) for each in dns]
        names += [x509.UniformResourceIdentifier(each) for each in uri]
        names += [x509.IPAddress(ipaddress.ip_address(each)) for each in ip]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        chain = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        if self._above is not None:
            chain += self.pem
        return Leaf(
            chain,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
