"""The folder of characters: what is written is there, what is broken says why, names never become paths."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.common.errors import DeckError
from core.common.json_file import FileDamaged
from core.common.paths import ROOT
from core.personas.character import Character, CharacterError
from core.personas.fields import visible
from core.personas.formats import read_card
from core.personas.lore_editing import entry_indexes
from core.personas.names import MAX_STEM_BYTES, file_stem, same_name
from core.personas.note import read_note
from core.personas.png import SIGNATURE
from core.personas.portrait import draw_portrait
from core.personas.prompt import user_name
from core.personas.store import Characters
from core.personas.translations import in_language
from core.personas.user import (
    UserPersona,
    read_persona,
    read_picture,
    require_personas,
    save_persona,
    save_picture,
)
from tests.support.cards import PICTURE, V2, WEBUI

ROSA = Character("Rosa", greeting="Hi", tags=("bees",))


@pytest.fixture
def store(tmp_path: Path) -> Characters:
    return Characters(tmp_path / "characters")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def key_of(error: pytest.ExceptionInfo[DeckError]) -> str:
    assert "{" not in str(error.value)
    return error.value.key


def test_a_character_is_there_after_a_restart(store: Characters) -> None:
    key = store.add(ROSA, PICTURE)
    again = Characters(store.folder)
    assert again.character(key) == ROSA
    assert again.picture(key) == PICTURE
    assert sorted(files(store.folder)) == ["Rosa.png", "Rosa.yaml"]
    again.save(key, replace(ROSA, greeting="Ho"))
    assert store.character(key).greeting == "Ho"


def test_a_folder_that_is_not_there_holds_nothing(store: Characters) -> None:
    assert store.entries() == ()
    assert store.get("Rosa") is None


def test_a_folder_of_text_generation_webui_is_read_as_it_is(store: Characters) -> None:
    store.folder.mkdir()
    (store.folder / "Chen.yaml").write_text(WEBUI)
    (store.folder / "Chen.jpg").write_bytes(b"\xff\xd8\xff")
    (store.folder / "No Name.yml").write_text("greeting: hello\n")
    (store.folder / "Old.json").write_text('{"char_name": "Pyg", "char_persona": "old"}')
    (store.folder / "notes.txt").write_text("x")
    found = {entry.key: entry.name for entry in store.entries()}
    assert found == {"Chen": "Chen", "No Name": "No Name", "Old": "Pyg"}
    store.save("No Name", replace(store.character("No Name"), greeting="Ho"))
    assert sorted(files(store.folder)) == ["Chen.jpg", "Chen.yaml", "No Name.yml", "Old.json", "notes.txt"]
    assert store.character("No Name").name == "No Name"
    store.save("Old", store.character("Old"))
    assert sorted(files(store.folder)) == ["Chen.jpg", "Chen.yaml", "No Name.yml", "Old.yaml", "notes.txt"]


def test_a_second_file_of_the_same_name_is_never_written_over(store: Characters) -> None:
    store.folder.mkdir()
    (store.folder / "Rosa.yml").write_text("name: Rosa\n")
    (store.folder / "Rosa.yaml").write_text("name: Another\n")
    store.save("Rosa", replace(store.character("Rosa"), greeting="Ho"))
    assert (store.folder / "Rosa.yaml").read_text() == "name: Another\n"
    assert store.character("Rosa").greeting == "Ho"


def test_a_broken_file_is_an_entry_that_says_why(store: Characters) -> None:
    store.add(ROSA)
    (store.folder / "list.yaml").write_text("- a\n")
    (store.folder / "tag.yaml").write_text("name: !!python/name:os.system x\n")
    (store.folder / "dir.yaml").mkdir()
    os.mkfifo(store.folder / "pipe.yaml")
    (store.folder / "gone.yaml").symlink_to("nowhere")
    found = {entry.key: entry.error and entry.error.key for entry in store.entries()}
    assert found == {
        "Rosa": None,
        "list": "card_not_object",
        "tag": "card_yaml_tag",
        "dir": "unreadable",
        "pipe": "unreadable",
        "gone": "unreadable",
    }
    with pytest.raises(DeckError):
        store.character("list")


def test_a_change_from_outside_is_seen(store: Characters) -> None:
    key = store.add(ROSA)
    assert store.character(key).greeting == "Hi"
    (store.folder / "Rosa.yaml").write_text("name: Rosa\ngreeting: Changed outside\n")
    assert store.character(key).greeting == "Changed outside"


@pytest.mark.parametrize("name", ["Rosa", "rosa", "ROSA", " Rosa "])
def test_a_name_that_is_taken_is_refused(store: Characters, name: str) -> None:
    store.add(ROSA, PICTURE)
    before = files(store.folder)
    with pytest.raises(CharacterError) as caught:
        store.add(Character(name.strip(), greeting="other"), draw_portrait("other"))
    assert key_of(caught) == "character_name_taken"
    assert files(store.folder) == before


@pytest.mark.parametrize(("name", "key"), [("", "character_no_name"), ("  ", "character_no_name"),
                                           ("\U0001f600" * 300, "character_long_name")])  # fmt: skip
def test_a_name_that_is_none_is_refused(store: Characters, name: str, key: str) -> None:
    with pytest.raises(CharacterError) as caught:
        store.add(Character(name))
    assert key_of(caught) == key
    assert store.entries() == ()


@pytest.mark.parametrize(
    "name",
    ["../../etc/x", "/etc/passwd", "CON", "nul.txt", "a\\b", "..", ".hidden", "x" * 200, "\U0001f600" * 200, "C:x",
     "a\0b"],
)  # fmt: skip
def test_a_name_never_becomes_a_path(tmp_path: Path, store: Characters, name: str) -> None:
    key = store.add(Character(name), PICTURE)
    assert [path.name for path in tmp_path.iterdir()] == ["characters"]
    assert all(path.parent == store.folder for path in store.folder.rglob("*"))
    assert [entry.key for entry in store.entries()] == [key]
    assert store.picture(key) == PICTURE


@given(st.text(max_size=250), st.lists(st.text(max_size=10), max_size=5))
def test_a_file_name_is_one_on_every_system(name: str, taken: list[str]) -> None:
    stem = file_stem(name, taken)
    assert stem and len(stem.encode()) <= MAX_STEM_BYTES + 3
    assert not set(stem) & set('/\\:*?"<>|\0') and not any(unicodedata.category(letter) == "Cc" for letter in stem)
    assert stem.strip(" .") == stem
    assert stem.split(".")[0].upper() not in ("CON", "PRN", "AUX", "NUL", "COM1", "LPT1")
    assert same_name(stem) not in {same_name(each) for each in taken}


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", ".trash", "", "Rosa.yaml", "..", "a\0"])
def test_a_key_from_an_address_reaches_nothing_else(tmp_path: Path, store: Characters, key: str) -> None:
    store.add(ROSA)
    (tmp_path / "x.yaml").write_text("name: outside")
    assert store.get(key) is None
    for act in (store.character, store.picture, store.delete, store.duplicate, store.restore):
        with pytest.raises(CharacterError):
            act(key)


def test_names_that_differ_only_in_case_on_disk_get_a_number(store: Characters) -> None:
    assert [store.add(Character(name)) for name in ("a/b", "A?b", "a:B")] == ["a_b", "A_b 2", "a_B 3"]


def test_a_renamed_character_keeps_its_key_its_picture_and_the_face_that_was_drawn(store: Characters) -> None:
    with_picture, drawn = store.add(replace(ROSA, name="Iris"), PICTURE), store.add(ROSA)
    face = store.picture(drawn)
    store.save(with_picture, replace(ROSA, name="Ivy"))
    store.save(drawn, replace(ROSA, name="Rose"))
    assert (store.picture(with_picture), store.picture(drawn)) == (PICTURE, face)
    assert [entry.name for entry in store.entries()] == ["Ivy", "Rose"]


def test_names_and_files_that_come_and_go_beside_the_store_are_known_when_one_is_added(store: Characters) -> None:
    store.add(ROSA)
    store.add(Character("Ivy"))
    with pytest.raises(CharacterError):
        store.add(Character("IVY"))
    (store.folder / "ivy 2.jpg").write_bytes(PICTURE)
    (store.folder / "Olaf.yaml").write_text("name: Ole\n")
    with pytest.raises(CharacterError):
        store.add(Character("ole"))
    assert [store.add(Character("Olaf")), store.add(Character("Ivy/2")), store.add(Character("Ivy 2"))] == [
        "Olaf 2", "Ivy_2", "Ivy 2 2"]  # fmt: skip
    (store.folder / "Ivy.yaml").unlink()
    assert store.add(Character("Ivy")) == "Ivy"


def test_a_key_that_is_a_path_or_hidden_is_nobodys(store: Characters) -> None:
    store.add(ROSA)
    (store.folder / ".hidden.yaml").write_text("name: H\n")
    for key in ("", ".hidden", "../Rosa", "./Rosa", "Rosa\0", "\ud800", "x" * 5000):
        assert store.get(key) is None
    assert store.get("Rosa") is store.get("Rosa") is not None


def test_what_nobody_sees_in_a_name_is_shown_by_its_number() -> None:
    assert visible("gnp.\u202elmay.exe") == "gnp.[U+202E]lmay.exe"
    assert visible("Ad\u200da") == "Ad[U+200D]a" and visible("a\tb\u3164") == "a[U+0009]b[U+3164]"
    for name in ("Ada", "林桥", "👩\u200d🚀", "می\u200cخواهم", "Zoë"):
        assert visible(name) == name


def test_a_copy_has_the_next_free_name(store: Characters) -> None:
    key = store.add(ROSA, PICTURE)
    assert [store.duplicate(key) for _ in range(2)] == ["Rosa (2)", "Rosa (3)"]
    assert store.character("Rosa (3)") == replace(ROSA, name="Rosa (3)")
    assert store.picture("Rosa (3)") == PICTURE


def test_a_deleted_character_comes_back_whole(store: Characters) -> None:
    key = store.add(ROSA, PICTURE)
    before = files(store.folder)
    trashed = store.delete(key)
    assert store.entries() == ()
    assert store.restore(trashed) == key
    assert files(store.folder) == before
    with pytest.raises(CharacterError) as caught:
        store.restore(trashed)
    assert key_of(caught) == "character_not_in_trash"


def test_a_deleted_character_comes_back_beside_a_new_one(store: Characters) -> None:
    trashed = store.delete(store.add(ROSA, PICTURE))
    store.add(replace(ROSA, greeting="new"))
    assert store.restore(trashed) == "Rosa 2"
    assert store.character("Rosa").greeting == "new"
    with pytest.raises(CharacterError) as caught:
        store.find("rosa ".strip().upper())
    assert key_of(caught) == "character_several"


def test_the_trash_keeps_the_last_ones(store: Characters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.personas.folder.MAX_TRASH", 2)
    trashed = [store.delete(store.add(replace(ROSA, greeting=str(number)))) for number in range(4)]
    assert store.restore(trashed[-1]) == "Rosa"
    assert store.character("Rosa").greeting == "3"
    with pytest.raises(CharacterError):
        store.restore(trashed[0])


def test_a_trash_that_is_a_link_is_shortened_by_what_was_put_there_alone(
    store: Characters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.personas.folder.MAX_TRASH", 1)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "photographs").mkdir(parents=True)
    store.folder.mkdir(exist_ok=True)
    (store.folder / ".trash").symlink_to(elsewhere)
    trashed = [store.delete(store.add(ROSA)) for _ in range(3)]
    assert sorted(path.name for path in elsewhere.iterdir()) == [trashed[-1], "photographs"]
    with pytest.raises(CharacterError):
        store.restore("photographs")


def test_a_picture_may_be_changed_and_taken_away(store: Characters) -> None:
    key = store.add(ROSA)
    assert store.picture(key) == draw_portrait("Rosa")
    (store.folder / "Rosa.jpg").write_bytes(b"\xff\xd8\xff")
    store.set_picture(key, PICTURE)
    assert store.picture(key) == PICTURE
    assert sorted(files(store.folder)) == ["Rosa.png", "Rosa.yaml"]
    with pytest.raises(CharacterError) as caught:
        store.set_picture(key, b"no picture")
    assert key_of(caught) == "picture_unreadable"
    assert store.picture(key) == PICTURE
    store.set_picture(key, None)
    assert store.picture(key) == draw_portrait("Rosa")


def test_a_broken_picture_gets_a_sentence(store: Characters) -> None:
    key = store.add(ROSA, PICTURE)
    for content in (PICTURE[:300], b"words"):
        (store.folder / "Rosa.png").write_bytes(content)
        with pytest.raises(CharacterError):
            store.picture(key)
    (store.folder / "Rosa.png").unlink()
    os.mkfifo(store.folder / "Rosa.png")
    with pytest.raises(DeckError) as caught:
        store.picture(key)
    assert key_of(caught) == "unreadable"


def test_a_picture_beside_no_character_is_not_taken_for_a_new_one(store: Characters) -> None:
    store.folder.mkdir()
    (store.folder / "Rosa.jpg").write_bytes(b"somebody else")
    assert store.add(ROSA) == "Rosa 2"


def test_names_near_an_unknown_one_are_said(store: Characters) -> None:
    store.add(ROSA)
    with pytest.raises(CharacterError, match="“Rsoa”.*Rosa") as caught:
        store.find("Rsoa")
    assert key_of(caught) == "unknown_character"


def test_where_there_are_no_characters_no_name_is_near(store: Characters) -> None:
    with pytest.raises(CharacterError) as caught:
        store.find("Rosa")
    assert key_of(caught) == "unknown_character_of_none"


FULL_DISK = """
import resource, signal, sys
from dataclasses import replace
from pathlib import Path
from core.common.errors import DeckError
from core.personas.character import Character
from core.personas.store import Characters
from core.personas.user import UserPersona, save_persona
from tests.support.cards import PICTURE
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
store = Characters(Path(sys.argv[1]))
long = replace(store.character("Rosa"), greeting="x" * 5000)
for act in (
    lambda: store.save("Rosa", long),
    lambda: store.add(replace(long, name="New")),
    lambda: store.add(Character("New"), PICTURE),
    lambda: store.add(replace(long, name="New"), PICTURE),
    lambda: store.set_picture("Rosa", PICTURE),
    lambda: save_persona(UserPersona("Sam", "x" * 5000)),
):
    try:
        act()
        print("written")
    except DeckError as error:
        print(error.key)
