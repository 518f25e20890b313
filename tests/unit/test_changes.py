"""What two configurations differ in, and what a process makes of it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from opensend_milter.app import gating, serving, showing, web, working
from opensend_milter.config import KEYS, Auth, Config, Database, Http, Relay, Smtp, Tls
from opensend_milter.config.changes import Reads, changes, with_changes

READS = Reads(frozenset({"limits", "http.default_from", "database"}), frozenset({"http", "auth"}))
OLD = Config()
DOCUMENT = Path(__file__).parents[2] / "docs" / "reloading.md"


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ({}, []),
        (
            {"http": Http(default_from="app@x.example", port=8026)},
            [
                "http.port: 8025 -> 8026 (needs a restart)",
                'http.default_from: "" -> "app@x.example" (in force)',
            ],
        ),
        (
            {"smtp": Smtp(hostname="mx.example")},
            ['smtp.hostname: "" -> "mx.example" (Postfix must be rendered again)'],
        ),
        ({"billing": "stripe"}, ['billing: "none" -> "stripe" (not for this process)']),
        ({"http": Http(tls=True)}, ["http.tls: false -> true (needs a restart)"]),
        (
            {"tls": Tls(folder=Path("/etc/letsencrypt/live/x"))},
            ['tls.folder: none -> "/etc/letsencrypt/live/x" (Postfix must be rendered again)'],
        ),
        (
            {"auth": Auth(dovecot_socket=Path("/run/x"))},
            [
                (
                    'auth.dovecot_socket: "/run/opensend-dovecot/auth.sock" -> "/run/x"'
                    " (needs a restart; Dovecot must be rendered again)"
                )
            ],
        ),
        (
            {"database": Database(url="postgresql://u:hush@h/d")},
            ["database.url: ******** -> ******** (in force; Dovecot must be rendered again)"],
        ),
        (
            {"relay": Relay(password_file=Path("/etc/secret"))},
            ["relay.password_file: ******** -> ******** (not for this process)"],
        ),
    ],
)
def test_each_change_is_said_with_what_comes_of_it(new: dict[str, Any], said: list[str]) -> None:
    found = changes(OLD, dataclasses.replace(OLD, **new))
    assert [f"{change} ({READS.effect(change.key)})" for change in found] == said


def test_a_value_that_ends_a_line_or_a_quotation_does_neither() -> None:
    (change,) = changes(OLD, dataclasses.replace(OLD, http=Http(trusted_proxies='a"\n\x1b[2Jb')))
    assert str(change) == r'http.trusted_proxies: "" -> "a\"\n\u001b[2Jb"'


def test_a_password_in_a_url_is_masked_wherever_it_stands() -> None:
    (change,) = changes(OLD, dataclasses.replace(OLD, http=Http(public_url="https://me:hush@x.example")))
    assert "hush" not in str(change)


def test_all_changes_together_make_the_new_one() -> None:
    """Of every section; and each alone makes that one key new."""
    new = Config()
    for key in KEYS:
        value: dict[str, Any] = {key.name: f"other {key.path}"}
        if key.section:
            value = {key.section: dataclasses.replace(getattr(new, key.section), **value)}
        new = dataclasses.replace(new, **value)
    found = changes(OLD, new)
    assert [change.key for change in found] == list(KEYS)
    assert with_changes(OLD, found) == new
    assert with_changes(OLD, []) == OLD
    for change in found:
        assert list(changes(OLD, with_changes(OLD, [change]))) == [change]


def test_every_key_that_a_process_names_is_one() -> None:
    """A key that is renamed must not leave its old name behind in a list."""
    known = {key.path for key in KEYS} | {key.section for key in KEYS}
    for reads in (web.READS, serving.READS, working.READS, gating.READS, showing.READS):
        assert reads.live | reads.at_start <= known


READ_OTHERWISE = {
    "log.level": "every process, Reloading adds it",
    "log.format": "every process, Reloading adds it",
}
"""In no list, and not only for Postfix or Dovecot; each with who reads it."""


def test_every_key_is_in_a_list_of_what_a_process_reads() -> None:
    """A new option that is in none would never be reloaded, and SIGHUP would call it nobody's."""
    every = (web.READS, serving.READS, working.READS, gating.READS, showing.READS)
    listed = {key.path for key in KEYS for reads in every if {key.path, key.section} & (reads.live | reads.at_start)}
    by_nobody = {key.path for key in KEYS if key.path not in listed and not key.option.renders}
    assert by_nobody == READ_OTHERWISE.keys()


@pytest.mark.parametrize(
    ("process", "reads"), [("serve", serving.READS), ("http", web.READS), ("auth-gate", gating.READS)]
)
def test_what_is_in_force_at_once_is_in_the_documentation(process: str, reads: Reads) -> None:
    (row,) = re.findall(rf"^\| `{process}` \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    told = row.partition("; with")[0]
    assert set(re.findall(r"`([a-z0-9_.]+?)(?:\.\*)?`", told)) == reads.live
