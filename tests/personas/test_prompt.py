"""From a character to the parts of a prompt: macros, lorebook, decorators, example dialogue."""

from __future__ import annotations

from datetime import datetime
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.personas.character import Character
from core.personas.decorators import split_decorators
from core.personas.examples import ExampleTurn, split_examples
from core.personas.lore_scan import MAX_RECURSIONS
from core.personas.lore_text import Chat, LoreMessage
from core.personas.lorebook import activate
from core.personas.macros import Macros
from core.personas.prompt import CharacterParts, MacroContext, build_parts, greetings, user_name
from core.personas.user import UserPersona
from tests.support.cards import VALUES
from tests.support.lorebooks import NOON, count, lore, macros, texts


def context(**changes: Any) -> MacroContext:
    known: dict[str, Any] = {"user": UserPersona("Sam"), "count_tokens": count, "random": Random(1), "now": NOON}
    return MacroContext(**(known | changes))


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("{{char}} and {{USER}}", "Rosa and Sam"),
        ("<BOT>, <char>, <User>, {{ Char }}", "Rosa, Rosa, Sam, Rosa"),
        ("{{original}}!", "ORIGINAL!"),
        ("{{time}} {{date}} {{weekday}}", "12:30 2026-03-04 Wednesday"),
        ("a{{// hidden {{char}} }}b{{comment: x}}c{{hidden_key:bee}}", "abc"),
        ("{{reverse:Hello}} {{Reverse:{{char}}}}", "olleH asoR"),
        ("{{unknown}} {{other:x}} {{roll:x}} {{roll:0}}!", "{{unknown}} {{other:x}}  !"),
        ("{{random:only}} {{pick:one\\,two}}", "only one,two"),
        ("{{char} {{ }} {{", "{{char} {{ }} {{"),
        ("{{roll:1}}{{roll:D1}}", "11"),
        ("{{random::a}}", "a"),
        ("a\r\nb", "a\nb"),
    ],
)
def test_macros_are_expanded_in_any_letter_case(text: str, expanded: str) -> None:
    assert macros().expand(text) == expanded


def test_a_name_brings_no_macros_of_its_own() -> None:
    assert Macros("{{user}}", "{{char}}", Random(1), NOON).expand("{{char}}{{user}}") == "{{user}}{{char}}"


def test_chance_follows_the_random_and_a_pick_the_chat() -> None:
    text = "{{random:a,b,c,d,e,f,g,h}}{{roll:d100}}"
    assert macros(3).expand(text) == macros(3).expand(text)
    assert len({macros(seed).expand(text) for seed in range(30)}) > 10
    pick = "{{pick:a,b,c,d,e,f,g,h}}"
    assert len({macros(seed).expand(pick) for seed in range(30)}) == 1
    assert len({macros(1, str(seed)).expand(pick) for seed in range(50)}) == 8
    assert {macros(seed).expand("{{roll:3}}") for seed in range(50)} == {"1", "2", "3"}


@given(st.text(alphabet="{}:,\\/<>aAchrusepickndomlt ", max_size=200))
def test_no_text_breaks_the_macros(text: str) -> None:
    macros().expand(text)
    assert macros().expand(text.replace("{", "").replace("<", "")) == text.replace("{", "").replace("<", "")


def test_braces_without_end_are_quick() -> None:
    for text in ("{{" * 100_000, "{{a" * 50_000 + "}}" * 50_000, "}}" * 100_000):
        assert macros().expand(text) == text


def test_an_entry_is_called_up_by_its_keys() -> None:
    entries = [{"keys": ["Bee", "hive"], "content": "{{char}} keeps them."}]
    assert texts(lore(entries, ["I saw beehives."])) == ["Rosa keeps them."]
    assert texts(lore(entries, ["Nothing."])) == []
    assert texts(lore([entries[0] | {"case_sensitive": True}], ["a bee"])) == []
    assert texts(lore([entries[0] | {"enabled": False}], ["a bee"])) == []
    assert texts(lore([{"keys": ["蜜蜂"], "content": "x"}], ["我看见蜜蜂了"])) == ["x"]
    assert texts(lore([{"keys": ["{{user}}"], "content": "x"}], ["Sam said"])) == ["x"]


