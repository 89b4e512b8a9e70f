"""What a person chose once survives a restart, and a bad file never stops the dashboard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.common.preferences import Preferences


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
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "settings.json.lock"]
    assert json.loads(path.read_text("utf-8")) == {"languages": {"zh-CN": "en"}}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"languages": 1}', b"\xff\xfe", b"null"])
def test_a_file_that_is_no_settings_is_not_used_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    """It was once written over by the next choice, and all others in it were lost."""
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    preferences = Preferences(path)
    assert preferences.get("languages", "zh-CN") is None
    preferences.set("languages", "zh-CN", "zh")
    assert preferences.get("languages", "zh-CN") == "zh" and path.read_bytes() == content


def test_two_who_choose_at_once_both_keep_their_choice(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    one, other = Preferences(path), Preferences(path)
    one.set("preset", "llama", "precise")
    other.set("chat", "speed", "off")
    assert (one.get("chat", "speed"), other.get("preset", "llama")) == ("off", "precise")


def test_what_another_version_keeps_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"theme": {"dark": true, "font": "a"}, "new": {"list": [1, null]}}', "utf-8")
    preferences = Preferences(path)
    assert preferences.get("theme", "dark") is None and preferences.get("theme", "font") == "a"
    preferences.set("theme", "font", "b")
    assert json.loads(path.read_text("utf-8")) == {"theme": {"dark": True, "font": "b"}, "new": {"list": [1, None]}}


def test_a_choice_that_cannot_be_written_holds_until_the_end(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    preferences = Preferences(blocked / "settings.json")
    preferences.set("languages", "zh-CN", "en")
    assert preferences.get("languages", "zh-CN") == "en"
