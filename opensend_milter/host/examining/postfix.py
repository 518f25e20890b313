"""Checks of our Postfix: its version, the values that hold at our ports, the files it was given."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from opensend_milter.config import Config
from opensend_milter.core.findings import Check, Seen, good, problem, skipped, warning
from opensend_milter.host.examining.postconf import Instance
from opensend_milter.host.examining.postfix_rendered import differences, is_shared, words
from opensend_milter.host.examining.postfix_rules import Place, Rule, rules
from opensend_milter.host.installing import shipped_units
from opensend_milter.host.rendering.postfix import client_connections
from opensend_milter.host.rendering.postfix_files import Service

READABLE = "postfix.configuration"
OLDEST = (3, 6)
SMUGGLING_FIXED: Mapping[tuple[int, ...], tuple[int, ...]] = {
    (3, 5): (3, 5, 23),
    (3, 6): (3, 6, 13),
    (3, 7): (3, 7, 9),
    (3, 8): (3, 8, 4),
}
"""CVE-2023-51764, by release series (postfix.org/smtp-smuggling.html); from 3.9 on it is the default."""

Read = Callable[[], Instance]


def checks(config: Config, directory: Path, read: Read) -> Iterator[Check]:
    """Return the checks of one instance, which is read when the first of them is looked at."""
    yield Check(
        name=READABLE,
        why="what Postfix cannot read it cannot run",
        look=lambda: good(f"{len(read().values)} parameters, {len(read().services)} services in {directory}"),
    )
    looks: tuple[tuple[str, str, Callable[[Config, Instance], Seen], bool], ...] = (
        ("version", "known holes of old versions stay open until Postfix is upgraded", _version, True),
        ("compatibility", "an old level brings old, unsafe defaults back", _compatibility, False),
        ("ports", "a port of the configuration that Postfix does not serve is closed", _ports, False),
        ("milter", "only the milter records a message; over TCP, it believes whoever connects", _milter, True),
        ("programs", "one more port, another program, or one that logs all it hears (-v), is a way around the rest",
         _programs, True),
        ("proxies", "a port that believes the PROXY protocol lets whoever connects say who he is", _proxies, True),
        ("milter-timeouts", "Postfix must wait longer for the milter than that for the database", _timeouts, False),
        ("client-share", "a client address that holds all of a port closes it for the others", _client_share, False),
        ("cleanup-limit", "cleanup measures the queue file, which is larger than the message", _cleanup_limit, False),
        ("rendered", "a change by hand may open a door; one of the configuration holds only when it is rendered",
         _rendered, True),
        ("held", "a held message was taken by Postfix, and by nobody else: its client was told 250", _held, True),
        ("running", "without its master process nothing listens", _running, False),
    )  # fmt: skip
    for name, why, look, security in looks:
        yield Check(
            name=f"postfix.{name}",
            why=why,
            look=partial(_asked, look, config, read),
            security=security,
            needs=READABLE,
        )
    for rule in rules(config):
        yield Check(
            name=f"postfix.{rule.name}",
            why=rule.why,
            look=partial(_obeyed, config, read, rule),
            security=rule.security,
            needs=READABLE,
        )


def _asked(look: Callable[[Config, Instance], Seen], config: Config, read: Read) -> Seen:
    return look(config, read())


def _obeyed(config: Config, read: Read, rule: Rule) -> Seen:
    instance = read()
    if rule.place == "instance" and is_shared(config, instance):
        return skipped("the instance is not ours alone")
    faults, mends, shown = [], [], ""
    for parameter, wanted in rule.wanted.items():
        for service in _heeding(config, instance, rule.place, parameter):
            value = instance.value(parameter, service)
            if value is None:
                return problem(f"this Postfix knows no {parameter}", "apt-get install --only-upgrade postfix")
            shown = f"{parameter} = {value}".rstrip()
            if words(value) not in map(words, wanted):
                faults.append(f"{shown}; expected {wanted[0] or 'nothing'}")
                mends.append(_mend(config, instance, parameter, wanted[0], service))
    if faults:
        return problem("; ".join(dict.fromkeys(faults)), "\n".join(dict.fromkeys(mends)))
    return good(shown if len(rule.wanted) == 1 else f"{len(rule.wanted)} parameters are as they must be")


def _heeding(config: Config, instance: Instance, place: Place, parameter: str) -> list[Service | None]:
    """Return whose values count; None: main.cf's own."""
    doors = instance.doors(config.smtp)
    match place:
        case "smtpd":
            return [*doors]
        case "cleanup":
            return [instance.cleanup_of(door) or door for door in doors]
        case "instance":
            return [None, *(service for service in instance.services if parameter in service.overrides)]


