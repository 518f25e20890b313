"""`domain verify` against a real name server: one of our own on loopback, over UDP and TCP."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import LiteralString

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import typer
from psycopg import sql
from typer.testing import CliRunner, Result

from opensend_milter.adapters.admin.verification import token_of
from opensend_milter.adapters.dns import DnsResolver
from opensend_milter.app.examining import examination
from opensend_milter.cli.records import domains
from opensend_milter.config import load
from opensend_milter.core.dns_records import Unanswered
from opensend_milter.core.errors import UsageError
from opensend_milter.core.findings import Result as Ended, chosen, examine
from opensend_milter.host.examining.host_checks import Site
from tests.integration.private_postgres import SUPERUSER, Database
from tests.waiting import scaled_s

DOMAIN = "example.org"
ANSWER_S = 0.4
HOST, USER = "mail.example.org", "shop"
TOKENS = ["hirjd4exampled5477y22yd23ettobi", "v3rnz522czcl46quexamplek3efo5o6x"]
KEY = "v=DKIM1; k=rsa; p=" + "A" * 392
MOST_UDP_BYTES = 512


@dataclass(slots=True)
class Zone:
    """What the server says: TXT records by name, each a list of its strings, CNAMEs, or how it fails."""

    texts: dict[str, list[list[str]]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, question: bytes, over: str) -> bytes | None:
        query = dns.message.from_wire(question)
        name, kind = query.question[0].name.to_text(omit_final_dot=True).lower(), query.question[0].rdtype
        self.asked.append((name, over))
        failure = self.failing.get(name) or self.failing.get("*")
        if failure == "silence":
            return None
        reply = dns.message.make_response(query)
        if failure:
            reply.set_rcode(dns.rcode.from_text(failure))
            return reply.to_wire()
        while name in self.aliases:
            reply.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", "CNAME", f"{self.aliases[name]}."))
            name = "" if kind == dns.rdatatype.CNAME else self.aliases[name]
        if name in self.texts and kind == dns.rdatatype.TXT:
            strings = [" ".join(f'"{part}"' for part in record) for record in self.texts[name]]
            reply.answer.append(dns.rrset.from_text_list(f"{name}.", 60, "IN", "TXT", strings))
        elif name and not any(f".{known}".endswith(f".{name}") for known in [*self.texts, *self.aliases]):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        wire = reply.to_wire()
        if over == "udp" and len(wire) > MOST_UDP_BYTES:
            reply.answer.clear()
            reply.flags |= dns.flags.TC
            wire = reply.to_wire()
        return wire


class _Server(socketserver.ThreadingMixIn):
    daemon_threads = True
    block_on_close = True
    zone: Zone


class _Udp(_Server, socketserver.UDPServer):
    pass


class _Tcp(_Server, socketserver.TCPServer):
    pass


class _OverUdp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        question, endpoint = self.request
        assert isinstance(self.server, _Udp)
        if reply := self.server.zone.answer(question, "udp"):
            endpoint.sendto(reply, self.client_address)


class _OverTcp(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        (length,) = struct.unpack("!H", self.rfile.read(2))
        assert isinstance(self.server, _Tcp)
        if reply := self.server.zone.answer(self.rfile.read(length), "tcp"):
            self.wfile.write(struct.pack("!H", len(reply)) + reply)


@contextlib.contextmanager
def running(zone: Zone) -> Iterator[str]:
    """Serve a zone on one port of both kinds; yield its address."""
    with _Tcp(("127.0.0.1", 0), _OverTcp) as tcp, _Udp(tcp.server_address, _OverUdp) as udp:
        threads = []
        for server in (tcp, udp):
            server.zone = zone
            threads.append(threading.Thread(target=server.serve_forever, args=(0.02,)))
            threads[-1].start()
        try:
            host, port = tcp.server_address[:2]
            yield f"{host!s}:{port}"
        finally:
            for server in (tcp, udp):
                server.shutdown()
            for thread in threads:
                thread.join()


@pytest.fixture
def zone() -> Zone:
    return Zone()


@pytest.fixture
def server(zone: Zone) -> Iterator[str]:
    with running(zone) as address:
        yield address


# ---------------------------------------------------------------- the resolver


def hasty(server: str) -> DnsResolver:
    """One that is to hear nothing."""
    return DnsResolver(server, timeout_s=scaled_s(ANSWER_S), lifetime_s=scaled_s(2 * ANSWER_S))


def test_split_strings_are_one_text(zone: Zone, server: str) -> None:
    zone.texts[DOMAIN] = [["v=spf1 include:", "amazonses.com ~all"], ["other"]]
    assert sorted(DnsResolver(server).texts(DOMAIN)) == ["other", "v=spf1 include:amazonses.com ~all"]


def test_an_answer_too_long_for_udp_is_fetched_over_tcp(zone: Zone, server: str) -> None:
    long = "x" * 250
    zone.texts[DOMAIN] = [[long, long, long], ["v=spf1 -all"]]
    assert sorted(map(len, DnsResolver(server).texts(DOMAIN))) == [11, 750]
    assert ("example.org", "tcp") in zone.asked


def test_a_name_that_does_not_exist_has_no_texts(zone: Zone, server: str) -> None:
    zone.texts[f"s1._domainkey.{DOMAIN}"] = [[KEY]]
    assert DnsResolver(server).texts("nowhere.example.net") == []
    assert not DnsResolver(server).exists("nowhere.example.net")
    assert DnsResolver(server).texts(f"_domainkey.{DOMAIN}") == []
    assert DnsResolver(server).exists(f"_domainkey.{DOMAIN}"), "it has no record, and there is a name below"


def test_an_alias_is_told_and_followed(zone: Zone, server: str) -> None:
    zone.aliases |= {f"t1.{DOMAIN}": "keys.example.net", f"t2.{DOMAIN}": "nowhere.example.net"}
    zone.texts |= {"keys.example.net": [["a key"]], DOMAIN: [["no alias"]]}
    resolver = DnsResolver(server)
    assert [resolver.alias(name) for name in (f"t1.{DOMAIN}", f"t2.{DOMAIN}", DOMAIN, "nowhere.example.net")] == [
        "keys.example.net",
        "nowhere.example.net",
        "",
        "",
    ]
    assert (resolver.texts(f"t1.{DOMAIN}"), resolver.texts(f"t2.{DOMAIN}")) == (["a key"], [])


@pytest.mark.parametrize("failure", ["SERVFAIL", "REFUSED", "silence"])
def test_a_server_that_fails_is_no_answer(zone: Zone, server: str, failure: str) -> None:
    zone.failing["*"] = failure
    with pytest.raises(Unanswered):
        hasty(server).texts(DOMAIN)
    with pytest.raises(Unanswered):
        hasty(server).alias(DOMAIN)
    with pytest.raises(Unanswered):
        hasty(server).exists(DOMAIN)


def test_all_questions_together_wait_no_longer_than_they_may(zone: Zone, server: str) -> None:
    """Whoever looks at a page of four records does not wait four times."""
    zone.failing["*"] = "silence"
    resolver = DnsResolver(server, timeout_s=scaled_s(ANSWER_S), in_all_s=scaled_s(2 * ANSWER_S))
    with pytest.raises(Unanswered):
        resolver.texts(DOMAIN)
    with pytest.raises(Unanswered):
        resolver.texts("other.example.org")
    assert {name for name, _ in zone.asked} == {DOMAIN}


def test_a_server_that_is_not_there_is_no_answer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(Unanswered):
        hasty(f"127.0.0.1:{port}").texts(DOMAIN)


@pytest.mark.parametrize("text", ["ns.example.org", "192.0.2.1:many", "192.0.2", "[::1"])
def test_a_name_server_is_an_address(text: str) -> None:
    with pytest.raises(UsageError, match="--nameserver"):
        DnsResolver(text)


@pytest.mark.parametrize("name", ["a" * 64 + ".example.org", "a..example.org", ".".join(["abcdefgh"] * 32)])
def test_a_name_that_cannot_be_asked_for(server: str, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be asked for"):
        hasty(server).texts(name)


# ---------------------------------------------------------------- the command


@dataclass(frozen=True, slots=True)
class Verifying:
    """Runs the command on a domain that is not verified yet."""

    invoke: Callable[..., Result]
    zone: Zone
    environment: dict[str, str]
    database: Database
    path: Path

    def configure(self, *, profile: str = "standalone", courier: str = "ses", more: str = "") -> None:
        self.path.write_text(
            f"profile: {profile}\ndatabase:\n  password_dir: {self.database.password_dir}\n"
            f"smtp:\n  hostname: {HOST}\ndelivery:\n  courier: {courier}\n{more}"
        )

    def row(self, assignments: LiteralString, *values: object) -> None:
        """Set columns of the domain's row, as OpenSend would."""
        with self.database.connect() as connection:
            statement = sql.SQL("UPDATE public.domains SET {} WHERE name = %s").format(sql.SQL(assignments))
            assert connection.execute(statement, [*values, DOMAIN]).rowcount == 1

    def found(self, *words: str) -> dict[str, object]:
        result = self.invoke(*words, "--json")
        found = json.loads(result.stdout)
        assert isinstance(found, dict), result.output
        return found

    def records(self, *words: str) -> dict[str, dict[str, str]]:
        listed = self.found(*words)["records"]
        assert isinstance(listed, list)
        return {one["kind"]: one for one in listed}

    def prove(self) -> None:
        """Publish the ownership record that the command asks for."""
        line = self.records("verify", DOMAIN)["ownership"]["line"]
        name, value = line.split(". IN TXT ")
        self.zone.texts[name] = [[value.strip('"')]]

    def status(self) -> str:
        listed = json.loads(self.invoke("list", "--json").stdout)
        return str(next(one["status"] for one in listed if one["name"] == DOMAIN))


