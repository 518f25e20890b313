"""The Debian package: built, installed on a copy of this system, used, and gone without a trace."""

from __future__ import annotations

import fcntl
import filecmp
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from opensend_milter.cli import COMMANDS, GROUPS
from opensend_milter.config import KEYS, Config
from opensend_milter.host.requirements import free_ports
from tests.integration.confined_host import host_with, mail_flows, settings_for
from tests.integration.overlaid_system import ORIGINAL, OverlaidSystem, overlaid_system, why_not
from tests.integration.private_postgres import Database

pytestmark = [pytest.mark.long, pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs Debian's dpkg-deb")]
ROOT = Path(__file__).resolve().parents[2]
START = ROOT / "packaging" / "container" / "start"
KEPT = re.compile(
    r"/var/(lib/dpkg|log|cache)/|/etc/(passwd|group|g?shadow)-?$|/etc/\.pwd\.lock$|/(usr/share/man|var/cache/man)$"
)
"""What dpkg and useradd keep for themselves; the accounts are compared by name."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it as `make deb` does, once for all processes of this run."""
    if reason := _why_not_built():
        pytest.skip(reason)
    place = tmp_path_factory.getbasetemp()
    place = place.parent / "dist" if "PYTEST_XDIST_WORKER" in os.environ else place / "dist"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(place.glob("*.deb")):
            _build(place)
    return next(place.glob("*.deb"))


def _build(place: Path) -> None:
    # Under another name until it is whole.
    done = subprocess.run(
        [sys.executable, str(ROOT / "packaging" / "build.py"), "--into", str(place / "unfinished")],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = Path(done.stdout.strip())
    made.rename(place / made.name)


def _why_not_built() -> str:
    return (
        "" if Path(sys.executable).resolve().parent == Path("/usr/bin") else "needs .venv made with Debian's own Python"
    )


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "-x", str(package), str(place)], check=True)
    return place


@pytest.fixture
def system() -> Iterator[OverlaidSystem]:
    if reason := why_not():
        pytest.skip(reason)
    with overlaid_system() as copy:
        yield copy


def test_installed_used_and_purged(package: Path, system: OverlaidSystem, database: Database) -> None:
    before, submission_port = _accounts(system), free_ports(["submission"])["submission"]
    shutil.copy(package, system.path("/tmp/package.deb"))
    system.run("dpkg", "-i", "/tmp/package.deb", DEBIAN_FRONTEND="noninteractive")
    assert _processes(system) == []
    assert not list(system.path("/etc/systemd/system").rglob("*opensend-*"))
    assert {"opensend-milter", "opensend-auth", "opensend-worker", "opensend-http", "opensend-console"} <= _accounts(
        system
    ) - before
    with host_with(system, database, settings_for(submission_port), installed=True) as host:
        mail_flows(host, _key(system, database), submission_port)
    system.run("dpkg", "-P", "opensend-milter")
    assert _accounts(system) == before
    assert _traces(system) == []


def _key(system: OverlaidSystem, database: Database) -> str:
    """Make a key with the installed program."""
    with database.connect() as connection:
        connection.execute("INSERT INTO domains (name, status, user_id) VALUES ('example.org', 'verified', 'u')")
    made = system.run("opensend-milter", "key", "create", "--user", "u", "--json", DATABASE_URL=database.url)
    return str(json.loads(made.stdout)["token"])


