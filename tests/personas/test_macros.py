"""SillyTavern's macros: each is expanded or taken out, none reaches the model as it is written."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random

import pytest

from core.personas.character import Character
from core.personas.lore_text import LoreMessage
from core.personas.macro_names import is_known, unknown_macros
from core.personas.macros import Macros
from core.personas.prompt import MacroContext, make_macros
from core.personas.user import UserPersona
from tests.support.lorebooks import NOON, count, macros

ROSA = Character(
    "Rosa Bee",
    nickname="Rosa",
    description="{{char}} keeps bees.",
    personality="calm",
    scenario="A garden.",
    example_dialogue="{{user}}: Hi",
    system_prompt="Be brief.",
    post_history_instructions="Stay.",
    creator_notes="notes",
    version="1.2",
    greeting="Hello, {{user}}.",
    extensions={"depth_prompt": {"prompt": "{{char}} limps."}},
)
SAID = [LoreMessage("assistant", "Hello."), LoreMessage("user", "A bee?"), LoreMessage("assistant", "Yes.")]


def of_rosa(*said: LoreMessage) -> Macros:
    context = MacroContext(UserPersona("Sam", "{{user}} is a sailor."), count, Random(1), NOON, "Mine.", seed="7",
                           model="tiny", context_tokens=4096)  # fmt: skip
    return make_macros(ROSA, context, said)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("{{persona}}|{{description}}|{{personality}}|{{Scenario}}",
         "Sam is a sailor.|Rosa keeps bees.|calm|A garden."),
        ("{{mesExamples}}|{{charPrompt}}|{{charJailbreak}}|{{charDepthPrompt}}", "Sam: Hi|Be brief.|Stay.|Rosa limps."),
        ("{{char_version}}|{{creatorNotes}}|{{charFirstMessage}}|{{systemPrompt}}", "1.2|notes|Hello, Sam.|Mine."),
        ("{{group}}|{{charIfNotGroup}}|<GROUP>|<CHARIFNOTGROUP>|{{notChar}}", "Rosa|Rosa|Rosa|Rosa|Sam"),
        ("{{model}}|{{maxPrompt}}", "tiny|4096"),
        ("{{lastMessage}}|{{lastUserMessage}}|{{lastCharMessage}}|{{input}}|{{lastMessageId}}",
         "Yes.|A bee?|Yes.|A bee?|2"),
        ("{{isotime}} {{isodate}} {{idle_duration}}", "12:30 2026-03-04 just now"),
        ("a{{newline}}b{{newline::2}}c{{space::2}}d{{noop}}", "a\nb\n\nc  de"[:-1]),
        ("a\n\n{{trim}}\n\nb{{trim}}c", "abc"),
        ("a{{newline}}{{trim}}{{newline}}{{char}}", "aRosa"),
        ("{{datetimeformat DD.MM.YYYY HH:mm [o'clock] D dddd}}", "04.03.2026 12:30 o'clock 4 Wednesday"),
        ("{{pipe}}{{summary}}{{instructUserPrefix}}{{firstIncludedMessageId}}{{exampleSeparator}}{{lastSwipeId}}", ""),
        ('{{banned "word"}}{{bias "x"}}{{timeDiff::a::b}}{{roll:none}}{{roll}}{{random}}{{pick}}', ""),
        ("{{random: one , one}}{{pick::two::two}}{{roll 1d1}}{{roll:3d1+2}}", "onetwo15"),
        ("{{setvar::mood::glad}}{{getvar::mood}}{{getvar::other}}", "glad"),
        ("{{setvar::n::4}}{{addvar::n::2.5}}{{incvar::n}}{{decvar::n}}{{addglobalvar::n::x}}{{getglobalvar::n}}",
         "7.56.5x"),
        ("{{description}}{{original}}{{Foo}} {{foo::1}} {{user, hello}} {{user x}}",
         "Rosa keeps bees.{{Foo}} {{foo::1}} {{user, hello}} {{user x}}"),
        ("{{outlet::none}}{{comment:x}}{{// x {{char}} }}", ""),
    ],
)  # fmt: skip
def test_known_macros_never_stay(text: str, expanded: str) -> None:
    assert of_rosa(*SAID).expand(text) == expanded


def test_before_a_chat_there_is_no_last_message() -> None:
    assert of_rosa().expand("{{lastMessage}}{{input}}{{lastUserMessage}}{{lastMessageId}}") == ""


def test_texts_that_name_each_other_end() -> None:
    character = Character("A", description="{{scenario}}{{description}}d", scenario="{{description}}s")
    made = make_macros(character, MacroContext(UserPersona(), count, Random(1), NOON))
    assert made.expand("{{scenario}}|{{description}}") == "s|d"


def test_dice_and_lists_follow_chance() -> None:
    assert {macros(seed).expand("{{roll:2d2}}") for seed in range(40)} == {"2", "3", "4"}
    assert {macros(seed).expand("{{roll:20}}") for seed in range(400)} == {str(side) for side in range(1, 21)}


def test_times_of_other_zones_are_told() -> None:
    local = datetime(2026, 3, 4, 12, 30, tzinfo=UTC)
    made = Macros("R", "S", Random(1), local)
    assert made.expand("{{time_UTC+2}} {{time_UTC-10}} {{time_UTC+99}}") == "14:30 02:30 "


def test_what_is_no_macro_is_named() -> None:
    texts = ["{{char}} {{foo}} {{// x}} {{bar::1}} {{time_UTC+3}}", "{{foo}} {{#if x}}y{{/if}} {{random:a}} {{}}"]
    assert unknown_macros(texts) == ["foo", "bar", "#if", "/if"]
    assert is_known("instructAnything") and not is_known("instruct")


def test_an_endless_name_or_blank_takes_no_longer_than_its_length() -> None:
    assert unknown_macros(["{{" + "a" * 300_000]) == []
    assert macros().expand("{{roll:1" + "\t" * 300_000 + "x}}") == ""
