"""What leaves through the SMTP courier, a Postfix and OpenDKIM, with the files of opendkim-examples."""

from __future__ import annotations

import base64
import os
import pwd
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import dkim
import dns.rdata
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from opensend_milter.adapters.couriers.smtp import SmtpCourier
from opensend_milter.config import Relay
from opensend_milter.core.errors import DeliveryDeferred
from tests.jobs import parcel
from tests.ports import free_port
from tests.smtp_sink import EXTENSIONS, Sink
from tests.waiting import await_found, await_true, patience_s

EXAMPLES = Path(__file__).parents[2] / "opendkim-examples"
TABLES = ("KeyTable", "SigningTable", "TrustedHosts")
SELECTOR = "s2026a"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="Postfix and OpenDKIM need root")

HEADER = (
    b"From: App <app@example.org>\r\nTo: to@example.net\r\nSubject: hi\r\n"
    b"Date: Sat, 21 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@example.org>\r\n"
)
TEXT = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
BODIES = {
    "plain": b"hello\r\n",
    "empty": b"",
    "8-bit": "Grüße aus Österreich, 你好\r\n".encode(),
    "not UTF-8": b"caf\xe9 \xff\x80\r\n",
    "longest line": b"x" * 998 + b"\r\n" + "ü".encode() * 499 + b"\r\n",
    "dots": b".\r\n..\r\n.x\r\n\r\n.\r\n",
    "spaces": b"  two  spaces \t \r\n\t\r\n \r\n",
    "empty lines at the end": b"x\r\n\r\n\r\n\r\n",
    "no line end": b"x",
    "From at a line's start": b"From the start\r\n>From here\r\n",
    "100 kB": b"0123456789" * 7 + b"\r\n" + b"line\r\n" * 16_000,
}
FIELDS = {
    "folded": b"X-Long: one\r\n two\r\n\tthree\r\n  four  \r\n",
    "no space": b"X-Tight:x\r\nX-Wide:   wide\t\r\n",
    "8-bit field": "X-Name: Grüße\r\n".encode(),
    "one click": (
        b"List-Unsubscribe: <https://example.org/u/1>,\r\n <mailto:u@example.org>\r\n"
        b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
    ),
    "addresses": b'Cc: "A, B" <a@example.com> (comment), Undisclosed: c@example.com;\r\nReply-To: r@EXAMPLE.org\r\n',
    "incomplete addresses": b"Cc: root, somebody@host, a%b@example.net\r\n",
}
MESSAGES = {name: HEADER + TEXT + b"\r\n" + body for name, body in BODIES.items()} | {
    name: HEADER + fields + b"\r\nhello\r\n" for name, fields in FIELDS.items()
}


@dataclass(slots=True)
class Relaying:
    """A Postfix with OpenDKIM beside it, as the README sets them up, that sends all it gets to a sink."""

    directory: Path
    sink: Sink
    port: int
    dkim: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.directory / "opendkim" / "opendkim.sock"

    def make_key(self, domain: str, selector: str = SELECTOR) -> str:
        """Return what the script prints."""
        keys = str(self.directory / "keys")
        done = subprocess.run(
            [str(EXAMPLES / "make-key"), domain, selector, keys], check=True, capture_output=True, text=True
        )
        return done.stdout

    def start_dkim(self) -> None:
        """Start OpenDKIM; return when it listens."""
        self.dkim = subprocess.Popen(["opendkim", "-f", "-x", str(self.directory / "opendkim.conf")])
        await_true(lambda: _listens(self.socket), "OpenDKIM")

    def stop_dkim(self) -> None:
        """Stop it as a service manager does."""
        if self.dkim:
            self.dkim.terminate()
            self.dkim.wait(patience_s())
            self.dkim = None
            self.socket.unlink(missing_ok=True)

    def use_table(self, table: Path, text: str) -> None:
        """Change a table and have it read, as `systemctl reload` does."""
        table.write_text(text)
        assert self.dkim
        self.dkim.send_signal(signal.SIGUSR1)

    def await_selector(self, selector: str) -> Arrived:
        """Send until OpenDKIM has taken note."""
        return await_found(
            lambda: found if (found := self.deliver(MESSAGES["plain"])).tags[0]["s"] == selector else None,
            f"selector {selector}",
        )

    def courier(self) -> SmtpCourier:
        return SmtpCourier(Relay(host="127.0.0.1", port=self.port, timeout_s=patience_s()), hostname="mx.example.com")

    def deliver(self, raw: bytes) -> Arrived:
        """Hand a stored message to the courier; return what the next hop got."""
        before = len(self.sink.delivered)
        courier = self.courier()
        try:
            given = parcel(raw=raw)
            courier.send(given)
        finally:
            courier.close()
        return Arrived(given.content, self.sink.await_delivered(before + 1)[before].raw)