def test_constant_entries_need_no_key_and_disabled_ones_never_come() -> None:
    entries = [{"keys": [], "content": "a", "constant": True}, {"keys": [], "content": "b"}]
    assert texts(lore([*entries, {"content": "c", "constant": True, "enabled": False}], [])) == ["a"]


def test_a_selective_entry_needs_both_kinds_of_keys() -> None:
    entry = {"keys": ["bee"], "secondary_keys": ["garden"], "content": "x", "selective": True}
    assert texts(lore([entry], ["a bee"])) == []
    assert texts(lore([entry], ["a bee in the garden"])) == ["x"]
    assert texts(lore([entry | {"selective": False}], ["a bee"])) == ["x"]


def test_only_the_last_messages_are_looked_at() -> None:
    entry = {"keys": ["bee"], "content": "x"}
    said = ["bee", "hm", "and", "so"]
    assert texts(lore([entry], said, scan_depth=3)) == []
    assert texts(lore([entry], said, scan_depth=4)) == ["x"]
    assert texts(lore([entry], said, scan_depth=0)) == []
    assert texts(lore([entry | {"content": "@@scan_depth 4\nx"}], said, scan_depth=1)) == ["x"]


def test_entries_come_in_their_order_and_the_least_important_go_when_the_budget_is_spent() -> None:
    entries = [
        {"constant": True, "content": "three words here", "insertion_order": 3, "priority": 1},
        {"constant": True, "content": "one", "insertion_order": 1, "priority": 5},
        {"constant": True, "content": "two two", "insertion_order": 2, "priority": 9},
    ]
    assert texts(lore(entries, [])) == ["one", "two two", "three words here"]
    assert texts(lore(entries, [], token_budget=5)) == ["one", "two two"]
    assert texts(lore(entries, [], token_budget=2)) == ["two two"]
    assert texts(lore(entries, [], token_budget=0)) == []


def test_entries_call_up_others_only_where_the_lorebook_says_so() -> None:
    entries = [
        {"keys": ["queen"], "content": "Q {{hidden_key:drone}}{{// wasp}}"},
        {"keys": ["bee"], "content": "A queen."},
        {"keys": ["drone"], "content": "D"},
        {"keys": ["wasp"], "content": "W"},
    ]
    assert texts(lore(entries, ["bee"], recursive_scanning=True)) == ["Q", "A queen.", "D"]
    assert texts(lore(entries, ["bee"])) == ["A queen."]


def test_patterns_match_and_wrong_or_endless_ones_do_not() -> None:
    entry = {"keys": [r"b[e3]+s?\b"], "content": "x", "use_regex": True}
    assert texts(lore([entry], ["two B33s"])) == ["x"]
    assert texts(lore([entry | {"keys": ["/BEE/"]}], ["bee"])) == []
    assert texts(lore([entry | {"keys": ["/BEE/i"]}], ["bee"])) == ["x"]
    assert texts(lore([entry | {"keys": ["(", "(a+)+$"]}], ["a" * 5000 + "b"])) == []
    assert texts(lore([entry | {"constant": True}], ["no"])) == []


def test_a_lorebook_cannot_hold_up_a_chat() -> None:
    endless = [{"keys": [f"(a+)+{number}$"], "content": "x", "use_regex": True} for number in range(500)]
    chain = [{"keys": [f"key{number}."], "content": f"key{number + 1}." + "y" * 5000} for number in range(500)]
    found = lore(endless + chain, ["a" * 5000 + " key0."], recursive_scanning=True)
    assert len(found) == MAX_RECURSIONS + 1


def test_entries_have_places() -> None:
    entries = [
        {"constant": True, "content": "before", "position": "before_char"},
        {"constant": True, "content": "after"},
        {"constant": True, "content": "@@position scenario\n@@depth 3\ninside"},
        {"constant": True, "content": "@@depth 1\n@@role user\nlate"},
        {"constant": True, "content": "@@reverse_depth 1\nearly"},
        {"constant": True, "content": "@@depth 99\nfirst"},
    ]
    found = lore(entries, ["a", "b", "c"])
    assert [(one.position, one.depth, one.role) for one in found] == [
        ("before_char", None, "system"),
        ("after_char", None, "system"),
        ("scenario", None, "system"),
        ("after_char", 1, "user"),
        ("after_char", 2, "system"),
        ("after_char", 3, "system"),
    ]


