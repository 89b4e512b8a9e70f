"""The model that answered last, as it is kept for the next start."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.library.last_model import LastModel, last_load, last_model, note_last_model
from core.memory.adapter_room import AdapterRoom
from core.memory.cache_choice import CacheChoice


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path))
    return tmp_path


def test_the_last_model_is_known_again_with_what_it_was_loaded_for() -> None:
    assert last_model() is None
    for model in (LastModel("tiny", 4096, 1), LastModel("名字 with spaces", 832, 32)):
        note_last_model(model)
        assert last_model() == model


def test_what_was_promised_to_its_chats_is_known_again() -> None:
    shared = CacheChoice(16_384)
    note_last_model(LastModel("tiny", 4096, 8, AdapterRoom(2, 16), shared))
    assert last_load("tiny") == LastModel("tiny", 4096, 8, AdapterRoom(2, 16), shared)
    for room in (AdapterRoom(2, 16, True), AdapterRoom(0, 16, True)):
        for cache in (shared, CacheChoice(bits=8)):
            note_last_model(LastModel("tiny", 4096, 8, room, cache))
            assert last_load("tiny") == LastModel("tiny", 4096, 8, room, cache)
    note_last_model(LastModel("tiny", 4096, 8, AdapterRoom(0, 16)))
    assert last_load("tiny") == LastModel("tiny", 4096, 8, AdapterRoom(0, 16))
    note_last_model(LastModel("tiny", 4096, 8, cache=shared))
    assert last_load("tiny") == last_model() == LastModel("tiny", 4096, 8, cache=shared)
    for cache in (CacheChoice(16_384, 8), CacheChoice(bits=8)):
        note_last_model(LastModel("tiny", 4096, 8, cache=cache))
        assert last_load("tiny") == last_model() == LastModel("tiny", 4096, 8, cache=cache)


@pytest.mark.parametrize("text", ["", "many", "-5", "1e9", "٣", "99999999999999999999"])
def test_a_number_that_is_none_is_the_usual_one(data: Path, text: str) -> None:
    note_last_model(LastModel("tiny", 4096, 2))
    file = data / "settings.json"
    file.write_text(file.read_text("utf-8").replace("4096", text).replace('"2"', f'"{text}"'), "utf-8")
    assert last_model() == LastModel("tiny", 0, 1)


def test_each_model_is_known_again_with_what_it_was_loaded_for() -> None:
    assert last_load("tiny") is None
    for model in (LastModel("tiny", 4096, 1), LastModel("名字 with spaces", 832, 32), LastModel("tiny", 2048, 4)):
        note_last_model(model)
    assert last_load("tiny") == LastModel("tiny", 2048, 4)
    assert last_load("名字 with spaces") == LastModel("名字 with spaces", 832, 32)


def test_what_an_older_version_kept_of_the_last_model_counts(data: Path) -> None:
    kept = '{"last_model": {"name": "tiny", "context_tokens": "512", "num_chats": "2"}}'
    (data / "settings.json").write_text(kept, "utf-8")
    assert last_load("tiny") == LastModel("tiny", 512, 2) and last_load("other") is None
