"""Files that others write for us: our configuration, Traefik's acme.json."""

from __future__ import annotations

import base64
import datetime as dt
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import strategies as st

from opensend_milter.config import load
from opensend_milter.config.keys import KEYS, SECTIONS
from opensend_milter.config.sections import Config
from opensend_milter.core.errors import ConfigError
from opensend_milter.host.rendering.acme import acme_entry
from tests.fuzz import grammar
from tests.fuzz.measures import Check, sound

LONGEST_LINE = 1_000
"""Of what is said of a file: it goes onto a screen, and into a log."""


@contextmanager
def _opened(read: Callable[[Path], None]) -> Iterator[Check]:
    """Put what is made up into a file, and have it read."""
    with tempfile.TemporaryDirectory(prefix="os-fuzz-") as place:
        path = Path(place) / "file"

        def check(octets: bytes) -> float:
            path.write_bytes(octets)
            try:
                read(path)
            except ConfigError as error:
                said = str(error)
                sound([said])
                assert max(map(len, said.splitlines())) <= LONGEST_LINE, said[:200]
            return 0.0

        yield check


# ---------------------------------------------------------------------- the configuration

_SHIPPED = Path(__file__).parents[2] / "docs" / "opensend-milter.example.yaml"
_WHOLE = re.sub(r"(?m)^( *)#(?! )", r"\1", _SHIPPED.read_text()).encode()
"""Every key with its default."""
_NAMES = st.sampled_from([name.encode() for name in (*SECTIONS, *(key.name for key in KEYS))])
_VALUES = (
    grammar.words(
        "true", "no", "null", "~", "587", "-1", "0.5", ".inf", "1e999", "0x10", "1_000", "9" * 5_000, "2026-01-02",
        "/etc/x", "a:b", "''", "http://u:p@h/", "postgresql://u:p@h/d", "10.0.0.0/8", "[::1]", "&a", "*a", "<<", "!x",
        "!!python/name:os.system", "[", "{", "|", ">-", "%", "@", "- a", "=", "? ",
    )
    | grammar.words('"a\\nb"', '"\\0"', '"\\u2028"')
    | grammar.TEXT
    | grammar.RUNS
)  # fmt: skip
_PLACES = [f"{key.section}:\n  {key.name}: " if key.section else f"{key.name}: " for key in KEYS]
_PLACED = grammar.joined(grammar.words(*_PLACES), _VALUES, grammar.words("\n"))
_LINES = grammar.joined(
    grammar.words("", "  ", "  ", " ", "\t", "    "), _NAMES | grammar.RUNS,
    grammar.words(": ", ": ", ":", " : ", "? "), _VALUES, grammar.words("\n", "\n", "\r\n", " #", "\u2028", ""),
)  # fmt: skip
CONFIGURATIONS = grammar.cut(
    _PLACED | grammar.several(_LINES, 12) | grammar.changed([_WHOLE]) | grammar.several(_VALUES, 12) | grammar.ROWS
)


@contextmanager
def configuration() -> Iterator[Check]:
    """Read it or say what is wrong, and read back what was read."""
    with (
        tempfile.TemporaryDirectory(prefix="os-fuzz-") as place,
        _opened(lambda path: _configure(path, place)) as check,
    ):
        yield check


def _configure(path: Path, place: str) -> None:
    config = load(path, {})
    again = Path(place) / "again"
    again.write_text(_written(config))
    assert load(again, {}) == config


def _written(config: Config) -> str:
    sections: dict[str, dict[str, object]] = {}
    for key in KEYS:
        value = key.of(config)
        assert str(value).isprintable(), key.path  # it comes to stand in what is rendered
        sections.setdefault(key.section, {})[key.name] = str(value) if isinstance(value, Path) else value
    return yaml.safe_dump({**sections.pop("", {}), **sections}, allow_unicode=True)


# ---------------------------------------------------------------------- acme.json

_HOSTS = ("mail.example.com", "other.example.com", "example.com")


def _pair() -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example.com")])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(90))
    certificate = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return base64.b64encode(certificate).decode(), base64.b64encode(private).decode()


_CERTIFICATE, _KEY = _pair()
_RESOLVER = {
    "Account": {"Email": "a@example.com"},
    "Certificates": [
        {"domain": {"main": "mail.example.com"}, "certificate": _CERTIFICATE, "key": _KEY, "Store": "default"},
        {"domain": {"main": "*.example.com", "sans": ["example.com"]}, "certificate": _CERTIFICATE, "key": _KEY},
    ],
}
ACME = grammar.json_like([{"letsencrypt": _RESOLVER, "other": {"Certificates": None}}, _RESOLVER])


@contextmanager
def acme() -> Iterator[Check]:
    """Find the certificate of a host, or none, or say what is damaged."""
    with _opened(_find) as check:
        yield check


def _find(path: Path) -> None:
    for host in _HOSTS:
        found = acme_entry(path, host)
        if found:
            sound(found.names)
            assert {host, f"*.{host.partition('.')[2]}"} & set(found.names)
            assert x509.load_pem_x509_certificates(found.chain)[0].not_valid_after_utc == found.expires_at
