"""Lorebooks alone: whichever program wrote one, its entries come with their keys, their text and their order."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from core.personas.cards import read_card
from core.personas.character import CharacterError
from core.personas.lorebook_file import read_lorebook
from tests.support.cards import PICTURE, V2, png_card, text_chunk, with_chunks
from tests.support.lorebooks import RISU_ENTRY, WORLD_INFO


def entries_of(values: Any, name: str = "book.json") -> list[dict[str, Any]]:
    return list(read_lorebook(name, json.dumps(values).encode()).book["entries"])


def test_world_info_becomes_a_cards_lorebook_and_keeps_what_has_no_field_there() -> None:
    book = read_lorebook("Old town.json", json.dumps(WORLD_INFO).encode())
    assert book.name == "Old town" and book.book["originalData"] == {"name": "x"}
    first, second = book.book["entries"]
    assert first | {"extensions": {}} == {
        "id": 0,
        "keys": ["tower", "/sto[rn]e/i"],
        "secondary_keys": ["sea"],
        "comment": "The tower",
        "content": "Tall.",
        "constant": False,
        "selective": True,
        "insertion_order": 30,
        "enabled": False,
        "position": "after_char",
        "extensions": {},
    }
    assert first["extensions"] == {
        "position": 4,
        "depth": 2,
        "role": 1,
        "selectiveLogic": 2,
        "exclude_recursion": True,
        "sticky": 3,
        "world_info": {"addMemo": True, "characterFilter": {"names": []}},
    }
    assert (second["enabled"], second["position"], second["insertion_order"]) == (True, "before_char", 20)


@pytest.mark.parametrize(
    "values",
    [
        {
            "spec": "lorebook_v3",
            "data": {"name": "B", "extensions": {}, "entries": [{"keys": ["hut"], "content": "Low."}]},
        },
        {"entries": [{"keys": ["hut"], "content": "Low."}]},
        {"name": "B", "description": "d", "scan_depth": 3, "entries": [{"keys": ["hut"], "content": "Low."}]},
        {"entries": [{"key": ["hut"], "content": "Low."}]},
        {
            "name": "B",
            "description": "d",
            "entries": {
                "1": {
                    "key": ["hut"],
                    "content": "Low.",
                    "insertion_order": 5,
                    "enabled": True,
                    "position": "before_char",
                }
            },
        },
        {
            "type": "risu",
            "ver": 1,
            "data": [{"key": "hut", "content": "Low.", "insertorder": 100, "alwaysActive": False}],
        },
        {"type": "risuModule", "name": "M", "id": "1", "lorebook": [{"key": "hut", "content": "Low."}]},
        {"type": "risuModule", "module": {"name": "M", "id": "1", "lorebook": [{"key": "hut", "content": "Low."}]}},
        {
            "kind": "memory",
            "name": "B",
            "entries": [
                {"name": "n", "entry": "Low.", "keywords": ["hut"], "priority": 3, "weight": 2, "enabled": True}
            ],
        },
        {
            "lorebookVersion": 5,
            "entries": [
                {
                    "text": "Low.",
                    "keys": ["hut"],
                    "displayName": "n",
                    "enabled": True,
                    "contextConfig": {"budgetPriority": 400},
                }
            ],
        },
        V2 | {"data": V2["data"] | {"character_book": {"entries": [{"keys": ["hut"], "content": "Low."}]}}},
    ],
)
def test_lorebooks_of_all_programs_are_read(values: dict[str, Any]) -> None:
    [entry] = entries_of(values)
    assert (entry["keys"], entry["content"]) == (["hut"], "Low.")


def test_of_world_infos_and_a_cards_field_for_one_thing_the_cards_counts_and_both_are_kept() -> None:
    both = {"key": "hut", "keys": ["hut", "house"], "uid": 1, "id": 2, "disable": True, "enabled": True, "content": "x"}
    [entry] = entries_of({"entries": {"a": both}})
    assert (entry["keys"], entry["id"], entry["enabled"]) == (["hut", "house"], 2, True)
    assert entry["extensions"]["world_info"] == {"key": "hut", "uid": 1, "disable": True}


def test_the_fields_of_risuai_are_read() -> None:
    [entry] = entries_of({"type": "risu", "data": [RISU_ENTRY]})
    assert entry["keys"] == ["hut", "/a,b/i"] and entry["secondary_keys"] == ["sea", "sand"]
    assert entry["constant"] and entry["selective"] and entry["use_regex"] and entry["case_sensitive"]
    assert entry["extensions"]["risu_activationPercent"] == 40
    assert entry["extensions"]["risu"] == {"mode": "normal", "id": "u"}
    assert not entries_of({"type": "risu", "data": [RISU_ENTRY | {"mode": "folder"}]})[0]["enabled"]


def test_the_fields_of_agnai_and_novelai_are_read() -> None:
    memory = {
        "name": "n",
        "entry": "x",
        "keywords": ["k"],
        "priority": 3,
        "weight": 2,
        "enabled": False,
        "secondaryKeys": ["s"],
    }
    book = read_lorebook("x", json.dumps({"kind": "memory", "scanDepth": 4, "entries": [memory]}).encode()).book
    assert book["scan_depth"] == 4 and (book["entries"][0]["priority"], book["entries"][0]["insertion_order"]) == (3, 2)
    assert book["entries"][0]["secondary_keys"] == ["s"] and book["entries"][0]["enabled"] is False
    novelai = {
        "text": "x",
        "keys": ["k"],
        "forceActivation": True,
        "contextConfig": {"budgetPriority": 10, "prefix": ""},
    }
    lorebook = {"lorebookVersion": 4, "entries": [novelai]}
    [entry] = entries_of(lorebook)
    assert entry["constant"] and (entry["insertion_order"], entry["priority"]) == (-10, 10)
    picture = with_chunks(text_chunk(b"tEXt", "naidata", base64.b64encode(json.dumps(lorebook).encode())))
    assert read_lorebook("nai.png", picture).book["entries"] == [entry]


def test_a_lorebook_in_a_picture_of_a_character_is_found() -> None:
    assert read_lorebook("r.png", png_card(V2)).book["entries"][0]["content"] == "Bees sting."


def test_whoever_imports_a_lorebook_as_a_character_is_told_what_it_is() -> None:
    for values in (
        WORLD_INFO,
        {"entries": []},
        {"entries": {}},
        {"name": "B", "description": "d", "entries": [{"keys": []}]},
    ):
        with pytest.raises(CharacterError) as caught:
            read_card("w.json", json.dumps(values).encode())
        assert caught.value.key == "card_is_lorebook"


def test_what_is_no_lorebook_is_refused_in_words() -> None:
    for content, key in (
        (b"", "card_empty"),
        (b'{"name": "A", "greeting": "x"}', "no_lorebook"),
        (b"[1]", "no_lorebook"),
        (PICTURE, "png_no_card"),
        (b'{"x": 1}', "no_lorebook"),
    ):
        with pytest.raises(CharacterError) as caught:
            read_lorebook("x", content)
        assert caught.value.key == key
