"""Why a message is refused by each rule, and what mends it: docs/reply-codes.md has the same words, with links."""

from __future__ import annotations

from dataclasses import dataclass

from opensend_milter.core.rules import Rule


@dataclass(frozen=True, slots=True)
class Remedy:
    """For whoever got the answer, and for whoever runs the server; what is typed stands in backticks."""

    cause: str
    mend: str


def sentence(text: str) -> str:
    """Return one of these texts as it stands alone."""
    return f"{text[:1].upper()}{text[1:]}."


REMEDIES: dict[Rule, Remedy] = {
    Rule.UNAUTHENTICATED: Remedy(
        "no key was given. Over SMTP Postfix says so at MAIL; from us it comes only where Postfix is not set "
        "up as we do",
        "log in: any user name, the API key as the password; whoever runs the server: `opensend-milter doctor "
        "--only postfix.relay`",
    ),
    Rule.NOT_A_KEY: Remedy(
        "Postfix logged somebody in, and not with a key of ours: it asks another Dovecot, or another passdb",
        "`opensend-milter doctor --only postfix.auth-socket`",
    ),
    Rule.KEY_REVOKED: Remedy(
        "the key was revoked after the session had logged in with it, or its user is gone",
        "`opensend-milter key create`, and give the new key to the application",
    ),
    Rule.KEY_EXPIRED: Remedy(
        "the key expired during the session; at AUTH an expired key is 535",
        "`opensend-milter key set ID --expires 90d`, or a new key",
    ),
    Rule.NETWORK_NOT_ALLOWED: Remedy(
        "the key may be used from other networks only",
        "`opensend-milter key set ID --network LIST`; where a proxy or balancer hides the client, have it say "
        "who that is",
    ),
    Rule.NETWORK_UNKNOWN: Remedy(
        "the key may be used from some networks only, and the mail server in front does not say where a "
        "message comes from. With our Postfix it does; never over HTTP",
        "have it send the macro `{client_addr}` at MAIL; `opensend-milter doctor --only milter.client`",
    ),
    Rule.SENDER_NOT_ALLOWED: Remedy(
        "the key may not show this address in From",
        "another From, or `opensend-milter key set ID --allow-from LIST`",
    ),
    Rule.RECIPIENT_NOT_ALLOWED: Remedy(
        "the key may not send to one of the recipients; nobody got it",
        "leave them out, or `opensend-milter key set ID --allow-to LIST`",
    ),
    Rule.ATTACHMENTS_NOT_ALLOWED: Remedy(
        "the key may send no attachment, inline images included; or mail programs might find one in the place "
        "that the answer names",
        "`opensend-milter key set ID --attachments`; or a message that everybody reads alike",
    ),
    Rule.HTML_NOT_ALLOWED: Remedy(
        "the key may send plain text only; or mail programs might find HTML in the place that the answer names",
        "`opensend-milter key set ID --html`; or a message that everybody reads alike",
    ),
    Rule.DAILY_QUOTA: Remedy(
        "the key has sent its messages of this UTC day",
        "wait for midnight UTC, or `opensend-milter key set ID --per-day N`",
    ),
    Rule.FROM_MISSING: Remedy(
        "the message has no From field, or it stands behind a line that ends the header section: an empty "
        "one, or one that is no header field. The answer has its number (as Postfix counts, without Bcc and "
        "Return-Path) and its letters masked",
        "add the field; mend the line",
    ),
    Rule.FROM_NOT_ONE: Remedy(
        "several From fields, or several addresses in one",
        "send exactly one",
    ),
    Rule.FROM_MALFORMED: Remedy(
        "From is no address, its domain is no domain name, or a reader may take it for another address or a "
        "second line",
        "write it so: `From: Name <user@example.org>`",
    ),
    Rule.FROM_RESTRICTED: Remedy(
        "the key is bound to a domain, and From is of another; a subdomain is another. Or its domain was removed",
        "a From of that domain, or another key",
    ),
    Rule.FROM_UNVERIFIED: Remedy(
        "the domain of From is not a verified domain of the key's user",
        "verify the domain: `opensend-milter domain verify example.org`",
    ),
    Rule.RECIPIENT_MALFORMED: Remedy(
        "a recipient is no address; nobody got it",
        "mend or leave out the one that the answer names",
    ),
    Rule.RECIPIENT_SUPPRESSED: Remedy(
        "a recipient is on the suppression list; nobody got it",
        "leave out those that the answer names, or `opensend-milter suppression remove ADDRESS`, or have such "
        "left out by itself: `policy.on_suppressed: drop-recipient`",
    ),
    Rule.TOO_MANY_RECIPIENTS: Remedy(
        "more recipients than `size.max_recipients`, or than the courier can take",
        "send several messages",
    ),
    Rule.TOO_LARGE: Remedy(
        "larger than `size.max_message_bytes`, or than the courier can take",
        "send less, or raise the limit",
    ),
    Rule.ATTACHMENTS_TOO_LARGE: Remedy(
        "the attachments, counted as base64, are over `size.max_attachment_bytes`",
        "send a link instead, or raise the limit",
    ),
    Rule.CONTROL_FIELD: Remedy(
        "an `X-OpenSend-...` field or the Idempotency-Key is wrong, or a time is not within the next 30 days",
        "mend the field that the answer names, or leave it out",
    ),
    Rule.QUOTA: Remedy(
        "OpenSend's billing: 452 where a payment mends it, 550 without a paid plan",
        "pay, then send the same message again; or take a plan",
    ),
    Rule.DUPLICATE_KEY: Remedy(
        "the Idempotency-Key was used for a message with other content or for another time, or by another API "
        "key of the account",
        "a new name for a new message",
    ),
    Rule.RATE_LIMITED: Remedy(
        "over a limit of messages a minute: of all, of the client's address, or of the key; the answer says which",
        "send it again later, and no more than the limits let through",
    ),
    Rule.SANDBOX_MIXED: Remedy(
        "beside OpenSend: an address of OpenSend's sandbox (`delivered@resend.dev`) beside others",
        "send two messages",
    ),
    Rule.BEYOND_LIMITS: Remedy(
        "too many MIME parts, too deep, too many header fields or addresses, a header too long, or more work "
        "to read than any message of its size needs",
        "send a simpler message",
    ),
    Rule.CANNOT_CARRY: Remedy(
        "the courier cannot carry it: a line over 1,000 octets, 8-bit content where the relay has no "
        "8BITMIME, a mailbox name that is not ASCII (5.6.7)",
        "encode the part as base64 or quoted-printable, or have the domain's mail leave by another courier",
    ),
    Rule.OURS: Remedy(
        "a fault of ours: the database did not answer in time, a process was stopping, or a bug. Nothing was "
        "taken, or the client cannot know: it sends again, and what was stored is not stored twice. After 421 "
        "the connection is closed: the process that answered on it was stopping, or was killed; the next "
        "connection is answered by another",
        "send it again later; whoever runs the server: `opensend-milter doctor`",
    ),
}


def remedy_of(rule: str) -> Remedy | None:
    """Return that of a rule by its name; None: a newer version has it."""
    return next((remedy for known, remedy in REMEDIES.items() if known.value == rule), None)