def over(database: Database, zone: Zone, server: str, path: Path) -> Verifying:
    """Return it without a configuration and without the domain."""
    app = typer.Typer()
    app.add_typer(domains.app, name="domain")
    environment = {"DATABASE_URL": database.url, "OPENSEND_MILTER_CONFIG": str(path), "COLUMNS": "200"}

    def invoke(*words: str) -> Result:
        more = ["--nameserver", server] if words[0] == "verify" else []
        return CliRunner().invoke(app, ["domain", *words, *more], env=environment)

    return Verifying(invoke, zone, environment, database, path)


@pytest.fixture
def verifying(database: Database, zone: Zone, server: str, tmp_path: Path) -> Verifying:
    made = over(database, zone, server, tmp_path / "opensend-milter.yaml")
    made.configure()
    added = made.invoke("add", DOMAIN)
    assert added.exit_code == 0, added.output
    return made


@pytest.fixture
def beside_opensend(beside: Database, zone: Zone, server: str, tmp_path: Path) -> Verifying:
    """The domain as OpenSend's dashboard makes it. Our own courier is another, and nobody asks it."""
    made = over(beside, zone, server, tmp_path / "opensend-milter.yaml")
    made.configure(profile="opensend", courier="smtp")
    with beside.connect() as connection:
        connection.execute(
            "INSERT INTO public.domains (name, status, user_id, dkim_tokens) VALUES (%s, 'pending', %s, %s)",
            [DOMAIN, USER, json.dumps(TOKENS)],
        )
    return made


