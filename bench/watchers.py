"""A process that holds live pages of the console open, as browsers do: told over standard input by which cookies."""

from __future__ import annotations

import json
import sys
import time
from threading import Semaphore, Thread

from tests.integration.console_browser import Browser

PATH = "/now/live"
AGAIN_S = 1.0
"""As the console tells browsers."""


def watch(browser: Browser, begun: Semaphore) -> None:
    """Hear one stream, and the next when it ends; say so when the first has told something."""
    is_first = True
    while True:
        with browser.hearing(PATH) as events:
            while events.status == 200 and events.answer.read1():  # noqa: PLR2004  # HTTP's own
                if is_first:
                    begun.release()
                is_first = False
        time.sleep(AGAIN_S)


def main() -> None:
    """Begin, say when all of them hear something, and end with standard input."""
    asked = json.loads(sys.stdin.readline())
    begun = Semaphore(0)
    for cookies in asked["sessions"]:
        for _ in range(asked["of_each"]):
            Thread(target=watch, args=(Browser(asked["port"], cookies=cookies), begun), daemon=True).start()
    for _ in range(len(asked["sessions"]) * asked["of_each"]):
        begun.acquire()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