@pytest.mark.parametrize(
    ("content", "said", "is_there"),
    [
        ("@@activate_only_after 2\nx", ["bee", "1", "bee"], False),
        ("@@activate_only_after 2\nx", ["bee", "1", "bee", "2", "bee"], True),
        ("@@activate_only_every 2\nx", ["bee", "1", "bee"], False),
        ("@@activate_only_every 2\nx", ["bee", "1", "bee", "2", "bee"], True),
        ("@@additional_keys hive, honey\nx", ["bee"], False),
        ("@@additional_keys hive, honey\nx", ["bee, honey"], True),
        ("@@exclude_keys wasp\nx", ["bee and wasp"], False),
        ("@@activate\nx", ["nothing"], True),
        ("@@dont_activate\nx", ["bee"], False),
        ("@@dont_activate\n@@activate\nx", ["nothing"], True),
        ("@@is_greeting 1\nx", ["bee"], False),
        ("@@is_greeting 0\nx", ["bee"], True),
        ("@@keep_activate_after_match\nx", ["bee", "1", *["so"] * 19], True),
        ("x", ["bee", "1", *["so"] * 19], False),
        ("@@dont_activate_after_match\nx", ["bee"], True),
        ("@@dont_activate_after_match\nx", ["bee", "1", "bee"], False),
    ],
)
def test_decorators_decide_when_an_entry_comes(content: str, said: list[str], is_there: bool) -> None:
    assert texts(lore([{"keys": ["bee"], "content": content}], said)) == (["x"] if is_there else [])


def test_decorators_are_split_from_the_text_and_fall_back() -> None:
    assert split_decorators("@@depth 4\n@@other_one 3\n\nText\n@@depth 5\n") == ({"depth": "4"}, "Text\n@@depth 5")
    assert split_decorators("@@risu_only 4\n@@@agn_only 4\n@@@scan_depth 2\n@@@depth 1\nx") == (
        {"scan_depth": "2"},
        "x",
    )
    assert split_decorators("@@depth 4\n@@@scan_depth 2\n@@depth 7\nx") == ({"depth": "4"}, "x")
    assert split_decorators("@@depth much\nx") == ({}, "x")
    assert split_decorators(" plain\n") == ({}, " plain\n")


def test_the_same_lorebook_always_gives_the_same() -> None:
    entries = [{"keys": ["a"], "content": "{{random:1,2,3,4,5,6,7,8,9}}", "insertion_order": n} for n in range(9)]
    assert lore(entries, ["a"]) == lore(entries, ["a"])


@given(st.dictionaries(st.sampled_from(["entries", "scan_depth", "token_budget", "recursive_scanning"]), VALUES))
def test_a_lorebook_of_nonsense_is_an_empty_one(book: dict[str, Any]) -> None:
    activate([book], Chat([LoreMessage("user", "x")], macros()), count)


@given(
    st.dictionaries(
        st.sampled_from(["keys", "content", "enabled", "insertion_order", "priority", "constant", "secondary_keys"]),
        VALUES,
    )
)
def test_an_entry_of_nonsense_stops_nothing(entry: dict[str, Any]) -> None:
    book = {"entries": [entry, {"constant": True, "content": "x"}], "token_budget": 1000, "scan_depth": 10**400}
    assert "x" in texts(activate([book], Chat([LoreMessage("user", "x")], macros()), count).lore)


def test_example_dialogue_is_blocks_of_turns() -> None:
    dialogue = "*Sun.*\n{{user}}: Hi\nthere\n{{CHAR}}: Hello!\n<start>\nYou: a: b\nRosa： c\n<START>\n\n"
    assert split_examples(dialogue, "Sam", "Rosa") == (
        (
            ExampleTurn("assistant", "*Sun.*"),
            ExampleTurn("user", "Hi\nthere"),
            ExampleTurn("assistant", "Hello!"),
        ),
        (ExampleTurn("user", "a: b"), ExampleTurn("assistant", "c")),
    )
    assert split_examples("  ", "Sam", "Rosa") == ()
    assert split_examples("Only told.", "", "")[0] == (ExampleTurn("assistant", "Only told."),)