@dataclass(frozen=True, slots=True)
class Arrived:
    """One message as we gave it away, and as it came out behind Postfix."""

    given: bytes
    got: bytes

    @property
    def tags(self) -> list[dict[str, str]]:
        """The tags of all signatures, topmost first."""
        header = self.got.partition(b"\r\n\r\n")[0].decode("latin-1")
        fields = re.findall(r"(?im)^DKIM-Signature:(.*(?:\n[ \t].*)*)", header)
        pairs = [re.findall(r"(\w+)=([^;]*)", re.sub(r"\s", "", field)) for field in fields]
        return [dict(found) for found in pairs]

    def verifies(self, dns: Callable[..., bytes | None], number: int = 0, changed: bytes | None = None) -> bool:
        """Ask dkimpy about one signature."""
        return bool(dkim.DKIM(changed or self.got).verify(idx=number, dnsfunc=dns))


def record_in(printed: str) -> dict[bytes, bytes]:
    """Read the zone file's line as a name server does."""
    line = next(line for line in printed.splitlines() if " IN TXT " in line)
    name, text = line.split(" IN TXT ")
    record = dns.rdata.from_text("IN", "TXT", text.strip("()"))
    assert all(len(string) <= 255 for string in record.strings)  # type: ignore[attr-defined]  # it is a TXT
    return {name.encode(): b"".join(record.strings)}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def zone() -> dict[bytes, bytes]:
    """What is published."""
    return {}


@pytest.fixture(scope="module")
def lookup(zone: dict[bytes, bytes]) -> Callable[..., bytes | None]:
    """Answer as DNS would."""
    return lambda name, **_: zone.get(name)


@pytest.fixture(scope="module")
def relaying(zone: dict[bytes, bytes]) -> Iterator[Relaying]:
    # The users postfix and opendkim must be able to enter; of /tmp, where all may write, OpenDKIM takes no key.
    directory = Path(tempfile.mkdtemp(prefix="os-dkim-", dir="/run"))
    directory.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        sink = stack.enter_context(Sink())
        relaying = Relaying(directory, sink, free_port())
        _make_folders(directory)
        for domain in ("example.org", "example.com"):
            zone |= record_in(relaying.make_key(domain))
        for name in ("opendkim.conf", *TABLES):
            (directory / name).write_text(_moved((EXAMPLES / name).read_text(), directory))
        stack.callback(relaying.stop_dkim)
        relaying.start_dkim()
        stack.enter_context(_postfix(relaying))
        yield relaying


def _make_folders(directory: Path) -> None:
    opendkim, postfix = pwd.getpwnam("opendkim"), pwd.getpwnam("postfix")
    (directory / "keys").mkdir(mode=0o700)
    os.chown(directory / "keys", opendkim.pw_uid, opendkim.pw_gid)
    (directory / "opendkim").mkdir()
    os.chown(directory / "opendkim", opendkim.pw_uid, postfix.pw_gid)
    (directory / "opendkim").chmod(0o2750)
    for name in ("postfix", "queue", "data"):
        (directory / name).mkdir(mode=0o755)
    os.chown(directory / "data", postfix.pw_uid, -1)


def _moved(text: str, directory: Path) -> str:
    """Change the places of a machine into ours."""
    moves = {
        "/var/spool/postfix/opendkim": "opendkim",
        "/run/opendkim": "opendkim",
        "/etc/dkimkeys": "keys",
        "/etc/opendkim/": "",
    }
    for place, ours in moves.items():
        text = text.replace(place, f"{directory}/{ours}")
    return text


