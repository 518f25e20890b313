"""Tokens: ours are understood, all others are not."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from opensend_milter.core.ids import new_email_id
from opensend_milter.core.signing import derived, email_of_return_path, link_token, opened_link, return_path_token

SECRET = bytes(range(32))
PATH, LINK = derived(SECRET, "return-path"), derived(SECRET, "link")


def test_each_purpose_and_each_name_has_its_own_key() -> None:
    assert len({PATH, LINK, derived(SECRET, "webhook", "a"), derived(SECRET, "webhook", "b"), SECRET}) == 5


def test_a_return_path_fits_a_local_part_and_survives_a_change_of_case() -> None:
    email_id = new_email_id()
    token = return_path_token(PATH, email_id)
    assert len(f"b-{token}") <= 64
    assert token.isalnum()
    assert email_of_return_path(PATH, token) == email_of_return_path(PATH, token.upper()) == email_id


@given(st.binary(max_size=3_000))
def test_a_link_says_what_it_was_given(rest: bytes) -> None:
    email_id = new_email_id()
    assert opened_link(LINK, link_token(LINK, email_id, rest)) == (email_id, rest)


@pytest.mark.parametrize("token", ["", "a", "=", "é", "a" * 42, "!" * 42, "a b", "\x00" * 42, "A" * 10_000])
def test_what_is_not_ours_is_nothing(token: str) -> None:
    assert email_of_return_path(PATH, token) is None
    assert opened_link(LINK, token) is None


def test_a_changed_token_or_one_of_another_key_is_nothing() -> None:
    email_id = new_email_id()
    path, link = return_path_token(PATH, email_id), link_token(LINK, email_id, b"https://example.org/")
    assert email_of_return_path(LINK, path) is None
    assert opened_link(PATH, link) is None
    for at in range(len(path) - 1):
        other = path[:at] + ("a" if path[at] != "a" else "b") + path[at + 1 :]
        assert email_of_return_path(PATH, other) is None
    for at in range(len(link) - 1):
        other = link[:at] + ("a" if link[at] != "a" else "b") + link[at + 1 :]
        assert opened_link(LINK, other) is None
