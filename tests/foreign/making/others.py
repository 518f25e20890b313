"""Has programs write what no letter asks of them: `python others.py [NAME...]`, as root.

Patches (git), what is signed (openssl, gpg), digests (nmh), files in a text (uuencode), groups, reports (Postfix and
Dovecot), and cron, whose program CRON names. What is to be read of it is others.json. Nothing of this host is touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import smtplib
import subprocess
import sys
import tempfile
import time
from email.headerregistry import Address, Group
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

from aiosmtpd.controller import Controller
from programs import HERE, catcher, run

SHOP = [["Shop", "shop@sandbox.test"]]
JANE = [["", "jane@example.net"]]
FROM_SHOP = "From: Shop <shop@sandbox.test>\nTo: jane@example.net\n"
PDF = "%PDF-1.1\n%%EOF\n"
REPORTS = 6
"""That Postfix writes."""
OTHERS = HERE / "others.json"
rows = json.loads(OTHERS.read_text())


def keep(path, octets, **row):
    """Keep a message, and what is to be read of it; a file is name, type and content, which None leaves open."""
    folder, name = path.split("/")
    (HERE.parent / folder).mkdir(exist_ok=True)
    (HERE.parent / f"{path}.eml").write_bytes(octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    files = [
        {"name": name, "type": kind} | ({"digest": digest(content)} if content is not None else {})
        for name, kind, content in row.pop("files", [])
    ]
    said = {"subject": "", "from": SHOP, "to": JANE, "cc": [], "reply_to": [], "text": "", "html": "", "files": files}
    rows.setdefault(folder, {})[name] = said | row


def digest(content):
    return hashlib.sha256(content.replace("\r\n", "\n").rstrip("\n").encode()).hexdigest()[:16]


def after(octets, mark):
    """The text that a program wrote itself, behind some line of its own; for what differs each time."""
    return octets.decode().replace("\r\n", "\n").partition(mark)[2]


def configured(name, folder):
    return (HERE / "configurations" / name).read_text().replace("FOLDER", str(folder))


def git(folder):
    who = {f"GIT_{role}_NAME": "Jörg Meier" for role in ("AUTHOR", "COMMITTER")}
    who |= {f"GIT_{role}_EMAIL": "joerg@sandbox.test" for role in ("AUTHOR", "COMMITTER")}
    who |= {f"GIT_{role}_DATE": "2026-01-05T08:00:00Z" for role in ("AUTHOR", "COMMITTER")}
    joerg = [["Jörg Meier", "joerg@sandbox.test"]]
    run(["git", "init", "-q", "."], folder)
    for number, (subject, line) in enumerate([("Add chairs", "chair\n"), ("Füge Stühle hinzu", "Stühle\n")]):
        (folder / "list").write_text(line)
        run(["git", "add", "list"], folder)
        run(["git", "commit", "-q", "-m", f"{subject}\n\nNumber {number}."], folder, **who)

    def patch(*options):
        written = run(
            ["git", "format-patch", "--stdout", "--no-signature", *options, "--to=jane@example.net"], folder, **who
        )
        return written.split(b"\nFrom ")[0].partition(b"\n")[2]  # the first, less the line of an mbox

    added = {"subject": "[PATCH] Füge Stühle hinzu", "from": joerg}
    made = patch("-1")
    keep("git/patch", made, **added, text=after(made, "\n\n"))
    for name in ("attach", "inline"):
        made = patch("-1", f"--{name}=CUT")
        text, content = (one.partition("\n\n")[2] for one in made.decode().split("\n--------------CUT")[1:3])
        files = [("0001-F-ge-St-hle-hinzu.patch", "text/x-patch", content)]
        keep(f"git/{name}-patch", made, **added, text=text, files=files)
    made = patch("--root", "--cover-letter")
    subject = "[PATCH 0/2] *** SUBJECT HERE ***"
    keep("git/cover-letter", made, **{"from": joerg}, subject=subject, text=after(made, "\n\n"))
    path = run(["git", "format-patch", "-1", "--no-signature", "-o", "patches"], folder, **who).decode().strip()
    text = after((folder / path).read_bytes(), "\n\n")
    for encoding in ("8bit", "quoted-printable", "base64"):
        given = ["--from=Jörg Meier <joerg@sandbox.test>", "--to=jane@example.net", "--suppress-cc=all"]
        given += ["--quiet", "--confirm=never", f"--transfer-encoding={encoding}", f"--sendmail-cmd={catcher(folder)}"]
        run(["git", "send-email", *given, path], folder, **who)
        keep(f"git/send-email-{encoding}", (folder / "out").read_bytes(), **added, text=text)


def openssl(folder):
    new = ["-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-days", "2", "-subj", "/CN=shop@sandbox.test"]
    run(["openssl", "req", "-x509", *new, "-out", "certificate"], folder)
    text = "Grüße.\n"
    part = f"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n{text}".encode()
    head = ["-from", "Shop <shop@sandbox.test>", "-to", "jane@example.net", "-subject", "Signed"]
    sign = ["-sign", "-signer", "certificate", "-inkey", "key", *head]
    for tool, family in (("smime", "application/x-pkcs7"), ("cms", "application/pkcs7")):
        signature = [("smime.p7s", f"{family}-signature", None)]
        keep(
            f"openssl/{tool}-signed",
            run(["openssl", tool, *sign], folder, part),
            subject="Signed",
            text=text,
            files=signature,
        )
        made = run(["openssl", tool, *sign, "-text"], folder, b"Hello.\n")
        keep(f"openssl/{tool}-text-signed", made, subject="Signed", text="Hello.\n", files=signature)
        for name, kind, options in (
            ("opaque", "signed-data", [*sign, "-nodetach"]),
            ("encrypted", "enveloped-data", ["-encrypt", "-aes256", *head, "certificate"]),
        ):
            files = [("smime.p7m", f"{family}-mime; smime-type={kind}", None)]
            keep(
                f"openssl/{tool}-{name}", run(["openssl", tool, *options], folder, part), subject="Signed", files=files
            )


def gpg(folder):
    from envelope import Envelope

    home = folder / "gnupg"
    home.mkdir(mode=0o700)
    os.environ["GNUPGHOME"] = str(home)
    at = {"GNUPGHOME": str(home)}
    new = ["--quick-gen-key", "--passphrase", "", "shop@sandbox.test", "default", "default", "1d"]
    run(["gpg", "--batch", *new], folder, **at)
    built = (
        Envelope("Grüße.\n").from_("Shop <shop@sandbox.test>").to("jane@example.net").subject("Signed").gpg(str(home))
    )
    files = [("signature.asc", "application/pgp-signature", None)]
    keep(
        "envelope/pgp-signed",
        bytes(built.signature("shop@sandbox.test")),
        subject="Signed",
        text="Grüße.\n",
        files=files,
    )
    clear = run(["gpg", "--batch", "--armor", "--clearsign"], folder, b"Hello.\n", **at)
    keep("gpg/clear-signed", f"{FROM_SHOP}Subject: Signed\n\n".encode() + clear, subject="Signed", text=clear.decode())
    run(["gpgconf", "--kill", "all"], folder, **at)


def nmh_digest(folder):
    (folder / ".mh_profile").write_text(f"Path: {folder}/Mail\n")
    (folder / "Mail" / "inbox").mkdir(parents=True)
    messages = [f"From: {who} <{who}@example.net>\nSubject: {who} says\n\nI am {who}.\n" for who in ("joe", "ann")]
    for number, message in enumerate(messages, 1):
        (folder / "Mail" / "inbox" / str(number)).write_text(message)
    for name, directive, files in (
        ("digest", "#forw [two of them] +inbox 1 2", messages),
        ("forward", "#forw [one] +inbox 1", messages[:1]),
    ):
        (folder / "draft").write_text(f"{FROM_SHOP}Subject: Forwarded\n\nLook.\n{directive}\n")
        run(["mhbuild", str(folder / "draft")], folder)
        named = [(f"message-{number}.eml", "application/octet-stream", one) for number, one in enumerate(files, 1)]
        keep(f"nmh/{name}", (folder / "draft").read_bytes(), subject="Forwarded", text="Look.\n", files=named)


def uuencode(folder):
    (folder / "invoice.pdf").write_text(PDF)
    (folder / "rc").write_text(f"set sendmail={catcher(folder)}\n")
    for name, options in (("uuencode", []), ("uuencode-base64", ["-m"])):
        text = "The invoice:\n\n" + run(["uuencode", *options, "invoice.pdf", "invoice.pdf"], folder).decode()
        given = ["-s", "Invoice", "-a", "From: Shop <shop@sandbox.test>", "jane@example.net"]
        run(["bsd-mailx", *given], folder, text.encode(), MAILRC=str(folder / "rc"))
        keep(f"bsd-mailx/{name}", (folder / "out").read_bytes(), subject="Invoice", text=text)


def groups(folder):
    team = Group("The team", (Address("Jörg", addr_spec="joerg@example.net"), Address("", addr_spec="ann@example.net")))
    members = [["Jörg", "joerg@example.net"], ["", "ann@example.net"]]
    for name, to, shown in (
        ("group", [team, Address("", addr_spec="jane@example.net")], members + JANE),
        ("empty-group", [Group("undisclosed-recipients")], []),
    ):
        message = EmailMessage(policy=SMTP)
        message["From"], message["To"], message["Subject"] = "Shop <shop@sandbox.test>", to, "To a group"
        message.set_content("Dear all.\n")
        keep(f"python-email/{name}", message.as_bytes(), to=shown, subject="To a group", text="Dear all.\n")


class Sink:
    """The next hop of Postfix: it knows nobody, is slow, or takes all; reports come to it, too."""

    def __init__(self):
        self.got = []

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody"):
            return "550 5.1.1 no such user here"
        if address.startswith("slow"):
            return "451 4.3.0 come again"
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_DATA(self, server, session, envelope):
        self.got.append(envelope.content)
        return "250 ok"


def postfix(folder):
    sink = Sink()
    hop = Controller(sink, hostname="127.0.0.1", port=28_626, enable_SMTPUTF8=True)
    hop.start()
    folder.chmod(0o755)
    for part in ("etc", "queue", "data"):
        (folder / part).mkdir()
    shutil.chown(folder / "data", "postfix")
    for name in ("main.cf", "master.cf"):
        (folder / "etc" / name).write_text(configured(name, folder))
    command = ["postfix", "-c", str(folder / "etc")]
    subprocess.run([*command, "start"], check=True)
    try:
        for to, asked in (("nobody", []), ("slow", []), ("fine", ["NOTIFY=SUCCESS"]), ("nobody-ünder", [])):
            message = EmailMessage(policy=SMTP.clone(utf8=not to.isascii()))
            message["From"], message["To"], message["Subject"] = (
                "shop@sandbox.test",
                f"{to}@example.net",
                "Order für Jane",
            )
            message.set_content("Grüße.\n")
            options = [] if to.isascii() else ["SMTPUTF8", "BODY=8BITMIME"]
            with smtplib.SMTP("127.0.0.1", 28_625) as client:
                client.ehlo()
                client.sendmail("shop@sandbox.test", [f"{to}@example.net"], message.as_bytes(), options, asked)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(set(map(kind, sink.got)) - {""}) < REPORTS:
            time.sleep(1)
    finally:
        subprocess.run([*command, "stop"], check=False)
        hop.stop()
    for octets in sink.got:
        if name := kind(octets):
            keep_report(f"postfix/{name}", octets, ["Mail Delivery System", "MAILER-DAEMON@shop.example"])


def kind(octets):
    """Tell Postfix' reports apart."""
    head, _, rest = octets.decode().replace("\r\n", "\n").partition("\n\n")
    if "MAILER-DAEMON" not in head:
        return ""
    subject = re.search(r"(?m)^Subject: (.*)", head)[1]
    whom = "postmaster-" if "postmaster@" in head.lower() else ""
    utf8 = "utf8-" if "message/global" in rest else ""
    words = {"Undelivered": "failed", "Delayed": "delayed", "Successful": "relayed", "Postmaster": "copy"}
    return f"{whom}{utf8}{words[subject.split()[0]]}"


