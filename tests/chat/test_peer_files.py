"""Chats as the world writes them: what has a place here is kept, and what has none is told."""

from __future__ import annotations

import io
import json
import random
import zipfile
from datetime import UTC, datetime
from typing import Any

import pytest

from core.chat.archives import chat_files_in
from core.chat.dates import seconds
from core.chat.exporting import to_sillytavern
from core.chat.foreign import MAX_SPEAKERS
from core.chat.importing import MAX_CHATS, MAX_FILE_BYTES, ChatFile, read_chats
from core.chat.parsing import ChatFileError
from core.chat.records import CopiedChat, CopiedMessage
from core.documents.document import Document
from tests.support.damaged import harmed


def read(value: Any) -> ChatFile:
    return read_chats(json.dumps(value, ensure_ascii=False).encode())


def whole(message: CopiedMessage) -> str:
    """With the thought before it, as the programs write it."""
    thought = message.thought
    return message.text if thought is None else thought.opening + thought.text + thought.closing + message.text


def shown(chat: CopiedChat) -> list[tuple[str, str]]:
    path, last = [], None
    while found := [(n, m) for n, m in enumerate(chat.messages) if m.parent == last and m.is_shown]:
        ((last, message),) = found
        path.append((message.role, whole(message)))
    return path


def left(file: ChatFile) -> dict[str, int | str | float]:
    assert all(notice.sentence(language) for notice in file.notices for language in ("en", "zh"))
    return {notice.key.removeprefix("chat_import_"): notice.params["count"] for notice in file.notices}


def test_a_thought_with_endless_versions_below_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.chat.foreign.MAX_THOUGHT_CHARS", 5000)
    thought = {"content_type": "thoughts", "thoughts": [{"content": "x" * 1000}]}
    nodes = {"t": {"parent": None, "message": {"author": {"role": "assistant"}, "content": thought}}}
    for number in range(9):
        answer = {"author": {"role": "assistant"}, "content": {"content_type": "text", "parts": [f"a{number}"]}}
        nodes[str(number)] = {"parent": "t", "message": answer}
    with pytest.raises(ChatFileError) as caught:
        read({"mapping": nodes, "current_node": "0"})
    assert caught.value.key == "chat_file_damaged"
    few = {"t": nodes["t"], "0": nodes["0"]}
    assert whole(read({"mapping": few, "current_node": "0"}).chats[0].messages[0]).count("x") == 1000


# Dates --------------------------------------------------------------------------------------------------------------

AT = datetime(2025, 11, 29, 20, 5).timestamp()


@pytest.mark.parametrize(
    ("text", "time_s"),
    [
        ("Nov 29, 2025 20:05", AT),
        ("November 29, 2025 8:05pm", AT),
        ("November 29, 2025 08:05 PM", AT),
        ("2025-11-29@20h05m00s", AT),
        ("2025-11-29@20h05m00s123ms", AT),
        ("2025-11-29 @20h 05m 00s 123ms", AT),
        ("2025-11-29 @20h 5m", AT),
        ("2025-11-29 20:05:00", AT),
        ("11/29/2025, 8:05:00 PM", AT),
        ("2025/11/29 20:05:00", AT),
        ("29.11.2025, 20:05:00", AT),
        ("2025-11-29T20:05:00Z", datetime(2025, 11, 29, 20, 5, tzinfo=UTC).timestamp()),
        ("2025-11-29T20:05:00.5+01:00", datetime(2025, 11, 29, 19, 5, 0, 500000, UTC).timestamp()),
        ("Sat Nov 29 2025 20:05:00 GMT+0100 (Central European Standard Time)",
         datetime(2025, 11, 29, 19, 5, tzinfo=UTC).timestamp()),
        ("Sat, 29 Nov 2025 20:05:00 GMT", datetime(2025, 11, 29, 20, 5, tzinfo=UTC).timestamp()),
        ("1764446700", 1764446700.0),
        ("1764446700000", 1764446700.0),
        (1764446700123456, 1764446700.123456),
        (1764446700123456789, 1764446700.1234567),
        ("Smarch 13, 2025 1:00am", 0.0),
        ("2025-13-45@99h99m99s", 0.0),
        ("9" * 5000, 0.0),
        ("x" * 10**6, 0.0),
    ],
)  # fmt: skip
def test_every_programs_dates_are_read(text: object, time_s: float) -> None:
    assert seconds(text) == pytest.approx(time_s)