_MAIN_CF = """
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = {directory}/log
maillog_file_prefixes = {directory}
myhostname = mail.example.com
inet_interfaces = loopback-only
inet_protocols = ipv4
mydestination =
relayhost = [127.0.0.1]:{sink}
disable_dns_lookups = yes
smtp_dns_support_level = disabled
alias_maps =
alias_database =
# As on a host that has mail of its own: what the worker hands over is to be left alone all the same.
append_dot_mydomain = yes
masquerade_domains = example.org
"""
_MASTER_CF = """
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
tlsmgr unix - - n 1000? 1 tlsmgr
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""


@contextmanager
def _postfix(relaying: Relaying) -> Iterator[None]:
    directory = relaying.directory
    folder = directory / "postfix"
    main = _MAIN_CF.format(directory=directory, sink=relaying.sink.port)
    (folder / "main.cf").write_text(main + (EXAMPLES / "postfix-main.cf").read_text())
    master = (EXAMPLES / "postfix-master.cf").read_text().replace(":10025 ", f":{relaying.port} ")
    (folder / "master.cf").write_text(_MASTER_CF + _moved(master, directory))
    subprocess.run(["postfix", "-c", str(folder), "check"], check=True)
    asked = ["postconf", "-c", str(folder), "-h", "daemon_directory"]
    place = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    # It makes a session of its own, so that its end is not ours.
    process = subprocess.Popen([f"{place}/master", "-c", str(folder), "-s"], stdout=subprocess.DEVNULL)
    try:
        await_true(lambda: _greets(relaying.port), "Postfix")
        yield
    finally:
        process.terminate()
        process.wait(patience_s())


def _listens(path: Path) -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        return True
    return False


def _greets(port: int) -> bool:
    with suppress(OSError, smtplib.SMTPException), smtplib.SMTP("127.0.0.1", port, timeout=patience_s()) as probe:
        return bool(probe.noop()[0] == 250)
    return False


Lookup = Callable[..., bytes | None]


@pytest.mark.case(46)
@pytest.mark.parametrize("name", MESSAGES)
def test_signed_and_otherwise_untouched(relaying: Relaying, lookup: Lookup, name: str) -> None:
    """OpenDKIM and Postfix add on top; what we gave away follows byte for byte, and the signature is good."""
    arrived = relaying.deliver(MESSAGES[name])
    (tags,) = arrived.tags
    assert (tags["d"], tags["s"], tags["a"], tags["c"]) == ("example.org", SELECTOR, "rsa-sha256", "relaxed/relaxed")
    assert "l" not in tags, "a signature of a part of the body lets others append to it"
    assert arrived.verifies(lookup)
    assert arrived.got.endswith(arrived.given if arrived.given.endswith(b"\r\n") else arrived.given + b"\r\n")


@pytest.mark.case(46)
@pytest.mark.parametrize("canonical", [(b"simple", b"simple"), (b"relaxed", b"relaxed"), (b"simple", b"relaxed")])
@pytest.mark.parametrize("name", MESSAGES)
def test_the_applications_signature_stays_good(
    relaying: Relaying, zone: dict[bytes, bytes], lookup: Lookup, name: str, canonical: tuple[bytes, bytes]
) -> None:
    """Both verify: the application's own of every field that it wrote, and OpenDKIM's above it."""
    private, zone[b"app._domainkey.example.org."] = APPLICATION
    raw = MESSAGES[name]
    signature = dkim.DKIM(raw).sign(
        b"app", b"example.org", private, canonicalize=canonical, include_headers=sorted(set(_field_names(raw)))
    )
    arrived = relaying.deliver(signature + raw)
    assert [tags["s"] for tags in arrived.tags] == [SELECTOR, "app"]
    assert arrived.verifies(lookup, 0)
    assert arrived.verifies(lookup, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"List-Unsubscribe", b"<https://example.org/u/2>"),
        (b"List-Unsubscribe-Post", b"List-Unsubscribe=Two-Click"),
        (b"Subject", b"other"),
        (b"Message-ID", b"<2@example.org>"),
    ],
)
def test_what_is_signed_cannot_be_changed(relaying: Relaying, lookup: Lookup, field: bytes, value: bytes) -> None:
    """RFC 8058, section 4: both fields of one-click unsubscribing are covered."""
    arrived = relaying.deliver(MESSAGES["one click"])
    pattern = rb"\r\n" + field + rb": [^\r]*(\r\n [^\r]*)*"
    changed, count = re.subn(pattern, b"\r\n" + field + b": " + value, arrived.got)
    assert count == 1
    assert arrived.verifies(lookup)
    assert not arrived.verifies(lookup, changed=changed)


@pytest.mark.parametrize("field", ["From", "Reply-To", "To", "Cc", "Subject", "Date", "Content-Type"])
def test_none_can_be_added(relaying: Relaying, lookup: Lookup, field: str) -> None:
    """A second From, or a first Cc, is what a reader is shown: the signature does not cover for it."""
    arrived = relaying.deliver(MESSAGES["folded"])
    assert not arrived.verifies(lookup, changed=f"{field}: x@evil.example\r\n".encode() + arrived.got)
    assert arrived.verifies(lookup, changed=b"X-Other: x\r\n" + arrived.got)


@pytest.mark.parametrize(
    ("sender", "domain"),
    [
        ("app@example.org", "example.org"),
        ("App <APP@EXAMPLE.ORG>", "example.org"),
        ("app@news.example.org", "example.org"),
        ("app@example.com", "example.com"),
        ("app@news.example.com", None),
        ("app@example.org.evil.example", None),
        ("app@other.example", None),
    ],
)
def test_which_domain_signs(relaying: Relaying, lookup: Lookup, sender: str, domain: str | None) -> None:
    """SigningTable says whose mail is signed; another domain's leaves without a signature of ours."""
    arrived = relaying.deliver(HEADER.replace(b"App <app@example.org>", sender.encode()) + b"\r\nhello\r\n")
    assert [tags["d"] for tags in arrived.tags] == ([domain] if domain else [])
    assert not domain or arrived.verifies(lookup)


