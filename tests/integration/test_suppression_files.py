"""`suppression import` and `export`: every format by its own header, all of a file or nothing, and nothing unsaid."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from opensend_milter.cli.records import suppressions
from tests.integration.private_postgres import Database

MANY = 100_000

OURS = b"""address,reason,since
Bounced@Example.org,bounced,2026-01-02T03:04:05+00:00
complained@example.org,complained,2026-01-03
manual@example.org,manual,
"""
POSTMARK = b"""EmailAddress,SuppressionReason,Origin,CreatedAt
bounced@example.org,HardBounce,Recipient,2026-01-02T03:04:05-05:00
complained@example.org,SpamComplaint,Recipient,2026-01-03T00:00:00Z
manual@example.org,ManualSuppression,Customer,2026-01-04T00:00:00Z
"""
SENDGRID_BOUNCES = (
    b'status,reason,email,created\n5.1.1,"550 5.1.1 The email account\ndoes not exist, ""really""",'
    b"bounced@example.org,1767323045\n4.0.0,unknown,other@example.org,1767323045\n"
)
SENDGRID_REPORTS = b"ip,email,created\n192.0.2.1,complained@example.org,1767323045\n"
SENDGRID_UNSUBSCRIBES = b"email,created\nmanual@example.org,1767323045\n"
SES_CSV = b"bounced@example.org,BOUNCE\ncomplained@example.org, COMPLAINT\n"
SES_LINES = b"""{"emailAddress": "bounced@example.org", "reason": "BOUNCE"}
{"emailAddress": "complained@example.org", "reason": "COMPLAINT"}
"""
SES_LIST = json.dumps(
    {
        "SuppressedDestinationSummaries": [
            {"EmailAddress": "bounced@example.org", "Reason": "BOUNCE", "LastUpdateTime": "2026-01-02T03:04:05Z"},
            {"EmailAddress": "complained@example.org", "Reason": "COMPLAINT", "LastUpdateTime": 1767323045.5},
        ],
        "NextToken": "more",
    },
    indent=2,
).encode()
ADDRESSES = b"manual@example.org\r\n\r\nother@example.org\r\n"


@pytest.fixture
def run(database: Database, tmp_path: Path) -> Callable[..., Result]:
    path = tmp_path / "opensend-milter.yaml"
    path.write_text(f"database:\n  password_dir: {database.password_dir}\n")
    app = typer.Typer()
    app.add_typer(suppressions.app, name="suppression")
    environment = {"DATABASE_URL": database.url, "OPENSEND_MILTER_CONFIG": str(path), "COLUMNS": "200"}

    def invoke(*words: str, given: bytes | None = None) -> Result:
        return CliRunner().invoke(app, ["suppression", *words], env=environment, input=given)

    return invoke


@pytest.fixture
def put(run: Callable[..., Result]) -> Callable[..., dict[str, object]]:
    """Import bytes and return the report."""

    def invoke(content: bytes, *words: str, exit_code: int = 0) -> dict[str, object]:
        result = run("import", "-", "--json", *words, given=content)
        assert result.exit_code == exit_code, result.output
        found = json.loads(result.stdout)
        assert isinstance(found, dict)
        return found

    return invoke


def stored(database: Database, user: str = "default") -> dict[str, str]:
    with database.connect() as connection:
        return dict(
            connection.execute(
                "SELECT email, reason FROM email_suppressions WHERE user_id = %s ORDER BY email", [user]
            ).fetchall()
        )


FORMATS = [
    (OURS, "opensend-milter", "bcm"),
    (b"\xef\xbb\xbf" + OURS.replace(b"\n", b"\r\n"), "opensend-milter", "bcm"),
    (POSTMARK, "postmark", "bcm"),
    (SENDGRID_BOUNCES, "sendgrid", "bo"),
    (SENDGRID_REPORTS, "sendgrid", "c"),
    (SENDGRID_UNSUBSCRIBES, "sendgrid", "m"),
    (SES_CSV, "ses", "bc"),
    (b"EmailAddress,Reason\n" + SES_CSV, "ses", "bc"),
    (SES_LINES, "ses", "bc"),
    (SES_LIST, "ses", "bc"),
    (ADDRESSES, "addresses", "mo"),
]
EXPECTED = {"b": ("bounced", "bounced"), "c": ("complained", "complained"), "m": ("manual", "manual")}


