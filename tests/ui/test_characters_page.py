"""The page Characters in the ways that people use it, with Streamlit's AppTest and a folder of its own."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.common.paths import ROOT
from core.personas.cards import FORMATS, write
from core.personas.character import Character
from core.personas.pictures import as_png
from core.personas.portrait import draw_portrait
from core.personas.store import Characters
from core.personas.user import UserPersona, add_persona, read_persona, read_personas, read_picture, save_persona
from tests.support.cards import PICTURE, V2
from tests.support.checkpoints import make_checkpoint
from tests.support.pages import click, go, open_tab, run
from tests.support.widgets import has, named
from ui.characters import gallery
from ui.characters.draft import DRAFTS_KEY
from ui.characters.importing import import_file
from ui.characters.preview import NO_MODEL, loaded_model, render_prompt
from ui.shared import resources

ADA = Character("Ada", greeting="Hi {{user}}", context="{{char}} teaches.", tags=("maths", "teacher"))
BOB = Character("Bob", greeting="Ho", description="builds", personality="calm", tags=("teacher",))
BOOK = {"entries": [{"keys": ["bee"], "content": "Bees sting.", "extensions": {"x": 1}, "enabled": True,
                     "insertion_order": 7, "oddity": [1]}, "no entry"], "strange": 1}  # fmt: skip


@pytest.fixture
def store(home: Path) -> Characters:
    """The folder of characters of a dashboard of its own."""
    for name in ("models", "data", "characters"):
        (home / name).mkdir()
    return Characters()


def open_characters(locale: str = "en-US", **query: str) -> AppTest:
    """A new tab on the page."""
    return open_tab("4_Characters", locale, query)


def write_into(tab: AppTest, name: str, words: str) -> AppTest:
    """Type into a field of the form."""
    key = f"character_field_{name}"
    named(tab.text_input if has(tab.text_input, key) else tab.text_area, key).set_value(words)
    return run(tab)


def words(tab: AppTest) -> str:
    kinds = (tab.title, tab.header, tab.markdown, tab.caption, tab.error, tab.success, tab.info)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def opened(tab: AppTest) -> list[str]:
    """The keys of the characters in the gallery."""
    mark = "character_open_"
    return [button.key.removeprefix(mark) for button in tab.button if (button.key or "").startswith(mark)]


def has_button(tab: AppTest, key: str) -> bool:
    return has(tab.button, key)


def edit(store: Characters, character: Character = ADA) -> AppTest:
    key = store.add(character)
    return click(open_characters(character=key), "character_edit")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_without_characters_the_page_says_what_to_do(store: Characters, locale: str) -> None:
    tab = open_characters(locale)
    assert len(tab.title) == 1
    assert ("No characters yet" if locale == "en-US" else "还没有角色") in words(tab)
    assert has_button(tab, "characters_new")


def test_a_search_looks_at_names_tags_and_texts(store: Characters) -> None:
    store.add(ADA)
    store.add(BOB)
    tab = open_characters()
    assert opened(tab) == ["Ada", "Bob"]
    for typed, found in (("ADA", ["Ada"]), ("builds", ["Bob"]), ("teacher maths", ["Ada"]), ("nobody", [])):
        tab.text_input(key="characters_search_field").set_value(typed)
        assert opened(run(tab)) == found
    assert "No character matches" in words(tab)
    assert opened(click(tab, "characters_show_all")) == ["Ada", "Bob"]


def test_tags_leave_those_that_have_all_of_them(store: Characters) -> None:
    store.add(ADA)
    store.add(BOB)
    tab = open_characters()
    tab.pills(key="characters_tags_choice").set_value(["teacher"])
    assert opened(run(tab)) == ["Ada", "Bob"]
    tab.pills(key="characters_tags_choice").set_value(["teacher", "maths"])
    assert opened(run(tab)) == ["Ada"]
    store.delete("Ada")
    assert opened(run(tab)) == ["Bob"]


def test_many_characters_come_in_pages(store: Characters) -> None:
    for number in range(60):
        store.add(Character(f"N{number:02}"))
    tab = open_characters()
    assert opened(tab) == [f"N{number:02}" for number in range(48)]
    assert "60 characters" in words(tab)


def test_characters_come_by_name_by_their_last_chat_or_the_newest_first(store: Characters) -> None:
    for changed_s, name in enumerate(("Cleo", "Ada", "Bob")):
        path = store.folder / f"{store.add(Character(name))}.yaml"
        os.utime(path, (changed_s, changed_s))
    history = resources.chat_store()
    for key in ("Bob", "Cleo"):
        history.create("chat-instruct", key)
    tab = open_characters()
    assert opened(tab) == ["Ada", "Bob", "Cleo"]
    for order, wanted in (("new", ["Bob", "Ada", "Cleo"]), ("used", ["Cleo", "Bob", "Ada"])):
        named(tab.segmented_control, "characters_sort").set_value(order)
        assert opened(run(tab)) == wanted


def test_a_broken_file_is_an_entry_that_says_why_and_can_be_deleted(store: Characters) -> None:
    (store.folder / "bad.yaml").write_text("- a list\n")
    tab = open_characters()
    assert opened(tab) == ["bad"]
    assert "bad.yaml holds a list" in words(tab)
    assert "bad.yaml" in words(click(tab, "character_open_bad"))
    click(tab, "character_delete")
    assert store.entries() == ()
    click(tab, "characters_undo_button")
    assert [entry.key for entry in store.entries()] == ["bad"]


def test_a_detail_shows_the_character_and_offers_every_format(store: Characters) -> None:
    store.add(replace(ADA, alternate_greetings=("Oh!",), creator="Me"), PICTURE)
    tab = open_characters(character="Ada")
    assert tab.header[0].value == "Ada"
    assert "Hi friend" in words(tab)
    assert {button.key for button in tab.download_button} == {f"character_export_{kind}_Ada" for kind in FORMATS}


def test_an_address_of_nobody_is_a_sentence(store: Characters) -> None:
    assert "../../etc/passwd" in words(open_characters(character="../../etc/passwd"))


@pytest.mark.parametrize("name", ["Ada", "../../etc/x", "CON", "🦙" * 100, "a" * 200, "*Bold* [x](y) $1 $2", "林桥"])
def test_a_new_character_of_any_name_is_written(store: Characters, name: str) -> None:
    tab = click(open_characters(), "characters_new")
    write_into(tab, "name", name)
    write_into(tab, "greeting", "Hello")
    click(tab, "character_save")
    entry = store.find(name)
    assert (entry.name, entry.text_path.parent) == (name, store.folder)
    assert len(tab.success) == 1
    assert len(opened(click(tab, "characters_back"))) == 1


def test_names_that_cannot_be_are_sentences_and_nothing_is_lost(store: Characters) -> None:
    store.add(ADA)
    tab = click(open_characters(), "characters_new")
    for name, said in (("", "has no name"), ("ada", "ada"), ("x" * 201, "201")):
        write_into(tab, "name", name)
        write_into(tab, "context", "all my work")
        click(tab, "character_save")
        assert said in tab.error[0].value
        assert named(tab.text_area, "character_field_context").value == "all my work"
    assert len(store.entries()) == 1


def test_what_is_typed_is_there_after_other_pages_and_other_characters(store: Characters) -> None:
    store.add(BOB)
    tab = write_into(edit(store), "context", "{{char}} sings.")
    go(go(tab, "5_GPU_Monitor"), "4_Characters")
    assert named(tab.text_area, "character_field_context").value == "{{char}} sings."
    click(tab, "characters_back")
    assert "Unsaved changes" in words(tab)
    click(click(tab, "character_open_Bob"), "character_edit")
    assert named(tab.text_input, "character_field_name").value == "Bob"
    click(click(click(tab, "characters_back"), "character_open_Ada"), "character_edit")
    assert named(tab.text_area, "character_field_context").value == "{{char}} sings."
    click(tab, "character_save")
    assert store.character("Ada") == replace(ADA, context="{{char}} sings.")


def test_discarded_changes_can_be_had_back(store: Characters) -> None:
    tab = click(write_into(edit(store), "context", "new"), "character_discard")
    assert "discarded" in words(tab)
    click(tab, "characters_undo_button")
    assert named(tab.text_area, "character_field_context").value == "new"
    assert store.character("Ada") == ADA


def test_a_save_elsewhere_is_noticed_and_mine_can_be_kept(store: Characters) -> None:
    tab = write_into(edit(store), "context", "mine")
    theirs = replace(ADA, greeting="theirs")
    store.save("Ada", theirs)
    click(tab, "character_save")
    assert store.character("Ada") == theirs
    assert "saved elsewhere" in words(tab)
    assert "Greeting" in words(tab)
    click(tab, "character_keep_mine")
    assert store.character("Ada") == replace(ADA, context="mine")


def test_a_save_elsewhere_can_be_taken(store: Characters) -> None:
    tab = write_into(edit(store), "context", "mine")
    store.save("Ada", replace(ADA, context="theirs"))
    click(run(tab), "character_take_theirs")
    assert named(tab.text_area, "character_field_context").value == "theirs"
    assert "saved elsewhere" not in words(tab)


def test_a_form_without_changes_follows_the_file(store: Characters) -> None:
    tab = edit(store)
    store.save("Ada", replace(ADA, context="theirs"))
    assert named(run(tab).text_area, "character_field_context").value == "theirs"


def test_a_character_that_was_deleted_elsewhere_can_be_saved_as_a_new_one(store: Characters) -> None:
    tab = write_into(edit(store), "context", "mine")
    store.delete("Ada")
    click(run(tab), "character_save_as_new")
    assert store.character("Ada").context == "mine"


def test_a_disk_that_takes_nothing_leaves_the_form_as_it_is(store: Characters) -> None:
    tab = click(open_characters(), "characters_new")
    write_into(tab, "name", "Ada")
    moved = store.folder.rename(store.folder.with_name("elsewhere"))
    store.folder.write_text("a file in the folder's place")
    click(tab, "character_save")
    assert len(tab.error) >= 1
    store.folder.unlink()
    moved.rename(store.folder)
    click(tab, "character_save")
    assert [entry.name for entry in store.entries()] == ["Ada"]


def test_one_text_becomes_parts_and_back(store: Characters) -> None:
    tab = edit(store, BOB)
    named(tab.segmented_control, "character_field_shape").set_value("text")
    assert named(run(tab).text_area, "character_field_context").value == "builds\n\n{{char}}'s personality: calm"
    named(tab.segmented_control, "character_field_shape").set_value("parts")
    run(tab)
    assert named(tab.text_area, "character_field_personality").value == "calm"
    click(tab, "character_save")
    assert store.character("Bob") == BOB


def test_greetings_are_added_and_removed(store: Characters) -> None:
    tab = edit(store, replace(ADA, alternate_greetings=("one", "two")))
    click(tab, "character_add_greeting")
    named(tab.text_area, "character_field_greeting_2").set_value("three")
    click(run(tab), "character_remove_greeting_0")
    click(tab, "character_save")
    assert store.character("Ada").alternate_greetings == ("two", "three")


def test_tags_are_chosen_or_made(store: Characters) -> None:
    tab = edit(store)
    named(tab.multiselect, "character_field_tags").set_value(["maths", "new one"])
    click(run(tab), "character_save")
    assert store.character("Ada").tags == ("maths", "new one")


def test_a_picture_is_taken_shown_and_removed(store: Characters) -> None:
    tab = edit(store)
    named(tab.file_uploader, "character_field_picture_upload_0").set_value([("p.png", b"nonsense", "image/png")])
    assert "p.png" in run(tab).error[0].value
    named(tab.file_uploader, "character_field_picture_upload_1").set_value([("p.png", PICTURE, "image/png")])
    click(run(tab), "character_save")
    assert store.need("Ada").picture_path is not None
    click(click(tab, "character_edit"), "character_field_picture_remove")
    click(tab, "character_save")
    assert store.need("Ada").picture_path is None


def test_a_lorebook_is_changed_by_its_form_and_keeps_what_it_does_not_know(store: Characters) -> None:
    tab = edit(store, replace(ADA, lorebook=BOOK, extensions={"depth_prompt": 1}))
    assert r"depth\_prompt, extensions, oddity, strange" in words(tab)
    named(tab.text_area, "character_lore_0_content").set_value("Bees hum.")
    named(run(tab).multiselect, "character_lore_0_keys").set_value(["bee", "honey"])
    named(run(tab).number_input, "character_lore_token_budget").set_value(100)
    click(run(tab), "lorebook_add")
    named(tab.text_area, "character_lore_2_content").set_value("New.")
    click(run(tab), "character_save")
    saved = store.character("Ada").lorebook
    assert saved["entries"][0] == BOOK["entries"][0] | {"content": "Bees hum.", "keys": ["bee", "honey"]}  # type: ignore[index,operator]
    assert saved["entries"][1] == "no entry"
    assert saved["entries"][2]["content"] == "New."
    assert (saved["token_budget"], saved["strange"]) == (100, 1)
    click(click(tab, "character_edit"), "lorebook_remove")
    click(tab, "character_save")
    assert len(store.character("Ada").lorebook["entries"]) == 2


def test_a_lorebook_of_another_form_is_only_kept(store: Characters) -> None:
    foreign = {"entries": {"0": {"key": ["x"]}}}
    tab = write_into(edit(store, replace(ADA, lorebook=foreign)), "greeting", "Ho")
    assert not has_button(tab, "lorebook_add")
    click(tab, "character_save")
    assert store.character("Ada").lorebook == foreign


def test_a_card_with_values_of_any_kind_can_be_shown_and_edited(store: Characters) -> None:
    odd = {"entries": [{"keys": 5, "content": None, "insertion_order": "x", "enabled": 1, "priority": 10**30}],
           "scan_depth": -3, "token_budget": "many"}  # fmt: skip
    tab = edit(store, replace(ADA, lorebook=odd, tags=("a", "a", "$x"), alternate_greetings=("", "")))
    click(tab, "character_save")
    assert store.character("Ada").lorebook == odd


def test_duplicate_and_delete_with_undo(store: Characters) -> None:
    store.add(ADA)
    tab = click(open_characters(character="Ada"), "character_duplicate")
    assert [entry.name for entry in store.entries()] == ["Ada", "Ada (2)"]
    click(tab, "character_delete")
    assert opened(tab) == ["Ada"]
    click(tab, "characters_undo_button")
    assert [entry.name for entry in store.entries()] == ["Ada", "Ada (2)"]


def test_several_files_are_imported_and_each_says_how_it_went(store: Characters) -> None:
    store.add(ADA)
    tab = open_characters()
    files = [
        ("rosa.json", json.dumps(V2).encode(), "application/json"),
        ("ada.png", write(ADA, PICTURE, "png"), "image/png"),
        ("list.yaml", b"- a\n", "application/yaml"),
        ("photo.png", PICTURE, "image/png"),
    ]
    tab.file_uploader(key="characters_upload_0").set_value(files)
    run(tab)
    assert "**Rosa** from rosa.json" in words(tab)
    assert "list.yaml holds a list" in words(tab)
    assert "photo.png is a picture without a character" in words(tab)
    assert opened(tab) == ["Ada", "Rosa"]
    assert opened(click(tab, "characters_both_1")) == ["Ada", "Ada (2)", "Rosa"]
    assert store.need("Ada (2)").picture_path is not None
    click(tab, "characters_results_close")
    assert "rosa.json" not in words(tab)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff", b"\xff\xd8\xffjpeg", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"{}", b"- x"]
)
def test_no_file_gives_more_than_a_sentence(store: Characters, content: bytes) -> None:
    result = import_file("../x.png", content)
    assert result.error is not None
    assert "{" not in str(result.error)
    assert store.entries() == ()


def test_the_preview_is_the_prompt_that_lorebooks_answer_to(store: Characters) -> None:
    model = loaded_model()
    assert model is NO_MODEL and not model.counter.is_exact
    character = replace(ADA, lorebook=BOOK, example_dialogue="<START>\n{{user}}: Q\n{{char}}: A")
    prompt, left_out = render_prompt(character, UserPersona("Kim", "Kim is a cook."), "A bee!", model)
    for part in ("Ada teaches.", "Kim is a cook.", "Kim: Q\nAda: A", "Ada: Hi Kim", "Kim: A bee!", "Bees sting."):
        assert part in prompt
    assert prompt.endswith("Ada:") and left_out == ()
    assert "Bees sting." not in render_prompt(character, UserPersona(), "A cat!", model)[0]


def test_the_preview_names_the_lore_that_is_left_out_and_says_why(store: Characters) -> None:
    book = {
        "token_budget": 0,
        "entries": [{"keys": ["hello"], "content": "Bees sting.", "comment": "Stings*", "enabled": True}],
    }
    shown = words(open_characters(character=store.add(replace(ADA, lorebook=book))))
    assert "Stings\\* · *Ada* (no room in its token budget)" in shown and "Bees sting." not in shown


def test_a_loaded_model_counts_by_its_own_tokenizer(store: Characters, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "models" / "tiny")
    store.add(ADA)
    resources.engine().load(tmp_path / "models" / "tiny", 0, 1)
    resources.engine().wait_while_loading(30)
    assert "as tiny gets it" in words(open_characters(character="Ada"))
    assert loaded_model().counter.is_exact


def test_the_users_own_persona_is_saved(store: Characters) -> None:
    tab = click(open_characters(), "characters_user")
    named(tab.text_input, "characters_user_name").set_value("Kim")
    named(run(tab).text_area, "characters_user_about").set_value("A cook.")
    named(run(tab).file_uploader, "characters_user_picture_upload_0").set_value([("me.png", PICTURE, "image/png")])
    go(go(run(tab), "5_GPU_Monitor"), "4_Characters")
    assert named(tab.text_area, "characters_user_about").value == "A cook."
    click(tab, "characters_user_save")
    assert read_persona() == UserPersona("Kim", "A cook.")
    assert read_picture() == PICTURE


def test_a_sample_is_in_the_readers_language(store: Characters) -> None:
    (store.folder / "Ada.yaml").write_bytes((ROOT / "characters" / "Ada.yaml").read_bytes())
    for locale, name, greeting in (("en-US", "Ada", "Hi, I'm Ada."), ("zh-CN", "艾达", "你好，我是艾达。")):
        tab = open_tab("4_Characters", locale, query={"character": "Ada"})
        assert tab.header[0].value == name and greeting in words(tab)


def test_personas_are_made_chosen_and_deleted(store: Characters) -> None:
    save_persona(UserPersona("Kim", "A cook."))
    tab = click(click(open_characters(), "characters_user"), "characters_persona_new")
    named(tab.text_input, "characters_user_name").set_value("Ann")
    named(run(tab).text_area, "characters_user_about").set_value("A spy.")
    click(run(tab), "characters_user_save")
    ann = next(key for key, one in read_personas().by_key.items() if one.name == "Ann")
    assert read_persona().name == "Kim" and "**Ann**" in words(tab) and ":green-badge[default]" in words(tab)
    click(tab, f"characters_persona_default_{ann}")
    assert read_persona() == UserPersona("Ann", "A spy.")
    click(tab, f"characters_persona_delete_{ann}")
    assert read_persona().name == "Kim" and "**Ann** was deleted" in words(tab)
    click(tab, "characters_undo_button")
    assert read_persona() == UserPersona("Ann", "A spy.")


def test_a_character_remembers_its_persona(store: Characters) -> None:
    save_persona(UserPersona("Kim"))
    ann = add_persona(UserPersona("Ann", "A spy."))
    tab = open_characters(character=store.add(ADA))
    assert "Hi Kim" in words(tab)
    named(tab.selectbox, "character_persona").set_value(ann)
    assert "Hi Ann" in words(run(tab)) and "A spy." in tab.code[0].value
    named(tab.selectbox, "character_persona").set_value("")
    assert "Hi Kim" in words(run(tab)) and read_personas().of_characters == {}


def test_a_backup_of_personas_is_imported_and_what_is_none_is_said(store: Characters) -> None:
    tab = click(open_characters(), "characters_user")
    click(tab, "characters_back_user")
    backup = {"personas": {"a.png": "Ann"}, "persona_descriptions": {"a.png": {"description": "A spy."}}}
    upload = named(tab.file_uploader, "characters_personas_imported")
    upload.set_value([("b.json", json.dumps(backup).encode(), "application/json")])
    assert "Personas found: 1, new: 1." in run(tab).success[0].value and read_persona().name == "Ann"
    named(tab.file_uploader, "characters_personas_imported").set_value([("b.json", b"{}", "application/json")])
    assert "no backup of personas" in run(tab).error[0].value


def test_a_broken_persona_is_not_written_over(store: Characters, tmp_path: Path) -> None:
    (tmp_path / "data" / "persona.yaml").write_text("- a\n")
    tab = click(open_characters(), "characters_user")
    assert "persona.yaml" in tab.error[0].value
    assert not has_button(tab, "characters_user_save")


def test_a_delete_button_of_an_old_page_deletes_no_other_character(store: Characters) -> None:
    tab = open_characters(character=store.add(ADA))
    store.delete("Ada")
    store.add(replace(ADA, context="theirs"))
    assert "was not deleted" in click(tab, "character_delete").error[0].value
    assert store.character("Ada").context == "theirs"


def test_a_new_picture_is_not_put_on_what_another_tab_saved(store: Characters) -> None:
    tab = edit(store)
    named(tab.file_uploader, "character_field_picture_upload_0").set_value([("p.png", PICTURE, "image/png")])
    run(tab)
    store.save("Ada", replace(ADA, context="theirs"))
    click(tab, "character_save")
    assert store.need("Ada").picture_path is None and has_button(tab, "character_keep_mine")
    click(tab, "character_keep_mine")
    assert store.picture("Ada") == PICTURE


def test_a_picture_is_not_put_over_the_one_of_another_tab(store: Characters) -> None:
    other = as_png("other", draw_portrait("other"))
    tab = edit(store)
    named(tab.file_uploader, "character_field_picture_upload_0").set_value([("p.png", PICTURE, "image/png")])
    run(tab)
    store.set_picture("Ada", other)
    assert "Picture" in words(click(tab, "character_save")) and store.picture("Ada") == other
    click(tab, "character_keep_mine")
    assert store.picture("Ada") == PICTURE


def test_two_clicks_on_a_greetings_button_remove_one_greeting(store: Characters) -> None:
    """The second comes from the page before the first: in that place stands another greeting by now."""
    tab = edit(store, replace(ADA, alternate_greetings=("one", "two", "three")))
    draft = next(iter(tab.session_state[DRAFTS_KEY].values()))
    places = draft.places
    click(tab, f"character_remove_greeting_0_{places}")
    assert draft.now.alternate_greetings == ("two", "three") and draft.places != places
    with pytest.raises(KeyError):
        tab.button(key=f"character_remove_greeting_0_{places}")


def test_a_persona_that_another_tab_saved_is_not_written_over_unseen(store: Characters) -> None:
    tab = click(open_characters(), "characters_user")
    named(tab.text_area, "characters_user_about").set_value("Mine.")
    run(tab)
    save_persona(UserPersona("Kim", "Theirs."))
    click(tab, "characters_user_save")
    assert "saved elsewhere" in tab.error[0].value and read_persona() == UserPersona("Kim", "Theirs.")
    click(tab, "characters_user_save")
    assert read_persona() == UserPersona("", "Mine.")


def test_the_note_within_the_chat_is_edited_and_keeps_what_else_it_holds(store: Characters) -> None:
    extensions = {"depth_prompt": {"prompt": "{{char}} limps.", "depth": 2, "x": 1}, "fav": True}
    tab = edit(store, replace(ADA, extensions=extensions))
    assert "limps" in named(tab.text_area, "character_field_note_text").value
    write_into(tab, "note_text", "{{char}} runs.")
    named(tab.number_input, "character_field_note_depth").set_value(0)
    click(run(tab), "character_save")
    note = {"prompt": "{{char}} runs.", "depth": 0, "role": "system", "x": 1}
    assert store.character("Ada").extensions == {"depth_prompt": note, "fav": True}
    assert " runs." in words(tab)


def test_a_form_that_is_only_looked_at_adds_no_note(store: Characters) -> None:
    tab = edit(store)
    click(write_into(tab, "greeting", "Ho"), "character_save")
    assert store.character("Ada") == replace(ADA, greeting="Ho")


def test_readers_of_two_languages_search_without_making_each_others_texts_anew(
    store: Characters, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(ADA)
    listed = [Characters(language=one).entries() for one in ("en", "zh")]
    made = [gallery._searchable(entry) for entries in listed for entry in entries]
    assert made
    monkeypatch.setattr(gallery, "same_name", None)
    assert [gallery._searchable(entry) for entries in listed for entry in entries] == made
