"""What others' programs write is read as they were asked for, and as other readers read it but for what is listed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from opensend_milter.core.doubts import outside_of_mime
from opensend_milter.core.message import read
from opensend_milter.core.model import Attachment, Limits, Mailbox, Reading, Refuse

FOREIGN = Path(__file__).parents[1] / "foreign"
FOLDERS = sorted(path.parent for path in FOREIGN.glob("*/expected.json"))
READERS = ("mailparser", "postal-mime")
FILES_IN_TEXTS = {"bsd-mailx/uuencode", "bsd-mailx/uuencode-base64", "by-hand/yenc", "mblaze/empty"}
"""And a multipart that has no part."""
Said = dict[str, Any]

each_builder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@cache
def loaded(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def messages(folder: Path) -> Iterator[tuple[str, Reading | Refuse]]:
    """Read all that one builder wrote."""
    for path in sorted(folder.glob("*.eml")):
        yield path.stem, read(path.read_bytes(), Limits())


def ours(found: Reading) -> Said:
    def people(mailboxes: tuple[Mailbox, ...]) -> list[list[str]]:
        return [[mailbox.name, mailbox.address] for mailbox in mailboxes]

    return {
        "subject": found.subject,
        "from": people((found.sender,)),
        "to": people(found.to),
        "cc": people(found.cc),
        "reply_to": people(found.reply_to),
        "text": found.text,
        "html": found.html,
        "files": [file(attachment) for attachment in found.attachments],
    }


def file(attachment: Attachment) -> Said:
    content = base64.b64decode(b"".join(attachment.content.pieces())).replace(b"\r\n", b"\n").rstrip(b"\n")
    return {
        "name": attachment.filename,
        "type": re.sub("; charset=[^;]*", "", attachment.content_type),
        "cid": attachment.content_id,
        "digest": hashlib.sha256(content).hexdigest()[:16],
    }


def flat(said: Said) -> Said:
    """Take a row apart into what is compared, up to line ends and trailing blanks."""
    files = said["files"]
    return {
        **{name: said[name] for name in ("from", "to", "cc", "reply_to")},
        **{name: said[name] and in_lines(said[name]) for name in ("subject", "text", "html")},
        **{f"{name} of files": [one.get(name) for one in files] for name in ("name", "type", "cid", "digest")},
    }


def in_lines(text: str) -> str:
    return "\n".join(map(str.rstrip, re.split("\r*\n|\r", text))).strip()


def told(expected: Any, found: Any) -> Any:
    """Leave out of what was found what nobody says should be there."""
    if expected is None:
        return None
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [told(*pair) for pair in zip(expected, found, strict=True)]
    return found


@each_builder
def test_what_a_builder_was_asked_for_is_read(folder: Path) -> None:
    expected = loaded(folder / "expected.json")
    found = dict(messages(folder))
    assert found.keys() == expected.keys()
    for name, row in expected.items():
        reading = found[name]
        if isinstance(reading, Refuse):
            assert reading.rule.value == row.get("refused"), name
            continue
        assert "refused" not in row, name
        is_said, is_read = flat(row), flat(ours(reading))
        assert {field: told(is_said[field], is_read[field]) for field in is_said} == is_said, name


def base_types(said: Said) -> Said:
    return said | {"type of files": [one.partition(";")[0].lower() for one in said["type of files"]]}


def disagreements(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield reader, field and message, wherever a reader says something else than we do."""
    said = loaded(folder / "readers.json")
    for name, reading in messages(folder):
        if isinstance(reading, Refuse):
            continue
        is_read = base_types(flat(ours(reading)))
        for reader in READERS:
            other = base_types(flat(said[name][reader]))
            yield from ((reader, field, f"{folder.name}/{name}") for field in other if other[field] != is_read[field])


@each_builder
def test_other_readers_say_the_same_but_for_what_is_listed(folder: Path) -> None:
    listed = {
        listed
        for one in loaded(FOREIGN / "disagreements.json")
        for listed in product(one["readers"], one["fields"], one["messages"])
        if listed[2].startswith(f"{folder.name}/")
    }
    assert set(disagreements(folder)) == listed


@each_builder
def test_a_message_without_files_leaves_no_doubt_that_it_has_none(folder: Path) -> None:
    """So a key that may not send files can be used with any of them."""
    for name, reading in messages(folder):
        if isinstance(reading, Reading) and not reading.attachments and f"{folder.name}/{name}" not in FILES_IN_TEXTS:
            raw = (folder / f"{name}.eml").read_bytes()
            assert (reading.doubt or outside_of_mime(raw, reading.text)) == "", name


def test_each_disagreement_that_is_listed_has_one_reason() -> None:
    entries = loaded(FOREIGN / "disagreements.json")
    listed = [found for one in entries for found in product(one["readers"], one["fields"], one["messages"])]
    assert len(listed) == len(set(listed))
    assert all(one["why"] for one in entries)
    assert all((FOREIGN / f"{message}.eml").is_file() for _, _, message in listed)


def test_there_are_many_of_many_builders_and_each_is_named() -> None:
    page = (FOREIGN / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?m)^\| `([^`]+)` \|", page)) == {folder.name for folder in FOLDERS}
    assert len(list(FOREIGN.glob("*/*.eml"))) >= 300
    assert sum(path.stat().st_size for path in FOREIGN.rglob("*")) < 3_000_000