@pytest.mark.parametrize(("content", "name", "found"), FORMATS, ids=[f"{name}-{len(c)}" for c, name, _ in FORMATS])
def test_a_format_is_known_by_its_beginning(
    database: Database, put: Callable[..., dict[str, object]], content: bytes, name: str, found: str
) -> None:
    expected = {f"{EXPECTED[one][0]}@example.org": EXPECTED[one][1] for one in found if one in EXPECTED}
    if "o" in found:
        expected["other@example.org"] = "bounced" if name == "sendgrid" else "manual"
    report = put(content)
    assert (report["format"], report["added"], report["known"]) == (name, len(expected), 0)
    assert stored(database) == expected


def test_the_time_of_the_suppression_is_kept(database: Database, put: Callable[..., dict[str, object]]) -> None:
    put(POSTMARK)
    put(SENDGRID_BOUNCES, "--user", "second")
    with database.connect() as connection:
        rows = connection.execute(
            "SELECT user_id, extract(epoch FROM suppressed_at)::bigint FROM email_suppressions"
            " WHERE email = 'bounced@example.org' ORDER BY user_id"
        ).fetchall()
    assert rows == [("default", 1767341045), ("second", 1767323045)]


def test_what_is_there_already_stays_as_it_is(
    database: Database, run: Callable[..., Result], put: Callable[..., dict[str, object]]
) -> None:
    assert run("add", "bounced@example.org", "--reason", "manual").exit_code == 0
    report = put(POSTMARK)
    assert (report["added"], report["known"]) == (2, 1)
    assert stored(database)["bounced@example.org"] == "manual"
    assert put(POSTMARK)["added"] == 0


@pytest.mark.case(75)
def test_an_odd_spelling_is_noted_by_what_it_is_compared(
    database: Database, put: Callable[..., dict[str, object]]
) -> None:
    odd = "ſome@example.org,manual,\nJane@ｅxample.org,bounced,\njane@bücher.example,bounced,\n".encode()
    assert put(OURS + odd)["added"] == 6
    with database.connect() as connection:
        noted = dict(connection.execute("SELECT email, folded FROM opensend_milter.odd_spellings").fetchall())
    assert noted == {"ſome@example.org": "some@example.org", "jane@bücher.example": "jane@xn--bcher-kva.example"}
    assert {*noted, "jane@example.org"} < stored(database).keys()


def test_a_reason_for_all(database: Database, put: Callable[..., dict[str, object]]) -> None:
    put(POSTMARK, "--reason", "manual")
    assert set(stored(database).values()) == {"manual"}


BAD = [
    (b"nobody,manual,\n", "'nobody' is no address"),
    (b",manual,\n", "has no address"),
    (b"a@example.org,because,\n", "'because' is no reason that is known"),
    (b"a@example.org,manual,yesterday\n", "'yesterday' is no date"),
    (b"a@example.org,manual,0001-01-01\n", "'0001-01-01' is no date"),
    (b"a@example.org,manual,99999999999999999\n", "is no date"),
    (b"a@example.org,manual,nan\n", "'nan' is no date"),
    (b"\xff\xfe@example.org,manual,\n", "is not UTF-8"),
    (b'"a@example.org,manual,\n', "is no line of a CSV file"),
    (b"a@example.org\n", "'' is no reason that is known"),
    (b"a@b@example.org,manual,\n", "is no address"),
    (b"a\x00@example.org,manual,\n", "is no"),
]


@pytest.mark.parametrize(("line", "why"), BAD, ids=[why for _, why in BAD])
def test_with_a_bad_line_nothing_is_imported(
    database: Database, put: Callable[..., dict[str, object]], line: bytes, why: str
) -> None:
    report = put(OURS + line + b"later@example.org,manual,\n", exit_code=65)
    assert isinstance(report["bad_lines"], list)
    (bad,) = report["bad_lines"]
    assert bad["line"] == 5
    assert why in bad["why"]
    assert (report["imported"], report["added"]) == (False, 0)
    assert stored(database) == {}


