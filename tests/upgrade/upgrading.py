"""A whole upgrade: an installation of a commit is made, filled, upgraded to this tree, read back and undone."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.integration.private_postgres import Database, running_cluster
from tests.upgrade.clients import Smtp, mail_named, sending
from tests.upgrade.course import Course
from tests.upgrade.filling import SUPPRESSED, WORKER, Filled, fill, make_due, make_keys
from tests.upgrade.hosts import DATABASE, MailHost, booted_host
from tests.upgrade.ledger import Span, settle, token
from tests.upgrade.packages import ROOT, build, package_of
from tests.upgrade.reading import ask, some_of_each, unshown_by_console
from tests.waiting import await_true

_STEADY = {"sent", "uncertain"}
_WAITED = {"waiting", "scheduled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What must be nothing, each with its cases."""

    lost: Sequence[str]
    twice: Sequence[str]
    unasked: Sequence[str]
    refused_for_good: Sequence[str]
    given_up: Sequence[str]
    told_otherwise: Sequence[str]
    taken_against_rules: Sequence[str]
    not_said_before: Sequence[str]
    left_behind: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All figures."""

    spans: Mapping[str, Span]
    filled: Mapping[str, int]
    sent_meanwhile: int
    delivered: Mapping[str, int]
    put_off_with: Mapping[str, int]
    applied: Sequence[str]
    findings: Findings

    @property
    def is_good(self) -> bool:
        return not any(asdict(self.findings).values())


def upgrade(commit: str, messages: int, say: Callable[[str], None]) -> Outcome:
    """Do all of it, on two hosts of one database; pytest's Skipped is raised where this machine cannot."""
    with tempfile.TemporaryDirectory(prefix="os-upgrade-", dir="/tmp") as place, ExitStack() as stack:
        say(f"packages of {commit} and of this tree")
        old, new = package_of(commit), build(ROOT, Path(place))
        say("two hosts with the old one")
        cluster = stack.enter_context(running_cluster())
        cluster.new_database(DATABASE)
        database = Database(DATABASE, cluster, Path(place))
        # As /run/postgresql is: everybody may go through it to the socket.
        cluster.directory.chmod(0o755)
        first, second = (stack.enter_context(booted_host(name, cluster)) for name in "ab")
        _install(first, second, old)
        say(f"{messages} messages, keys, rules, suppressions")
        keys = make_keys(first)
        filled = fill(first, database, keys, messages)
        course = Course(first=first, second=second, database=database, package=new, keys=keys, say=say)
        return _upgraded(course, filled)


def _install(first: MailHost, second: MailHost, package: Path) -> None:
    for host in (first, second):
        host.install_package(package)
        if host is second:
            host.take_passwords_of(first)
        host.ours("install", "--apply")
    # It is to deliver beside the new one, not before.
    second.system.systemctl("stop", WORKER)


def _upgraded(course: Course, filled: Sequence[Filled]) -> Outcome:
    first, key = course.first, course.keys.plain
    sent_before = course.first.delivered()
    told = ask(first, key, [one for one in filled if one.kind in _STEADY])
    with sending(course.ledger, course.doors()):
        course.run()
    with course.step("all that waited is delivered"):
        _deliver_all(course.database)
    with course.step("read back by every door"):
        again = ask(first, key, filled)
        shown = [*(one.name for one in some_of_each(filled)), *course.newest()]
        unshown = [*course.unshown, *unshown_by_console(first, course.database, shown)]
    against_rules = list(_taken_against_rules(course))
    with course.step("install --undo and dpkg -P, on both"):
        delivered = {host.name: host.delivered() for host in course.hosts}
        left = [f"{host.name}: {path}" for host in course.hosts for path in sorted(_undo(host))]
    account = settle(
        taken={*course.ledger.accepted(), *(one.name for one in filled)},
        due={*course.ledger.accepted(), *sent_before, *(one.name for one in filled if one.kind in _WAITED)},
        rows=_rows(course.database),
        delivered=[name for names in delivered.values() for name in names],
    )
    return Outcome(
        spans={one.name: course.ledger.between(one.began_at, one.ended_at) for one in course.steps},
        filled=dict(Counter(one.kind for one in filled)),
        sent_meanwhile=len(course.ledger.accepted()),
        delivered={name: len(names) for name, names in delivered.items()},
        put_off_with=dict(course.ledger.refusals()),
        applied=course.applied,
        findings=Findings(
            lost=account.lost,
            twice=account.twice,
            unasked=account.unasked,
            refused_for_good=course.ledger.wrong(),
            given_up=sorted(course.ledger.given_up()),
            told_otherwise=[*told.missing_in(again), *again.untold(filled), *unshown],
            taken_against_rules=against_rules,
            not_said_before=course.unsaid,
            left_behind=left,
        ),
    )


def _deliver_all(database: Database) -> None:
    open_jobs = b"SELECT FROM opensend_milter.jobs WHERE state <> 'uncertain'"
    with database.connect() as connection:
        make_due(connection)
        await_true(lambda: not connection.execute(open_jobs).rowcount, "no job is open", pause_s=0.5)


def _taken_against_rules(course: Course) -> Iterator[str]:
    """Try what suppressions and a key's rules forbid, which the old version has refused."""
    suppressed = mail_named(token("after", "suppressed", 1))
    suppressed.replace_header("To", SUPPRESSED)
    elsewhere = mail_named(token("after", "elsewhere", 1))
    elsewhere.replace_header("To", "b@example.com")
    keys = course.keys
    for host in course.hosts:
        with host.network():
            for mail, key in ((suppressed, keys.plain), (elsewhere, keys.ruled)):
                answer = Smtp(host.tls(), key, keeps=False).send(mail)
                if answer.code != 550:
                    yield f"{host.name}: {mail['To']}: {answer.code} {answer.text}"


def _rows(database: Database) -> list[str]:
    with database.connect() as connection:
        return [str(name) for (name,) in connection.execute("SELECT subject FROM public.emails")]


def _undo(host: MailHost) -> set[str]:
    """Take the installation back, then the package; return what is left of both."""
    host.ours("install", "--undo", "--force")
    host.system.run("dpkg", "-P", "opensend-milter")
    return host.traces()
