"""Writes the letters with Python's own builders and those of packages: `python make.py [BUILDER...]`."""

from __future__ import annotations

import base64
import json
import sys
from email import message_from_bytes, policy
from email.encoders import encode_base64
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.mime.base import MIMEBase
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import formataddr
from pathlib import Path

HERE = Path(__file__).parent
WHO = (("From", "from"), ("To", "to"), ("Cc", "cc"), ("Reply-To", "reply_to"))
BEYOND_MOST = {"calendar", "amp", "message", "charset"}


def content(file):
    return file["text"].encode() if "text" in file else base64.b64decode(file["base64"])


def shown(pairs):
    return [formataddr(pair) if pair[0].isascii() else f'"{pair[0]}" <{pair[1]}>' for pair in map(tuple, pairs)]


def python_email(letter, policy=policy.SMTP, cte=None):
    if "charset" in letter:
        return None
    message = EmailMessage(policy=policy)
    message["Subject"] = letter["subject"]
    for field, key in WHO:
        if key in letter:
            message[field] = [Address(name, addr_spec=address) for name, address in letter[key]]
    for field, value in letter["headers"].items():
        message[field] = value
    if "text" in letter:
        message.set_content(letter["text"], cte=cte)
    if "amp" in letter:
        message.add_alternative(letter["amp"], subtype="x-amp-html", cte=cte)
    if "html" in letter:
        (message.add_alternative if "text" in letter else message.set_content)(letter["html"], subtype="html", cte=cte)
    page = message.get_body(("html",))
    for file in letter["files"]:
        main, _, sub = file["type"].partition("/")
        name = file["name"] or None
        if "cid" in file:
            page.add_related(content(file), main, sub, cid=f"<{file['cid']}>", filename=name, disposition="inline")
        elif main == "text":
            message.add_attachment(file["text"], subtype=sub, filename=name)
        else:
            message.add_attachment(content(file), main, sub, filename=name)
    if "calendar" in letter:
        message.add_alternative(letter["calendar"], subtype="calendar", params={"method": "REQUEST"})
    if "message" in letter:
        message.add_attachment(message_from_bytes(letter["message"].encode(), policy=policy))
    return message.as_bytes()


def python_email_utf8(letter):
    """As SMTPUTF8 allows: header fields in UTF-8, texts in eight bits."""
    if len(letter.get("text", "")) > 990:
        return None
    return python_email(letter, policy.SMTPUTF8, "8bit")


def python_email_old(letter):
    charset = letter.get("charset", "utf-8")
    kinds = [("text", "plain"), ("amp", "x-amp-html"), ("html", "html")]
    parts = [MIMEText(letter[key], kind, charset) for key, kind in kinds if key in letter]
    if "calendar" in letter:
        parts.append(MIMEText(letter["calendar"], "calendar", "utf-8"))
        parts[-1].set_param("method", "REQUEST")
    related, mixed = [], []
    for file in letter["files"]:
        part = MIMEBase(*file["type"].split("/"))
        part.set_payload(content(file))
        encode_base64(part)
        name = file["name"] if file["name"].isascii() else ("utf-8", "", file["name"])
        if "cid" in file:
            part["Content-ID"] = f"<{file['cid']}>"
        kind = "inline" if "cid" in file else "attachment"
        part.add_header("Content-Disposition", kind, **({"filename": name} if name else {}))
        (related if "cid" in file else mixed).append(part)
    if "message" in letter:
        mixed.append(MIMEMessage(message_from_bytes(letter["message"].encode())))
    message = parts[0] if len(parts) == 1 else MIMEMultipart("alternative", _subparts=parts)
    if related:
        message = MIMEMultipart("related", _subparts=[message, *related])
    if mixed:
        message = MIMEMultipart("mixed", _subparts=[message, *mixed])
    message["Subject"] = Header(letter["subject"], charset)
    for field, key in WHO:
        if key in letter:
            message[field] = ", ".join(map(formataddr, letter[key]))
    for field, value in letter["headers"].items():
        message[field] = value
    return message.as_bytes()


def django(letter):
    from django.conf import settings
    from django.core.mail import EmailMultiAlternatives

    if "charset" in letter:
        return None
    if not settings.configured:
        settings.configure(DEFAULT_CHARSET="utf-8", USE_TZ=True)
    message = EmailMultiAlternatives(
        letter["subject"], letter.get("text", letter.get("html")), *shown(letter["from"]), shown(letter["to"]),
        cc=shown(letter.get("cc", [])), bcc=["secret@example.net"], reply_to=shown(letter.get("reply_to", [])),
        headers=letter["headers"],
    )  # fmt: skip
    if "text" not in letter:
        message.content_subtype = "html"
    for key, kind in (("amp", "text/x-amp-html"), ("html", "text/html"), ("calendar", "text/calendar; method=REQUEST")):
        if key in letter and "text" in letter:
            message.attach_alternative(letter[key], kind)
    for file in letter["files"]:
        if "cid" in file:
            part = MIMEBase(*file["type"].split("/"))
            part.set_payload(content(file))
            encode_base64(part)
            part["Content-ID"] = f"<{file['cid']}>"
            part.add_header("Content-Disposition", "inline", filename=file["name"])
            message.attach(part)
        else:
            message.attach(file["name"] or None, content(file), file["type"])
    if "message" in letter:
        message.attach("message.eml", letter["message"], "message/rfc822")
    return message.message().as_bytes()


def python_emails(letter):
    import emails

    if letter.keys() & (BEYOND_MOST | {"reply_to"}) or "cid" in str(letter) or not letter.get("text", "x"):
        return None
    message = emails.Message(
        subject=letter["subject"], mail_from=tuple(letter["from"][0]), mail_to=[*map(tuple, letter["to"])],
        cc=[*map(tuple, letter.get("cc", []))], text=letter.get("text"), html=letter.get("html"),
        headers=letter["headers"],
    )  # fmt: skip
    for file in letter["files"]:
        message.attach(filename=file["name"] or None, data=content(file), mime_type=file["type"])
    return message.as_bytes()


BUILDERS = (python_email, python_email_utf8, python_email_old, django, python_emails)


def main():
    letters = json.loads((HERE / "letters.json").read_text())
    for build in BUILDERS:
        builder = build.__name__.replace("_", "-")
        if builder not in (sys.argv[1:] or builder):
            continue
        folder = HERE.parent / builder
        folder.mkdir(exist_ok=True)
        for name, given in letters.items():
            letter = {"from": [["Shop", "shop@sandbox.test"]], "to": [["", "jane@example.net"]], "files": [], **given}
            letter.setdefault("headers", {})
            try:
                octets = build(letter)
            except Exception as error:
                print(f"{builder}/{name}: {type(error).__name__}: {str(error)[:80]}")
                continue
            if octets is not None:
                (folder / f"{name}.eml").write_bytes(octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


main()