# text-generation-webui ----------------------------------------------------------------------------------------------


def test_the_texts_of_attachments_stay_with_their_message() -> None:
    attachments = [
        {"name": "a list.txt", "type": "text/plain", "content": "eggs\nmilk"},
        {"name": "cat.png", "type": "image", "image_data": "data:image/png;base64,AAAA", "image_id": 1},
        {"name": "voice.ogg", "type": "audio/ogg"},
        5,
    ]
    file = read({
        "internal": [["<|BEGIN-VISIBLE-CHAT|>", "Hello"], ["What is missing?", "Bread."]],
        "visible": [],
        "metadata": {"user_1": {"timestamp": "Dec 01, 2025 09:00", "attachments": attachments},
                     "assistant_1": {"tool_sequence": [{}, {}], "model_name": "Qwen"}},
    })  # fmt: skip
    (chat,) = file.chats
    assert shown(chat)[1] == ("user", "What is missing?")
    assert chat.messages[1].files == (
        Document("a list.txt", 9, "eggs\nmilk"), Document("voice.ogg", 0, "", is_whole=False),
    )  # fmt: skip
    assert left(file) == {"pictures": 1, "files": 1, "tools": 2}
    assert chat.messages[1].created_s == datetime(2025, 12, 1, 9).timestamp()
    assert chat.messages[2].stats == {"model": "Qwen"}


def test_a_history_of_its_first_form_is_read() -> None:
    (chat,) = read({"data": [["Hi", "Hello"]], "data_visible": [["Hi", "Hello"]]}).chats
    assert shown(chat) == [("user", "Hi"), ("assistant", "Hello")]


# SillyTavern --------------------------------------------------------------------------------------------------------


def tavern(*lines: Any, header: dict[str, Any] | None = None, end: bytes = b"") -> ChatFile:
    head = {"user_name": "Tom", "character_name": "Mira", "create_date": "2024-11-29@08h05m02s", "chat_metadata": {}}
    return read_chats("\n".join(json.dumps(line) for line in [header or head, *lines]).encode() + b"\n" + end)


def says(name: str, text: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "is_user": name in ("Tom", "Anna"), "is_system": False, "mes": text, "extra": {}, **more}


def test_lines_hidden_from_the_model_stay_hidden_and_those_of_the_program_are_left_out() -> None:
    welcome = says("SillyTavern System", "Welcome", is_system=True, extra={"type": "welcome"})
    tool = says("Mira", "tool", is_system=True, extra={"tool_invocations": [{}]})
    file = tavern(says("Mira", "Hello."), says("Tom", "psst", is_system=True), welcome, tool, says("Tom", "Hi"))
    (chat,) = file.chats
    hidden = [(one.text, one.is_hidden) for one in chat.messages]
    assert hidden == [("Hello.", False), ("psst", True), ("Hi", False)]
    assert left(file)["hidden"] == 2 and chat.title == "Hi"
    assert chat.created_s == datetime(2024, 11, 29, 8, 5, 2).timestamp()
    again = read_chats(to_sillytavern(chat, "Tom", "Mira", {}).encode()).chats[0]
    assert [one.is_hidden for one in again.messages] == [False, True, False]


@pytest.mark.parametrize("end", [b'{"name": "Tom", "mes":', b'{"name": "Tom", "mes": "H\xc3', b"\x00\x00\x00"])
def test_a_file_that_was_cut_off_keeps_its_whole_lines(end: bytes) -> None:
    file = tavern(says("Mira", "Hello."), says("Tom", "Hi"), end=end)
    assert shown(file.chats[0]) == [("assistant", "Hello."), ("user", "Hi")] and left(file) == {"cut_off": 1}


