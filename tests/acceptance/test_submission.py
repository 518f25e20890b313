"""An application hands in mail: who may, from whom, to whom, and which bytes arrive."""

from __future__ import annotations

import hashlib
import secrets
import smtplib
import ssl
import stat
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.message import EmailMessage
from email.parser import BytesParser
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.submitting import (
    FROM,
    LIMIT,
    MAIL,
    TAKEN,
    TO,
    Account,
    Answer,
    Mechanism,
    add_domain,
    answer,
    answered,
    authenticate,
    begin,
    delivered,
    log_in,
    nothing_stored,
    refusals,
    revoke,
    rows,
    stored,
    submit,
    unique,
)
from tests.waiting import await_true

GOOD = (235, "2.7.0")
BAD = (535, "5.7.8")
NO = (550, "5.7.1")
NO_ADDRESS = {(501, "5.1.3"), (550, "5.1.3")}
"""Postfix's own answer at RCPT, or ours at the end of the message."""
PORTS = ("SANDBOX_SMTP_PORT", "SANDBOX_SUBMISSION_PORT", "SANDBOX_SMTPS_PORT")
in_any_way = pytest.mark.parametrize(
    ("mechanism", "initial"), [("PLAIN", True), ("PLAIN", False), ("LOGIN", True), ("LOGIN", False)]
)


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[smtplib.SMTP]:
    """Log in with the key that may send from any verified domain."""
    with sandbox.smtp() as client:
        yield client


@pytest.fixture
def account(sandbox: Sandbox) -> Account:
    """Make a user of this test's own."""
    return Account.make(sandbox)


def responses(mechanism: Mechanism, user: bytes, password: bytes, authzid: bytes = b"") -> tuple[bytes, ...]:
    return (authzid + b"\0" + user + b"\0" + password,) if mechanism == "PLAIN" else (user, password)


def authenticated(
    sandbox: Sandbox, mechanism: Mechanism, user: bytes, password: bytes, *, initial: bool = True
) -> Answer:
    with sandbox.connect() as client:
        return authenticate(client, mechanism, *responses(mechanism, user, password), initial=initial)


# ---------------------------------------------------------------------- who may


@pytest.mark.case(23)
@pytest.mark.parametrize("user", ["", "apikey", "jane@example.org", "jürgen", "u" * 1_000])
@in_any_way
def test_any_user_name_will_do(sandbox: Sandbox, mechanism: Mechanism, initial: bool, user: str) -> None:  # noqa: FBT001
    key = sandbox["SANDBOX_API_KEY"].encode()
    assert authenticated(sandbox, mechanism, user.encode(), key, initial=initial).codes == GOOD


@pytest.mark.case(23)
@pytest.mark.parametrize("user", [b"a\0b", b"\xff\xfe", b"u" * 5_000])
def test_a_login_name_is_not_even_read(sandbox: Sandbox, user: bytes) -> None:
    assert authenticated(sandbox, "LOGIN", user, sandbox["SANDBOX_API_KEY"].encode(), initial=False).codes == GOOD


@pytest.mark.case(23)
@pytest.mark.parametrize("authzid", [b"admin", b"jane@example.org", "jürgen".encode(), b"a" * 300])
def test_an_authorization_identity_changes_nothing(sandbox: Sandbox, account: Account, authzid: bytes) -> None:
    key = account.key()
    with sandbox.connect() as client:
        assert authenticate(client, "PLAIN", *responses("PLAIN", b"apikey", key.encode(), authzid)).codes == GOOD
        assert submit(client, MAIL).codes == NO, "the rights are those of the key"
        assert submit(client, account.message()).codes == TAKEN


@pytest.mark.case(23)
@pytest.mark.parametrize("around", [" {} ", "\t{}\r\n", "\ufeff{}"])
@in_any_way
def test_white_space_around_the_key_is_no_part_of_it(
    sandbox: Sandbox,
    mechanism: Mechanism,
    initial: bool,  # noqa: FBT001
    around: str,
) -> None:
    password = around.format(sandbox["SANDBOX_API_KEY"]).encode()
    assert authenticated(sandbox, mechanism, b"apikey", password, initial=initial).codes == GOOD


@pytest.mark.case(23)
@pytest.mark.parametrize(
    "password", [b"", b" ", b"k" * 5_000, b"{key}\0", b"{key}\0x", b"{key}" + b"k" * 5_000, b"\xff"]
)
@in_any_way
def test_what_can_be_no_key_is_refused(sandbox: Sandbox, mechanism: Mechanism, initial: bool, password: bytes) -> None:  # noqa: FBT001
    key = sandbox["SANDBOX_API_KEY"]
    with sandbox.connect() as client:
        given = responses(mechanism, b"apikey", password.replace(b"{key}", key.encode()))
        assert authenticate(client, mechanism, *given, initial=initial).codes == BAD
        assert submit(client, MAIL).codes == (530, "5.7.0")
        assert log_in(client, key).codes == GOOD, "the connection goes on"


