"""Reading addresses: what is shown to a person must be what we judged."""

from __future__ import annotations

from uuid import uuid4

import pytest

from opensend_milter.core.address import (
    NotAnAddressListError,
    all_listings,
    envelope_address,
    envelope_addresses,
    folded,
    listings,
    normal_domain,
    parse_addresses,
    parse_some_addresses,
    quoted,
    same_recipient,
    spellings,
    unicode_domain,
)
from opensend_milter.core.budget import Budget
from opensend_milter.core.model import Address
from opensend_milter.core.words import decode_words
from tests.linear import assert_linear, lines_run


def parsed(value: str) -> list[tuple[str, str]]:
    return [(mailbox.name, mailbox.address) for mailbox in parse_addresses(value, at_most=10)]


@pytest.mark.case(24)
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a@example.org", [("", "a@example.org")]),
        ("a@example.org (Jane Doe)", [("Jane Doe", "a@example.org")]),
        ("a@example.org (=?utf-8?q?J=C3=BCrgen?=)", [("Jürgen", "a@example.org")]),
        ("(office) a@example.org (\\(home\\))", [("office (home)", "a@example.org")]),
        ("Jane (Sales (EU)) Doe <a@example.org> (away)", [("Jane Doe (Sales (EU) away)", "a@example.org")]),
        ("a@example.org (A), (B) b@example.net", [("A", "a@example.org"), ("B", "b@example.net")]),
        ("a@example.org ()", [("", "a@example.org")]),
        ("a@example.org <a@example.org>", [("a@example.org", "a@example.org")]),
        (".a@example.org, b.@example.org", [("", ".a@example.org"), ("", "b.@example.org")]),
        ("A <a..b@example.org>", [("A", "a..b@example.org")]),
        ('"Doe, Jane" <a@example.org>', [("Doe, Jane", "a@example.org")]),
        ("J. Doe <a@example.org>", [("J. Doe", "a@example.org")]),
        ("Jürgen <a@example.org>", [("Jürgen", "a@example.org")]),
        ("=?utf-8?q?J=C3=BCrgen?= <a@example.org>", [("Jürgen", "a@example.org")]),
        ("<@relay1,@relay2:a@example.org>", [("", "a@example.org")]),
        ('"a b"@example.org', [("", '"a b"@example.org')]),
        ("user@[192.0.2.1]", [("", "user@[192.0.2.1]")]),
        ("a@example.org, B <b@example.net>", [("", "a@example.org"), ("B", "b@example.net")]),
        ("Team: a@example.org, b@example.net;", [("", "a@example.org"), ("", "b@example.net")]),
        ("undisclosed-recipients:;", []),
        ("", []),
    ],
)
def test_reads_what_mail_clients_write(value: str, expected: list[tuple[str, str]]) -> None:
    assert parsed(value) == expected