def test_what_is_missing_is_printed_and_nothing_is_verified(verifying: Verifying) -> None:
    result = verifying.invoke("verify", DOMAIN)
    assert result.exit_code == 1
    assert verifying.status() == "not_started"
    assert "spf       not needed Amazon SES's own return path" in result.stdout
    assert f'add: _opensend-milter.{DOMAIN}. IN TXT "opensend-milter=' in result.stdout
    assert f'add: _dmarc.{DOMAIN}. IN TXT "v=DMARC1; p=none; rua=mailto:postmaster@{DOMAIN}"' in result.stdout
    assert "dkim      missing" in result.stdout


def test_the_line_that_was_printed_proves_the_owner(verifying: Verifying) -> None:
    verifying.prove()
    found = verifying.found("verify", DOMAIN)
    assert (found["status"], found["proof"], found["note"]) == ("verified", "found", "verified now")
    assert verifying.status() == "verified"
    assert verifying.invoke("verify", DOMAIN).exit_code == 0


def test_the_proof_is_of_one_user_only(verifying: Verifying) -> None:
    """Another user's line, in the same zone, verifies nothing."""
    verifying.prove()
    assert verifying.invoke("add", DOMAIN, "--user", "other").exit_code == 0
    other = verifying.found("verify", DOMAIN, "--user", "other")
    assert (other["status"], other["proof"]) == ("not_started", "wrong")


def test_the_proof_may_stand_among_other_records_and_in_pieces(verifying: Verifying) -> None:
    verifying.prove()
    name = f"_opensend-milter.{DOMAIN}"
    ((value,),) = verifying.zone.texts[name]
    verifying.zone.texts[name] = [["opensend-milter=somebody-else"], [value[:20].upper(), value[20:]]]
    assert verifying.invoke("verify", DOMAIN).exit_code == 0


