"""The chat page in the ways that people use it: characters, settings, the list, the notebook, what goes wrong."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.chat.database import ChatStoreError
from core.chat.records import CopiedChat, CopiedMessage
from core.chat.schema import MIGRATIONS
from core.chat.store import ChatStore
from core.engine.answer import Answer
from tests.support.checkpoints import make_chat_checkpoint
from tests.support.damaged import TOO_HARD, damage, giving_up
from tests.support.fresh_browser import seen, send_late
from tests.support.pages import WAIT_S, ask, click, finish, last_answer, last_message, load, open_tab, run, words
from tests.support.widgets import has, named
from ui.chat import composer
from ui.chat.answering import answered_chats
from ui.chat.reading_place import SENT_KEY
from ui.chat.session import EDIT_KEY
from ui.chat.setup import prompt_context, prompt_of
from ui.shared import resources

ADA = """name: Ada
greeting: Good morning, {{user}}.
alternate_greetings: [Good evening.]
context: Ada knows machines.
"""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with room for a character."""
    return make_chat_checkpoint(tmp_path_factory.mktemp("roomy") / "tiny", 2048)


@pytest.fixture
def ada(models: Path, tmp_path: Path) -> str:
    folder = tmp_path / "characters"
    folder.mkdir()
    (folder / "Ada.yaml").write_text(ADA, "utf-8")
    return "Ada"


def open_chat(model: str = "tiny", **query: str) -> AppTest:
    load(open_tab(), model)
    return open_tab("3_Chat", query=query)


def history() -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in resources.chat_store().read(1).messages]


def add_chat(num_messages: int) -> int:
    messages = [
        CopiedMessage(
            place - 1 if place else None,
            "assistant" if place % 2 else "user",
            f"message {place}" + " seven" * (place == 7),
            1.0,
        )
        for place in range(num_messages)
    ]
    return resources.chat_store().add(CopiedChat(tuple(messages), "long"))


def restart() -> None:
    """What a new process finds: everything that is not on the disk is gone."""
    resources.recorder().close()
    resources.chat_file().close()
    for accessor in (resources.chat_service, resources.recorder, resources.chat_file):
        accessor.clear()  # type: ignore[attr-defined]


def test_a_character_of_the_address_greets_and_nothing_is_kept_yet(ada: str) -> None:
    tab = open_chat("tiny", chat="new", character=ada)
    assert tab.header[0].value == "Ada" and "Good morning, friend." in words(tab)
    assert resources.chat_store().count() == 0 and "character" not in tab.query_params


def test_another_greeting_can_be_chosen_and_is_the_first_message(ada: str) -> None:
    tab = click(open_chat("tiny", chat="new", character=ada), "version_after_-1")
    assert "Good evening." in words(tab)
    finish(ask(tab, "hello"))
    assert history()[:2] == [("assistant", "Good evening."), ("user", "hello")]
    info = resources.chat_store().info(1)
    assert (info.mode, info.character) == ("chat-instruct", "Ada")
    assert len(resources.chat_store().read(1).messages[0].versions) == 2


def test_a_character_that_is_gone_is_said_and_the_chat_goes_on(ada: str, tmp_path: Path) -> None:
    tab = open_chat("tiny", chat="new", character=ada)
    finish(ask(tab, "hello"))
    (tmp_path / "characters" / "Ada.yaml").unlink()
    assert "Ada is not in your collection" in run(tab).warning[0].value
    finish(ask(tab, "still there?"))
    assert history()[-1] == ("assistant", "You said: still there? ")


def test_a_base_model_opens_as_a_notebook_that_goes_on_and_back(models: Path, checkpoint: Path) -> None:
    (models / "base").mkdir()
    for path in checkpoint.iterdir():
        if "template" not in path.name:
            (models / "base" / path.name).symlink_to(path)
    tab = open_chat("base")
    assert tab.header[0].value == "New notebook" and not tab.chat_input
    named(tab.text_area, "notebook_text").set_value("words=3 ")
    click(run(tab), "notebook_go")
    finish(tab)
    assert named(tab.text_area, "notebook_text").value == "words=3 one two three "
    click(tab, "notebook_undo")
    assert named(tab.text_area, "notebook_text").value == "words=3 "
    click(tab, "notebook_redo")
    assert named(tab.text_area, "notebook_text").value == "words=3 one two three "


def test_a_model_without_a_template_is_asked_in_the_format_that_was_chosen(models: Path, checkpoint: Path) -> None:
    """It was asked in Llama-2's format, whatever it was."""
    (models / "some-chat").mkdir()
    for path in checkpoint.iterdir():
        if path.name != "chat_template.jinja":
            (models / "some-chat" / path.name).symlink_to(path)
    tab = open_chat("some-chat")
    assert named(tab.selectbox, "chat_mode").value == "chat" and "some-chat has no chat template" in words(tab)
    assert named(tab.selectbox, "chat_format").options[0] == "Unknown: choose one"
    named(tab.selectbox, "chat_format").select("Vicuna")
    run(tab)
    assert named(tab.selectbox, "chat_mode").value == "instruct"
    finish(ask(tab, "hello"))
    # The stand-in repeats its prompt up to what would begin a turn of this format.
    assert "A chat between a curious user" in last_message().text and "USER:" not in last_message().text
    assert not has(open_chat("tiny").selectbox, "chat_format")


