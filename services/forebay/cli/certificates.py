"""Development certificates: an authority of this mesh alone, and a certificate for each process and for the operator.

They are made on first start and made anew when less than a third of their life is left. Elsewhere certificates come from
cert-manager or the like; what they must hold is said in `forebay.rpc.tls`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from forebay.cli.data_dir import write_file
from forebay.rpc.tls import service_name

AUTHORITY_LIFE = timedelta(days=3650)
CERTIFICATE_LIFE = timedelta(days=90)
# Long ago: a certificate that was made while the clock was ahead is valid when it is right again, and on every other machine.
_VALID_FROM = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Authority:
    """What vouches for a mesh's services: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, now: datetime) -> Authority:
        """Makes a new one."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forebay development authority")])
        builder = _builder(name, name, key.public_key(), _VALID_FROM, now + AUTHORITY_LIFE)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load_or_create(cls, folder: Path, now: datetime) -> Authority:
        """Returns the authority kept in `folder` (ca.pem, ca.key), made on first use."""
        certificate_file, key_file = folder / "ca.pem", folder / "ca.key"
        if certificate_file.exists() and key_file.exists():
            key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            return cls(x509.load_pem_x509_certificate(certificate_file.read_bytes()), key)
        authority = cls.create(now)
        write_file(key_file, _pem(authority.key), 0o600)
        write_file(certificate_file, _text(authority.certificate))
        return authority

    def issue(self, service: str, replica: str, now: datetime, life: timedelta = CERTIFICATE_LIFE) -> tuple[str, str]:
        """Returns a certificate for one replica of a service, and its private key, as PEM texts."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, replica)])
        names: list[x509.GeneralName] = [x509.DNSName(service_name(service)), x509.DNSName("localhost")]
        names.append(x509.IPAddress(IPv4Address("127.0.0.1")))
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = _builder(name, self.certificate.subject, key.public_key(), _VALID_FROM, now + life)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        return _text(builder.sign(self.key, hashes.SHA256())), _pem(key)


def certify(folder: Path, service: str, replica: str, now: datetime | None = None) -> dict[str, str]:
    """Returns the files of a replica's certificate, as a service's `tls` configuration; makes what is missing or nearly over."""
    now = now or datetime.now(UTC)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = Authority.load_or_create(folder, now)
    certificate_file, key_file = folder / f"{replica}.pem", folder / f"{replica}.key"
    if not (certificate_file.exists() and key_file.exists() and _lasts(certificate_file, now)):
        certificate, key = authority.issue(service, replica, now)
        write_file(key_file, key, 0o600)
        write_file(certificate_file, certificate)
    return {
        "ca_file": str(folder / "ca.pem"),
        "certificate_file": str(certificate_file),
        "key_file": str(key_file),
    }


def _lasts(file: Path, now: datetime) -> bool:
    return x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc - now > CERTIFICATE_LIFE / 3


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)


def _text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
