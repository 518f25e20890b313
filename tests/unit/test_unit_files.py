"""The unit files say what the rest of the product says."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from opensend_milter.adapters.admin.findings import EVERY
from opensend_milter.config import Config, Console, Smtp
from opensend_milter.host.examining import units
from opensend_milter.host.examining.confinement import UNITS, attempt_all, running_as
from opensend_milter.host.installing import shipped_units
from opensend_milter.servers.web import server
from tests.integration import confined

ROOT = Path(__file__).resolve().parents[2]
SERVICES = sorted(path.name for path in shipped_units.folder().glob("*.service"))
STAYING = [*UNITS.values(), "opensend-dovecot.service", "opensend-postfix.service"]
ROLES: dict[str, tuple[str, ...]] = {
    "opensend-milter.service": ("opensend_milter",),
    "opensend-worker.service": ("opensend_worker",),
    "opensend-http.service": ("opensend_http",),
    # What messages say is read by another role.
    "opensend-console.service": ("opensend_console", "opensend_body_reader"),
    "opensend-prune.service": ("opensend_worker",),
    "opensend-domains.service": ("opensend_worker",),
}
OURS = [*UNITS.values(), "opensend-prune.service", "opensend-domains.service"]


def _seconds(unit: str, name: str) -> float:
    return float(units.read(unit).last(name))


@pytest.mark.parametrize("name", SERVICES)
def test_every_line_is_tried_or_said_not_to_be(name: str) -> None:
    """A restriction that no test applies is named in the documentation."""
    said = (ROOT / "docs" / "units.md").read_text().partition("## What is tested")[2]
    cells = re.findall(r"^\| (`[^|]+`) \|", said, re.MULTILINE)
    not_tried = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert not_tried == set(confined.NOT_TRIED)
    known = confined.APPLIED | set(confined.NOT_TRIED) | confined.OF_A_RUNNING_SYSTEMD
    assert units.read(name).names("Service") - known == set()


@pytest.mark.parametrize("name", OURS)
def test_ours_are_confined_alike(name: str) -> None:
    unit = units.read(name)
    assert unit.last("Group") == "opensend"
    assert unit.words("CapabilityBoundingSet") == []
    assert unit.values("SystemCallFilter") == ["@system-service", "~@privileged @resources"]
    yes = [
        one for one in units.CONFINING if one.startswith(("Private", "Restrict", "Lock")) and unit.last(one) == "yes"
    ]
    assert len(yes) >= 9, yes
    assert unit.words("NoExecPaths") == ["/"]
    assert unit.last("ExecStart").startswith("/usr/bin/opensend-milter ")


@pytest.mark.parametrize("name", SERVICES)
def test_no_memory_is_left_in_a_file(name: str) -> None:
    """Keys and messages are in it, and the certificate's key in Postfix's."""
    assert units.read(name).last("LimitCORE") == "0"


@pytest.mark.parametrize("name", OURS)
def test_a_password_is_handed_over_as_a_file_and_only_its_own(name: str) -> None:
    unit = units.read(name)
    roles = ROLES.get(name, ())
    assert unit.values("LoadCredential") == [f"{role}:/etc/opensend-milter/passwords/{role}" for role in roles]
    assert unit.values("Environment") == (["OPENSEND_MILTER_DATABASE_PASSWORD_DIR=%d"] if roles else [])


def test_only_who_must_reach_the_network_may() -> None:
    alone = {name for name in OURS if units.read(name).last("PrivateNetwork") == "yes"}
    assert alone == {"opensend-milter.service", "opensend-auth-gate.service"}
    assert all(units.read(name).words("RestrictAddressFamilies") == ["AF_UNIX"] for name in alone)


@pytest.mark.parametrize("name", STAYING)
def test_what_stays_is_started_again(name: str) -> None:
    unit = units.read(name)
    assert unit.last("Restart") == "always"
    assert unit.last("StartLimitIntervalSec") == "0"
    assert unit.values("ExecReload")
    assert name not in UNITS.values() or unit.last("RestartPreventExitStatus") == "78"


def test_who_is_stopped_has_the_time_he_was_promised() -> None:
    assert _seconds("opensend-milter.service", "TimeoutStopSec") > Config().milter.drain_s + 5
    assert _seconds("opensend-http.service", "TimeoutStopSec") > server.DRAIN_S + 5


def test_sockets_are_where_the_configuration_has_them() -> None:
    config = Config()
    assert units.read("opensend-auth-gate.socket").last("ListenStream") == str(config.auth.socket)
    assert units.read("opensend-http.socket").last("ListenStream") == f"{config.http.host}:{config.http.port}"
    assert units.read("opensend-auth-gate.socket").last("SocketGroup") == config.auth.socket_group
    assert str(config.milter.socket.parent) in units.read("opensend-milter.service").words("ReadWritePaths")
    assert str(config.milter.spool_dir) in units.read("opensend-milter.service").words("ReadWritePaths")


def test_directories_and_accounts_are_made_for_every_unit() -> None:
    made = {line.split()[1] for line in _lines("opensend-milter.tmpfiles.conf")}
    accounts = {line.split()[1] for line in _lines("opensend-milter.sysusers.conf")}
    for name in OURS:
        unit = units.read(name)
        assert {unit.last("User"), unit.last("Group")} <= accounts
        assert {path.lstrip("-") for path in unit.words("ReadWritePaths")} <= made
    owners = {word for line in _lines("opensend-milter.tmpfiles.conf") for word in line.split()[3:5]}
    assert owners - {"root", "postfix"} <= accounts


@pytest.mark.case(80)
def test_the_gates_socket_has_a_directory_that_is_roots_alone() -> None:
    place = str(Config().auth.socket.parent)
    lines = [line.split() for line in _lines("opensend-milter.tmpfiles.conf")]
    assert [line[2:] for line in lines if line[1] == place] == [["2750", "root", "postfix"]]
    # None that a process of ours may write in is above it, or the same.
    allowed = {path for name in OURS for path in units.read(name).words("ReadWritePaths")}
    assert not [path for path in allowed if Path(place).is_relative_to(path)]


def test_the_target_wants_all_that_stays() -> None:
    wanted = set(units.read("opensend-milter.target").words("Wants"))
    oneshot = {f"opensend-{name}.service" for name in ("certificate", "prune", "domains", "doctor")}
    # Off until it is configured.
    oneshot |= set(shipped_units.CONSOLE)
    assert (
        wanted
        == {
            path.name
            for path in shipped_units.folder().iterdir()
            if path.suffix in {".service", ".socket", ".timer", ".path"}
        }
        - oneshot
    )


def test_the_console_is_wanted_where_it_is_on() -> None:
    config = Config(console=Console(socket=Path("/run/console.sock"), socket_group="web"))
    found = {str(one.path.relative_to("/etc/systemd/system")): one.content for one in shipped_units.drop_ins(config)}
    assert found["opensend-milter.target.d/console.conf"] == (
        b"[Unit]\nWants=opensend-console.socket opensend-console.service opensend-doctor.timer\n"
    )
    assert found["opensend-console.socket.d/listen.conf"] == (
        b"[Socket]\nListenStream=\nListenStream=/run/console.sock\nSocketGroup=web\nSocketMode=0660\n"
    )
    assert not [one for one in shipped_units.drop_ins(Config()) if "console" in str(one.path)]


@pytest.mark.parametrize("actions", [False, True])
def test_the_console_is_handed_the_password_to_act_by_where_it_may(*, actions: bool) -> None:
    config = Config(console=Console(port=8026, actions=actions))
    handed = [one.content for one in shipped_units.drop_ins(config) if b"opensend_console_actor" in one.content]
    assert len(handed) == actions
    assert all(b"\nLoadCredential=opensend_console_actor:/etc/opensend-milter/passwords/" in one for one in handed)


def test_what_the_doctor_found_is_old_when_its_timer_should_have_gone_off_twice() -> None:
    assert units.read("opensend-doctor.timer").last("OnCalendar") == f"*:0/{EVERY // timedelta(minutes=1)}"


def test_an_empty_value_forgets_those_before() -> None:
    unit = units.Unit([units.Directive(section="Service", name="A", value=value) for value in ("x", "", "y z", "w")])
    assert (unit.values("A"), unit.words("A"), unit.last("A"), unit.last("B")) == (
        ["y z", "w"],
        ["y", "z", "w"],
        "w",
        "",
    )


def test_what_confines_is_handed_to_systemd_run() -> None:
    given = units.confining(units.read("opensend-milter.service"))
    assert "PrivateNetwork=yes" in given
    assert "CapabilityBoundingSet=" in given
    assert not [one for one in given if one.startswith(("ExecStart=", "Type=", "LoadCredential="))]


@pytest.mark.parametrize(
    ("said", "service"),
    [
        ("0::/system.slice/opensend-milter.service\n", "serve"),
        ("0::/system.slice/opensend-auth-gate.service\n", "auth-gate"),
        ("0::/user.slice/user-0.slice/session-1.scope\n", None),
        ("0::/system.slice/run-u7.service\n", None),
        ("0::/system.slice/x-opensend-milter.service\n", None),
        ("", None),
    ],
)
def test_a_process_knows_in_which_unit_it_is(said: str, service: str | None, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(said)
    assert running_as(tmp_path / "cgroup") == service
    assert running_as(tmp_path / "none") is None


def test_outside_of_our_units_nothing_is_tried() -> None:
    assert {result.outcome for result in attempt_all(None)} == {"not applicable"}


def _lines(name: str) -> list[str]:
    return [
        line for line in (shipped_units.folder() / name).read_text().splitlines() if line and not line.startswith("#")
    ]


def test_behind_balancers_nobody_else_reaches_postfix() -> None:
    """Their word on the client's address is believed, so only they may give it."""
    config = Config(smtp=Smtp(proxies="192.0.2.0/28 2001:db8::/64"))
    (found,) = [one for one in shipped_units.drop_ins(config) if one.path.name == "proxies.conf"]
    assert found.path.parent.name == "opensend-postfix.service.d"
    assert found.content == b"[Service]\nIPAddressDeny=any\nIPAddressAllow=localhost 192.0.2.0/28 2001:db8::/64\n"