@pytest.mark.case(24)
@pytest.mark.case(28)
@pytest.mark.parametrize(
    "value",
    [
        "alice@example.org)bob@example.com",
        "a@ok)b@evil.example",
        "a@ok(comment)b@evil.example",
        "a@ok.example@evil.example",
        "a@ok.example b@evil.example",
        "<a@ok.example> <b@evil.example>",
        "<a@ok.example",
        "a@ok.example>",
        "a@ok.example.",
        "a@ok .example",
        "a @ok.example",
        "a@",
        "@ok.example",
        "Team: a@ok.example",
        "a@ok.example (never closed",
        "<@route a@ok.example>",
        "just a name",
        "b@evil.example <a@ok.example>",
        "A@ok.example <a@ok.example>",
        "a@ok.example <a@ok.example> <a@ok.example>",
        "a@.ok.example",
        "a@ok..example",
        '."a b"@ok.example',
        "a. b@ok.example",
    ],
)
def test_refuses_what_two_readers_could_read_differently(value: str) -> None:
    with pytest.raises(NotAnAddressListError):
        parse_addresses(value, at_most=10)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[App] <a@example.org>", "'[' outside quotes in the name"),
        ("App ] <a@example.org>", "']' outside quotes in the name"),
        ("App, Inc. <a@example.org>", "',' outside quotes in the name"),
        ('"App, Inc"; x <a@example.org>', "';' outside quotes in the name"),
        ("App @ Home <a@example.org>", "'@' outside quotes in the name"),
        ("App\\ <a@example.org>", "'\\' outside quotes in the name"),
        ("<<a@example.org>>", "'<' outside quotes in the name"),
        ("App ＜a@example.org＞", "U+FF1C in place of '<'"),
        ("App <a@example.org﹥", "U+FE65 in place of '>'"),
        ("App <a@example.org", "'<' without '>'"),
        ("a@example.org>", "unexpected '>' after an address"),
        ('"App <a@example.org>', "a quote that is not closed"),
        ("A\x01 <a@example.org>", "unexpected U+0001"),
        ("A <mailto:a@example.org>", "unexpected ':'"),
        ("A <a@example.org> via B", "unexpected 'via' after an address"),
        ("b@evil.example <a@example.org>", "another address in front of the one between '<' and '>'"),
        ("<>", "unexpected '>'"),
        ("App", "an address without '@'"),
        ("d@example.org, b <c@example.org>, e", "an address without '@'"),
    ],
)
def test_says_which_character_is_wrong(value: str, said: str) -> None:
    with pytest.raises(NotAnAddressListError) as refused:
        parse_addresses(value, at_most=10, plain=True)
    assert str(refused.value) == said


@pytest.mark.parametrize("piece", ['"', '\\"', "(", "\\(", "()", "a@b ", "<", "[", "a" * 50, "＜"])
def test_what_is_wrong_is_said_in_the_time_that_it_takes_to_read(piece: str) -> None:
    def refuse(size: int) -> None:
        with pytest.raises(NotAnAddressListError):
            parse_addresses(f"{piece * size}[ ] <a@b", at_most=10**6, plain=True, budget=Budget.of(10**9))

    assert_linear(refuse, 200)


@pytest.mark.case(24)
@pytest.mark.case(27)
def test_an_encoded_word_never_becomes_an_address() -> None:
    """`=?..?=` is decoded in the display name only, after the address was found."""
    assert parsed("=?utf-8?q?ceo=40bank.example?= <a@example.org>") == [("ceo@bank.example", "a@example.org")]
    with pytest.raises(NotAnAddressListError):
        parse_addresses("=?utf-8?q?a=40example.org?=", at_most=10)


@pytest.mark.case(27)
def test_decoding_leaves_no_control_character() -> None:
    assert decode_words("=?utf-8?q?a=0D=0ABcc:_x=00=E2=80=A8y?=") == "a Bcc: x y"


@pytest.mark.parametrize("word", ["=?no-such-charset?q?caf=C3=A9?=", "=?utf-8?b?Y2Fmw6k?=", "caf\u00e9"])
def test_decodes_as_well_as_it_can(word: str) -> None:
    assert decode_words(word) == "café"


def test_what_cannot_be_decoded_is_shown_as_sent() -> None:
    assert decode_words("=?utf-8?b?!!!!!?=") in {"=?utf-8?b?!!!!!?=", ""}


def test_one_bad_address_hides_no_good_one() -> None:
    found = parse_some_addresses(
        'a@example.org, broken@@x, "b, c" <d@example.net>', at_most=10, budget=Budget.of(1_000)
    )
    assert [mailbox.address for mailbox in found] == ["a@example.org", "d@example.net"]


def test_counts_addresses() -> None:
    with pytest.raises(NotAnAddressListError, match="more than 3"):
        parse_addresses("a@b.c," * 4, at_most=3)