def test_chats_and_the_question_that_waits_are_there_after_a_restart(models: Path) -> None:
    tab = ask(open_chat(), "forever")
    assert last_answer().wait_for_text(20, WAIT_S)
    ask(tab, "my next question")
    restart()
    tab = open_tab("3_Chat", query={"chat": "1"})
    finish(tab)
    assert [text for role, text in history() if role == "user"] == ["forever", "my next question"]
    assert history()[-1][1] == "You said: my next question "


def test_a_question_that_waits_can_be_taken_back(models: Path) -> None:
    tab = ask(open_chat(), "forever")
    click(ask(tab, "my next question"), "chat_take_back")
    assert resources.chat_store().info(1).draft == "" and "Asked as soon as" not in words(tab)
    assert named(tab.chat_input, "chat_input").value == "my next question"


def test_what_another_tab_said_meanwhile_is_not_talked_over(models: Path) -> None:
    first = open_chat()
    finish(ask(first, "one"))
    second = open_tab("3_Chat", query={"chat": "1"})
    finish(ask(second, "two"))
    ask(first, "three")
    assert "went on meanwhile" in first.error[0].value and len(history()) == 4
    assert named(first.chat_input, "chat_input").value == "three"
    finish(ask(first, "three"))
    assert len(history()) == 6


def test_a_preset_is_a_chats_own_and_can_be_the_models(models: Path) -> None:
    tab = open_chat()
    named(tab.selectbox, "sampling_preset").set_value("precise")
    assert named(run(tab).slider, "sampling_temperature").value == 0.3
    finish(ask(tab, "settings"))
    assert last_message().text.startswith("Sampling(temperature=0.3, top_p=0.85, top_k=40")
    assert named(click(tab, "chat_new").slider, "sampling_temperature").value == 0.7
    click(click(tab, "chat_open_1"), "sampling_default")
    assert named(click(tab, "chat_new").slider, "sampling_temperature").value == 0.3


def test_presets_of_other_programs_come_in_and_what_they_lack_here_is_said(models: Path) -> None:
    tab = open_chat()
    for text in (b"temperature: 0.9\ntfs: 0.5", b"temperature: 0.4"):
        named(tab.file_uploader, "sampling_import").set_value([("Mine.yaml", text, "application/yaml")])
        run(tab)
    assert named(tab.selectbox, "sampling_preset").value == "Mine (2)"
    assert {preset.name: preset.values["temperature"] for preset in resources.presets().own()} == {
        "Mine": 0.9, "Mine (2)": 0.4}  # fmt: skip
    files = [("chat.json", b"{}", "application/json"), ("two.json", b'{"temp": 1, "tfs": 0.9}', "application/json")]
    named(tab.file_uploader, "sampling_import").set_value(files)
    run(tab)
    assert "is no preset of text-generation-webui" in words(tab) and "no counterpart here: tfs" in words(tab)


def test_a_preset_that_cannot_be_read_is_named_beside_the_others(models: Path) -> None:
    resources.presets().file.path.parent.mkdir(exist_ok=True)
    resources.presets().file.path.write_text("mine: {temperature: 0.3}\nother*: {top_n_sigma: 0.9}\n")
    tab = open_chat()
    assert "mine" in named(tab.selectbox, "sampling_preset").options
    assert "other\\*" in tab.warning[0].value and "top\\_n\\_sigma" in tab.warning[0].value


def test_settings_can_be_saved_under_a_name_and_the_deletion_taken_back(models: Path) -> None:
    tab = open_chat()
    named(tab.slider, "sampling_temperature").set_value(1.2)
    named(run(tab).text_input, "sampling_name").set_value("mine")
    click(tab, "sampling_save")
    assert named(tab.selectbox, "sampling_preset").value == "mine"
    assert resources.presets().get("mine").values["temperature"] == 1.2
    click(tab, "sampling_delete")
    assert named(tab.slider, "sampling_temperature").value == 1.2
    assert named(tab.text_input, "sampling_name").value == "mine"
    assert named(click(tab, "sampling_save").selectbox, "sampling_preset").value == "mine"


def test_a_sampler_stands_beside_what_it_works_with(models: Path) -> None:
    """A phone shows one below the other: xtc's threshold must not stand far from its probability."""
    labels = [slider.label for slider in open_chat().slider]
    pairs = zip(labels[::2], labels[1::2], strict=False)
    assert {("XTC probability", "XTC threshold"), ("DRY multiplier", "DRY base")} <= set(pairs)


