"""Who sends decides which records a domain needs, and how each is judged."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from opensend_milter.app.sender_records import wanted_of
from opensend_milter.config import Config, Delivery, Relay, Smtp
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.dns_records import (
    Keys,
    Record,
    RecordState,
    SesIdentity,
    Unanswered,
    Unasked,
    Wanted,
    dkim,
    records,
)

HOST, DOMAIN = "mail.example.net", "b.example"
TOKEN = "hirjd4exampled5477y22yd23ettobi"
KEY = "v=DKIM1; k=rsa; p=" + "A" * 392


@dataclass(slots=True)
class Silent:
    """Answers nothing, and notes what it was asked for."""

    asked: list[str] = field(default_factory=list)

    def texts(self, name: str) -> list[str]:
        self.asked.append(name)
        raise Unanswered(name)

    def exists(self, name: str) -> bool:
        self.asked.append(name)
        raise Unanswered(name)

    def alias(self, name: str) -> str:
        self.asked.append(name)
        raise Unanswered(name)


def config(courier: CourierName = "smtp", *, relay: str = "127.0.0.1", beside: bool = False) -> Config:
    return Config(
        profile="opensend" if beside else "standalone",
        smtp=Smtp(hostname=HOST),
        relay=Relay(host=relay),
        delivery=Delivery(courier=courier),
    )


BESIDE = [config(name, beside=True) for name in ("smtp", "ses", "sendmail", "plunk", "file")]


def spf_of(wanted: Wanted) -> tuple[str, str]:
    assert isinstance(wanted.spf, str)
    return wanted.spf, wanted.envelope_domain


@pytest.mark.parametrize(
    ("configured", "spf", "envelope"),
    [
        (config(), f"a:{HOST}", DOMAIN),
        (Config(), "mx", DOMAIN),
        (config("sendmail", relay="relay.example.net"), f"a:{HOST}", DOMAIN),
        (config(relay="relay.example.net"), "a:relay.example.net", DOMAIN),
        (Config(delivery=Delivery(bounce_domain="r.example")), "mx", "r.example"),
        (Config(delivery=Delivery(bounce_address="x@r.example")), "mx", "r.example"),
    ],
)
def test_spf_names_the_next_hop_of_what_we_send(configured: Config, spf: str, envelope: str) -> None:
    assert spf_of(wanted_of(configured, DOMAIN, token="t")) == (spf, envelope)


@pytest.mark.parametrize("configured", [*BESIDE, config("ses")])
@pytest.mark.parametrize(
    ("named", "envelope"),
    [
        ("bounce", f"bounce.{DOMAIN}"),
        ("bounce.mail", f"bounce.mail.{DOMAIN}"),
        (f"Bounce.{DOMAIN}.", f"bounce.{DOMAIN}"),
        (f"bounce{DOMAIN}", f"bounce{DOMAIN}.{DOMAIN}"),
        (DOMAIN.upper(), DOMAIN),
    ],
)
def test_ses_has_spf_at_the_return_path_it_was_given(configured: Config, named: str, envelope: str) -> None:
    wanted = wanted_of(configured, DOMAIN, token="t", identity=SesIdentity(return_path=named))
    assert spf_of(wanted) == ("include:amazonses.com", envelope)


@pytest.mark.parametrize("configured", [*BESIDE, config("ses")])
def test_ses_has_a_return_path_of_its_own(configured: Config) -> None:
    """Whatever return path ours would have been."""
    wanted = wanted_of(configured, DOMAIN, token="t", identity=SesIdentity(return_path=" "))
    assert wanted.spf == Unasked("Amazon SES's own return path; DMARC passes by DKIM")
    unread = wanted_of(configured, DOMAIN, token="t").spf
    assert isinstance(unread, Unasked)
    assert unread.state is RecordState.UNKNOWN


@pytest.mark.parametrize("configured", BESIDE)
def test_beside_opensend_it_is_opensend_that_verifies(configured: Config) -> None:
    assert isinstance(wanted_of(configured, DOMAIN, token="t").ownership, Unasked)


@pytest.mark.parametrize("courier", ["smtp", "ses", "sendmail", "plunk", "file"])
def test_alone_the_ownership_record_is_ours_and_the_domains_courier_goes_first(courier: CourierName) -> None:
    wanted = wanted_of(config("file" if courier == "smtp" else "smtp"), DOMAIN, token="t", courier=courier)
    assert wanted.ownership == "t"
    assert isinstance(wanted.spf, str) == (courier in {"smtp", "sendmail"})
    assert isinstance(wanted.dkim, Unasked) == (courier == "file")


def test_nothing_is_asked_for_that_is_not_needed() -> None:
    resolver = Silent()
    found = records(resolver, wanted_of(config("file"), DOMAIN, token=""))
    assert resolver.asked == []
    assert {one.state for one in found} == {RecordState.NOT_NEEDED}
    assert not any(one.is_needed or one.line for one in found)


def test_what_dns_does_not_answer_for_is_unknown_and_still_advised() -> None:
    found = records(Silent(), wanted_of(BESIDE[0], DOMAIN, token="", identity=SesIdentity(tokens=[TOKEN])))
    assert [(one.kind, one.state, bool(one.line)) for one in found] == [
        ("ownership", RecordState.NOT_NEEDED, False),
        ("spf", RecordState.NOT_NEEDED, False),
        ("dkim", RecordState.UNKNOWN, True),
        ("dmarc", RecordState.UNKNOWN, True),
    ]


@dataclass(frozen=True, slots=True)
class One:
    """Has one name."""

    alias_of: str = ""
    keys: list[str] = field(default_factory=list)

    def alias(self, name: str) -> str:
        assert name == f"{TOKEN}._domainkey.{DOMAIN}"
        return self.alias_of

    def texts(self, name: str) -> list[str]:
        assert name == f"{TOKEN}._domainkey.{DOMAIN}"
        return self.keys

    def exists(self, name: str) -> bool:
        raise AssertionError(name)


SES = f"{TOKEN}.dkim.amazonses.com"


@pytest.mark.parametrize(
    ("there", "state", "seen", "advised"),
    [
        (One(SES, [KEY]), RecordState.FOUND, f"key of {TOKEN}", False),
        (One(f"{TOKEN}.dkim.af-south-1.amazonses.com", [KEY]), RecordState.FOUND, f"key of {TOKEN}", False),
        (One(), RecordState.MISSING, f"no CNAME at {TOKEN}", True),
        (One("", [KEY]), RecordState.WRONG, f"a TXT, no CNAME, at {TOKEN}", True),
        (One(f"other.{SES}", [KEY]), RecordState.WRONG, f"CNAME to other.{SES}", True),
        (One(f"x{SES}", [KEY]), RecordState.WRONG, f"CNAME to x{SES}", True),
        (One(f"{SES}.example", [KEY]), RecordState.WRONG, f"CNAME to {SES}.example", True),
        (One(f"{SES}.{DOMAIN}"), RecordState.WRONG, f"CNAME to {SES}.{DOMAIN}", True),
        (One(SES), RecordState.WRONG, f"no key behind the CNAME {TOKEN}", False),
        (One(SES, ["p="]), RecordState.WRONG, f"the key is revoked (p= is empty) behind the CNAME {TOKEN}", False),
    ],
)
def test_a_key_of_ses(there: One, state: RecordState, seen: str, *, advised: bool) -> None:
    wanted = Wanted(
        domain=DOMAIN,
        ownership=Unasked(""),
        envelope_domain=DOMAIN,
        spf=Unasked(""),
        dkim=Keys(advice="", tokens=[TOKEN]),
    )
    line = f"{TOKEN}._domainkey.{DOMAIN}. IN CNAME {SES}." if advised else ""
    name = f"{TOKEN}._domainkey.{DOMAIN}"
    assert dkim(there, wanted) == [Record(kind="dkim", name=name, state=state, seen=seen, line=line)]
