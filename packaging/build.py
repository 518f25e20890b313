"""Build the Debian package, by the checkout's own .venv: `python packaging/build.py [--version V] [--into DIRECTORY]`.

What is in .venv, locked and tested, goes into the package's own virtual environment; nothing is fetched. So it is for
the Debian release, and the Python, that .venv was made with.
"""

# ruff: noqa: INP001  # a program of its own

from __future__ import annotations

import argparse
import compileall
import gzip
import importlib.metadata
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import manual
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PARTS = ROOT / "packaging"
NAME = "opensend-milter"
HOME = Path("usr/lib") / NAME
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
DOC = Path("usr/share/doc") / NAME
CONFFILES = {
    "default": f"etc/default/{NAME}",
    "fail2ban/filter.conf": f"etc/fail2ban/filter.d/{NAME}.conf",
    "fail2ban/jail.conf": f"etc/fail2ban/jail.d/{NAME}.conf",
}
EXAMPLES = (
    "packaging/logrotate",
    "docs/opensend-milter.example.yaml",
    "systemd/opensend-milter.service.d/tcp.conf.example",
    "systemd/opensend-console.service.d/actions.conf.example",
)
UNITS = {".service", ".socket", ".timer", ".path", ".target"}


def main() -> None:
    """Put the files together, then pack them."""
    arguments = argparse.ArgumentParser(description="Build the Debian package.")
    arguments.add_argument("--version", default=_project()["version"])
    arguments.add_argument("--into", type=Path, default=ROOT / "dist")
    given = arguments.parse_args()
    if os.path.realpath(sys.executable) != f"/usr/bin/{PYTHON}":
        sys.exit(f"deb: .venv is not made with Debian's own Python, /usr/bin/{PYTHON}: make it so and run this again")
    given.into.mkdir(parents=True, exist_ok=True)
    package = given.into / f"{NAME}_{given.version}_{_architecture()}.deb"
    with tempfile.TemporaryDirectory(prefix="opensend-deb-") as place:
        tree = Path(place) / "tree"
        tree.mkdir(mode=0o755)
        _environment(tree)
        _system_files(tree)
        _documents(tree, given.version)
        _control(tree, given.version)
        # xz takes three times as long for a tenth less.
        command = ["dpkg-deb", "--root-owner-group", "-Zzstd", "-z9", "--build", str(tree), str(package)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(package)  # noqa: T201  # a program


def _project() -> dict[str, str]:
    project: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _architecture() -> str:
    done = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _environment(tree: Path) -> None:
    """Make the virtual environment as it will be when it is installed."""
    home = tree / HOME
    site = home / "lib" / PYTHON / "site-packages"
    site.mkdir(parents=True)
    for distribution in _needed():
        _copy(distribution, site)
    with tempfile.TemporaryDirectory(prefix="opensend-wheel-") as wheels:
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels],
            check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with zipfile.ZipFile(next(Path(wheels).glob("*.whl"))) as wheel:
            wheel.extractall(site)
    # Nobody who runs it may write beside it.
    compileall.compile_dir(
        site,
        quiet=2,
        stripdir=str(tree),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    _write(home / "pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\n")
    (home / "bin").mkdir()
    (home / "bin" / "python").symlink_to(f"/usr/bin/{PYTHON}")
    program = f"#!/{HOME}/bin/python -I\nfrom opensend_milter.cli import main\n\nmain()\n"
    _write(home / "bin" / NAME, program, 0o755)
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin" / NAME).symlink_to(f"../lib/{NAME}/bin/{NAME}")


def _needed() -> Iterator[importlib.metadata.Distribution]:
    """Find what our own requirements need, and what that needs, without the sandbox's and the developers'."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(NAME)]
    while waiting:
        wanted = waiting.pop()
        if (wanted.name, frozenset(wanted.extras)) in found:
            continue
        found.add((wanted.name, frozenset(wanted.extras)))
        distribution = importlib.metadata.distribution(wanted.name)
        if wanted.name != NAME and not any(name == wanted.name and extras != wanted.extras for name, extras in found):
            yield distribution
        for one in map(Requirement, distribution.requires or []):
            extras = [{"extra": extra} for extra in ("", *wanted.extras)]
            if one.marker is None or any(one.marker.evaluate(extra) for extra in extras):
                waiting.append(one)


def _copy(distribution: importlib.metadata.Distribution, site: Path) -> None:
    for file in distribution.files or []:
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(distribution.locate_file(file)), target)


def _system_files(tree: Path) -> None:
    for path in (ROOT / "systemd").iterdir():
        if path.suffix in UNITS:
            _write(tree / "usr/lib/systemd/system" / path.name, path.read_text(encoding="utf-8"))
    for kind in ("sysusers", "tmpfiles"):
        text = (ROOT / "systemd" / f"{NAME}.{kind}.conf").read_text(encoding="utf-8")
        _write(tree / f"usr/lib/{kind}.d/{NAME}.conf", text)
    for part, place in CONFFILES.items():
        _write(tree / place, (PARTS / part).read_text(encoding="utf-8"))
    for shell, place in (
        ("bash", f"usr/share/bash-completion/completions/{NAME}"),
        ("zsh", f"usr/share/zsh/vendor-completions/_{NAME}"),
        ("fish", f"usr/share/fish/vendor_completions.d/{NAME}.fish"),
    ):
        _write(tree / place, manual.completion(shell))


def _documents(tree: Path, version: str) -> None:
    for name, text in manual.pages(version).items():
        _zip(tree / f"usr/share/man/man{name[-1]}" / f"{name}.gz", text)
    _zip(tree / DOC / "changelog.gz", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    _write(tree / DOC / "copyright", (PARTS / "debian" / "copyright").read_text(encoding="utf-8"))
    for name in EXAMPLES:
        path = ROOT / name
        _write(tree / DOC / "examples" / path.name, path.read_text(encoding="utf-8"))


def _control(tree: Path, version: str) -> None:
    control = tree / "DEBIAN"
    size_kb = sum(path.lstat().st_size for path in tree.rglob("*") if not path.is_dir()) // 1024
    text = (PARTS / "debian" / "control.in").read_text(encoding="utf-8")
    major, minor = sys.version_info[:2]
    values = {
        "VERSION": version,
        "ARCHITECTURE": _architecture(),
        "SIZE": str(size_kb),
        "SUMMARY": _project()["description"],
        "PYTHON": f"{major}.{minor}",
        "NEXT_PYTHON": f"{major}.{minor + 1}",
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    _write(control / "control", text)
    _write(control / "conffiles", "".join(f"/{place}\n" for place in sorted(CONFFILES.values())))
    for script in ("postinst", "prerm", "postrm"):
        _write(control / script, (PARTS / "debian" / script).read_text(encoding="utf-8"), 0o755)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def _zip(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    path.chmod(0o644)


if __name__ == "__main__":
    main()
