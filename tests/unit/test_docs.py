"""What the documentation says is there: links, commands, options, keys, codes and checks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import typer.main
import yaml
from typer.core import TyperGroup

from opensend_milter.cli import COMMANDS, GROUPS, app_of
from opensend_milter.config import KEYS
from opensend_milter.core.remedies import REMEDIES
from opensend_milter.core.rules import Rule

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BESIDE = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "opendkim-examples/README.md")
"""Pages of the site that are not in docs/."""
PAGES = sorted([ROOT / "README.md", *(ROOT / name for name in BESIDE), *DOCS.glob("*.md")])
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

FENCED = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
ELSEWHERE = re.compile(r"(https?|mailto):")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# Where a command begins: not as the name of a unit, an account or a package.
CALL = re.compile(
    r"(?:^ *|[;&|(/]\s*|=\S* )opensend-milter +((?:[^\s|;&>()`\"']+|\"[^\"]*\"|'[^']*'| +)+)", re.MULTILINE
)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    return FENCED.sub("", text_of(page))


def inline(page: Path) -> list[str]:
    return [" ".join(found.split()) for found in INLINE.findall(prose(page))]


# ---------------------------------------------------------------------- links


def slugs(page: Path) -> set[str]:
    """Return the anchors of a page as a repository's browser makes them; a second one of a name gets a number."""
    seen: dict[str, int] = {}
    for title in HEADING.findall(prose(page)):
        bare = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w -]", "", bare.strip().lower()).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
    return {slug if not number else f"{slug}-{number}" for slug, last in seen.items() for number in range(last + 1)}


def dead(page: Path) -> Iterator[str]:
    for target in LINK.findall(INLINE.sub("", prose(page))):
        if ELSEWHERE.match(target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        is_anchored = not anchor or (place.suffix == ".md" and place.exists() and anchor in slugs(place))
        if not place.exists() or not is_anchored:
            yield target


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(dead(page)) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` c's\n[x](#a-b-cs) [x](#a) [x](page.md#no) [x](no.md) [x](https://no.example)\n```\n[x](n)\n```\n"
    )
    assert list(dead(page)) == ["#a", "page.md#no", "no.md"]


def test_every_page_has_its_place() -> None:
    """In the site's navigation, and on the page that says what is where."""
    pages = {*BESIDE, *(page.name for page in DOCS.glob("*.md"))}
    nav = yaml.safe_load(text_of(ROOT / "mkdocs.yml"))["nav"]
    assert sorted(name for part in nav for names in part.values() for name in names) == sorted(pages)
    listed = {target.removeprefix("../") for target in LINK.findall(text_of(DOCS / "index.md"))}
    assert pages - listed == {"index.md", "opendkim-examples/README.md"}


# ---------------------------------------------------------------------- commands


@cache
def program() -> TyperGroup:
    return typer.main.get_group(app_of([*COMMANDS, *GROUPS]))


def calls(page: Path) -> Iterator[str]:
    blocks = (found[2].replace("\\\n", " ") for found in FENCED.findall(text_of(page)))
    for text in (*blocks, *inline(page)):
        yield from (found.strip() for found in CALL.findall(text))


def unknown(call: str) -> Iterator[str]:
    """Find the commands and options of a command line that are not there."""
    group: TyperGroup | None = program()
    taken = {"--help", "-h"}
    for word in shlex.split(call, comments=True):
        if group and not word.startswith("-"):
            missing = [name for name in word.split("|") if name not in group.commands]
            if missing:
                yield from missing
                return
            command = group.commands[word.rpartition("|")[2]]
            group = command if isinstance(command, TyperGroup) else None
            taken = {"--help", "-h"} | {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        elif word.startswith("-") and word != "-" and word.partition("=")[0] not in taken:
            yield word


@each_page
def test_every_command_line_is_understood(page: Path) -> None:
    assert {call: words for call in calls(page) if (words := list(unknown(call)))} == {}


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent in {ROOT, DOCS}], ids=lambda page: page.name)
def test_every_command_in_short_is_understood(page: Path) -> None:
    """As `key set ID`, where the program goes without saying."""
    short = [found for found in inline(page) if found.partition(" ")[0] in {*COMMANDS, *GROUPS} and " " in found]
    assert {call: words for call in short if (words := list(unknown(call)))} == {}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("key set ID --expires 90d --no-html", []),
        ("keys set ID", ["keys"]),
        ("key sat ID", ["sat"]),
        ("key set ID --expire 90d --network ''", ["--expire"]),
        ("feedback bounce --recipient=${recipient}", []),
        ("doctor --checklist --all -x  # what it says --no", ["-x"]),
    ],
)
def test_a_wrong_command_line_is_found(call: str, words: Sequence[str]) -> None:
    assert list(unknown(call)) == words


def test_the_manual_page_shows_what_can_be_typed() -> None:
    spec = spec_from_file_location("manual", ROOT / "packaging" / "manual.py")
    assert spec
    assert spec.loader
    manual = module_from_spec(spec)
    spec.loader.exec_module(manual)
    page = manual.pages("1")["opensend-milter.8"].replace("\\-", "-")
    shown = re.findall(r"^opensend-milter .*$", page.partition(".SH EXAMPLES")[2], re.MULTILINE)
    assert shown == list(manual.EXAMPLES.values())
    lines = [line for example in shown for line in CALL.findall(example)]
    assert len(lines) > len(shown)
    assert {line: words for line in lines if (words := list(unknown(line)))} == {}


def test_command_lines_are_found_where_they_are(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`opensend-milter email\nshow ID`, `opensend-milter`, `journalctl -u opensend-milter -n 5`\n\n"
        '```sh\neval "$(.venv/bin/opensend-milter sandbox env)"\n'
        "X=y opensend-milter db init && opensend-milter doctor\n"
        "systemctl reload opensend-milter opensend-http\nopensend-milter key set ID \\\n  --per-day 5 >file\n```\n"
    )
    assert list(calls(page)) == ["sandbox env", "db init", "doctor", "key set ID    --per-day 5", "email show ID"]