def test_all_four_are_found(verifying: Verifying) -> None:
    verifying.prove()
    verifying.row("custom_return_path = 'bounce'")
    verifying.zone.texts |= {
        f"bounce.{DOMAIN}": [["site-verification=x"], ["v=spf1 include:amazonses.com ", "include:other.example -all"]],
        f"s2026._domainkey.{DOMAIN}": [[KEY[:200], KEY[200:]]],
        f"_dmarc.{DOMAIN}": [["v=DMARC1; p=reject"]],
    }
    records = verifying.records("verify", DOMAIN, "--selector", "s2026")
    assert {kind: one["state"] for kind, one in records.items()} == dict.fromkeys(
        ("ownership", "spf", "dkim", "dmarc"), "found"
    )
    assert verifying.records("verify", DOMAIN)["dkim"]["state"] == "found", "some selector is there"


SPF = [
    (["v=spf1 a -all"], "wrong", "does not name include:amazonses.com"),
    (["v=spf1 include:amazonses.com -all", "v=spf1 a -all"], "wrong", "2 SPF records"),
    (["v=spf1 include:amazonses.com +all"], "wrong", "lets anybody send"),
    (["v=spf1 include:amazonses.com " + "include:x.example " * 10 + "-all"], "wrong", "11 terms"),
    (["v=spf1 redirect=_spf.example.org"], "found", "redirect"),
    (["v=spf10 include:amazonses.com -all"], "missing", "no SPF"),
    (["V=SPF1 include:amazonses.com ~all"], "found", ""),
]


@pytest.mark.parametrize(("texts", "state", "seen"), SPF, ids=[seen or "upper case" for *_, seen in SPF])
def test_spf(verifying: Verifying, texts: list[str], state: str, seen: str) -> None:
    verifying.row("custom_return_path = 'bounce'")
    verifying.zone.texts[f"bounce.{DOMAIN}"] = [[text[:250], *([text[250:]] if text[250:] else [])] for text in texts]
    record = verifying.records("verify", DOMAIN)["spf"]
    assert record["state"] == state
    assert seen in record["seen"]


def test_the_mended_spf_line_keeps_what_was_there(verifying: Verifying) -> None:
    verifying.row("custom_return_path = 'bounce'")
    verifying.zone.texts[f"bounce.{DOMAIN}"] = [["v=spf1 mx -all"]]
    line = verifying.records("verify", DOMAIN)["spf"]["line"]
    assert line == f'bounce.{DOMAIN}. IN TXT "v=spf1 include:amazonses.com mx -all"'


DKIM = [
    ([], "missing", "no key"),
    (["v=DKIM1; p="], "wrong", "revoked"),
    (["v=DKIM1; k=rsa; p=AAAA"], "wrong", "shorter than 1,024 bits"),
    (["v=DKIM2; p=AAAA"], "wrong", "not DKIM1"),
    (["v=DKIM1; p=not base64!"], "wrong", "no base64"),
    ([KEY, KEY.replace("A", "B")], "wrong", "2 keys"),
    (["v=DKIM1; p="], "wrong", "at s1"),
    (["k=ed25519; p=" + "A" * 44], "found", "s1"),
]


@pytest.mark.parametrize(("texts", "state", "seen"), DKIM, ids=[seen for *_, seen in DKIM])
def test_dkim(verifying: Verifying, texts: list[str], state: str, seen: str) -> None:
    if texts:
        verifying.zone.texts[f"s1._domainkey.{DOMAIN}"] = [[text[:250], text[250:]] for text in texts]
    record = verifying.records("verify", DOMAIN, "--selector", "s1")["dkim"]
    assert record["state"] == state
    assert seen in record["seen"]


DMARC = [
    (f"_dmarc.{DOMAIN}", ["v=DMARC1; rua=mailto:a@b.example"], "wrong", "no policy"),
    (f"_dmarc.{DOMAIN}", ["v=DMARC1; p=none", "v=DMARC1; p=reject"], "wrong", "2 DMARC records"),
    (f"_dmarc.{DOMAIN}", ["v=DMARC10; p=none"], "missing", "no DMARC"),
    (f"_dmarc.{DOMAIN}", ["v = DMARC1 ; p = quarantine"], "found", "quarantine"),
]


