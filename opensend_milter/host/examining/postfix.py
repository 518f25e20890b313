"""Checks of our Postfix: its version, the values that hold at our ports, the files it was given."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from opensend_milter.config import Config
from opensend_milter.core.findings import Check, Seen, good, problem, skipped, warning
from opensend_milter.host.examining.postconf import Instance, Service
from opensend_milter.host.examining.postfix_rules import Rule, rules
from opensend_milter.host.rendering.certificates import find_certificate
from opensend_milter.host.rendering.postfix import PostfixSite, client_connections, render_postfix

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
        ("relay", "whoever may send without a key makes an open relay of this host", _relay, True),
        ("hold", "should a message ever pass the milter, it is to wait for a person, not to be sent on", _hold, True),
        ("milter-timeouts", "Postfix must wait longer for the milter than that for the database", _timeouts, False),
        ("client-share", "a client address that holds all of a port closes it for the others", _client_share, False),
        ("cleanup-limit", "cleanup measures the queue file, which is larger than the message", _cleanup_limit, False),
        ("rendered", "a change of the configuration holds only when Postfix is rendered again", _rendered, False),
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
    wrong: dict[str, Service] = {}
    shown = ""
    for door in instance.doors(config.smtp).values():
        service = (instance.cleanup_of(door) if rule.place == "cleanup" else door) or door
        value = instance.value(rule.parameter, service)
        if value is None:
            return problem(f"this Postfix knows no {rule.parameter}", "apt-get install --only-upgrade postfix")
        shown = value
        if value not in {rule.wanted, *rule.also}:
            wrong[f"{rule.parameter} = {value}"] = service
    if not wrong:
        return good(f"{rule.parameter} = {shown}".rstrip())
    mends = [_mend(instance, rule.parameter, rule.wanted, service) for service in wrong.values()]
    return problem("; ".join(wrong) + f"; expected {rule.wanted or 'nothing'}", "\n".join(dict.fromkeys(mends)))


def _mend(instance: Instance, parameter: str, value: str, service: Service | None = None) -> str:
    folder = shlex.quote(str(instance.directory))
    if service and parameter in service.own:
        # postconf puts no white space there; a comma between two restrictions means the same.
        written = re.sub(r",?\s+", ",", value)
        setting = shlex.quote(f"{service.name}/{service.kind}/{parameter}={written}")
        return f"postconf -c {folder} -P {setting} && postfix -c {folder} reload"
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


def _is_shared(config: Config, instance: Instance) -> bool:
    """Tell whether our ports are services of an instance that has others too, and a life of its own."""
    doors = instance.doors(config.smtp)
    return any(service.kind == "inet" and service.port not in doors for service in instance.services)


def _compatibility(config: Config, instance: Instance) -> Seen:
    if _is_shared(config, instance):
        return skipped("the instance is not ours alone")
    level = instance.values.get("compatibility_level", "0")
    if numbers(level) < OLDEST:
        return problem(f"compatibility_level = {level}", _mend(instance, "compatibility_level", "3.6"))
    return good(f"compatibility_level = {level}")


def _ports(config: Config, instance: Instance) -> Seen:
    smtp = config.smtp
    doors = instance.doors(smtp)
    wanted = {"relay_port": smtp.relay_port, "submission_port": smtp.submission_port, "smtps_port": smtp.smtps_port}
    missing = [f"smtp.{name} {port}" for name, port in wanted.items() if port and port not in doors]
    if missing:
        return problem(f"no service in master.cf for {', '.join(missing)}", "opensend-milter install --apply")
    return good(f"services at {', '.join(map(str, sorted(doors)))}")


def _milter(config: Config, instance: Instance) -> Seen:
    seen = set()
    for door in instance.doors(config.smtp).values():
        asked = instance.value("smtpd_milters", door) or ""
        kind, _, place = asked.strip("{} ").split(",")[0].strip().partition(":")
        if not asked:
            return problem(f"port {door.port} asks no milter", _wanted_milter(config, instance, door))
        if kind == "inet":
            return problem(f"port {door.port}: {asked}", _wanted_milter(config, instance, door))
        if kind != "unix" or _seen_from(instance, door, place) != config.milter.socket:
            return problem(
                f"port {door.port}: {asked}, and the milter is at {config.milter.socket}",
                _wanted_milter(config, instance, door),
            )
        action = re.search(r"default_action\s*=\s*(\w+)", asked)
        if action and action[1] != "tempfail":
            return problem(f"port {door.port}: {asked}", _wanted_milter(config, instance, door))
        seen.add(asked)
    return good(f"smtpd_milters = {', '.join(sorted(seen))}")


def _seen_from(instance: Instance, door: Service, place: str) -> Path:
    """Return a path as the rest of the host knows it: a chrooted smtpd begins at the queue directory."""
    queue = instance.path("queue_directory")
    return queue / place.lstrip("/") if door.chroot or not place.startswith("/") else Path(place)


def _wanted_milter(config: Config, instance: Instance, door: Service) -> str:
    socket, queue = config.milter.socket, instance.path("queue_directory")
    if door.chroot and socket.is_relative_to(queue):
        return _mend(instance, "smtpd_milters", f"unix:{socket.relative_to(queue)}", door)
    return _mend(instance, "smtpd_milters", f"unix:{socket}", door)


def _relay(config: Config, instance: Instance) -> Seen:
    wanted = "permit_sasl_authenticated, reject"
    for door in instance.doors(config.smtp).values():
        for name in ("smtpd_relay_restrictions", "smtpd_recipient_restrictions"):
            value = instance.value(name, door) or ""
            words = [word for word in re.split(r"[\s,]+", value) if word]
            if words != wanted.replace(",", "").split():
                return problem(f"port {door.port}: {name} = {value}", _mend(instance, name, wanted, door))
        senders = instance.value("smtpd_sender_restrictions", door) or ""
        if not re.match(r"permit_sasl_authenticated\b", senders) or not re.search(r"\breject$", senders):
            return problem(
                f"port {door.port}: smtpd_sender_restrictions = {senders}",
                _mend(instance, "smtpd_sender_restrictions", wanted, door),
            )
    return good("only whoever is authenticated may send")


def _hold(config: Config, instance: Instance) -> Seen:
    for door in instance.doors(config.smtp).values():
        value = instance.value("smtpd_data_restrictions", door) or ""
        if not re.search(r"static:\s*(?:\{\s*)?HOLD", value):
            mend = _mend(instance, "smtpd_data_restrictions", "check_sender_access static:HOLD", door)
            return problem(f"port {door.port}: smtpd_data_restrictions = {value or 'nothing'}", mend)
    return good("what passes the milter by mistake is held")


_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def _seconds(value: str | None) -> float:
    found = re.fullmatch(r"(\d+)([smhdw]?)", value or "")
    return int(found[1]) * _UNITS[found[2] or "s"] if found else 0.0


def _timeouts(config: Config, instance: Instance) -> Seen:
    least = config.milter.hard_timeout_s
    for door in instance.doors(config.smtp).values():
        for name in ("milter_command_timeout", "milter_content_timeout"):
            value = instance.value(name, door)
            if _seconds(value) <= least:
                mend = _mend(instance, name, f"{int(least) + 5}s", door)
                return problem(f"port {door.port}: {name} = {value}, milter.hard_timeout_s is {least:g}", mend)
    return good(f"longer than milter.hard_timeout_s ({least:g})")


def _client_share(config: Config, instance: Instance) -> Seen:
    name = "smtpd_client_connection_count_limit"
    for door in instance.doors(config.smtp).values():
        most, value = client_connections(config, door.processes), int(instance.value(name, door) or 0)
        if door.processes and not 0 < value <= most:
            held = f"{value or 'all'} of {door.processes} connections"
            mend = _mend(instance, name, str(most), door)
            return problem(f"port {door.port}: one client address may hold {held}", mend)
    return good(f"at most {config.smtp.client_share_percent} % of a port's connections")


def _cleanup_limit(config: Config, instance: Instance) -> Seen:
    for door in instance.doors(config.smtp).values():
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
    if _is_shared(config, instance):
        return skipped("the instance is not ours alone: `opensend-milter install --plan` compares its services")
    log_file = instance.values.get("maillog_file", "")
    pair = find_certificate(config.tls, config.smtp.hostname)
    doors = instance.doors(config.smtp)
    site = PostfixSite(
        config_dir=instance.path("config_directory"),
        queue_dir=instance.path("queue_directory"),
        data_dir=instance.path("data_directory"),
        log_file=Path(log_file) if log_file else None,
        certificate=pair,
        hostname=instance.values.get("myhostname", ""),
        syslog_name=instance.values.get("syslog_name", ""),
    )
    differing = []
    for name, content in render_postfix(config, site).items():
        wanted, found = _lines(content), _lines((instance.directory / name).read_text(errors="replace"))
        differing += sorted({line.split("=")[0].split()[0] for line in wanted ^ found})
    if differing:
        return warning(f"not as the configuration says: {', '.join(differing[:8])}", "opensend-milter install --apply")
    return good(f"as the configuration says, {len(doors)} ports")


def _lines(content: str) -> frozenset[str]:
    """Return the entries of a file; a comment is none, and neither is the number of processes of a service."""
    joined = re.sub(r"\n[ \t]+", " ", re.sub(r"(?m)^[ \t]*(?:#.*\n?|\n)", "", content))
    entries = (" ".join(line.split()) for line in joined.splitlines())
    return frozenset(re.sub(r"^(\S+ inet n - \w -) \d+ smtpd", r"\1 N smtpd", entry) for entry in entries if entry)


def _held(config: Config, instance: Instance) -> Seen:
    folder = instance.path("queue_directory") / "hold"
    try:
        held = sum(1 for path in folder.rglob("*") if path.is_file())
    except FileNotFoundError:
        return skipped(f"{folder} does not exist")
    if held:
        where = shlex.quote(str(instance.directory))
        mend = f"postqueue -c {where} -p   # then look at each: postcat -c {where} -q ID"
        is_shared = _is_shared(config, instance)
        return (
            warning(f"{held} held message(s), ours or not", mend)
            if is_shared
            else problem(f"{held} held message(s)", mend)
        )
    return good("no held message")


def _running(_: Config, instance: Instance) -> Seen:
    lock = instance.path("queue_directory") / "pid" / "master.pid"
    start = "systemctl start opensend-postfix"
    try:
        pid = int(lock.read_text().split()[0])
    except (FileNotFoundError, ValueError, IndexError):
        return problem(f"no process id in {lock}", start)
    if not Path(f"/proc/{pid}").exists():
        return problem(f"process {pid} of {lock} is gone", start)
    return good(f"master is process {pid}")
