"""What a person chose once survives a restart, and a bad file never stops the dashboard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.preferences import Preferences


def test_a_choice_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "data" / "settings.json"
    Preferences(path).set("languages", "zh-CN", "en")
    Preferences(path).set("languages", "de", "zh")
    again = Preferences(path)
    assert (again.get("languages", "zh-CN"), again.get("languages", "de")) == ("en", "zh")
    assert again.get("languages", "fr") is None and again.get("nothing", "fr") is None


def test_nothing_but_the_file_is_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    Preferences(path).set("languages", "zh-CN", "en")
    assert list(tmp_path.iterdir()) == [path]
    assert json.loads(path.read_text("utf-8")) == {"languages": {"zh-CN": "en"}}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"languages": 1}', b"\xff\xfe", b"null"])
def test_a_file_that_is_no_settings_is_not_used_and_then_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    preferences = Preferences(path)
    assert preferences.get("languages", "zh-CN") is None
    preferences.set("languages", "zh-CN", "zh")
    assert Preferences(path).get("languages", "zh-CN") == "zh"


def test_a_choice_that_cannot_be_written_holds_until_the_end(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    preferences = Preferences(blocked / "settings.json")
    preferences.set("languages", "zh-CN", "en")
    assert preferences.get("languages", "zh-CN") == "en"
