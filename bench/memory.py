"""Ten 30 MB attachments at once: the peak memory of `serve`, all its processes together."""

from __future__ import annotations

import argparse
import json
import shlex
import smtplib
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from base64 import encodebytes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

GOAL_MB = 200
ATTACHMENT_BYTES = 30_000_000
MB = 1_000_000


@dataclass
class Watch(threading.Thread):
    """Samples the memory of a process and its children; pages that they share count once (PSS)."""

    supervisor: int
    peak_bytes: int = 0
    peak_private_bytes: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        while not self.over.wait(0.02):
            pids = [self.supervisor, *children(self.supervisor)]
            found = [memory(pid) for pid in pids]
            self.peak_bytes = max(self.peak_bytes, sum(all_ for all_, _ in found))
            self.peak_private_bytes = max(self.peak_private_bytes, sum(private for _, private in found))


def children(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory(pid: int) -> tuple[int, int]:
    """Return the proportional set size of a process, and what of it is no file."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    rows = (line.split() for line in text.splitlines()[1:])
    sizes = {row[0]: int(row[1]) * 1024 for row in rows}
    return sizes["Pss:"], sizes["Pss_Anon:"]


def sandbox(command: str, directory: Path) -> str:
    """Run a sandbox command; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "opensend_milter", "sandbox", command, "--dir", str(directory)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return done.stdout


def send(env: dict[str, str], number: int) -> int:
    """Send one message; return the code of the answer."""
    body = encodebytes(number.to_bytes(4) * (ATTACHMENT_BYTES // 4)).replace(b"\n", b"\r\n")
    message = (
        f"From: bench@{env['SANDBOX_FROM_DOMAIN']}\r\nTo: to@example.net\r\nSubject: large {number}\r\n"
        'MIME-Version: 1.0\r\nContent-Type: application/octet-stream; name="large.bin"\r\n'
        "Content-Transfer-Encoding: base64\r\n\r\n"
    ).encode() + body
    context = ssl.create_default_context(cafile=env["SANDBOX_TLS_CA"])
    with smtplib.SMTP(env["SANDBOX_SMTP_HOST"], int(env["SANDBOX_SMTP_PORT"]), timeout=300) as client:
        client.starttls(context=context)
        client.login("apikey", env["SANDBOX_API_KEY"])
        client.mail(f"bench@{env['SANDBOX_FROM_DOMAIN']}")
        client.rcpt("to@example.net")
        return client.data(message)[0]


def measure(directory: Path, count: int) -> dict[str, float]:
    """Send them at once and watch."""
    env = dict(pair.split("=", 1) for pair in shlex.split(sandbox("env", directory)))
    programs = json.loads((directory / "run" / "children.json").read_text())
    supervisor = next(row["pid"] for row in programs if row["name"] == "serve")
    watch = Watch(supervisor)
    idle = sum(memory(pid)[0] for pid in [supervisor, *children(supervisor)])
    watch.start()
    began = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        codes = list(pool.map(lambda number: send(env, number), range(count)))
    watch.over.set()
    watch.join()
    if set(codes) != {250}:
        raise SystemExit(f"not all were taken: {codes}")
    return {
        "messages": count,
        "seconds": round(time.monotonic() - began, 1),
        "idle_mb": round(idle / MB, 1),
        "peak_mb": round(watch.peak_bytes / MB, 1),
        "peak_without_files_mb": round(watch.peak_private_bytes / MB, 1),
        "goal_mb": GOAL_MB,
    }


def main() -> None:
    """Print the figures; exit 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="os-bench-", dir="/tmp") as place:
        directory = Path(place)
        directory.chmod(0o755)
        sandbox("up", directory)
        try:
            figures = measure(directory, arguments.messages)
        finally:
            sandbox("down", directory)
    print(json.dumps(figures))
    sys.exit(figures["peak_mb"] > GOAL_MB)


if __name__ == "__main__":
    main()
