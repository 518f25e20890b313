"""docs/clients.md shows what `key create --snippet` prints, and each snippet says what its client would not misread."""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from opensend_milter.cli.snippets import CLIENTS, SNIPPETS, Access, Client, Encryption

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
WRITE = "UPDATE_DOCS"
HOW = f"the page is not what the code says; write it anew: {WRITE}=1 pytest {Path(__file__).name}"
FENCE = re.compile(r"(?ms)^(```\w+ client=([\w-]+)\n)(.*?)^```$")
SHOWN = Access(
    host="smtp.example.org",
    port=587,
    tls="starttls",
    http_url="https://smtp.example.org",
    key="YOUR_API_KEY",
    sender="hello@example.org",
    recipient="someone@example.net",
)
each_client = pytest.mark.parametrize("client", CLIENTS)


def written(client: Client, access: Access) -> str:
    return SNIPPETS[client].write(access)


def test_the_page_shows_what_is_printed() -> None:
    """Nobody has to remember the page when a snippet changes."""
    page = PAGE.read_text(encoding="utf-8")
    wanted = FENCE.sub(lambda found: f"{found[1]}{written(Client(found[2]), SHOWN)}```", page)
    if os.environ.get(WRITE):
        PAGE.write_text(wanted, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == wanted, HOW


def test_the_page_shows_every_client_once() -> None:
    """None is left out of the page, and the choice of names is that of the page and `all`."""
    assert sorted(found[2] for found in FENCE.finditer(PAGE.read_text(encoding="utf-8"))) == sorted(CLIENTS)
    assert {*CLIENTS, Client.ALL} == set(Client)


@each_client
@pytest.mark.parametrize("tls", ["starttls", "tls", "none"])
def test_every_client_is_told_all_it_needs(client: Client, tls: Encryption) -> None:
    """Host, port and key are in each, whatever the port speaks."""
    ca_file = None if tls == "none" else Path("/srv/ca.pem")
    text = written(client, replace(SHOWN, tls=tls, port=4465, ca_file=ca_file))
    assert "smtp.example.org" in text
    assert "YOUR_API_KEY" in text
    assert ("4465" in text) is (client is not Client.HTTP)
    assert ("/srv/ca.pem" in text) is (tls != "none")


@each_client
def test_quotes_in_a_value_end_nothing(client: Client) -> None:
    """A file's name with quotes, a dollar sign and a space stays one value for a shell, Python, JavaScript and PHP."""
    odd = Path('/srv/it\'s "my" $HOME.pem')
    text = written(client, replace(SHOWN, ca_file=odd))
    match client:
        case Client.SWAKS | Client.CURL | Client.HTTP:
            assert str(odd) in shlex.split(text.replace("\\\n", " "))
        case Client.PYTHON:
            compile(text, "snippet", "exec")
            assert f"cafile={json.dumps(str(odd))}" in text
        case Client.NODEMAILER:
            assert f"readFileSync({json.dumps(str(odd))})" in text
        case Client.PHPMAILER:
            assert "'/srv/it\\'s \"my\" $HOME.pem'" in text
        case _:
            assert str(odd) in text