@pytest.mark.parametrize(("line", "why"), BAD, ids=[why for _, why in BAD])
def test_bad_lines_are_left_out_where_that_is_asked(
    database: Database, put: Callable[..., dict[str, object]], line: bytes, why: str
) -> None:
    report = put(OURS + line + b"later@example.org,manual,\n", "--skip-bad", exit_code=65)
    assert (report["imported"], report["added"]) == (True, 4), why
    assert "later@example.org" in stored(database)


def test_bad_lines_and_duplicates_are_told_by_number(run: Callable[..., Result]) -> None:
    lines = [b"nobody\n"] * 30
    result = run("import", "-", "--skip-bad", given=OURS + b"MANUAL@example.org,bounced,\n" + b"".join(lines))
    assert result.exit_code == 65
    assert "line 6: 'nobody' is no address" in result.stdout
    assert "... and 10 more bad lines" in result.stdout
    assert "the same address again in 1 line(s): 5" in result.stdout
    assert "3 added, 0 suppressed already, 30 bad line(s) left out" in result.stdout


def test_a_dry_run_says_the_same_and_changes_nothing(
    database: Database, put: Callable[..., dict[str, object]], run: Callable[..., Result]
) -> None:
    report = put(POSTMARK, "--dry-run", "--user", "new")
    assert (report["added"], report["dry_run"], report["imported"]) == (3, True, False)
    assert stored(database, "new") == {}
    with database.connect() as connection:
        assert connection.execute('SELECT count(*) FROM "user" WHERE id = %s', ["new"]).fetchone() == (0,)
    assert "3 would be added" in run("import", "-", "--dry-run", given=POSTMARK).stdout


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"name,phone\nx,y\n", "neither a header"),
        (b"\x00\x01\x02binary", "neither a header"),
        (b"{not json", "neither one JSON document nor"),
        (b"[" * 100_000, "neither one JSON document nor"),
    ],
)
def test_a_file_that_is_none_of_these(run: Callable[..., Result], content: bytes, text: str) -> None:
    result = run("import", "-", given=content)
    assert result.exit_code == 64
    assert text in result.stderr


def test_an_object_that_is_none(put: Callable[..., dict[str, object]]) -> None:
    report = put(b'[1, {"emailAddress": null, "reason": "BOUNCE"}, {"emailAddress": {"a": 1}}]', exit_code=65)
    assert isinstance(report["bad_lines"], list)
    assert [bad["line"] for bad in report["bad_lines"]] == [1, 2, 3]


def test_a_file_that_is_not_there(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("import", str(tmp_path / "nothing.csv"))
    assert result.exit_code == 64
    assert "No such file" in result.stderr


def test_what_is_exported_is_imported_again(
    database: Database, put: Callable[..., dict[str, object]], run: Callable[..., Result], tmp_path: Path
) -> None:
    put(POSTMARK)
    target = tmp_path / "list.csv"
    assert run("export", str(target)).exit_code == 0
    assert target.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.glob(".*")) == [], "nothing is left beside it"
    assert target.read_text().startswith("address,reason,since\n")
    put(target.read_bytes(), "--user", "copy")
    assert stored(database, "copy") == stored(database)
    assert run("export").stdout == target.read_text()


def test_a_hundred_thousand_lines_are_as_many_statements_as_three(
    database: Database, put: Callable[..., dict[str, object]], run: Callable[..., Result], tmp_path: Path
) -> None:
    def statements() -> int:
        return len(re.findall(rb"LOG:  (?:statement|execute)", (database.cluster.directory / "log").read_bytes()))

    source = tmp_path / "many.csv"
    source.write_bytes(b"email,created\n" + b"".join(b"user%d@example.org,1767323045\n" % n for n in range(MANY)))
    put(POSTMARK)  # now there is a user
    before = statements()
    put(OURS)
    between = statements()
    result = run("import", str(source))
    assert result.exit_code == 0, result.output
    assert statements() - between == between - before
    assert result.stderr == ""
    assert f"{MANY} added" in result.stdout
    with database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM email_suppressions").fetchone() == (MANY + 3,)