def test_thoughts_and_pictures_of_a_line() -> None:
    swipes = {
        "swipes": ["one", "two"], "swipe_id": 1,
        "swipe_info": [{"extra": {"reasoning": "first"}}, {"extra": {"reasoning": "second"}}],
    }  # fmt: skip
    extra = {"reasoning": "second", "image": "/x.png", "file": {"name": "a.txt", "url": "/files/1"}, "model": "m"}
    file = tavern(says("Tom", "Hi"), says("Mira", "two", **swipes, extra=extra))
    assert [whole(one) for one in file.chats[0].messages[1:]] == [
        "<think>\nfirst\n</think>\n\none", "<think>\nsecond\n</think>\n\ntwo",
    ]  # fmt: skip
    assert [one.files for one in file.chats[0].messages[1:]] == [(Document("a.txt", 0, "", is_whole=False),)] * 2
    assert left(file) == {"pictures": 1, "files": 1} and file.chats[0].messages[2].stats == {"model": "m"}


def test_a_group_keeps_who_said_what() -> None:
    header = {"chat_metadata": {}, "user_name": "unused", "character_name": "unused"}
    lines = [says("Mira", "Hello."), says("Olaf", "Ho."), says("Tom", "Hi"), says("Mira", "Yes?")]
    for head in (header, None):
        (chat,) = tavern(*lines, header=head).chats
        assert (chat.character, chat.members, chat.mode) == ("Mira", ("Olaf",), "chat")
        assert [one.speaker for one in chat.messages] == ["Mira", "Olaf", "", "Mira"]


def test_one_character_and_one_person_need_no_names() -> None:
    (chat,) = tavern(says("Mira", "Hello."), says("Tom", "Hi")).chats
    assert (chat.character, chat.members) == ("Mira", ()) and {one.speaker for one in chat.messages} == {""}


def test_two_people_and_a_narrator_keep_their_names() -> None:
    (chat,) = tavern(says("Mira", "Hello."), says("Tom", "Hi"), says("Anna", "Hey"),
                     says("Fate", "It rains.", extra={"type": "narrator"})).chats  # fmt: skip
    assert [(one.role, one.speaker) for one in chat.messages] == [
        ("assistant", ""), ("user", "Tom"), ("user", "Anna"), ("user", "Fate"),
    ]  # fmt: skip
    assert chat.members == ()


# ChatGPT, Open WebUI, Claude ------------------------------------------------------------------------------------------


def node(parent: str | None, role: str = "", parts: Any = None, **more: Any) -> dict[str, Any]:
    if not role:
        return {"message": None, "parent": parent, "children": []}
    content = more.pop("content", None) or {"content_type": "text", "parts": [parts]}
    message = {"author": {"role": role}, "create_time": 1700000000.5, "content": content, "recipient": "all",
               "weight": 1.0, "metadata": {}}  # fmt: skip
    return {"message": message | more, "parent": parent, "children": []}


