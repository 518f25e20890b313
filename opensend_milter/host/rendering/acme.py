"""Traefik's acme.json: the certificate of one host name among those of many."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from opensend_milter.config.values import shown
from opensend_milter.core.errors import ConfigError

MOST_BYTES = 64 * 1_048_576


@dataclass(frozen=True, slots=True, kw_only=True)
class AcmeEntry:
    """One certificate with its key, as PEM."""

    names: tuple[str, ...]
    chain: bytes
    key: bytes = field(repr=False)
    expires_at: dt.datetime

    def write(self, folder: Path) -> bool:
        """Write fullchain.pem and privkey.pem, for their owner alone; False: they were so already."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The key first: Postfix refuses a pair that does not match, and reads both anew at its next reload.
            written = [_write(folder / "privkey.pem", self.key), _write(folder / "fullchain.pem", self.chain)]
        except OSError as error:
            raise ConfigError(f"tls.acme_json: {error.filename}: {error.strerror}") from error
        return any(written)

    def is_in(self, folder: Path) -> bool:
        """Tell whether the folder holds this very pair."""
        with suppress(OSError):
            return (folder / "fullchain.pem").read_bytes() == self.chain and (
                folder / "privkey.pem"
            ).read_bytes() == self.key
        return False


def acme_entry(path: Path, hostname: str) -> AcmeEntry | None:
    """Return the entry for a host name: by its own name before a wildcard, of several the one that lasts longest."""
    wanted = hostname.lower().rstrip(".")
    found = list(_entries(path))
    for name in (wanted, f"*.{wanted.partition('.')[2]}"):
        fitting = [entry for entry in found if name in entry.names]
        if wanted and fitting:
            return max(fitting, key=lambda entry: entry.expires_at)
    return None


def _entries(path: Path) -> Iterator[AcmeEntry]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"tls.acme_json: {path}: larger than {MOST_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"tls.acme_json: {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"tls.acme_json: {path}: is no JSON") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"tls.acme_json: {path}: is no acme.json of Traefik")
    # Either one resolver's content as it is, or the contents of several under their names.
    for resolver in (content, *content.values()):
        listed = resolver.get("Certificates") if isinstance(resolver, Mapping) else None
        for entry in listed if isinstance(listed, list) else ():
            if isinstance(entry, Mapping):
                yield _entry(entry, path)


def _entry(entry: Mapping[str, object], path: Path) -> AcmeEntry:
    domain = entry.get("domain")
    given = [domain]
    if isinstance(domain, Mapping):
        sans = domain.get("sans")
        given = [domain.get("main"), *(sans if isinstance(sans, list) else ())]
    names = tuple(name.lower().rstrip(".") for name in given if isinstance(name, str) and name.isprintable())
    try:
        chain, key = (base64.b64decode(str(entry[part]), validate=True) for part in ("certificate", "key"))
        leaf = x509.load_pem_x509_certificates(chain)[0]
    except (KeyError, ValueError, binascii.Error) as error:
        of = shown(", ".join(names)) if names else "no name"
        raise ConfigError(f"tls.acme_json: {path}: the entry of {of} is damaged") from error
    return AcmeEntry(names=names, chain=chain, key=key, expires_at=leaf.not_valid_after_utc)


def _write(path: Path, content: bytes) -> bool:
    with suppress(FileNotFoundError):
        if path.read_bytes() == content:
            return False
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(temporary).replace(path)
    return True
