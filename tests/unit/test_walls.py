"""The walls between folders: each is seen to fall when somebody climbs it, and no folder outgrows a newcomer's eye."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "opensend_milter"
FOLDERS = sorted({path.parent for path in PACKAGE.rglob("*.py")})
MOST_MODULES = 20
CLIMBED = {
    "Layers point downwards": ("core/ids.py", "opensend_milter.config.option"),
    "Core knows no library but idna, and no protocol": ("core/ids.py", "psycopg"),
    "Couriers and Amazon's queues know no other adapter": ("adapters/aws/sns.py", "opensend_milter.adapters.dns"),
    "A courier knows no other courier, and no queue of Amazon's": (
        "adapters/couriers/plunk.py",
        "opensend_milter.adapters.couriers.ses",
    ),
    "What a person asks of the database is asked over its links and shapes": (
        "adapters/admin/rows.py",
        "opensend_milter.adapters.prometheus",
    ),
    "What the processes ask of the database knows no shape of tables and no administrator": (
        "adapters/postgres/rates.py",
        "opensend_milter.adapters.schema.facts",
    ),
    "The sandbox installs nothing and examines nothing": (
        "host/sandbox/inbox.py",
        "opensend_milter.host.installing.journal",
    ),
    "Rendering knows nobody who renders": ("host/rendering/acme.py", "opensend_milter.host.requirements"),
    "The doors and the worker do not know each other": (
        "servers/worker/feedback.py",
        "opensend_milter.servers.web.caller",
    ),
    "Pages know nobody who shows them": ("servers/pages/marks.py", "opensend_milter.servers.web.caller"),
    "Mail moves without pages": ("servers/auth_gate.py", "opensend_milter.servers.pages.marks"),
}
"""By contract: a module, and what it must not import."""


def contracts() -> list[str]:
    read = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [contract["name"] for contract in read["tool"]["importlinter"]["contracts"]]


def test_each_wall_falls_when_it_is_climbed(tmp_path: Path) -> None:
    """A contract that nothing breaks would be none."""
    assert sorted(CLIMBED) == sorted(contracts())
    shutil.copytree(PACKAGE, tmp_path / "opensend_milter", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for place, forbidden in CLIMBED.values():
        module = tmp_path / "opensend_milter" / place
        module.write_text(module.read_text() + f"\nimport {forbidden}\n")
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = " ".join(done.stdout.split())
    assert [name for name in contracts() if f"{name} BROKEN" not in said] == [], said


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_is_seen_at_a_glance_and_its_modules_do_not_repeat_it(folder: Path) -> None:
    modules = [path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")]
    assert len(modules) <= MOST_MODULES or folder.name == "core"
    assert [name for name in modules if re.match(rf"{folder.name}(_|$)", name)] == []
