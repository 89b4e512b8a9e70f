"""Addresses of servers as people type them, and the keys that are kept for them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from core.common.errors import InputError
from core.remote.address import checked_address, keep_key, key_of


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        (" https://host/v1/ ", "https://host"),
        ("host:8000/v1", "http://host:8000"),
        ("https://host/proxy/8000/v1", "https://host/proxy/8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_an_address_may_be_written_in_several_ways(typed: str, address: str) -> None:
    assert checked_address(typed) == address


@pytest.mark.parametrize(
    "typed",
    ["", "  ", "ftp://host", "file:///etc/passwd", "http://", "http://host:99999", "http://h?x=1", "http://h/#v1",
     "http://a\nb", "http://" + "h" * 600, "http://[::1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(typed: str) -> None:
    with pytest.raises(InputError) as caught:
        checked_address(typed)
    assert caught.value.key == "remote_address"


def test_an_address_with_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError) as caught:
        checked_address("http://me:secret@host:8000")
    assert caught.value.key == "remote_login" and "secret" not in caught.value.sentence("en")


def test_a_key_is_kept_for_its_own_address_in_a_file_that_only_its_owner_reads(data: Path) -> None:
    keep_key("http://host:8000", " secret ")
    assert key_of("http://host:8000") == "secret"
    assert key_of("http://host:8001") is None and key_of("https://host:8000") is None
    assert os.stat(data / "engine_keys.json").st_mode & 0o777 == 0o600
    keep_key("http://host:8000", "")
    assert key_of("http://host:8000") is None


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "ключ", "x" * 5000])
def test_what_no_header_can_carry_is_no_key(key: str) -> None:
    with pytest.raises(InputError) as caught:
        keep_key("http://host", key)
    assert caught.value.key == "remote_key_text"


def test_a_broken_file_is_not_used_and_not_quoted(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    data.mkdir()
    (data / "engine_keys.json").write_text('{"http://host": "secret', "utf-8")
    with caplog.at_level(logging.WARNING):
        assert key_of("http://host") is None
    assert "engine_keys.json" in caplog.text and "secret" not in caplog.text
