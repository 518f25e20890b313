"""The milter on its socket: the protocol as Postfix speaks it, and as nobody should."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opensend_milter.adapters.postgres.intake_rows import CHUNK_BYTES
from opensend_milter.core.address import MAX_ADDRESS_OCTETS
from opensend_milter.core.errors import ConfigError
from opensend_milter.host.examining import units
from opensend_milter.host.sandbox.programs import accepts
from opensend_milter.servers.milter import open_socket, reply_lines
from tests.integration.private_postgres import Cluster, Database
from tests.integration.serving import Serving, serving, start
from tests.milter_client import EVERY_STEP, HDR_LEADSPC, Answer, MilterClient
from tests.waiting import PAUSE_S, await_true, scaled_s

MAIL = b"From: App <app@example.org>\r\nTo: to@example.net\r\nSubject: hi\r\n\r\nhello\r\n"
TAKEN = Answer("d")


@pytest.fixture(scope="module")
def served(_shared_cluster: Cluster, _template: Path) -> Iterator[Serving]:
    """One milter for all tests of this module that leave it as it is."""
    _shared_cluster.new_database("milter", template="template_opensend")
    with serving(_shared_cluster.url("milter"), _template) as running:
        yield running
    _shared_cluster.drop_database("milter")


def raw_of(served: Serving) -> bytes:
    """Return the newest message as stored."""
    ((raw,),) = served.rows(
        "SELECT string_agg(bytes, NULL ORDER BY chunk_no) FROM opensend_milter.raw_chunks WHERE email_id ="
        " (SELECT email_id FROM opensend_milter.submissions ORDER BY received_at DESC LIMIT 1)"
    )
    assert isinstance(raw, bytes)
    return raw


def assert_answers(served: Serving) -> None:
    with served.client() as client:
        assert client.message(served.key, MAIL) == TAKEN


def test_a_message_becomes_row_record_raw_bytes_and_job(served: Serving) -> None:
    before = served.counts()
    with served.client() as client:
        assert client.message(served.key, MAIL, "to@example.net", "hidden@example.net", queue_id="4Xabc") == TAKEN
    assert served.counts() == tuple(int(str(count)) + 1 for count in before)
    assert raw_of(served) == MAIL
    ((sender, to, cc, bcc, status, attachments),) = served.rows(
        'SELECT "from", "to", cc, bcc, status, attachments FROM emails ORDER BY created_at DESC LIMIT 1'
    )
    assert (sender, to, cc, bcc, status, attachments) == (
        "App <app@example.org>", ["to@example.net"], [], ["hidden@example.net"], "queued", []
    )  # fmt: skip
    record = served.rows(
        "SELECT queue_id, client_address, sender, recipients, size_bytes, encode(sha256, 'hex') = encode(sha256("
        "(SELECT bytes FROM opensend_milter.raw_chunks r WHERE r.email_id = s.email_id)), 'hex')"
        " FROM opensend_milter.submissions s ORDER BY received_at DESC LIMIT 1"
    )[0]
    assert record == (
        "4Xabc", "192.0.2.7", "app@example.test", ["to@example.net", "hidden@example.net"], len(MAIL), True
    )  # fmt: skip


@pytest.mark.parametrize(("octets", "chunks"), [(CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2), (3 * CHUNK_BYTES, 3)])
def test_large_messages_are_stored_whole_in_chunks(served: Serving, octets: int, chunks: int) -> None:
    lines = MAIL + b"line\r\n" * (octets // 6 + 1)
    raw = lines[: octets - 4] + b"xx\r\n"
    with served.client() as client:
        assert client.message(served.key, raw) == TAKEN
    assert raw_of(served) == raw
    ((found,),) = served.rows(
        "SELECT array_agg(octet_length(bytes) ORDER BY chunk_no) FROM opensend_milter.raw_chunks WHERE email_id ="
        " (SELECT email_id FROM opensend_milter.submissions ORDER BY received_at DESC LIMIT 1)"
    )
    assert isinstance(found, list)
    assert found == [CHUNK_BYTES] * (octets // CHUNK_BYTES) + [octets % CHUNK_BYTES] * (octets % CHUNK_BYTES > 0)
    assert len(found) == chunks


def test_negotiates_white_space_and_silence(served: Serving) -> None:
    with MilterClient(served.socket) as client:
        flags = client.negotiate()
        assert flags & HDR_LEADSPC
        assert flags & 0x80000, "no reply to each piece of the body"


@pytest.mark.parametrize(("actions", "asks"), [(0x1FF, True), (0x0FF, False)])
def test_asks_for_its_macros_where_it_may(served: Serving, actions: int, asks: bool) -> None:  # noqa: FBT001
    with MilterClient(served.socket) as client:
        client.negotiate(actions=actions)
        assert client.asked == ({2: "i {auth_authen} {client_addr} {tls_version} {cipher}"} if asks else {})


@pytest.mark.case(8)
@pytest.mark.parametrize(("version", "actions", "protocol"), [(2, 0x3F, 0x7F), (6, 0x1FF, 0), (6, 0, EVERY_STEP)])
def test_negotiates_with_less(served: Serving, version: int, actions: int, protocol: int) -> None:
    with MilterClient(served.socket) as client:
        client.negotiate(version, actions, protocol)
        assert client.message(served.key, MAIL) == TAKEN


@pytest.mark.case(1)
@pytest.mark.case(2)
@pytest.mark.case(3)
@pytest.mark.parametrize(
    "packet",
    [
        b"\x00\x00",
        struct.pack("!I", 100) + b"M<a@b",
        struct.pack("!I", 0),
        struct.pack("!I", 2**20 + 2) + b"B",
        struct.pack("!I", 2**31 + 5) + b"B",
        struct.pack("!I", 1) + b"\xff",
        struct.pack("!I", 3) + b"?ab",
        struct.pack("!I", 2) + b"Dx",
        struct.pack("!I", 4) + b"DMab",
        struct.pack("!I", 5) + b"Ltoo\x00",
        struct.pack("!I", 2) + b"R\x00",
        struct.pack("!I", 10) + b"L\x00 nobody\x00",
    ],
)
def test_a_broken_packet_ends_only_its_own_connection(served: Serving, packet: bytes) -> None:
    before = served.counts()
    pids = served.children()
    with served.client() as client:
        client.mail(auth=served.key)
        client.socket.sendall(packet)
    with MilterClient(served.socket) as client:
        client.socket.sendall(packet)
    assert_answers(served)
    assert served.children() == pids, "no process died of it"
    assert served.counts() == tuple(int(str(count)) + 1 for count in before)


@pytest.mark.case(4)
def test_odd_macros_change_nothing(served: Serving) -> None:
    with served.client() as client:
        client.mail(auth=served.key, odd={"{x}": b"\xff\xfe%s", "i": b"", "{client_addr}": b"a" * 5_000})
        client.rcpt("<to@example.net>")
        client.header(b"From", b" app@example.org")
        client.body(b"hi\r\n")
        client.send(b"E")
        assert client.answer() == TAKEN


@pytest.mark.case(5)
def test_messages_of_one_connection_share_nothing(served: Serving) -> None:
    with served.client() as client:
        client.mail(auth=served.key)
        client.rcpt("<first@example.net>")
        client.header(b"Subject", b" first")
        client.abort()
        assert client.message(served.key, MAIL, "second@example.net") == TAKEN
        client.mail(auth=served.key)
        client.rcpt("<third@example.net>")
        assert client.message(served.key, MAIL, "fourth@example.net") == TAKEN
        found = served.rows("SELECT recipients FROM opensend_milter.submissions ORDER BY received_at DESC LIMIT 2")
    assert found == [(["fourth@example.net"],), (["second@example.net"],)]
    assert raw_of(served) == MAIL


@pytest.mark.case(6)
def test_abort_after_the_end_is_nothing(served: Serving) -> None:
    before = served.counts()
    with served.client() as client:
        assert client.message(served.key, MAIL) == TAKEN
        client.abort()
        client.abort()
        assert client.message(served.key, MAIL) == TAKEN
    assert served.counts() == tuple(int(str(count)) + 2 for count in before)


@pytest.mark.case(7)
def test_a_connection_may_be_used_for_another_client(served: Serving) -> None:
    """QUIT_NC: the same socket, another SMTP session."""
    with served.client() as client:
        assert client.message(served.key, MAIL) == TAKEN
        client.send(b"K")
        assert client.message("", MAIL).code == 530


@pytest.mark.case(9)
def test_a_slow_peer_keeps_nobody_waiting(served: Serving) -> None:
    slow = MilterClient(served.socket)
    packet = struct.pack("!I", 13) + b"O" + struct.pack("!III", 6, 0x1FF, EVERY_STEP)
    for byte in packet[:6]:
        slow.socket.sendall(bytes([byte]))
        assert_answers(served)
    slow.socket.sendall(packet[6:])
    assert slow.receive()[0] == b"O"
    slow.socket.close()


@pytest.mark.case(10)
@pytest.mark.parametrize("text", ["100 %", "a\r\nb", "nul \x00", "x" * 600, "é\u2028", "", "%" * 500, "word " * 4_000])
def test_any_text_makes_a_lawful_reply(text: str) -> None:
    lines = reply_lines(text)
    assert 1 <= len(lines) <= 8
    for line in lines:
        assert line.isascii()
        assert not set(line) & set("\r\n\x00")
        assert len(line.replace("%%", "%")) <= 400
        assert line.count("%") % 2 == 0


def test_where_nobody_shows_pages_a_refusal_ends_with_its_ref(served: Serving) -> None:
    with served.client() as client:
        answers = [client.message(served.key, b"From: a@other.example\r\n\r\nhi") for _ in range(2)]
    rows = served.rows("SELECT ref, from_domain FROM opensend_milter.refusals ORDER BY id DESC LIMIT 2")
    assert [answer.text[-17:] for answer in reversed(answers)] == [f" (ref {ref})" for ref, _ in rows]
    assert {domain for _, domain in rows} == {"other.example"}
    assert len({ref for ref, _ in rows}) == 2


@pytest.mark.case(10)
@pytest.mark.parametrize("words", [1, 30, 79, 80, 600, 4_000])
@pytest.mark.parametrize("last", [" (ref 7K2MQ0X9TD)", f"; see https://{'long' * 80}.example/r/{'7' * 26}"])
def test_of_a_long_text_the_end_is_told_all_the_same(words: int, last: str) -> None:
    lines = reply_lines("word " * words, last)
    assert len(lines) <= 8
    assert max(map(len, lines)) <= 400
    assert lines[-1].endswith(last.lstrip("; "))
    assert lines[0].startswith("word")


@pytest.mark.case(10)
def test_a_reply_shows_a_percent_sign_once(served: Serving) -> None:
    with served.client() as client:
        raw = b"From: a@100%.example\r\n\r\nhi"
        answer = client.message(served.key, raw)
    assert answer.code == 550
    assert "100%.example" in answer.text.replace("%%", "%")


@pytest.mark.case(11)
def test_a_line_end_split_between_two_pieces(served: Serving) -> None:
    with served.client() as client:
        client.mail(auth=served.key)
        client.rcpt("<to@example.net>")
        client.header(b"From", b" app@example.org")
        for piece in (b"one\r", b"\ntwo\r\n\r", b"\n.", b"\r\n"):
            client.body(piece)
        assert client.end() == TAKEN
    assert raw_of(served) == b"From: app@example.org\r\n\r\none\r\ntwo\r\n\r\n.\r\n"


@pytest.mark.case(12)
@pytest.mark.case(47)
@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        (b"X-Tight", b"no space", b"X-Tight:no space"),
        (b"X-Wide", b" \t  wide  ", b"X-Wide: \t  wide  "),
        (b"X-Folded", b" one\n\ttwo\n  three", b"X-Folded: one\r\n\ttwo\r\n  three"),
        (b"X-Eight", " é".encode(), "X-Eight: é".encode()),
        (b"X-Latin", b" \xe9", b"X-Latin: \xe9"),
        (b"X-Long", b" " + b"y" * 990, b"X-Long: " + b"y" * 990),
        (b"X-Empty", b"", b"X-Empty:"),
    ],
)
def test_header_bytes_are_kept(served: Serving, name: bytes, value: bytes, kept: bytes) -> None:
    with served.client() as client:
        client.mail(auth=served.key)
        client.rcpt("<to@example.net>")
        client.header(b"From", b" app@example.org")
        client.header(name, value)
        client.body(b"hi\r\n")
        assert client.end() == TAKEN
    assert raw_of(served) == b"From: app@example.org\r\n" + kept + b"\r\n\r\nhi\r\n"


@pytest.mark.case(12)
def test_a_header_field_longer_than_a_line_may_be(served: Serving) -> None:
    with served.client() as client:
        client.mail(auth=served.key)
        client.rcpt("<to@example.net>")
        client.header(b"From", b" app@example.org")
        client.header(b"References", b" " + b"\n ".join([b"<" + b"y" * 70 + b">"] * 800))
        assert client.end().code == 554
        assert served.last_refusal() == ("beyond-limits", 554)
        assert client.message(served.key, MAIL) == TAKEN


@pytest.mark.case(13)
def test_utf8_recipient(served: Serving) -> None:
    with served.client() as client:
        assert client.message(served.key, MAIL, "jürgen@exämple.net") == TAKEN
    assert served.rows("SELECT recipients FROM opensend_milter.submissions ORDER BY received_at DESC LIMIT 1") == [
        (["jürgen@exämple.net"],)
    ]


@pytest.mark.case(14)
@pytest.mark.case(15)
@pytest.mark.parametrize(
    ("auth", "code", "rule"),
    [
        ("", 530, "unauthenticated"),
        ("joe@example.org", 550, "not-a-key"),
        ("{3f0f8f3e-5f0e-4c57-9d5c-0b8f5f1d9a11}", 550, "not-a-key"),
        ("3f0f8f3e-5f0e-4c57-9d5c-0b8f5f1d9a11", 550, "key-revoked"),
        ("'; DROP TABLE emails; --", 550, "not-a-key"),
    ],
)
def test_who_is_no_key_stores_nothing(served: Serving, auth: str, code: int, rule: str) -> None:
    before = served.counts()
    with served.client() as client:
        assert client.message(auth, MAIL).code == code
        assert client.message(served.key, MAIL) == TAKEN, "the connection goes on"
    assert served.last_refusal() == (rule, code)
    assert served.counts() == tuple(int(str(count)) + 1 for count in before)


def test_a_key_of_a_network_is_put_off_where_the_mail_server_says_no_client(served: Serving) -> None:
    account = served.account()
    account.rows(
        "INSERT INTO opensend_milter.key_settings (key_id, networks)"
        " SELECT id, '{0.0.0.0/0}' FROM api_keys WHERE user_id = %s"
    )
    with served.client() as client:
        client.mail(auth=account.key)
        client.rcpt("<to@example.net>")
        client.header(b"From", b" app@example.org")
        client.end_of_header()
        answer = client.end(queue_id="4XNOWHERE")
        assert (answer.code, "{client_addr}" in answer.text) == (451, True)
        assert client.message(account.key, MAIL) == TAKEN
    (line,) = (line for line in served.log.splitlines() if "4XNOWHERE" in line)
    assert re.search(r"rule=network-unknown ref=\w{10} lacks=\{client_addr\}", line)


@pytest.mark.case(36)
@pytest.mark.case(37)
def test_suppressed_recipients_refuse_the_message(served: Serving) -> None:
    before = served.counts()
    many = [f"r{number}@example.net" for number in range(49)]
    with served.client() as client:
        for recipients in (["bad@example.net"], ["BAD@Example.NET"], [*many, "bad@example.net"]):
            answer = client.message(served.key, MAIL, *recipients)
            assert answer.code == 550
            assert "(bounced)" in answer.text
        assert client.message(served.key, MAIL, "bad+tag@example.net") == TAKEN
    assert served.counts() == tuple(int(str(count)) + 1 for count in before)


@pytest.mark.case(22)
def test_recipients_as_odd_as_they_may_be(served: Serving) -> None:
    odd = ["a@example.net", "a@EXAMPLE.net", "A@example.net", '"a b"@example.net', "a%b@example.net", "u@[192.0.2.1]"]
    with served.client() as client:
        assert client.message(served.key, MAIL, *odd) == TAKEN
        assert client.message(served.key, MAIL, "no-domain").code == 550
    ((stored,),) = served.rows("SELECT recipients FROM opensend_milter.submissions ORDER BY received_at DESC LIMIT 1")
    assert stored == ["a@example.net", "A@example.net", '"a b"@example.net', "a%b@example.net", "u@[192.0.2.1]"]


def test_a_recipient_may_be_as_long_as_it_is_written(served: Serving) -> None:
    """Wide letters take three octets, until the domain is mapped."""
    labels = 3 * ["b" * 62]
    long = f"{'a' * 64}@{'.'.join(labels)}.example"
    wide = long.replace("b", "\N{FULLWIDTH LATIN SMALL LETTER B}")
    assert len(wide.encode()) > MAX_ADDRESS_OCTETS > len(long)
    with served.client() as client:
        assert client.message(served.key, MAIL, wide) == TAKEN
        assert client.message(served.key, MAIL, long, f"{'a' * 5_000}@example.net").code == 550
        assert client.message(served.key, MAIL, long) == TAKEN
    found = served.rows("SELECT recipients FROM opensend_milter.submissions ORDER BY received_at DESC LIMIT 2")
    assert found == [([long],), ([long],)]


@pytest.mark.case(31)
def test_what_a_keys_domain_may_hold(served: Serving) -> None:
    served.rows(
        "INSERT INTO domains (id, name, status, user_id) VALUES"
        " ('00000000-0000-0000-0000-00000000000a', 'mine.example', 'verified', 'u1'),"
        " ('00000000-0000-0000-0000-00000000000b', 'theirs.example', 'verified', 'u2') RETURNING id"
    )
    cases = {
        "00000000-0000-0000-0000-00000000000a": ("mine.example", True),
        " 00000000-0000-0000-0000-00000000000A ": ("mine.example", True),
        "mine.example": ("mine.example", True),
        "Mine.Example": ("mine.example", True),
        "": ("mine.example", True),
        "00000000-0000-0000-0000-00000000000b": ("theirs.example", False),
        "00000000-0000-0000-0000-0000000000ff": ("mine.example", False),
        "example.org": ("mine.example", False),
    }
    with served.client() as client:
        for number, (held, (domain, taken)) in enumerate(cases.items()):
            ((key,),) = served.rows(
                "INSERT INTO api_keys (name, token_hash, user_id, domain, permission) VALUES"
                " ('k', %s, 'u1', %s, 'full_access') RETURNING id::text",
                f"hash{number}",
                held,
            )
            answer = client.message(str(key), f"From: a@{domain}\r\n\r\nhi".encode())
            assert (answer == TAKEN) == taken, (held, answer)


@pytest.mark.case(44)
def test_a_message_too_large_is_never_cut_short(served: Serving) -> None:
    before = served.counts()
    with served.client() as client:
        assert client.message(served.key, MAIL + b"y" * 76 * 560_000).code == 552
        assert client.message(served.key, MAIL) == TAKEN
    assert served.counts() == tuple(int(str(count)) + 1 for count in before)


def test_a_spooled_message_is_stored_whole(served: Serving) -> None:
    raw = MAIL + (b"z" * 76 + b"\r\n") * 40_000
    with served.client() as client:
        assert client.message(served.key, raw) == TAKEN
    assert raw_of(served) == raw
    assert list((served.directory / "spool").iterdir()) == []


LARGE = MAIL + (b"z" * 76 + b"\r\n") * 40_000


def test_a_spool_that_is_gone_is_451_and_the_connection_goes_on(served: Serving) -> None:
    spool = served.directory / "spool"
    spool.rename(served.directory / "elsewhere")
    try:
        with served.client() as client:
            assert client.message(served.key, LARGE).code == 451
            assert client.message(served.key, MAIL) == TAKEN
    finally:
        (served.directory / "elsewhere").rename(spool)


@pytest.mark.case(84)
@pytest.mark.parametrize("room_kb", [0, 1_500, 3_040])
def test_a_full_spool_is_451_for_that_message_and_a_line_in_the_log(served: Serving, room_kb: int) -> None:
    """Full at once, in the middle, or with what was held back until the end: the last page of a spooled message."""
    spool = served.directory / "spool"
    said = len(served.log)
    before = served.counts()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={max(room_kb, 4)}k", "tmpfs", str(spool)], check=True)
    try:
        if not room_kb:
            (spool / "full").write_bytes(b"x" * 4_096)
        with served.client() as client:
            answer = client.message(served.key, LARGE)
            assert (answer.code, answer.text[4:9]) == (451, "4.3.0")
            assert client.message(served.key, MAIL) == TAKEN
            subprocess.run(["mount", "-o", "remount,size=20m", str(spool)], check=True)
            assert client.message(served.key, LARGE) == TAKEN
    finally:
        await_true(lambda: not subprocess.run(["umount", str(spool)], check=False).returncode, "nothing is held")
    told = served.log[said:]
    assert told.count("status=not-spooled") == told.count("No space left on device") == 1
    assert "Traceback" not in told
    assert served.counts() == tuple(int(str(count)) + 2 for count in before)


@pytest.mark.case(61)
def test_a_thousand_idle_connections(served: Serving) -> None:
    idle = [served.client() for _ in range(400)]
    assert_answers(served)
    for client in idle:
        client.socket.close()
    assert_answers(served)


def send_until(stop: threading.Event, served: Serving, taken: list[str], worker: int) -> None:
    """Send as a patient client: what is not taken is not counted; a broken connection is made again."""
    number = 0
    while not stop.is_set():
        try:
            with MilterClient(served.socket) as client:
                client.negotiate()
                while not stop.is_set():
                    number += 1
                    name = f"{worker}-{number}"
                    answer = client.message(served.key, MAIL, queue_id=name)
                    if answer == TAKEN:
                        taken.append(name)
                    elif answer.text.startswith("421"):  # as Postfix does
                        break
        except OSError:
            stop.wait(PAUSE_S)
        except AssertionError:
            continue


def await_taken(taken: list[str], more: int, served: Serving) -> None:
    enough = len(taken) + more
    await_true(lambda: len(taken) >= enough, lambda: served.log)


def assert_each_once(served: Serving, taken: list[str]) -> None:
    stored = [name for (name,) in served.rows("SELECT queue_id FROM opensend_milter.submissions")]
    assert set(taken) <= set(stored), "every 250 has a row"
    assert len(stored) == len(set(stored)), "and one only"


@pytest.mark.case(55)
@pytest.mark.case(60)
def test_killed_children_and_reloads_lose_nothing(database: Database) -> None:
    taken: list[str] = []
    stop = threading.Event()
    with serving(database.url, database.password_dir) as served:
        clients = [threading.Thread(target=send_until, args=(stop, served, taken, n)) for n in range(20)]
        for client in clients:
            client.start()
        for round_ in range(6):
            await_taken(taken, 20, served)
            if round_ % 2:
                served.process.send_signal(signal.SIGHUP)
            else:
                os.kill(served.children()[0], signal.SIGKILL)
        stop.set()
        for client in clients:
            client.join()
        assert_answers(served)
        assert_each_once(served, [*taken])
        assert served.stop() == 0
        assert "signal SIGKILL" in served.log
        assert "reloaded" in served.log
        assert not served.socket.exists()


@pytest.mark.case(60)
def test_sigterm_under_load_loses_nothing(database: Database) -> None:
    taken: list[str] = []
    stop = threading.Event()
    with serving(database.url, database.password_dir) as served:
        clients = [threading.Thread(target=send_until, args=(stop, served, taken, n)) for n in range(20)]
        for client in clients:
            client.start()
        await_taken(taken, 50, served)
        assert served.stop() == 0
        stop.set()
        for client in clients:
            client.join()
        assert_each_once(served, taken)
        assert "Traceback" not in served.log


@pytest.mark.case(60)
def test_what_is_in_hand_is_answered_though_systemd_stops_us(cluster: Cluster, database: Database) -> None:
    with serving(database.url, database.password_dir) as served, served.client() as client:
        assert client.message(served.key, MAIL) == TAKEN
        cluster.pause()
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(client.message, served.key, MAIL)
            await_true(cluster.is_asked, "the message is in hand")
            # Whom it tells goes by the unit.
            told = [] if units.read("opensend-milter.service").last("KillMode") == "mixed" else served.children()
            for pid in (served.process.pid, *told):
                os.kill(pid, signal.SIGTERM)
            await_true(lambda: "stopping: 2 processes" in served.log, lambda: served.log)
            cluster.resume()
            assert answer.result() == TAKEN
        assert served.stop() == 0
        assert served.counts()[0] == 2


@pytest.mark.case(56)
def test_a_stopped_database_is_451_and_heals_by_itself(cluster: Cluster, database: Database) -> None:
    with serving(database.url, database.password_dir) as served, served.client() as client:
        assert client.message(served.key, MAIL) == TAKEN
        cluster.stop()
        answer = client.message(served.key, MAIL)
        assert (answer.code, answer.text[4:9]) == (451, "4.3.0")
        cluster.start()
        assert client.message(served.key, MAIL) == TAKEN
        assert served.counts() == (2, 2, 2)


@pytest.mark.case(56)
def test_a_hung_database_is_451_in_time(cluster: Cluster, database: Database) -> None:
    """The database stands still until the answer is there."""
    limits: dict[str, object] = {"soft_timeout_s": scaled_s(1), "hard_timeout_s": scaled_s(3)}
    with serving(database.url, database.password_dir, milter=limits) as served, served.client() as client:
        assert client.message(served.key, MAIL) == TAKEN
        cluster.pause()
        assert client.message(served.key, MAIL).code == 451
        cluster.resume()
        assert client.message(served.key, MAIL) == TAKEN
        assert served.counts()[0] in {2, 3}, "a hung COMMIT may have gone through; never twice"


@pytest.mark.case(56)
def test_waits_for_a_database_that_is_not_there_yet(cluster: Cluster, database: Database) -> None:
    with serving(database.url, database.password_dir) as served:
        served.stop()
        cluster.stop()
        again = start(served.directory, served.url)
        try:
            await_true(lambda: "waiting for the database" in served.log, lambda: served.log)
            assert not served.socket.exists()
            cluster.start()
            # It is there a moment before anybody listens.
            await_true(lambda: accepts(served.socket), lambda: served.log)
            assert_answers(served)
        finally:
            again.kill()
            again.wait()


@pytest.mark.case(48)
def test_a_key_revoked_on_an_open_connection(database: Database) -> None:
    with serving(database.url, database.password_dir) as served, served.client() as client:
        assert client.message(served.key, MAIL) == TAKEN
        served.rows("DELETE FROM api_keys RETURNING id")
        answer = client.message(served.key, MAIL)
        assert answer.code == 550
        assert "revoked" in answer.text
        assert served.counts()[0] == 1


def test_no_directory_is_made_for_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "milter.sock"
    with pytest.raises(ConfigError, match=rf"milter\.socket: {path}: No such file"):
        open_socket(path, None)
    assert not path.parent.exists()


def test_a_bad_configuration_is_not_loaded(database: Database) -> None:
    with serving(database.url, database.password_dir) as served:
        config = served.directory / "config.yaml"
        config.write_text("milter: {processes: many}")
        served.process.send_signal(signal.SIGHUP)
        await_true(lambda: "the old configuration stays" in served.log, lambda: served.log)
        assert "milter.processes" in served.log
        assert_answers(served)