def keep_report(path, octets, sender):
    text = octets.decode().replace("\r\n", "\n")
    boundary = re.search(r'boundary="(.*?)"', text)[1]
    _, said, report, returned, *_ = text.split(f"\n--{boundary}")
    subject = re.search(r"(?m)^Subject: (.*)", text)[1]
    status, message = (one.partition("\n\n")[2] for one in (report, returned))
    kinds = [re.search(r"Content-Type: ([^\s;]*)", one)[1] for one in (report, returned)]
    files = []
    for number, (kind, content) in enumerate(zip(kinds, (status, message)), 1):
        is_message = kind in {"message/rfc822", "message/global"}
        name = f"message-{number}.eml" if is_message else f"attachment-{number}.txt"
        files.append((name, "application/octet-stream" if kind.startswith("message/") else kind, content))
    to = [["", re.search(r"(?m)^To: (.*)", text)[1].strip("<>")]]
    keep(path, octets, **{"from": [sender]}, to=to, subject=subject, text=said.partition("\n\n")[2], files=files)


def dovecot(folder):
    """Have dovecot-lda refuse what a full mailbox has no room for."""
    catcher(folder)
    (folder / "conf").write_text(configured("dovecot.conf", folder))
    shutil.chown(folder, "nobody")
    letter = f"{FROM_SHOP}Subject: Order\nMessage-ID: <1@shop.example>\n\n" + 60 * ("x" * 70 + "\n")
    command = ["/usr/lib/dovecot/dovecot-lda", "-c", "conf", "-f", "shop@sandbox.test", "-a", "jane@example.net"]
    environment = {"HOME": str(folder), "USER": "nobody", "PATH": os.environ["PATH"]}
    subprocess.run(
        command, cwd=folder, input=letter.encode(), env=environment, check=False,
        user="nobody", group="nogroup", extra_groups=[],
    )  # fmt: skip
    keep_report("dovecot/rejected", (folder / "out").read_bytes(), ["Postmaster", "postmaster@sandbox.test"])


