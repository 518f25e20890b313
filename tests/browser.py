"""Debian's Chromium without a window, as a test drives it: its DevTools protocol over two pipes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Literal

from tests.waiting import patience_s

Scheme = Literal["light", "dark"]
PROGRAM = "chromium"
MOST_HEIGHT = 6_000
"""Of a picture; what is below is as what is above."""
_PIECE_BYTES = 65_536
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    # Its sandbox refuses root, and it is shown nothing but pages of ours.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # Its handler would outlive a browser that is killed.
    "--disable-breakpad",
    "--disable-crash-reporter",
    "--hide-scrollbars",
    # Whatever a page asks for elsewhere is seen, and goes nowhere.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@dataclass(slots=True)
class Browser:
    """One browser with one page."""

    _to: IO[bytes]
    _from: BufferedReader
    _rest: bytes = b""
    """What was read of an answer that is not whole."""
    _session: str = ""
    _last: int = 0
    events: list[Mapping[str, Any]] = field(default_factory=list)
    """What it told since the page was last opened."""

    def begin(self) -> None:
        """Open a page, and hear what it does."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: object) -> Mapping[str, Any]:
        """Give an order, and return its answer."""
        self._last += 1
        asked = {"id": self._last, "method": method, "params": parameters}
        self._to.write(
            json.dumps({**asked, **({"sessionId": self._session} if self._session else {})}).encode() + b"\0"
        )
        self._to.flush()
        while (heard := self._heard()).get("id") != self._last:
            self.events.append(heard)
        assert "error" not in heard, f"{method}: {heard['error']}"
        found: Mapping[str, Any] = heard["result"]
        return found

    def look_as(self, scheme: Scheme, width: int) -> None:
        """Be a screen of that width, whose owner likes it light or dark."""
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)

    def settle(self) -> None:
        """Wait until the page is drawn as it is to be looked at, and all that it asked for is there."""
        self.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        while self._awaited():
            self.events.append(self._heard())

    def _awaited(self) -> set[str]:
        """Return what it has asked for, and has no answer to so far; what is live never ends."""

        def known(*methods: str) -> set[str]:
            told = [event["params"] for event in self.events if event.get("method") in methods]
            return {one["requestId"] for one in told if one.get("type") != "EventSource"}

        return known("Network.requestWillBeSent") - known("Network.loadingFinished", "Network.loadingFailed")

    def run_scripts(self, *, does: bool) -> None:
        """Say whether pages may run scripts."""
        self.ask("Emulation.setScriptExecutionDisabled", value=not does)

    def open(self, url: str, cookies: Mapping[str, str] | None = None) -> None:
        """Open a page with nothing but these cookies, and wait until all of it is there."""
        self.ask("Network.clearBrowserCookies")
        for name, value in (cookies or {}).items():
            self.ask("Network.setCookie", name=name, value=value, url=url)
        self.events.clear()
        self.ask("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._heard())

    def evaluate(self, expression: str) -> Any:
        """Return what an expression comes to in the page, whatever policy the page has."""
        answer = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            self.ask(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"Tab": 9, " ": 32}[key]
            )

    def picture(self, path: Path, most_height: int = MOST_HEIGHT) -> None:
        """Keep what the page looks like."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], most_height), "scale": 1}
        path.parent.mkdir(parents=True, exist_ok=True)
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Return what went wrong in the page: errors, warnings, and what its policy refused."""
        return [text for event in self.events for text in _complaint(event["method"], event["params"])]

    def asked_for(self) -> list[str]:
        """Return all addresses that the page asked for."""
        requests = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in requests]

    def _heard(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = self._from.read1(_PIECE_BYTES)
            assert piece, "the browser is gone"
            self._rest += piece
        said, _, self._rest = self._rest.partition(b"\0")
        heard: dict[str, Any] = json.loads(said)
        return heard


def is_there() -> bool:
    """Tell whether there is one."""
    return shutil.which(PROGRAM) is not None


@contextmanager
def browsing(directory: Path) -> Iterator[Browser]:
    """Start a browser that keeps what it knows in a directory, and end it."""
    hears, told = os.pipe()
    heard, tells = os.pipe()
    # The descriptors that it speaks by are 3 and 4.
    command: Sequence[str] = ("bash", "-c", f'exec "$@" 3<&{hears} 4>&{tells} {hears}<&- {tells}>&-', "bash", PROGRAM)
    with (directory / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *_FLAGS, f"--user-data-dir={directory}"],
            pass_fds=(hears, tells),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], "HOME": str(directory), "LC_ALL": "C.UTF-8"},
        )
    os.close(hears)
    os.close(tells)
    with process, os.fdopen(told, "wb") as to, os.fdopen(heard, "rb") as from_:
        browser = Browser(to, from_)
        try:
            browser.begin()
            yield browser
            browser.ask("Browser.close")
            process.wait(patience_s())
        finally:
            process.kill()


def _complaint(method: str, told: Mapping[str, Any]) -> Iterator[str]:
    match method:
        case "Runtime.exceptionThrown":
            yield str(told["exceptionDetails"])
        case "Runtime.consoleAPICalled" if told["type"] in {"error", "warning", "assert"}:
            yield " ".join(str(one.get("value", one.get("description"))) for one in told["args"])
        case "Log.entryAdded" if told["entry"]["level"] in {"error", "warning"}:
            yield f"{told['entry']['text']} {told['entry'].get('url', '')}"
        case "Network.loadingFailed":
            yield f"not loaded: {told['errorText']}"
        case _:
            pass
