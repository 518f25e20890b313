"""However an installation ends, what stood before can be had again byte for byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from opensend_milter.core.errors import UsageError
from opensend_milter.host.installing import apply as install, journal, remains
from opensend_milter.host.installing.blueprint import Choice
from opensend_milter.host.installing.plan import Action, Command, Root
from opensend_milter.host.installing.snapshot import NotPut
from tests.integration.copied_system import CHECKOUT, clean_environment
from tests.integration.small_system import LEFT, difference, plan_for, small_system, tree, with_step

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
FAILING = Command(name="failing", why="", run=(("false",),))


def quiet(_: str) -> None:
    """Say nothing."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_system(tmp_path)


@pytest.mark.parametrize("choice", [Choice(), Choice(mode="services", dovecot="existing")], ids=lambda one: one.mode)
def test_a_failure_at_any_step_takes_back_all_steps_before_it(root: Path, choice: Choice) -> None:
    plan = plan_for(root, choice)
    for place in range(0, len(plan.steps) + 1, 6):
        before = tree(root)
        with pytest.raises(install.StepFailed, match="false failed"):
            install.apply(with_step(plan, place, FAILING), quiet)
        assert difference(before, tree(root)) <= LEFT, place
        assert journal.read(root / "var/lib/opensend-milter") is None


def test_a_second_apply_that_fails_leaves_the_first(root: Path) -> None:
    install.apply(plan_for(root), quiet)
    applied = tree(root)
    changed = with_step(plan_for(root, edition="2"), 100, FAILING)
    (root / "etc/opensend-milter/opensend-milter.yaml").write_text("# changed\n")
    edited = tree(root)
    with pytest.raises(install.StepFailed):
        install.apply(changed, quiet)
    journals = {f"var/lib/opensend-milter/install/{journal.NAME}"}
    assert difference(edited, tree(root)) == journals
    assert difference(applied, tree(root)) == journals | {"etc/opensend-milter/opensend-milter.yaml"}


def test_what_no_undo_takes_back_is_said_first_and_done_again_where_there_is_more(root: Path) -> None:
    done, said = list[str](), list[str]()

    def tables(*wants: str) -> Action:
        return Action(
            name="db init",
            why="",
            call=lambda: done.append(said[-1]),
            stays="it stays",
            wants=wants,
            diff="no way back",
        )

    for wants in (("0001",), ("0001",), ("0001", "0002")):
        plan = with_step(plan_for(root), 0, tables(*wants))
        install.apply(plan, said.append)
    assert done == ["  no way back"] * 2


def test_what_is_in_the_way_fails_and_is_left_alone(root: Path) -> None:
    (root / "etc/opensend-milter").mkdir()
    (root / "etc/opensend-milter/dovecot").write_text("not yours")
    before = tree(root)
    with pytest.raises(NotPut, match="is a file, and a directory is to be there"):
        install.apply(plan_for(root), quiet)
    assert difference(before, tree(root)) <= LEFT


@pytest.mark.parametrize("place", [0, 100])
def test_killed_in_the_middle_it_is_finished_or_undone(root: Path, place: int) -> None:
    before = tree(root)
    die(root, place)
    assert install.status(Root(root))
    install.undo(Root(root), quiet)
    assert difference(before, tree(root)) <= LEFT
    die(root, place)
    # A power cut may leave half a line.
    path = root / "var/lib/opensend-milter/install" / journal.NAME
    os.truncate(path, path.stat().st_size - 20)
    install.apply(plan_for(root), quiet)
    assert install.apply(plan_for(root), quiet).steps == ()
    install.undo(Root(root), quiet)
    assert difference(before, tree(root)) <= LEFT


