"""The auth gate between a client that speaks as Postfix does and a real, or a misbehaving, Dovecot."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from opensend_milter.adapters.admin.store import AdminStore
from tests.integration.gate_sides import HANG_UP, LEAST_S, Client, Gate, Real, Upstream, connects, encoded
from tests.integration.private_postgres import Database
from tests.waiting import await_found, await_true, patience_s


@contextmanager
def short_directory() -> Iterator[Path]:
    """A unix socket path holds 107 bytes; Dovecot's users must be able to enter."""
    directory = Path(tempfile.mkdtemp(prefix="os-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


# ---------------------------------------------------------------------- a Dovecot that misbehaves


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    """One for all who only talk to it."""
    with short_directory() as directory:
        gate = Gate(directory)
        # Of one client, who fails more often than anybody may.
        gate.write_config(limits={"failed_per_minute": 0})
        with gate.running():
            yield gate
        assert "Traceback" not in gate.log


@pytest.fixture
def upstream(gate: Gate) -> Iterator[Upstream]:
    upstream = Upstream(gate.dovecot_socket)
    yield upstream
    upstream.close()
    gate.dovecot_socket.unlink()


@pytest.fixture
def client(gate: Gate) -> Iterator[Client]:
    client = gate.client()
    yield client
    client.close()


def test_the_greeting_needs_no_dovecot(client: Client) -> None:
    assert client.greeting[0] == "VERSION\t1\t2"
    assert {"MECH\tPLAIN\tplaintext", "MECH\tLOGIN\tplaintext"} <= set(client.greeting)


def test_without_dovecot_the_gate_hangs_up(short_dir: Path) -> None:
    gate = Gate(short_dir)
    gate.write_config()
    with gate.running():
        client = gate.client()
        assert client.plain("os_key") == HANG_UP
        client.close()
        assert "1 logins put off" in gate.log
        assert connects(gate.socket)


@pytest.mark.parametrize(
    "answer",
    [
        b"FAIL\t1\tuser=apikey\tcode=temp_fail\n",
        b"FAIL\t1\tuser=apikey\ttemp\n",
        b"",
        b"OK\t1\n",
        b"FAIL\t1",
        b"x" * 100_000 + b"\n",
    ],
    ids=["code=temp_fail", "temp", "end of file", "ok without user", "cut", "endless line"],
)
@pytest.mark.case(56)
def test_a_temporary_failure_is_a_hang_up(upstream: Upstream, client: Client, answer: bytes) -> None:
    upstream.answer = answer
    assert client.plain("os_key") == HANG_UP


@pytest.mark.case(56)
def test_a_temporary_failure_that_passes_is_seen_by_nobody(upstream: Upstream, client: Client) -> None:
    """After a restart of Postgres each of Dovecot's connections fails once."""
    upstream.first = [b"FAIL\t1\tuser=apikey\tcode=temp_fail\n"] * 3
    upstream.answer = b"OK\t1\tuser=the-key\n"
    assert client.plain("os_key") == "OK\t1\tuser=the-key"


def test_silence_is_a_hang_up(upstream: Upstream, client: Client) -> None:
    upstream.answer = None
    assert client.plain("os_key") == HANG_UP
    assert any(line.startswith("AUTH") for line in upstream.heard), "it was asked, and did not answer"


def test_dovecot_is_asked_for_a_constant_user_and_a_trimmed_key(upstream: Upstream, client: Client) -> None:
    upstream.answer = b"OK\t1\tuser=the-id\toriginal_user=apikey\n"
    assert client.plain(" os_key\r\n\t", user="somebody", authzid="admin") == "OK\t1\tuser=the-id"
    request = next(line for line in upstream.heard if line.startswith("AUTH"))
    assert request.endswith("\tresp=" + encoded(b"\0apikey\0os_key"))
    assert "\tservice=smtp\tnologin\tlip=127.0.0.1\trip=127.0.0.1\tsecured\t" in request


def test_each_question_has_a_process_number_of_its_own(upstream: Upstream, client: Client) -> None:
    upstream.answer = b"OK\t1\tuser=x\n"
    for _ in range(3):
        client.plain("os_key")
    numbers = [line for line in upstream.heard if line.startswith("CPID")]
    assert len(set(numbers)) == 3


@pytest.mark.parametrize(
    "response",
    [
        b"\0apikey\0",
        b"\0apikey\0  \t ",
        b"apikey\0os_key",
        b"os_key",
        b"",
        b"\0apikey\0os\0key",
        b"\0apikey\0\xff\xfe",
        b"\0apikey\0" + b"x" * 5000,
        "!!!not base64!!!",
        "AGFwaWtleQBvc19rZXk",
        "=",
        "ä",
    ],
    ids=["empty", "blank", "one NUL", "no NUL", "nothing", "NUL inside", "no UTF-8", "5000 bytes", "no base64",
         "no padding", "equals sign", "no ASCII"],
)  # fmt: skip
@pytest.mark.case(23)
def test_what_can_never_be_a_key_is_refused_without_asking(
    upstream: Upstream, client: Client, response: bytes | str
) -> None:
    assert client.auth("PLAIN", response) == client.refused
    assert not [line for line in upstream.heard if line.startswith("AUTH")]
    upstream.answer = b"OK\t1\tuser=x\n"
    assert client.plain("os_key") == f"OK\t{client.number}\tuser=x"


def test_an_unknown_mechanism_is_refused(client: Client) -> None:
    assert client.auth("CRAM-MD5") == client.refused


@pytest.mark.case(23)
def test_plain_without_an_initial_response(upstream: Upstream, client: Client) -> None:
    upstream.answer = b"OK\t1\tuser=x\n"
    assert client.auth("PLAIN") == "CONT\t1\t"
    assert client.go_on(b"\0apikey\0os_key") == "OK\t1\tuser=x"


@pytest.mark.parametrize("initial", [None, b"whoever"])
@pytest.mark.case(23)
def test_login_ignores_the_name_and_trims_the_key(upstream: Upstream, client: Client, initial: bytes | None) -> None:
    upstream.answer = b"OK\t1\tuser=x\n"
    question = client.auth("LOGIN", initial)
    if initial is None:
        assert question == "CONT\t1\t" + encoded(b"Username:")
        question = client.go_on(b"whoever")
    assert question == "CONT\t1\t" + encoded(b"Password:")
    assert client.go_on(b" os_key ") == "OK\t1\tuser=x"
    assert any(line.endswith("resp=" + encoded(b"\0apikey\0os_key")) for line in upstream.heard)


def test_a_new_exchange_takes_the_place_of_one_given_up(upstream: Upstream, client: Client) -> None:
    upstream.answer = b"OK\t1\tuser=x\n"
    client.auth("LOGIN")
    client.auth("LOGIN")
    client.say(f"CONT\t1\t{encoded(b'of the first')}")
    assert client.go_on(b"whoever") == "CONT\t2\t" + encoded(b"Password:")


def test_an_endless_line_ends_the_connection(gate: Gate, client: Client) -> None:
    client.say("x" * 200_000)
    assert client.hear() == HANG_UP
    assert connects(gate.socket)


# ---------------------------------------------------------------------- the process


def test_a_second_gate_does_not_take_the_socket(gate: Gate) -> None:
    done = subprocess.run(gate.command, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "auth.socket" in done.stderr
    assert "another program listens there" in done.stderr
    assert connects(gate.socket)


def test_the_socket_is_for_the_group_and_gone_at_the_end(short_dir: Path) -> None:
    gate = Gate(short_dir)
    gate.write_config()
    with gate.running() as process:
        assert gate.socket.stat().st_mode & 0o777 == 0o660
        if not os.geteuid():
            assert gate.socket.group() == "postfix"
    assert process.returncode == 0
    assert not gate.socket.exists()
    assert "listening on" in gate.log


def test_a_socket_that_was_left_behind_is_replaced(short_dir: Path) -> None:
    gate = Gate(short_dir)
    gate.write_config()
    with gate.running() as process:
        process.kill()
        process.wait()
    assert gate.socket.exists()
    with gate.running():
        gate.client().close()


def test_a_file_in_the_place_of_the_socket_stays(short_dir: Path) -> None:
    gate = Gate(short_dir)
    gate.write_config()
    gate.socket.write_text("precious")
    done = subprocess.run(gate.command, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert gate.socket.read_text() == "precious"


def test_no_directory_is_made_for_the_socket(short_dir: Path) -> None:
    """Who may write in it, and put another socket there, is not for the gate to say."""
    gate = Gate(short_dir)
    gate.socket = short_dir / "nowhere" / "gate.sock"
    gate.write_config()
    done = subprocess.run(gate.command, capture_output=True, text=True, check=False, timeout=patience_s())
    assert done.returncode == 78
    assert f"auth.socket: {gate.socket}: No such file or directory" in done.stderr
    assert not gate.socket.parent.exists()


# ---------------------------------------------------------------------- Cyrus SASL asks


@pytest.fixture(scope="module")
def saslauthd() -> Iterator[Gate]:
    """A gate that answers as saslauthd does."""
    with short_directory() as directory:
        gate = Gate(directory)
        gate.write_config("saslauthd")
        with gate.running():
            yield gate
        assert "Traceback" not in gate.log


@pytest.fixture
def behind(saslauthd: Gate) -> Iterator[Upstream]:
    upstream = Upstream(saslauthd.dovecot_socket)
    yield upstream
    upstream.close()
    saslauthd.dovecot_socket.unlink()


def counted(*words: bytes) -> bytes:
    return b"".join(len(word).to_bytes(2) + word for word in words)


@contextmanager
def asking(gate: Gate, question: bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as endpoint:
        endpoint.settimeout(patience_s())
        endpoint.connect(str(gate.socket))
        endpoint.sendall(question)
        yield endpoint


def answered(gate: Gate, *words: bytes) -> bytes:
    with asking(gate, counted(*words)) as endpoint:
        return endpoint.makefile("rb").read()


YES, NO = counted(b"OK"), counted(b"NO")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ((b"the-id", b"os_key", b"smtp", b""), YES),
        ((b"the-id", b" os_key\r\n", b"", b""), YES),
        ((b"another-id", b"os_key", b"smtp", b""), NO),
        ((b"apikey", b"os_key", b"smtp", b""), NO),
        ((b"", b"os_key", b"smtp", b""), NO),
        ((b"the-id", b"os_key", b"smtp", b"example.org"), NO),
        ((b"the-id\0", b"os_key", b"smtp", b""), NO),
        ((b"\xff", b"os_key", b"smtp", b""), NO),
        ((b"the-id" * 10_000, b"os_key", b"smtp", b""), NO),
    ],
)
def test_a_key_is_good_under_its_own_id_only(
    saslauthd: Gate, behind: Upstream, words: tuple[bytes, ...], answer: bytes
) -> None:
    behind.answer = b"OK\t1\tuser=the-id\n"
    assert answered(saslauthd, *words) == answer
    assert behind.heard[-1].endswith("\tresp=" + encoded(b"\0apikey\0os_key"))


def test_a_wrong_key_is_a_no(saslauthd: Gate, behind: Upstream) -> None:
    behind.answer = b"FAIL\t1\tuser=apikey\n"
    assert answered(saslauthd, b"the-id", b"os_key", b"smtp", b"") == NO


@pytest.mark.parametrize("password", [b"", b"  ", b"\xff\xfe", b"x" * 2_000, b"x" * 65_535])
def test_what_can_be_no_key_is_a_no_without_asking(saslauthd: Gate, behind: Upstream, password: bytes) -> None:
    assert answered(saslauthd, b"the-id", password, b"smtp", b"") == NO
    assert behind.heard == []


@pytest.mark.case(56)
def test_nothing_is_said_as_long_as_nobody_knows(saslauthd: Gate, behind: Upstream) -> None:
    """A hang-up would be 535 to Sendmail's client."""
    behind.first, behind.answer = [b"", b"FAIL\t1\tcode=temp_fail\n", b""], b"OK\t1\tuser=the-id\n"
    assert answered(saslauthd, b"the-id", b"os_key", b"smtp", b"") == YES
    assert len([line for line in behind.heard if line.startswith("AUTH")]) == 4


def test_who_goes_away_is_not_asked_for_any_more(saslauthd: Gate) -> None:
    before = saslauthd.log.count("outcome=outage")
    with asking(saslauthd, counted(b"the-id", b"os_key", b"smtp", b"")):
        await_true(lambda: "logins put off" in saslauthd.log, lambda: saslauthd.log)
    await_true(lambda: saslauthd.log.count("outcome=outage") > before, lambda: saslauthd.log)


@pytest.mark.parametrize(
    "question", [b"", b"\0", b"\0\3ab", counted(b"the-id", b"os_key", b"smtp"), b"\xff\xff" + b"x" * 9]
)
def test_half_a_question_is_none(saslauthd: Gate, behind: Upstream, question: bytes) -> None:
    with asking(saslauthd, question) as endpoint:
        endpoint.shutdown(socket.SHUT_WR)
        assert endpoint.recv(16) == b""
    assert behind.heard == []


# ---------------------------------------------------------------------- the real Dovecot

needs_dovecot = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("dovecot", path="/usr/sbin:/usr/bin"), reason="Dovecot and root are needed"
)


@contextmanager
def standing(gate: Gate, database: Database) -> Iterator[Real]:
    gate.write_config(database={"password_dir": str(database.password_dir)})
    real = Real(gate, database)
    with gate.running():
        yield real
    assert "Traceback" not in gate.log


@pytest.fixture
def real(short_dir: Path, database: Database) -> Iterator[Real]:
    with standing(Gate(short_dir), database) as real:
        yield real


@needs_dovecot
@pytest.mark.case(51)
def test_a_good_key_a_bad_key_and_no_key_in_any_log(real: Real) -> None:
    key, wrong = real.key.token, "os_00000000000000000000000000000000"
    with real.dovecot():
        client = real.gate.client()
        assert client.plain(key) == f"OK\t1\tuser={real.key.id}"
        assert client.plain(f" {key}\n", user="whoever' OR 1=1", authzid="x") == f"OK\t2\tuser={real.key.id}"
        client.auth("LOGIN")
        client.go_on(b"u")
        assert client.go_on(f"{key} ".encode()) == f"OK\t3\tuser={real.key.id}"
        assert client.plain(wrong) == client.refused
        assert client.plain("' OR '1'='1") == client.refused
        client.close()
    logs = [
        *real.gate.directory.glob("*.log"),
        *real.gate.directory.glob("*.out"),
        real.database.cluster.directory / "log",
    ]
    for secret in (key, wrong, encoded(f"\0apikey\0{key}".encode()), encoded(key.encode())):
        assert [path for path in logs if secret in path.read_text(errors="replace")] == []


@needs_dovecot
@pytest.mark.case(56)
def test_a_database_that_is_down_is_a_hang_up_and_back_is_back(short_dir: Path, database: Database) -> None:
    gate = Gate(short_dir)
    # After each attempt in vain Dovecot waits longer for the next, so it should not have made many by then.
    gate.timeout_s = LEAST_S
    with standing(gate, database) as real, real.dovecot():

        def let_in() -> Client | None:
            client = gate.client()
            if (said := client.plain(real.key.token)) == HANG_UP:
                client.close()
                return None
            assert said == f"OK\t1\tuser={real.key.id}"
            return client

        client = await_found(let_in, "a login")
        database.cluster.stop()
        assert client.plain(real.key.token) == HANG_UP
        client.close()
        database.cluster.start()
        await_found(let_in, "a login").close()


@needs_dovecot
def test_a_restarted_dovecot_is_used_at_once_on_the_same_connection(real: Real) -> None:
    client = real.gate.client()
    for _ in range(2):
        with real.dovecot():
            assert client.plain(real.key.token).startswith("OK")
    client.close()


@needs_dovecot
@pytest.mark.case(49)
def test_a_revoked_key_is_refused_at_once(real: Real) -> None:
    with real.dovecot():
        client = real.gate.client()
        assert client.plain(real.key.token).startswith("OK")
        with real.database.connect() as connection:
            AdminStore(connection, makes_users=True).revoke_key(real.key.id)
        assert client.plain(real.key.token) == client.refused
        client.close()


@needs_dovecot
def test_both_secrets_of_a_rotated_key_are_good_until_the_old_one_expires(real: Real) -> None:
    key, digest = real.key, hashlib.sha256(real.key.token.encode()).hexdigest()
    with real.dovecot():
        client = real.gate.client()
        with real.database.connect() as connection:
            store = AdminStore(connection, makes_users=True)
            second = store.rotate_key(store.find_key(key.id), timedelta(days=7)).token
            assert client.plain(key.token) == f"OK\t1\tuser={key.id}"
            assert client.plain(second) == f"OK\t2\tuser={key.id}"
            connection.execute(
                "UPDATE opensend_milter.key_secrets SET expires_at = now() WHERE token_hash = %s", [digest]
            )
            assert client.plain(key.token) == client.refused
            assert client.plain(second) == f"OK\t4\tuser={key.id}"
            connection.execute("UPDATE opensend_milter.key_secrets SET expires_at = NULL")
            assert client.plain(key.token) == f"OK\t5\tuser={key.id}"
            connection.execute("DELETE FROM public.api_keys")
        assert client.plain(key.token) == client.refused
        assert client.plain(second) == client.refused
        client.close()
