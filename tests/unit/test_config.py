"""The loader takes what is right and names everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from opensend_milter.config import (
    DEFAULT_PATH,
    KEYS,
    PATH_VARIABLE,
    Config,
    Key,
    Milter,
    check_front_door,
    effective,
    load,
    load_with_sources,
    loader,
)
from opensend_milter.config.values import mask
from opensend_milter.core.errors import ConfigError

BAD_CONFIGS = Path(__file__).parents[1] / "bad_configs"
PASSWORD = "correct-horse"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Return a file that exists and says nothing, so no file of the host takes part."""
    path = tmp_path / "opensend-milter.yaml"
    path.touch()
    return path


def faults(path: Path | None, environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    return str(caught.value).splitlines()


def test_nothing_said_is_the_defaults(config_file: Path) -> None:
    """No key is required."""
    assert load(config_file, {}) == Config()


@pytest.mark.parametrize("text", ["smtp:\n", "# only a comment\n", "---\n", "smtp: {}\n", "\ufefflog: {level: info}\n"])
def test_an_empty_section_is_fine(config_file: Path, text: str) -> None:
    """What remains when all of a section is commented out is no fault."""
    config_file.write_text(text, encoding="utf-8")
    assert load(config_file, {}) == Config()


def test_values_become_what_the_section_says(config_file: Path) -> None:
    """Each type arrives as itself, also a whole number where a number is asked."""
    config_file.write_text(
        "profile: opensend\nsmtp: {relay_port: 2525, plaintext_auth: true, host: '::1'}\n"
        "milter: {drain_s: 3, gather_window_ms: .5, spool_dir: /var/spool/x}\n"
        "size: {max_message_bytes: 10_485_760}\nrelay: {tls: starttls, ca_file: null}\n"
    )
    config = load(config_file, {})
    assert config.profile == "opensend"
    assert (config.smtp.relay_port, config.smtp.plaintext_auth, config.smtp.host) == (2525, True, "::1")
    assert (config.milter.drain_s, config.milter.gather_window_ms) == (3.0, 0.5)
    assert isinstance(config.milter.drain_s, float)
    assert config.milter.spool_dir == Path("/var/spool/x")
    assert config.size.max_message_bytes == 10_485_760
    assert (config.relay.tls, config.relay.ca_file) == ("starttls", None)


@pytest.mark.case(70)
@pytest.mark.parametrize("path", sorted(BAD_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_bad_config_is_refused_for_its_reason(path: Path) -> None:
    """Every fault is named, and nothing else is."""
    expected = path.with_suffix(".expected-error").read_text(encoding="utf-8").splitlines()
    assert all(expected)
    found = faults(path, {})
    assert [one for one in expected if not any(one in line for line in found)] == []
    assert [line for line in found if not any(one in line for one in expected)] == []
    assert all(PASSWORD not in line for line in found)


def test_each_bad_config_has_its_reason() -> None:
    """No file lies there without being tried."""
    assert len(list(BAD_CONFIGS.glob("*.yaml"))) >= 15
    assert {path.stem for path in BAD_CONFIGS.glob("*.yaml")} == {
        path.stem for path in BAD_CONFIGS.glob("*.expected-error")
    }


@pytest.mark.parametrize(("name", "reason"), [("missing.yaml", "No such file or directory"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, reason: str) -> None:
    """The name and the reason are in the text; the environment is checked, but not against what is not known."""
    path = tmp_path / name
    first, second = faults(path, {"SMTP_RELAY_PORT": "x", "BACKGROUND_JOBS_REQUIRE_QUEUE": "true"})
    assert first == f"configuration file: expected a file that can be read, got {str(path)!r}: {reason}"
    assert second.startswith("smtp.relay_port: ")


def test_the_variable_names_the_file(tmp_path: Path, config_file: Path) -> None:
    """A path given by the caller wins over the variable, and an unreadable file is blamed on it."""
    config_file.write_text("log: {level: debug}")
    assert load(None, {PATH_VARIABLE: str(config_file)}).log.level == "debug"
    assert load(config_file, {PATH_VARIABLE: "/nowhere"}).log.level == "debug"
    (text,) = faults(None, {PATH_VARIABLE: str(tmp_path / "none")})
    assert text.endswith(f"(environment: {PATH_VARIABLE})")


def test_the_default_file_may_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a file the environment alone configures everything."""
    assert Path("/etc/opensend-milter/opensend-milter.yaml") == DEFAULT_PATH
    monkeypatch.setattr(loader, "DEFAULT_PATH", tmp_path / "default.yaml")
    assert load(None, {PATH_VARIABLE: ""}) == Config()
    (tmp_path / "default.yaml").write_text("log: {level: debug}")
    assert load(None, {}).log.level == "debug"


def test_the_environment_wins_over_the_file(config_file: Path) -> None:
    """Generic name, short name, file, default: in this order, and each value's source is known."""
    config_file.write_text("smtp: {relay_port: 1001, submission_port: 1002, smtps_port: 1003}")
    environ = {"SMTP_RELAY_PORT": "2001", "PORT_SUBMISSION": "2002", "OPENSEND_MILTER_SMTP_RELAY_PORT": "3001"}
    config, sources = load_with_sources(config_file, environ)
    assert (config.smtp.relay_port, config.smtp.submission_port, config.smtp.smtps_port) == (3001, 2002, 1003)
    assert sources["smtp.relay_port"] == "OPENSEND_MILTER_SMTP_RELAY_PORT"
    assert sources["smtp.submission_port"] == "PORT_SUBMISSION"
    assert sources["smtp.smtps_port"] == "file"
    assert sources["smtp.host"] == "default"


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_every_key_has_its_variables(config_file: Path, key: Key) -> None:
    """Each name reaches its key: the source says so, or the fault names both."""
    for name in filter(None, (key.variable, key.option.env)):
        try:
            sources = load_with_sources(config_file, {name: "1"})[1]
        except ConfigError as error:
            assert key.path in str(error)  # noqa: PT017  # either is right
            assert name in str(error)  # noqa: PT017
        else:
            assert [path for path, source in sources.items() if source == name] == [key.path]


def test_no_two_keys_share_a_variable() -> None:
    """A name means one key."""
    names = [name for key in KEYS for name in (key.variable, key.option.env) if name]
    assert len(set(names)) == len(names)
    assert PATH_VARIABLE not in names


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_variable_is_not_set(config_file: Path, text: str) -> None:
    """Compose files pass on variables that nobody set, ours as well."""
    config_file.write_text("smtp: {relay_port: 1001}")
    environ = {"SMTP_RELAY_PORT": text, "OPENSEND_MILTER_SMTP_RELAY_PORT": text, "OPENSEND_MILTER_NONE": text}
    assert load(config_file, environ).smtp.relay_port == 1001


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("TRUE", True), ("yes", True), ("1", True), ("False", False), ("no", False), ("0", False)],
)
def test_yes_and_no(config_file: Path, text: str, value: bool) -> None:  # noqa: FBT001
    """The words for yes and no, in any case."""
    environ = {"BACKGROUND_JOBS_REQUIRE_QUEUE": text, "BACKGROUND_JOBS_QUEUE_URL": " https://sqs.example.org/1/jobs "}
    queue = load(config_file, environ).queue
    assert queue.require is value
    assert queue.url == "https://sqs.example.org/1/jobs"


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("BACKGROUND_JOBS_REQUIRE_QUEUE", "on", "queue.require: expected true or false, got 'on'"),
        ("BACKGROUND_JOBS_DB_POLLING_FALLBACK", "?", "queue.db_polling_fallback: expected true or false, got '?'"),
        ("MAX_RECIPIENTS", "5.0", "size.max_recipients: expected a whole number from 1 to 1000, got '5.0'"),
        (
            "MAX_RECIPIENTS",
            "\N{ARABIC-INDIC DIGIT FIVE}",
            "size.max_recipients: expected a whole number from 1 to 1000, got '\N{ARABIC-INDIC DIGIT FIVE}'",
        ),
        ("SMTP_RELAY_PORT", "-1", "smtp.relay_port: expected a port from 1 to 65535, or 0 for off, got '-1'"),
        ("SMTP_RELAY_PORT", "0x50", "smtp.relay_port: expected a port from 1 to 65535, or 0 for off, got '0x50'"),
        (
            "OPENSEND_MILTER_MILTER_DRAIN_S",
            "\N{ARABIC-INDIC DIGIT FIVE}",
            "milter.drain_s: expected a number from 0 to 600, got '\N{ARABIC-INDIC DIGIT FIVE}'",
        ),
        ("OPENSEND_MILTER_MILTER_DRAIN_S", "nan", "milter.drain_s: expected a number from 0 to 600, got 'nan'"),
        ("OPENSEND_MILTER_PROFILE", "both", "profile: expected one of standalone, opensend, got 'both'"),
    ],
)
def test_a_wrong_variable_is_named(config_file: Path, name: str, text: str, fault: str) -> None:
    """The fault names the key, the value and the variable."""
    assert faults(config_file, {name: text}) == [f"{fault} (environment: {name})"]


@pytest.mark.parametrize("digits", [400, 5_000])
def test_an_endless_number_is_out_of_range(config_file: Path, digits: int) -> None:
    """Python refuses to read a number this long; the error is ours and short."""
    for name in ("MAX_RECIPIENTS", "OPENSEND_MILTER_MILTER_DRAIN_S"):
        (text,) = faults(config_file, {name: "9" * digits})
        assert f"({digits} bytes)" in text
        assert len(text) < 250


@pytest.mark.parametrize("text", ["{}: 1\n", "smtp:\n  {}: 1\n"])
def test_an_endless_name_is_said_in_short(config_file: Path, text: str) -> None:
    config_file.write_text(text.format("x" * 1_000))
    (fault,) = faults(config_file, {})
    assert "(1000 bytes)" in fault
    assert len(fault) < 400


@pytest.mark.case(70)
def test_an_unknown_variable_of_ours_is_an_error(config_file: Path) -> None:
    """A misspelt variable does not go unnoticed; other programs' variables are theirs."""
    (text,) = faults(config_file, {"OPENSEND_MILTER_SMTP_HOTS": "x", "OPENSEND_API": "x"})
    assert text.startswith(
        "OPENSEND_MILTER_SMTP_HOTS: expected a known variable (did you mean OPENSEND_MILTER_SMTP_HOST?)"
    )


def test_only_the_variable_that_wins_is_read(config_file: Path) -> None:
    """A short name that means something else on this host can be overruled."""
    environ = {"API_URI": "not ours", "OPENSEND_MILTER_API_URI": "https://api.example.org"}
    assert load(config_file, environ).api.uri == "https://api.example.org"


def test_all_faults_come_at_once(config_file: Path) -> None:
    """File, environment and what does not go together are in one error, one line each."""
    config_file.write_text("smpt: {}\nlog: {level: loud}\ntls: {key: /etc/ssl/mail.key}\n")
    found = faults(config_file, {"SMTP_RELAY_PORT": "x"})
    assert [line.partition(":")[0] for line in found] == ["smpt", "log.level", "smtp.relay_port", "tls.certificate"]
    assert found[3].endswith(f"({config_file}:3)")


def test_a_clash_names_all_that_take_part(config_file: Path) -> None:
    """The value to mend may be in the file or in the environment: both are told."""
    config_file.write_text("smtp: {relay_port: 587}")
    (text,) = faults(config_file, {"PORT_SUBMISSION": "587"})
    assert text.endswith(f"(environment: PORT_SUBMISSION, {config_file}:1)")


def test_a_wrong_value_makes_no_clash(config_file: Path) -> None:
    """What is not known cannot contradict anything."""
    config_file.write_text("queue: {require: true, url: nonsense}\nmilter: {soft_timeout_s: x, hard_timeout_s: 3}")
    assert [line.partition(":")[0] for line in faults(config_file, {})] == ["queue.url", "milter.soft_timeout_s"]


SECRET = "username: me, password_file: /x"


@pytest.mark.parametrize(
    "text",
    [
        f"relay: {{{SECRET}}}",
        f"relay: {{{SECRET}, host: localhost, fallbacks: '127.0.0.2:26 localhost:27'}}",
        f"relay: {{{SECRET}, host: relay.example.org, tls: starttls}}",
        f"relay: {{{SECRET}, host: 10.0.0.1, plaintext_auth: true}}",
        "relay: {host: 10.0.0.1}",
        "api: {uri: 'http://127.0.0.1:3000/plunk', key_file: /x}",
        "api: {uri: 'http://[::1]', key_file: /x}",
        "api: {uri: 'http://10.0.0.1'}",
        "api: {uri: 'http://10.0.0.1', key_file: /x, plaintext_auth: true}",
        "api: {uri: 'https://api.example.org', key_file: /x}",
    ],
)
def test_a_secret_goes_to_this_host_under_tls_or_where_it_is_told_to(config_file: Path, text: str) -> None:
    config_file.write_text(text)
    load(config_file, {})


def test_the_front_door_needs_a_certificate(config_file: Path) -> None:
    """Rendering and check-config ask for it; serve and worker load without."""
    config = load(config_file, {})
    with pytest.raises(ConfigError, match=r"^tls.certificate: .* smtp.plaintext_auth: true with smtp.host: 127.0.0.1"):
        check_front_door(config)
    with pytest.raises(ConfigError, match=r"^tls.certificate: "):
        load_with_sources(config_file, {}, front_door=True)


@pytest.mark.parametrize(
    "environ",
    [
        {"CERT_PATH": "/certs"},
        {"ACME_JSON_PATH": "/acme.json"},
        {"SMTP_RELAY_TLS_CERT_PATH": "/a.pem", "SMTP_RELAY_TLS_KEY_PATH": "/a.key"},
        {"OPENSEND_MILTER_SMTP_PLAINTEXT_AUTH": "true", "SMTP_RELAY_HOST": "127.0.0.1"},
    ],
)
def test_the_front_door_opens(config_file: Path, environ: dict[str, str]) -> None:
    """Each source of a certificate will do, and so will plaintext on loopback."""
    check_front_door(load_with_sources(config_file, environ, front_door=True)[0])


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        (f"postgresql://u:{PASSWORD}@h:5432/db", "postgresql://u:********@h:5432/db"),
        (f"postgresql://u:a@b/{PASSWORD}?#@h/db", "postgresql://u:********@h/db"),
        (f"postgresql://:{PASSWORD}@h/db", "postgresql://:********@h/db"),
        (f"postgresql:/u:{PASSWORD}@h/db", "postgresql:********@h/db"),
        (f"postgresql//u:{PASSWORD}@h/db", "postgresql//u:********@h/db"),
        (f"u:{PASSWORD}@h/db", "u:********@h/db"),
        (f"postgresql:///db?sslpassword={PASSWORD}&user=u", "postgresql:///db?sslpassword=********&user=u"),
        (f"postgresql:///db?p%61ssword={PASSWORD}", "postgresql:///db?p%61ssword=********"),
        (f"postgresql:///db?x?password={PASSWORD}", "postgresql:///db?x?password=********"),
    ],
)
def test_a_password_is_masked(text: str, safe: str) -> None:
    """Only the password, wherever libpq or a slip of the hand has it."""
    assert mask(text) == safe


