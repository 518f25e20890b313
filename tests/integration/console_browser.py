"""A browser without script: it keeps cookies as it is told, and fills in the forms that it is shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from html import unescape
from http.client import HTTPConnection, HTTPResponse
from urllib.parse import urlencode, urljoin, urlsplit

from tests.waiting import patience_s

COOKIE = re.compile(r"([^=]+)=([^;]*);?(.*)")


@dataclass(frozen=True)
class Shown:
    """What was answered."""

    status: int
    headers: dict[str, str]
    body: bytes
    path: str

    @property
    def text(self) -> str:
        """As it stands in the page."""
        return self.body.decode()

    @property
    def words(self) -> str:
        """As a reader reads it."""
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", self.text)).split())

    @property
    def links(self) -> list[str]:
        return [unescape(found) for found in re.findall(r'<a [^>]*?href="([^"]*)"', self.text)]


@dataclass(frozen=True)
class Events:
    """A stream of them."""

    answer: HTTPResponse

    @property
    def status(self) -> int:
        return self.answer.status

    def next_of(self, kind: str) -> str:
        """Wait for the next event of a kind; return what it says."""
        while (line := self.answer.readline()) != f"event: {kind}\n".encode():
            assert line, "the stream has ended"
        said = []
        while (line := self.answer.readline()).startswith(b"data: "):
            said.append(line.decode().removeprefix("data: "))
        return "".join(said)

    def rest(self) -> list[bytes]:
        """Return what comes before the stream ends."""
        return self.answer.readlines()


@dataclass
class Browser:
    """One visitor's."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    """What it was told of cookies."""

    def get(self, path: str, *, follow: bool = True) -> Shown:
        found = self._ask("GET", path)
        while follow and found.status == 303:
            found = self._ask("GET", self._beside(found))
        return found

    def post(self, path: str, **values: str) -> Shown:
        found = self._ask("POST", path, urlencode(values).encode())
        return self.get(self._beside(found)) if found.status == 303 else found

    def log_in(self, **words: str) -> Shown:
        """Open the page where people log in, and send its form with these words."""
        return self.send(self.get("/login"), "/login", **words)

    def send(self, page: Shown, to: str, **words: str) -> Shown:
        """Send the form of a page that leads there."""
        return self.post(to, **(hidden(page) | words))

    @contextmanager
    def hearing(self, path: str) -> Iterator[Events]:
        """Begin to hear a stream of events."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=patience_s())
        with closing(connection):
            connection.request("GET", path, headers=self._asking())
            yield Events(connection.getresponse())

    def _beside(self, found: Shown) -> str:
        where = urlsplit(urljoin(f"http://here{found.path}", found.headers["location"]))
        assert where.netloc == "here", "it leads elsewhere"
        return where.path + (f"?{where.query}" if where.query else "")

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Shown:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=patience_s())
        try:
            connection.request(method, path, body, self._asking())
            answer = connection.getresponse()
            for value in answer.headers.get_all("set-cookie") or ():
                self._keep(value)
            found = {name.lower(): value for name, value in answer.headers.items()}
            return Shown(answer.status, found, answer.read(), path)
        finally:
            connection.close()

    def _asking(self) -> dict[str, str]:
        headers = {"Host": f"127.0.0.1:{self.port}", **self.headers}
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return headers

    def _keep(self, told: str) -> None:
        self.told.append(told)
        name, value, rest = COOKIE.fullmatch(told).groups()  # type: ignore[union-attr]  # then it fails
        if "max-age=0" in rest.lower():
            self.cookies.pop(name, None)
        else:
            self.cookies[name] = value.strip('"')


def hidden(page: Shown) -> dict[str, str]:
    """Return what the first form of a page that is sent by POST says by itself."""
    form = re.search(r'<form method="post".*?</form>', page.text, re.DOTALL)
    assert form, page.words
    found = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form[0])
    return {name: unescape(value) for name, value in found}