@pytest.mark.parametrize(("name", "texts", "state", "seen"), DMARC, ids=[seen for *_, seen in DMARC])
def test_dmarc(verifying: Verifying, name: str, texts: list[str], state: str, seen: str) -> None:
    verifying.zone.texts[name] = [[text] for text in texts]
    record = verifying.records("verify", DOMAIN)["dmarc"]
    assert record["state"] == state
    assert seen in record["seen"]


def test_dmarc_of_the_parent_holds_for_a_subdomain(verifying: Verifying) -> None:
    verifying.invoke("add", f"mail.{DOMAIN}")
    verifying.zone.texts[f"_dmarc.{DOMAIN}"] = [["v=DMARC1; p=reject"]]
    assert verifying.records("verify", f"mail.{DOMAIN}")["dmarc"]["name"] == f"_dmarc.{DOMAIN}"
    assert ("_dmarc.org", "udp") not in verifying.zone.asked


def test_a_server_that_fails_changes_nothing(verifying: Verifying) -> None:
    verifying.prove()
    assert verifying.invoke("verify", DOMAIN).exit_code == 0
    verifying.zone.failing["*"] = "SERVFAIL"
    result = verifying.invoke("verify", DOMAIN, "--withdraw")
    assert result.exit_code == 75
    assert "DNS did not answer" in result.stdout
    assert verifying.status() == "verified"


def test_one_record_that_cannot_be_asked_for_is_unknown(verifying: Verifying) -> None:
    verifying.prove()
    verifying.zone.failing[f"_dmarc.{DOMAIN}"] = "SERVFAIL"
    found = verifying.records("verify", DOMAIN)
    assert (found["ownership"]["state"], found["dmarc"]["state"]) == ("found", "unknown")
    assert verifying.status() == "verified"


def test_a_record_that_is_gone_is_only_warned_of(verifying: Verifying) -> None:
    verifying.prove()
    verifying.invoke("verify", DOMAIN)
    verifying.zone.texts.clear()
    result = verifying.invoke("verify", "--all")
    assert result.exit_code == 0
    assert "warning: verified, and without its ownership record" in result.stdout
    assert verifying.status() == "verified"


def test_it_is_withdrawn_only_where_that_is_asked(verifying: Verifying) -> None:
    verifying.prove()
    verifying.invoke("verify", DOMAIN)
    verifying.zone.texts.clear()
    result = verifying.invoke("verify", DOMAIN, "--withdraw")
    assert result.exit_code == 1
    assert verifying.status() == "pending"


def test_a_closed_network_vouches(verifying: Verifying) -> None:
    result = verifying.invoke("verify", DOMAIN, "--assume-verified")
    assert result.exit_code == 0, result.output
    assert verifying.status() == "verified"
    assert verifying.zone.asked == [], "nothing is looked up"


def test_all_domains_in_one_go(verifying: Verifying) -> None:
    verifying.prove()
    verifying.invoke("add", "other.example.net")
    result = verifying.invoke("verify", "--all", "--json")
    assert result.exit_code == 0
    statuses = {one["name"]: one["status"] for one in json.loads(result.stdout)}
    assert statuses == {DOMAIN: "verified", "other.example.net": "not_started"}


def test_what_dns_says_moves_no_cursor(verifying: Verifying) -> None:
    verifying.zone.texts[f"_dmarc.{DOMAIN}"] = [["v=DMARC1; p=none; rua=\\027[2J\\007"]]
    assert "\x1b" not in verifying.invoke("verify", DOMAIN).stdout


@pytest.mark.parametrize("words", [("verify",), ("verify", DOMAIN, "--all")])
def test_one_or_all(verifying: Verifying, words: tuple[str, ...]) -> None:
    result = verifying.invoke(*words)
    assert result.exit_code == 64
    assert "name one domain, or use --all" in result.stderr


def test_a_timer_runs_as_the_worker_and_tells_what_it_may_not_do(verifying: Verifying, database: Database) -> None:
    """Its unit has the worker's password and no other."""
    verifying.prove()
    verifying.environment["DATABASE_URL"] = database.url.replace(f"{SUPERUSER}:", f"{SUPERUSER}:wrong")
    result = verifying.invoke("verify", "--all")
    assert result.exit_code == 0, result.output
    assert "not_started (nothing was changed: only the owner of the tables may" in result.stdout
    with database.connect() as connection:
        connection.execute("GRANT UPDATE (status) ON public.domains TO opensend_worker")
    assert "verified (verified now)" in verifying.invoke("verify", "--all").stdout


