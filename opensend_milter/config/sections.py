"""The sections of the configuration: every key with its default, its help and its check."""

# ruff: noqa: RUF009  # option() is dataclasses.field() with more to say
from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from opensend_milter.config.option import (
    ABSOLUTE,
    ADDRESS,
    ARNS,
    DATABASE_URL,
    FIELD,
    GROUP,
    HOST,
    HOSTNAME,
    HOSTS_AND_PORTS,
    HTTP_URL,
    LISTEN_HOST,
    NETWORKS,
    PORT,
    REGION,
    SOCKET,
    WORD,
    number,
    option,
    whole,
)
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.model import Limits, OnSuppressed

DEAD_NETWORK: Mapping[str, str] = {
    "keepalives_idle": "5", "keepalives_interval": "2", "keepalives_count": "3", "tcp_user_timeout": "5000",
}  # fmt: skip
"""When a connection to the database is given up that brings nothing through any more, in libpq's words, unless the URL
says otherwise; Linux by itself would wait for a quarter of an hour, and for hours where nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """Where messages are recorded."""

    url: str = option(
        "postgresql:///opensend?host=/var/run/postgresql",
        "the database; a password belongs in DATABASE_URL or password_dir, never into this file",
        env="DATABASE_URL",
        renders=True,
        secret=True,
        check=DATABASE_URL,
    )
    password_dir: Path | None = option(
        None,
        "directory that `db init` fills with one file per role, named after the role, holding its password. With it "
        "each process connects as its own role; without it all connect as the URL says",
        renders=True,
        check=ABSOLUTE,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Smtp:
    """Where Postfix listens."""

    host: str = option(
        "0.0.0.0",  # noqa: S104  # a mail gateway is there to be reached
        "address to listen on",
        env="SMTP_RELAY_HOST",
        renders=True,
        check=LISTEN_HOST,
    )
    hostname: str = option(
        "", "name in the greeting; empty: this host's own", env="SMTP_DOMAIN", renders=True, check=HOSTNAME
    )
    relay_port: int = option(
        2587, "port with STARTTLS, OpenSend's; 0: off", env="SMTP_RELAY_PORT", renders=True, check=PORT
    )
    submission_port: int = option(587, "port with STARTTLS; 0: off", env="PORT_SUBMISSION", renders=True, check=PORT)
    smtps_port: int = option(465, "port with implicit TLS; 0: off", env="PORT_SECURE", renders=True, check=PORT)
    plaintext_auth: bool = option(
        default=False,
        text="offer AUTH without TLS: for development, and only where host is a loopback address",
        renders=True,
    )
    proxies: str = option(
        "",
        "networks of balancers, separated by spaces; set: all three ports speak the PROXY protocol and nothing else",
        renders=True,
        check=NETWORKS,
    )
    client_share_percent: int = option(
        50,
        "of the 100 connections of each port, what one client address may hold; 100: all of them",
        renders=True,
        check=whole(1, 100),
    )
    client_logins_per_minute: int = option(
        6_000, "of one client address; 0: no limit", renders=True, check=whole(0, 1_000_000)
    )
    client_messages_per_minute: int = option(
        60_000, "of one client address; 0: no limit", renders=True, check=whole(0, 10_000_000)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The certificate that Postfix shows: two files, or a folder with fullchain.pem and privkey.pem."""

    certificate: Path | None = option(
        None, "PEM file, chain included", env="SMTP_RELAY_TLS_CERT_PATH", renders=True, check=ABSOLUTE
    )
    key: Path | None = option(
        None, "PEM file, without a passphrase", env="SMTP_RELAY_TLS_KEY_PATH", renders=True, check=ABSOLUTE
    )
    folder: Path | None = option(
        None, "folder with fullchain.pem and privkey.pem", env="CERT_PATH", renders=True, check=ABSOLUTE
    )
    acme_json: Path | None = option(
        None, "Traefik's acme.json; the entry is chosen by smtp.hostname", env="ACME_JSON_PATH", renders=True,
        check=ABSOLUTE,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much one message may be."""

    max_message_bytes: int = option(
        Limits().max_message_bytes,
        "largest message",
        env="SMTP_RELAY_MAX_MESSAGE_SIZE_BYTES",
        renders=True,
        check=whole(1_024, 1_073_741_824),
    )
    max_attachment_bytes: int = option(
        Limits().max_attachment_bytes, "largest sum of attachments, as base64", check=whole(0, 1_073_741_824)
    )
    max_recipients: int = option(
        Limits().max_recipients, "recipients of one message", env="MAX_RECIPIENTS", renders=True,
        check=whole(1, 1_000),
    )  # fmt: skip
    max_header_bytes: int = option(
        Limits().max_header_bytes, "all header fields together", check=whole(1_024, 1_048_576)
    )
    max_header_fields: int = option(Limits().max_header_fields, "number of header fields", check=whole(10, 100_000))
    max_addresses: int = option(Limits().max_addresses, "addresses in one header field", check=whole(1, 100_000))
    max_parts: int = option(Limits().max_parts, "MIME parts", check=whole(1, 100_000))
    max_depth: int = option(Limits().max_depth, "MIME parts within parts", check=whole(1, 500))


@dataclass(frozen=True, slots=True, kw_only=True)
class Milter:
    """The daemon that Postfix asks."""

    socket: Path = option(
        Path("/var/spool/postfix-opensend/opensend-milter/milter.sock"),
        "unix socket, group-accessible to Postfix; milters over TCP trust whoever connects",
        renders=True,
        check=SOCKET,
    )
    socket_group: str = option("postfix", "group that may connect to the socket", check=GROUP)
    processes: int = option(0, "worker processes; 0: one for four cores, at most four", check=whole(0, 64))
    soft_timeout_s: float = option(10.0, "a message not taken up by then gets 451", check=number(1, 25))
    hard_timeout_s: float = option(25.0, "a database call is cut off at this age", check=number(2, 100))
    drain_s: float = option(20.0, "how long SIGTERM waits for messages in hand", check=number(0, 600))
    spool_dir: Path = option(
        Path("/var/spool/opensend-milter"), "directory for messages over spool_above_bytes", check=ABSOLUTE
    )
    spool_above_bytes: int = option(1_048_576, "larger messages are spooled to a file", check=whole(4_096, 2**30))
    gather_window_ms: float = option(2.0, "how long a busy process gathers a batch", check=number(0, 100))

    def children(self, cores: int | None = None) -> int:
        """Return how many processes answer: Postfix needs most of the cores, and the fewer, the larger a batch."""
        return self.processes or min(math.ceil((cores or os.cpu_count() or 1) / 4), 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """The auth gate between Postfix and Dovecot."""

    protocol: Literal["dovecot", "saslauthd"] = option(
        "dovecot", "`dovecot`: Postfix asks; `saslauthd`: Cyrus SASL does, as in Sendmail (docs/mtas.md)"
    )
    socket: Path = option(
        Path("/var/spool/postfix-opensend/opensend-auth/auth.sock"),
        "unix socket that Postfix asks",
        renders=True,
        check=SOCKET,
    )
    socket_group: str = option("postfix", "group that may connect to the socket", check=GROUP)
    dovecot_socket: Path = option(
        Path("/run/opensend-dovecot/auth.sock"), "unix socket of Dovecot's auth service", renders=True, check=SOCKET
    )
    timeout_s: float = option(8.0, "hang up (454) when Dovecot has not answered by then", check=number(1, 9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The SQS queue; without a URL a worker polls the database."""

    url: str = option("", "SQS queue; empty: none", env="BACKGROUND_JOBS_QUEUE_URL", check=HTTP_URL)
    require: bool = option(default=False, text="refuse to start without a queue", env="BACKGROUND_JOBS_REQUIRE_QUEUE")
    db_polling_fallback: bool = option(
        default=True, text="without a queue, the database is polled", env="BACKGROUND_JOBS_DB_POLLING_FALLBACK"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Aws:
    """Amazon's services; credentials come the way boto3 finds them."""

    region: str = option("us-east-1", "region of the queue", env="AWS_REGION", check=REGION)
    endpoint_url: str = option("", "another endpoint, for tests", env="AWS_ENDPOINT_URL", check=HTTP_URL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who may send what."""

    sender_domains: Literal["verified", "restricted-only"] = option(
        "verified",
        "`verified`: From must be a verified domain of the key's user; `restricted-only`: only a restricted key is "
        "held to its domain",
    )
    on_suppressed: OnSuppressed = option(
        "reject-message",
        "a suppressed recipient: `reject-message` refuses the message, `drop-recipient` sends it to the others; "
        "`key set` gives a key its own rule",
    )
    duplicate_window_s: int = option(
        3600,
        "a message with the same Message-ID, envelope and content that comes again within this time is answered 250 "
        "and not stored again; 0: off",
        check=whole(0, 604_800),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The worker of the standalone profile."""

    courier: CourierName = option("smtp", "how messages leave, where their domain does not say otherwise")
    bounce_address: str = option("", "return path of every message; empty: its From address", check=ADDRESS)
    bounce_domain: str = option(
        "", "return paths are signed addresses of this domain, whose mail goes to `feedback bounce`", check=HOSTNAME
    )
    concurrency: int = option(4, "messages in hand at once", check=whole(1, 256))
    poll_interval_s: float = option(1.0, "pause when nothing is due", check=number(0.05, 60))
    lease_s: float = option(300.0, "a worker that is silent for so long has lost its messages", check=number(10, 3600))
    max_attempts: int = option(12, "temporary failures before a message is given up", check=whole(1, 100))
    uncertain_after_h: int = option(
        72, "a message whose outcome nobody could tell for so long is failed; 0: never", check=whole(0, 8_760)
    )
    raw_days: int = option(
        30, "how long a finished message's bytes are kept, for `email retry`; 0: for ever", check=whole(0, 3_650)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """Courier `smtp`: the SMTP server that the worker hands messages to."""

    host: str = option("127.0.0.1", "host name or address", check=HOST)
    port: int = option(25, "port", check=whole(1, 65535))
    fallbacks: str = option(
        "", "`host:port` of others, tried in this order where the first does not answer", check=HOSTS_AND_PORTS
    )
    tls: Literal["none", "starttls", "tls"] = option(
        "none", "`starttls` and `tls` verify the certificate; a relay without STARTTLS is then not used"
    )
    ca_file: Path | None = option(None, "PEM file of the authorities to trust; none: the system's", check=ABSOLUTE)
    username: str = option("", "for AUTH; empty: no AUTH")
    password_file: Path | None = option(None, "file that holds the password", secret=True, check=ABSOLUTE)
    plaintext_auth: bool = option(
        default=False, text="send the password without TLS to another host: only where nobody listens in between"
    )
    eight_bit: bool = option(
        default=True, text="the relay offers 8BITMIME; if not, 8-bit messages are refused at accept"
    )
    timeout_s: float = option(60.0, "for each answer", check=number(1, 600))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ses:
    """Courier `ses`: Amazon SES, in the region of the domain or of `aws.region`, at `aws.endpoint_url`."""

    configuration_set: str = option("", "where the domain names none; empty: none", check=WORD)
    timeout_s: float = option(30.0, "for each answer", check=number(1, 600))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sendmail:
    """Courier `sendmail`: a program of this host."""

    path: Path = option(
        Path("/usr/sbin/sendmail"), "the program; called with -i -f SENDER -- RECIPIENTS", check=ABSOLUTE
    )
    timeout_s: float = option(60.0, "then it is killed", check=number(1, 600))


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """Courier `plunk`: Plunk's API."""

    uri: str = option("", "base URL", env="API_URI", check=HTTP_URL)
    key_file: Path | None = option(None, "file that holds the project's secret key", secret=True, check=ABSOLUTE)
    plaintext_auth: bool = option(
        default=False, text="send the key over http:// to another host: only where nobody listens in between"
    )
    timeout_s: float = option(30.0, "for each answer", check=number(1, 600))


@dataclass(frozen=True, slots=True, kw_only=True)
class Maildir:
    """Courier `file`: a Maildir, for a first try and for tests."""

    folder: Path = option(Path("/var/lib/opensend-milter/maildir"), "where messages are written", check=ABSOLUTE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """The HTTP process."""

    host: str = option("127.0.0.1", "address to listen on", check=LISTEN_HOST)
    port: int = option(8025, "port", check=whole(1, 65535))
    socket: Path | None = option(None, "unix socket to listen on instead of host and port", check=SOCKET)
    socket_group: str = option("www-data", "group that may connect to the socket", check=GROUP)
    tls: bool = option(default=False, text="speak TLS, with tls.certificate or tls.folder")
    public_url: str = option(
        "", "how others reach it: the base of links in messages, and of the address in a refusal", check=HTTP_URL
    )
    default_from: str = option("", "From of a request that has none; empty: such a request is refused", check=ADDRESS)
    trusted_proxies: str = option(
        "", "networks of proxies whose word on the client's address is believed, separated by spaces", check=NETWORKS
    )
    client_header: Literal["x-forwarded-for", "forwarded", "x-real-ip"] = option(
        "x-forwarded-for", "the one field that trusted proxies write"
    )
    monitoring: str = option(
        "127.0.0.0/8 ::1/128", "networks that may read /metrics, separated by spaces", check=NETWORKS
    )
    max_bulk_messages: int = option(100, "messages in one request", check=whole(1, 500))
    client_share_percent: int = option(
        50,
        "of connections, requests at once and room for large bodies, what one key may hold, or one client address "
        "before its key is known; 100: all of it",
        check=whole(1, 100),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """The console: pages that show people what became of messages. It is off until it has a port or a socket."""

    host: str = option("127.0.0.1", "address to listen on; any but this host's own needs tls", check=LISTEN_HOST)
    port: int = option(0, "port; 0: off", check=PORT)
    socket: Path | None = option(None, "unix socket to listen on instead of host and port", check=SOCKET)
    socket_group: str = option("www-data", "group that may connect to the socket", check=GROUP)
    tls: bool = option(default=False, text="speak TLS, with tls.certificate or tls.folder")
    public_url: str = option(
        "", "how browsers reach it behind a proxy; people log in over https:// or at this host only", check=HTTP_URL
    )
    trusted_proxies: str = option(
        "", "networks of proxies whose word is believed, in client_header and user_header, separated by spaces",
        check=NETWORKS,
    )  # fmt: skip
    client_header: Literal["x-forwarded-for", "forwarded", "x-real-ip"] = option(
        "x-forwarded-for", "the one field in which trusted proxies write the client's address"
    )
    user_header: str = option(
        "",
        "field in which a proxy says who has logged in there, who may see everything then; believed over the unix "
        "socket or from trusted_proxies; empty: people log in here",
        check=FIELD,
    )
    actions: bool = option(
        default=False,
        text="let whoever sees everything retry and cancel messages, and suppress recipients; the same on all hosts of "
        "one database, where db init or db migrate grants the rights for it and takes them back",
    )

    @property
    def client_share_percent(self) -> int:
        """Return what one client address may hold of connections and requests: half of it, as of `http`."""
        return 50

    @property
    def is_on(self) -> bool:
        """Tell whether there is a console at all."""
        return bool(self.port or self.socket)

    @property
    def is_secure(self) -> bool:
        """Tell whether what browsers say to it crosses networks under TLS."""
        return self.tls or self.public_url.startswith("https://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How much in a minute, over SMTP and HTTP together and on all hosts; 0: no limit. A burst is ten seconds of it."""

    total_per_minute: int = option(0, "messages of all", check=whole(0, 10_000_000))
    client_per_minute: int = option(
        60_000, "messages of one client address (IPv6: of one /64)", check=whole(0, 10_000_000)
    )
    key_per_minute: int = option(
        60_000, "messages of one key, where the key has no limit of its own", check=whole(0, 10_000_000)
    )
    failed_per_minute: int = option(60, "failed authentications of one client address", check=whole(0, 1_000_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What comes back of what was sent."""

    topics: str = option("", "ARNs of the SNS topics that are listened to, separated by spaces", check=ARNS)
    require_sha256: bool = option(
        default=False,
        text="refuse what SNS signed with SHA-1 (SignatureVersion 1), as a topic does unless it is told otherwise",
    )
    queue_url: str = option("", "SQS queue of SES events, instead of SNS over HTTP", check=HTTP_URL)
    soft_bounces: int = option(
        5, "temporary bounces of an address within a week, after which it is suppressed; 0: never", check=whole(0, 100)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhooks:
    """What customers are told, in the standalone profile."""

    timeout_s: float = option(10.0, "for a receiver's answer", check=number(1, 60))
    max_attempts: int = option(8, "then a delivery is dead-lettered", check=whole(1, 20))
    allow_private: bool = option(
        default=False, text="receivers may have addresses of private networks, also of this host"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = option("info", "least level written")
    format: Literal["text", "json"] = option("text", "`json`: one object a line")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Prometheus, each process at a port of its own on 127.0.0.1; `http` answers at /metrics."""

    auth_port: int = option(0, "port of `auth-gate`; 0: off", check=PORT)
    serve_port: int = option(0, "port of `serve`; 0: off", check=PORT)
    worker_port: int = option(0, "port of `worker`; 0: off", check=PORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The effective configuration."""

    profile: Literal["standalone", "opensend"] = option(
        "standalone", "`standalone`: our worker delivers; `opensend`: beside OpenSend, whose ingester delivers"
    )
    billing: Literal["none", "stripe"] = option(
        "none",
        "`stripe`: ask OpenSend's billing and count for it, as its REST API does where it has the same setting",
        env="BILLING_BACKEND",
    )
    database: Database = field(default_factory=Database)
    smtp: Smtp = field(default_factory=Smtp)
    tls: Tls = field(default_factory=Tls)
    size: Size = field(default_factory=Size)
    milter: Milter = field(default_factory=Milter)
    auth: Auth = field(default_factory=Auth)
    queue: Queue = field(default_factory=Queue)
    aws: Aws = field(default_factory=Aws)
    policy: Policy = field(default_factory=Policy)
    delivery: Delivery = field(default_factory=Delivery)
    relay: Relay = field(default_factory=Relay)
    ses: Ses = field(default_factory=Ses)
    sendmail: Sendmail = field(default_factory=Sendmail)
    api: Api = field(default_factory=Api)
    maildir: Maildir = field(default_factory=Maildir)
    http: Http = field(default_factory=Http)
    console: Console = field(default_factory=Console)
    limits: Rates = field(default_factory=Rates)
    feedback: Feedback = field(default_factory=Feedback)
    webhooks: Webhooks = field(default_factory=Webhooks)
    log: Log = field(default_factory=Log)
    metrics: Metrics = field(default_factory=Metrics)
