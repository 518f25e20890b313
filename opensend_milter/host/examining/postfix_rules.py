"""What must hold in main.cf, each with what happens otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from opensend_milter.config import Config
from opensend_milter.host.rendering.postfix import pinned

Place = Literal["smtpd", "cleanup", "instance"]
"""Whose value counts: that of each of our ports, of its cleanup, of all programs of the instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Parameters, each with the values that do: the first is the one to set."""

    name: str
    wanted: Mapping[str, tuple[str, ...]]
    why: str
    place: Place = "smtpd"
    security: bool = False


def rules(config: Config) -> Iterator[Rule]:
    """Return what must hold; the texts say what happens otherwise."""
    yield from _rules_of_smuggling()
    yield from _rules_of_trust(config)
    yield from _rules_of_ways()
    yield from _rules_of_silence()
    yield from _rules_of_delay()
    yield from _rules_of_bytes(config)


def _pinned(*names: str) -> Mapping[str, tuple[str, ...]]:
    """Want them as main.cf has them on every host."""
    ours = pinned()
    return {name: (ours[name],) for name in names}


def _rules_of_smuggling() -> Iterator[Rule]:
    yield Rule(
        name="smuggling",
        wanted={"smtpd_forbid_bare_newline": ("normalize", "yes", "reject")},
        why="a message can be hidden in another behind a line that ends in LF alone (CVE-2023-51764)",
        security=True,
    )
    yield Rule(
        name="smuggling-exclusions",
        wanted=_pinned("smtpd_forbid_bare_newline_exclusions"),
        why="clients that are excluded can smuggle messages",
        security=True,
    )
    yield Rule(
        name="pipelining",
        wanted=_pinned("smtpd_forbid_unauth_pipelining"),
        why="a client that does not wait for answers before STARTTLS or AUTH has something to hide",
        security=True,
    )
    yield Rule(
        name="commands",
        wanted=_pinned("smtpd_command_filter", "smtpd_noop_commands"),
        why="a command that is taken for another, or for none, is answered 250 and not obeyed",
        security=True,
    )


def _rules_of_trust(config: Config) -> Iterator[Rule]:
    yield Rule(
        name="networks",
        wanted=_pinned("mynetworks"),
        why="a trusted network needs no key",
        security=True,
    )
    yield Rule(
        name="believed",
        wanted=_pinned("smtpd_authorized_xclient_hosts", "smtpd_authorized_xforward_hosts", "milter_macro_defaults"),
        why="who is believed when he says who he is, or who has logged in, needs no key",
        security=True,
    )
    yield Rule(
        name="relay",
        wanted=_pinned(
            *("smtpd_client_restrictions", "smtpd_helo_restrictions", "smtpd_sender_restrictions"),
            *("smtpd_relay_restrictions", "smtpd_recipient_restrictions", "smtpd_end_of_data_restrictions"),
            *("smtpd_etrn_restrictions", "smtpd_restriction_classes"),
        ),
        why="whoever may send without a key makes an open relay of this host",
        security=True,
    )
    yield Rule(
        name="auth",
        wanted=_pinned("smtpd_sasl_auth_enable", "smtpd_sasl_exceptions_networks"),
        why="without AUTH nobody can send",
    )
    yield Rule(
        name="auth-socket",
        wanted={**_pinned("smtpd_sasl_type"), "smtpd_sasl_path": (str(config.auth.socket),)},
        why="Postfix asks another than our auth gate: whoever that is sees all keys, and an outage becomes 535",
        security=True,
    )
    yield Rule(
        name="anonymous",
        wanted=_pinned("smtpd_sasl_security_options", "smtpd_sasl_tls_security_options"),
        why="a login without a key would be one",
        security=True,
    )
    yield Rule(
        name="plaintext-auth",
        wanted={"smtpd_tls_auth_only": ("no" if config.smtp.plaintext_auth else "yes",)},
        why="a key must not cross a network unencrypted",
        security=True,
    )


def _rules_of_ways() -> Iterator[Rule]:
    yield Rule(
        name="default-action",
        wanted=_pinned("milter_default_action"),
        why="when the milter is down, `accept` would let mail pass that nobody has recorded; anything but tempfail "
        "refuses for ever",
        security=True,
    )
    yield Rule(
        name="bypass",
        wanted=_pinned("receive_override_options", "smtpd_milter_maps", "smtpd_proxy_filter", "content_filter"),
        why="a message that goes another way than by the milter is recorded by nobody",
        security=True,
    )
    yield Rule(
        name="hold",
        wanted=_pinned("smtpd_data_restrictions"),
        why="should a message ever pass the milter, it is to wait for a person, not to be sent on",
        security=True,
    )
    yield Rule(
        name="content",
        wanted=_pinned(
            *("header_checks", "mime_header_checks", "nested_header_checks", "body_checks", "milter_header_checks"),
            *("always_bcc", "sender_bcc_maps", "recipient_bcc_maps", "virtual_alias_maps"),
        ),
        place="cleanup",
        why="by what it looks for, or to whom it is, a message is discarded with a 250, or goes to others too",
        security=True,
    )
    yield Rule(
        name="way-out",
        wanted=_pinned(
            *("default_transport", "relay_transport", "virtual_transport", "local_transport", "transport_maps"),
            *("relayhost", "sender_dependent_default_transport_maps", "sender_dependent_relayhost_maps"),
            *("mydestination", "relay_domains", "virtual_mailbox_domains", "virtual_alias_domains"),
        ),
        place="instance",
        why="what passes the milter by mistake must find no way out",
        security=True,
    )
    yield Rule(
        name="users",
        wanted=_pinned("authorized_submit_users", "authorized_mailq_users", "authorized_flush_users"),
        place="instance",
        why="other users of this host are to hand in nothing here, and to see nobody's addresses",
        security=True,
    )


def _rules_of_silence() -> Iterator[Rule]:
    enough = (">=TLSv1.2", ">=TLSv1.3", "TLSv1.3", "!SSLv2, !SSLv3, !TLSv1, !TLSv1.1")
    yield Rule(
        name="tls-versions",
        wanted={"smtpd_tls_protocols": enough, "smtpd_tls_mandatory_protocols": enough},
        why="TLS 1.0 and 1.1 are broken (RFC 8996)",
        security=True,
    )
    yield Rule(
        name="ciphers",
        wanted={
            **dict.fromkeys(("smtpd_tls_ciphers", "smtpd_tls_mandatory_ciphers"), ("medium", "high")),
            **_pinned("tls_ssl_options"),
        },
        why="a weak cipher, or none, tells keys and messages on their way",
        security=True,
    )
    yield Rule(
        name="debug-peers",
        wanted=_pinned("debug_peer_list"),
        why="the log would hold each AUTH line, and with it the key",
        security=True,
    )
    yield Rule(
        name="tls-log",
        wanted={"smtpd_tls_loglevel": ("1", "0")},
        why="from level 3 on the log would hold what was encrypted, and with it the key",
        security=True,
    )
    yield Rule(
        name="notices",
        wanted=_pinned("notify_classes"),
        why="a notice to the postmaster tells what a client said, and with it the key",
        security=True,
    )
    yield Rule(
        name="vrfy",
        wanted=_pinned("disable_vrfy_command"),
        why="VRFY answers whoever asks",
        security=True,
    )


def _rules_of_delay() -> Iterator[Rule]:
    yield Rule(
        name="flow-delay",
        wanted={"in_flow_delay": ("0", "0s")},
        why="nothing drains this queue: after some 200 messages each RCPT would wait a second",
    )
    yield Rule(
        name="client-exceptions",
        wanted=_pinned("smtpd_client_event_limit_exceptions"),
        why="clients that are excepted may hold all of a port, and close it for the others",
    )
    yield Rule(
        name="delay-reject",
        wanted=_pinned("smtpd_delay_reject"),
        why="a refusal is to come at the command it is about",
    )
    yield Rule(
        name="soft-bounce",
        wanted=_pinned("soft_bounce"),
        why="every refusal would become temporary, and clients would come again for days",
    )


def _rules_of_bytes(config: Config) -> Iterator[Rule]:
    yield Rule(
        name="bcc",
        wanted=_pinned("message_drop_headers"),
        place="cleanup",
        why="the default drops Bcc before the milter sees it",
    )
    yield Rule(
        name="rewriting",
        wanted=_pinned("local_header_rewrite_clients"),
        why="Postfix would rewrite headers, which breaks signatures",
    )
    yield Rule(
        name="queue-ids",
        wanted=_pinned("enable_long_queue_ids"),
        place="cleanup",
        why="short queue ids come again, and a client's handle would name two messages",
    )
    yield Rule(
        name="header-limit",
        wanted=_pinned("header_size_limit"),
        place="cleanup",
        why="a field that Postfix has cut must be recognisable by its length",
    )
    yield Rule(
        name="nul",
        wanted=_pinned("message_reject_characters"),
        place="cleanup",
        why="Postfix cuts a header field at NUL",
    )
    yield Rule(
        name="size-limit",
        wanted={"message_size_limit": (str(config.size.max_message_bytes),)},
        why="Postfix announces a size to clients: another than size.max_message_bytes refuses what we would take, or "
        "takes what we refuse",
    )
    yield Rule(
        name="recipient-limit",
        wanted={"smtpd_recipient_limit": (str(config.size.max_recipients),)},
        why="the recipient over size.max_recipients is to be put off at RCPT, not the message refused at its end",
    )