def test_a_domain_that_two_users_have_is_named_by_its_user_or_id(verifying: Verifying) -> None:
    verifying.invoke("add", DOMAIN, "--user", "other")
    result = verifying.invoke("verify", DOMAIN, "--assume-verified")
    assert result.exit_code == 64
    assert "2 domains are called example.org, name one by its id" in result.stderr
    assert verifying.invoke("verify", DOMAIN, "--assume-verified", "--user", "other").exit_code == 0
    listed = json.loads(verifying.invoke("list", "--json").stdout)
    (left,) = [one["id"] for one in listed if one["status"] != "verified"]
    assert verifying.invoke("verify", left, "--assume-verified").exit_code == 0
    unknown = verifying.invoke("verify", "other.example.net")
    assert "no domain other.example.net; known are: example.org" in unknown.stderr


# ---------------------------------------------------------------- who sends decides


@dataclass(frozen=True, slots=True)
class ByTokens:
    """Publishes what the tokens of Amazon SES ask for."""

    zone: Zone

    def publish(self, token: str, *, target: str = "dkim.amazonses.com", key: str = KEY) -> None:
        behind = f"{token}.{target}"
        self.zone.aliases[f"{token}._domainkey.{DOMAIN}"] = behind
        self.zone.texts[behind] = [[key[:250], key[250:]]]


@pytest.fixture
def by_tokens(zone: Zone) -> ByTokens:
    return ByTokens(zone)


def keys_in(found: dict[str, object]) -> list[dict[str, str]]:
    listed = found["records"]
    assert isinstance(listed, list)
    return [one for one in listed if one["kind"] == "dkim"]