def _processes(system: OverlaidSystem) -> list[str]:
    """Return which programs run inside of the copy."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = (process / "root").readlink() == system.root
        except OSError:
            continue
        if inside:
            found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def _accounts(system: OverlaidSystem) -> set[str]:
    return {
        line.partition(":")[0]
        for name in ("passwd", "group", "shadow", "gshadow")
        for line in system.path(f"/etc/{name}").read_text().splitlines()
    }


def _traces(system: OverlaidSystem) -> list[str]:
    """Return what the copy has otherwise than the system it is a copy of."""
    upper, found = system.root.parent / "upper", []
    for changed in upper.rglob("*"):
        path = "/" / changed.relative_to(upper)
        before = ORIGINAL / changed.relative_to(upper)
        if KEPT.search(str(path)) or (changed.is_dir() and before.is_dir()):
            continue
        if not before.is_file() or not changed.is_file() or not filecmp.cmp(before, changed, shallow=False):
            found.append(str(path))
    return found


def test_manual_pages_are_clean_and_say_everything(unpacked: Path) -> None:
    program, configuration = unpacked / "usr/share/man/man8", unpacked / "usr/share/man/man5"
    text = gzip.decompress((configuration / "opensend-milter.yaml.5.gz").read_bytes()).decode()
    assert [key.path for key in KEYS if f"\\fB{key.path}\\fR" not in text.replace("\\-", "-")] == []
    commands = gzip.decompress((program / "opensend-milter.8.gz").read_bytes()).decode().replace("\\-", "-")
    assert [name for name in [*COMMANDS, *GROUPS] if f"\n.SS {name}" not in commands] == []
    for page in (program / "opensend-milter.8.gz", configuration / "opensend-milter.yaml.5.gz"):
        text = gzip.decompress(page.read_bytes()).decode()
        assert "\n.SH NAME\n" in text
        if shutil.which("groff"):
            done = subprocess.run(
                ["groff", "-man", "-ww", "-z", "-Tutf8", "-k"], input=text, check=False, capture_output=True, text=True
            )
            assert done.stderr == ""


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", "usr/share/bash-completion/completions/opensend-milter"),
        ("zsh", "usr/share/zsh/vendor-completions/_opensend-milter"),
        ("fish", "usr/share/fish/vendor_completions.d/opensend-milter.fish"),
    ],
)
def test_completion_is_for_its_shell(unpacked: Path, shell: str, place: str) -> None:
    script = unpacked / place
    assert "_OPENSEND_MILTER_COMPLETE" in script.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(script)], check=True)


def test_bash_completes_a_command(unpacked: Path) -> None:
    script = unpacked / "usr/share/bash-completion/completions/opensend-milter"
    program = Path(sys.prefix) / "bin"
    ask = f"""source {script}; PATH={program}:$PATH; COMP_WORDS=(opensend-milter auth); COMP_CWORD=1
        function_name=$(complete -p opensend-milter | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function_name opensend-milter auth ''
        printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", ask], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["auth-gate"], done.stderr


def test_what_an_administrator_changes_is_kept_at_an_upgrade(package: Path) -> None:
    done = subprocess.run(["dpkg-deb", "--info", str(package), "conffiles"], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [
        "/etc/default/opensend-milter",
        "/etc/fail2ban/filter.d/opensend-milter.conf",
        "/etc/fail2ban/jail.d/opensend-milter.conf",
    ]


def test_it_needs_what_it_is_linked_with(package: Path, unpacked: Path) -> None:
    done = subprocess.run(["dpkg-deb", "--field", str(package), "Depends"], check=True, capture_output=True, text=True)
    assert "libmilter1.0.1" in done.stdout
    assert not list(unpacked.rglob("moto*"))
    site = next((unpacked / "usr/lib/opensend-milter/lib").iterdir()) / "site-packages"
    assert (site / "opensend_milter/share/systemd/opensend-milter.service").is_file()
    assert (site / "opensend_milter/share/postfix/main.cf.in").is_file()


def test_the_copyright_file_names_all_that_makes_the_whole_gpl(unpacked: Path) -> None:
    """It is pymilter; another library under such a licence is not to come in unseen."""
    head, *others = (unpacked / "usr/share/doc/opensend-milter/copyright").read_text().split("\n\n")
    assert "\nLicense: GPL-3+\n" in head
    licences: dict[str, str] = {}
    for one in others:
        if found := re.match(r"Files: ((?:.|\n )*)\nCopyright: (?:.|\n )*\nLicense: (\S+)", one):
            licences |= dict.fromkeys(found[1].split(), found[2])
    (site,) = unpacked.glob("usr/lib/opensend-milter/lib/*/site-packages")
    for folder in site.glob("*.dist-info"):
        said = re.findall(r"^(?:Classifier: )?License.*GPL.*", (folder / "METADATA").read_text(), re.MULTILINE)
        for line in (folder / "RECORD").read_text().splitlines():
            path = site / line.rsplit(",", 2)[0]
            if path.is_file() and path.suffix != ".pyc":
                # Of several that match the last one counts.
                *_, licence = (licences[glob] for glob in licences if fnmatch(str(path.relative_to(unpacked)), glob))
                assert ("GPL" in licence) is bool(said), (path, licence, said)


# ---------------------------------------------------------------- containers, as far as can be seen without Docker


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    composed: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return composed


def test_compose_runs_what_the_image_knows(composed: dict[str, Any]) -> None:
    known = set(re.findall(r"^([a-z-]+)\)", START.read_text(), re.MULTILINE)) & {
        *COMMANDS,
        "init",
        "dovecot",
        "postfix",
    }
    # In a network of its own it would be asked for passwords in clear: who wants it there gives it a socket or TLS.
    known.remove("console")
    ours = {name: one for name, one in composed["services"].items() if one["image"] == "opensend-milter"}
    assert {one["command"][0] for one in ours.values()} == known
    assert {name for name, one in composed["services"].items() if one.get("profiles") == ["smtp"]} == {
        *("serve", "auth-gate", "dovecot", "postfix")
    }
    for one in ours.values():
        assert one["read_only"]
        assert one["cap_drop"] == ["ALL"]
        assert not set(one["depends_on"]) - set(composed["services"])
        assert one["ulimits"] == {"core": 0}


@pytest.mark.case(80)
def test_of_the_containers_only_gate_and_postfix_know_the_gates_socket(composed: dict[str, Any]) -> None:
    place = str(Config().auth.socket.parent)
    mounted = {
        name: {str(volume).split(":")[1] for volume in one.get("volumes", [])}
        for name, one in composed["services"].items()
    }
    assert {name for name, places in mounted.items() if place in places} == {"auth-gate", "postfix"}
    assert f"chown opensend-auth {place}\n" in START.read_text()


def test_compose_declares_its_volumes_and_secrets(composed: dict[str, Any]) -> None:
    for one in composed["services"].values():
        named = {str(volume).partition(":")[0] for volume in one.get("volumes", [])}
        assert {name for name in named if not name.startswith(".")} <= set(composed["volumes"])
        secrets = {str(secret["source"] if isinstance(secret, dict) else secret) for secret in one.get("secrets", [])}
        assert secrets <= set(composed["secrets"])
        for variable, value in one.get("environment", {}).items():
            assert "PASSWORD" not in variable or value.startswith("/"), f"{variable} is no file"
            assert not variable.startswith("OPENSEND_MILTER_") or variable in {key.variable for key in KEYS}


def test_the_image_is_built_of_what_is_there() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    instructions = [line.split() for line in lines if line and not line.startswith("#")]
    assert instructions[0] == ["FROM", "debian:bookworm-slim"]
    assert {one[0] for one in instructions} <= {"FROM", "ENV", "COPY", "RUN", "ENTRYPOINT", "CMD", "HEALTHCHECK"}
    sources = [word for one in instructions if one[0] == "COPY" for word in one[1:-1]]
    assert [one for one in sources if not one.startswith("dist/") and not (ROOT / one).is_file()] == []
    (run,) = [one for one in instructions if one[0] == "RUN"]
    assert {"--no-install-recommends", "/var/lib/apt/lists/*"} <= set(run)


@pytest.mark.parametrize(
    "script", [START, *sorted((ROOT / "packaging" / "debian").glob("p*"))], ids=lambda one: one.name
)
def test_scripts_are_right(script: Path) -> None:
    subprocess.run(["sh", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)


@pytest.mark.parametrize("what", ["postfix", "dovecot"])
def test_a_container_renders_its_configuration(
    what: str, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings_for(2587)))
    program = (
        (ROOT / "packaging" / "container" / "render.py").read_text().replace("/etc/opensend-milter", str(tmp_path))
    )
    monkeypatch.setenv("OPENSEND_MILTER_CONFIG", str(tmp_path / "c.yaml"))
    monkeypatch.setenv("OPENSEND_MILTER_DATABASE_PASSWORD_DIR", str(database.password_dir))
    subprocess.run([sys.executable, "-c", program, what], check=True, cwd=ROOT)
    names = {"postfix": {"main.cf", "master.cf"}, "dovecot": {"dovecot.conf", "dovecot-sql.conf"}}
    assert {path.name for path in (tmp_path / what).iterdir()} == names[what]
    mode = 0o600 if what == "dovecot" else 0o644
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / what).iterdir()} == {mode}
