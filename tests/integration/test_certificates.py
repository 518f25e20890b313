"""Certificates as files: found, judged with a reason, and made so that a client trusts them."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from opensend_milter.config import Tls
from opensend_milter.core.errors import ConfigError
from opensend_milter.host.certificates import MadeCertificate, find_certificate, make_certificate

NAMES = ("localhost", "127.0.0.1", "mail.example.org")


@pytest.fixture
def made(tmp_path: Path) -> MadeCertificate:
    return make_certificate(tmp_path, NAMES, now=dt.datetime.now(dt.UTC))


def shake_hands(made: MadeCertificate, name: str) -> None:
    """Serve one connection with the pair and connect as a client that trusts the authority alone."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.pair.certificate, made.pair.key)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with server.wrap_socket(theirs, server_side=True) as secured:
            secured.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    with ssl.create_default_context(cafile=str(made.ca)).wrap_socket(ours, server_hostname=name) as client:
        client.send(b"x")
    thread.join()


@pytest.mark.parametrize("name", NAMES)
def test_a_client_that_trusts_the_authority_accepts_the_leaf(made: MadeCertificate, name: str) -> None:
    shake_hands(made, name)


def test_the_key_is_for_its_owner_only(made: MadeCertificate) -> None:
    assert made.pair.key.stat().st_mode & 0o777 == 0o600


def test_a_folder_holds_the_pair(made: MadeCertificate) -> None:
    pair = find_certificate(Tls(folder=made.ca.parent))
    assert pair
    assert (pair.certificate, pair.key) == (made.pair.certificate, made.pair.key)
    assert pair.covers("MAIL.example.org.")
    assert not pair.covers("other.example.org")
    assert pair.expires_at > dt.datetime.now(dt.UTC)


def test_two_files_make_a_pair(made: MadeCertificate) -> None:
    assert find_certificate(Tls(certificate=made.pair.certificate, key=made.pair.key)) == find_certificate(
        Tls(folder=made.ca.parent)
    )


def test_nothing_configured_is_no_certificate() -> None:
    assert find_certificate(Tls()) is None


def test_acme_json_is_for_a_later_version(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls\.acme_json: .*not supported by this version"):
        find_certificate(Tls(acme_json=tmp_path / "acme.json"), "mail.example.org")


@pytest.mark.case(69)
def test_a_missing_file_is_named(made: MadeCertificate) -> None:
    made.pair.key.unlink()
    with pytest.raises(ConfigError, match=r"tls\.folder: .*privkey\.pem: No such file"):
        find_certificate(Tls(folder=made.ca.parent))


@pytest.mark.case(69)
def test_a_key_of_another_certificate_is_refused(made: MadeCertificate, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_certificate(tmp_path / "other", NAMES, now=dt.datetime.now(dt.UTC))
    with pytest.raises(ConfigError, match=r"tls\.key: .*is not the key"):
        find_certificate(Tls(certificate=made.pair.certificate, key=other.pair.key))


def test_an_encrypted_key_is_refused(made: MadeCertificate) -> None:
    encrypted = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )
    made.pair.key.write_bytes(encrypted)
    with pytest.raises(ConfigError, match="the key is encrypted"):
        find_certificate(Tls(folder=made.ca.parent))


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_file_that_is_no_certificate_is_refused(made: MadeCertificate, content: bytes) -> None:
    made.pair.certificate.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no certificate"):
        find_certificate(Tls(folder=made.ca.parent))


def test_a_file_that_is_no_key_is_refused(made: MadeCertificate) -> None:
    made.pair.key.write_bytes(made.pair.certificate.read_bytes())
    with pytest.raises(ConfigError, match="holds no private key"):
        find_certificate(Tls(folder=made.ca.parent))


@pytest.mark.case(69)
def test_an_expired_one_is_used_and_says_so(tmp_path: Path) -> None:
    make_certificate(tmp_path, NAMES, now=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    pair = find_certificate(Tls(folder=tmp_path))
    assert pair
    assert pair.expires_at < dt.datetime.now(dt.UTC)


def test_a_certificate_without_alternative_names_covers_nothing(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old.example.org")])
    now = dt.datetime.now(dt.UTC)
    old = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "fullchain.pem").write_bytes(old.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "privkey.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    pair = find_certificate(Tls(folder=tmp_path))
    assert pair
    assert not pair.covers("old.example.org")