@pytest.mark.case(30)
@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("Example.ORG", "example.org"),
        ("exämple.org", "xn--exmple-cua.org"),
        ("EXÄMPLE.org", "xn--exmple-cua.org"),
        ("exa\u0308mple.org", "xn--exmple-cua.org"),
        ("xn--exmple-cua.org", "xn--exmple-cua.org"),
        ("foo_bar.example.com", "foo_bar.example.com"),
        ("ab--cd.com", "ab--cd.com"),
        ("r3---sn-abc.example", "r3---sn-abc.example"),
        ("xn--zz.example", "xn--zz.example"),
        ("foo_bär.example", "xn--foo_br-fua.example"),
        ("example.org.", None),
        ("example.org。", None),
        ("[192.0.2.1]", None),
        ("localhost", None),
        ("a..b", None),
        ("-a.example", None),
        ("a b.example", None),
        ("", None),
        ("x" * 64 + ".example", None),
        (".".join(["abcdefgh"] * 30), None),
    ],
)
def test_a_domain_has_one_normal_form(domain: str, expected: str | None) -> None:
    assert normal_domain(domain) == expected


@pytest.mark.case(75)
@pytest.mark.parametrize(
    "spelled",
    [
        "ｅxample.net",
        "ＥＸＡＭＰＬＥ．ＮＥＴ",
        "example。net",
        "example｡net",
        "exa\u00admple.net",
        "exa\u200bmple.net",
        "example\u2060.net",
        "exam\ufe0fple.net",
        "ⓔxample.net",
        "𝓮𝔵𝕒𝖒𝗉𝘭𝙚.𝚗𝐞𝑡",
        "example.ne\u1d57",
        "exampl\u2147.net",
    ],
)
def test_a_domain_is_mapped_as_postfix_maps_it(spelled: str) -> None:
    assert normal_domain(spelled) == "example.net"
    assert envelope_address(f"a@{spelled}") == "a@example.net"


@pytest.mark.case(75)
@pytest.mark.parametrize(
    "spelled", ["exam\u200dple.net", "exam\u200cple.net", "ex\u202eample.net", "example／a.net", "\u00ad.net"]
)
def test_what_servers_map_differently_is_no_domain(spelled: str) -> None:
    """A joiner between letters that it does not join, a character that turns the direction, a delimiter in disguise."""
    assert normal_domain(spelled) is None
    assert envelope_address(f"a@{spelled}") is None


def test_dns_has_names_that_idna_2008_forbids() -> None:
    assert normal_domain("☕.example") == "xn--53h.example"
    assert unicode_domain("xn--53h.example") == "☕.example"
    assert normal_domain("نامه\u200cای.example") == "xn--mgba3gch31f060k.example", "there a joiner is a letter"


@pytest.mark.parametrize("shown", ["ｅxample", "ÄB", "ſo", "a\u200bb"])
def test_what_is_mapped_to_another_name_is_no_spelling(shown: str) -> None:
    """DNS may have such a name, and it is another than that to which its letters are mapped."""
    label = "xn--" + shown.encode("punycode").decode().lower()
    assert normal_domain(f"{label}.example") == f"{label}.example"
    assert unicode_domain(f"{label}.example") == f"{label}.example"


def test_a_longer_name_than_any_is_not_looked_at() -> None:
    """The other one is remembered by nobody yet."""
    new = f"{uuid4()}.example"
    assert lines_run(lambda: normal_domain("e." * 1_000)) < lines_run(lambda: normal_domain(new))


def test_two_domains_that_older_rules_mapped_together_stay_two() -> None:
    """IDNA 2003 took ß for ss: then somebody who owns fass.example could send as faß.example."""
    assert normal_domain("faß.example") != normal_domain("fass.example")


LISTED = "suppressed@example.net"


@pytest.mark.case(75)
@pytest.mark.parametrize(
    "spelled",
    [
        "Suppressed@Example.NET",
        "suppressed@ｅxample.net",
        "suppressed@example。net",
        "ｓｕｐｐｒｅｓｓｅｄ@example.net",
        "ſuppreſſed@example.net",
        "sup\u00adpressed@example.net",
        "\u200bsup\u200dpressed\ufeff@example.net",
        "sup\u202epressed@exa\u00admple.net",
        "su\U000e0070ppressed@example.net",
        "ⓢuppressed@example.net",
        "𝓈𝓊𝓅𝓅𝓇ℯ𝓈𝓈ℯ𝒹@example.net",
        "ˢuppressed@example.net",
    ],
)
def test_a_suppressed_address_is_one_in_whatever_letters(spelled: str) -> None:
    address = envelope_address(spelled)
    assert address is not None
    assert folded(Address(spelled)) == folded(address) == LISTED
    assert LISTED in listings(address)


