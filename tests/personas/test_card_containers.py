"""Cards as other programs hand them out: without a name, behind a picture, in a form of their own, damaged in part."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from core.personas.cards import Card, read_card, write
from core.personas.character import CharacterError
from core.personas.fields import read_name
from core.personas.formats import read_object, write_card
from core.personas.png import SIGNATURE
from tests.support.cards import PICTURE, V1, V2, V2_DATA, V3, V3_DATA, charx, encoded, png_card, text_chunk, with_chunks

AGNAI = {
    "kind": "character",
    "_id": "1",
    "name": "Rosa",
    "description": "for people",
    "greeting": "Hello.",
    "alternateGreetings": ["Hm?"],
    "scenario": "A garden.",
    "sampleChat": "{{user}}: Hi",
    "persona": {"kind": "text", "attributes": {"text": ["Rosa keeps bees."]}},
    "systemPrompt": "Be Rosa.",
    "postHistoryInstructions": "Short.",
    "insert": {"prompt": "Rosa limps.", "depth": 2},
    "characterBook": {
        "kind": "memory",
        "name": "B",
        "entries": [{"entry": "Sting.", "keywords": ["bee"], "enabled": True}],
    },
    "tags": ["bees"],
    "voice": {"service": "x"},
    "culture": None,
}


def keys(card: Card) -> list[str]:
    return [notice.key for notice in card.notices]


def jpeg() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (24, 32), "teal").save(written, "JPEG")
    return written.getvalue()


def test_a_file_without_a_name_is_called_as_the_file_is() -> None:
    card = read_card("Old Example.yaml", b"greeting: Hello.\ncontext: Keeps bees.\n")
    assert card.character.name == "Old Example" and keys(card) == ["card_named_by_file"]
    assert read_card("rosa.png", png_card(V2 | {"data": V2_DATA | {"name": ""}})).character.name == "rosa"
    with pytest.raises(CharacterError) as caught:
        read_card("\u202e\u200b.yaml", b"greeting: Hello.")
    assert caught.value.key == "character_no_name"


def test_a_charx_behind_a_picture_is_found() -> None:
    packed = charx({"card.json": json.dumps(V3)})
    card = read_card("rosa.jpeg", jpeg() + packed)
    assert card.character.name == "Rosa" and card.picture is not None and card.picture.startswith(SIGNATURE)
    with_icon = V3 | {
        "data": V3_DATA | {"assets": [{"type": "icon", "name": "main", "uri": "embeded://i.png", "ext": "png"}]}
    }
    assert read_card("r.jpg", jpeg() + charx({"card.json": json.dumps(with_icon), "i.png": PICTURE})).picture == PICTURE
    assert read_card("rosa.png", PICTURE + packed).picture == PICTURE
    for content, key in ((jpeg(), "card_other_picture"), (jpeg() + charx({"x": "y"}), "charx_missing")):
        with pytest.raises(CharacterError) as caught:
            read_card("x.jpg", content)
        assert caught.value.key == key


def test_a_module_beside_a_card_is_named() -> None:
    assert keys(read_card("r.charx", charx({"card.json": json.dumps(V3), "module.risum": b"o\0"}))) == ["card_module"]


def test_agnais_own_export_is_read() -> None:
    character = read_card("r.json", json.dumps(AGNAI).encode()).character
    assert (character.name, character.greeting, character.alternate_greetings) == ("Rosa", "Hello.", ("Hm?",))
    assert (character.description, character.scenario) == ("Rosa keeps bees.", "A garden.")
    assert (character.system_prompt, character.post_history_instructions) == ("Be Rosa.", "Short.")
    assert (character.creator_notes, character.tags, character.example_dialogue) == (
        "for people",
        ("bees",),
        "{{user}}: Hi",
    )
    assert character.lorebook["entries"][0]["content"] == "Sting."
    assert character.extensions["depth_prompt"] == {"prompt": "Rosa limps.", "depth": 2}
    assert character.extensions["agnai"] == {
        "kind": "character", "_id": "1", "persona": AGNAI["persona"], "voice": {"service": "x"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("wpp", '[character("Rosa") {\nmind("calm" + "kind")\nbody("tall")\n}]'),
        ("sbf", '[ character: "Rosa"; mind: "calm", "kind"; body: "tall" ]'),
        ("boostyle", "Rosa + calm + kind + tall"),
        ("attributes", "Name: Rosa\nmind: calm, kind\nbody: tall"),
        ("else", "Name: Rosa\nmind: calm, kind\nbody: tall"),
    ],
)
def test_agnais_attributes_are_told_in_their_form(kind: str, text: str) -> None:
    persona = {"kind": kind, "attributes": {"mind": ["calm", "kind"], "body": ["tall"]}}
    assert read_object("x", AGNAI | {"persona": persona}).description == text


def test_agnais_picture_comes_along() -> None:
    avatar = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
    assert read_card("r.json", json.dumps(AGNAI | {"avatar": avatar}).encode()).picture == PICTURE
    assert read_card("r.json", json.dumps(AGNAI | {"avatar": "data:image/png;base64,!"}).encode()).picture is None


def test_what_a_v1_card_leaves_empty_pygmalions_fields_beside_it_fill() -> None:
    both = V1 | {
        "char_name": "R",
        "description": "",
        "char_persona": "Keeps bees.",
        "first_mes": "",
        "char_greeting": "Hi.",
    }
    character = read_object("x", both)
    assert (character.name, character.description, character.greeting) == ("Rosa", "Keeps bees.", "Hi.")
    assert read_object("x", {"char_name": "R", "char_greeting": "Hi.", "name": ""}).name == "R"
    assert read_object("x", {"char_greeting": "Hi.", "name": "R", "description": ""}).name == "R"


def test_an_older_copy_stands_in_for_a_damaged_one() -> None:
    picture = with_chunks(text_chunk(b"tEXt", "ccv3", b"!!"), text_chunk(b"tEXt", "chara", encoded(V2)))
    card = read_card("r.png", picture)
    assert card.character.name == "Rosa" and keys(card) == ["card_older_copy"]
    for bad in (b"bm90IGpzb24=", encoded({"x": 1})):
        picture = with_chunks(text_chunk(b"tEXt", "chara", encoded(V2)), text_chunk(b"tEXt", "ccv3", bad))
        assert read_card("r.png", picture).character.name == "Rosa"
    with pytest.raises(CharacterError):
        read_card("r.png", with_chunks(text_chunk(b"tEXt", "ccv3", b"!!")))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Mira\u202egnp.exe", "Miragnp.exe"),
        ("\u2066A\u2069\u200e\u200f\u061c\ufeff\u200b\u00ad B", "A B"),
        ("A\u2028B\u0085C\x00D", "A B C D"),
        ("\u3164\u2800\u200b", ""),
        ("\u200d", ""),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("Ze\u0308e 塔", "Ze\u0308e 塔"),
    ],
)
def test_names_are_without_what_is_not_seen(written: str, name: str) -> None:
    assert read_name(written) == name


def test_a_name_goes_out_as_it_came_in() -> None:
    card = V2 | {"data": V2_DATA | {"name": "Mira\u202egnp", "nickname": "M\u200bi"}}
    character = read_card("x.json", json.dumps(card).encode()).character
    assert (character.name, character.called) == ("Miragnp", "Mi")
    assert json.loads(write(character, PICTURE, "v2")) == card


def entry(**fields: Any) -> dict[str, Any]:
    return {"keys": ["a"], "content": "x", "enabled": True, "insertion_order": 1, "extensions": {}} | fields


@pytest.mark.parametrize(
    ("changes", "key", "names"),
    [
        ({"extensions": {"regex_scripts": [{"id": 1}]}}, "card_no_effect", "regex_scripts"),
        ({"extensions": {"risuai": {"triggerscript": [1], "customScripts": []}}}, "card_no_effect",
         "RisuAI triggerscript"),
        ({"character_book": {"entries": [entry(extensions={"vectorized": True, "automation_id": "x", "sticky": 3})]}},
         "card_no_effect", "vectorized, automation_id"),
        ({"character_book": {"entries": [entry(content="@@depth 1\n@@is_user_icon x\n@@unheard 2\n@@@depth 1\nx")]}},
         "card_no_effect", "@@is_user_icon"),
        ({"character_book": {"entries": [entry(keys=["/(/", "/a/", "("], use_regex=True)]}}, "card_wrong_patterns",
         "/(/, /(/i"),
        ({"description": "{{foo}} {{char}}", "first_mes": "{{bar::1}}"}, "card_unknown_macros", "{{foo}}, {{bar}}"),
        ({"extensions": {"world": "Town"}, "character_book": None}, "card_world", "Town"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_named_and_kept(changes: dict[str, Any], key: str, names: str) -> None:
    data = {"data": V2_DATA | {"extensions": {}} | changes}
    card = read_card("x.json", json.dumps(V2 | data).encode())
    [notice] = card.notices
    assert notice.key == key and names in (notice.params.get("names"), notice.params.get("name"))
    if changes.get("character_book", 1) is not None:
        assert write_card(card.character, 2) == V2 | data


def test_plain_cards_get_no_notice() -> None:
    for card in (V1, V2, V3):
        assert read_card("x.json", json.dumps(card).encode()).notices == ()


def test_a_makers_notes_are_in_the_readers_language_where_the_card_has_it() -> None:
    character = read_card("x.json", json.dumps(V3).encode()).character
    assert (character.creator_notes_in("zh"), character.creator_notes_in("en")) == ("说明", "notes")
    odd = V3 | {"data": V3_DATA | {"creator_notes_multilingual": {"zh": 5}}}
    assert read_card("x.json", json.dumps(odd).encode()).character.creator_notes_in("zh") == "notes"


def test_no_sentence_is_turned_by_a_files_name() -> None:
    with pytest.raises(CharacterError) as caught:
        read_card("a\u202eb.json", b"[1]")
    assert caught.value.params["file"] == "ab.json"
    for file in ("../../Kim.yaml", "C:\\Kim.yaml", "/etc/Kim.yaml"):
        assert read_card(file, b"greeting: Hi").character.name == "Kim"


@pytest.mark.parametrize("file", ["x.json", "x.yaml"])
@pytest.mark.parametrize("number", ["9" * 5000, "-" + "9" * 5000, "1." + "9" * 5000])
def test_a_number_of_thousands_of_digits_gets_a_sentence_for_people(file: str, number: str) -> None:
    content = f'{{"name": "A", "x": {number}}}' if file.endswith("json") else f"name: A\nx: {number}\n"
    try:
        assert read_card(file, content.encode()).character.name == "A"
    except CharacterError as error:
        assert "sys." not in str(error) and "digits" in str(error)
