"""Several personas of one user: kept, chosen, deleted, brought back; SillyTavern's backup of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.common.errors import DeckError
from core.common.json_file import FileDamaged, FileError
from core.personas.character import CharacterError
from core.personas.persona_backup import read_backup, write_backup
from core.personas.user import (
    FIRST,
    MAX_ALL_CHARS,
    MAX_ENTRIES,
    Personas,
    UserPersona,
    add_persona,
    add_personas,
    delete_persona,
    persona_file,
    read_persona,
    read_personas,
    read_picture,
    remember_persona,
    require_personas,
    restore_persona,
    save_persona,
    save_picture,
    set_default_persona,
)
from tests.support.cards import PICTURE

KIM, ANN = UserPersona("Kim", "A cook."), UserPersona("Ann", "A spy.")
BACKUP = {
    "personas": {"user-default.png": "Kim", "1700-Ann.png": "Ann", "x.png": 3},
    "persona_descriptions": {
        "user-default.png": {"description": "A cook.", "position": 0},
        "1700-Ann.png": {"description": "A spy.", "position": 4, "depth": 2, "role": 0, "lorebook": "",
                         "connections": [{"type": "character", "id": "Ada.png"}, {"type": "group", "id": "7"}, 5]},
        "x.png": None,
    },
    "default_persona": "1700-Ann.png",
}  # fmt: skip


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path))
    return tmp_path


def names() -> list[str]:
    return [one.name for one in read_personas().by_key.values()]


def test_the_one_persona_of_an_older_file_is_the_default_with_its_picture(data: Path) -> None:
    (data / "persona.yaml").write_text("name: Kim\nuser_bio: A cook.\n")
    (data / "persona.png").write_bytes(PICTURE)
    assert read_personas() == Personas({FIRST: KIM}, FIRST)
    ann = add_persona(ANN)
    assert (read_persona(), read_picture()) == (KIM, PICTURE) and read_picture(key=ann) is None
    # An older version of this program still finds the default where it looks for it.
    assert (data / "persona.yaml").read_text().startswith("name: Kim\nuser_bio: A cook.\n")


def test_a_chat_chooses_then_its_character_then_the_default() -> None:
    save_persona(KIM)
    ann, bob = add_persona(ANN), add_persona(UserPersona("Bob"))
    remember_persona("Ada", ann)
    assert [read_persona(chosen=chosen, character=name).name
            for chosen, name in (("", ""), ("", "Ada"), (bob, "Ada"), ("gone", "Ada"), ("gone", "Olaf"))
            ] == ["Kim", "Ann", "Bob", "Ann", "Kim"]  # fmt: skip
    set_default_persona(bob)
    assert read_persona().name == "Bob" and read_persona(character="Ada").name == "Ann"
    remember_persona("Ada", "")
    assert read_persona(character="Ada").name == "Bob"
    with pytest.raises(DeckError, match="persona"):
        set_default_persona("gone")


def test_a_deleted_persona_comes_back_as_it_was() -> None:
    save_persona(KIM)
    save_picture(PICTURE)
    ann = add_persona(ANN, picture=PICTURE)
    set_default_persona(ann)
    remember_persona("Ada", ann)
    before = read_personas()
    removed = delete_persona(ann, expected=ANN)
    assert read_personas() == Personas({FIRST: KIM}, FIRST) and read_picture(key=ann) is None
    restore_persona(removed)
    assert read_personas() == before and read_picture(key=ann) == PICTURE
    with pytest.raises(DeckError):
        delete_persona(ann, expected=KIM)


def test_there_is_always_a_persona() -> None:
    save_persona(KIM)
    removed = delete_persona(FIRST)
    assert read_personas() == Personas()
    restore_persona(removed)
    assert read_personas() == Personas({FIRST: KIM}, FIRST)


def test_what_was_written_in_a_deleted_personas_place_stays_beside_it() -> None:
    save_persona(KIM)
    save_picture(PICTURE)
    remember_persona("Ada", FIRST)
    removed = delete_persona(FIRST)
    save_persona(ANN)
    restore_persona(removed)
    assert read_persona() == ANN and read_persona(character="Ada") == KIM and sorted(names()) == ["Ann", "Kim"]
    personas = read_personas()
    assert read_picture() is None and read_picture(key=personas.choose(character="Ada")) == PICTURE


def test_a_persona_that_was_changed_elsewhere_is_not_written_over() -> None:
    save_persona(KIM)
    save_persona(ANN)
    with pytest.raises(DeckError):
        save_persona(UserPersona("Mine"), expected=KIM)
    assert read_persona() == ANN


def test_more_than_can_be_kept_is_refused_and_changes_nothing() -> None:
    save_persona(KIM)
    with pytest.raises(DeckError, match="characters"):
        add_persona(UserPersona("Long", "x" * MAX_ALL_CHARS))
    with pytest.raises(CharacterError):
        add_persona(UserPersona("n" * 300))
    assert names() == ["Kim"]


def test_nothing_is_imported_that_could_not_be_read_again() -> None:
    save_persona(KIM)
    remembered = dict.fromkeys((f"c{number}" for number in range(MAX_ENTRIES)), "a")
    for found in (Personas({"a": ANN}, "a", remembered), Personas({"a": ANN}, "a", {"c" * MAX_ALL_CHARS: "a"})):
        with pytest.raises(DeckError, match="at most"):
            add_personas(found)
    # Each is ten letters where the file has to write them by their numbers.
    with pytest.raises(FileError):
        add_persona(UserPersona("Long", "\x85" + "\U0001f600" * 1_900_000))
    assert names() == ["Kim"]


@pytest.mark.parametrize("text", ["key: ../x\n", "others: {'../../x': {name: a}}\n", "key: '1'\nothers: {'1': {}}\n"])
def test_a_key_that_is_none_damages_the_file(data: Path, text: str) -> None:
    (data / "persona.yaml").write_text(text)
    with pytest.raises(FileDamaged):
        require_personas()
    assert read_personas() == Personas()


def test_what_another_program_keeps_in_the_file_stays(data: Path) -> None:
    (data / "persona.yaml").write_text("name: Kim\nuser_bio: A cook.\nstrange: [1]\nothers: [1]\n")
    add_persona(ANN)
    assert "strange:\n- 1\n" in persona_file().path.read_text() and names() == ["Kim", "Ann"]


def test_sillytaverns_backup_comes_in_once_with_its_default_and_what_characters_remember() -> None:
    found, num_elsewhere = read_backup("backup.json", json.dumps(BACKUP).encode())
    assert (len(found.by_key), num_elsewhere) == (3, 1)
    assert [add_personas(found), add_personas(found)] == [3, 0]
    assert sorted(names()) == ["3", "Ann", "Kim"] and read_persona() == ANN
    assert read_persona(character="Ada") == ANN


def test_an_import_keeps_the_default_and_what_a_character_remembers_here() -> None:
    save_persona(UserPersona("Bob"))
    remember_persona("Ada", FIRST)
    assert add_personas(read_backup("backup.json", json.dumps(BACKUP).encode())[0]) == 3
    assert read_persona().name == "Bob" and read_persona(character="Ada").name == "Bob"


def test_an_exported_backup_is_read_back_as_it_was() -> None:
    save_persona(KIM)
    ann = add_persona(ANN)
    remember_persona("Lin Qiao 林桥", ann)
    written = write_backup(read_personas())
    assert set(json.loads(written)) == {"personas", "persona_descriptions", "default_persona"}
    found, num_elsewhere = read_backup("personas.json", written.encode())
    assert (list(found.by_key.values()), found.by_key[found.default], num_elsewhere) == ([KIM, ANN], KIM, 0)
    assert found.by_key[found.of_characters["Lin Qiao 林桥"]] == ANN


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"", "card_bad_json"),
        (b"\xff\xfe", "card_no_text"),
        (b"[]", "card_not_object"),
        (b"{}", "persona_backup_unknown"),
        (b'{"personas": {}}', "persona_backup_unknown"),
        (b'{"personas": ["a"]}', "persona_backup_unknown"),
        (b'{"personas": {"a.png": "A"}, "persona_descriptions": 3}', "persona_backup_unknown"),
        (json.dumps({"personas": {f"{n}.png": "A" for n in range(5001)}}).encode(), "persona_backup_large"),
        (b'{"spec": "chara_card_v2", "data": {"name": "Ada"}}', "persona_backup_unknown"),
    ],
)
def test_what_is_no_backup_is_refused_in_words(content: bytes, key: str) -> None:
    with pytest.raises(CharacterError) as caught:
        read_backup("x.json", content)
    assert caught.value.key == key


def test_an_odd_backup_is_read_as_far_as_it_makes_sense() -> None:
    odd = {
        "personas": {"a.png": None, "../../b": "B\u202e\n" + "b" * 300, "c": "C"},
        "persona_descriptions": {"a.png": [], "c": {"description": 5, "position": "x", "connections": {}}},
        "default_persona": ["a"],
    }
    found, _ = read_backup("odd.json", json.dumps(odd).encode())
    add_personas(found)
    kept = read_personas()
    assert len(kept.by_key) == 3 and all(key.isalnum() for key in kept.by_key)
    assert max(len(name) for name in names()) == 200 and "\u202e" not in "".join(names())