def test_samplers_that_few_change_are_kept_too(models: Path) -> None:
    tab = open_chat()
    named(tab.slider, "sampling_dry_multiplier").set_value(0.8)
    named(run(tab).number_input, "sampling_mirostat").set_value(2)
    finish(ask(run(tab), "settings"))
    assert "dry_multiplier=0.8" in last_message().text and "mirostat=2," in last_message().text
    named(tab.text_input, "sampling_name").set_value("dry")
    click(tab, "sampling_save")
    assert resources.presets().get("dry").values["dry_multiplier"] == 0.8


def test_an_impossible_value_is_refused_with_its_range(models: Path) -> None:
    tab = open_chat()
    named(tab.number_input, "sampling_top_k").set_value(-3)
    run(tab)
    assert "0" in tab.error[0].value and "1000000" in tab.error[0].value.replace(",", "")
    assert named(tab.number_input, "sampling_top_k").value == 0


def test_an_edited_message_stays_in_its_place_and_a_question_can_be_asked_anew(models: Path) -> None:
    tab = open_chat()
    finish(ask(tab, "hello"))
    question = resources.chat_store().read(1).messages[0].id
    tab.session_state[EDIT_KEY] = question
    run(tab).text_area(key=f"chat_edit_{question}").set_value("good day")
    click(tab, "chat_edit_save")
    assert [text for _, text in history()] == ["good day", "You said: hello "]
    question = resources.chat_store().read(1).messages[0].id
    tab.session_state[EDIT_KEY] = question
    run(tab).text_area(key=f"chat_edit_{question}").set_value("bye")
    finish(click(tab, "chat_edit_ask"))
    assert [text for _, text in history()] == ["bye", "You said: bye "]
    assert "2/2" in words(tab) or "3/3" in words(tab)


def test_an_answer_has_versions_to_flip_through_and_can_go_on(models: Path) -> None:
    tab = open_chat()
    finish(ask(tab, "hello"))
    first = last_message().id
    finish(click(tab, "chat_regenerate"))
    assert "2/2" in words(tab)
    click(tab, f"version_before_{last_message().id}")
    assert last_message().id == first and "1/2" in words(tab)
    finish(click(tab, "chat_go_on"))
    assert last_message().id == first and last_message().text == "You said: helloYou said: hello "


def test_a_reply_starts_with_given_words_once(models: Path) -> None:
    tab = open_chat()
    named(tab.text_area, "chat_start").set_value("Sure: ")
    finish(ask(run(tab), "hello"))
    assert history()[-1][1] == "Sure:You said: hello "
    finish(ask(tab, "again"))
    assert history()[-1][1] == "You said: again "


def test_my_line_is_written_into_the_input(models: Path) -> None:
    tab = open_chat()
    finish(ask(tab, "hello"))
    click(tab, "chat_my_line")
    if line := resources.chat_service().impersonation(1):  # Else it was finished at once.
        assert line.answer.wait(WAIT_S)
        run(tab)
    assert named(tab.chat_input, "chat_input").value == "You said:" and len(history()) == 2


def test_a_chat_is_renamed_pinned_and_its_deletion_undone(models: Path) -> None:
    tab = open_chat()
    finish(ask(tab, "hello"))
    finish(ask(click(tab, "chat_new"), "second"))
    named(click(tab, "chat_open_1").text_input, "chat_title").set_value("My *own* title")
    named(run(tab).toggle, "chat_pin").set_value(True)
    run(tab)
    assert tab.header[0].value == "My \\*own\\* title"
    assert [info.title for info in resources.chat_store().chats()] == ["My *own* title", "second"]
    click(tab, "chat_delete")
    assert tab.header[0].value == "New chat" and resources.chat_store().count() == 1
    click(tab, "chat_undo")
    assert tab.header[0].value == "My \\*own\\* title" and resources.chat_store().count() == 2
    assert not has(tab.button, "chat_trash")


def test_a_deleted_chat_is_restored_from_the_trash_with_all_it_had(models: Path) -> None:
    tab = open_chat()
    finish(ask(tab, "hello"))
    before = resources.chat_store().copy(1)
    click(tab, "chat_delete")
    assert "hello" not in [hit.title for hit in resources.chat_store().search("hello")]
    click(tab, "chat_trash")
    assert "hello" in words(tab) and "30 days left" in words(tab)
    click(tab, "chat_restore_1")
    assert tab.header[0].value == "hello" and resources.chat_store().copy(1) == before
    assert not has(tab.button, "chat_restore")