def cron(folder):
    if "CRON" not in os.environ:
        return
    (folder / "crontabs").mkdir()
    (folder / "crontabs" / "root").write_text("MAILTO=jane@example.net\n* * * * * echo 'Grüße, 99 €'; echo done >&2\n")
    (folder / "crontabs" / "root").chmod(0o600)
    script = f"""
        for one in /run /var/spool; do mount -t tmpfs none $one; done
        test ! -d /etc/cron.d || mount -t tmpfs none /etc/cron.d
        test ! -f /etc/crontab || mount --bind /dev/null /etc/crontab
        mkdir /var/spool/cron; mv {folder}/crontabs /var/spool/cron/
        mount --bind {catcher(folder)} /usr/sbin/sendmail
        "$CRON" -f & sleep 65; kill $!
    """
    subprocess.run(["unshare", "--mount", "sh", "-c", script], env={**os.environ, "LANG": "C.UTF-8"}, check=False)
    subject = "Cron <root@shop> echo 'Grüße, 99 €'; echo done >&2"
    made = (folder / "out").read_bytes()
    keep("cron/output", made, **{"from": [["Cron Daemon", "root"]]}, subject=subject, text="Grüße, 99 €\ndone\n")


def main():
    for make in (git, openssl, gpg, nmh_digest, uuencode, groups, postfix, dovecot, cron):
        if make.__name__ in (sys.argv[1:] or make.__name__):
            with tempfile.TemporaryDirectory() as folder:
                os.environ.update(HOME=folder)
                make(Path(folder))
    OTHERS.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


main()