def test_eight_bit_stays_eight_bit(relaying: Relaying, lookup: Lookup) -> None:
    """Even where the next hop does not offer 8BITMIME: its conversion would break the signature."""
    relaying.sink.extensions = ("PIPELINING",)  # to Postfix, SMTPUTF8 says 8BITMIME too
    try:
        arrived = relaying.deliver(MESSAGES["8-bit"])
    finally:
        relaying.sink.extensions = EXTENSIONS
    assert arrived.verifies(lookup)


def test_without_opendkim_the_worker_keeps_the_message(relaying: Relaying) -> None:
    """Nothing leaves unsigned."""
    before = len(relaying.sink.delivered)
    relaying.stop_dkim()
    with pytest.raises(DeliveryDeferred, match=r"451 4\.7\.1"):
        relaying.deliver(MESSAGES["plain"])
    relaying.start_dkim()
    assert relaying.deliver(MESSAGES["plain"]).tags
    assert len(relaying.sink.delivered) == before + 1


def test_a_key_that_is_not_readable_is_a_temporary_fault(relaying: Relaying) -> None:
    """One that others can read is not used either."""
    before = len(relaying.sink.delivered)
    key = relaying.directory / "keys" / f"example.org.{SELECTOR}.private"
    for mode in (0o000, 0o644):
        key.chmod(mode)
        with pytest.raises(DeliveryDeferred, match=r"4\.7\.1"):
            relaying.deliver(MESSAGES["plain"])
    key.chmod(0o600)
    assert relaying.deliver(MESSAGES["plain"]).tags
    assert len(relaying.sink.delivered) == before + 1


def test_a_new_key_takes_over_without_a_restart(relaying: Relaying, zone: dict[bytes, bytes], lookup: Lookup) -> None:
    """What was signed before stays good as long as its record is there."""
    earlier = relaying.deliver(MESSAGES["plain"])
    printed = relaying.make_key("example.org", "s2026b")
    zone |= record_in(printed)
    table = relaying.directory / "KeyTable"
    before = table.read_text()
    (line,) = [line for line in printed.splitlines() if line.startswith("example.org example.org:")]
    try:
        relaying.use_table(table, re.sub(r"(?m)^example\.org .*", line, before))
        later = relaying.await_selector("s2026b")
        assert later.verifies(lookup)
        assert earlier.verifies(lookup)
    finally:
        relaying.use_table(table, before)
        relaying.await_selector(SELECTOR)


