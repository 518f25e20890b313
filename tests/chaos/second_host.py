"""A second host: Postfix, Dovecot and all of ours once more, on the first one's database and queue.

Run as a program, it is that host's keeper.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from opensend_milter.host import requirements
from opensend_milter.host.sandbox import state as sandbox_state
from opensend_milter.host.sandbox.keeper import Keeper
from opensend_milter.host.sandbox.programs import Programs
from tests.acceptance.running_sandbox import new_directory
from tests.chaos.cable import Cable
from tests.chaos.clients import Entrance
from tests.chaos.faults.harm import needed
from tests.chaos.stand import OURS, Stand
from tests.chaos.wire import SWITCH, Wire, wired

PROGRAMS = (*OURS, "postfix")
FILES = ("passwords", "tls", sandbox_state.STATE_FILE)
"""Of the first host that are the second's as well."""
PLACES = ("run", "log", "spool")
READY = "ready"


@dataclass(slots=True)
class SecondHost:
    """Its files, its network, and who keeps its programs running."""

    directory: Path
    wire: Wire
    _keeper: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start all of it, and wait until it answers."""
        sandbox_state.wipe(self.directory / "run")
        command = [sys.executable, "-P", "-m", "tests.chaos.second_host", str(self.directory)]
        with (self.directory / "log" / "keeper.log").open("ab") as log, self.wire.host.entered():
            self._keeper = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self.directory,
                env=requirements.environment({}),
            )  # fmt: skip
        told = next((line for line in self._keeper.stdout or () if line.strip() == READY), None)
        assert told, f"the second host does not come up: see {self.directory / 'log'}"

    def stop(self) -> None:
        """Let it end in order."""
        if self._keeper:
            self._keeper.terminate()
            self._keeper.communicate()

    def lose_power(self) -> None:
        """Kill all of it, and let nobody hear a farewell: not of its kernel either, once the wire is in again."""
        with self.wire.pulled():
            self.wire.host.kill()
            self.stop()
            self.wire.move()


@contextmanager
def second_host(stand: Stand) -> Iterator[SecondHost]:
    """Bring one up; clients go to both hosts by turns, until it is gone."""
    with ExitStack() as stack:
        wire = stack.enter_context(wired())
        directory = new_directory()
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        host = SecondHost(directory, wire)
        _furnish(stand, host, stack)
        stack.callback(host.stop)
        host.start()
        first = Entrance.of(stand.sandbox)
        inside = wire.host.entered
        # The same ports: its loopback is its own. By another way than its wire: who has no database is still asked.
        smtp, http = (stack.enter_context(Cable(port, far=inside)) for port in (first.smtp, first.http))
        stand.entrances.known = (first, Entrance(smtp=smtp.port, http=http.port))
        try:
            yield host
        finally:
            stand.entrances.known = (first,)


def _furnish(stand: Stand, host: SecondHost, stack: ExitStack) -> None:
    """Give it the first one's configuration, with what is not its own at the other end of the wire."""
    for name in PLACES:
        (host.directory / name).mkdir()
    for name in FILES:
        subprocess.run(["cp", "-a", str(stand.directory / name), str(host.directory / name)], check=True)
    cable, amazon = needed(stand.cable, "cable to Postgres"), needed(stand.amazon, "Amazon")

    def bridged(port: int) -> int:
        return stack.enter_context(Cable(port, address=SWITCH, near=host.wire.switch.entered)).port

    content = yaml.safe_load(stand.config.read_text().replace(str(stand.directory), str(host.directory)))
    path = content["queue"]["url"].split("/", 3)[3]
    url = f"http://{SWITCH}:{bridged(amazon.port)}"
    content["database"]["url"] = f"postgresql://postgres@/opensend?host={SWITCH}&port={bridged(cable.port)}"
    content["relay"] |= {"host": SWITCH, "port": bridged(stand.next_hop.port)}
    content["aws"] = {"endpoint_url": url}
    content["queue"] = {"url": f"{url}/{path}"}
    (host.directory / "opensend-milter.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def main() -> None:
    """Keep its programs running until SIGTERM."""
    directory = Path(sys.argv[1])
    state = sandbox_state.load(directory)
    layout = sandbox_state.layout_of(directory, state)
    programs = [one for one in Programs(layout, state, lambda: None) if one.name in PROGRAMS]
    say = partial(print, flush=True)
    Keeper(programs=programs, run_dir=layout.run, log_dir=layout.logs, report=say).run()


if __name__ == "__main__":
    main()
