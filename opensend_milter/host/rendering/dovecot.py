"""Our Dovecot, which judges keys and nothing else: its configuration for 2.3 and for 2.4."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psycopg
from psycopg import conninfo

from opensend_milter.config import DEAD_NETWORK, Config, Database
from opensend_milter.core.errors import ConfigError
from opensend_milter.host.rendering import templates

ROLE = "opensend_dovecot_auth"
SQL_FILE = "dovecot-sql.conf"
PASSDB_FILE = "existing-passdb.conf"
Version = Literal["2.3", "2.4"]

# Dovecot 2.3 splits its connect line at spaces, expands nothing in it, and libpq reads quotes and backslashes.
_WRITABLE = re.compile(r"[\w./:@%+=~!*,?&^-]+", re.ASCII)
_OURS = {"connect_timeout", "application_name", "client_encoding", "fallback_application_name", "maxconns"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DovecotSite:
    """What the configuration does not say: where this Dovecot lives."""

    config_dir: Path
    base_dir: Path
    state_dir: Path
    log_file: Path | None
    """None: syslog."""
    version: Version = "2.3"
    internal_user: str = "dovecot"
    login_user: str = "dovenull"


def render_dovecot(config: Config, site: DovecotSite) -> Mapping[str, str]:
    """Return file names and their content, all to be written with mode 0600: they hold a password."""
    listener = config.auth.dovecot_socket
    if listener.is_relative_to(site.base_dir):
        # Dovecot wants the name alone where a socket is in its own directory.
        listener = listener.relative_to(site.base_dir)
    values: dict[str, templates.Value] = {
        "BASE_DIR": site.base_dir,
        "STATE_DIR": site.state_dir,
        "LOG_FILE": site.log_file,
        "INTERNAL_USER": site.internal_user,
        "LOGIN_USER": site.login_user,
        "AUTH_SOCKET": listener,
        "AUTH_GROUP": config.auth.socket_group,
    }
    parameters = connection_parameters(config.database)
    match site.version:
        case "2.3":
            main = templates.render(
                templates.read("dovecot", "dovecot-2.3.conf.in"), values | {"SQL_FILE": site.config_dir / SQL_FILE}
            )
            connect = " ".join(f"{name}={value}" for name, value in parameters.items())
            sql = templates.render(
                templates.read("dovecot", "dovecot-sql-2.3.conf.in"),
                {"CONNECT": connect},
                trusted=frozenset({"CONNECT"}),
            )
            return {"dovecot.conf": main, SQL_FILE: sql}
        case "2.4":
            lines = "\n".join(f"    {name} = {value}" for name, value in parameters.items())
            main = templates.render(
                templates.read("dovecot", "dovecot-2.4.conf.in"),
                values | {"PARAMETERS": lines},
                trusted=frozenset({"PARAMETERS"}),
            )
            return {"dovecot.conf": main}


def connection_parameters(database: Database) -> Mapping[str, str]:
    """Return how Dovecot logs in, as libpq's names and values; raise ConfigError where one cannot be written."""
    try:
        given = conninfo.conninfo_to_dict(database.url)
    except psycopg.ProgrammingError as error:
        raise ConfigError("database.url: cannot be read by libpq") from error
    parameters = {**DEAD_NETWORK, **{name: str(value) for name, value in given.items() if name not in _OURS}}
    if database.password_dir:
        parameters |= {"user": ROLE, "password": _password(database.password_dir / ROLE)}
    if "user" not in parameters:
        raise ConfigError("database.url: names no user for Dovecot to log in as; set database.password_dir")
    for name, value in parameters.items():
        if not _WRITABLE.fullmatch(value):
            shown = "the password" if name == "password" else repr(value)
            raise ConfigError(f"database: {name}: {shown} has characters that Dovecot's configuration cannot hold")
    # In libpq's own order, whichever way they came: the same configuration is rendered the same.
    ordered = conninfo.conninfo_to_dict(conninfo.make_conninfo("", **parameters))
    return {name: str(value) for name, value in ordered.items()}


def greeting(endpoint: socket.socket) -> bytes:
    """Return what an auth socket says to a new client; nothing where it hangs up before the end of it."""
    said = b""
    # 2.3 begins by itself, 2.4 when the client has named itself: by a number that nobody else has.
    with suppress(BrokenPipeError):
        endpoint.sendall(f"VERSION\t1\t1\nCPID\t{2**30 + secrets.randbelow(2**30)}\n".encode())
    with suppress(ConnectionError):
        while more := endpoint.recv(4096):
            said += more
            if b"\nDONE\n" in said:
                return said
    return b""


def _password(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"database.password_dir: cannot read {path}: {reason}; run `db init`") from error
