"""Each example of docs/clients.md, and all that `key create` prints, sends: the real program through a real gateway."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.acceptance.running_sandbox import Sandbox, new_directory
from tests.acceptance.submitting import unique
from tests.waiting import await_found, await_true, patience_s

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
HOST = "localhost"
"""A name that the sandbox's certificate is for."""
EXAMPLES: Mapping[str, str] = dict(re.findall(r"(?ms)^```\w+ client=([\w-]+)\n(.*?)^```$", PAGE.read_text()))
Send = Callable[[str, Path, Sandbox], None]


def needs(path: str) -> None:
    if not (shutil.which(path) or Path(path).exists()):
        pytest.fail(f"{path} is missing: run tools/setup tests")


def run(*command: str, at: Path, sandbox: Sandbox, text: str | None = None, **more: str) -> None:
    """Run a program that trusts the sandbox's authority and nothing of this machine's own, unless it is told whom."""
    done = subprocess.run(
        command,
        cwd=at,
        env={"PATH": os.environ["PATH"] + ":/usr/sbin:/usr/bin", "HOME": str(at), "LC_ALL": "C.UTF-8"}
        | dict.fromkeys(("SSL_CERT_FILE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), sandbox["SANDBOX_TLS_CA"])
        | more,
        input=text,
        capture_output=True,
        text=True,
        timeout=patience_s(),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def shell(example: str, at: Path, sandbox: Sandbox) -> None:
    run("sh", "-c", example, at=at, sandbox=sandbox)


def swaks(example: str, at: Path, sandbox: Sandbox) -> None:
    if "--tls-ca-path" not in example:
        example = example.replace("--tls-verify", f"--tls-verify --tls-ca-path {sandbox['SANDBOX_TLS_CA']}")
    shell(example, at, sandbox)


def python(example: str, at: Path, sandbox: Sandbox) -> None:
    run(sys.executable, "-c", example, at=at, sandbox=sandbox)


def django(example: str, at: Path, sandbox: Sandbox) -> None:
    (at / "settings.py").write_text(example)
    send = (
        "from django.core.mail import send_mail;"
        f"assert send_mail('Hello', 'It works.', None, ['{recipient_of(example)}']) == 1"
    )
    run(sys.executable, "-c", send, at=at, sandbox=sandbox, DJANGO_SETTINGS_MODULE="settings", PYTHONPATH=str(at))


def nodemailer(example: str, at: Path, sandbox: Sandbox) -> None:
    needs("/usr/share/nodejs/nodemailer")
    run("node", "-e", example, at=at, sandbox=sandbox, NODE_PATH="/usr/share/nodejs")


def phpmailer(example: str, at: Path, sandbox: Sandbox) -> None:
    needs("/usr/share/php/libphp-phpmailer/autoload.php")
    (at / "send.php").write_text(example.replace("vendor/autoload.php", "/usr/share/php/libphp-phpmailer/autoload.php"))
    run("php", "-d", f"openssl.cafile={sandbox['SANDBOX_TLS_CA']}", "send.php", at=at, sandbox=sandbox)


def msmtp(example: str, at: Path, sandbox: Sandbox) -> None:
    needs("msmtp")
    rc = at / ".msmtprc"
    rc.write_text(trusting(example, sandbox))
    rc.chmod(0o600)
    to = recipient_of(example)
    run("msmtp", f"--file={rc}", to, at=at, sandbox=sandbox, text=f"To: {to}\nSubject: Hello\n\nIt works.\n")


def postfix(example: str, at: Path, sandbox: Sandbox) -> None:
    """A Postfix of its own, with nothing but the example and where its files are."""
    places = {name: at / name for name in ("queue", "data", "conf")}
    for place in places.values():
        place.mkdir()
    shutil.chown(places["data"], "postfix")
    key = places["conf"] / "opensend_key"
    settings, comment, entry = example.partition("# /etc/postfix/opensend_key,")
    assert comment
    key.write_text(comment + entry)
    key.chmod(0o600)
    (places["conf"] / "main.cf").write_text(
        "compatibility_level = 3.6\nmyhostname = relaying.test\nmydestination =\ninet_interfaces = loopback-only\n"
        f"queue_directory = {places['queue']}\ndata_directory = {places['data']}\nmaillog_file = {at / 'mail.log'}\n"
        f"maillog_file_prefixes = {at}\nalias_maps =\nmaximal_backoff_time = 2\nminimal_backoff_time = 1\n"
        "queue_run_delay = 1\nsmtp_host_lookup = native\n"
        + trusting(settings, sandbox).replace("/etc/postfix/opensend_key", str(key))
    )
    (places["conf"] / "master.cf").write_text(
        "pickup unix n - n 60 1 pickup\ncleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\n"
        "rewrite unix - - n - - trivial-rewrite\nsmtp unix - - n - - smtp\ntlsmgr unix - - n 1000? 1 tlsmgr\n"
        "bounce unix - - n - 0 bounce\ndefer unix - - n - 0 bounce\ntrace unix - - n - 0 bounce\n"
        "scache unix - - n - 1 scache\nshowq unix n - n - - showq\nerror unix - - n - - error\n"
        "retry unix - - n - - error\nproxymap unix - - n - - proxymap\npostlog unix-dgram n - n - 1 postlogd\n"
    )
    conf, to = str(places["conf"]), recipient_of(example)
    run("postmap", "-c", conf, str(key), at=at, sandbox=sandbox)
    try:
        run("postfix", "-c", conf, "start", at=at, sandbox=sandbox)
        message = f"From: hello@{sandbox['SANDBOX_FROM_DOMAIN']}\nTo: {to}\nSubject: Hello\n\nIt works.\n"
        sender = f"hello@{sandbox['SANDBOX_FROM_DOMAIN']}"
        run("sendmail", "-C", conf, "-f", sender, to, at=at, sandbox=sandbox, text=message)
        run("postqueue", "-c", conf, "-f", at=at, sandbox=sandbox)
        await_true(lambda: delivered_to(sandbox, to), lambda: (at / "mail.log").read_text()[-3000:])
    finally:
        run("postfix", "-c", conf, "stop", at=at, sandbox=sandbox)


SENDERS: Mapping[str, Send] = {
    "swaks": swaks,
    "curl": shell,
    "python": python,
    "django": django,
    "nodemailer": nodemailer,
    "phpmailer": phpmailer,
    "msmtp": msmtp,
    "postfix": postfix,
    "http": shell,
}


def trusting(example: str, sandbox: Sandbox) -> str:
    """Name the sandbox's authority, as the printed one does."""
    assert "/etc/ssl/certs/ca-certificates.crt" in example or sandbox["SANDBOX_TLS_CA"] in example
    return example.replace("/etc/ssl/certs/ca-certificates.crt", sandbox["SANDBOX_TLS_CA"])


def filled(example: str, sandbox: Sandbox, recipient: str) -> str:
    """Put in what the page's table says, as a reader would."""
    url = sandbox["SANDBOX_HTTP_URL"]
    values = {
        "https://smtp.example.org/v1": f"{url}/v1",
        "smtp.example.org": HOST,
        "587": sandbox["SANDBOX_SUBMISSION_PORT"],
        "YOUR_API_KEY": sandbox["SANDBOX_API_KEY"],
        "example.org": sandbox["SANDBOX_FROM_DOMAIN"],
        "someone@example.net": recipient,
    }
    for word, value in values.items():
        example = example.replace(word, value)
    return example


def recipient_of(example: str) -> str:
    """Return whom the test chose; settings that name nobody carry it in a comment."""
    return str(re.findall(r"[\w.-]+@snippets\.test", example)[-1])


def delivered_to(sandbox: Sandbox, recipient: str) -> list[bytes]:
    mark = f"Delivered-To: {recipient}\r\n".encode()
    return [raw for raw in (path.read_bytes() for path in sandbox.inbox()) if mark in raw]


@pytest.fixture(scope="session")
def printed(sandbox: Sandbox) -> Mapping[str, str]:
    """Make a key where only port 465 is on, with all that is printed for it."""
    variables = {"PATH": os.environ["PATH"], "OPENSEND_MILTER_CONFIG": str(sandbox.directory / "opensend-milter.yaml")}
    variables |= {"OPENSEND_MILTER_SMTP_RELAY_PORT": "0", "OPENSEND_MILTER_SMTP_SUBMISSION_PORT": "0"}
    variables["OPENSEND_MILTER_SMTP_HOSTNAME"] = HOST
    variables["OPENSEND_MILTER_DATABASE_URL"] = sandbox["SANDBOX_DATABASE_URL"]
    command = ["key", "create", "--user", "sandbox", "--domain", sandbox["SANDBOX_FROM_DOMAIN"], "--snippet", "all"]
    done = subprocess.run(
        [sys.executable, "-m", "opensend_milter", *command, "--ca-file", sandbox["SANDBOX_TLS_CA"], "--json"],
        env=variables, stdout=subprocess.PIPE, check=True, timeout=patience_s(),
    )  # fmt: skip
    made = json.loads(done.stdout)
    assert (made["port"], made["tls"]) == (int(sandbox["SANDBOX_SMTPS_PORT"]), "tls")
    snippets: dict[str, str] = made["snippets"]
    assert all(made["token"] in text for text in snippets.values())
    return snippets


def test_every_example_has_its_test(printed: Mapping[str, str]) -> None:
    assert set(EXAMPLES) == set(SENDERS) == set(printed)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that a Postfix's users can enter."""
    found = new_directory()
    yield found
    shutil.rmtree(found)


@pytest.mark.parametrize("name", SENDERS)
def test_an_example_sends(name: str, sandbox: Sandbox, place: Path) -> None:
    """What the page shows, with the values of the page's table: STARTTLS."""
    recipient = f"{unique()}@snippets.test"
    sends(name, filled(EXAMPLES[name], sandbox, recipient), recipient, sandbox, place)


@pytest.mark.parametrize("name", SENDERS)
def test_what_is_printed_sends_as_it_is(name: str, sandbox: Sandbox, printed: Mapping[str, str], place: Path) -> None:
    """Nothing is put in but whom it is for: TLS from the first byte, and the authority's file."""
    recipient = f"{unique()}@snippets.test"
    example = printed[name].replace(f"postmaster@{sandbox['SANDBOX_FROM_DOMAIN']}", recipient)
    sends(name, example, recipient, sandbox, place)


def sends(name: str, example: str, recipient: str, sandbox: Sandbox, place: Path) -> None:
    if recipient not in example:
        example += f"# {recipient}\n"
    SENDERS[name](example, place, sandbox)
    (raw,) = await_found(lambda: delivered_to(sandbox, recipient) or None, "it arrives")
    assert b"It works." in raw
    assert b"\r\nSubject: Hello\r\n" in raw
    assert f"hello@{sandbox['SANDBOX_FROM_DOMAIN']}".encode() in raw
