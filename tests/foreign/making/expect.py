"""Writes what is to be read of each message, from what its builder was asked for: `python expect.py`.

Nothing of ours reads here. Where a builder wrote something else than it was asked for, quirks.json says what, and why.
"""

from __future__ import annotations

import base64
import hashlib
import json
from itertools import zip_longest
from pathlib import Path

HERE = Path(__file__).parent
LETTERS = json.loads((HERE / "letters.json").read_text())
OTHERS, BY_HAND, QUIRKS = (json.loads((HERE / f"{name}.json").read_text()) for name in ("others", "by-hand", "quirks"))


def digest(content):
    """Digest a file up to line ends: many write it as text where it has no other octets."""
    return hashlib.sha256(content.replace(b"\r\n", b"\n").rstrip(b"\n")).hexdigest()[:16]


def row(letter):
    said = {"subject": letter["subject"], "from": letter.get("from", [["Shop", "shop@sandbox.test"]])}
    said["to"] = letter.get("to", [["", "jane@example.net"]])
    said |= {key: letter.get(key, []) for key in ("cc", "reply_to")} | {
        key: letter.get(key, "") for key in ("text", "html")
    }
    files = []
    if "amp" in letter:
        files.append({"name": "attachment-1.html", "type": "text/x-amp-html", "digest": digest(letter["amp"].encode())})
    for file in letter.get("files", []):
        content = file["text"].encode() if "text" in file else base64.b64decode(file["base64"])
        name = file["name"] or "attachment-1.pdf"
        files.append(
            {"name": name, "type": file["type"], "digest": digest(content)}
            | ({"cid": file["cid"]} if "cid" in file else {})
        )
    if "calendar" in letter:
        kind = "text/calendar; method=REQUEST"
        files.append({"name": "attachment-1.ics", "type": kind, "digest": digest(letter["calendar"].encode())})
    if "message" in letter:
        kind = "application/octet-stream"
        files.append({"name": "message-1.eml", "type": kind, "digest": digest(letter["message"].encode())})
    return said | {"files": files}


def main():
    for folder in HERE.parent.iterdir():
        if folder == HERE or not folder.is_dir():
            continue
        said = OTHERS.get(folder.name, {}) | BY_HAND.get(folder.name, {})
        said |= {name: row(letter) for name, letter in LETTERS.items() if (folder / f"{name}.eml").exists()}
        for quirk in QUIRKS:
            for message in quirk["messages"]:
                builder, name = message.split("/")
                if builder == folder.name:
                    files = zip_longest(said[name]["files"], quirk.get("files", []), fillvalue={})
                    said[name] |= {"files": [old | new for old, new in files]} | quirk.get("row", {})
        text = json.dumps(dict(sorted(said.items())), ensure_ascii=False, indent=1)
        (folder / "expected.json").write_text(text + "\n")


main()
