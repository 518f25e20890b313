"""Writes letters with programs of Debian's that people and scripts send mail with: `python programs.py [PROGRAM...]`.

Each is handed a sendmail that keeps what it is given. What no letter asks for is in others.py.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
UNKNOWN_TO_ICONV = {"hz-gb-2312", "iso-8859-8-i", "ks_c_5601-1987"}
ENVIRONMENT = {
    "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin:/usr/sbin:/usr/bin/mh", "TZ": "UTC",
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "EMAIL": "shop@sandbox.test",
}  # fmt: skip


def run(command, folder, octets=b"", **more):
    environment = {**ENVIRONMENT, "HOME": str(folder), **more}
    done = subprocess.run(command, cwd=folder, input=octets, env=environment, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).decode(errors="replace")[:200])
    return done.stdout


def catcher(folder):
    path = folder / "sendmail"
    path.write_text(f"#!/bin/sh\ncat > {folder}/out\n")
    path.chmod(0o755)
    return str(path)


def shown(pairs):
    return ['"{}" <{}>'.format(name.replace('"', '\\"'), address) if name else address for name, address in pairs]


def content(file):
    return file["text"].encode() if "text" in file else base64.b64decode(file["base64"])


def header(letter):
    """The header section of a draft, as a person would type it."""
    people = (("From", "from"), ("To", "to"), ("Cc", "cc"), ("Reply-To", "reply_to"))
    fields = {field: ", ".join(shown(letter[key])) for field, key in people if key in letter}
    fields |= {"Subject": letter["subject"], **letter.get("headers", {})}
    return [f"{name}: {value}" for name, value in fields.items()]


def text_of(letter):
    return letter.get("text", letter.get("html", "")).encode()


def files_of(letter, folder):
    paths = []
    for file in letter.get("files", []):
        path = folder / file["name"]
        path.write_bytes(content(file))
        paths.append(str(path))
    return paths


def is_simple(letter):
    files = letter.get("files", [])
    return (
        not letter.keys() & {"amp", "calendar", "message", "headers"}
        and not {"text", "html"} <= letter.keys()
        and all(file["name"] and "cid" not in file and "/" not in file["name"] for file in files)
    )


def mutt(letter, folder, *settings):
    if not is_simple(letter) or letter.get("charset") in UNKNOWN_TO_ICONV:
        return None
    settings = (
        f"set sendmail='{catcher(folder)}' charset=utf-8 use_envelope_from=no copy=no user_agent=no",
        f"set send_charset='us-ascii:{letter.get('charset', 'utf-8')}'",
        "set from='" + shown(letter["from"])[0] + "' realname=''",
        *(["set content_type=text/html"] if "text" not in letter else []),
        *(["my_hdr Reply-To: " + shown(letter["reply_to"])[0]] if "reply_to" in letter else []),
        *settings,
    )
    files = files_of(letter, folder)
    to_cc = [argument for one in shown(letter.get("cc", [])) for argument in ("-c", one)]
    command = ["mutt", "-n", "-F", "/dev/null", *(a for one in settings for a in ("-e", one)), "-s", letter["subject"]]
    run([*command, *to_cc, *(["-a", *files] if files else []), "--", *shown(letter["to"])], folder, text_of(letter))
    return (folder / "out").read_bytes()


def mutt_flowed(letter, folder):
    return None if "charset" in letter else mutt(letter, folder, "set allow_8bit=yes text_flowed=yes")


def s_nail(letter, folder, *settings):
    if not is_simple(letter) or letter["subject"] == "" or letter.get("charset", "").startswith(("iso-2022", "utf-7")):
        return None
    given = (
        "from=" + shown(letter["from"])[0], f"mta={catcher(folder)}", "ttycharset=utf-8", "sendwait", "nosave",
        "fullnames",
        "sendcharsets=" + letter.get("charset", "utf-8"),
        *(["reply-to=" + shown(letter["reply_to"])[0]] if "reply_to" in letter else []), *settings,
    )  # fmt: skip
    command = ["s-nail", "-:/", *(argument for one in given for argument in ("-S", one))]
    if "text" not in letter:
        command += ["-M", "text/html"]
    files = [argument for path in files_of(letter, folder) for argument in ("-a", path.replace("=", "\\="))]
    to_cc = [argument for one in shown(letter.get("cc", [])) for argument in ("-c", one)]
    run([*command, "-s", letter["subject"], *files, *to_cc, *shown(letter["to"])], folder, text_of(letter))
    return (folder / "out").read_bytes()


def bsd_mailx(letter, folder):
    if not is_simple(letter) or letter.get("files") or letter.keys() & {"cc", "charset"} or "text" not in letter:
        return None
    (folder / "rc").write_text(f"set sendmail={catcher(folder)}\n")
    arguments = ["-a", "From: " + shown(letter["from"])[0], "-a", "MIME-Version: 1.0"]
    if not (letter["text"].isascii()):
        arguments += ["-a", "Content-Type: text/plain; charset=utf-8", "-a", "Content-Transfer-Encoding: 8bit"]
    to = [address for _, address in letter["to"]]
    run(["bsd-mailx", "-s", letter["subject"], *arguments, *to], folder, text_of(letter), MAILRC=str(folder / "rc"))
    return (folder / "out").read_bytes()


def swaks(letter, folder):
    if letter.keys() & {"amp", "calendar", "message", "cc", "charset"} or "cid" in str(letter):
        return None
    given = []
    for key, kind in (("text", "text/plain"), ("html", "text/html")):
        if key in letter:
            given += ["--attach-type", f"{kind}; charset=utf-8"] if letter[key].isascii() else ["--attach-type", kind]
            (folder / key).write_text(letter[key])
            given += ["--attach-body", f"@{folder / key}"]
    for file, path in zip(letter.get("files", []), (folder / f"f{n}" for n in range(9))):
        path.write_bytes(content(file))
        name = ["--attach-name", *([file["name"]] if file["name"] else [])]
        given += ["--attach-type", file["type"], *name, "--attach", f"@{path}"]
    headers = [f"{name}: {value}" for name, value in letter.get("headers", {}).items()]
    command = ["swaks", "--to", ",".join(address for _, address in letter["to"]), "--from", letter["from"][0][1]]
    command += ["--h-From", shown(letter["from"])[0], "--h-Subject", letter["subject"], "--dump-mail"]
    command += [argument for one in headers for argument in ("--add-header", one)]
    return run([*command, *given], folder).replace(b"\r\n", b"\n").rstrip(b"\n") + b"\n"


def mblaze(letter, folder):
    """mmime, which is given a draft and lines that name files."""
    if letter.keys() & {"amp", "calendar", "html", "charset"} or "cid" in str(letter):
        return None
    if any(not file["name"] or " " in file["name"] for file in letter.get("files", [])):
        return None
    lines = [f"#{file['type']} {path}" for file, path in zip(letter.get("files", []), files_of(letter, folder))]
    if "message" in letter:
        (folder / "complaint.eml").write_text(letter["message"])
        lines.append(f"#message/rfc822 {folder / 'complaint.eml'}")
    draft = "\n".join((*header(letter), "", letter["text"] + "\n".join(lines)))
    return run(["mmime"], folder, draft.encode())


def nmh(letter, folder):
    """mhbuild, which is given a draft with directives."""
    if letter.keys() & {"amp", "calendar", "charset", "message"} or any(
        not file["name"] for file in letter.get("files", [])
    ):
        return None
    (folder / ".mh_profile").write_text(f"Path: {folder}/Mail\n")
    (folder / "Mail").mkdir()
    body = []
    if "html" in letter and "text" in letter:
        (folder / "page.html").write_text(letter["html"])
        (folder / "text.txt").write_text(letter["text"])
        body += [
            "#begin alternative",
            f"#text/plain; charset=utf-8 {folder}/text.txt",
            f"#text/html; charset=utf-8 {folder}/page.html",
            "#end",
        ]
    elif "html" in letter:
        (folder / "page.html").write_text(letter["html"])
        body += [f"#text/html; charset=utf-8 {folder}/page.html"]
    else:
        body += [letter["text"].rstrip("\n").replace("\n#", "\n##")]
    for number, file in enumerate(letter.get("files", [])):
        path = folder / f"f{number}"
        path.write_bytes(content(file))
        cid = f"<{file['cid']}>" if "cid" in file else ""
        kind = "inline" if cid else "attachment"
        name = file["name"].replace('"', '\\"')
        body.append(f'#{file["type"]}; name="{name}" {cid}{{{kind}; filename="{name}"}} {path}')
    draft = folder / "draft"
    draft.write_text("\n".join((*header(letter), "", *body)) + "\n")
    run(["mhbuild", str(draft)], folder)
    return draft.read_bytes()


def mpack(letter, folder):
    if len(letter.get("files", [])) != 1 or not letter["files"][0]["name"] or letter.keys() & {"html", "charset"}:
        return None
    if not (letter["subject"] + letter["text"]).isascii() or "cid" in letter["files"][0]:
        return None
    (folder / "text").write_text(letter["text"])
    (path,) = files_of(letter, folder)
    run(["mpack", "-s", letter["subject"], "-d", "text", "-c", letter["files"][0]["type"], "-o", "out", path], folder)
    return (folder / "out").read_bytes()


PROGRAMS = (mutt, mutt_flowed, s_nail, bsd_mailx, swaks, mblaze, nmh, mpack)


def main():
    letters = json.loads((HERE / "letters.json").read_text())
    for build in PROGRAMS:
        program = build.__name__.replace("_", "-")
        if program not in (sys.argv[1:] or program):
            continue
        keep = HERE.parent / program
        keep.mkdir(exist_ok=True)
        for name, given in letters.items():
            letter = {"from": [["Shop", "shop@sandbox.test"]], "to": [["", "jane@example.net"]], **given}
            with tempfile.TemporaryDirectory() as folder:
                try:
                    octets = build(letter, Path(folder))
                except Exception as error:
                    print(f"{program}/{name}: {type(error).__name__}: {str(error)[:150]!r}")
                    continue
            if octets and b"From:" not in octets:
                octets = b"From: Shop <shop@sandbox.test>\n" + octets  # as sendmail does
            if octets is not None:
                (keep / f"{name}.eml").write_bytes(octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


if __name__ == "__main__":
    main()