CHATGPT = {
    "title": "Moons  of Mars",
    "create_time": 1700000000.0,
    "current_node": "f",
    "mapping": {
        "root": node(None),
        "s": node("root", "system", "", metadata={"is_visually_hidden_from_conversation": True}),
        "c": node("s", "user", content={"content_type": "user_editable_context", "user_profile": "boilerplate"},
                  metadata={"is_visually_hidden_from_conversation": True,
                            "user_context_message_data": {"about_user_message": "I am ten."}}),
        "q": node("c", "user", content={"content_type": "multimodal_text", "parts": [
            {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"},
            {"content_type": "audio_transcription", "text": "How many moons?"}]}),
        "a": node("q", "assistant", "Two, I think.", metadata={"model_slug": "gpt-4"}),
        "t": node("q", "assistant", content={"content_type": "thoughts", "thoughts": [
            {"summary": "Mars", "content": "Phobos and Deimos."}]}),
        "r": node("t", "assistant", content={"content_type": "reasoning_recap", "content": "Thought for 2 s"}),
        "call": node("r", "assistant", content={"content_type": "code", "text": "search('moons')"}, recipient="web"),
        "tool": node("call", "tool", "results"),
        "f": node("tool", "assistant", "Two.\ue200cite\ue202turn0search1\ue201", metadata={"model_slug": "o3"}),
    },
}  # fmt: skip


def test_chatgpts_export_is_a_tree_of_versions() -> None:
    file = read([CHATGPT, {"title": "nothing", "mapping": {}, "current_node": None}])
    (chat,) = file.chats
    assert shown(chat) == [
        ("user", "How many moons?"), ("assistant", "<think>\nMars\nPhobos and Deimos.\n</think>\n\nTwo."),
    ]  # fmt: skip
    assert [one.text for one in chat.messages if not one.is_shown] == ["Two, I think."]
    assert (chat.title, chat.title_is_own, chat.settings) == ("Moons of Mars", True, {"system": "I am ten."})
    assert chat.messages[1].created_s == 1700000000.5
    assert {one.stats["model"] for one in chat.messages if one.stats} == {"gpt-4", "o3"}
    assert left(file) == {"pictures": 1, "tools": 2, "empty": 1}


def test_chatgpts_files_come_by_their_names_even_without_a_word() -> None:
    attachments = [{"id": "x", "name": "report.pdf", "size": 12, "mime_type": "application/pdf"},
                   {"id": "y", "name": "cat.png", "size": 9, "mime_type": "image/png"}]  # fmt: skip
    mapping = {"q": node(None, "user", "", metadata={"attachments": attachments})}
    file = read({"mapping": mapping, "current_node": "q"})
    assert file.chats[0].messages[0].files == (Document("report.pdf", 12, "", is_whole=False),)
    assert left(file) == {"files": 1}


def test_sillytaverns_files_keep_the_text_that_lies_in_the_chat() -> None:
    files = [{"name": "a.txt", "size": 3, "text": "abc"}, {"name": "b.txt", "size": 5, "url": "/user/files/b"}]
    file = tavern(says("Tom", "Read.") | {"is_user": True, "extra": {"files": files}})
    assert file.chats[0].messages[0].files == (Document("a.txt", 3, "abc"), Document("b.txt", 5, "", is_whole=False))
    assert left(file) == {"files": 1}


def test_a_tree_in_a_circle_or_as_deep_as_it_is_long_is_bounded() -> None:
    circle = {"a": node("b", "user", "x"), "b": node("a", "user", "y"), "c": node(None, "user", "z")}
    (chat,) = read({"mapping": circle, "current_node": "a"}).chats
    assert shown(chat) == [("user", "z")]
    deep = {str(place): node(str(place - 1) if place else None, "user", f"{place}") for place in range(5000)}
    (chat,) = read({"mapping": deep, "current_node": "4999"}).chats
    assert len(shown(chat)) == 5000


def open_webui() -> dict[str, Any]:
    details = '<details type="reasoning" done="true" duration="3">\n<summary>Thought for 3 seconds</summary>\n&gt; hm\n'
    messages = {
        "1": {"id": "1", "parentId": None, "role": "user", "content": "Who?", "timestamp": 1700000000, "files": [
            {"type": "image", "url": "data:"}, {"type": "file", "name": "a.md", "file": {"data": {"content": "# A"}}}]},
        "2": {"id": "2", "parentId": "1", "role": "assistant", "content": "Me.", "model": "llama"},
        "3": {"id": "3", "parentId": "1", "role": "assistant", "content": f"{details}</details>\n\nYou.",
              "model": "qwen"},
    }  # fmt: skip
    chat = {"title": "Who", "models": ["qwen"], "params": {"system": "Be brief."}, "messages": [],
            "history": {"messages": messages, "currentId": "3"}}  # fmt: skip
    return {"id": "x", "title": "Who is it", "chat": chat, "created_at": 1700000001, "pinned": False}


def test_open_webuis_chats_come_with_both_answers() -> None:
    file = read([open_webui()])
    (chat,) = file.chats
    assert shown(chat) == [("user", "Who?"), ("assistant", "<think>\n> hm\n</think>\n\nYou.")]
    assert [(one.text, one.stats) for one in chat.messages if not one.is_shown] == [("Me.", {"model": "llama"})]
    assert (chat.title, chat.settings, chat.created_s) == ("Who is it", {"system": "Be brief."}, 1700000001)
    assert chat.messages[0].files == (Document("a.md", 3, "# A"),)
    assert left(file) == {"pictures": 1} and read(open_webui()["chat"]).chats[0].messages == chat.messages


def test_claudes_export_shares_its_name_with_chatgpts() -> None:
    messages = [
        {"sender": "human", "text": "Read this.", "created_at": "2025-01-02T03:04:05.6Z", "files": [{"file_name": "x"}],
         "attachments": [{"file_name": "n.txt", "extracted_content": "12"}], "content": []},
        {"sender": "assistant", "text": "Twelve.", "content": [
            {"type": "thinking", "thinking": "A number."}, {"type": "tool_use"}, {"type": "text", "text": "Twelve."}]},
    ]  # fmt: skip
    file = read([{"uuid": "u", "name": "Numbers", "chat_messages": messages}])
    assert shown(file.chats[0]) == [
        ("user", "Read this."), ("assistant", "<think>\nA number.\n</think>\n\nTwelve."),
    ]  # fmt: skip
    assert file.chats[0].messages[0].files == (Document("n.txt", 2, "12"), Document("x", 0, "", is_whole=False))
    assert file.chats[0].title == "Numbers" and left(file) == {"files": 1, "tools": 1}


# Lists of messages --------------------------------------------------------------------------------------------------

OPENAI = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "data:"}}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
    {"role": "tool", "content": "42", "tool_call_id": "1"},
    {"role": "assistant", "content": "Hello", "reasoning_content": "A greeting."},
    {"role": "system", "content": "It rains."},
]
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
]


