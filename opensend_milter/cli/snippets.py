"""How clients send through us: for each some lines to paste, which docs/clients.md shows and `key` prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

USERNAME = "apikey"
"""Any other would do."""
PUBLIC_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
KEY_TABLE = "/etc/postfix/opensend_key"

Encryption = Literal["starttls", "tls", "none"]


class Client(StrEnum):
    """What is set up."""

    SWAKS = "swaks"
    CURL = "curl"
    PYTHON = "python"
    DJANGO = "django"
    NODEMAILER = "nodemailer"
    PHPMAILER = "phpmailer"
    MSMTP = "msmtp"
    POSTFIX = "postfix"
    HTTP = "http"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a client reaches us, and as whom."""

    host: str
    port: int
    tls: Encryption
    http_url: str
    key: str = field(repr=False)
    sender: str
    recipient: str
    ca_file: Path | None = None
    """The authority that signed our certificate, where it is none of the public ones."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """What one client needs."""

    title: str
    write: Callable[[Access], str]


def _lines(*lines: str | None) -> str:
    return "".join(f"{line}\n" for line in lines if line is not None)


def _text(value: object) -> str:
    """Quote for Python and JavaScript."""
    return json.dumps(str(value), ensure_ascii=False)


def _php(value: object) -> str:
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _swaks(to: Access) -> str:
    words = {"starttls": ["--tls", "--tls-verify"], "tls": ["--tls-on-connect", "--tls-verify"], "none": []}[to.tls]
    words += ["--tls-ca-path", str(to.ca_file)] if to.ca_file else []
    server = shlex.join(["--server", to.host, "--port", str(to.port), *words])
    return _lines(
        # A program's arguments are visible to every user of the machine, its environment is not.
        f"SWAKS_OPT_auth_password={shlex.quote(to.key)} swaks {server} \\",
        f"  --auth PLAIN --auth-user {USERNAME} --auth-hide-password \\",
        f"  {shlex.join(['--from', to.sender, '--to', to.recipient])} --h-Subject Hello --body 'It works.'",
    )


def _curl(to: Access) -> str:
    url = f"{'smtps' if to.tls == 'tls' else 'smtp'}://{to.host}:{to.port}"
    words = ["--ssl-reqd"] if to.tls != "none" else []
    words += ["--cacert", str(to.ca_file)] if to.ca_file else []
    words += ["--url", url, "--user", f"{USERNAME}:{to.key}"]
    message = [f"From: {to.sender}", f"To: {to.recipient}", "Subject: Hello", "", "It works."]
    return _lines(
        f"printf '%s\\r\\n' {shlex.join(message)} |",
        f"  curl --silent --show-error {shlex.join(words)} \\",
        f"    {shlex.join(['--mail-from', to.sender, '--mail-rcpt', to.recipient])} --upload-file -",
    )


def _python(to: Access) -> str:
    server = f"{_text(to.host)}, {to.port}"
    context = f"context=ssl.create_default_context({f'cafile={_text(to.ca_file)}' if to.ca_file else ''})"
    opening = f"smtplib.SMTP_SSL({server}, {context})" if to.tls == "tls" else f"smtplib.SMTP({server})"
    return _lines(
        "import smtplib",
        "import ssl" if to.tls != "none" else None,
        "from email.message import EmailMessage",
        "",
        "message = EmailMessage()",
        f'message["From"] = {_text(to.sender)}',
        f'message["To"] = {_text(to.recipient)}',
        'message["Subject"] = "Hello"',
        'message.set_content("It works.")',
        f"with {opening} as smtp:",
        f"    smtp.starttls({context})" if to.tls == "starttls" else None,
        f"    smtp.login({_text(USERNAME)}, {_text(to.key)})",
        "    smtp.send_message(message)",
    )


def _django(to: Access) -> str:
    return _lines(
        "# settings.py",
        f"# In the environment that Django starts with: SSL_CERT_FILE={to.ca_file}" if to.ca_file else None,
        'EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"',
        f"EMAIL_HOST = {_text(to.host)}",
        f"EMAIL_PORT = {to.port}",
        {"starttls": "EMAIL_USE_TLS = True", "tls": "EMAIL_USE_SSL = True", "none": None}[to.tls],
        f"EMAIL_HOST_USER = {_text(USERNAME)}",
        f"EMAIL_HOST_PASSWORD = {_text(to.key)}",
        f"DEFAULT_FROM_EMAIL = {_text(to.sender)}",
        "EMAIL_TIMEOUT = 30",
    )


def _nodemailer(to: Access) -> str:
    return _lines(
        'const nodemailer = require("nodemailer");',
        "",
        "const transport = nodemailer.createTransport({",
        f"  host: {_text(to.host)},",
        f"  port: {to.port},",
        "  secure: true," if to.tls == "tls" else "  secure: false, // true for port 465",
        "  requireTLS: true," if to.tls == "starttls" else None,
        f'  tls: {{ ca: require("fs").readFileSync({_text(to.ca_file)}) }},' if to.ca_file else None,
        f"  auth: {{ user: {_text(USERNAME)}, pass: {_text(to.key)} }},",
        "});",
        "",
        "transport",
        "  .sendMail({",
        f"    from: {_text(to.sender)},",
        f"    to: {_text(to.recipient)},",
        '    subject: "Hello",',
        '    text: "It works.",',
        "  })",
        "  .then((info) => console.log(info.response));",
    )


def _phpmailer(to: Access) -> str:
    secure = {"starttls": "'tls'; // 'ssl' for port 465", "tls": "'ssl';", "none": "'';"}[to.tls]
    return _lines(
        "<?php",
        "require 'vendor/autoload.php';",
        "",
        "$mail = new PHPMailer\\PHPMailer\\PHPMailer(true);",
        "$mail->isSMTP();",
        f"$mail->Host = {_php(to.host)};",
        f"$mail->Port = {to.port};",
        f"$mail->SMTPSecure = {secure}",
        "$mail->SMTPAutoTLS = false;" if to.tls == "none" else None,
        f"$mail->SMTPOptions = ['ssl' => ['cafile' => {_php(to.ca_file)}]];" if to.ca_file else None,
        "$mail->SMTPAuth = true;",
        f"$mail->Username = {_php(USERNAME)};",
        f"$mail->Password = {_php(to.key)};",
        f"$mail->setFrom({_php(to.sender)});",
        f"$mail->addAddress({_php(to.recipient)});",
        "$mail->Subject = 'Hello';",
        "$mail->Body = 'It works.';",
        "$mail->send();",
    )


def _msmtp(to: Access) -> str:
    return _lines(
        "# ~/.msmtprc, mode 0600",
        "account default",
        f"host {to.host}",
        f"port {to.port}",
        f"tls {'off' if to.tls == 'none' else 'on'}",
        f"tls_starttls {'on' if to.tls == 'starttls' else 'off'}" if to.tls != "none" else None,
        f"tls_trust_file {to.ca_file or PUBLIC_AUTHORITIES}" if to.tls != "none" else None,
        "auth plain",
        f"user {USERNAME}",
        f"password {to.key}",
        f"from {to.sender}",
    )


def _postfix(to: Access) -> str:
    return _lines(
        "# main.cf",
        f"relayhost = [{to.host}]:{to.port}",
        "smtp_sasl_auth_enable = yes",
        "smtp_sasl_security_options = noanonymous",
        f"smtp_sasl_password_maps = hash:{KEY_TABLE}",
        f"smtp_tls_security_level = {'none' if to.tls == 'none' else 'secure'}",
        "smtp_tls_wrappermode = yes" if to.tls == "tls" else None,
        f"smtp_tls_CAfile = {to.ca_file or PUBLIC_AUTHORITIES}" if to.tls != "none" else None,
        "",
        f"# {KEY_TABLE}, root only (mode 0600); then: postmap {KEY_TABLE}",
        f"[{to.host}]:{to.port} {USERNAME}:{to.key}",
    )


def _http(to: Access) -> str:
    body = {"from": to.sender, "to": to.recipient, "subject": "Hello", "body": "It works."}
    words = ["--cacert", str(to.ca_file)] if to.ca_file and to.http_url.startswith("https:") else []
    words += [f"{to.http_url}/v1/send"]
    return _lines(
        f"curl --silent --show-error --fail-with-body {shlex.join(words)} \\",
        f"  -H {shlex.quote(f'Authorization: Bearer {to.key}')} -H 'Content-Type: application/json' \\",
        f"  -d {shlex.quote(json.dumps(body))}",
    )


SNIPPETS: Mapping[Client, Snippet] = {
    Client.SWAKS: Snippet("swaks", _swaks),
    Client.CURL: Snippet("curl", _curl),
    Client.PYTHON: Snippet("Python", _python),
    Client.DJANGO: Snippet("Django", _django),
    Client.NODEMAILER: Snippet("Node.js (Nodemailer)", _nodemailer),
    Client.PHPMAILER: Snippet("PHP (PHPMailer)", _phpmailer),
    Client.MSMTP: Snippet("msmtp", _msmtp),
    Client.POSTFIX: Snippet("a Postfix that relays", _postfix),
    Client.HTTP: Snippet("HTTP", _http),
}
CLIENTS = tuple(SNIPPETS)
