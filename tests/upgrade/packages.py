"""The Debian package of a commit, which is kept, and that of the tree as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.checkouts import resolved, temporary_directory, worktree

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "upgrade"


def package_of(commit: str) -> Path:
    """Build what a commit would have shipped, once."""
    name = resolved(commit)
    kept = KEPT / f"{name}.deb"
    if not kept.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        with temporary_directory() as directory, worktree(name, directory) as checkout:
            # Under its name only when it is whole.
            build(checkout, KEPT / "unfinished").rename(kept)
    return kept


def build(checkout: Path, into: Path) -> Path:
    """Build a checkout's package by its own program; manual pages and completion ask its own code."""
    done = subprocess.run(
        [sys.executable, "-P", str(checkout / "packaging" / "build.py"), "--into", str(into)],
        check=False, capture_output=True, text=True, cwd=checkout,
        env={**os.environ, "PYTHONPATH": f"{checkout}:{checkout / 'packaging'}"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{checkout}: no package:\n{done.stdout}{done.stderr}")
    return Path(done.stdout.strip())
