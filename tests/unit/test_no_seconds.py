"""No test compares how long something took, or waits for a time of its own: a busy machine takes longer."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CLOCK = re.compile(r"(time|monotonic|perf_counter|process_time|thread_time)(_ns)?")
SCALED = {"patience_s", "scaled_s"}
"""From tests/waiting.py: on a busy machine it is more."""
WAITS = re.compile(r"(.*\.)?(wait|join|settimeout|Timer)|(time\.)?sleep", re.DOTALL)
"""What takes seconds first; everything may take them as `timeout`."""
THEIR_OWN = {
    "integration/private_postgres.py": "one deadline for all starts and their answers together, and it scales",
    "integration/debian_packages.py": "how long a fetch may take is its caller's, and no wait for a condition",
    "acceptance/test_faults.py": "its clients pause between two messages",
    "acceptance/test_queue_away.py": "so does its client",
    "upgrade/clients.py": "so do its clients, and before they send again",
    "chaos/__main__.py": "a run is over after so many minutes, whatever hangs, and is no test",
    "foreign/making/others.py": "it waits for Postfix where a person runs it, and is no test",
    "fuzz/__main__.py": "it is told for how many minutes to go on, and is no test",
}
"""Which files may do so, each with the reason."""

COMPARED = """
assert time.monotonic() - began < 2
assert 1 < perf_counter() - began < TIMEOUT_S + 2
while time.time() - began < 8: pass
assert began + 2 > time.monotonic()
assert abs(began - time.process_time_ns()) < 5
took_s = time.monotonic() - began; assert took_s < 1
self.slowest_s = max(self.slowest_s, time.monotonic() - began); assert running.slowest_s < 3
if (took_s := round(time.monotonic() - began)) > 3: pass
"""
WAITED = """
process.wait(10)
sink.held.wait(timeout=20)
assert release.wait(0.5)
thread.join(20)
client.settimeout(30)
time.sleep(1)
threading.Timer(0.2, release.set).start()
threading.Barrier(5, timeout=30)
smtplib.SMTP(host, port, timeout=30)
subprocess.run(command, timeout=60)
WAIT_S = 20.0; process.wait(WAIT_S)
"""
FINE = """
assert time.monotonic() - began < patience_s()
assert asked <= 10 + refilled(began, 60)
refilled = int((time.monotonic() - began) * 10 / 60) + 1; assert asked <= 10 + refilled
now = time.time(); assert signed(now) == 1
process.wait()
process.wait(patience_s())
release.wait(NEVER_S)
thread.join()
", ".join(words)
client.settimeout(scaled_s(3))
listener.settimeout(0)
smtplib.SMTP(host, port, timeout=patience_s())
store = job_store(database, timeout_s=1)
threading.Barrier(2, timeout=patience_s())
await asyncio.sleep(0.01)
"""


def faults(source: str) -> Iterator[str]:
    """Yield the lines of a program that go by its own clock, with their numbers."""
    nodes = [*ast.walk(ast.parse(source))]
    elapsed = {name for node in nodes for name in elapsed_names(node)}
    numbers = {name for node in nodes for name in number_names(node)}
    for node in nodes:
        match node:
            case ast.Compare():
                is_fault = bool(elapsed & {*names(node)}) or reads_clock(node)
            case ast.Call():
                is_fault = waits(node, numbers)
            case _:
                continue
        if is_fault and not SCALED & {*names(node)}:
            yield f"{node.lineno}: {ast.unparse(node)}"


def names(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        match inner:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield name
            case _:
                pass


def reads_clock(node: ast.AST) -> bool:
    calls = (inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call))
    return any(CLOCK.fullmatch(ast.unparse(function).removeprefix("time.")) for function in calls)


def is_elapsed(value: ast.AST | None) -> bool:
    match value:
        case ast.BinOp(op=ast.Sub()):
            return reads_clock(value)
        case ast.Call(args=arguments):
            return any(map(is_elapsed, arguments))
        case _:
            return False


def elapsed_names(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Assign(targets=targets, value=value) if is_elapsed(value):
            yield from (spelled.rpartition(".")[2] for spelled in map(ast.unparse, targets))
        case ast.AnnAssign(target=target, value=value) | ast.NamedExpr(target=target, value=value) if is_elapsed(value):
            yield ast.unparse(target).rpartition(".")[2]
        case _:
            pass


def number_names(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=int() | float())):
            yield name
        case _:
            pass


def waits(call: ast.Call, numbers: set[str]) -> bool:
    """Tell whether it waits for so many seconds at most, whatever the machine."""
    first = call.args[:1] if WAITS.fullmatch(ast.unparse(call.func)) else []
    return any(
        is_number(one, numbers) for one in [*first, *(word.value for word in call.keywords if word.arg == "timeout")]
    )


def is_number(node: ast.AST, numbers: set[str]) -> bool:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value > 0
        case ast.Name(id=name):
            return name in numbers
        case _:
            return False


@pytest.mark.parametrize("line", [*COMPARED.strip().splitlines(), *WAITED.strip().splitlines()])
def test_what_a_busy_machine_fails_is_seen(line: str) -> None:
    assert len([*faults(line)]) == 1


@pytest.mark.parametrize("line", FINE.strip().splitlines())
def test_what_it_does_not_fail_is_let_be(line: str) -> None:
    assert [*faults(line)] == []


def test_no_test_goes_by_a_clock_of_its_own() -> None:
    found = {str(path.relative_to(TESTS)): [*faults(path.read_text(encoding="utf-8"))] for path in TESTS.rglob("*.py")}
    assert {name: lines for name, lines in found.items() if lines and name not in THEIR_OWN} == {}
    assert [name for name in THEIR_OWN if not found[name]] == [], "they have no need of it"