# ---------------------------------------------------------------------- the files and the script


def test_opendkim_takes_the_configuration(relaying: Relaying) -> None:
    config = relaying.directory / "opendkim.conf"
    assert _run("opendkim", "-n", "-x", str(config)) == (0, "")
    broken = relaying.directory / "broken.conf"
    broken.write_text(config.read_text() + "Nonsense yes\n")
    assert _run("opendkim", "-n", "-x", str(broken))[0] == 78


def test_the_printed_record_belongs_to_the_key(relaying: Relaying) -> None:
    """opendkim-testkey looks it up, in a resolver that knows the printed line of the zone file."""
    domain, selector = "keys.example.org", "check-1"
    printed = relaying.make_key(domain.upper(), selector)
    line = next(line for line in printed.splitlines() if " IN TXT " in line)
    (record,) = record_in(printed).values()
    assert record.decode() in printed.splitlines()
    resolver, config = relaying.directory / "unbound.conf", relaying.directory / "testkey.conf"
    resolver.write_text(
        f"server:\n  local-zone: \"example.org.\" static\n  local-data: '{line.translate({40: None, 41: None})}'\n"
    )
    config.write_text(f"Domain {domain}\nResolverConfiguration {resolver}\n")
    key = relaying.directory / "keys" / f"{domain}.{selector}.private"
    other = relaying.directory / "keys" / f"example.com.{SELECTOR}.private"
    asked = ["runuser", "-u", "opendkim", "--", "opendkim-testkey", "-x", str(config), "-d", domain, "-s", selector]
    code, said = _run(*asked, "-k", str(key), "-vvv")
    assert (code, "key OK" in said) == (0, True), said
    assert _run(*asked, "-k", str(other))[0] != 0


def test_the_key_is_opendkims_alone(relaying: Relaying) -> None:
    keys = relaying.directory / "keys"
    for key in keys.iterdir():
        found = key.stat()
        assert (pwd.getpwuid(found.st_uid).pw_name, oct(found.st_mode & 0o7777)) == ("opendkim", "0o600")
    assert not list(keys.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 64),
        (("example.org",), 64),
        (("example.org", "s", "relative"), 64),
        (("example.org", "s", "/etc/a:b"), 64),
        (("example.org", "s", "/nowhere"), 73),
        (("../example.org", "s"), 64),
        (("example.org", "s/../x"), 64),
        (("example..org", "s"), 64),
        (("-example.org", "s"), 64),
        (("example.org.", "s"), 64),
        (("exämple.org", "s"), 64),
        (("example.org\nx", "s"), 64),
        (("*.example.org", "s"), 64),
        (("a" * 64 + ".org", "s"), 64),
        (("example.org", ".".join(["a" * 60] * 4)), 64),
        (("", "s"), 64),
        (("example.org", ""), 64),
    ],
)
def test_make_key_refuses(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    given = arguments if len(arguments) != 2 else (*arguments, str(tmp_path))
    found, said = _run(str(EXAMPLES / "make-key"), *given)
    assert (found, said.startswith("make-key: ")) == (code, True), said
    assert not list(tmp_path.iterdir())


def test_make_key_overwrites_nothing(relaying: Relaying) -> None:
    key = relaying.directory / "keys" / f"example.com.{SELECTOR}.private"
    before = key.read_bytes()
    code, said = _run(str(EXAMPLES / "make-key"), "example.com", SELECTOR, str(key.parent))
    assert (code, "a new key needs a new selector" in said) == (73, True)
    assert key.read_bytes() == before


def _run(*command: str) -> tuple[int, str]:
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=patience_s()
    )
    return done.returncode, done.stdout


def _field_names(raw: bytes) -> list[bytes]:
    header = raw.partition(b"\r\n\r\n")[0]
    return [line.partition(b":")[0] for line in header.split(b"\r\n") if line[:1] not in b" \t"]


def _application() -> tuple[bytes, bytes]:
    """Make a key as an application has one: PEM, and its record."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem, b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)


APPLICATION = _application()
