"""The certificate that Postfix shows: found and proved to be usable, or made for a sandbox."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from opensend_milter.config import Tls
from opensend_milter.core.errors import ConfigError
from opensend_milter.host.rendering.acme import AcmeEntry, acme_entry

ACME_FOLDER = Path("/var/lib/opensend-milter/certificate")
"""Where an installation keeps what it took out of acme.json."""
CHAIN, KEY = "fullchain.pem", "privkey.pem"
LIFETIME = dt.timedelta(days=825)
"""Longer-lived ones are refused by some clients."""
_CLOCK_SKEW = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificatePair:
    """A chain and its key, known to belong together."""

    certificate: Path
    key: Path
    expires_at: dt.datetime
    names: tuple[str, ...] = ()
    """DNS names and addresses that it is for."""

    def covers(self, hostname: str) -> bool:
        """Tell whether a client that connects to this name would be content."""
        wanted = hostname.lower().rstrip(".")
        wild = "*." + wanted.partition(".")[2]
        return any(name.lower() in {wanted, wild} for name in self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeCertificate:
    """What `make_certificate` wrote."""

    ca: Path
    pair: CertificatePair


def find_certificate(tls: Tls, hostname: str = "", *, folder: Path | None = None) -> CertificatePair | None:
    """Return the configured pair, or None where none is configured; raise ConfigError naming key, path and reason.

    An expired one is returned all the same: mail with an old certificate beats no mail. `hostname` chooses the entry
    of acme.json, which is written into `folder`, because Postfix reads PEM files only.
    """
    if pair := _from_acme(tls, hostname, folder):
        return pair
    if tls.certificate and tls.key:
        return _load(tls.certificate, tls.key, "tls.certificate", "tls.key")
    if tls.folder:
        return _load(tls.folder / CHAIN, tls.folder / KEY, "tls.folder", "tls.folder")
    return None


def _from_acme(tls: Tls, hostname: str, folder: Path | None) -> CertificatePair | None:
    path = tls.acme_json
    if path is None:
        return None
    entry = acme_entry(path, hostname)
    if entry is None:
        if tls.certificate or tls.folder:
            return None
        raise ConfigError(
            f"tls.acme_json: {path}: has no certificate for {hostname or 'smtp.hostname, which is not set'}"
        )
    if folder is None:
        raise ConfigError(
            f"tls.acme_json: {path}: only Postfix is given its certificate; use tls.certificate and tls.key"
        )
    # Before it is written: the pair that Postfix has now is better than one that is none.
    if not _belong_together(entry):
        raise ConfigError(f"tls.acme_json: {path}: the key of {hostname} is not that of its certificate")
    entry.write(folder)
    return _load(folder / CHAIN, folder / KEY, "tls.acme_json", "tls.acme_json")


def _belong_together(entry: AcmeEntry) -> bool:
    try:
        chain = x509.load_pem_x509_certificates(entry.chain)
        private = serialization.load_pem_private_key(entry.key, password=None)
    except (TypeError, ValueError):
        return False
    return _public(private.public_key()) == _public(chain[0].public_key())


def _load(certificate: Path, key: Path, certificate_name: str, key_name: str) -> CertificatePair:
    chain = _read_chain(certificate, certificate_name)
    private = _read_key(key, key_name)
    if _public(private.public_key()) != _public(chain[0].public_key()):
        raise ConfigError(f"{key_name}: {key}: is not the key of the first certificate in {certificate}")
    return CertificatePair(
        certificate=certificate, key=key, expires_at=chain[0].not_valid_after_utc, names=_names(chain[0])
    )


def _read_chain(path: Path, name: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path, name))
    except ValueError as error:
        raise ConfigError(f"{name}: {path}: holds no certificate in PEM form") from error


def _read_key(path: Path, name: str) -> PrivateKeyTypes:
    content = _read(path, name)
    try:
        return serialization.load_pem_private_key(content, password=None)
    except TypeError as error:
        raise ConfigError(f"{name}: {path}: the key is encrypted: Postfix needs it without a passphrase") from error
    except ValueError as error:
        raise ConfigError(f"{name}: {path}: holds no private key in PEM form") from error


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: {path}: {error.strerror}") from error


def _public(key: object) -> bytes:
    if not hasattr(key, "public_bytes"):
        return b""
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def first_certificate(path: Path) -> bytes:
    """Return the certificate that is shown to clients (DER)."""
    return _read_chain(path, "tls")[0].public_bytes(serialization.Encoding.DER)


def gap_in_chain(path: Path) -> str:
    """Return what a client would miss between the certificate and an authority that it knows, or nothing."""
    chain = _read_chain(path, "tls")
    for one, issuer in pairwise(chain):
        try:
            one.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            return f"{issuer.subject.rfc4514_string()} is not the issuer of {one.subject.rfc4514_string()}"
    if len(chain) > 1:
        return ""
    if chain[0].issuer == chain[0].subject:
        return "it is signed by itself: no client trusts it unless it is told to"
    return f"the certificate of its issuer, {chain[0].issuer.rfc4514_string()}, is not in the file"


def make_certificate(folder: Path, names: Sequence[str], *, now: dt.datetime) -> MadeCertificate:
    """Write ca.pem, fullchain.pem and privkey.pem: ECDSA P-256, which costs the least CPU per session.

    The authority's own key is forgotten: it signs this one certificate and no other.
    """
    ca_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "opensend-milter sandbox CA")])
    ca = (
        _builder(ca_name, ca_name, ca_key, ca_key, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    leaf_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    leaf = (
        _builder(leaf_name, ca_name, leaf_key, ca_key, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    ca_pem, leaf_pem = (one.public_bytes(serialization.Encoding.PEM) for one in (ca, leaf))
    key_pem = leaf_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pair = CertificatePair(
        certificate=folder / CHAIN,
        key=folder / KEY,
        expires_at=leaf.not_valid_after_utc,
        names=tuple(names),
    )
    made = MadeCertificate(ca=folder / "ca.pem", pair=pair)
    _write(made.ca, ca_pem, 0o644)
    _write(pair.certificate, leaf_pem + ca_pem, 0o644)
    _write(pair.key, key_pem, 0o600)
    return made


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
