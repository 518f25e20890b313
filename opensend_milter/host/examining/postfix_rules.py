"""What must stand in main.cf, each with what happens otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from opensend_milter.config import Config

MOST_HEADER_BYTES = 60_000
Place = Literal["smtpd", "cleanup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A parameter with the value that it must have, at each of our ports."""

    name: str
    parameter: str
    wanted: str
    why: str
    also: frozenset[str] = frozenset()
    """Other values that do as well."""
    place: Place = "smtpd"
    security: bool = False


def rules(config: Config) -> Iterator[Rule]:
    """Return what must hold; the texts say what happens otherwise."""
    yield from _rules_of_smuggling()
    yield from _rules_of_trust(config)
    yield from _rules_of_silence()
    yield from _rules_of_delay()
    yield from _rules_of_bytes()
    yield Rule(
        name="size-limit",
        parameter="message_size_limit",
        wanted=str(config.size.max_message_bytes),
        why="Postfix announces a size to clients: another than size.max_message_bytes refuses what we would take, or "
        "takes what we refuse",
    )
    yield Rule(
        name="recipient-limit",
        parameter="smtpd_recipient_limit",
        wanted=str(config.size.max_recipients),
        why="the recipient over size.max_recipients is to be put off at RCPT, not the message refused at its end",
    )


def _rules_of_smuggling() -> Iterator[Rule]:
    yield Rule(
        name="smuggling",
        parameter="smtpd_forbid_bare_newline",
        wanted="normalize",
        also=frozenset({"yes", "reject"}),
        why="a message can be hidden in another behind a line that ends in LF alone (CVE-2023-51764)",
        security=True,
    )
    yield Rule(
        name="smuggling-exclusions",
        parameter="smtpd_forbid_bare_newline_exclusions",
        wanted="",
        why="clients that are excluded can smuggle messages",
        security=True,
    )
    yield Rule(
        name="pipelining",
        parameter="smtpd_forbid_unauth_pipelining",
        wanted="yes",
        why="a client that does not wait for answers before STARTTLS or AUTH has something to hide",
        security=True,
    )


def _rules_of_trust(config: Config) -> Iterator[Rule]:
    yield Rule(
        name="default-action",
        parameter="milter_default_action",
        wanted="tempfail",
        why="when the milter is down, `accept` would let mail pass that nobody has recorded; anything but tempfail "
        "refuses for ever",
        security=True,
    )
    yield Rule(
        name="networks",
        parameter="mynetworks",
        wanted="",
        why="a trusted network needs no key",
        security=True,
    )
    yield Rule(
        name="auth",
        parameter="smtpd_sasl_auth_enable",
        wanted="yes",
        why="without AUTH nobody can send",
    )
    yield Rule(
        name="auth-socket",
        parameter="smtpd_sasl_path",
        wanted=str(config.auth.socket),
        why="Postfix asks another than our auth gate: nobody can log in, and an outage becomes 535",
    )
    yield Rule(
        name="plaintext-auth",
        parameter="smtpd_tls_auth_only",
        wanted="no" if config.smtp.plaintext_auth else "yes",
        why="a key must not cross a network unencrypted",
        security=True,
    )


def _rules_of_silence() -> Iterator[Rule]:
    yield Rule(
        name="tls-versions",
        parameter="smtpd_tls_protocols",
        wanted=">=TLSv1.2",
        also=frozenset({">=TLSv1.3", "TLSv1.3", "!SSLv2, !SSLv3, !TLSv1, !TLSv1.1"}),
        why="TLS 1.0 and 1.1 are broken (RFC 8996)",
        security=True,
    )
    yield Rule(
        name="debug-peers",
        parameter="debug_peer_list",
        wanted="",
        why="the log would hold each AUTH line, and with it the key",
        security=True,
    )
    yield Rule(
        name="vrfy",
        parameter="disable_vrfy_command",
        wanted="yes",
        why="VRFY answers whoever asks",
        security=True,
    )


def _rules_of_delay() -> Iterator[Rule]:
    yield Rule(
        name="flow-delay",
        parameter="in_flow_delay",
        wanted="0",
        also=frozenset({"0s"}),
        why="nothing drains this queue: after some 200 messages each RCPT would wait a second",
    )
    yield Rule(
        name="client-exceptions",
        parameter="smtpd_client_event_limit_exceptions",
        wanted="",
        why="clients that are excepted may hold all of a port, and close it for the others",
    )
    yield Rule(
        name="delay-reject",
        parameter="smtpd_delay_reject",
        wanted="no",
        why="a refusal is to come at the command it is about",
    )
    yield Rule(
        name="soft-bounce",
        parameter="soft_bounce",
        wanted="no",
        why="every refusal would become temporary, and clients would come again for days",
    )


def _rules_of_bytes() -> Iterator[Rule]:
    yield Rule(
        name="bcc",
        parameter="message_drop_headers",
        wanted="",
        place="cleanup",
        why="the default drops Bcc before the milter sees it",
    )
    yield Rule(
        name="rewriting",
        parameter="local_header_rewrite_clients",
        wanted="",
        why="Postfix would rewrite headers, which breaks signatures",
    )
    yield Rule(
        name="queue-ids",
        parameter="enable_long_queue_ids",
        wanted="yes",
        place="cleanup",
        why="short queue ids come again, and a client's handle would name two messages",
    )
    yield Rule(
        name="header-limit",
        parameter="header_size_limit",
        wanted=str(MOST_HEADER_BYTES),
        place="cleanup",
        why="a field that Postfix has cut must be recognisable by its length",
    )
    yield Rule(
        name="nul",
        parameter="message_reject_characters",
        wanted=r"\0",
        place="cleanup",
        why="Postfix cuts a header field at NUL",
    )