# ---------------------------------------------------------------------- keys of the configuration, checks


def checks_of_doctor() -> dict[str, bool]:
    """Return each check, and whether it is on the security checklist, as its page says."""
    rows = re.findall(r"^\| `([\w.-]+)` \| .* \| *(yes)? *\|$", text_of(DOCS / "doctor.md"), re.MULTILINE)
    return {name: bool(security) for name, security in rows}


@each_page
def test_every_key_of_the_configuration_is_there(page: Path) -> None:
    """Of a section that there is: other pairs with a dot are columns, events and files."""
    sections = {key.section for key in KEYS if key.section}
    known = {key.path for key in KEYS} | {f"{section}.*" for section in sections} | checks_of_doctor().keys()
    files = {path.name for path in (*ROOT.glob("*"), *DOCS.glob("*"), *(ROOT / "packaging").rglob("*"))}
    named = (found.partition(":")[0] for found in inline(page))
    odd = {one for one in named if re.fullmatch(rf"({'|'.join(sections)})\.[a-z_*-]+", one)}
    assert odd - known - files == set()


@each_page
def test_every_check_that_is_asked_for_is_there(page: Path) -> None:
    checks = checks_of_doctor()
    parts = {name.partition(".")[0] for name in checks}
    asked = {name for call in calls(page) for name in re.findall(r"--only ([\w.-]+)", call)}
    assert asked - checks.keys() - parts <= {"NAME"}


def test_the_checklist_shows_all_that_is_on_it() -> None:
    shown = re.findall(r"^\[[x! -]\] ([\w.-]+): ", text_of(DOCS / "security.md"), re.MULTILINE)
    assert sorted(shown) == sorted(name for name, security in checks_of_doctor().items() if security)


# ---------------------------------------------------------------------- reply codes


def rows_of_rules() -> dict[str, Sequence[str]]:
    table = text_of(DOCS / "reply-codes.md").partition("<!-- rules -->")[2].partition("<!-- /rules -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    assert all(len(row) == 5 for row in rows)
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0].strip("`"): row[1:] for row in rows}


def test_every_rule_has_its_codes_a_cause_and_a_mend() -> None:
    rows = rows_of_rules()
    assert list(rows) == [rule.value for rule in Rule]
    assert {rule: set(row[0].split(", ")) for rule, row in rows.items()} == {
        rule.value: set(map(str, rule.replies)) for rule in Rule
    }
    assert all(cause and mend for _, _, cause, mend in rows.values())


def test_the_page_of_a_refusal_says_what_the_documentation_says() -> None:
    """Without its links: who sees the page need not see the documentation."""
    told = {
        rule: [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell) for cell in row[2:]]
        for rule, row in rows_of_rules().items()
    }
    assert told == {rule.value: [remedy.cause, remedy.mend] for rule, remedy in REMEDIES.items()}


def test_every_rule_has_its_status_over_http() -> None:
    assert {rule: row[1] for rule, row in rows_of_rules().items()} == {rule.value: str(rule.http) for rule in Rule}
