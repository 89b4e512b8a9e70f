"""Sending a finished model to the Hub: what is checked before, and what a refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from core.common.errors import DeckError, InputError
from core.quantize.push import check_push, push

ENDPOINT = "https://huggingface.co"


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


class FakeApi:
    """Stands in for huggingface_hub's client."""

    calls: list[tuple[str, dict[str, Any]]]
    error: Exception | None = None

    def __init__(self, **options: Any) -> None:
        type(self).calls = [("open", options)]

    def create_repo(self, repo: str, **options: Any) -> str:
        self.calls.append((repo, options))
        return f"{ENDPOINT}/{repo}"

    def upload_folder(self, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(("upload", options))


@pytest.mark.parametrize("name", ["", "name", "a/b/c", "../x", "a b/c", "a/.."])
def test_names_that_are_no_repository_are_refused(token: None, name: str) -> None:
    with pytest.raises(InputError) as raised:
        check_push(name, ENDPOINT)
    assert raised.value.key == "push_name"


def test_without_a_token_nothing_is_begun(token: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError) as raised:
        check_push("me/mine", ENDPOINT)
    assert raised.value.key == "push_token"


def test_a_model_goes_into_a_private_repository(token: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    assert push(tmp_path, "me/mine", ENDPOINT) == f"{ENDPOINT}/me/mine"
    opened, created, sent = FakeApi.calls
    assert opened[1] == {"endpoint": ENDPOINT, "token": "hf_secret"}
    assert created == ("me/mine", {"private": True, "exist_ok": True})
    assert sent[1]["folder_path"] == tmp_path and ".llamadeck.json" in sent[1]["ignore_patterns"]


def test_a_refusal_is_told_in_words(token: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "error", ValueError("no right to write\nmore lines"))
    with pytest.raises(DeckError) as raised:
        push(tmp_path, "me/mine", ENDPOINT)
    assert (raised.value.key, raised.value.params["why"]) == ("push_failed", "no right to write")
    assert f"hf upload me/mine {tmp_path}" in str(raised.value)
