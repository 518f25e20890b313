"""The plan as people read it: what differs, nothing that is secret, and known again by what it wants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opensend_milter.host.installing.plan import (
    Action,
    Command,
    Directory,
    File,
    Plan,
    Root,
    Step,
    name_of,
    unified,
)
from opensend_milter.host.installing.snapshot import ABSENT, Snapshot, directory, file, link

FILE = File(path=Path("/etc/x"), content=b"a\n", why="")


@pytest.mark.parametrize(
    ("before", "after", "secrets", "expected"),
    [
        (b"", b"a\n", (), ["--- /dev/null", "+++ /etc/x", "@@ -0,0 +1 @@", "+a"]),
        (b"a\n", b"a\n", (), []),
        (b"", b"pass=s3cret\n", ("s3cret",), ["--- /dev/null", "+++ /etc/x", "@@ -0,0 +1 @@", "+pass=********"]),
        (b"password=0ld\n", b"password=s3cret\n", ("s3cret",),
         ["--- /dev/null", "+++ /etc/x", "@@ -0,0 +1 @@", "+password=********"]),
        (b"", b"\xff\n", (), ["--- /dev/null", "+++ /etc/x", "@@ -0,0 +1 @@", "+\N{REPLACEMENT CHARACTER}"]),
    ],
)  # fmt: skip
def test_a_diff_shows_no_secret(before: bytes, after: bytes, secrets: tuple[str, ...], expected: list[str]) -> None:
    assert unified(Path("/etc/x"), before, after, secrets, fresh=True).splitlines() == expected


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (FILE, "file /etc/x"),
        (Directory(path=Path("/etc/d"), why=""), "directory /etc/d"),
        (Command(name="start", why=""), "start"),
    ],
)
def test_each_step_has_a_name(step: Step, name: str) -> None:
    assert name_of(step) == name


def test_a_plan_is_known_again_by_what_it_wants() -> None:
    plan = Plan(root=Root(), steps=(FILE,), edition="1")
    assert plan.stamp == replace(plan, notes=("anything",)).stamp
    assert plan.stamp != replace(plan, edition="2").stamp
    assert plan.stamp != replace(plan, steps=(replace(FILE, content=b"b\n"),)).stamp
    tables = Action(name="db init", why="", call=lambda: None, stays="", wants=("0001",))
    with_tables = replace(plan, steps=(tables,))
    assert with_tables.stamp == replace(plan, steps=(replace(tables, diff="said before"),)).stamp
    assert with_tables.stamp != replace(plan, steps=(replace(tables, wants=("0001", "0002")),)).stamp


def test_a_root_puts_itself_before_each_path() -> None:
    assert Root(Path("/mnt/other")).at(Path("/etc/x")) == Path("/mnt/other/etc/x")
    assert Root().at(Path("/etc/x")) == Path("/etc/x")


@pytest.mark.parametrize(
    "one",
    [
        ABSENT,
        link("/etc/x"),
        directory(mode=0o2750, uid=1, gid=2),
        replace(file(b"\x00\xff", mode=0o600, uid=1, gid=2), mtime_ns=1_234_567_890_123_456_789),
        file(b"not kept", mode=0o644, uid=0, gid=0).bare(),
    ],
)
def test_a_snapshot_outlives_the_journal(one: Snapshot) -> None:
    assert Snapshot.from_json(one.as_json()) == one


@pytest.mark.parametrize(
    ("changed", "alike"),
    [({}, True), ({"mtime_ns": 1}, True), ({"mode": 0o600}, False), ({"uid": 1}, False), ({"kind": "link"}, False)],
)
def test_alike_is_all_but_the_time(changed: dict[str, object], *, alike: bool) -> None:
    one = file(b"a", mode=0o644, uid=0, gid=0)
    assert one.same_as(replace(one, **changed)) is alike  # type: ignore[arg-type]  # the table's names are Snapshot's
