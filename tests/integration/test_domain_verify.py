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

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import typer
from typer.testing import CliRunner, Result

from opensend_milter.adapters.dns import DnsResolver
from opensend_milter.app.examining import examination
from opensend_milter.cli import domains
from opensend_milter.config import load
from opensend_milter.core.dns_records import Unanswered
from opensend_milter.core.errors import UsageError
from opensend_milter.core.findings import Result as Ended, chosen, examine
from opensend_milter.host.doctor import Site
from tests.integration.private_postgres import SUPERUSER, Database

DOMAIN = "example.org"
PATIENCE_S = 0.4
KEY = "v=DKIM1; k=rsa; p=" + "A" * 392
MOST_UDP_BYTES = 512


@dataclass(slots=True)
class Zone:
    """What the server says: TXT records by name, each a list of its strings, or how it fails."""

    texts: dict[str, list[list[str]]] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, question: bytes, over: str) -> bytes | None:
        query = dns.message.from_wire(question)
        name = query.question[0].name.to_text(omit_final_dot=True).lower()
        self.asked.append((name, over))
        failure = self.failing.get(name) or self.failing.get("*")
        if failure == "silence":
            return None
        reply = dns.message.make_response(query)
        if failure:
            reply.set_rcode(dns.rcode.from_text(failure))
            return reply.to_wire()
        if name in self.texts:
            strings = [" ".join(f'"{part}"' for part in record) for record in self.texts[name]]
            reply.answer.append(dns.rrset.from_text_list(f"{name}.", 60, "IN", "TXT", strings))
        elif not any(known.endswith(f".{name}") for known in self.texts):
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
    return DnsResolver(server, timeout_s=PATIENCE_S, lifetime_s=2 * PATIENCE_S)


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


@pytest.mark.parametrize("failure", ["SERVFAIL", "REFUSED", "silence"])
def test_a_server_that_fails_is_no_answer(zone: Zone, server: str, failure: str) -> None:
    zone.failing["*"] = failure
    with pytest.raises(Unanswered):
        hasty(server).texts(DOMAIN)
    with pytest.raises(Unanswered):
        hasty(server).exists(DOMAIN)


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


@pytest.fixture
def verifying(database: Database, zone: Zone, server: str, tmp_path: Path) -> Verifying:
    path = tmp_path / "opensend-milter.yaml"
    path.write_text(
        f"database:\n  password_dir: {database.password_dir}\nsmtp:\n  hostname: mail.example.org\n"
        "delivery:\n  courier: ses\n"
    )
    app = typer.Typer()
    app.add_typer(domains.app, name="domain")
    environment = {"DATABASE_URL": database.url, "OPENSEND_MILTER_CONFIG": str(path), "COLUMNS": "200"}

    def invoke(*words: str) -> Result:
        more = ["--nameserver", server] if words[0] == "verify" else []
        return CliRunner().invoke(app, ["domain", *words, *more], env=environment)

    added = invoke("add", DOMAIN)
    assert added.exit_code == 0, added.output
    return Verifying(invoke, zone, environment)


def test_what_is_missing_is_printed_and_nothing_is_verified(verifying: Verifying) -> None:
    result = verifying.invoke("verify", DOMAIN)
    assert result.exit_code == 1
    assert verifying.status() == "not_started"
    assert f'add: _opensend-milter.{DOMAIN}. IN TXT "opensend-milter=' in result.stdout
    assert f'add: {DOMAIN}. IN TXT "v=spf1 include:amazonses.com ~all"' in result.stdout
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
    verifying.zone.texts |= {
        DOMAIN: [["google-site-verification=x"], ["v=spf1 include:amazonses.com ", "include:other.example -all"]],
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
    verifying.zone.texts[DOMAIN] = [[text[:250], *([text[250:]] if text[250:] else [])] for text in texts]
    record = verifying.records("verify", DOMAIN)["spf"]
    assert record["state"] == state
    assert seen in record["seen"]


def test_the_mended_spf_line_keeps_what_was_there(verifying: Verifying) -> None:
    verifying.zone.texts[DOMAIN] = [["v=spf1 mx -all"]]
    line = verifying.records("verify", DOMAIN)["spf"]["line"]
    assert line == f'{DOMAIN}. IN TXT "v=spf1 include:amazonses.com mx -all"'


DKIM = [
    ([], "missing", "no key"),
    (["v=DKIM1; p="], "wrong", "revoked"),
    (["v=DKIM1; k=rsa; p=AAAA"], "wrong", "shorter than 1,024 bits"),
    (["v=DKIM2; p=AAAA"], "wrong", "not DKIM1"),
    (["v=DKIM1; p=not base64!"], "wrong", "no base64"),
    ([KEY, KEY.replace("A", "B")], "wrong", "2 keys"),
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
    verifying.zone.texts[DOMAIN] = [["v=spf1 \\027[2J\\007 include:amazonses.com"]]
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


def test_doctor_tells_which_domains_lack_what(
    verifying: Verifying, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in verifying.environment.items():
        monkeypatch.setenv(name, value)
    path = Path(verifying.environment["OPENSEND_MILTER_CONFIG"])
    site = Site(config=load(path), config_path=path, postfix_dir=path.parent, dovecot_dir=path.parent)

    def seen() -> tuple[Ended, str]:
        with examination(site, server) as checks:
            (found,) = examine(checks, chosen(checks, ["domains.dns"]))
        return found.result, found.seen

    assert seen() == (Ended.SKIPPED, "no domain is verified yet")
    verifying.invoke("verify", DOMAIN, "--assume-verified")
    assert seen() == (Ended.WARNING, "missing or wrong: example.org: spf, dkim, dmarc")
    verifying.zone.texts |= {
        DOMAIN: [["v=spf1 include:amazonses.com -all"]],
        f"s._domainkey.{DOMAIN}": [[KEY[:200], KEY[200:]]],
        f"_dmarc.{DOMAIN}": [["v=DMARC1; p=none"]],
    }
    assert seen()[0] is Ended.GOOD
    verifying.zone.failing["*"] = "SERVFAIL"
    assert seen()[0] is Ended.SKIPPED