"""


def test_a_full_disk_leaves_everything_as_it_was(store: Characters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_DATA", str(store.folder))
    store.add(replace(ROSA, context="y" * 900), PICTURE)
    save_persona(UserPersona("Sam", "short"))
    before = files(store.folder)
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(store.folder)], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert run.stdout.split() == ["character_write"] * 6, run.stderr
    assert files(store.folder) == before


def test_every_character_that_ships_is_whole(tmp_path: Path) -> None:
    shipped = Characters(ROOT / "characters")
    entries = [entry for entry in shipped.entries() if entry.character and entry.character.creator == "LlamaDeck"]
    assert len(entries) >= 6
    for entry in entries:
        character = entry.character
        assert character is not None and entry.picture_path is not None
        assert character.greeting and character.context and character.example_dialogue and character.tags
        assert len(character.greetings) > 1
        chinese = in_language(character, "zh")
        assert chinese.name != character.name and user_name(chinese, UserPersona()) == "朋友"
        for name in ("greeting", "context", "creator_notes", "tags", "alternate_greetings"):
            assert getattr(chinese, name) and getattr(chinese, name) != getattr(character, name)
        assert entry.picture_path.stat().st_size <= 40 * 1024
        assert Characters(tmp_path).add(character, shipped.picture(entry.key)) == entry.key
        assert (tmp_path / entry.text_path.name).read_bytes() == entry.text_path.read_bytes()


def test_the_samples_show_what_a_card_can_hold() -> None:
    for language in ("en", "zh"):
        shipped = [one.character for one in Characters(ROOT / "characters", language).entries() if one.character]
        assert any(entry_indexes(one.lorebook) for one in shipped)
        assert any(read_note(one.extensions).text for one in shipped)
        assert not any("llamadeck" in one.extensions for one in shipped)


def test_a_changed_copy_of_a_sample_is_theirs_in_every_language(tmp_path: Path) -> None:
    (tmp_path / "Ada.yaml").write_bytes((ROOT / "characters" / "Ada.yaml").read_bytes())
    english, chinese = Characters(tmp_path, "en"), Characters(tmp_path, "zh")
    assert (english.character("Ada").name, chinese.character("Ada").name) == ("Ada", "艾达")
    seen = chinese.character("Ada")
    chinese.save("Ada", replace(seen, greeting="嗨！"), expected=seen)
    assert english.character("Ada") == chinese.character("Ada") == replace(seen, greeting="嗨！")


def test_a_translation_that_is_none_leaves_the_character_as_it_is() -> None:
    for odd in (
        5,
        {},
        {"translations": 5},
        {"translations": {"zh": [1]}},
        {"translations": {"zh": {"name": []}}, "x": 1},
    ):
        one = replace(ROSA, extensions={"llamadeck": odd, "fav": True})
        found = in_language(one, "zh")
        assert (found.name, found.greeting, found.extensions["fav"]) == (ROSA.name, ROSA.greeting, True)


def test_a_portrait_is_always_the_same_for_a_name() -> None:
    assert draw_portrait("Rosa") == draw_portrait("Rosa")
    assert len({draw_portrait(str(number)) for number in range(8)}) == 8
    for name in ("", "\U0001f600" * 300, "林桥"):
        assert draw_portrait(name).startswith(SIGNATURE)


@pytest.mark.parametrize("owner", ["", "https://id.example.org ann", "../../etc", "\ud800", "x" * 5000])
def test_a_persona_is_there_after_a_restart(owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    assert (read_persona(owner), read_picture(owner)) == (UserPersona(), None)
    save_persona(UserPersona(" Sam\n", "Likes tea.\nAnd rain."), owner)
    save_picture(PICTURE, owner)
    assert read_persona(owner) == UserPersona("Sam", "Likes tea.\nAnd rain.")
    assert read_picture(owner) == PICTURE
    save_picture(None, owner)
    assert read_picture(owner) is None
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_people_are_each_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ann said of herself was once in Bob's prompts."""
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path))
    (tmp_path / "persona.yaml").write_text("name: From before\n", "utf-8")
    save_persona(UserPersona("Ann", "A spy."), "id ann")
    save_picture(PICTURE, "id ann")
    assert read_persona() == UserPersona("From before") and read_persona("id bob") == UserPersona()
    assert read_picture() is None and read_picture("id bob") is None
    assert read_persona("id ann") == UserPersona("Ann", "A spy.")


