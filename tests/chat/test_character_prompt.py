"""Who speaks: from a character and what was said to a prompt's parts."""

from __future__ import annotations

from core.chat.character_prompt import CharacterPrompt, insert_lore_at_depth
from core.chat.template_messages import Turn
from core.chat.turn_rendering import Names
from core.personas.character import Character
from core.personas.lorebook import Lore
from core.personas.user import UserPersona

ADA = Character(
    "Ada",
    greeting="",
    alternate_greetings=("Hello {{user}}.", "I am {{char}}."),
    context="{{char}} knows machines.",
    example_dialogue="<START>\n{{user}}: What?\n{{char}}: This.",
    post_history_instructions="Stay {{char}}.",
)
SAID = [Turn(role="user", content="one"), Turn(role="assistant", content="two"), Turn(role="user", content="three")]


def test_without_a_character_there_is_only_the_chats_own_system_text() -> None:
    character_prompt = CharacterPrompt(None, UserPersona("Kim", "a sailor"), system=" Be brief. ")
    composed = character_prompt.compose(SAID)
    assert composed.parts.system == "Be brief." and composed.parts.history == tuple(SAID)
    assert composed.message_indexes == (0, 1, 2) and character_prompt.greetings() == ()
    assert character_prompt.names == Names("Kim", "Assistant")


def test_a_character_brings_system_text_examples_and_a_last_word() -> None:
    character_prompt = CharacterPrompt(ADA, UserPersona("Kim", "{{user}} is a sailor."), system="Be brief.")
    parts = character_prompt.compose(SAID).parts
    assert parts.system == "Be brief.\n\nAda knows machines.\n\nKim is a sailor."
    assert parts.after == "Stay Ada."
    assert [[turn["content"] for turn in example] for example in parts.examples] == [["What?", "This."]]
    assert character_prompt.names == Names("Kim", "Ada")


def test_empty_greetings_are_not_offered() -> None:
    assert CharacterPrompt(ADA, UserPersona()).greetings() == ("Hello friend.", "I am Ada.")


def test_the_same_chat_gives_the_same_prompt() -> None:
    character = Character("Ada", context="{{random:a,b,c,d,e,f,g,h}} {{pick:a,b,c,d,e,f,g,h}}")
    made = {CharacterPrompt(character, UserPersona(), seed="7").compose(SAID).parts.system for _ in range(20)}
    assert len(made) == 1


def test_lore_stands_as_many_messages_before_the_end_as_it_says() -> None:
    lore = [Lore("deep", "in_chat", 2), Lore("last", "in_chat", 0, "assistant"), Lore("old", "in_chat", 99)]
    turns, places = insert_lore_at_depth(SAID, lore)
    assert [turn["content"] for turn in turns] == ["old", "one", "deep", "two", "three", "last"]
    assert places == (None, 0, None, 1, 2, None)
    assert [turn["role"] for turn in turns] == ["system", "user", "system", "assistant", "user", "assistant"]
