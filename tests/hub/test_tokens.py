"""Where tokens are kept and to whom they are shown."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import _login, constants
from huggingface_hub.utils import _auth

from core.common.errors import DeckError, InputError
from core.common.json_file import FileDamaged
from core.common.urls import host_name, origin
from core.hub.endpoints import MIRROR, checked_endpoint
from core.hub.tokens import forget_token, store_token, token_for, token_keeper

HUB = "https://huggingface.co"
LOCAL = "http://127.0.0.1:8080"


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "stored_tokens"))
    return tmp_path / "data"


def test_a_stored_token_is_for_its_own_origin_alone() -> None:
    store_token(HUB, " hf_one ")
    assert token_for(HUB) == token_for("https://HUGGINGFACE.co:443/") == "hf_one"
    for other in (MIRROR, "https://huggingface.co:444", "http://huggingface.co", "https://huggingface.co.evil.org"):
        assert token_for(other) is None


def test_a_token_is_kept_where_only_its_owner_reads_it(data: Path) -> None:
    store_token(HUB, "hf_one")
    assert stat.S_IMODE((data / "secrets.json").stat().st_mode) == 0o600


def test_a_forgotten_token_is_gone_from_the_file(data: Path) -> None:
    store_token(HUB, "hf_one")
    store_token(MIRROR, "hf_two")
    forget_token(HUB)
    assert token_for(HUB) is None and token_for(MIRROR) == "hf_two"
    assert "hf_one" not in (data / "secrets.json").read_text()


def test_the_environments_token_is_for_the_endpoint_it_belongs_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_env")
    assert token_for(HUB) == "hf_env" and token_keeper(HUB) == "environment"
    assert token_for(MIRROR) is None
    monkeypatch.setenv("HF_ENDPOINT", LOCAL)
    assert token_for(LOCAL) == "hf_env"
    assert token_for(HUB) is None and token_keeper(HUB) is None


def log_in(token: str) -> None:
    """What `hf auth login` does with a token, without asking the Hub whose it is."""
    _auth._save_token(token, "mine")
    _login._set_active_token("mine", add_to_git_credential=False)


def test_the_token_of_hf_auth_login_is_used_where_none_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_for(HUB) is None and token_keeper(HUB) is None
    log_in("hf_login")
    assert token_for(HUB) == "hf_login" and token_keeper(HUB) == "login"
    assert token_for(MIRROR) is None
    store_token(HUB, "hf_given")
    assert token_for(HUB) == "hf_given" and token_keeper(HUB) == "stored"
    monkeypatch.setenv("HF_TOKEN", "hf_env")
    assert token_keeper(HUB) == "environment"
    monkeypatch.delenv("HF_TOKEN")
    forget_token(HUB)
    monkeypatch.setenv("HF_ENDPOINT", LOCAL)
    assert token_for(HUB) is None and token_for(LOCAL) == "hf_login"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert token_for(LOCAL) is None


@pytest.mark.parametrize("kept", [b"", b"two words", b"\xff\xfe", b"x" * 5000])
def test_what_is_no_token_in_the_logins_file_is_none(kept: bytes, caplog: pytest.LogCaptureFixture) -> None:
    Path(constants.HF_TOKEN_PATH).write_bytes(kept)
    assert token_for(HUB) is None and token_keeper(HUB) is None
    assert "two words" not in caplog.text


def test_looking_for_a_login_imports_little(tmp_path: Path) -> None:
    code = "import sys; from core.hub.tokens import token_for; token_for('https://huggingface.co'); print(*sys.modules)"
    environment = os.environ | {"HF_TOKEN_PATH": str(tmp_path / "none")}
    modules = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not {"httpx2", "huggingface_hub.utils"} & set(modules.stdout.split())
    (tmp_path / "token").write_text("hf_kept")
    code = "from core.hub.tokens import token_for; print(token_for('https://huggingface.co'))"
    environment["HF_TOKEN_PATH"] = str(tmp_path / "token")
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "hf_kept"


def test_no_token_goes_to_another_machine_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as caught:
        store_token("http://hub.example", "hf_one")
    assert "hub.example" in str(caught.value) and "hf_one" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_env")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    assert token_for("http://hub.example") is None


@pytest.mark.parametrize("address", [LOCAL, "http://localhost:1", "http://[::1]:1"])
def test_this_machine_itself_may_have_a_token(address: str) -> None:
    store_token(address, "hf_local")
    assert token_for(address) == "hf_local"


@pytest.mark.parametrize("token", ["", "two words", "tab\there", "né", "x" * 5000])
def test_what_is_no_token_is_refused_without_quoting_it(token: str) -> None:
    with pytest.raises(InputError) as caught:
        store_token(HUB, token)
    assert caught.value.key == "hub_token_text" and not caught.value.params


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tokens": 5}', '{"tokens": "hf_secret', "\udc80"])
def test_a_broken_file_is_no_token_and_stays_out_of_the_log(
    data: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    data.mkdir()
    (data / "secrets.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with caplog.at_level(logging.WARNING):
        assert token_for(HUB) is None
    assert "secrets.json is not used" in caplog.text and "hf_secret" not in caplog.text
    content = (data / "secrets.json").read_bytes()
    with pytest.raises(FileDamaged) as caught:
        store_token(HUB, "hf_new")
    assert "hf_secret" not in str(caught.value) and (data / "secrets.json").read_bytes() == content


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(DeckError) as caught:
        store_token(HUB, "hf_one")
    assert caught.value.key == "token_write" and "hf_one" not in str(caught.value)


@pytest.mark.parametrize("text", ["ftp://x", "huggingface.co", "http://", "http://[::1", "http://x:99999", ""])
def test_what_is_no_web_address_has_no_origin(text: str) -> None:
    assert origin(text) is None
    assert token_for(text) is None
    with pytest.raises(InputError):
        store_token(text, "hf_one")


def test_a_checked_endpoint_has_no_slash_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked_endpoint(None) == HUB
    assert checked_endpoint(" https://hf-mirror.com/ ") == MIRROR
    monkeypatch.setenv("HF_ENDPOINT", LOCAL + "/")
    assert checked_endpoint("") == LOCAL
    with pytest.raises(InputError):
        checked_endpoint("nonsense")


def test_a_host_is_called_without_the_password_before_it() -> None:
    assert host_name("https://user:secret@hub.example:8443/x") == "hub.example:8443"