def test_a_bad_persona_is_said_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path))
    with pytest.raises(CharacterError):
        save_persona(UserPersona("x" * 300))
    with pytest.raises(CharacterError):
        save_picture(b"no")
    assert files(tmp_path) == {}
    (tmp_path / "persona.yaml").write_text("- a")
    with pytest.raises(FileDamaged):
        require_personas()
    with pytest.raises(FileDamaged):
        save_persona(UserPersona("Sam"))
    assert read_persona() == UserPersona() and (tmp_path / "persona.yaml").read_text() == "- a"
    (tmp_path / "persona.yaml").write_text("name: 5\nuser_bio: [a]\npronouns: they\n")
    assert read_persona() == UserPersona("5")
    save_persona(UserPersona("Sam", "half \ud800"))
    assert read_persona() == UserPersona("Sam", "half ?")
    assert "pronouns: they" in (tmp_path / "persona.yaml").read_text()


def test_a_card_with_a_taken_name_leaves_the_old_one(store: Characters) -> None:
    store.add(ROSA)
    before = files(store.folder)
    with pytest.raises(CharacterError):
        store.add(read_card(V2), PICTURE)
    assert files(store.folder) == before


def test_a_save_that_expects_another_content_changes_nothing(store: Characters) -> None:
    key = store.add(ROSA)
    store.save(key, replace(ROSA, greeting="theirs"), expected=ROSA)
    before = files(store.folder)
    with pytest.raises(CharacterError) as error:
        store.save(key, replace(ROSA, greeting="mine"), expected=ROSA)
    assert key_of(error) == "character_changed"
    assert files(store.folder) == before
    store.save(key, replace(ROSA, greeting="mine"), expected=store.character(key))
    assert store.character(key).greeting == "mine"


def test_a_free_name_is_numbered_past_those_that_are_taken(store: Characters) -> None:
    store.add(ROSA)
    store.add(replace(ROSA, name="rosa (2)"))
    assert store.free_name("Rosa") == "Rosa (3)"


def test_a_list_looks_names_up_instead_of_going_through_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 4,000 characters was looked for in a list of 4,000 names."""
    compared: list[str] = []

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(self)
            return str.__eq__(self, other)

    for number in range(100):
        (tmp_path / f"P {number}.yaml").write_text("name: x\ncontext: x\n", "utf-8")
    characters = Characters(tmp_path)
    names = characters.names
    monkeypatch.setattr(characters, "names", lambda: [Name(name) for name in names()])
    assert len(characters.entries()) == 100
    assert len(compared) < 1000
