"""Certificates as files: found, judged with a reason, and made so that a client trusts them."""

from __future__ import annotations

import base64
import datetime as dt
import json
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from opensend_milter.config import Tls
from opensend_milter.core.errors import ConfigError
from opensend_milter.host.rendering.acme import acme_entry
from opensend_milter.host.rendering.certificates import MadeCertificate, find_certificate, make_certificate

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


def encoded(folder: Path) -> dict[str, str]:
    """Return the pair in a folder as Traefik keeps it."""
    return {
        part: base64.b64encode((folder / name).read_bytes()).decode()
        for part, name in (("certificate", "fullchain.pem"), ("key", "privkey.pem"))
    }


def acme(tmp_path: Path, entries: Sequence[tuple[object, dt.datetime]], shape: str = "resolver") -> Path:
    """Write an acme.json with a certificate made at that time for each domain."""
    listed = []
    for number, (domain, made_at) in enumerate(entries):
        folder = tmp_path / f"source{number}"
        folder.mkdir()
        make_certificate(folder, [f"source{number}.example"], now=made_at)
        listed.append({"domain": domain, "Store": "default", **encoded(folder)})
    content = {"Account": {"Email": "a@example.org"}, "Certificates": listed}
    path = tmp_path / "acme.json"
    path.write_text(json.dumps(content if shape == "bare" else {shape: content, "unused": {"Certificates": None}}))
    return path


NOW = dt.datetime.now(dt.UTC)
MAIL = {"main": "mail.example.org"}


@pytest.mark.parametrize("shape", ["letsencrypt", "any-name", "bare"])
@pytest.mark.parametrize(
    "domain",
    [
        MAIL,
        "mail.example.org",
        {"main": "www.example.org", "sans": ["other.example.org", "MAIL.example.org."]},
        {"main": "*.example.org", "sans": None},
    ],
)
def test_acme_json_gives_the_certificate_of_our_name(tmp_path: Path, shape: str, domain: object) -> None:
    path = acme(tmp_path, [("elsewhere.example.net", NOW), (domain, NOW)], shape)
    pair = find_certificate(Tls(acme_json=path), "Mail.Example.org", folder=tmp_path / "ours")
    assert pair
    assert pair.certificate.read_bytes() == (tmp_path / "source1" / "fullchain.pem").read_bytes()
    assert pair.key.read_bytes() == (tmp_path / "source1" / "privkey.pem").read_bytes()
    assert {path.stat().st_mode & 0o777 for path in (pair.certificate, pair.key)} == {0o600}
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o700


def test_of_several_entries_the_own_name_and_then_the_longest_life_wins(tmp_path: Path) -> None:
    day = dt.timedelta(days=1)
    entries = [({"main": "*.example.org"}, NOW), (MAIL, NOW - 9 * day), (MAIL, NOW - day), (MAIL, NOW - 2 * day)]
    pair = find_certificate(Tls(acme_json=acme(tmp_path, entries)), "mail.example.org", folder=tmp_path / "ours")
    assert pair
    assert pair.names == ("source2.example",)


def test_a_wildcard_is_for_one_label(tmp_path: Path) -> None:
    path = acme(tmp_path, [({"main": "*.example.org"}, NOW)])
    with pytest.raises(ConfigError, match=r"has no certificate for a\.b\.example\.org"):
        find_certificate(Tls(acme_json=path), "a.b.example.org", folder=tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_renewed_entry_is_written_again_and_another_is_not(tmp_path: Path) -> None:
    path = acme(tmp_path, [(MAIL, NOW)])
    entry = acme_entry(path, "mail.example.org")
    assert entry
    assert entry.write(tmp_path / "ours")
    assert not entry.write(tmp_path / "ours")
    assert entry.is_in(tmp_path / "ours")
    renewed = {"main": "mail.example.org"}
    (tmp_path / "new").mkdir()
    make_certificate(tmp_path / "new", ["new.example"], now=NOW)
    path.write_text(json.dumps({"le": {"Certificates": [{"domain": renewed, **encoded(tmp_path / "new")}]}}))
    other = acme_entry(path, "mail.example.org")
    assert other
    assert not other.is_in(tmp_path / "ours")
    assert other.write(tmp_path / "ours")
    assert sorted(one.name for one in (tmp_path / "ours").iterdir()) == ["fullchain.pem", "privkey.pem"]


def test_pem_files_stand_in_where_acme_json_has_no_such_name(made: MadeCertificate, tmp_path: Path) -> None:
    path = acme(tmp_path, [("elsewhere.example.net", NOW)])
    both = Tls(acme_json=path, certificate=made.pair.certificate, key=made.pair.key)
    pair = find_certificate(both, "mail.example.org", folder=tmp_path / "ours")
    assert pair
    assert pair.certificate == made.pair.certificate


@pytest.mark.case(69)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is no JSON"),
        ("[]", r"is no acme\.json"),
        ("[" * 50_000, "is no JSON"),
        ("{}", r"has no certificate for mail\.example\.org"),
        ('{"le": {"Certificates": "none"}}', "has no certificate"),
        ('{"le": {"Certificates": [{"domain": "mail.example.org"}]}}', r"the entry of 'mail\.example\.org' is damaged"),
        ('{"Certificates": [{"domain": "%s"}]}' % ("x" * 5_000), r"the entry of 'x+\.\.\.' \(5000 bytes\) is damaged"),
        (r'{"Certificates": [{"domain": "\ud800\n"}]}', "the entry of no name is damaged"),
        ('{"Certificates": [{"domain": 1, "certificate": "?", "key": "?"}]}', "the entry of no name is damaged"),
    ],
)
def test_an_acme_json_that_cannot_be_used_says_why(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "acme.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"tls\.acme_json: .*{reason}"):
        find_certificate(Tls(acme_json=tmp_path / "acme.json"), "mail.example.org", folder=tmp_path / "ours")


def test_an_acme_json_that_is_not_there_or_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls\.acme_json: .*No such file"):
        find_certificate(Tls(acme_json=tmp_path / "acme.json"), "mail.example.org", folder=tmp_path / "ours")
    path = acme(tmp_path, [(MAIL, NOW)])
    with pytest.raises(ConfigError, match="only Postfix is given its certificate"):
        find_certificate(Tls(acme_json=path), "mail.example.org")
    with pytest.raises(ConfigError, match=r"tls\.acme_json: .*Not a directory"):
        find_certificate(Tls(acme_json=path), "mail.example.org", folder=path / "ours")


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


def test_a_pair_that_does_not_match_replaces_none(tmp_path: Path) -> None:
    """What Postfix has now is better than what it could not use after its next restart."""
    good = acme(tmp_path, [(MAIL, NOW)])
    before = find_certificate(Tls(acme_json=good), "mail.example.org", folder=tmp_path / "ours")
    assert before
    content = before.key.read_bytes(), before.certificate.read_bytes()
    listed = json.loads(good.read_text())
    (tmp_path / "another").mkdir()
    make_certificate(tmp_path / "another", ["mail.example.org"], now=NOW)
    listed["resolver"]["Certificates"][0]["key"] = encoded(tmp_path / "another")["key"]
    good.write_text(json.dumps(listed))
    with pytest.raises(ConfigError, match=r"tls\.acme_json: .*is not that of its certificate"):
        find_certificate(Tls(acme_json=good), "mail.example.org", folder=tmp_path / "ours")
    assert (before.key.read_bytes(), before.certificate.read_bytes()) == content
