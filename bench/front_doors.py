"""`make bench-http`: what `POST /v1/send` costs beside SMTP for the same message, with limits in force and without."""

from __future__ import annotations

import argparse
import dataclasses
import socket
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from bench.compare import about_machine, write
from bench.figures import Figures, ratios, spread
from bench.load import Load
from bench.measuring import measure
from bench.systems import Stand, System, await_true, running_stand
from opensend_milter.host import requirements
from opensend_milter.host.sandbox.programs import accepts

CLIENTS = (1, 20, 100)
MOST_A_MINUTE = 10_000_000
UNLIMITED = {"total_per_minute": 0, "client_per_minute": 0, "key_per_minute": 0, "failed_per_minute": 0}
LIMITED = {
    "total_per_minute": MOST_A_MINUTE, "client_per_minute": MOST_A_MINUTE, "key_per_minute": MOST_A_MINUTE,
    "failed_per_minute": 60,
}  # fmt: skip
Doors = Mapping[str, tuple[System, Mapping[str, object]]]
"""Systems, with what their load is besides the number of clients."""


def doors(stand: Stand) -> Doors:
    """Start `http` and `serve` twice: without limits, and with limits too high to be reached."""
    made: dict[str, tuple[System, Mapping[str, object]]] = {}
    for name, limits in (("no limits", UNLIMITED), ("limits", LIMITED)):
        made[f"HTTP, {name}"] = (_http(stand, name, limits), {"kind": "http"})
        serve = _serve(stand, name, limits)
        made[f"SMTP kept, {name}"] = (serve, {})
        made[f"SMTP one, {name}"] = (serve, {"kept": False})
    return made


def _http(stand: Stand, name: str, limits: Mapping[str, object]) -> System:
    port = requirements.free_ports(["http"])["http"]
    config = stand.write_config(f"http {name}", {"http": {"port": port}, "limits": limits})
    pid = stand.run_ours(f"http {name}", "http", config)
    await_true("the HTTP front door", partial(listens, port))
    return stand.at(f"http {name}", port, {"http": (pid,), "postgres": (stand.pids["postgres"],)})


def _serve(stand: Stand, name: str, limits: Mapping[str, object]) -> System:
    path = stand.place / f"{name.replace(' ', '-')}.sock"
    config = stand.write_config(f"serve {name}", {"milter": {"socket": str(path)}, "limits": limits})
    pid = stand.run_ours(f"serve {name}", "serve", config)
    await_true("serve", partial(accepts, path))
    return stand.ours(f"serve {name}", serve=pid, socket=path)


def listens(port: int) -> bool:
    """Tell whether somebody takes connections."""
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


def rounds(stand: Stand, made: Doors, *, count: int, seconds: float) -> Mapping[tuple[str, int], Sequence[Figures]]:
    """Measure one after the other, and all of it again."""
    found: dict[tuple[str, int], list[Figures]] = defaultdict(list)
    for system, kind in made.values():
        measure(system.load(**kind, sessions=20, seconds=1), system.groups)
    for _ in range(count):
        for clients in CLIENTS:
            stand.empty()
            for name, (system, kind) in made.items():
                load: Load = system.load(**kind, sessions=clients, seconds=seconds)
                found[name, clients].append(measure(load, system.groups))
                print(line(name, clients, found[name, clients][-1:]), flush=True)
        stand.check()
    return found


def line(name: str, clients: int, figures: Sequence[Figures]) -> str:
    rate = spread(one.per_s for one in figures)
    p99 = spread(one.p99_ms for one in figures)
    cpu = {group: spread(one.cpu_ms[group] for one in figures) for group in figures[0].cpu_ms}
    spent = "  ".join(f"{group} {value.median:.2f}" for group, value in cpu.items() if value)
    errors = [one.errors for one in figures if one.errors]
    said = f"  ERRORS {errors}" if errors else ""
    return f"{name:22} {clients:3} clients  {rate}/s  p99 {p99} ms  CPU ms: {spent}{said}"


def main() -> None:
    """Print the figures and keep them; exit 1 where a message was not taken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    with running_stand() as stand:
        found = rounds(stand, doors(stand), count=arguments.rounds, seconds=arguments.seconds)
    print("\nMedian (range) of the rounds; CPU in ms per message. HTTP is without TLS on a kept connection:")
    for (name, clients), figures in found.items():
        print(line(name, clients, figures))
    print("\nRequests per second over HTTP, ratio:")
    for clients in CLIENTS:
        of = {name: [one.per_s for one in found[name, clients]] for name, each in found if each == clients}
        print(
            f"{clients:3} clients  to SMTP, kept: {ratios(of['HTTP, no limits'], of['SMTP kept, no limits'])}", end=""
        )
        print(f"  to SMTP, one: {ratios(of['HTTP, no limits'], of['SMTP one, no limits'])}", end="")
        print(f"  with limits to without: {ratios(of['HTTP, limits'], of['HTTP, no limits'])}")
    made = [
        {"door": name, "clients": clients, "rounds": [dataclasses.asdict(one) | {"per_s": one.per_s} for one in each]}
        for (name, clients), each in found.items()
    ]
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    write("front-doors.json", {"made_at": made_at, "machine": about_machine(), "doors": made})
    sys.exit(any(one.errors for figures in found.values() for one in figures))


if __name__ == "__main__":
    main()