def test_what_another_tab_has_just_begun_in_a_chat_that_is_deleted_ends(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(open_tab(), "tiny")
    tab = finish(ask(open_tab("3_Chat"), "hello"))
    begun: list[Answer] = []
    delete = ChatStore.delete_chat

    def delete_late(store: ChatStore, number: int) -> None:
        chat = store.read(number)
        resources.chat_service().send(number, "forever", chat.messages[-1].id, prompt_context(chat))
        begun.append(last_answer())
        delete(store, number)

    monkeypatch.setattr(ChatStore, "delete_chat", delete_late)
    click(tab, "chat_delete")
    assert begun[0].wait(WAIT_S) and begun[0].reason == "cancelled"


def test_the_trash_is_emptied_chat_by_chat_and_as_a_whole(models: Path) -> None:
    store = resources.chat_store()
    for _ in range(4):
        store.delete_chat(add_chat(2))
    tab = click(open_tab("3_Chat"), "chat_trash")
    store.restore_chat(3)  # Another tab does that meanwhile.
    click(tab, "chat_purge_3")
    assert store.info(3).title == "long" and store.count_deleted() == 3
    click(click(tab, "chat_trash"), "chat_purge_1")
    assert [one.info.id for one in store.deleted()] == [4, 2]
    click(click(tab, "chat_trash"), "chat_trash_all_yes")
    assert store.count_deleted() == 0 and store.count() == 1 and not has(tab.button, "chat_trash")


def test_a_notebook_is_a_choice_of_its_own_and_a_chat_the_way_back(models: Path, checkpoint: Path) -> None:
    tab = click(open_chat(), "chat_notebook")
    assert tab.header[0].value == "New notebook" and not tab.chat_input and not has(tab.selectbox, "chat_mode")
    click(tab, "chat_new")
    assert tab.header[0].value == "New chat" and "notebook" not in named(tab.selectbox, "chat_mode").options


def test_those_who_speak_have_names_where_a_character_does(ada: str) -> None:
    tab = open_chat("tiny", chat="new", character=ada)
    finish(ask(tab, "hello"))
    assert [message.markdown[0].value for message in tab.chat_message] == ["**Ada**", "**You**", "**Ada**"]
    finish(ask(click(tab, "chat_new"), "hello"), 2)
    assert "**You**" not in [one.value for one in tab.markdown]


def test_the_sidebar_names_the_chats_that_are_answered_and_leads_to_them(models: Path) -> None:
    tab = open_chat()
    ask(tab, "forever one")
    ask(click(tab, "chat_new"), "forever two")
    other = open_tab()
    links = [(one.proto.label, one.proto.query_string) for one in other.get("page_link")]
    # On Home they stand among the recent chats as well.
    assert links.count(("forever one", "chat=1")) == links.count(("forever two", "chat=2")) == 2
    assert [info.id for info in answered_chats()] == [1, 2]
    for number in (1, 2):
        resources.chat_service().stop(number)
        finish(tab, number)
    assert answered_chats() == []


def test_the_list_has_days_faces_and_names(ada: str) -> None:
    add_chat(2)
    tab = open_chat("tiny", chat="new", character=ada)
    finish(ask(tab, "hello"), 2)
    assert [caption.value for caption in tab.caption if caption.value in ("Today", "Pinned")] == ["Today"]
    button = tab.button(key="chat_open_2")
    assert button.label == "hello :gray[:small[Ada]]" and button.icon == ""
    assert tab.button(key="chat_open_1").label == "long"
    styles = "".join(element.proto.body for element in tab.get("html"))
    assert ".st-key-chat_open_2 button::before" in styles and ".st-key-chat_open_1 button" not in styles
    resources.chat_store().pin(1, True)
    assert [caption.value for caption in run(tab).caption if caption.value in ("Today", "Pinned")] == [
        "Pinned",
        "Today",
    ]


@pytest.mark.parametrize(
    ("locale", "waits", "reused"),
    [
        ("en-US", "Waiting until other chats leave room", "12 tokens reused"),
        ("zh-CN", "等待其他聊天腾出空间", "复用 12 个 token"),
    ],
)
def test_an_answer_says_that_it_waits_for_room_and_what_it_did_not_have_to_read(
    models: Path, locale: str, waits: str, reused: str
) -> None:
    tab = ask(open_chat(), "paused=2 reused=12")
    answer, is_there = last_answer(), threading.Event()
    answer.add_listener(lambda: is_there.set() if answer.is_paused else None)
    assert is_there.wait(WAIT_S)
    seen = words(open_tab("3_Chat", locale, query={"chat": "1"}))
    assert waits in seen and reused not in seen
    answer.cancel()
    finish(tab)
    seen = words(open_tab("3_Chat", locale, query={"chat": "1"}))
    assert reused in seen and waits not in seen


def test_speed_under_answers_can_be_switched_off(models: Path) -> None:
    tab = open_chat()
    finish(ask(tab, "hello"))
    assert "tokens/s" in words(tab)
    named(tab.toggle, "chat_speed").set_value(False)
    assert "tokens/s" not in words(run(tab)) and "tokens/s" not in words(open_tab("3_Chat", query={"chat": "1"}))


def test_search_finds_a_message_and_leads_to_it(models: Path) -> None:
    number = add_chat(60)
    tab = open_tab("3_Chat")
    assert tab.header[0].value == "New chat"
    tab.text_input(key="chat_search").set_value("SEVEN")
    click(run(tab), "chat_hit")
    assert tab.query_params["chat"] == [str(number)] or tab.query_params["chat"] == str(number)
    assert "message 7 seven" in [text.value for text in [*tab.text, *tab.markdown]]
    tab.text_input(key="chat_search").set_value("nothing like it")
    assert "Nothing found" in words(run(tab))


def test_a_long_chat_shows_its_end_and_more_on_request(models: Path) -> None:
    add_chat(100)
    tab = open_tab("3_Chat", query={"chat": "1"})
    assert len(tab.chat_message) == 20
    assert len(click(tab, "chat_earlier").chat_message) == 40


def test_a_long_list_pages(models: Path) -> None:
    for _ in range(60):
        add_chat(1)
    tab = open_tab("3_Chat")
    opened = [button.key for button in tab.button if str(button.key).startswith("chat_open")]
    assert len(opened) == 25
    click(tab, "chat_list_more")
    assert len([button for button in tab.button if str(button.key).startswith("chat_open")]) == 50


def test_the_page_shows_where_the_models_memory_begins(models: Path) -> None:
    add_chat(100)
    tab = open_chat("tiny", chat="1")
    for _ in range(5):
        if has(tab.button, "chat_earlier"):
            click(tab, "chat_earlier")
    assert "memory begins here" in words(tab) and "/ 2,048" in words(tab)


def test_a_long_last_answer_leaves_room_for_the_next_question(models: Path) -> None:
    """The counter said in red that the chat was too long, and the next question was answered all the same."""
    said = [CopiedMessage(None, "user", "Tell me all.", 1.0), CopiedMessage(0, "assistant", "long " * 1700, 1.0)]
    resources.chat_store().add(CopiedChat(tuple(said), "long"))
    tab = open_chat("tiny", chat="1")
    assert "Too long for the context" not in words(tab) and "/ 2,048" in words(tab)
    assert "memory begins here" in words(tab)
    finish(ask(tab, "hello"))
    assert history()[-1] == ("assistant", "You said: hello ")


def test_a_question_too_long_is_a_sentence_and_comes_back(models: Path) -> None:
    tab = ask(open_chat(), "long " * 2500)
    assert "tokens long" in tab.error[0].value and resources.chat_store().count() == 0
    # The page goes to where it is said.
    assert tab.session_state[SENT_KEY] == 2
    assert named(tab.chat_input, "chat_input").value == "long " * 2500


def test_a_history_that_cannot_be_used_is_a_sentence(models: Path, tmp_path: Path) -> None:
    open_tab("3_Chat")
    restart()
    path = tmp_path / "data" / "chats.sqlite3"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 999")
    db.close()
    tab = open_tab("3_Chat")
    assert "newer" in tab.error[0].value and not open_tab().exception
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    db.close()
    assert not run(tab).error


def test_an_import_says_what_is_wrong_and_takes_the_rest(models: Path) -> None:
    tab = open_tab("3_Chat")
    old = {"internal": [["hi", "hello there"]], "visible": [["hi", "hello there"]]}
    tab.file_uploader(key="chat_import_files_0").set_value(
        [("bad.json", b"[1, 2]", "application/json"), ("good.json", json.dumps(old).encode(), "application/json"),
         ("worse.json", b"", "application/json")]
    )  # fmt: skip
    run(tab)
    assert tab.header[0].value == "hi" and "no chat that LlamaDeck reads" in tab.error[0].value
    assert ["bad.json" in tab.error[0].value, "worse.json" in tab.error[1].value] == [True, True]
    assert history() == [("user", "hi"), ("assistant", "hello there")]


def test_an_import_says_what_was_left_behind_until_the_next_step(models: Path) -> None:
    tab = open_tab("3_Chat")
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url"}]}]
    tab.file_uploader(key="chat_import_files_0").set_value([
        ("two [1].json", json.dumps([{"messages": messages}, {"messages": messages}]).encode(), "application/json"),
    ])  # fmt: skip
    run(tab)
    assert [info.id for info in resources.chat_store().chats()] == [2, 1]
    assert "two \\[1\\].json" in tab.info[0].value and "Pictures are left out: 2" in tab.info[0].value
    click(tab, "chat_new")
    assert not tab.info or "Pictures" not in tab.info[0].value


def test_fifty_thousand_characters_are_shown(models: Path) -> None:
    messages = (CopiedMessage(None, "user", "word " * 10_000, 1.0), CopiedMessage(0, "assistant", "x" * 50_000, 1.0))
    resources.chat_store().add(CopiedChat(messages, "w" * 200))
    tab = open_tab("3_Chat", query={"chat": "1"})
    assert len(tab.chat_message) == 2


def test_a_question_that_the_tokenizer_panics_at_is_a_sentence_and_comes_back(models: Path, checkpoint: Path) -> None:
    (models / "tiny").unlink()
    shutil.copytree(checkpoint, models / "tiny")
    damage(models / "tiny", giving_up)
    tab = ask(open_chat(), TOO_HARD)
    assert not tab.exception and "retry-limit" in tab.error[0].value
    assert named(tab.chat_input, "chat_input").value == TOO_HARD


def test_a_question_comes_back_from_whatever_nobody_foresaw(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tab = open_chat()
    with monkeypatch.context() as patch:
        patch.setattr("ui.chat.actions.prompt_context", lambda *_, **__: {}["a bug"])
        ask(tab, "My only copy.")
    assert "KeyError" in tab.error[0].value
    assert named(tab.chat_input, "chat_input").value == "My only copy."


def test_a_hidden_message_is_shown_and_not_read(ada: str) -> None:
    chat = add_chat(3)
    store = resources.chat_store()
    first, second, _ = store.read(chat).messages
    store.hide(first.id, True)
    assert store.info(chat).title == "message 2"
    store.hide(first.id, False)
    assert store.info(chat).title == "message 0"
    store.hide(second.id, True)
    tab = open_chat(chat=str(chat))
    assert words(tab).count("The model does not read this") == 1 and "message 1" in words(tab)
    assert store.read(store.branch(store.edit(second.id, "other words"))).messages[1].is_hidden
    finish(ask(run(tab), "hello"))
    assert not store.read(chat).messages[0].is_hidden and store.read(chat).messages[1].is_hidden
    prompt = prompt_of(store.read(chat)).fitted.prompt
    assert "message 0" in prompt and "other words" not in prompt and "hello" in prompt
    store.hide(store.read(chat).messages[1].id, False)
    assert "other words" in prompt_of(store.read(chat)).fitted.prompt
    with pytest.raises(ChatStoreError):
        store.hide(second.id, True)


# Several characters --------------------------------------------------------------------------------------------------


@pytest.fixture
def olaf(ada: str, tmp_path: Path) -> str:
    (tmp_path / "characters" / "Olaf.yaml").write_text(
        "name: Olaf\ngreeting: Ho, {{group}}!\ncontext: Olaf.\n", "utf-8"
    )
    return "Olaf"


def gather(tab: AppTest, *members: str) -> AppTest:
    named(tab.multiselect, "chat_members").set_value(list(members))
    return run(tab)


def spoken() -> list[tuple[str, str]]:
    return [(one.speaker, one.role) for one in resources.chat_store().read(1).messages]


def test_a_group_greets_takes_turns_and_listens_to_names(olaf: str) -> None:
    tab = gather(open_chat(character="Ada"), "Olaf")
    assert "**Ada**" in words(tab) and "Ho, Ada, Olaf!" in words(tab)
    assert not resources.chat_store().count()
    finish(ask(tab, "hello"))
    assert spoken()[:2] == [("Ada", "assistant"), ("Olaf", "assistant")] and spoken()[-1] == ("Ada", "assistant")
    assert "Olaf: Ho, Ada, Olaf!" in last_message().text
    finish(ask(tab, "And Ada again?"))
    assert spoken()[-1] == ("Ada", "assistant")
    finish(click(tab, "chat_speak_1_Olaf"))
    assert spoken()[-1] == ("Olaf", "assistant") and "Ada: You said" in last_message().text


def test_who_comes_later_greets_when_asked_to(olaf: str) -> None:
    tab = open_chat(chat="new", character="Ada")
    finish(ask(tab, "hello"))
    tab = gather(run(tab), "Olaf")
    assert not has(tab.button, "chat_greet_1_Ada")
    tab = click(tab, "chat_greet_1_Olaf")
    assert spoken()[-1] == ("Olaf", "assistant") and last_message().text == "Ho, Ada, Olaf!"
    assert not has(tab.button, "chat_greet_1_Olaf")


def test_what_is_written_anew_keeps_its_speaker(olaf: str) -> None:
    tab = gather(open_chat(character="Ada"), "Olaf")
    finish(ask(tab, "Olaf?"))
    old = last_message()
    finish(click(tab, f"chat_regenerate_{old.id}"))
    assert (last_message().speaker, len(last_message().versions)) == ("Olaf", 2)
    finish(click(tab, f"chat_go_on_{last_message().id}"))
    assert last_message().speaker == "Olaf"


def test_a_question_asked_anew_is_answered_by_whose_turn_it_was(olaf: str) -> None:
    tab = gather(open_chat(character="Ada"), "Olaf")
    finish(ask(tab, "hello"))
    question = resources.chat_store().read(1).messages[-2].id
    tab.session_state[EDIT_KEY] = question
    run(tab).text_area(key=f"chat_edit_{question}").set_value("good day")
    finish(click(tab, "chat_edit_ask"))
    assert spoken()[-1] == ("Ada", "assistant") and "good day" in last_message().text


def test_who_left_a_chat_writes_their_own_line_anew(olaf: str, tmp_path: Path) -> None:
    with (tmp_path / "characters" / "Olaf.yaml").open("a", encoding="utf-8") as card:
        card.write("post_history_instructions: Olaf shouts.\n")
    tab = gather(open_chat(character="Ada"), "Olaf")
    finish(ask(tab, "Olaf?"))
    gather(tab)
    finish(click(tab, f"chat_regenerate_{last_message().id}"))
    assert last_message().speaker == "Olaf" and "Olaf shouts." in last_message().text
    finish(ask(tab, "Ada?"))
    assert "Olaf shouts." not in last_message().text.rpartition("Ada?")[2]


def test_where_a_person_chooses_nobody_answers_before(olaf: str) -> None:
    tab = gather(open_chat(character="Ada"), "Olaf")
    named(tab.selectbox, "chat_order").select("manual")
    ask(run(tab), "hello")
    assert spoken()[-1] == ("", "user")
    finish(click(tab, "chat_speak_1_Olaf"))
    assert spoken()[-1] == ("Olaf", "assistant")


def test_a_chat_becomes_a_group_and_one_again_with_its_lines(olaf: str) -> None:
    tab = open_chat(character="Ada")
    finish(ask(tab, "hello"))
    assert {speaker for speaker, _ in spoken()} == {""}
    gather(tab, "Olaf")
    finish(ask(tab, "Olaf?"))
    assert [speaker for speaker, role in spoken() if role == "assistant"] == ["Ada", "Ada", "Olaf"]
    gather(tab)
    assert not has(tab.button, "chat_speak_1_Olaf") and "**Olaf**" in words(tab)
    finish(ask(tab, "still there?"))
    assert spoken()[-1] == ("", "assistant") and "Olaf: You said" in last_message().text


def test_an_imported_group_is_one_here(olaf: str) -> None:
    lines = [
        {"user_name": "unused", "character_name": "unused", "chat_metadata": {}},
        {"name": "Ada", "is_user": False, "mes": "I am Ada."},
        {"name": "Olaf", "is_user": False, "mes": "Ho."},
        {"name": "Cleo", "is_user": False, "mes": "Meow."},
    ]
    tab = open_chat()
    content = "\n".join(json.dumps(line) for line in lines).encode()
    tab.file_uploader(key="chat_import_files_0").set_value([("group.jsonl", content, "application/json")])
    run(tab)
    assert named(tab.multiselect, "chat_members").value == ["Olaf", "Cleo"]
    assert any("its name alone" in warning.value for warning in tab.warning) and "**Cleo**" in words(tab)
    finish(ask(tab, "Hi Olaf"))
    assert spoken()[-1] == ("Olaf", "assistant") and "Cleo: Meow." in last_message().text
    gather(tab, "Olaf")
    assert resources.chat_store().info(1).members == ("Olaf",)


# One thing's in another's -----------------------------------------------------------------------------------------


def test_settings_that_two_tabs_change_at_once_all_stay(models: Path) -> None:
    finish(ask(open_chat(), "hello"))
    one, other = (open_tab("3_Chat", query={"chat": "1"}) for _ in range(2))
    named(one.slider, "sampling_temperature").set_value(1.2)
    named(other.number_input, "sampling_top_k").set_value(7)
    run(one)
    run(other)
    assert resources.chat_store().info(1).settings["sampling"] == {"temperature": 1.2, "top_k": 7}


def test_another_mode_leaves_the_character_that_another_tab_chose(ada: str) -> None:
    finish(ask(open_chat(), "hello"))
    tab = open_tab("3_Chat", query={"chat": "1"})
    resources.chat_store().set_character(1, "Ada")
    named(tab.selectbox, "chat_mode").set_value("chat")
    run(tab)
    info = resources.chat_store().info(1)
    assert (info.mode, info.character) == ("chat", "Ada")


def test_a_title_that_another_tab_gave_is_not_written_over(models: Path) -> None:
    finish(ask(open_chat(), "hello"))
    tab = open_tab("3_Chat", query={"chat": "1"})
    resources.chat_store().rename(1, "Theirs")
    named(tab.text_input, "chat_title").set_value("Mine")
    assert "not written over it (Mine" in run(tab).error[0].value
    assert resources.chat_store().info(1).title == "Theirs"
    named(tab.text_input, "chat_title").set_value("Mine, knowing theirs")
    run(tab)
    assert resources.chat_store().info(1).title == "Mine, knowing theirs"


@pytest.mark.parametrize("step", ["sampling_save", "sampling_delete"])
def test_a_preset_that_another_tab_saved_is_neither_written_over_nor_deleted(models: Path, step: str) -> None:
    resources.presets().save("mine", {"temperature": 0.9})
    resources.chat_store().create("instruct", settings={"preset": "mine"})
    tab = open_chat(chat="1")
    named(tab.text_input, "sampling_name").set_value("mine")
    run(tab)
    resources.presets().save("mine", {"temperature": 0.1})
    assert "saved or changed elsewhere" in click(tab, step).error[0].value
    assert resources.presets().get("mine").values == {"temperature": 0.1}
    assert resources.chat_store().info(1).settings == {"preset": "mine"}


def test_what_a_new_chat_was_given_is_in_no_other_new_chat(ada: str) -> None:
    tab = open_chat(chat="new")
    named(tab.text_area, "chat_system").set_value("Of the first.")
    named(tab.selectbox, "chat_character").set_value("Ada")
    finish(ask(run(tab), "hello"))
    assert resources.chat_store().info(1).settings["system"] == "Of the first."
    finish(ask(click(tab, "chat_new"), "hello again"))
    info = resources.chat_store().info(2)
    assert info.character == "" and "system" not in info.settings


def test_a_chat_keeps_its_character_beside_another_one_of_the_same_name(ada: str, tmp_path: Path) -> None:
    """Two versions of a card: to open the chat gave it the other one, as a browser tells a choice by its words."""
    shutil.copy(tmp_path / "characters" / "Ada.yaml", tmp_path / "characters" / "Ada_2.yaml")
    resources.chat_store().create("chat", character=ada)
    tab = run(run(open_chat(chat="1")))
    box = named(tab.selectbox, "chat_character")
    assert box.value == resources.chat_store().info(1).character == ada
    assert box.options[1:] == ["Ada (Ada)", "Ada (Ada_2)"]
    box.set_value("Ada_2")
    run(tab)
    assert resources.chat_store().info(1).character == "Ada_2"


def test_a_chat_keeps_its_character_when_that_is_given_another_name(ada: str, tmp_path: Path) -> None:
    """The browser sends the name that it still shows, and the chat had a character of that name, which is none."""
    file = tmp_path / "characters" / "Ada.yaml"
    file.write_text(ADA.replace("name: Ada", "name: Countess"), "utf-8")
    resources.chat_store().create("chat", character=ada)
    tab = run(open_chat(chat="1"))
    before = seen(tab)
    assert "Countess" in [one.string_value for one in before.widgets]
    file.write_text(ADA.replace("name: Ada", "name: Baroness"), "utf-8")
    tab = run(send_late(run(tab), before))
    assert named(tab.selectbox, "chat_character").value == resources.chat_store().info(1).character == ada


def test_a_step_of_a_chat_that_was_left_is_taken_in_it(models: Path) -> None:
    """The browser sends both at once where the page is slow: the way to another chat, and what was typed before it."""
    finish(ask(open_chat(), "first"))
    ask(open_tab("3_Chat", query={"chat": "new"}), "second")
    resources.recorder().wait(last_message(2).id, WAIT_S)
    tab = open_tab("3_Chat", query={"chat": "1"})
    named(tab.chat_input, "chat_input").set_value("for the first")
    named(tab.text_area, "chat_system").set_value("Of the first.")
    tab.button(key="chat_open_2").click()
    finish(run(tab))
    assert [one.text for one in resources.chat_store().read(1).messages if one.role == "user"] == [
        "first", "for the first"]  # fmt: skip
    assert resources.chat_store().info(1).settings["system"] == "Of the first."
    assert "system" not in resources.chat_store().info(2).settings
    assert len(resources.chat_store().read(2).messages) == 2


def test_a_tab_that_somebody_else_goes_on_with_holds_nothing_of_the_one_before(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab = open_chat(chat="new")
    named(tab.text_area, "chat_system").set_value("Of Ann alone.")
    run(tab)
    monkeypatch.setattr("ui.shared.people.person", lambda: "bob")
    assert named(run(tab).text_area, "chat_system").value == ""


def test_a_question_at_the_address_of_a_deleted_chat_begins_another_that_is_shown(models: Path) -> None:
    finish(ask(open_chat(), "first"))
    resources.chat_store().delete_chat(1)
    tab = open_tab("3_Chat", query={"chat": "1"})
    finish(ask(tab, "a new one"), 2)
    assert "You said: a new one" in words(tab) and tab.query_params["chat"] == "2"
    resources.chat_store().restore_chat(1)
    assert len(resources.chat_store().read(1).messages) == 2


def test_a_page_between_an_answers_last_word_and_its_end_is_drawn_again(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It once kept the button that stops an answer, with nothing to stop, until somebody did something."""
    tab = open_chat()
    finish(ask(tab, "hello"))
    service = resources.chat_service()
    ends = threading.Event()
    monkeypatch.setattr(service, "is_busy", lambda chat: not ends.is_set())
    draw = composer.redraw_every

    def end_and_draw(*args: object) -> None:
        ends.set()
        draw(*args)

    monkeypatch.setattr(composer, "redraw_every", end_and_draw)
    tab = run(tab)
    assert ends.is_set() and not has(tab.button, "chat_stop") and has(tab.button, "chat_regenerate")
