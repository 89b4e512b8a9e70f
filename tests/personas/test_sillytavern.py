"""A lorebook's entries as SillyTavern means them: keys, logic, places, chance, groups, recursion, time."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from core.personas import lore_timing
from core.personas.lore_text import Chat, LoreMessage, has_word
from core.personas.lorebook import NO_LIMITS, Activated, Lore, LoreBudget, activate
from core.personas.macros import Macros
from tests.support.lorebooks import NOON, count, texts


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lore_timing, "_clocks", lore_timing._Clocks())


def entry(content: str, keys: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """As SillyTavern exports one: use_regex is in every entry, its own fields lie in the extensions."""
    plain = {name: fields.pop(name) for name in ("secondary_keys", "constant", "insertion_order") if name in fields}
    return {
        "keys": list(keys),
        "secondary_keys": [],
        "content": content,
        "selective": True,
        "enabled": True,
        "use_regex": True,
        "constant": False,
        "insertion_order": 100,
        "position": "before_char",
        "extensions": {"position": 0, "selectiveLogic": 0, "probability": 100, "useProbability": True, **fields},
    } | plain


def ask(
    entries: list[dict[str, Any]], *said: str, seed: str = "chat", budget: LoreBudget = NO_LIMITS, **book: Any
) -> Activated:
    messages = [LoreMessage("assistant" if number % 2 else "user", text) for number, text in enumerate(said)]
    macros = Macros("Rosa", "Sam", Random(1), NOON, seed)
    return activate([{"entries": entries} | book], Chat(messages, macros), count, budget)


def found(entries: list[dict[str, Any]], *said: str, **given: Any) -> list[str]:
    return texts(ask(entries, *said, **given).lore)


def test_a_key_is_a_pattern_only_where_it_is_written_as_one() -> None:
    assert found([entry("x", ("(the) Order",))], "I joined (the) Order") == ["x"]
    assert found([entry("x", ("b.e",))], "bee") == []
    assert found([entry("x", ("/b.e/",))], "bee") == ["x"]
    assert found([entry("x", ("/B.E/",))], "bee") == []
    assert found([entry("x", ("/B.E/i",))], "bee") == ["x"]
    assert found([entry("x", ("and/or",))], "and/or") == ["x"]
    assert found([entry("x", ("/usr/bin",))], "look in /usr/bin") == ["x"]
    assert found([entry("x", ("/no/flagx",))], "/no/flagx") == ["x"]
    assert found([entry("x", ("/{{user}}!/",))], "sam!") == [] and found([entry("x", ("/{{user}}!/",))], "Sam!") == [
        "x"
    ]
    assert found([entry("x") | {"keys": "and/or, /a,b/i,1999"}], "A,B") == ["x"]
    assert found([entry("x") | {"keys": ["", None, 1999]}], "in 1999") == ["x"]
    assert found([entry("x", (r"/\/home/",))], "cd /home") == ["x"]
    assert found([entry("x", ("bee",), secondary_keys=["/h[io]ve/"])], "a bee, a hive") == ["x"]
    assert found([entry("x", ("bee",), secondary_keys=["/h[io]ve/"])], "a bee") == []


def test_patterns_can_ask_who_speaks() -> None:
    assert found([entry("x", (r"/\x01Rosa:[^\x01]*bee/",))], "a bee", "no", "well") == []
    assert found([entry("x", (r"/\x01Rosa:[^\x01]*bee/",))], "no", "a bee", "well") == ["x"]


@pytest.mark.parametrize(
    ("logic", "said", "is_called"),
    [
        (0, "tower", False),
        (0, "tower storm", True),
        (0, "tower storm sea", True),
        (1, "tower", True),
        (1, "tower storm", True),
        (1, "tower storm sea", False),
        (1, "storm", False),
        (2, "tower", True),
        (2, "tower storm", False),
        (2, "tower sea", False),
        (2, "hi", False),
        (3, "tower", False),
        (3, "tower storm", False),
        (3, "tower storm sea", True),
        ("2", "tower", False),
        (9, "tower storm", True),
    ],
)
def test_secondary_keys_follow_their_logic(logic: object, said: str, is_called: bool) -> None:
    one = entry("x", ("tower",), secondary_keys=["storm", "sea"], selectiveLogic=logic)
    assert bool(found([one], said)) == is_called


def test_constant_entries_need_no_key() -> None:
    assert found([entry("x", constant=True), entry("y")], "hi") == ["x"]


def test_words_letter_case_and_depth_are_each_entrys_own() -> None:
    whole = entry("x", ("art",), match_whole_words=True)
    assert found([whole], "let us start") == [] and found([whole], "Art, they say") == ["x"]
    assert found([entry("x", ("of art",), match_whole_words=True)], "worth of artists") == ["x"]
    assert found([entry("x", ("Art",), case_sensitive=True)], "art") == []
    assert found([entry("x", ("art",), scan_depth=1)], "art", "no", "no") == []
    assert found([entry("x", ("art",), scan_depth=None)], "art", "no", "no") == ["x"]
    assert found([entry("x", ("art",), scan_depth=3)], "art", "no", "no", scan_depth=1) == ["x"]


def test_whole_words_are_those_of_every_language() -> None:
    assert has_word("кот, и", "кот") and not has_word("который", "кот")
    assert has_word("我看见塔了", "塔") and has_word("塔", "塔")
    assert not has_word("tower2", "tower") and has_word("tower-2", "tower") and has_word("c++ is", "c++")


def places(one: dict[str, Any]) -> tuple[str, int | None, str]:
    [lore] = ask([one], "a", "b", "c", "d", "e", "f").lore
    return lore.position, lore.depth, lore.role


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"position": 0}, ("before_char", None, "system")),
        ({"position": 1}, ("after_char", None, "system")),
        ({"position": 2}, ("note_top", 4, "system")),
        ({"position": 3}, ("note_bottom", 4, "system")),
        ({"position": 4, "depth": 2, "role": 1}, ("at_depth", 2, "user")),
        ({"position": 4, "depth": 0, "role": 2}, ("at_depth", 0, "assistant")),
        ({"position": 4, "role": None}, ("at_depth", 4, "system")),
        ({"position": 4, "depth": 99}, ("at_depth", 6, "system")),
        ({"position": 5}, ("examples_top", None, "system")),
        ({"position": 6, "depth": 2}, ("examples_bottom", None, "system")),
        ({"position": 12}, ("before_char", None, "system")),
    ],
)
def test_an_entry_goes_where_its_extensions_say(fields: dict[str, Any], place: tuple[str, int | None, str]) -> None:
    assert places(entry("x", constant=True, **fields)) == place


def test_chance_is_the_same_for_the_same_chat_at_the_same_length() -> None:
    one = [entry("x", constant=True, probability=30)]
    came = [bool(found(one, "a", seed=str(seed))) for seed in range(200)]
    assert came == [bool(found(one, "a", seed=str(seed))) for seed in range(200)] and 30 < sum(came) < 90
    assert found([entry("x", constant=True, probability=0)], "a") == []
    assert found([entry("x", constant=True, probability=0, useProbability=False)], "a") == ["x"]
    assert [(one.title, one.reason) for one in ask([entry("x", constant=True, probability=0)], "a").left_out] == [
        ("x", "chance")
    ]


def test_one_entry_of_a_group_comes() -> None:
    pair = [entry("a", constant=True, group="g"), entry("b", constant=True, group="g, h"), entry("c", constant=True)]
    came = [tuple(found(pair, "x", seed=str(seed))) for seed in range(60)]
    assert set(came) == {("a", "c"), ("b", "c")}
    heavy = [entry("a", constant=True, group="g", group_weight=0), entry("b", constant=True, group="g", group_weight=5)]
    assert {tuple(found(heavy, "x", seed=str(seed))) for seed in range(20)} == {("b",)}
    first = [entry("a", constant=True, group="g"), entry("b", constant=True, group="g", group_override=True)]
    assert found(first, "x") == ["b"]
    scored = [
        entry("a", ("bee",), group="g", use_group_scoring=True),
        entry("b", ("bee", "hive"), group="g", use_group_scoring=True),
    ]
    assert found(scored, "a bee in a hive") == ["b"]
    assert [one.reason for one in ask(scored, "a bee in a hive").left_out] == ["group"]


def test_entries_call_up_others_within_their_limits() -> None:
    first = entry("A queen.", ("bee",))
    assert found([first, entry("Q", ("queen",))], "bee") == ["A queen.", "Q"]
    assert found([first, entry("Q", ("queen",))], "bee", recursive_scanning=False) == ["A queen."]
    assert found([first, entry("Q", ("queen",), exclude_recursion=True)], "bee") == ["A queen."]
    assert found([first, entry("Q", ("queen",), exclude_recursion=True)], "bee queen") == ["A queen.", "Q"]
    assert found([entry("A queen.", ("bee",), prevent_recursion=True), entry("Q", ("queen",))], "bee") == ["A queen."]
    late = entry("Q", ("queen",), delay_until_recursion=True)
    assert found([late], "queen") == [] and found([first, late], "bee") == ["A queen.", "Q"]
    later = entry("L", ("bee",), delay_until_recursion=2)
    assert found([first, later, late], "bee") == ["A queen.", "L", "Q"]
    assert found([first, later], "bee", recursive_scanning=False) == ["A queen."]


def test_a_sticky_entry_stays_for_some_messages_and_then_rests() -> None:
    one = [entry("x", ("bee",), sticky=4, cooldown=3, scan_depth=1)]
    chat = ["bee", "ok", "no", "ok", "no", "ok", "bee", "ok", "bee", "ok", "bee"]
    came = [bool(found(one, *chat[:length])) for length in range(1, len(chat) + 1, 2)]
    # Called at 1, stays up to length 5; at 5 it ends and rests up to 8.
    assert came == [True, True, False, False, True, True]
    assert [one.reason for one in ask(one, *chat[:7]).left_out] == ["cooldown"]


def test_a_cooldown_keeps_an_entry_away_and_a_delay_lets_it_begin_later() -> None:
    one = [entry("x", ("bee",), cooldown=4)]
    assert [bool(found(one, *["bee", "ok"] * n, "bee")) for n in range(5)] == [True, False, True, False, True]
    one = [entry("x", ("bee",), delay=4)]
    assert [bool(found(one, *["bee", "ok"] * n, "bee")) for n in range(4)] == [False, False, True, True]
    assert ask(one, "bee").left_out[0].reason == "delay"


def test_what_stays_is_that_of_the_branch() -> None:
    """Another version of an earlier message has its own consequences, whatever was asked before."""
    one = [entry("x", ("bee",), sticky=9, scan_depth=1)]
    assert found(one, "bee", "ok", "no") == ["x"]
    assert found(one, "wasp", "ok", "no") == []
    assert found(one, "bee", "other", "no") == ["x"]


def test_a_long_chats_past_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = [entry("x", ("bee",), sticky=2)]
    said = ["no", "ok"] * 200
    runs: list[int] = []
    run = lore_timing.Scan.run
    monkeypatch.setattr(lore_timing.Scan, "run", lambda scan: runs.append(1) or run(scan))
    found(one, *said, "no")
    assert len(runs) == 201
    runs.clear()
    found(one, *said, "no", "ok", "no")
    assert len(runs) == 2


def test_the_characters_own_texts_are_looked_at_where_an_entry_says_so() -> None:
    one = entry("x", ("bee",), match_character_description=True)
    chat = Chat(
        [LoreMessage("user", "hi")],
        Macros("R", "S", Random(1), NOON),
        sources={"match_character_description": lambda: "Keeps bees.", "match_scenario": lambda: "bee"},
    )
    assert texts(activate([{"entries": [one]}], chat, count).lore) == ["x"]
    assert activate([{"entries": [entry("x", ("bee",))]}], chat, count).lore == []


def test_lore_has_a_share_where_its_book_names_no_budget() -> None:
    three = [entry("one two three", constant=True, insertion_order=order) for order in (1, 2, 3)]
    assert len(found(three, "x", budget=LoreBudget(share_tokens=6))) == 2
    assert len(found(three, "x", budget=LoreBudget(share_tokens=6), token_budget=9)) == 3
    assert len(found(three, "x", budget=LoreBudget(most_tokens=3), token_budget=9)) == 1
    free = [*three, entry("a b", constant=True, insertion_order=0, ignore_budget=True)]
    assert found(free, "x", budget=LoreBudget(share_tokens=0)) == ["a b"]
    assert found(free, "x", budget=LoreBudget(most_tokens=1)) == []
    asked = ask(three, "x", budget=LoreBudget(share_tokens=6))
    assert asked.num_tokens == 6 and [one.reason for one in asked.left_out] == ["budget"]


def test_what_the_chat_calls_up_goes_before_what_entries_do() -> None:
    entries = [entry("queen", ("bee",), insertion_order=1), entry("late", ("queen",), insertion_order=9)]
    assert found(entries, "bee", budget=LoreBudget(share_tokens=1)) == ["queen"]


def test_books_side_by_side_have_budgets_of_their_own_and_call_up_each_others_entries() -> None:
    chat = Chat([LoreMessage("user", "bee")], Macros("R", "S", Random(1), NOON))
    one, other = {"entries": [entry("queen", ("bee",))]}, {"entries": [entry("late", ("queen",))], "token_budget": 1}
    lore: list[Lore] = activate([one, other], chat, count, LoreBudget(share_tokens=1)).lore
    assert texts(lore) == ["queen", "late"]
    assert texts(activate([one, other | {"token_budget": 0}], chat, count).lore) == ["queen"]


def test_fields_of_nonsense_stop_nothing() -> None:
    for nonsense in (None, "x", -5, 1.5, [], {}, True, 10**30, float("1e300")):
        fields = dict.fromkeys(
            (
                "position",
                "depth",
                "role",
                "selectiveLogic",
                "scan_depth",
                "probability",
                "group",
                "group_weight",
                "delay_until_recursion",
                "sticky",
                "cooldown",
                "delay",
            ),
            nonsense,
        )
        ask([entry("x", ("a",), **fields), entry("y", constant=True, **fields)], "a", "b", "c")


def test_lore_that_has_no_room_calls_up_no_more() -> None:
    """A chain of long entries searched all of their text for all keys, ten times over."""
    chain = [entry(f"key{number + 1} " + "long " * 500, (f"key{number} ",)) for number in range(20)]
    assert len(ask(chain, "key0 ", budget=LoreBudget(share_tokens=600)).left_out) == 1


def test_a_book_of_many_entries_looks_back_only_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run = lore_timing.Scan.run
    monkeypatch.setattr(lore_timing.Scan, "run", lambda scan: runs.append(1) or run(scan))
    found([entry("x", ("bee",), sticky=2)] * 3000, *["no", "ok"] * 50, "no")
    assert len(runs) == 11


def test_world_info_within_a_card_is_read_as_it_is() -> None:
    chat = Chat([LoreMessage("user", "bee")], Macros("R", "S", Random(1), NOON))
    for entries in ({"0": {"key": ["bee"], "content": "x", "order": 3}}, [{"key": ["/b.e/"], "content": "x"}]):
        assert texts(activate([{"entries": entries}], chat, count).lore) == ["x"]


def test_the_names_of_world_info_are_read_in_extensions_too() -> None:
    """Chub writes them so."""
    camel = entry("x", ("art",), matchWholeWords=True, scanDepth=1)
    assert found([camel], "start") == [] and found([camel], "art", "no", "no") == [] and found([camel], "art") == ["x"]


def test_an_entry_may_be_for_some_characters_only() -> None:
    def asked(names: list[str], is_excluding: bool) -> bool:
        one = entry(
            "x", constant=True, world_info={"characterFilter": {"names": names, "isExclude": is_excluding, "tags": []}}
        )
        chat = Chat([LoreMessage("user", "hi")], Macros("R", "S", Random(1), NOON), names=frozenset({"rosa"}))
        return bool(activate([{"entries": [one]}], chat, count).lore)

    assert asked(["Rosa"], False) and not asked(["Tom"], False)
    assert not asked(["ROSA"], True) and asked(["Tom"], True)
    assert asked([], False) and asked([], True)
