"""What tests/profiles.py is there for: each way to say `profile: opensend` over tables of our making goes red."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
BEGIN = '''
import os, subprocess, sys

import psycopg
import pytest
from typer.testing import CliRunner

from opensend_milter import cli
from opensend_milter.config import Config, Database as Section, load
from tests.integration.serving import serving
from tests.integration.working import working

PROGRAM = [sys.executable, "-m", "opensend_milter"]
SAYS = "profile: opensend\\n"


def written(directory, database, text=SAYS):
    directory.mkdir(exist_ok=True)
    path = directory / "c.yaml"
    path.write_text(f"{text}database:\\n  password_dir: {database.password_dir}\\n")
    return path


def run(database, path, **environ):
    environ |= {"DATABASE_URL": database.url, "OPENSEND_MILTER_CONFIG": str(path)}
    assert CliRunner().invoke(cli.app_of(["key"]), ["key", "list"], env=environ).exit_code == 0


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture
def made(cluster, _template):
    """A database as `db init` makes it, under no name that anybody knows."""
    cluster.new_database("made", template="template_opensend")
    yield type("Made", (), {"url": cluster.url("made"), "password_dir": _template})
    cluster.drop_database("made")
'''
WRONG = {
    "serves_what_init_made": """
        (database):
            with serving(database.url, database.password_dir, profile="opensend"):
                pass
    """,
    "serves_what_it_altered": """
        (beside):
            with beside.connect() as connection:
                connection.execute("ALTER TABLE logs ALTER request_body TYPE text")
            with serving(beside.url, beside.password_dir, profile="opensend"):
                pass
    """,
    "hands_over_what_init_made": """
        (database, tmp_path):
            with working(database, tmp_path):
                pass
    """,
    "types_a_command_over_what_init_made": """
        (made, elsewhere):
            run(made, written(elsewhere, made))
    """,
    "names_the_profile_in_the_environment": """
        (made, elsewhere):
            run(made, written(elsewhere, made, ""), OPENSEND_MILTER_PROFILE="opensend")
    """,
    "has_a_configuration_of_its_own_before": """
        (made):
            Config(profile="opensend")
            psycopg.connect(made.url).close()
    """,
    "has_a_configuration_of_its_own_behind": """
        (made):
            psycopg.connect(made.url).close()
            Config(profile="opensend", database=Section(url=made.url))
    """,
    "drops_what_it_opened": """
        (cluster, _template):
            url = cluster.new_database("gone", template="template_opensend")
            Config(profile="opensend")
            psycopg.connect(url).close()
            cluster.drop_database("gone")
    """,
    "starts_the_program_over_what_init_made": """
        (made, elsewhere):
            words = [*PROGRAM, "key", "list", "--config", str(written(elsewhere, made))]
            subprocess.run(words, env=os.environ | {"DATABASE_URL": made.url}, check=True)
    """,
    "starts_the_program_with_the_profile_in_the_environment": """
        (made):
            environ = {"DATABASE_URL": made.url, "OPENSEND_MILTER_PROFILE": "opensend"}
            subprocess.run([*PROGRAM, "key", "list"], env=os.environ | environ, check=True)
    """,
    "writes_it_where_the_database_is_of_init": """
        (database, tmp_path):
            written(tmp_path / "deeper", database)
    """,
    "writes_it_as_json": """
        (database, tmp_path):
            (tmp_path / "c.yml").write_text('{"milter": {}, "profile": "opensend"}')
    """,
}
RIGHT = {
    "serves_beside": """
        (beside):
            with serving(beside.url, beside.password_dir, profile="opensend"):
                pass
    """,
    "hands_over_beside": """
        (beside, tmp_path):
            with working(beside, tmp_path):
                pass
    """,
    "types_a_command_beside": """
        (beside, tmp_path):
            run(beside, written(tmp_path, beside))
    """,
    "holds_a_table_meanwhile": """
        (beside, tmp_path):
            with psycopg.connect(beside.url) as holder:
                holder.execute("LOCK TABLE emails IN ACCESS EXCLUSIVE MODE")
                run(beside, written(tmp_path, beside))
    """,
    "is_by_itself": """
        (database, tmp_path):
            run(database, written(tmp_path, database, "profile: standalone\\n"))
            with serving(database.url, database.password_dir):
                pass
    """,
    "has_both_in_two_databases": """
        (made, beside):
            with serving(made.url, made.password_dir), serving(beside.url, beside.password_dir, profile="opensend"):
                psycopg.connect(made.url).close()
    """,
    "opens_nothing": """
        (tmp_path):
            assert load(written(tmp_path, Section(password_dir=tmp_path)), {}).profile == "opensend"
    """,
    "follows_one_that_says_so": """
        (database):
            psycopg.connect(database.url).close()
    """,
}
ALTERS = """
@pytest.mark.altered_tables
def test_right_alters_on_purpose(beside, tmp_path):
    with beside.connect() as connection:
        connection.execute("ALTER TABLE logs ALTER request_body TYPE text")
    run(beside, written(tmp_path, beside))
    with serving(beside.url, beside.password_dir, profile="opensend"):
        pass


@pytest.mark.altered_tables
def test_wrong_alters_what_init_made(database):
    with serving(database.url, database.password_dir, profile="opensend"):
        pass
"""


def _test(name: str, text: str) -> str:
    head, *lines = text.strip("\n").splitlines()
    return "\n".join([f"def test_{name}{head.strip()}", *(line[8:] for line in lines)])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run all of them at once, as tests of this suite; return why each failed, or nothing."""
    path = tmp_path_factory.mktemp("planted") / "test_planted.py"
    planted = [_test(f"wrong_{name}", text) for name, text in WRONG.items()]
    planted += [_test(f"right_{name}", text) for name, text in RIGHT.items()]
    path.write_text("\n\n\n".join([BEGIN, ALTERS, *planted]) + "\n")
    plugins = ["-p", "tests.conftest", "-p", "tests.integration.conftest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "--tb=line", *plugins, "-c", str(ROOT / "pyproject.toml"), str(path)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "500"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^(?:PASSED|FAILED|ERROR) \S*::test_(\w+)(.*)$", done.stdout, re.MULTILINE)
    assert len({name for name, _ in found}) == len(WRONG) + len(RIGHT) + 2, done.stdout + done.stderr
    return dict(sorted(found, key=lambda one: bool(one[1])))


@pytest.mark.parametrize("name", [*WRONG, "alters_what_init_made"])
def test_a_wrong_test_goes_red(outcomes: dict[str, str], name: str) -> None:
    assert "`profile: opensend`" in outcomes[f"wrong_{name}"]


@pytest.mark.parametrize("name", [*RIGHT, "alters_on_purpose"])
def test_a_right_test_stays_green(outcomes: dict[str, str], name: str) -> None:
    assert not outcomes[f"right_{name}"]
