"""The largest bodies that there may be, hostile and honest, many at once: what they take up is bounded."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from psycopg.sql import SQL, Identifier

from tests.integration.private_postgres import Database
from tests.integration.test_http_server import Front, add_key, front

LARGEST = 52_428_800
MOST_MB = 1_000
"""docs/units.md says so."""
CROWDED = {429, 503}
_START = b'{"from":"app@example.org","to":"to@example.net","subject":"hi","text":"t",'
_EMOJI = "😀".encode()
"""Beyond the first plane: each letter beside it takes up four octets."""
_KEYS = b",".join(b'"%x":0' % number for number in range(490_000))
_OCTETS = b"".join(b"%d, " % octet for octet in range(256))


@dataclass(frozen=True)
class Shape:
    """A body: what is repeated in it, how many octets of it, and what stands around."""

    inner: bytes
    around: bytes = b'"headers":[%s0]}'
    octets: int = LARGEST - 200

    def body(self) -> bytes:
        return _START + self.around % (self.inner * (self.octets // len(self.inner)))


_HTML, _FILE = b'"html":"%s"}', b'"attachments":[{"filename":"a","content":"%s"}]}'
_LIST = b'"attachments":[{"filename":"a","content":[%s0]}]}'
HOSTILE = {
    "objects": Shape(b"{},"),
    "lists": Shape(b"[],"),
    "lists of one": Shape(b"[0],"),
    "objects of one": Shape(b'{"":0},'),
    "strings": Shape(b'"ab",'),
    "fractions": Shape(b"1.5,"),
    "no octets": Shape(b"999,", _LIST),
}
LARGE = {
    "text": Shape(b"abc\\n", b'"html":"%%s%s"}' % _EMOJI),
    "as many values as there may be": Shape(b"a", b'"html":"%%s%s",%s}' % (_EMOJI, _KEYS), LARGEST - 8_000_000),
    "octets": Shape(b"0,", _LIST),
}
HONEST = {
    "commas": Shape(b"<p>a,b,c;[1,2]{}</p>", _HTML, 10_000_000),
    "a file": Shape(b"QUJD", _FILE, 20_000_000),
    "a file as a list": Shape(_OCTETS, _LIST, 20_000_000),
}


def peak_mb(served: Front) -> int:
    """Return what the process held at the most, by the system's own count."""
    lines = Path(f"/proc/{served.daemon.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", lines)[0]) // 1_024


@pytest.mark.long
@pytest.mark.timeout(500)
def test_the_largest_bodies_take_up_no_more_than_there_is(database: Database) -> None:
    """As many at once as two keys may send: each is answered, and whoever asks for little meanwhile is, too."""
    keys = [add_key(database), add_key(database, "example.com")]
    with database.connect() as connection:
        # Each value would be in the server's log, which is looked through after each test.
        quiet = SQL("ALTER DATABASE {} SET log_statement = 'none'")
        connection.execute(quiet.format(Identifier(connection.info.dbname)))
    # What is one too many of a key's is sent in vain, as long as it is.
    with front(database) as served, ThreadPoolExecutor(2) as one, ThreadPoolExecutor(2) as other:

        def send(key: str, body: bytes, path: str = "/emails") -> tuple[int, str]:
            status, answer = 0, dict[str, Any]()
            while not status or status in CROWDED:  # a busy machine has no room in time, or reads too slowly
                with suppress(ConnectionResetError, BrokenPipeError):
                    status, answer, _ = served.ask("POST", path, body, Authorization=f"Bearer {key}")
            return status, answer["errors"][0]["code"] if "errors" in answer else ""

        asked = {**HOSTILE, **LARGE, **HONEST}
        ways = cycle(zip(keys, (one, other), strict=True))
        told = {
            name: pool.submit(lambda key, shape: send(key, shape.body()), key, asked[name])
            for name, (key, pool) in zip(asked, ways, strict=False)
        }
        answers = {name: answer.result() for name, answer in told.items()}
        assert {name: answers[name] for name in HOSTILE} == dict.fromkeys(HOSTILE, (400, "too_many"))
        assert {name: answers[name] for name in HONEST} == dict.fromkeys(HONEST, (200, ""))
        assert {answers[name][0] for name in LARGE} <= {200, 400, 413}
        assert send(keys[0], bulk(), "/emails/batch") == (200, "")
        assert peak_mb(served) < MOST_MB


def bulk() -> bytes:
    """Spell as many messages as there may be, of half a megabyte each."""
    return json.dumps([json.loads(Shape(b"<p>x</p>", _HTML, 500_000).body())] * 100).encode()
