"""Write the configuration of Postfix or Dovecot for a container: `render.py postfix | dovecot`."""

# ruff: noqa: INP001  # a program of its own

from __future__ import annotations

import socket
import sys
from pathlib import Path

from opensend_milter.config import load
from opensend_milter.core.errors import OpensendError
from opensend_milter.host.rendering.certificates import find_certificate
from opensend_milter.host.rendering.dovecot import DovecotSite, render_dovecot
from opensend_milter.host.rendering.postfix import PostfixSite, render_postfix

ETC, STATE = Path("/etc/opensend-milter"), Path("/var/lib/opensend-milter")
# The container's log is its standard output; Postfix writes it through its own postlogd.
LOG = Path("/dev/stdout")


def main(what: str) -> None:
    """Render and write: Dovecot's for root alone, because they hold a password."""
    config = load()
    if what == "dovecot":
        site = DovecotSite(
            config_dir=ETC / what, base_dir=Path("/run/opensend-dovecot"), state_dir=STATE / what, log_file=LOG
        )
        files = render_dovecot(config, site)
    else:
        files = render_postfix(
            config,
            PostfixSite(
                config_dir=ETC / what,
                queue_dir=Path("/var/spool/postfix-opensend"),
                data_dir=STATE / what,
                log_file=LOG,
                certificate=find_certificate(config.tls, config.smtp.hostname),
                hostname=socket.getfqdn(),
            ),
        )
    folder_mode, mode = (0o700, 0o600) if what == "dovecot" else (0o755, 0o644)
    (ETC / what).mkdir(mode=folder_mode, exist_ok=True)
    for name, content in files.items():
        path = ETC / what / name
        path.touch(mode=mode)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except OpensendError as error:
        sys.exit(str(error))