def die(root: Path, place: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.small_system", str(root), str(place)],
        check=False, env=clean_environment(), cwd=CHECKOUT,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL


def test_killed_while_it_undoes_it_goes_on(root: Path) -> None:
    before = tree(root)
    install.apply(plan_for(root), quiet)
    steps = list[str]()

    class CutOff(BaseException):
        pass

    def cut_off(text: str) -> None:
        steps.append(text)
        if len(steps) == 12:
            raise CutOff

    with pytest.raises(CutOff):
        install.undo(Root(root), cut_off)
    install.undo(Root(root), quiet)
    assert difference(before, tree(root)) <= LEFT


def test_what_was_edited_since_is_left_and_named(root: Path) -> None:
    before = tree(root)
    install.apply(plan_for(root), quiet)
    (root / "etc/opensend-milter/opensend-milter.yaml").write_text("# mine now\n")
    edited = root / "etc/opensend-milter/opensend-milter.yaml"
    assert [one.name for one in install.status(Root(root)) if one.state == "changed since"] == [str(edited)]
    undone = install.undo(Root(root), quiet)
    assert f"{edited}: was changed since it was installed" in undone.left
    assert edited.read_text() == "# mine now\n"
    changed = difference(before, tree(root)) - LEFT
    assert changed == {"etc", "etc/opensend-milter", "etc/opensend-milter/opensend-milter.yaml"}


def test_a_master_cf_edited_since_loses_our_entries_and_keeps_the_edit(root: Path) -> None:
    master = root / "etc/postfix/master.cf"
    before = master.read_text()
    install.apply(plan_for(root), quiet)
    master.write_text(master.read_text() + "# mine\n10099 inet n - n - 5 smtpd\n")
    undone = install.undo(Root(root), quiet)
    assert master.read_text() == before + "# mine\n10099 inet n - n - 5 smtpd\n"
    assert any(text.startswith(f"{master}: was changed since") for text in undone.left)


def test_accounts_made_by_others_since_stay(root: Path) -> None:
    install.apply(plan_for(root), quiet)
    with (root / "etc/passwd").open("a") as passwd:
        passwd.write("later:x:4242:4242::/home/later:/bin/sh\n")
    install.undo(Root(root), quiet)
    text = (root / "etc/passwd").read_text()
    assert "later:" in text
    assert "opensend" not in text


def test_two_applies_and_one_undo(root: Path) -> None:
    before = tree(root)
    (root / "etc/dovecot/dovecot.conf").read_text()
    install.apply(plan_for(root), quiet)
    install.apply(plan_for(root, edition="2"), quiet)
    first = (root / "etc/systemd/system/opensend-http.socket.d/listen.conf").read_text()
    assert "127.0.0.1:8026" in first
    install.undo(Root(root), quiet)
    assert difference(before, tree(root)) <= LEFT
    assert install.undo(Root(root), quiet).steps == ()


def test_existing_files_get_their_content_rights_and_time_again(root: Path) -> None:
    ours = root / "etc/opensend-milter"
    ours.mkdir(mode=0o777)
    yaml = ours / "opensend-milter.yaml"
    yaml.write_text("# written by hand\n")
    yaml.chmod(0o606)
    os.chown(yaml, 12, 34)
    os.utime(yaml, ns=(1, 1_234_567_890))
    before = tree(root)
    install.apply(plan_for(root), quiet)
    assert yaml.read_text() == "smtp: {}\n"
    assert yaml.stat().st_mode & 0o777 == 0o640
    install.undo(Root(root), quiet)
    assert difference(before, tree(root)) <= LEFT


def test_messages_in_the_queue_stand_in_the_way_of_an_undo(root: Path) -> None:
    install.apply(plan_for(root), quiet)
    held = root / "var/spool/postfix-opensend/hold/4"
    held.mkdir(parents=True)
    (held / "4jWtq").write_text("a message")
    with pytest.raises(UsageError, match=r"1 messages lie in .*postqueue"):
        remains.refuse_what_would_be_lost(Root(root))


def test_what_runs_may_write_into_our_directories(root: Path) -> None:
    before = tree(root)
    install.apply(plan_for(root), quiet)
    (root / "var/spool/opensend-milter/part").write_text("half a message")
    (root / "var/spool/postfix-opensend/opensend-milter").rmdir()
    undone = install.undo(Root(root), quiet)
    assert difference(before, tree(root)) <= LEFT
    assert all(text.endswith(("passwd", "group", "shadow", "gshadow")) for text in undone.left)


def test_two_at_once_are_kept_apart(root: Path) -> None:
    with journal.alone(root / "var/lib/opensend-milter"), pytest.raises(UsageError, match="another `install`"):
        install.apply(plan_for(root), quiet)


def test_a_configuration_that_was_there_and_is_edited_since_keeps_the_edit(root: Path) -> None:
    (root / "etc/opensend-milter").mkdir()
    yaml = root / "etc/opensend-milter/opensend-milter.yaml"
    yaml.write_text("smtp: {}\n")
    before = tree(root)
    install.apply(plan_for(root), quiet)
    assert yaml.stat().st_gid != 0
    yaml.write_text("# edited since\n")
    undone = install.undo(Root(root), quiet)
    assert yaml.read_text() == "# edited since\n"
    assert yaml.stat().st_gid == 0
    assert not [text for text in undone.left if "opensend-milter.yaml" in text]
    assert difference(before, tree(root)) - LEFT == {"etc/opensend-milter/opensend-milter.yaml"}


def test_what_was_cut_off_while_it_was_written_goes_too(root: Path) -> None:
    before = tree(root)
    die(root, 25)
    (root / "etc/systemd/system/.opensend-http.service.opensend-new").write_text("[Un")
    install.apply(plan_for(root), quiet)
    install.undo(Root(root), quiet)
    assert difference(before, tree(root)) <= LEFT
