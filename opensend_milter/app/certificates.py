"""The certificate that a door of ours shows: HTTP's, or the console's."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Literal

from opensend_milter.config import Config
from opensend_milter.core.errors import ConfigError
from opensend_milter.host.rendering.certificates import find_certificate

log = logging.getLogger(__name__)


def pair_of(config: Config, door: Literal["http", "console"]) -> tuple[Path, Path]:
    """Return the certificate that a door shows, and its key; raise ConfigError."""
    # What comes out of acme.json is root's, and Postfix's.
    pair = find_certificate(dataclasses.replace(config.tls, acme_json=None))
    if pair is None:
        raise ConfigError(f"{door}.tls: expected false, or a certificate in tls.certificate or tls.folder, got true")
    log.info("the certificate is good until %s", f"{pair.expires_at:%Y-%m-%d %H:%M} UTC")
    return pair.certificate, pair.key
