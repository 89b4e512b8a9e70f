"""Several characters in one chat: whose line is whose, who speaks next, and what the history and files keep of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.chat.character_prompt import CharacterPrompt
from core.chat.database import ChatStoreError
from core.chat.exporting import to_json, to_markdown, to_sillytavern
from core.chat.group import Group, Order, next_speaker
from core.chat.model_prompt import ModelPrompt, RemoteCounter
from core.chat.modes import PromptStyle
from core.chat.prompt_context import PromptContext
from core.chat.records import CopiedChat, CopiedMessage, Message, Mode, Thought
from core.chat.store import ChatStore
from core.chat.template import ChatTemplate
from core.chat.template_messages import Turn
from core.chat.turn_rendering import Names
from core.engine.sampling_params import Sampling
from core.personas.character import Character
from core.personas.user import UserPersona
from tests.support.chat_desk import TEMPLATE, Desk
from tests.support.chat_files import read_chat_file
from tests.support.chat_templates import STRICT

KEYS = {"ada": "ada", "Ada": "ada", "olaf": "olaf", "Olaf the Brave": "olaf"}
GROUP = Group(KEYS, {"ada": "Ada", "olaf": "Olaf the Brave", "小明": "小明"}, ("ada", "olaf", "小明"), "ada", "Tom")


def said(role: str, text: str, speaker: str = "") -> Message:
    return Message(1, "user" if role == "user" else "assistant", text, 0.0, "done", {}, (1,), speaker)


TALK = [
    said("assistant", "I am Ada.", "Ada"),
    said("assistant", "Ho!", "olaf"),
    said("user", "Hi both"),
    said("assistant", "Hello.", "ada"),
]


def prompt(speaker: str, mode: Mode = "chat-instruct", source: str = TEMPLATE.source or "", voice: str = "") -> str:
    model = ModelPrompt("model", None, ChatTemplate(source, "", ""), RemoteCounter(len, is_exact=True), len)
    group = replace(GROUP, speaker=speaker)
    own = Character(group.names[speaker], context="{{char}} of {{group}}")
    character = CharacterPrompt(own, UserPersona(name="Tom"), group=", ".join(group.names.values()))
    context = PromptContext(model, 4096, mode, character, Sampling(max_new_tokens=8), group)
    turns = context.turns_of(TALK)
    return context.prepare(turns, voice="user" if voice else "assistant").fitted.prompt


def test_own_lines_are_the_assistants_and_all_others_have_a_name() -> None:
    text = prompt("olaf")
    assert "Speak only as Olaf the Brave." in text and "Olaf the Brave of Ada, Olaf the Brave, 小明" in text
    assert text.endswith(
        "<user>Ada: I am Ada.</><assistant>Ho!</><user>Tom: Hi both\n\nAda: Hello.</><assistant>"
    )  # fmt: skip
    assert prompt("ada").endswith(
        "<assistant>I am Ada.</><user>Olaf the Brave: Ho!\n\nTom: Hi both</><assistant>Hello.</><user></><assistant>"
    )


@pytest.mark.parametrize("speaker", ["ada", "olaf", "小明"])
@pytest.mark.parametrize("mode", ["instruct", "chat-instruct", "chat"])
def test_a_template_that_wants_turns_in_turn_takes_a_group(speaker: str, mode: Mode) -> None:
    text = prompt(speaker, mode, STRICT)
    assert all(text.count(line) == 1 for line in ("I am Ada.", "Ho!", "Hi both", "Hello."))


def test_a_plain_dialogue_has_every_name() -> None:
    assert prompt("小明", "chat").endswith(
        "Ada: I am Ada.\nOlaf the Brave: Ho!\nTom: Hi both\nAda: Hello.\n小明:"
    )  # fmt: skip


def test_one_whose_file_is_gone_speaks_under_their_name() -> None:
    gone = CharacterPrompt(None, UserPersona(name="Tom"), name="Olaf the Brave")
    model = ModelPrompt("model", None, TEMPLATE, RemoteCounter(len, is_exact=True), len)
    for mode in ("chat", "chat-instruct"):
        context = PromptContext(model, 4096, mode, gone, Sampling(max_new_tokens=8), replace(GROUP, speaker="olaf"))
        text = context.prepare(context.turns_of(TALK)).fitted.prompt
        assert "Assistant" not in text and ("Olaf the Brave: Ho!" in text or "Speak only as Olaf the Brave." in text)


def test_the_persons_line_is_written_under_their_name() -> None:
    assert prompt("ada", voice="user").endswith("Tom:")


def test_answers_stop_where_another_would_speak() -> None:
    model = ModelPrompt("model", None, TEMPLATE, RemoteCounter(len, is_exact=True), len)
    character = CharacterPrompt(Character("Ada"), UserPersona(name="Tom"))
    context = PromptContext(model, 4096, "instruct", character, Sampling(), GROUP)
    stops = ("\nTom:", "\nAda:", "END", "\nOlaf the Brave:", "\n小明:")
    assert context.style.stop_strings(own=("END",)) == stops
    # Who the person was before, where the names stand in the prompt.
    history = context.turns_of([*TALK, said("user", "Bye", "Tim  B.")])
    assert context.style.stop_strings(own=("END",), history=history) == (*stops, "\nTim B.:")
    alone = PromptStyle("chat", TEMPLATE, Names("Tom", "Ada"))
    assert alone.stop_strings(history=[Turn(role="user", content="Hi", name="Tim")]) == ("\nTom:", "\nAda:", "\nTim:")
    alone = replace(alone, mode="instruct")
    assert alone.stop_strings(history=[Turn(role="user", content="Hi", name="Tim")]) == ()


@pytest.mark.parametrize(
    ("line", "order", "speaker"),
    [
        ("Olaf, what do you think?", "named", "olaf"),
        ("What does the BRAVE one think?", "named", "olaf"),
        ("小明你好", "named", "小明"),
        ("Olaf or Ada?", "named", "olaf"),
        ("Ada?", "named", "ada"),
        ("An adage of the unbraved", "named", "olaf"),
        ("Olaf's the best", "named", "olaf"),
        ("", "named", "olaf"),
        ("小明你好", "turns", "olaf"),
        ("小明你好", "manual", "olaf"),
    ],
)
def test_who_speaks_next(line: str, order: Order, speaker: str) -> None:
    assert next_speaker(GROUP, TALK, order, line) == speaker


def test_turns_go_round_and_nobody_answers_their_own_name() -> None:
    assert next_speaker(GROUP, []) == "ada"
    assert next_speaker(GROUP, [said("assistant", "I, Olaf, say: Ada?", "olaf")]) == "ada"
    assert next_speaker(GROUP, [said("assistant", "I am Olaf", "olaf")]) == "小明"
    assert next_speaker(GROUP, [said("assistant", "嗯", "小明")]) == "ada"
    assert next_speaker(GROUP, [said("assistant", "I left", "Cleo")]) == "ada"
    assert next_speaker(replace(GROUP, cast=()), TALK) == ""


# In the history -----------------------------------------------------------------------------------------------------


def context(speaker: str) -> PromptContext:
    model = ModelPrompt("model", None, TEMPLATE, RemoteCounter(len, is_exact=True), len)
    group = replace(GROUP, speaker=speaker)
    character = CharacterPrompt(Character(group.names[speaker]), UserPersona(name="Tom"))
    return PromptContext(model, 4096, "chat-instruct", character, Sampling(max_new_tokens=8), group)


def test_answers_keep_their_speaker_whatever_is_done_to_them(desk: Desk) -> None:
    question_answer = desk.service.send(desk.chat, "Hi", None, context("olaf"))
    first = desk.finish(question_answer, "Olaf the Brave: Ho!")
    second = desk.finish(desk.service.reply(desk.chat, first, context("ada")), "Hello.")
    assert desk.engine.prompts[-1][0].endswith("<user>Tom: Hi\n\nOlaf the Brave: Ho!</><assistant>")
    third = desk.finish(desk.service.regenerate(desk.chat, second, context("ada")), "Good day.")
    desk.finish(desk.service.continue_answer(desk.chat, third, context("ada")), " Sir.")
    desk.store.edit(first, "Hoho!")
    messages = desk.store.read(desk.chat).messages
    said = [(one.text, one.speaker) for one in messages]
    assert said == [("Hi", "Tom"), ("Hoho!", "olaf"), ("Good day. Sir.", "ada")]
    question = messages[0].id
    desk.finish(desk.service.edit_and_resend(desk.chat, question, "小明?", context("小明")), "在")
    assert [one.speaker for one in desk.store.read(desk.chat).messages] == ["Tom", "小明"]


def test_a_question_asked_anew_is_read_under_the_name_that_it_keeps(desk: Desk) -> None:
    answer = desk.finish(desk.service.send(desk.chat, "Hi", None, context("ada")), "Hello.")
    later = context("ada")
    assert later.group is not None
    later = replace(later, group=replace(later.group, person="Kim"))
    question = desk.store.read(desk.chat).messages[0].id
    desk.store.hide(question, True)
    answer = desk.finish(desk.service.edit_and_resend(desk.chat, question, "Ada?", later), "Yes?")
    asked = desk.store.read(desk.chat).messages[0]
    assert (asked.text, asked.speaker, asked.is_hidden) == ("Ada?", "Tom", False)
    first = desk.engine.prompts[-1][0]
    assert "Tom: Ada?" in first and "Kim" not in first.partition("conversation with")[2].partition("</>")[2]
    desk.service.regenerate(desk.chat, answer, later)
    assert desk.engine.prompts[-1][0] == first


def test_lines_from_before_a_group_stay_their_speakers(desk: Desk) -> None:
    chat = desk.store.create("chat-instruct", "ada", greetings=["I am Ada."])
    desk.store.set_members(chat, ["olaf", "olaf", "ada"])
    info = desk.store.info(chat)
    assert (info.character, info.members, info.cast) == ("ada", ("olaf",), ("ada", "olaf"))
    assert [one.speaker for one in desk.store.read(chat).messages] == ["ada"]
    desk.store.set_character(chat, "小明")
    assert desk.store.info(chat).cast == ("小明", "olaf")
    desk.store.set_character(chat, "")
    assert (desk.store.info(chat).character, desk.store.info(chat).members) == ("olaf", ())
    assert [one.speaker for one in desk.store.read(chat).messages] == ["ada"]


def test_one_character_after_another_is_no_group(desk: Desk) -> None:
    chat = desk.store.create("chat-instruct", "ada", greetings=["Hello."])
    desk.store.set_character(chat, "olaf")
    assert [one.speaker for one in desk.store.read(chat).messages] == [""]


def test_members_that_another_tab_changed_are_not_written_over(desk: Desk) -> None:
    desk.store.set_members(desk.chat, ["ada"])
    assert desk.store.info(desk.chat).character == "ada"
    desk.store.set_members(desk.chat, ["olaf"], expected=[])
    with pytest.raises(ChatStoreError) as caught:
        desk.store.set_members(desk.chat, ["小明"], expected=[])
    assert caught.value.key == "chat_changed" and desk.store.info(desk.chat).members == ("olaf",)
    with pytest.raises(ChatStoreError) as caught:
        desk.store.set_members(desk.chat, [], expected=["小明"])
    assert caught.value.params == {"text": "—"}


def test_who_comes_later_greets_with_all_greetings_to_choose_from(desk: Desk) -> None:
    question = desk.store.append_user(desk.chat, "Hi", None)
    shown = desk.store.greet(desk.chat, question, ["Ho!", "Hoho!"], "olaf")
    last = desk.store.read(desk.chat).messages[-1]
    assert (last.id, last.text, last.speaker, len(last.versions)) == (shown, "Ho!", "olaf", 2)
    with pytest.raises(ChatStoreError) as caught:
        desk.store.greet(desk.chat, question, ["Late"], "ada")
    assert caught.value.key == "chat_moved_on"


def test_greetings_for_groups_come_first_there_and_nowhere_else() -> None:
    extra = {"data": {"group_only_greetings": ["All: {{char}} here.", 5, ""]}}
    ada = Character("Ada", greeting="Hello.", extra=extra)
    alone = CharacterPrompt(ada, UserPersona("Tom"))
    assert alone.greetings() == ("Hello.",)
    assert replace(alone, group="Ada, Olaf").greetings() == ("All: Ada here.", "Hello.")
    assert replace(alone, character=Character("Ada", extra={"data": {"group_only_greetings": "x"}})).greetings() == ()


# In files -----------------------------------------------------------------------------------------------------------

HM = Thought("hm", "<think>\n", "\n</think>\n\n", 8.0)
CHAT = CopiedChat(
    (
        CopiedMessage(None, "assistant", "I am Ada.", 1.7e9, speaker="ada"),
        CopiedMessage(0, "assistant", "Ho!", 1.7e9, speaker="olaf", is_shown=False),
        CopiedMessage(0, "assistant", "Hoho!", 1.7e9, speaker="olaf", thought=HM),
        CopiedMessage(2, "user", "Hi", 1.7e9),
    ),
    "both", True, 1.7e9, "chat", "ada", members=("olaf",),
)  # fmt: skip


def test_a_group_goes_out_and_comes_back_whole(tmp_path: Path) -> None:
    assert read_chat_file(to_json(CHAT).encode()) == CHAT
    assert '"version": 4' in to_json(CHAT)
    assert '"version": 1' in to_json(CopiedChat((CopiedMessage(None, "user", "Hi", 1.0),)))
    store = ChatStore(tmp_path / "chats.sqlite3")
    number = store.add(CHAT)
    assert store.copy(number) == CHAT
    text = to_markdown(store.read(number), "Tom", "Ada", {"olaf": "Olaf"})
    assert "## Olaf\n\n> 💭 hm\n\nHoho!" in text and "## ada\n\nI am Ada." in text
    branch = store.branch(store.read(number).messages[1].id)
    assert store.info(branch).members == ("olaf",)
    assert [one.speaker for one in store.read(branch).messages] == ["ada", "olaf"]
    store.close()


def test_sillytavern_gets_a_group_chat() -> None:
    text = to_sillytavern(CHAT, "Tom", "Ada", {"ada": "Ada", "olaf": "Olaf"})
    assert text.splitlines()[0].count("unused") == 2 and len(text.splitlines()) == 4
    again = read_chat_file(text.encode())
    assert (again.character, again.members) == ("Ada", ("Olaf",))
    assert [(one.role, one.text, one.speaker) for one in again.messages] == [
        ("assistant", "I am Ada.", "Ada"), ("assistant", "Ho!", "Olaf"),
        ("assistant", "Hoho!", "Olaf"), ("user", "Hi", ""),
    ]  # fmt: skip
    assert [one.thought and one.thought.text for one in again.messages] == [None, None, "hm", None]
    assert [one.is_shown for one in again.messages] == [True, False, True, True]
    assert again.messages[0].created_s == 1.7e9


def test_sillytavern_gets_a_chat_of_one_character() -> None:
    chat = CopiedChat((CopiedMessage(None, "assistant", "Hello", 1.7e9), CopiedMessage(0, "user", "Hi", 1.7e9)),
                      character="ada", mode="chat")  # fmt: skip
    again = read_chat_file(to_sillytavern(chat, "Tom", "Ada", {}).encode())
    assert (again.character, again.members) == ("Ada", ()) and {one.speaker for one in again.messages} == {""}