@pytest.mark.parametrize(
    "text",
    [
        "postgresql:///opensend?host=/var/run/postgresql",
        "postgresql://u@[::1]:5432/db?passfile=/etc/pgpass",
        "http://127.0.0.1:4566",
        "::1",
        "bounces@example.org",
        "https://sqs.us-east-1.amazonaws.com/1/jobs",
    ],
)
def test_what_is_no_password_is_shown(text: str) -> None:
    """A value without a password is shown as it is."""
    assert mask(text) == text


@given(st.text(min_size=1).map("~{}~".format))
def test_any_password_is_masked(password: str) -> None:
    """Whatever the password is made of."""
    assert password not in mask(f"postgresql://user:{password}@host/db")


@pytest.mark.parametrize(
    "name", ["DATABASE_URL", "OPENSEND_MILTER_DATABASE_URL", "OPENSEND_MILTER_RELAY_PASSWORD_FILE"]
)
def test_no_error_shows_a_password(config_file: Path, name: str) -> None:
    """Also where the value is wrong, or the password stands where its file's name should."""
    found = faults(config_file, {name: f"mysql//{PASSWORD}", "BACKGROUND_JOBS_QUEUE_URL": f"sqs://u:{PASSWORD}@h"})
    assert len(found) == 2
    assert PASSWORD not in "\n".join(found)


def test_the_effective_configuration_is_masked(config_file: Path) -> None:
    """The settings for people to see hold no password, and say so."""
    url = f"postgresql://u:{PASSWORD}@h/db"
    config, sources = load_with_sources(config_file, {"DATABASE_URL": url})
    assert config.database.url == url
    shown = {f"{one.section}.{one.key}": one for one in effective(config, sources)}
    assert len(shown) == len(KEYS)
    assert shown["database.url"].value == "postgresql://u:********@h/db"
    assert shown["database.url"].masked
    assert shown["database.url"].source == "DATABASE_URL"
    assert not shown["smtp.host"].masked


@pytest.mark.parametrize(
    ("processes", "cores", "children"), [(0, 1, 1), (0, 4, 1), (0, 5, 2), (0, 16, 4), (0, 64, 4), (7, 1, 7)]
)
def test_processes_are_sized_to_the_machine(processes: int, cores: int, children: int) -> None:
    assert Milter(processes=processes).children(cores) == children