@pytest.mark.case(23)
def test_a_response_over_the_limit_ends_the_dialogue_only(sandbox: Sandbox) -> None:
    with sandbox.connect() as client:
        too_long = responses("PLAIN", b"apikey", b"k" * 15_000)
        assert authenticate(client, "PLAIN", *too_long, initial=False).codes == (500, "5.5.6")
        assert log_in(client, sandbox["SANDBOX_API_KEY"]).codes == GOOD


@pytest.mark.case(23)
def test_a_dialogue_may_be_given_up(sandbox: Sandbox) -> None:
    with sandbox.connect() as client:
        assert client.docmd("AUTH", "LOGIN")[0] == 334
        assert answer(client.docmd("*")).codes == (501, "5.7.0")
        assert log_in(client, sandbox["SANDBOX_API_KEY"]).codes == GOOD


def test_a_wrong_key_is_refused_and_a_good_one_taken_after_it(sandbox: Sandbox) -> None:
    with sandbox.connect() as client:
        assert log_in(client, "os_" + "0" * 32).codes == BAD
        assert log_in(client, sandbox["SANDBOX_API_KEY"]).codes == GOOD
        assert submit(client, MAIL).codes == TAKEN


@pytest.mark.case(52)
def test_sql_in_user_name_and_password_is_a_wrong_key(sandbox: Sandbox) -> None:
    before = rows(sandbox, "SELECT token_hash FROM api_keys ORDER BY 1")
    tries = [
        "' OR '1'='1",
        "' OR 1=1 --",
        "'; DELETE FROM api_keys; --",
        "') UNION SELECT id::text FROM api_keys --",
        "\\'; DROP TABLE emails CASCADE; --",
        "$$; SELECT pg_sleep(10); --",
        "%{sha256:password}",
        "%u' OR '%w",
    ]

    def one(text: str) -> tuple[int, str]:
        return authenticated(sandbox, "PLAIN", text.encode(), text.encode()).codes

    with ThreadPoolExecutor(len(tries)) as threads:  # each wrong key waits for two seconds
        assert list(threads.map(one, tries)) == [BAD] * len(tries)
    assert rows(sandbox, "SELECT token_hash FROM api_keys ORDER BY 1") == before
    assert authenticated(sandbox, "PLAIN", tries[0].encode(), sandbox["SANDBOX_API_KEY"].encode()).codes == GOOD


@pytest.mark.parametrize("port", PORTS)
def test_every_port_speaks_tls_and_wants_a_key(sandbox: Sandbox, port: str) -> None:
    with sandbox.connect(port) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        client.ehlo()
        assert client.esmtp_features["auth"].split() == ["PLAIN", "LOGIN"]
        assert not client.has_extn("starttls")
        assert begin(client, TO).codes == (530, "5.7.0")
        assert log_in(client, sandbox["SANDBOX_API_KEY"]).codes == GOOD
        queue_id = submit(client, MAIL).queue_id
        cipher = client.sock.cipher()
        assert cipher
        assert stored(sandbox, queue_id).tls == f"{client.sock.version()} {cipher[0]}"
    assert b"with ESMTPSA id" in delivered(sandbox, queue_id).content


# ---------------------------------------------------------------------- keys


@pytest.mark.case(30)
@pytest.mark.case(31)
def test_a_key_made_in_the_dashboard_sends_from_its_domain_only(sandbox: Sandbox, account: Account) -> None:
    """Its column holds the domain's id, not its name."""
    own = account.domain
    others = [f"other.{own}", f"sub.{own}", "x" + own, f"{own}.example"]
    for other in others:
        account.also_has(other)
    with account.logged_in(account.key(account.domain_id)) as client:
        taken = submit(client, account.message())
        assert stored(sandbox, taken.queue_id).row["from"] == f"app@{own}"
        assert submit(client, account.message(domain=own.upper())).codes == TAKEN
        with nothing_stored(sandbox):
            for other in (*others, "example", "sandbox.test", f"{own}."):
                sender = f"{unique()}@{own}"
                refused = submit(client, account.message(domain=other), sender=sender)
                assert refused.codes == NO, other
                ((rule, *codes, _),) = refusals(sandbox, sender)
                assert (rule in {"from-restricted", "from-malformed"}, *codes) == (True, *NO)


@pytest.mark.case(30)
@pytest.mark.parametrize("held", ["xn--exmple-cua", "exämple"])
def test_a_domain_beyond_ascii_has_two_spellings(sandbox: Sandbox, account: Account, held: str) -> None:
    domain_id = add_domain(sandbox, account.user_id, f"{held}.{account.domain}")
    with account.logged_in(account.key(domain_id)) as client:
        for spelled in ("xn--exmple-cua", "exämple", "EXÄMPLE"):
            assert submit(client, account.message(domain=f"{spelled}.{account.domain}")).codes == TAKEN, spelled
        assert submit(client, account.message(domain=f"example.{account.domain}")).codes == NO


