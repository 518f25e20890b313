"""The OpenAPI document is exact: Schemathesis asks the real server all it says, and much that it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.second_front_door import front_door
from tests.waiting import scaled_s

EXAMPLES = 3
SETTINGS = """
seed = 5
hooks = "{hooks}"
headers = {{ Authorization = "Bearer ${{SANDBOX_API_KEY}}" }}
continue-on-failure = true

[generation]
mode = "all"
max-examples = {examples}
deterministic = true
database = "none"

[checks]
# 413 is what too long a list is told, as the size of the request is.
negative_data_rejection.expected-statuses = ["400", "401", "403", "404", "405", "413", "415"]

# What was scheduled may be sent by now, and what was a time to come may be past.
[[operations]]
include-name = ["PATCH /emails/{{id}}", "POST /emails/{{id}}/cancel"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "403", "404", "5xx"]
"""
ROOT = Path(__file__).parents[2]
HOOKS = Path(__file__).with_name("schema_facts.py")


@pytest.fixture(scope="module")
def url(sandbox: Sandbox) -> Iterator[str]:
    with front_door(sandbox, default_from="app@sandbox.test") as found:
        yield found


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_server_does_what_its_document_says(sandbox: Sandbox, url: str, tmp_path: Path) -> None:
    """Good data, bad data, other methods, no key, one request after another: all checks that there are."""
    (tmp_path / "schemathesis.toml").write_text(SETTINGS.format(hooks=HOOKS, examples=EXAMPLES))
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json", "--no-color"],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "SANDBOX_API_KEY": sandbox["SANDBOX_API_KEY"],
            # What it reckons out about letters and programs is the same each time.
            "HYPOTHESIS_STORAGE_DIRECTORY": str(ROOT / ".hypothesis"),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=scaled_s(380),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