@pytest.mark.case(36)
@pytest.mark.case(75)
def test_other_addresses_are_not_taken_for_it() -> None:
    for other in (
        "suppressed+tag@example.net",
        "suppresséd@example.net",
        "suppressed@exämple.net",
        "ѕuppressed@example.net",
    ):
        assert folded(Address(other)) != LISTED
        assert LISTED not in listings(Address(other))


def test_what_is_folded_stays_so() -> None:
    once = folded(Address("a".join(map(chr, range(0x30000))) + "@example.net"))
    stays = folded(Address(once)) == once
    assert stays


@pytest.mark.case(36)
def test_a_suppressed_address_is_found_in_any_spelling() -> None:
    assert listings(Address("Jane@Example.ORG")) == ("jane@example.org",)
    for one in ("Jane@exämple.org", "jane@xn--exmple-cua.org", "JANE@XN--exmple-cua.org"):
        assert set(listings(Address(one))) == {"jane@exämple.org", "jane@xn--exmple-cua.org"}
    names, domains = ("straße", "strasse"), ("exämple.org", "xn--exmple-cua.org")
    assert set(listings(Address("Straße@exämple.org"))) == {f"{name}@{domain}" for name in names for domain in domains}


@pytest.mark.case(36)
@pytest.mark.parametrize(
    "odd",
    [
        "Jane@Example.NET", "a..b@example.net", ".a@example.net", "a.@example.net", "a@XN--exmple-cua.org",
        "a@exämple.org", "\N{KELVIN SIGN}@example.net", "ſ@example.net", '"a b"@example.net', "a\nb@example.net",
    ],
)  # fmt: skip
def test_all_are_listed_as_each_by_itself(odd: str) -> None:
    usual = Address("Usual@example.net")
    for addresses in ([Address(odd)], [usual, Address(odd)], [Address(odd), usual, usual], [usual, usual]):
        expected = [spelling for address in addresses for spelling in listings(address)]
        assert all_listings(addresses) == expected
    assert all_listings([]) == []


@pytest.mark.case(36)
def test_another_program_may_write_an_address_in_several_ways() -> None:
    assert spellings(Address("Jane@Example.ORG")) == ("jane@example.org",)
    assert set(spellings(Address("jane@exämple.org"))) == {"jane@exämple.org", "jane@xn--exmple-cua.org"}
    assert set(spellings(Address("jane@xn--exmple-cua.org"))) == {"jane@exämple.org", "jane@xn--exmple-cua.org"}
    assert "jane@example.org" not in spellings(Address("jane+tag@example.org"))


@pytest.mark.case(36)
@pytest.mark.parametrize("local", [".a", "a.", "a..b"])
def test_dots_that_belong_in_quotes(local: str) -> None:
    """Mailboxes of such names exist, and everybody but SMTP itself writes them without quotes."""
    address = Address(f"{local}@example.org")
    assert quoted(address) == f'"{local}"@example.org' == quoted(quoted(address))
    assert set(spellings(address)) == {address, quoted(address)}
    assert same_recipient(address) == same_recipient(quoted(address))
    assert envelope_address(quoted(address)) == address
    for other in (Address("a.b@example.org"), Address('"a b"@example.org'), Address("")):
        assert quoted(other) == other


@pytest.mark.case(22)
def test_only_the_domain_is_without_case() -> None:
    assert same_recipient(Address("a@Example.org")) == same_recipient(Address("a@example.ORG"))
    assert same_recipient(Address("A@example.org")) != same_recipient(Address("a@example.org"))


