"""Keys to the API: made once, kept as hashes, revoked for good; a broken file opens nothing and is not lost."""

from __future__ import annotations

import json
import stat
import threading
from datetime import date
from pathlib import Path

import pytest

from core.access.keys import KeyStore
from core.common.errors import DeckError, InputError

DAY, NEXT_DAY = date(2026, 11, 26), date(2026, 11, 27)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keys.json"


def test_a_key_opens_until_it_is_revoked(path: Path) -> None:
    store = KeyStore(path)
    first, second = store.make("notebook"), store.make("  my   phone ")
    assert first != second and first.startswith("ld-") and len(first) > 40
    assert [key.name for key in store.keys()] == ["notebook", "my phone"]
    found = store.find(first)
    assert found is not None and found.name == "notebook" and first.endswith(found.end)
    store.revoke(found.id)
    store.revoke(found.id)
    assert store.find(first) is None and store.find(second) is not None


def test_the_file_holds_no_key_and_is_read_by_its_owner_only(path: Path) -> None:
    text = KeyStore(path).make("notebook")
    assert text not in path.read_text("utf-8") and text.removeprefix("ld-")[:8] not in path.read_text("utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "ld-", "sk-123", "密钥", "\ud800", "x" * 100_000])
def test_nothing_else_opens(path: Path, text: str) -> None:
    store = KeyStore(path)
    store.make("notebook")
    assert store.find(text) is None


def test_two_processes_see_each_others_changes(path: Path) -> None:
    one, other = KeyStore(path), KeyStore(path)
    assert other.keys() == ()
    text = one.make("notebook")
    found = other.find(text)
    assert found is not None
    other.revoke(found.id)
    assert one.find(text) is None


def test_the_day_of_the_last_use_is_written_once_a_day(path: Path) -> None:
    days = [DAY]
    store = KeyStore(path, today=lambda: days[0])
    store.make("notebook")
    key = store.keys()[0]
    assert (key.made, key.used) == ("2026-11-26", "") and store.is_new_day(key)
    store.note_use(key)
    key = store.keys()[0]
    assert key.used == "2026-11-26" and not store.is_new_day(key)
    days[0] = NEXT_DAY
    assert store.is_new_day(key)


def test_a_key_that_was_revoked_meanwhile_is_not_brought_back_by_its_use(path: Path) -> None:
    store = KeyStore(path)
    store.make("notebook")
    key = store.keys()[0]
    store.revoke(key.id)
    store.note_use(key)
    assert store.keys() == ()


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "a\x07b"])
def test_a_name_that_is_none_is_refused(path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        KeyStore(path).make(name)
    assert caught.value.key == "key_name"


def test_a_name_is_taken_once(path: Path) -> None:
    store = KeyStore(path)
    store.make("Notebook")
    with pytest.raises(InputError) as caught:
        store.make("notebook")
    assert caught.value.key == "key_name_taken"


def test_people_have_keys_of_their_own_and_the_password_shows_all(path: Path) -> None:
    store = KeyStore(path)
    for owner, address in (("", ""), ("https://id ann", "ann@example.org"), ("https://id bob", "bob@example.org")):
        store.make("notebook", owner, address)
    assert [key.address for key in store.of("https://id ann")] == ["ann@example.org"]
    assert store.of("https://id eve") == ()
    assert store.of("") == store.keys() and len(store.keys()) == 3


def test_keys_from_before_there_were_owners_are_the_passwords(path: Path) -> None:
    text = KeyStore(path).make("notebook")
    kept = json.loads(path.read_text("utf-8"))["keys"][0]
    path.write_text(json.dumps({"keys": [{name: kept[name] for name in kept if name not in ("owner", "address")}]}))
    found = KeyStore(path).find(text)
    assert found is not None and found.owner == ""


def test_there_is_an_end_to_keys(path: Path) -> None:
    store = KeyStore(path)
    store.make("first")
    kept = json.loads(path.read_text("utf-8"))["keys"][0]
    path.write_text(json.dumps({"keys": [kept | {"id": str(n), "name": str(n)} for n in range(100)]}), "utf-8")
    with pytest.raises(InputError) as caught:
        store.make("one more")
    assert caught.value.key == "key_too_many"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"keys": 1}', '{"keys": [1]}', '{"keys": [{"id": 1}]}',
                                     '{"keys": [{"id": "1"}]}', "[" * 100_000, "\ufffe", "null",
                                     '{"keys": [], "keys": []}',
                                     '{"keys": [{"id":"","name":"","end":"","sha256":"密","made":""}]}'])  # fmt: skip
def test_a_broken_file_opens_nothing_and_is_not_written_over(path: Path, content: str) -> None:
    store = KeyStore(path)
    text = store.make("notebook")
    path.write_text(content, "utf-8")
    assert store.find(text) is None
    with pytest.raises(DeckError) as caught:
        store.make("another")
    assert caught.value.key == "keys_file"
    assert path.read_text("utf-8") == content


def test_a_key_that_one_process_uses_while_another_revokes_it_stays_revoked(path: Path) -> None:
    """The first once wrote back the list that it had read before."""
    one, other = KeyStore(path), KeyStore(path)
    first, second = one.make("first"), one.make("second")
    used, gone = one.find(first), one.find(second)
    assert used is not None and gone is not None
    with other.file.change() as change:
        noting = threading.Thread(target=one.note_use, args=(used,))
        noting.start()
        change.value = tuple(key for key in change.value if key != gone)
    noting.join(10)
    assert one.find(second) is None and [bool(key.used) for key in KeyStore(path).keys()] == [True]


def test_what_another_version_says_of_a_key_stays(path: Path) -> None:
    text = KeyStore(path).make("notebook")
    content = json.loads(path.read_text("utf-8"))
    content["keys"][0]["limit"] = {"tokens": 5}
    path.write_text(json.dumps(content | {"made_by": "0.9"}), "utf-8")
    store = KeyStore(path)
    found = store.find(text)
    assert found is not None
    store.note_use(found)
    now = json.loads(path.read_text("utf-8"))
    assert now["made_by"] == "0.9" and now["keys"][0]["limit"] == {"tokens": 5} and now["keys"][0]["used"]