def _mend(config: Config, instance: Instance, parameter: str, value: str, service: Service | None = None) -> str:
    folder = shlex.quote(str(instance.directory))
    if service and parameter in service.overrides:
        if is_shared(config, instance):
            return "opensend-milter install --apply"
        setting = shlex.quote(f"{service.key}/{parameter}")
        return f"postconf -c {folder} -PX {setting} && postfix -c {folder} reload"
    return f"postconf -c {folder} -e {shlex.quote(f'{parameter}={value}')} && postfix -c {folder} reload"


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers: `3.7.11-RC1` is 3, 7, 11."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def judged_version(version: str, *, forbids_bare_newline: bool) -> Seen:
    """Judge a version; distributions close a hole without its number, which the new parameter shows."""
    release = numbers(version)
    upgrade = "apt-get install --only-upgrade postfix"
    if release[:2] < OLDEST:
        return problem(f"Postfix {version}: 3.6 or newer is needed", upgrade)
    fixed = SMUGGLING_FIXED.get(release[:2])
    if fixed and release < fixed:
        if forbids_bare_newline:
            return good(f"Postfix {version}, with the distribution's mend of CVE-2023-51764")
        return problem(
            f"Postfix {version}: CVE-2023-51764 (SMTP smuggling) is mended in {'.'.join(map(str, fixed))}", upgrade
        )
    return good(f"Postfix {version}: no known hole that reaches this instance")


def _version(_: Config, instance: Instance) -> Seen:
    return judged_version(
        instance.values.get("mail_version", ""), forbids_bare_newline="smtpd_forbid_bare_newline" in instance.values
    )


def _compatibility(config: Config, instance: Instance) -> Seen:
    if is_shared(config, instance):
        return skipped("the instance is not ours alone")
    level = instance.values.get("compatibility_level", "0")
    if numbers(level) < OLDEST:
        return problem(f"compatibility_level = {level}", _mend(config, instance, "compatibility_level", "3.6"))
    return good(f"compatibility_level = {level}")


def _ports(config: Config, instance: Instance) -> Seen:
    smtp = config.smtp
    doors = instance.doors(smtp)
    wanted = {"relay_port": smtp.relay_port, "submission_port": smtp.submission_port, "smtps_port": smtp.smtps_port}
    served = sorted(door.port for door in doors)
    missing = [f"smtp.{name} {port}" for name, port in wanted.items() if port and port not in served]
    if missing:
        return problem(f"no service in master.cf for {', '.join(missing)}", "opensend-milter install --apply")
    return good(f"services at {', '.join(map(str, served))}")


def _programs(config: Config, instance: Instance) -> Seen:
    doors, is_ours_alone = instance.doors(config.smtp), not is_shared(config, instance)
    for service in instance.services:
        if service in doors and (service.command, service.arguments) != ("smtpd", ""):
            given = f"{service.command} {service.arguments}".rstrip()
            return problem(f"{service.name} is served by {given}", "opensend-milter install --apply")
        if service not in doors and service.kind == "inet" and is_ours_alone:
            return problem(f"{service.name} is no port of the configuration", "opensend-milter install --apply")
    return good("smtpd at our ports, and no others")


def _proxies(config: Config, instance: Instance) -> Seen:
    name, proxies = "smtpd_upstream_proxy_protocol", config.smtp.proxies
    for door in instance.doors(config.smtp):
        value = instance.value(name, door)
        if value and not proxies:
            return problem(f"port {door.port}: {name} = {value}", _mend(config, instance, name, "", door))
        if value and is_shared(config, instance):
            return problem(
                f"port {door.port}: {name} = {value}, and nothing keeps others from it than the balancers",
                "leave smtp.proxies out, or use a Postfix of our own: opensend-milter install --undo, then --apply",
            )
    if not proxies:
        return good("no port believes the PROXY protocol")
    unit = shipped_units.for_balancers_only(proxies)
    if not unit.path.is_file() or unit.path.read_bytes() != unit.content:
        return warning(
            f"{unit.path} does not keep all but {proxies} from our ports",
            "opensend-milter install --apply   # without systemd it is the firewall's work",
        )
    return good(f"only {proxies} may connect")


def _milter(config: Config, instance: Instance) -> Seen:
    seen = set()
    for door in instance.doors(config.smtp):
        asked = instance.value("smtpd_milters", door) or ""
        kind, _, place = _only_milter(asked).partition(":")
        action = re.search(r"default_action\s*=\s*(\w+)", asked)
        is_ours = kind == "unix" and _seen_from(instance, door, place) == config.milter.socket
        if not is_ours or (action and action[1] != "tempfail"):
            return problem(
                f"port {door.port}: smtpd_milters = {asked or 'nothing'}; the milter is at {config.milter.socket}",
                _wanted_milter(config, instance, door),
            )
        seen.add(asked)
    return good(f"smtpd_milters = {', '.join(sorted(seen))}")


