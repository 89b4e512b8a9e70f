"""Chats leave and come as files: everything in ours, what others wrote in theirs, a sentence for all else."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.chat.dates import seconds
from core.chat.exporting import to_json, to_markdown, to_sillytavern
from core.chat.importing import MAX_FILE_BYTES, MAX_MESSAGES
from core.chat.parsing import ChatFileError, show_one
from core.chat.records import MODES, ROLES, CopiedChat, CopiedMessage, Thought
from core.chat.roleplay_files import NO_QUESTION
from core.chat.store import ChatStore
from core.documents.document import Document
from tests.support.chat_files import read_chat_file
from tests.support.damaged import harmed


def refused(data: bytes) -> str:
    with pytest.raises(ChatFileError) as caught:
        read_chat_file(data)
    assert caught.value.sentence("zh") and len(str(caught.value)) < 600
    return caught.value.key


def shown(chat: CopiedChat) -> list[tuple[str, str]]:
    path, last = [], None
    while found := [(n, m) for n, m in enumerate(chat.messages) if m.parent == last and m.is_shown]:
        ((last, message),) = found
        path.append((message.role, message.text))
    return path


# Ours ---------------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
LINES = TEXTS.map(lambda text: " ".join(text.split()))
NUMBERS = st.integers(0, 10**6)
STATS = st.fixed_dictionaries(
    {},
    optional={"model": TEXTS, "reason": st.sampled_from(["end", None]), "tokens": NUMBERS, "seed": NUMBERS,
              "tokens_per_s": st.floats(0, 1e6), "first_token_s": st.floats(0, 1e6), "prompt_tokens": NUMBERS,
              "reused_tokens": NUMBERS,
              "template": st.sampled_from([{}, {"enable_thinking": False}, {"reasoning_effort": "low"}]),
              "error": st.just({"key": "worker_died", "params": {"how": "SIGSEGV"}})},
)  # fmt: skip
SETTINGS = st.fixed_dictionaries(
    {},
    optional={"preset": TEXTS, "your_name": TEXTS, "shows_speed": st.booleans(),
              "sampling": st.just({"temperature": 0.5, "stop": ["\n"], "seed": None})},
)  # fmt: skip
LETTER, UNSENT = Document("a letter.md", 7, "# 信\n```", is_whole=False), Document("x.pdf", 0, "", is_whole=False)


@st.composite
def copied_chats(draw: st.DrawFn) -> CopiedChat:
    messages = [
        CopiedMessage(
            parent=draw(st.one_of(st.none(), st.integers(0, place - 1))) if place else None,
            role=draw(st.sampled_from(ROLES)),
            text=draw(TEXTS),
            created_s=draw(st.floats(1, 2e9)),
            state=draw(st.sampled_from(["done", "stopped", "failed"])),
            stats=draw(STATS),
            speaker=draw(st.sampled_from(["", "Ada", "Olaf"])),
            is_hidden=draw(st.booleans()),
            files=draw(st.sampled_from([(), (LETTER,), (LETTER, UNSENT)])),
            thought=draw(st.none() | st.builds(Thought, TEXTS, TEXTS, TEXTS, st.none() | st.floats(0, 1e6))),
        )
        for place in range(draw(st.integers(1, 12)))
    ]
    return CopiedChat(
        tuple(show_one(messages)), draw(LINES), draw(st.booleans()), draw(st.floats(1, 2e9)),
        draw(st.sampled_from(MODES)), draw(TEXTS), draw(SETTINGS), draw(TEXTS), draw(st.booleans()),
        draw(st.sampled_from([(), ("Olaf",), ("Olaf", "三")])), draw(st.sampled_from([(), ("Town", "城")])),
        draw(st.sampled_from([(), (LETTER,)])),
    )  # fmt: skip


@given(copied_chats())
@settings(deadline=None)
def test_what_goes_out_comes_back_the_same(chat: CopiedChat) -> None:
    assert read_chat_file(to_json(chat).encode()) == chat


@given(chat=copied_chats())
@settings(deadline=None, max_examples=40)
def test_the_history_keeps_all_of_a_chat_that_came(tmp_path_factory: pytest.TempPathFactory, chat: CopiedChat) -> None:
    store = ChatStore(tmp_path_factory.mktemp("chats") / "chats.sqlite3")
    number = store.add(chat)
    copy = store.copy(number)
    assert len(copy.messages) == len(chat.messages) and shown(copy) == shown(chat)
    assert [(message.role, message.text) for message in store.read(number).messages] == shown(chat)
    again = store.copy(store.add(read_chat_file(to_json(copy).encode())))
    assert again == copy
    store.close()


def test_an_export_holds_versions_and_nothing_deleted(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "chats.sqlite3")
    chat = store.create("chat", greetings=["hello", "hi"])
    first = store.read(chat).messages[0].id
    asked = store.append_user(chat, "secret", first)
    answer = store.begin_answer(chat, asked)
    store.finish_answer(answer, "kept", "done", {"tokens": 3})
    store.delete(asked)
    late = store.append_user(chat, "to be cut", answer)
    store.delete_from(late)
    text = to_json(store.copy(chat))
    assert "secret" not in text and "to be cut" not in text
    copy = read_chat_file(text.encode())
    assert shown(copy) == [("assistant", "hello"), ("assistant", "kept")]
    assert {message.text for message in copy.messages} == {"hello", "hi", "kept"}
    assert [message.stats for message in copy.messages if message.text == "kept"] == [{"tokens": 3}]
    store.close()


def test_markdown_is_what_is_shown(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "chats.sqlite3", now=lambda: 1_700_000_000.0)
    chat = store.create("chat", greetings=["Hello, I am *Ada*."])
    store.append_user(chat, "What is\n\n```\n1 + 1\n```", store.read(chat).messages[-1].id, [LETTER])
    text = to_markdown(store.read(chat), "Tom", "Ada")
    assert text.startswith("# What is\n\n*2023-11-1") and text.endswith(
        "## Ada\n\nHello, I am *Ada*.\n\n## Tom\n\n`a letter.md`\n\nWhat is\n\n```\n1 + 1\n```\n"
    )
    notebook = store.create("notebook")
    store.append_text(notebook, "Once upon a time")
    store.rename(notebook, "A tale")
    assert "## " not in to_markdown(store.read(notebook), "Tom", "Ada")
    store.close()


def test_files_make_an_export_one_of_a_newer_form_and_go_to_sillytavern() -> None:
    chat = CopiedChat((CopiedMessage(None, "user", "Read.", 5.0, files=(LETTER,)),))
    assert json.loads(to_json(CopiedChat((), draft="Read.", draft_files=(LETTER,))))["version"] == 3
    assert json.loads(to_json(chat))["version"] == 3 and json.loads(to_json(CopiedChat(())))["version"] == 1
    line = json.loads(to_sillytavern(chat, "Tom", "Ada", {}).splitlines()[1])
    assert line["mes"] == "Read." and line["extra"]["files"] == [
        {"name": "a letter.md", "size": 7, "text": "# 信\n```"}
    ]


@pytest.mark.parametrize("files", [5, [5], [{"name": "a", "text": "b"}], [{"name": "a", "size_bytes": True}]])
def test_files_of_no_form_are_damage(files: Any) -> None:
    chat = json.loads(to_json(CopiedChat((CopiedMessage(None, "user", "Read.", 5.0),))))
    chat["messages"][0]["files"] = files
    assert refused(json.dumps(chat).encode()) == "chat_file_damaged"


# Others' ------------------------------------------------------------------------------------------------------------


def webui(**more: Any) -> bytes:
    internal = [
        [NO_QUESTION, "Hi, I am Ada."],
        ["Who are you?", "Ada, as I said."],
        ["", "Are you there?"],
        ["Yes", ""],
    ]
    visible = [["", "<b>Hi</b>"], ["Who are you?", "Ada, as I said."]]
    return json.dumps({"internal": internal, "visible": visible, **more}).encode()


def test_text_generation_webuis_history_is_read() -> None:
    chat = read_chat_file(b"\xef\xbb\xbf" + webui())
    assert shown(chat) == [
        ("assistant", "Hi, I am Ada."), ("user", "Who are you?"), ("assistant", "Ada, as I said."),
        ("assistant", "Are you there?"), ("user", "Yes"),
    ]  # fmt: skip
    assert chat.title == "Who are you?"


def test_its_versions_come_along() -> None:
    versions = [{"content": "one"}, {"content": "Ada, as I said."}, 5, {"content": None}, {"content": "three"}]
    about = {"versions": versions, "current_version_index": 1, "timestamp": "2025-06-12T10:00:00+00:00"}  # fmt: skip
    chat = read_chat_file(webui(metadata={"assistant_1": about, "user_1": "nonsense"}))
    assert ("assistant", "Ada, as I said.") in shown(chat)
    found = [message for message in chat.messages if message.parent == 1]
    assert [(message.text, message.is_shown) for message in found] == [
        ("one", False), ("Ada, as I said.", True), ("three", False),
    ]  # fmt: skip
    assert chat.created_s == 1749722400.0
    for number in (7, -1, "x", None, True):
        about["current_version_index"] = number
        assert shown(read_chat_file(webui(metadata={"assistant_1": about})))[2][1] == "Ada, as I said."


def sillytavern(*lines: Any) -> bytes:
    header = {"user_name": "Tom", "character_name": "Ada", "create_date": "2023-06-19 @16h 20m", "chat_metadata": {}}
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in [header, *lines]).encode() + b"\n"


def test_sillytaverns_lines_are_read_with_their_swipes() -> None:
    chat = read_chat_file(
        sillytavern(
            {"name": "Ada", "is_user": False, "mes": "Hello\u2028there", "send_date": "June 19, 2023 4:20pm"},
            {"name": "Tom", "is_user": True, "mes": "Who are you?", "send_date": 1687188060000},
            {"name": "Ada", "mes": "edited", "swipes": ["one", "two", "three"], "swipe_id": 1},
            {"name": "Ada", "mes": "not a swipe", "swipes": ["other"], "swipe_id": 9},
        )
    )
    assert shown(chat) == [
        ("assistant", "Hello\u2028there"), ("user", "Who are you?"), ("assistant", "edited"),
        ("assistant", "not a swipe"),
    ]  # fmt: skip
    assert [message.text for message in chat.messages[2:5]] == ["one", "edited", "three"]
    assert (chat.character, chat.mode, chat.title) == ("Ada", "chat", "Who are you?")
    assert chat.messages[1].created_s == 1687188060.0 and chat.messages[0].created_s > 1.68e9


def test_lines_without_a_header_are_read_too() -> None:
    line = {"name": "Ada", "is_user": False, "mes": "Hello"}
    chat = read_chat_file(json.dumps(line).encode())
    assert shown(chat) == [("assistant", "Hello")] and chat.character == "Ada"


# All else -----------------------------------------------------------------------------------------------------------


def own(**changes: Any) -> bytes:
    whole = json.loads(to_json(CopiedChat((CopiedMessage(None, "user", "hi", 1.0),))))
    for name, value in changes.items():
        target = (
            whole["chat"] if name in whole["chat"] else whole["messages"][0] if name in whole["messages"][0] else whole
        )
        target[name] = value
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (b"", "chat_file_unknown"),
        (b"\xff\xfe\x00", "chat_file_unknown"),
        (b"hello", "chat_file_unknown"),
        (b'{"spec": "chara_card_v2", "data": {"name": "Rosa", "first_mes": "Hi"}}', "chat_file_card"),
        (b'{"name": "Rosa", "first_mes": "Hi", "mes_example": ""}', "chat_file_card"),
        (b"5", "chat_file_unknown"),
        (b"[]", "chat_file_unknown"),
        (b"{}", "chat_file_unknown"),
        (b"null", "chat_file_unknown"),
        (b"[" * 100_000, "chat_file_unknown"),
        (b'{"a":' * 100_000, "chat_file_unknown"),
        (b"1" * 10_000, "chat_file_unknown"),
        (b"{}\n{}\n", "chat_file_unknown"),
        (b'{"chat_metadata": {}}\n[]\n', "chat_file_unknown"),
        (b'{"internal": []}', "chat_file_empty"),
        (b'{"internal": [5]}', "chat_file_damaged"),
        (b'{"internal": [["a", 5]]}', "chat_file_damaged"),
        (b'{"internal": [["a"]]}', "chat_file_damaged"),
        (b'{"chat_metadata": {}}', "chat_file_empty"),
        (sillytavern({"mes": 5}), "chat_file_damaged"),
        (sillytavern({}), "chat_file_damaged"),
        (own(version=5), "chat_file_newer"),
        (own(version="1"), "chat_file_damaged"),
        (own(thought="hm"), "chat_file_damaged"),
        (own(thought={"text": 5, "opening": "", "closing": ""}), "chat_file_damaged"),
        (own(messages=[]), "chat_file_empty"),
        (own(messages=[5]), "chat_file_damaged"),
        (own(messages={}), "chat_file_damaged"),
        (own(chat=[]), "chat_file_damaged"),
        (own(parent=0), "chat_file_damaged"),
        (own(parent=-1), "chat_file_damaged"),
        (own(parent=True), "chat_file_damaged"),
        (own(parent="0"), "chat_file_damaged"),
        (own(role="system"), "chat_file_damaged"),
        (own(role=[[]]), "chat_file_damaged"),
        (own(state=None), "chat_file_damaged"),
        (own(mode="x" * 10_000), "chat_file_damaged"),
        (own(text=None), "chat_file_damaged"),
        (own(stats=[]), "chat_file_damaged"),
        (own(is_shown=1), "chat_file_damaged"),
        (own(title=None), "chat_file_damaged"),
        (own(members="Olaf"), "chat_file_damaged"),
        (own(members=[5]), "chat_file_damaged"),
        (own(lorebooks={}), "chat_file_damaged"),
        (own(lorebooks=[None]), "chat_file_damaged"),
        (own(settings="x"), "chat_file_damaged"),
        (own(settings={"preset": []}), "chat_file_damaged"),
        (own(settings={"sampling": 5}), "chat_file_damaged"),
        (own(settings={"sampling": {"temperature": 99}}), "chat_file_damaged"),
        (own(settings={"sampling": {"top": 1}}), "chat_file_damaged"),
        (b" " * (MAX_FILE_BYTES + 1), "chat_file_large"),
        (json.dumps({"internal": [["a", "b"]] * (MAX_MESSAGES // 2 + 1)}).encode(), "chat_file_long"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_file_that_is_no_chat_gets_a_sentence(data: bytes, key: str) -> None:
    assert refused(data) == key


@pytest.mark.parametrize(
    "stats",
    [
        {"tokens": "many", "tokens_per_s": [], "model": 5, "seed": 1.5, "foreign": 1, "first_token_s": True},
        {"error": 5},
        {"error": {"key": "no such error", "params": {}}},
        {"error": {"key": "worker_died", "params": {"other": 1}}},
        {"error": {"key": "worker_died", "params": {"how": []}}},
        {"error": {"key": "worker_died", "params": {"how": "x", "key": "y"}}},
        {"error": {"key": ["worker_died"], "params": {"how": "x"}}},
        {"error": {"key": "worker_died", "params": 5}},
    ],
)
def test_figures_that_no_page_could_show_are_left_behind(stats: dict[str, Any]) -> None:
    assert read_chat_file(own(stats=stats)).messages[0].stats == {}


@pytest.mark.parametrize(
    ("value", "time_s"),
    [(5, 5.0), (1.5, 1.5), (1687188060000, 1687188060.0), (10**400, 0.0), (-1, 0.0), (float("nan"), 0.0), (True, 0.0),
     (float("inf"), 0.0), (None, 0.0), ("nonsense", 0.0), ("0001-01-01", 0.0), ("9999-12-31", 0.0), ([], 0.0)],
)  # fmt: skip
def test_times_are_seconds_or_nothing(value: object, time_s: float) -> None:
    assert seconds(value) == time_s


def test_exactly_one_version_is_shown() -> None:
    def message(parent: int | None, is_shown: bool) -> CopiedMessage:
        return CopiedMessage(parent, "user", "", 0.0, is_shown=is_shown)

    given_messages = [message(None, False), message(None, False), message(0, True), message(0, True), message(1, True)]
    assert [one.is_shown for one in show_one(given_messages)] == [False, True, True, False, True]


def test_two_thousand_harmed_files_give_chats_or_sentences() -> None:
    chance = random.Random(7)
    versions = {"versions": [{"content": "x"}], "current_version_index": 0}
    line = {"mes": "a", "swipes": ["a", "b"], "swipe_id": 0, "send_date": "June 19, 2023 4:20pm"}
    sources = [webui(metadata={"assistant_1": versions}), own(), sillytavern(line)]
    outcomes = set()
    for _ in range(2000):
        try:
            outcomes.add(bool(read_chat_file(harmed(chance, sources)).messages))
        except ChatFileError as error:
            outcomes.add(error.key)
    assert {True, "chat_file_unknown", "chat_file_damaged"} <= outcomes