def test_beside_opensend_its_dashboard_verifies(beside_opensend: Verifying) -> None:
    """Not we, and not by a record of ours, which nobody is told and DNS is not asked for."""
    result = beside_opensend.invoke("verify", DOMAIN)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{DOMAIN} of user {USER}: pending (verify it in OpenSend's dashboard)\n")
    assert "ownership not needed OpenSend verifies domains, in its dashboard" in result.stdout
    assert "spf       not needed Amazon SES's own return path" in result.stdout
    for token in TOKENS:
        line = f"{token}._domainkey.{DOMAIN}. IN CNAME {token}.dkim.amazonses.com."
        assert f"dkim      missing    no CNAME at {token}\n{'':23}add: {line}\n" in result.stdout
    assert HOST not in result.stdout
    assert not [name for name, _ in beside_opensend.zone.asked if name in {DOMAIN, f"_opensend-milter.{DOMAIN}"}]


def test_beside_opensend_the_status_is_opensends(beside_opensend: Verifying) -> None:
    """Neither the record that would prove it to us nor our word changes it."""
    with beside_opensend.database.connect() as connection:
        token = token_of(connection, USER, DOMAIN)
    beside_opensend.zone.texts[f"_opensend-milter.{DOMAIN}"] = [[f"opensend-milter={token}"]]
    assert beside_opensend.found("verify", DOMAIN)["proof"] == "not needed"
    assert beside_opensend.status() == "pending"
    beside_opensend.row("status = 'verified'")
    beside_opensend.zone.texts.clear()
    assert beside_opensend.invoke("verify", DOMAIN).exit_code == 0
    assert beside_opensend.found("verify", DOMAIN)["note"] == ""


@pytest.mark.parametrize(("option", "status"), [("--assume-verified", "pending"), ("--withdraw", "verified")])
def test_beside_opensend_we_vouch_for_nothing(beside_opensend: Verifying, option: str, status: str) -> None:
    beside_opensend.row("status = %s", status)
    for which in (DOMAIN, "--all"):
        result = beside_opensend.invoke("verify", which, option)
        assert result.exit_code == 64
        assert "profile is opensend, and OpenSend verifies domains: use its dashboard" in result.stderr
    assert beside_opensend.status() == status


def test_beside_opensend_a_domain_needs_no_user_of_ours(beside_opensend: Verifying) -> None:
    beside_opensend.row("user_id = NULL")
    assert beside_opensend.invoke("verify", "--all").exit_code == 0


def test_beside_opensend_without_an_answer_nothing_is_known(beside_opensend: Verifying) -> None:
    beside_opensend.row("status = 'verified'")
    beside_opensend.zone.failing["*"] = "SERVFAIL"
    assert beside_opensend.invoke("verify", DOMAIN).exit_code == 75
    del beside_opensend.zone.failing["*"]
    beside_opensend.zone.failing[f"_dmarc.{DOMAIN}"] = "SERVFAIL"
    assert beside_opensend.invoke("verify", DOMAIN).exit_code == 0


def test_each_key_of_ses_is_judged_by_its_cname(beside_opensend: Verifying, by_tokens: ByTokens) -> None:
    first, second = TOKENS
    by_tokens.publish(first)
    by_tokens.publish(second, target="dkim.eu-central-2.amazonses.com")
    states = [(one["state"], one["line"]) for one in keys_in(beside_opensend.found("verify", DOMAIN))]
    assert states == [("found", ""), ("found", "")], "some regions have a zone of their own"
    by_tokens.publish(second, key="v=DKIM1; p=")
    found = keys_in(beside_opensend.found("verify", DOMAIN))
    assert [one["state"] for one in found] == ["found", "wrong"]
    assert "revoked" in found[1]["seen"]


def test_a_key_that_another_signs_with_is_judged_as_well(beside_opensend: Verifying, by_tokens: ByTokens) -> None:
    for token in TOKENS:
        by_tokens.publish(token)
    found = keys_in(beside_opensend.found("verify", DOMAIN, "--selector", "own"))
    assert [one["state"] for one in found] == ["found", "found", "missing"]
    assert found[2]["name"] == f"own._domainkey.{DOMAIN}"


def test_a_key_that_ses_was_given_is_a_selectors(beside_opensend: Verifying) -> None:
    """The tokens of before are left in the row, and mean nothing then."""
    beside_opensend.row("dkim_origin = 'EXTERNAL', dkim_selector = 'opensend-1a2b3c4d'")
    (found,) = keys_in(beside_opensend.found("verify", DOMAIN))
    assert (found["name"], found["state"]) == (f"opensend-1a2b3c4d._domainkey.{DOMAIN}", "missing")
    assert found["seen"] == "no key at opensend-1a2b3c4d; see OpenSend's dashboard"
    beside_opensend.zone.texts[found["name"]] = [[KEY[:250], KEY[250:]]]
    assert keys_in(beside_opensend.found("verify", DOMAIN))[0]["state"] == "found"


@pytest.mark.parametrize("tokens", [None, "null", '{"0": "a"}'])
def test_without_tokens_the_selectors_are_looked_for(beside_opensend: Verifying, tokens: str) -> None:
    beside_opensend.row("dkim_tokens = %s", tokens)
    (found,) = keys_in(beside_opensend.found("verify", DOMAIN))
    assert (found["state"], found["seen"]) == ("missing", "no selector; see OpenSend's dashboard")


def test_spf_is_of_the_return_path_that_ses_was_given(beside_opensend: Verifying) -> None:
    beside_opensend.row("custom_return_path = 'bounce'")
    found = beside_opensend.records("verify", DOMAIN)["spf"]
    assert (found["state"], found["line"]) == (
        "missing",
        f'bounce.{DOMAIN}. IN TXT "v=spf1 include:amazonses.com ~all"',
    )


def test_a_role_that_may_not_read_what_ses_has_says_so(beside_opensend: Verifying) -> None:
    """The timer's, until the tables' owner has given it the right."""
    with beside_opensend.database.connect() as connection:
        connection.execute("REVOKE SELECT (custom_return_path) ON public.domains FROM opensend_worker")
    url = beside_opensend.database.url
    beside_opensend.environment["DATABASE_URL"] = url.replace(f"{SUPERUSER}:", f"{SUPERUSER}:wrong")
    result = beside_opensend.invoke("verify", "--all")
    assert result.exit_code == 0, result.output
    assert "spf       unknown    this role may not read it: ask as the tables' owner" in result.stdout


def test_the_domains_own_courier_decides(verifying: Verifying) -> None:
    verifying.configure(courier="smtp")
    assert verifying.records("verify", DOMAIN)["spf"]["line"] == f'{DOMAIN}. IN TXT "v=spf1 a:{HOST} ~all"'
    assert verifying.invoke("set", DOMAIN, "--courier", "ses").exit_code == 0
    assert verifying.records("verify", DOMAIN)["spf"]["state"] == "not needed"


def test_plunk_sends_from_a_return_path_of_its_own(verifying: Verifying) -> None:
    verifying.configure(courier="plunk", more="api:\n  uri: https://api.useplunk.com\n")
    found = verifying.records("verify", DOMAIN)
    assert found["ownership"]["state"] == "missing", "whether the user may send from it is still ours to say"
    assert found["spf"]["state"] == "not needed"
    assert found["dkim"]["seen"] == "no selector; see Plunk's dashboard"
    assert HOST not in verifying.invoke("verify", DOMAIN).stdout


def test_what_stays_here_needs_no_records(verifying: Verifying) -> None:
    verifying.configure(courier="file")
    found = verifying.records("verify", DOMAIN)
    assert {kind: one["state"] for kind, one in found.items()} == {
        "ownership": "missing",
        "spf": "not needed",
        "dkim": "not needed",
        "dmarc": "not needed",
    }


# ---------------------------------------------------------------- the doctor

Doctor = Callable[[Verifying], tuple[Ended, str]]


@pytest.fixture
def doctor(server: str, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Returns what `domains.dns` ends with."""

    def seen(there: Verifying) -> tuple[Ended, str]:
        for name, value in there.environment.items():
            monkeypatch.setenv(name, value)
        path = there.path
        site = Site(config=load(path), config_path=path, postfix_dir=path.parent, dovecot_dir=path.parent)
        with examination(site, server) as checks:
            (found,) = examine(checks, chosen(checks, ["domains.dns"]))
        return found.result, found.seen

    return seen


def test_doctor_tells_which_domains_lack_what(verifying: Verifying, doctor: Doctor) -> None:
    verifying.configure(courier="smtp")
    assert doctor(verifying) == (Ended.SKIPPED, "no domain is verified yet")
    verifying.invoke("verify", DOMAIN, "--assume-verified")
    assert doctor(verifying) == (Ended.WARNING, "missing or wrong: example.org: spf, dkim, dmarc")
    verifying.zone.texts |= {
        DOMAIN: [[f"v=spf1 a:{HOST} -all"]],
        f"s._domainkey.{DOMAIN}": [[KEY[:200], KEY[200:]]],
        f"_dmarc.{DOMAIN}": [["v=DMARC1; p=none"]],
    }
    assert doctor(verifying)[0] is Ended.GOOD
    verifying.zone.failing[DOMAIN] = "SERVFAIL"
    assert doctor(verifying) == (Ended.SKIPPED, f"{DOMAIN}: every name server failed (SERVFAIL or refused)")
    del verifying.zone.texts[f"_dmarc.{DOMAIN}"]
    assert doctor(verifying) == (Ended.WARNING, "missing or wrong: example.org: dmarc"), "what is known is told"
    verifying.zone.failing["*"] = "SERVFAIL"
    assert doctor(verifying)[0] is Ended.SKIPPED


def test_doctor_asks_for_what_the_sender_needs(beside_opensend: Verifying, by_tokens: ByTokens, doctor: Doctor) -> None:
    beside_opensend.row("status = 'verified'")
    beside_opensend.zone.texts[f"_dmarc.{DOMAIN}"] = [["v=DMARC1; p=none"]]
    assert doctor(beside_opensend) == (Ended.WARNING, "missing or wrong: example.org: dkim"), "once, for two keys"
    for token in TOKENS:
        by_tokens.publish(token)
    assert doctor(beside_opensend)[0] is Ended.GOOD
    beside_opensend.row("custom_return_path = 'bounce'")
    assert doctor(beside_opensend) == (Ended.WARNING, "missing or wrong: example.org: spf")


def test_doctor_goes_by_the_domains_own_courier(verifying: Verifying, doctor: Doctor) -> None:
    verifying.configure(courier="smtp")
    verifying.invoke("verify", DOMAIN, "--assume-verified")
    assert verifying.invoke("set", DOMAIN, "--courier", "file").exit_code == 0
    assert doctor(verifying)[0] is Ended.GOOD
    assert verifying.zone.asked == []


def test_doctor_tells_what_it_knew_before_dns_fell_silent(verifying: Verifying, doctor: Doctor) -> None:
    """And asks for no further domain: each would cost its time."""
    for name in (DOMAIN, "second.example.net", "third.example.net"):
        verifying.invoke("add", name)
        verifying.invoke("verify", name, "--assume-verified", "--user", "default")
    for failing in ("_domainkey.second.example.net", "_dmarc.second.example.net"):
        verifying.zone.failing[failing] = "SERVFAIL"
    assert doctor(verifying) == (Ended.WARNING, "missing or wrong: example.org: dkim, dmarc")
    assert not [name for name, _ in verifying.zone.asked if "third" in name]