@pytest.mark.case(31)
def test_what_the_domain_of_a_key_may_hold(sandbox: Sandbox, account: Account) -> None:
    stranger = Account.make(sandbox)
    account.also_has(f"second.{account.domain}")
    first, second, theirs = account.domain, f"second.{account.domain}", stranger.domain
    may_send = {
        account.domain_id.upper(): [first],
        first: [first],
        f" {first.title()} ": [first],
        second: [second],
        "": [first, second],
        stranger.domain_id: [],
        theirs: [],
        "00000000-0000-4000-8000-000000000000": [],
    }
    for held, domains in may_send.items():
        with account.logged_in(account.key(held)) as client:
            answers = {one: submit(client, account.message(domain=one)).codes for one in (first, second, theirs)}
        assert answers == {one: TAKEN if one in domains else NO for one in (first, second, theirs)}, held


def _delete_the_key(sandbox: Sandbox, key: str) -> None:
    revoke(sandbox, key)


def _take_its_owner(sandbox: Sandbox, key: str) -> None:
    digest = hashlib.sha256(key.encode()).hexdigest()
    rows(sandbox, "UPDATE api_keys SET user_id = NULL WHERE token_hash = %s", digest)


@pytest.mark.case(48)
@pytest.mark.case(49)
@pytest.mark.case(53)
@pytest.mark.parametrize("end", [_delete_the_key, _take_its_owner])
def test_a_key_that_ends_sends_nothing_more(
    sandbox: Sandbox, account: Account, end: Callable[[Sandbox, str], None]
) -> None:
    key, sender = account.key(), f"{unique()}@{account.domain}"
    with account.logged_in(key) as client:
        assert submit(client, account.message()).codes == TAKEN
        half = begin(client, TO, sender=sender)
        end(sandbox, key)
        with nothing_stored(sandbox):
            assert half.code == 250
            assert client.docmd("DATA")[0] == 354
            assert answered(client, account.message() + b".\r\n").codes == NO, "in the middle of a message"
            assert submit(client, account.message(), sender=sender).codes == NO, "the next message"
    assert [(rule, code) for rule, code, *_ in refusals(sandbox, sender)] == [("key-revoked", 550)] * 2
    with sandbox.connect() as client:  # nothing is cached: at once
        assert log_in(client, key).codes == BAD


@pytest.mark.case(51)
def test_a_key_is_in_no_file_no_row_and_no_process_title(sandbox: Sandbox, account: Account) -> None:
    key, wrong = account.key(), f"os_{secrets.token_hex(16)}"
    with sandbox.connect() as client:
        said = [
            authenticate(client, "PLAIN", f"\0apikey\0{wrong}".encode()),
            authenticate(client, "LOGIN", b"apikey", f"{key}\0".encode()),
            authenticate(client, "PLAIN", f"\0{key}\0".encode()),
            authenticate(client, "PLAIN", f"{key}\0{key}".encode()),
            authenticate(client, "LOGIN", key.encode(), b"", initial=False),
            answer(client.docmd("AUTH", f"PLAIN {key}")),
            answer(client.docmd(key)),
            authenticate(client, "LOGIN", b"apikey", key.encode()),
            submit(client, account.message()),
            submit(client, MAIL),
        ]
    assert [one.code for one in said] == [535] * 6 + [500, 235, 250, 550]
    delivered(sandbox, said[-2].queue_id)
    for secret in (key, wrong, sandbox["SANDBOX_API_KEY"]):
        spelled = spellings(secret)
        assert not [one for one in said if holds(one.text.encode(), spelled)]
        assert not [path for path in files(sandbox) if holds(path.read_bytes(), spelled)]
        assert not holds(dump(sandbox), spelled)
        assert not [path for path in process_titles() if holds(content(path), spelled)]
    state = sandbox.directory / "sandbox.json"
    assert holds(state.read_bytes(), [sandbox["SANDBOX_API_KEY"].encode()]), "or this test looks for the wrong thing"
    assert stat.S_IMODE(state.stat().st_mode) == 0o600


def spellings(secret: str) -> list[bytes]:
    """Return how a secret may be written down: as it is, in hex, and in base64 behind any number of octets."""
    plain = secret.encode()
    shifted = [b64encode(b"?" * behind + plain)[4:-4] for behind in range(3)]
    return [plain, plain.hex().encode(), *shifted]


def holds(text: bytes, spelled: list[bytes]) -> bool:
    return any(one in text for one in spelled)


def files(sandbox: Sandbox) -> Iterator[Path]:
    for path in sandbox.directory.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file() and path.name != "sandbox.json":
                yield path