@pytest.mark.parametrize("whole", [OPENAI, {"messages": OPENAI}, {"model": "m", "messages": OPENAI, "stream": True}])
def test_openais_messages_are_a_chat(whole: Any) -> None:
    file = read(whole)
    (chat,) = file.chats
    assert shown(chat) == [
        ("user", "Hi"), ("assistant", "<think>\nA greeting.\n</think>\n\nHello"), ("user", "It rains."),
    ]  # fmt: skip
    assert chat.settings == {"system": "Be brief."} and chat.mode == "instruct"
    assert left(file) == {"pictures": 1, "tools": 2}


def test_sharegpts_lists_hold_many_chats() -> None:
    own = {"id": "a", "conversations": SHAREGPT}
    other = {"system": "Be kind.", "conversations": [{"role": "user", "content": "Hey"}]}
    lines = "\n".join(json.dumps(one) for one in [own, other, {"conversations": []}, {"conversations": [5]}])
    for file in (read([own, other, {"conversations": []}, {"conversations": [5]}]), read_chats(lines.encode())):
        assert [shown(chat) for chat in file.chats] == [[("user", "Hi"), ("assistant", "Hello")], [("user", "Hey")]]
        assert [chat.settings for chat in file.chats] == [{"system": "Be brief."}, {"system": "Be kind."}]
        assert left(file) == {"empty": 1, "unread": 1}
    assert shown(read(own).chats[0]) == shown(read(SHAREGPT).chats[0]) == [("user", "Hi"), ("assistant", "Hello")]


def test_a_message_a_line_is_one_chat() -> None:
    lines = "\n".join(json.dumps(one) for one in OPENAI)
    assert len(read_chats(lines.encode()).chats) == 1


