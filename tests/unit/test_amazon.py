"""Sessions with Amazon: each caller's own, but for what describes the services."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.loaders import JSONFileLoader

from opensend_milter.adapters.amazon import session


def test_what_describes_a_service_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker with ten threads read it ten times, into nine megabytes each."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "one")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    first = session()
    first.client("sesv2", region_name="eu-central-1").close()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    read: list[str] = []

    def load_file(loader: JSONFileLoader, path: str) -> Any:
        read.append(path)
        return original(loader, path)

    original = JSONFileLoader.load_file
    monkeypatch.setattr(JSONFileLoader, "load_file", load_file)
    second = session()
    second.client("sesv2", region_name="us-east-1").close()
    assert read == []
    found = [one.get_credentials() for one in (first, second)]
    assert [one and one.access_key for one in found] == ["one", "another"]