def dump(sandbox: Sandbox) -> bytes:
    program = max(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"))
    command = [str(program), "--data-only", "--dbname", sandbox["SANDBOX_DATABASE_URL"]]
    done = subprocess.run(command, capture_output=True, check=True)
    assert b"token_preview" in done.stdout
    return done.stdout


def process_titles() -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        yield from (process / "cmdline", process / "environ")


def content(path: Path) -> bytes:
    with suppress(OSError):  # it has ended
        return path.read_bytes()
    return b""


# ---------------------------------------------------------------------- from whom


@pytest.mark.case(24)
@pytest.mark.case(27)
@pytest.mark.case(28)
@pytest.mark.parametrize(
    "head",
    [
        b"Subject: nobody\r\n",
        b"From:\r\n",
        b"From: <>\r\n",
        FROM + b"From: other@sandbox.test\r\n",
        FROM + b"FROM: app@sandbox.test\r\n",
        FROM + b"From : ceo@evil.example\r\n",
        FROM + b"From\t: ceo@evil.example\r\n",
        b"From : app@sandbox.test\r\n",
        b"From: app@sandbox.test, ceo@evil.example\r\n",
        b"From: app@sandbox.test,\r\n other@sandbox.test\r\n",
        b"From: app@sandbox.test\r\n\tceo@evil.example\r\n",
        b"From: <app@sandbox.test> <ceo@evil.example>\r\n",
        b"From: <app@sandbox.test>, <>\r\n",
        b"From: Team: app@sandbox.test, other@sandbox.test;\r\n",
        b"From: Team: app@sandbox.test;\r\n",
        b"From: nobody:;\r\n",
        b"From: <@evil.example:app@sandbox.test>\r\n",
        b"From: <@sandbox.test:ceo@evil.example>\r\n",
        b"From: app@sandbox.test\0@evil.example\r\n",
        b"From: app@sandbox.test)ceo@evil.example\r\n",
        b"From: app@sandbox.test(comment)ceo@evil.example\r\n",
        b"From: app(comment)@sandbox.test\r\n",
        b"From: app@sandbox.test (open\r\n",
        b"From: app@sandbox.test@evil.example\r\n",
        b"From: ceo@evil.example@sandbox.test\r\n",
        b"From: =?utf-8?q?app=40sandbox=2Etest?=\r\n",
        b"From: =?utf-8?q?app?=@sandbox.test@evil.example\r\n",
        b"From: =?utf-8?q?evil=40bank.example=3e?=@sandbox.test\r\n",
        b"From: =?utf-8?q?ceo=40evil=2Eexample?= <app@sandbox.test>\r\n",
        b"From: =?utf-8?q?a=0D=0ABcc=3A_x=00?= <app@sandbox.test>\r\n",
        b'From: <"admin@bank.example> "@sandbox.test>\r\n',
        b'From: "app@sandbox.test" <ceo@evil.example>\r\n',
        b"From: app@sandbox.test.\r\n",
        b"From: app@[127.0.0.1]\r\n",
        b"From: app@test\r\n",
        b"From: app@unverified.test\r\n",
        "From: app@\u0455andbox.test\r\n".encode(),
        b"From: ceo@evil.example\rFrom: app@sandbox.test\r\n",
        b"X-Bare: return\rFrom: app@sandbox.test\r\n",
        b"X-Nul: \0\r\nFrom: app@sandbox.test\r\n",
        b"\r\nFrom: app@sandbox.test\r\n",
    ],
)
def test_a_from_field_that_is_not_one_address_of_ours_is_refused(
    sandbox: Sandbox, client: smtplib.SMTP, head: bytes
) -> None:
    with nothing_stored(sandbox):
        refused = submit(client, head + b"\r\nhi\r\n")
    assert refused.codes == NO
    assert submit(client, MAIL).codes == TAKEN, "the connection goes on"


@pytest.mark.case(24)
@pytest.mark.case(27)
@pytest.mark.parametrize(
    ("written", "recorded"),
    [
        ("app@SANDBOX.test", "app@SANDBOX.test"),
        ("\r\n\tJane\r\n <app@sandbox.test>", "Jane <app@sandbox.test>"),
        ("(the office) app@sandbox.test (at home)", "the office at home <app@sandbox.test>"),
        ('"Doe, Jane" <app@sandbox.test>', '"Doe, Jane" <app@sandbox.test>'),
        ("=?utf-8?q?J=C3=BCrgen?= <app@sandbox.test>", "=?utf-8?q?J=C3=BCrgen?= <app@sandbox.test>"),
        ('"ceo@evil.example" <app@sandbox.test>', '"ceo@evil.example" <app@sandbox.test>'),
        ("=?utf-8?q?app=40sandbox=2Etest?= <app@sandbox.test>", '"app@sandbox.test" <app@sandbox.test>'),
    ],
)  # fmt: skip
def test_a_display_name_is_never_taken_for_the_address(
    sandbox: Sandbox, client: smtplib.SMTP, written: str, recorded: str
) -> None:
    message = f"From: {written}\r\n\r\nhi\r\n".encode()
    queue_id = submit(client, message).queue_id
    assert stored(sandbox, queue_id).row["from"] == recorded
    assert stored(sandbox, queue_id).raw == message
    found = delivered(sandbox, queue_id)
    assert found.return_path.lower() == "app@sandbox.test"
    assert found.recipients == [TO]


@pytest.mark.case(24)
@pytest.mark.parametrize(
    "head",
    [
        b"From : ceo@evil.example\r\n" + FROM,
        b"From ceo@evil.example\r\n" + FROM,
        b"Subject: hi\r\nFrom : app@sandbox.test\r\n",
    ],
)
def test_a_from_field_that_postfix_mends_leaves_as_one(client: smtplib.SMTP, sandbox: Sandbox, head: bytes) -> None:
    """Postfix makes X-Mailbox-Line of such a first line, and takes the space away further down."""
    sent = delivered(sandbox, submit(client, head + b"\r\nhi\r\n").queue_id).content
    assert BytesParser().parsebytes(sent).get_all("from") == ["app@sandbox.test"]
    assert sent.lower().count(b"\r\nfrom") == 1


@pytest.mark.case(25)
def test_other_senders_may_be_anybody(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    others = "".join(
        f"{name}: {name.lower()}@other.example\r\n"
        for name in ("Sender", "Reply-To", "Resent-From", "Resent-Sender", "Resent-To", "Return-Path", "Errors-To")
    )
    message = FROM + others.encode() + b"\r\nhi\r\n"
    queue_id = submit(client, message).queue_id
    assert stored(sandbox, queue_id).row["reply_to"] == ["reply-to@other.example"]
    found = delivered(sandbox, queue_id)
    assert found.prepended(message) == ["Received", "Message-ID", "Date"]
    assert (found.return_path, found.recipients) == ("app@sandbox.test", [TO])


@pytest.mark.case(26)
@pytest.mark.parametrize("sender", ["", "victim@elsewhere.example", '"a b"@elsewhere.example', "root"])
def test_mail_from_is_recorded_and_never_used(sandbox: Sandbox, client: smtplib.SMTP, sender: str) -> None:
    queue_id = submit(client, MAIL, sender=sender).queue_id
    assert stored(sandbox, queue_id).sender == sender
    found = delivered(sandbox, queue_id)
    assert found.return_path == "app@sandbox.test"
    assert b"elsewhere.example" not in found.content


# ---------------------------------------------------------------------- to whom


@pytest.mark.case(32)
@pytest.mark.case(33)
def test_mail_goes_to_the_envelope_and_nowhere_else(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    message = b"To: Jane <to@example.net>, not@example.net\r\nCc: cc@example.net, nor@example.net\r\n" + MAIL
    envelope = ["hidden@example.net", "to@example.net", "cc@example.net", "too@example.net"]
    queue_id = submit(client, message, *envelope).queue_id
    found = stored(sandbox, queue_id)
    assert found.recipients == envelope
    shown = {name: found.row[name] for name in ("to", "cc", "bcc")}
    assert shown == {
        "to": ["to@example.net"],
        "cc": ["cc@example.net"],
        "bcc": ["hidden@example.net", "too@example.net"],
    }
    sent = delivered(sandbox, queue_id)
    assert sent.recipients == envelope
    assert b"hidden" not in sent.content
    assert b"too@" not in sent.content
    sent.prepended(message)
    await_true(lambda: _status(sandbox, queue_id) == ("sent", 0), "it is sent")


def _status(sandbox: Sandbox, queue_id: str) -> tuple[str, int]:
    ((status, jobs),) = rows(
        sandbox,
        "SELECT e.status, (SELECT count(*) FROM opensend_milter.jobs j WHERE j.email_id = e.id)"
        " FROM emails e JOIN opensend_milter.submissions s ON s.email_id = e.id WHERE s.queue_id = %s",
        queue_id,
    )
    return status, jobs


@pytest.mark.case(34)
@pytest.mark.parametrize(
    ("head", "shown"),
    [
        ("", []),
        ("To:\r\n", []),
        ("To: undisclosed-recipients:;\r\n", []),
        ("To: Team: to@example.net, other@example.net;\r\n", [TO]),
        ("To: Team: =?utf-8?q?J=C3=BCrgen?= <TO@example.net>;, to@EXAMPLE.net\r\n", [TO]),
        ("To: <broken, to@example.net\r\n", [TO]),
    ],
)
def test_the_to_field_may_be_anything(sandbox: Sandbox, client: smtplib.SMTP, head: str, shown: list[str]) -> None:
    message = head.encode() + MAIL
    queue_id = submit(client, message, TO).queue_id
    assert stored(sandbox, queue_id).row["to"] == shown
    found = delivered(sandbox, queue_id)
    assert found.recipients == [TO]
    found.prepended(message)


@pytest.mark.case(35)
@pytest.mark.parametrize(
    "bcc",
    [
        b"Bcc: secret@example.net\r\n",
        b"BCC:secret@example.net,\r\n\tb-secret@example.net\r\n c-secret@example.net\r\n",
        b"bcc : secret@example.net\r\n",
        b"Bcc:\r\n secret@example.net\r\n",
        b"Bcc: secret@example.net\r\nbCC: d-secret@example.net\r\n",
        b"Resent-Bcc: secret@example.net\r\n",
        b"Bcc:\r\n",
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_bcc_field_never_reaches_a_recipient(
    sandbox: Sandbox,
    client: smtplib.SMTP,
    bcc: bytes,
    first: bool,  # noqa: FBT001
) -> None:
    body = b"Subject: kept\r\n\r\nBcc: this is text\r\n"
    message = (bcc + FROM if first else FROM + bcc) + body
    sent = delivered(sandbox, submit(client, message, TO, "b-secret@example.net").queue_id)
    assert sent.recipients == [TO, "b-secret@example.net"], "who is in the field only is not sent to"
    sent.prepended(FROM + body)
    assert b"secret" not in sent.content


@pytest.mark.case(36)
@pytest.mark.parametrize("head", ["To: {}\r\n", "Cc: {}\r\n", "Bcc: {}\r\n", ""])
def test_a_suppressed_recipient_refuses_the_message_by_name(sandbox: Sandbox, account: Account, head: str) -> None:
    account.suppress("bad@example.net", "bounced")
    account.suppress("worse@example.net", "complained")
    for bad, reason in (("bad@example.net", "bounced"), ("WORSE@Example.NET", "complained")):
        sender = f"{unique()}@{account.domain}"
        message = account.message(head.format(bad))
        with nothing_stored(sandbox), account.logged_in() as client:
            refused = submit(client, message, TO, bad, sender=sender)
        assert refused.codes == NO
        assert f"{bad} ({reason})" in refused.text
        assert TO not in refused.text
        assert refusals(sandbox, sender) == [("recipient-suppressed", *NO, [TO, bad])]


@pytest.mark.case(36)
def test_who_is_not_suppressed_is_sent_to(sandbox: Sandbox, account: Account) -> None:
    Account.make(sandbox).suppress("theirs@example.net", "manual")
    account.suppress("bad@example.net", "manual")
    others = ["bad+tag@example.net", "theirs@example.net", "bad@sub.example.net", "abad@example.net"]
    with account.logged_in() as client:
        # In the header only, so it is not sent to.
        sent = submit(client, account.message("Cc: bad@example.net\r\n"), *others)
    assert delivered(sandbox, sent.queue_id).recipients == others


@pytest.mark.case(36)
@pytest.mark.parametrize(
    "spelled",
    [
        '"bad"@example.net',
        '"b\\ad"@example.net',
        "b\\ad@example.net",
        "bad(comment)@example.net",
        "bad@example.net(comment)",
        "(comment)bad@example.net",
        "bad@example.net.",
        "@relay.example:bad@example.net",
        "Bad Name <bad@example.net>",
    ],
)
def test_another_spelling_of_a_suppressed_address_is_no_way_around(
    sandbox: Sandbox, account: Account, spelled: str
) -> None:
    """Servers further on take each of these for bad@example.net, Postfix among them."""
    account.suppress("bad@example.net", "bounced")
    with nothing_stored(sandbox), account.logged_in() as client:
        assert submit(client, account.message(), spelled).codes in {NO, *NO_ADDRESS}


@pytest.mark.case(36)
def test_a_domain_beyond_ascii_is_suppressed_in_both_spellings(sandbox: Sandbox, account: Account) -> None:
    account.suppress("bad@xn--exmple-cua.net", "bounced")
    account.suppress("worse@exämple.net", "bounced")
    with nothing_stored(sandbox), account.logged_in() as client:
        for spelled in ("bad@exämple.net", "bad@EXÄMPLE.net", "worse@xn--exmple-cua.net", "worse@XN--exmple-cua.net"):
            assert submit(client, account.message(), spelled, options="SMTPUTF8").codes == NO, spelled


@pytest.mark.case(75)
def test_the_letters_of_a_suppressed_address_are_no_way_around(sandbox: Sandbox, account: Account) -> None:
    """Postfix takes each of these domains for example.net, and some servers each of these names for bad."""
    account.suppress("bad@example.net", "bounced")
    spelled = ("bad@ｅxample.net", "bad@example。net", "bad@exa\u00admple.net", "bad@ⓔxample.net",
               "bad@exam\u200bple.net", "ｂad@example.net", "b\u200bad@example.net", "𝓫𝕒𝖉@𝐞xample.net")  # fmt: skip
    with nothing_stored(sandbox), account.logged_in() as client:
        for one in spelled:
            assert submit(client, account.message(), one, options="SMTPUTF8").codes == NO, ascii(one)
        for one in ("bad@exam\u200dple.net", "bad@ex\u202eample.net"):
            assert submit(client, account.message(), one, options="SMTPUTF8").codes in NO_ADDRESS, ascii(one)


@pytest.mark.case(75)
def test_an_address_that_the_list_spells_oddly_is_suppressed(sandbox: Sandbox, account: Account) -> None:
    """As soon as the worker has gone through the list, which is OpenSend's."""
    account.suppress("ſo@ｅxample.net", "bounced")
    noted = "SELECT folded FROM opensend_milter.odd_spellings WHERE user_id = %s"
    await_true(lambda: rows(sandbox, noted, account.user_id) == [("so@example.net",)], "the spelling is noted")
    with nothing_stored(sandbox), account.logged_in() as client:
        refused = submit(client, account.message(), "So@example.net")
    assert (refused.codes, "So@example.net (bounced)" in refused.text) == (NO, True)


@pytest.mark.case(37)
def test_one_suppressed_of_fifty_stops_them_all(sandbox: Sandbox, account: Account) -> None:
    account.suppress("r25@example.net", "complained")
    fifty = [f"r{number}@example.net" for number in range(50)]
    sender = f"{unique()}@{account.domain}"
    with account.logged_in() as client:
        with nothing_stored(sandbox):
            refused = submit(client, account.message(), *fifty, sender=sender)
        assert refused.codes == NO
        assert "r25@example.net (complained)" in refused.text
        assert "r24@" not in refused.text
        assert refusals(sandbox, sender) == [("recipient-suppressed", *NO, fifty)]
        fifty.remove("r25@example.net")
        sent = submit(client, account.message(), *fifty)
    assert delivered(sandbox, sent.queue_id).recipients == fifty


@pytest.mark.case(22)
def test_recipients_as_odd_as_they_may_be(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    odd = [
        "a@example.net",
        "A@example.net",
        '"a b"@example.net',
        '"a@b"@example.net',
        "a%b@example.net",
        "a!b@example.net",
        "a+b=c@example.net",
        "u@[192.0.2.1]",
        "u@[IPv6:2001:db8::1]",
        "u@xn--exmple-cua.net",
        "u@sub-domain.example.net",
        "u" * 64 + "@example.net",
    ]
    again = ["a@EXAMPLE.net", "a@example.net", '"a b"@Example.net', "U@[192.0.2.1]"]
    queue_id = submit(client, MAIL, *odd, *again[:-1], again[-1]).queue_id
    expected = [*odd, again[-1]]
    assert stored(sandbox, queue_id).recipients == expected
    assert delivered(sandbox, queue_id).recipients == expected


@pytest.mark.case(22)
def test_one_mailbox_gets_one_copy(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    """A quoted local part that needs no quotes is the same without (RFC 5321, 4.1.2)."""
    queue_id = submit(client, MAIL, "a@example.net", '"a"@example.net', "@relay.example:a@example.net").queue_id
    assert delivered(sandbox, queue_id).recipients == ["a@example.net"]


@pytest.mark.case(22)
def test_recipients_beyond_ascii(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    sent = ["jürgen@exämple.net", "plain@exämple.net"]
    again = ["jürgen@xn--exmple-cua.net", "plain@EXÄMPLE.net"]
    queue_id = submit(client, MAIL, *sent, *again, options="SMTPUTF8").queue_id
    assert stored(sandbox, queue_id).recipients == sent
    assert delivered(sandbox, queue_id).recipients == sent
    assert submit(client, MAIL, "jürgen@exämple.net").codes == (501, "5.1.3"), "not without SMTPUTF8"


@pytest.mark.case(22)
@pytest.mark.case(77)
@pytest.mark.parametrize(
    "recipient",
    [
        "",
        "postmaster",
        "a@",
        "@example.net",
        "a b@example.net",
        "a@b@example.net",
        "a:b@example.net",
        "a,b@example.net",
        "a@example.net>",
        "a@example.net.",
        "a@example..net",
        "a@-example.net",
        "a@[300.0.2.1]",
        "a@" + "d" * 64 + ".net",
        "Jane <a@example.net>",
        "a\x01b@example.net",
        "'; DROP TABLE emails; --@example.net",
        "=?utf-8?q?a=40b?=@example.net",
    ],
)
def test_what_is_no_mailbox_is_refused_and_not_tried(sandbox: Sandbox, client: smtplib.SMTP, recipient: str) -> None:
    with nothing_stored(sandbox):
        assert submit(client, MAIL, recipient).codes in NO_ADDRESS


# ---------------------------------------------------------------------- the bytes


SIGNED = (
    b"DKIM-Signature:v=1; a=rsa-sha256;\r\n\t  d=sandbox.test;\r\n \th=From :  To;\t \r\n  b=\r\n   abc=\r\n"
    b"To:\t  to@example.net  \r\n" + FROM + b"Subject:   \r\n   folded\t\r\n\r\nhi  \r\n \r\n"
)
REPEATED = (
    b"Received: from a by b; Sat, 21 Nov 2026 00:00:00 +0000\r\nX-A:1\r\nx-a: 2\r\nX-A:\r\n"
    b"List-Unsubscribe: <mailto:u@sandbox.test>,\r\n <https://sandbox.test/u>\r\n"
    b"References: <1@x>\r\n\t<2@x>\r\n" + FROM + b"\r\nhi\r\n"
)
SMIME = (
    b'Content-Type: multipart/signed; boundary="=_b"; micalg=sha-256;\r\n protocol="application/pkcs7-signature"\r\n'
    + FROM
    + b"MIME-Version: 1.0\r\n\r\nThis is S/MIME.\r\n--=_b\r\n\r\nsigned  \r\n\r\n--=_b\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\nTUlN\r\nRQ==\r\n--=_b--\r\nafter\r\n"
)
MESSAGES = {
    "empty": FROM + b"\r\n",
    "no subject": FROM + b"Subject:\r\n\r\n",
    "an empty line": FROM + b"Subject: \r\n\r\n\r\n",
    "dots": FROM + b"\r\n.\r\n..\r\n.leading dot\r\n...\r\n.\r\n",
    "white space": FROM + b"\r\n\r\n\r\n \t \r\nlast\r\n\r\n\r\n",
    "DKIM": SIGNED,
    "repeated fields": REPEATED,
    "8-bit": FROM + "Subject: grüß dich\r\nX-Latin: ".encode() + b"gr\xfc\xdf\r\n\r\nb\xe9 \xff\x80\r\n",
    "S/MIME": SMIME,
}


@pytest.mark.case(19)
@pytest.mark.case(45)
@pytest.mark.case(46)
@pytest.mark.case(47)
@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
def test_bytes_out_are_bytes_in(sandbox: Sandbox, client: smtplib.SMTP, message: bytes) -> None:
    queue_id = submit(client, message).queue_id
    assert stored(sandbox, queue_id).raw == message
    assert delivered(sandbox, queue_id).prepended(message) == ["Received", "Message-ID", "Date"]


@pytest.mark.case(45)
@pytest.mark.parametrize("has", [(), ("Message-ID",), ("Date",), ("Message-ID", "Date")])
def test_what_is_missing_is_added_and_nothing_twice(
    sandbox: Sandbox, client: smtplib.SMTP, has: tuple[str, ...]
) -> None:
    mine = {"Message-ID": f"<{unique()}@sandbox.test>", "Date": "Sat, 21 Nov 2026 00:00:00 +0000"}
    message = "".join(f"{name}: {mine[name]}\r\n" for name in has).encode() + MAIL
    queue_id = submit(client, message).queue_id
    found = delivered(sandbox, queue_id)
    added = [name for name in mine if name not in has]
    assert found.prepended(message) == ["Received", *added]
    header = BytesParser().parsebytes(found.content, headersonly=True)
    for name, given in mine.items():
        (value,) = header.get_all(name, [])
        assert (value == given) == (name in has)
    assert parsedate_to_datetime(header["Date"]).tzinfo
    (message_id,) = rows(sandbox, "SELECT message_id FROM opensend_milter.submissions WHERE queue_id = %s", queue_id)[0]
    assert message_id == (mine["Message-ID"] if "Message-ID" in has else None)


def test_the_seeds_own_example_works(sandbox: Sandbox) -> None:
    """As it stands in the documentation of OpenSend; the context is for the sandbox's own authority."""
    host, port, key = sandbox["SANDBOX_SMTP_HOST"], int(sandbox["SANDBOX_SMTP_PORT"]), sandbox["SANDBOX_API_KEY"]
    subject = unique("Hello")
    msg = EmailMessage()
    msg["From"] = "hello@sandbox.test"
    msg["To"] = "user@example.com"
    msg["Subject"] = subject
    msg.set_content("It works.")
    with smtplib.SMTP(host, port) as server:
        server.starttls(context=ssl.create_default_context(cafile=sandbox["SANDBOX_TLS_CA"]))
        server.login("apikey", key)
        assert server.send_message(msg) == {}
    ((queue_id,),) = rows(
        sandbox,
        "SELECT queue_id FROM emails e JOIN opensend_milter.submissions s ON s.email_id = e.id WHERE subject = %s",
        subject,
    )
    found = delivered(sandbox, queue_id)
    assert found.recipients == ["user@example.com"]
    header = BytesParser().parsebytes(found.content)
    assert header.get_payload() == "It works.\r\n"
    assert [len(header.get_all(name, [])) for name in ("From", "To", "Subject", "Date", "Message-ID")] == [1] * 5


# ---------------------------------------------------------------------- how much


def of_size(octets: int) -> bytes:
    """Make a message of exactly so many octets, all of whose lines differ."""
    head = FROM + b"Subject: " + unique("large").encode() + b"\r\n\r\n"
    lines = b"".join(b"%075d\r\n" % number for number in range((octets - len(head)) // 77))
    rest = octets - len(head) - len(lines)
    return head + b"y" * rest + lines


@pytest.mark.case(44)
def test_a_message_of_exactly_the_limit_arrives(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    message = of_size(LIMIT)
    queue_id = submit(client, message, options=f"SIZE={LIMIT}").queue_id
    assert stored(sandbox, queue_id).raw == message
    delivered(sandbox, queue_id).prepended(message)


@pytest.mark.case(44)
@pytest.mark.parametrize("octets", [LIMIT + 1, 43_000_000])
@pytest.mark.parametrize("options", ["", "SIZE=1000"], ids=["no-size", "a-lie"])
def test_a_message_over_the_limit_is_refused_at_its_end(
    sandbox: Sandbox, client: smtplib.SMTP, octets: int, options: str
) -> None:
    with nothing_stored(sandbox):
        assert submit(client, of_size(octets), options=options).codes == (552, "5.3.4")
    assert submit(client, MAIL).codes == TAKEN, "the connection goes on"