def _only_milter(asked: str) -> str:
    """Return the milter, where one alone is asked; in braces it may have settings of its own."""
    has_settings = asked.startswith("{") and asked.endswith("}")
    first, *others = words(asked[1:-1] if has_settings else asked).split() or [""]
    return "" if "{" in asked[1:] or (others and not has_settings) else first


def _seen_from(instance: Instance, door: Service, place: str) -> Path:
    """Return a path as the rest of the host knows it: a chrooted smtpd begins at the queue directory."""
    queue = instance.path("queue_directory")
    return queue / place.lstrip("/") if door.chroot or not place.startswith("/") else Path(place)


def _wanted_milter(config: Config, instance: Instance, door: Service) -> str:
    socket, queue = config.milter.socket, instance.path("queue_directory")
    if door.chroot and socket.is_relative_to(queue):
        return _mend(config, instance, "smtpd_milters", f"unix:{socket.relative_to(queue)}", door)
    return _mend(config, instance, "smtpd_milters", f"unix:{socket}", door)


_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def _seconds(value: str | None) -> float:
    found = re.fullmatch(r"(\d+)([smhdw]?)", value or "")
    return int(found[1]) * _UNITS[found[2] or "s"] if found else 0.0


def _timeouts(config: Config, instance: Instance) -> Seen:
    least = config.milter.hard_timeout_s
    for door in instance.doors(config.smtp):
        for name in ("milter_command_timeout", "milter_content_timeout"):
            value = instance.value(name, door)
            if _seconds(value) <= least:
                mend = _mend(config, instance, name, f"{int(least) + 5}s", door)
                return problem(f"port {door.port}: {name} = {value}, milter.hard_timeout_s is {least:g}", mend)
    return good(f"longer than milter.hard_timeout_s ({least:g})")


def _client_share(config: Config, instance: Instance) -> Seen:
    name = "smtpd_client_connection_count_limit"
    for door in instance.doors(config.smtp):
        processes, value = instance.processes(door), int(instance.value(name, door) or 0)
        most = client_connections(config, processes)
        if processes and not 0 < value <= most:
            held = f"{value or 'all'} of {processes} connections"
            mend = _mend(config, instance, name, str(most), door)
            return problem(f"port {door.port}: {name} = {value}: one client address may hold {held}", mend)
    return good(f"at most {config.smtp.client_share_percent} % of a port's connections")


def _cleanup_limit(config: Config, instance: Instance) -> Seen:
    for door in instance.doors(config.smtp):
        cleanup = instance.cleanup_of(door)
        value = int(instance.value("message_size_limit", cleanup) or 0)
        if 0 < value < config.size.max_message_bytes * 9 // 8:
            setting = f"message_size_limit={config.size.max_message_bytes * 5 // 4}"
            name = cleanup.name if cleanup else "cleanup"
            folder = shlex.quote(str(instance.directory))
            mend = f"postconf -c {folder} -P {name}/unix/{setting} && postfix -c {folder} reload"
            return problem(f"{name}: message_size_limit = {value}: the largest messages are refused", mend)
    return good("room for the queue file of the largest message")


def _rendered(config: Config, instance: Instance) -> Seen:
    differing = differences(config, instance)
    if differing:
        return warning(f"not as the configuration says: {', '.join(differing)}", "opensend-milter install --apply")
    return good(f"as the configuration says, {len(instance.doors(config.smtp))} ports")


def _held(config: Config, instance: Instance) -> Seen:
    folder = instance.path("queue_directory") / "hold"
    try:
        held = sum(1 for path in folder.rglob("*") if path.is_file())
    except FileNotFoundError:
        return skipped(f"{folder} does not exist")
    if held:
        where = shlex.quote(str(instance.directory))
        mend = f"postqueue -c {where} -p   # then look at each: postcat -c {where} -q ID"
        if is_shared(config, instance):
            return warning(f"{held} held message(s), ours or not", mend)
        return problem(f"{held} held message(s)", mend)
    return good("no held message")


def _running(_: Config, instance: Instance) -> Seen:
    lock = instance.path("queue_directory") / "pid" / "master.pid"
    start = "systemctl start opensend-postfix"
    try:
        pid = int(lock.read_text().split()[0])
    except (FileNotFoundError, ValueError, IndexError):
        return problem(f"no process id in {lock}", start)
    if not _runs(pid):
        return problem(f"process {pid} of {lock} is gone", start)
    return good(f"master is process {pid}")


def _runs(pid: int) -> bool:
    """Not asked of /proc, which may show whoever has no capability no process that has some."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
