"""`certificate`: checks the configured certificate, and takes it out of acme.json anew where it comes from there."""

from __future__ import annotations

from opensend_milter import config as configuration
from opensend_milter.cli.exits import exits
from opensend_milter.cli.output import AsJson, ConfigPath, plain, show
from opensend_milter.core.errors import ConfigError
from opensend_milter.host.rendering.certificates import ACME_FOLDER, find_certificate


def certificate(config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Check the certificate and its key.

    It says until when they are good. Where they come from acme.json they are taken out of it anew. Exit code 78:
    there is none, or the two do not belong together.
    """
    with exits():
        settings = configuration.load(config)
        pair = find_certificate(settings.tls, settings.smtp.hostname, folder=ACME_FOLDER)
        if pair is None:
            raise ConfigError("tls: no certificate is configured")
    show(
        pair,
        as_json=as_json,
        table=lambda: f"{pair.certificate}: for {plain(pair.names)}, until {plain(pair.expires_at)}",
    )