@pytest.mark.case(22)
@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("<a@example.org>", "a@example.org"),
        ("a@example.org", "a@example.org"),
        ('<"a b"@example.org>', '"a b"@example.org'),
        ("<a%b@example.org>", "a%b@example.org"),
        ("<user@[192.0.2.1]>", "user@[192.0.2.1]"),
        ("<jürgen@exämple.org>", "jürgen@exämple.org"),
        ("<jürgen@EXÄMPLE.org>", "jürgen@exämple.org"),
        ("<ｊürgen@ＥＸＡＭＰＬＥ.org>", "ｊürgen@example.org"),
        ("<a@[１92.0.2.1]>", None),
        ("<a@㎒.example>", "a@mhz.example"),
        ("<a@\ufdfa.example>", None),
        ("<" + "ü" * 64 + "@" + ".".join(["漢" * 15] * 5) + ">", None),
        ("<@relay:a@example.org>", "a@example.org"),
        ('<"a"@example.org>', "a@example.org"),
        ("<.a@example.org>", ".a@example.org"),
        ("<a.@example.org>", "a.@example.org"),
        ('<"a..b"@example.org>', "a..b@example.org"),
        ('<"a\\b"@example.org>', "ab@example.org"),
        ('<"a\\"b"@example.org>', '"a\\"b"@example.org'),
        ("<a\\b@example.org>", None),
        ("<=?utf-8?q?b?=@example.org>", None),
        ('<"=\\?utf-8?q?a=40b?="@example.org>', None),
        ("<a=?b?=@example.org>", "a=?b?=@example.org"),
        ("<a(c)@example.org>", None),
        ("<a@example.org.>", None),
        ("<a@b@example.org>", None),
        ("<Jane <a@example.org>>", None),
        ("<>", None),
        ("<postmaster>", None),
        ("<a@b\x00c>", None),
        ("<" + "a" * 400 + "@example.org>", None),
    ],
)
def test_reads_an_envelope_recipient(argument: str, expected: str | None) -> None:
    assert envelope_address(argument) == expected


@pytest.mark.parametrize("end", ["\n", "\\\n", "\r\n"])
@pytest.mark.parametrize("address", ["a@b.example", "<a@b.example>", '"a b"@b.example', '<"a b"@b.example>'])
def test_no_address_holds_a_line_end(address: str, end: str) -> None:
    """The addresses of a message are stored one a line."""
    for place in range(len(address) + 1):
        assert envelope_address(address[:place] + end + address[place:]) is None


def test_no_character_becomes_a_line_end() -> None:
    every = "".join(map(chr, range(0x0B, 0x110000)))
    assert "\n" not in every.lower()
    assert "\n" not in folded(Address(f"{every}@example.net"))


@pytest.mark.case(22)
@pytest.mark.parametrize(
    "said",
    [
        [], ["<b@example.org>"], ["<b@example.org>", "<B@example.org>", "<b@example.org>"],
        ["<b@example.org>", "<b@EXAMPLE.org>"], ["<b@EXAMPLE.org>", "<b@example.org>"],
        ["<b@example.org>", '<"b"@example.org>'], ["b@example.org"], ["<b@example.org"], ["b@example.org>"],
        ["<b@example.org>\n<c@example.org>", "<nobody>"], ["<b@example.org>\n<c@example.org>"], ["<b@example.org>\n"],
        ["<b@x_y.example>", "<b@X_Y.example>"], ["<b@example.org>", "<>"], ["<>", "<nobody>", "<b@example.org>"],
        ["<" + "b" * 308 + "@example.org>"], ["<" + "b" * 309 + "@example.org>"], ["<jürgen@exämple.org>"],
        ["<b@example.org.>"], ["<b@xn--exmple-cua.org>", "<b@exämple.org>"], [""],
    ],
)  # fmt: skip
def test_recipients_are_read_together_as_each_by_itself(said: list[str]) -> None:
    found = [(text, envelope_address(text)) for text in said]
    kept: dict[tuple[str, str], Address] = {}
    for _, address in found:
        if address is not None:
            kept.setdefault(same_recipient(address), address)
    bad = [text for text, address in found if address is None]
    expected = (tuple(kept.values()), bad[-1] if bad else None)
    assert envelope_addresses([text.encode() for text in said]) == expected


@pytest.mark.case(77)
def test_half_of_a_surrogate_pair_is_in_no_address() -> None:
    assert envelope_address("a\ud800@example.org") is None