ROSA = Character(
    name="Rosa Maria",
    nickname="Rosa",
    greeting="Hi {{user}}, I am {{char}}.",
    alternate_greetings=("Oh, {{user}}!",),
    description="{{char}} keeps bees.",
    personality="calm",
    scenario="A garden.",
    example_dialogue="<START>\n{{user}}: Hi\n{{char}}: Hello, {{user}}!",
    system_prompt="{{ORIGINAL}} Stay {{char}}.",
    post_history_instructions="Be brief.",
    lorebook={
        "entries": [
            {"keys": ["bee"], "content": "Bees sting.", "position": "before_char", "enabled": True},
            {"keys": ["bee"], "content": "@@position after_desc\nIn June.", "enabled": True},
            {"keys": ["bee"], "content": "@@ignore_on_max_context\nHoney.", "enabled": True},
            {"keys": ["quiet"], "content": "@@disable_ui_prompt post_history_instructions\n", "enabled": True},
            {"keys": ["bee"], "content": "@@depth 1\nBuzz.", "enabled": True},
        ]
    },
)


def parts(character: Character, said: str = "", **changes: Any) -> CharacterParts:
    is_full = changes.pop("is_full", False)
    return build_parts(character, [LoreMessage("user", said)], context(**changes), is_full=is_full)


def test_a_character_becomes_the_pieces_of_a_prompt() -> None:
    made = parts(ROSA, "a bee", system_prompt="Help {{user}}.", user=UserPersona("Sam", "{{user}} is ten."))
    assert made.system == (
        "Help Sam. Stay Rosa.\n\nBees sting.\n\nRosa keeps bees.\n\nIn June.\n\nRosa's personality: calm\n\n"
        "Scenario: A garden.\n\nHoney.\n\nSam is ten."
    )
    assert made.examples == ((ExampleTurn("user", "Hi"), ExampleTurn("assistant", "Hello, Sam!")),)
    assert made.post_history == "Be brief."
    assert [(one.text, one.depth) for one in made.at_depth] == [("Buzz.", 1)]


def test_what_a_card_does_not_say_is_the_users_own() -> None:
    made = parts(Character("A", context="I am {{char}}."), system_prompt="Help.", post_history="{{char}}, go on.")
    assert (made.system, made.post_history) == ("Help.\n\nI am A.", "A, go on.")


def test_lore_may_go_first_or_switch_instructions_off() -> None:
    assert "Honey." not in parts(ROSA, "a bee", is_full=True).system
    assert parts(ROSA, "quiet").post_history == ""


def test_notes_tags_and_creator_never_enter_the_prompt() -> None:
    made = parts(Character("A", creator="SECRET", creator_notes="SECRET", tags=("SECRET",), version="SECRET"))
    assert "SECRET" not in repr(made)


def test_greetings_are_flipped_through_with_the_users_name() -> None:
    assert greetings(ROSA, context()) == ("Hi Sam, I am Rosa.", "Oh, Sam!")
    assert greetings(Character("A", greeting="{{user}}", your_name="Kim"), context()) == ("Kim",)
    assert greetings(Character("A", greeting="{{user}}"), context(user=UserPersona())) == ("friend",)


def test_a_user_without_a_name_is_called_by_a_word_in_the_characters_language() -> None:
    nobody = UserPersona()
    assert user_name(Character("林桥", greeting="你好，{{user}}。今天过得怎么样？"), nobody) == "朋友"
    assert (
        user_name(Character("林桥", greeting="Hi!", context="{{char}} teaches 中文 to beginners."), nobody) == "friend"
    )
    assert user_name(Character("Ken", greeting="こんにちは、元気ですか。"), nobody) == "friend"
    assert user_name(Character("林桥", greeting="你好", your_name="Kim"), nobody) == "Kim"


@pytest.mark.parametrize("macro", ["{{original}}", "{{user}}", "<user>", "{{reverse:{{original}}}}"])
def test_macros_do_not_make_gigabytes_of_a_card(macro: str) -> None:
    """A card's system text may be the user's own a million times."""
    macros = Macros("Ada", "u" * 200, Random(0), datetime.now(), original="o" * 100_000)
    expanded = macros.expand(macro * 200_000)
    assert 8_000_000 <= len(expanded) < 14_000_000