@pytest.mark.parametrize(
    ("whole", "key"),
    [
        ([{"role": "wizard", "content": "x"}], "chat_file_damaged"),
        ([{"role": "user", "content": "x"}, 5], "chat_file_damaged"),
        ([{"role": "user", "content": {"a": 1}}], "chat_file_empty"),
        ([[], {}, 5], "chat_file_unknown"),
        ({"mapping": {"a": 5}}, "chat_file_empty"),
        ({"mapping": []}, "chat_file_unknown"),
        ({"chat": {"history": {"messages": {"a": {"role": [], "content": {}}}}}}, "chat_file_empty"),
        ({"chat_messages": ["x", {"content": 5, "attachments": 5}]}, "chat_file_empty"),
        ([{}] * (MAX_CHATS + 1), "chat_file_many"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_chat_of_these_gets_a_sentence(whole: Any, key: str) -> None:
    with pytest.raises(ChatFileError) as caught:
        read(whole)
    assert caught.value.key == key and caught.value.sentence("zh")


def test_text_that_is_no_json_is_given_up_soon() -> None:
    with pytest.raises(ChatFileError) as caught:
        read_chats(b"a\n" * 10**6)
    assert caught.value.key == "chat_file_unknown"
    many = {"role": "assistant", "content": '<details type="reasoning">' * 10**5}
    history = {"messages": {"a": many}, "currentId": "a"}
    assert len(read({"history": history}).chats[0].messages) == 1


def test_a_crowd_keeps_its_names_before_its_words() -> None:
    lines = [says(f"N{place}", "hi") for place in range(MAX_SPEAKERS + 5)]
    (chat,) = tavern(*lines).chats
    assert len({one.speaker for one in chat.messages}) == MAX_SPEAKERS + 1
    assert (chat.messages[-1].speaker, chat.messages[-1].text) == ("", f"N{MAX_SPEAKERS + 4}: hi")
    assert len(chat.members) == 9


# A ZIP --------------------------------------------------------------------------------------------------------------


def zipped(**files: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return held.getvalue()


def test_an_export_may_stay_in_its_zip() -> None:
    whole = json.dumps([CHATGPT]).encode()
    data = zipped(
        **{"chat.html": b"x", "conversations.json": whole, "a/conversations-001.json": b"[]", "user.json": b""}
    )
    found = list(chat_files_in("export.zip", data))
    assert [name for name, _ in found] == ["export.zip: conversations.json", "export.zip: a/conversations-001.json"]
    assert read_chats(found[0][1]).chats[0].title == "Moons of Mars"
    assert list(chat_files_in("a.json", b"{}")) == [("a.json", b"{}")]


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (zipped(**{"other.json": b"[]"}), "chat_file_unknown"),
        (b"PK\x03\x04 and nothing more", "chat_file_unknown"),
        (zipped(**{"conversations.json": b"[1, 2]"})[:-30], "chat_file_unknown"),
        (zipped(**{"conversations.json": b" " * (MAX_FILE_BYTES + 1)}), "chat_file_large"),
    ],
    ids=["no chats", "no zip", "cut off", "bomb"],
)
def test_a_zip_without_chats_gets_a_sentence(data: bytes, key: str) -> None:
    with pytest.raises(ChatFileError) as caught:
        list(chat_files_in("x.zip", data))
    assert caught.value.key == key
    if key == "chat_file_large":
        assert caught.value.params["mib"] > caught.value.params["limit"]


def test_a_zip_with_a_wrong_byte_gets_a_sentence() -> None:
    data = bytearray(zipped(**{"conversations.json": json.dumps([CHATGPT]).encode()}))
    for place in range(30, len(data), 7):
        flipped = bytes(data[:place]) + bytes([data[place] ^ 255]) + bytes(data[place + 1 :])
        try:
            for _, content in chat_files_in("x.zip", flipped):
                read_chats(content)
        except ChatFileError as error:
            assert error.sentence("zh")


def test_a_thousand_harmed_files_give_chats_or_sentences() -> None:
    chance = random.Random(11)
    claude = {"name": "x", "chat_messages": [{"sender": "human", "text": "x", "content": [], "attachments": []}]}
    sources = [json.dumps(one).encode() for one in ([CHATGPT], [open_webui()], claude, OPENAI, {"messages": SHAREGPT})]
    outcomes = set()
    for _ in range(1000):
        try:
            outcomes.add(bool(read_chats(harmed(chance, sources)).chats))
        except ChatFileError as error:
            outcomes.add(error.key)
    assert {True, "chat_file_unknown"} <= outcomes
