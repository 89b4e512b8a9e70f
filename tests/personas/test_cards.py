"""Character cards in and out: nothing is lost, in any format, and whatever is bad gets one sentence."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.common.errors import DeckError
from core.personas.cards import read_card, read_path, write
from core.personas.character import CharacterError
from core.personas.fields import CARD_FIELDS
from core.personas.formats import read_card as read_object_card
from core.personas.formats import read_file, write_card, write_file
from core.personas.parse import parse_yaml, write_yaml
from core.personas.png import SIGNATURE, read_cards
from tests.support.cards import (
    CARDS,
    PICTURE,
    TEXTS,
    V1,
    V2,
    V2_DATA,
    V3,
    V3_DATA,
    VALUES,
    WEBUI,
    charx,
    chunk,
    encoded,
    png_card,
    text_chunk,
    with_chunks,
)


def text(card: object) -> bytes:
    return json.dumps(card).encode()


def refused(name: str, content: bytes) -> str:
    """The key of the one sentence that a bad file gets."""
    with pytest.raises(CharacterError) as caught:
        read_card(name, content)
    sentence = str(caught.value)
    assert "\n" not in sentence and "{" not in sentence.replace("{{", "")
    return caught.value.key


@given(CARDS)
@settings(max_examples=60, deadline=None)
def test_a_card_survives_the_store_and_every_export(card: dict[str, Any]) -> None:
    character = read_object_card(card)
    stored = read_file(parse_yaml("x", write_yaml(write_file(character))))
    assert stored == character
    # As text-generation-webui and every other program reads it.
    assert yaml.safe_load(write_yaml(write_file(character))) == write_file(character)
    version: Literal[2, 3] = 2 if card["spec"].endswith("2") else 3
    assert write_card(stored, version) == card
    for kind in ("json", "v2", "png", "yaml"):
        again = read_card("x", write(character, PICTURE, kind)).character
        if kind == "v2" or (kind == "yaml" and version == 2):
            assert again == character
        assert write_card(again, 3) == write_card(character, 3)


@given(TEXTS, VALUES, TEXTS)
@settings(max_examples=100, deadline=None)
def test_a_file_of_text_generation_webui_is_written_back_as_it_was_read(context: str, value: Any, key: str) -> None:
    values = {"name": "Chen", "greeting": context, "context": context, "example_dialogue": value, f"z{key}": value}
    written = parse_yaml("x", write_yaml(write_file(read_file(values))))
    assert written == values
    through_json = read_card("x", write(read_file(values), PICTURE, "json")).character
    assert write_file(through_json) == values


def test_the_sample_of_text_generation_webui_keeps_every_key() -> None:
    character = read_card("Chen.yaml", WEBUI.encode()).character
    assert (character.name, character.your_name, character.greeting) == ("Chen", "Sam", "*waves*\nHello!")
    assert write_file(character) == parse_yaml("x", WEBUI)
    data = write_card(character, 2)["data"]
    assert data["description"] == character.context
    assert data["first_mes"] == character.greeting


def test_a_card_becomes_a_file_that_text_generation_webui_can_use() -> None:
    values = write_file(read_object_card(V2))
    assert values["context"] == "{{char}} keeps bees.\n\n{{char}}'s personality: calm\n\nScenario: A garden."
    assert values["greeting"] == "Hello, {{user}}!"
    assert read_file(values) == read_object_card(V2)


@pytest.mark.parametrize("key", ["bot", "<|bot|>", "char_name"])
def test_other_names_for_a_name_are_taken(key: str) -> None:
    assert read_card("x.yaml", write_yaml({key: "Kim", "greeting": "Hi"}).encode()).character.name == "Kim"


def test_a_v1_card_and_pygmalions_json_become_the_same_character() -> None:
    pygmalion = {
        "char_name": "Rosa",
        "char_persona": V1["description"],
        "char_greeting": V1["first_mes"],
        "world_scenario": V1["scenario"],
        "example_dialogue": V1["mes_example"],
        "metadata": {"version": 1},
    }
    first, second = read_card("a.json", text(V1)).character, read_card("b.json", text(pygmalion)).character
    assert first.greeting == second.greeting == "Hello, {{user}}!"
    assert (first.description, first.scenario) == (second.description, second.scenario)
    assert write_card(first, 2)["data"].items() >= V1.items()
    assert write_card(second, 2)["metadata"] == {"version": 1}


def test_a_v2_card_becomes_a_whole_v3_card() -> None:
    card = write_card(read_object_card(V2), 3)
    assert (card["spec"], card["spec_version"]) == ("chara_card_v3", "3.0")
    assert card["data"]["group_only_greetings"] == []
    assert card["data"]["character_book"]["entries"][0]["use_regex"] is False


def test_values_of_a_wrong_kind_are_read_as_far_as_they_go_and_kept() -> None:
    data = V2_DATA | {"tags": "a, b", "alternate_greetings": ["x", 1, [2]], "extensions": [], "creator": 5}
    character = read_object_card(V2 | {"data": data})
    assert character.tags == ("a", "b")
    assert character.alternate_greetings == ("x", "1")
    assert write_card(character, 2)["data"] == data


@given(st.dictionaries(st.sampled_from(sorted(CARD_FIELDS)), VALUES.filter(lambda value: value is not None)))
@settings(deadline=None)
def test_no_value_of_a_wrong_kind_is_lost(strange: dict[str, Any]) -> None:
    data = V2_DATA | strange
    character = read_object_card({"spec": "chara_card_v2", "spec_version": "2.0", "data": data})
    stored = read_file(parse_yaml("x", write_yaml(write_file(character))))
    assert write_card(stored, 2)["data"] == data


def test_a_changed_field_takes_the_place_of_what_was_read() -> None:
    character = read_object_card(V2 | {"data": V2_DATA | {"tags": "a, b"}, "name": "Rosa"})
    changed = write_card(replace(character, tags=("c",), name="Rose"), 2)
    assert (changed["data"]["tags"], changed["name"]) == (["c"], "Rose")


def test_the_copies_for_v1_around_a_card_follow_its_data() -> None:
    character = read_object_card(V2 | V1 | {"fav": True})
    assert write_card(character, 2) == V2 | V1 | {"fav": True}
    assert write_yaml(write_file(character)).count("keeps bees") == 2
    assert write_card(replace(character, scenario="A roof."), 2)["scenario"] == "A roof."


def test_empty_fields_that_are_null_are_fields_that_are_not_there() -> None:
    data = V2_DATA | {"character_book": None, "extensions": None, "tags": None, "x": None}
    card = write_card(read_object_card(V2 | {"data": data}), 2)
    assert (card["data"]["extensions"], card["data"]["tags"], card["data"]["x"]) == ({}, [], None)
    assert "character_book" not in card["data"]


def test_a_newer_version_is_read_and_said() -> None:
    card = read_card("x.json", text(V3 | {"spec_version": "3.7"}))
    assert [notice.key for notice in card.notices] == ["card_newer"]
    assert write_card(card.character, 3)["spec_version"] == "3.7"
    assert write_card(card.character, 2)["spec_version"] == "2.0"


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
@pytest.mark.parametrize("keyword", ["chara", "Chara", "ccv3", "CCV3"])
@pytest.mark.parametrize("after_pixels", [False, True])
def test_a_card_is_found_wherever_it_lies_in_a_picture(kind: bytes, keyword: str, after_pixels: bool) -> None:
    others = (text_chunk(b"tEXt", "Software", b"x"), text_chunk(b"zTXt", "Comment", b"y"))
    content = with_chunks(*others, text_chunk(kind, keyword, encoded(V3)), after_pixels=after_pixels)
    card = read_card("rosa.png", content)
    assert card.character == read_object_card(V3)
    assert card.picture == with_chunks(*others, after_pixels=after_pixels)


def test_the_v3_card_goes_before_the_v2_card() -> None:
    chunks = (text_chunk(b"tEXt", "chara", encoded(V2)), text_chunk(b"tEXt", "ccv3", encoded(V3)))
    assert read_card("x.png", with_chunks(*chunks)).character.nickname == "Rosie"


def test_base64_with_line_breaks_and_without_padding_and_plain_json_are_read() -> None:
    packed = encoded(V2).rstrip(b"=")
    broken = b"\n".join(packed[start : start + 76] for start in range(0, len(packed), 76))
    for content in (broken, text(V2)):
        assert read_card("x.png", with_chunks(text_chunk(b"tEXt", "chara", content))).character == read_object_card(V2)


def test_an_animated_picture_keeps_its_frames() -> None:
    frames = (chunk(b"acTL", struct.pack(">II", 1, 0)), chunk(b"fcTL", b"\0" * 26), chunk(b"fdAT", b"\0\0\0\1x"))
    content = with_chunks(*frames, text_chunk(b"tEXt", "chara", encoded(V2)))
    card = read_card("x.png", content)
    assert card.picture == with_chunks(*frames)
    assert all(frame in write(card.character, with_chunks(*frames), "png") for frame in frames)


def test_an_exported_picture_holds_both_cards_once() -> None:
    character = read_object_card(V3)
    content = write(character, png_card(V2), "png")
    found = read_cards("x", content)
    assert sorted(found) == ["ccv3", "chara"]
    assert content.count(b"tEXt") == 2
    assert b"@@depth" not in base64.b64decode(found["chara"])
    assert read_card("x.png", content).picture == PICTURE


def test_a_charx_file_is_read_with_its_icon_and_its_other_files() -> None:
    assets = [
        {"type": "icon", "uri": "embeded://assets/icon/images/main.png", "name": "main", "ext": "png"},
        {"type": "emotion", "uri": "embeded://assets/emotion/images/sad.png", "name": "sad", "ext": "png"},
        {"type": "background", "uri": "https://example.com/x.png", "name": "main", "ext": "png"},
    ]
    card = V3 | {"data": V3_DATA | {"assets": assets}}
    files = {"card.json": json.dumps(card), "assets/icon/images/main.png": PICTURE, "../../evil": "x"}
    read = read_card("x.charx", charx(files | {"assets/emotion/images/sad.png": b"sad"}))
    assert read.picture == PICTURE
    kept = write_card(read.character, 3)["data"]["assets"]
    assert [asset["uri"].partition(",")[2] for asset in kept[1:]] == ["c2Fk", ""]
    assert (kept[0]["uri"], kept[2]) == ("ccdefault:", assets[2])
    again = read_card("x.json", write(read.character, PICTURE, "json"))
    assert again.character == read.character


def test_a_charx_file_says_what_it_could_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.personas.assets.MAX_KEPT_BYTES", 10)
    assets = [{"type": "x_sound", "uri": "embeded://a.mp3", "name": "a", "ext": "mp3"}]
    files = {"card.json": json.dumps(V3 | {"data": V3_DATA | {"assets": assets}}), "a.mp3": "longer than it may be"}
    card = read_card("x.charx", charx(files))
    assert [notice.key for notice in card.notices] == ["card_assets_left"]
    assert write_card(card.character, 3)["data"]["assets"] == assets


def bomb() -> bytes:
    return charx({"card.json": json.dumps(V3), "assets/x": bytes(60 * 2**20)})


def big_head() -> bytes:
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")


BOMB_TEXT = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + step)}: &{chr(98 + step)} [" + ",".join(["*" + chr(97 + step)] * 9) + "]\n" for step in range(9)
)


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("x.json", b"", "card_empty"),
        ("x.png", PICTURE, "png_no_card"),
        ("x.png", b"\xff\xd8\xff\xe0JFIF", "card_other_picture"),
        ("x.png", b"RIFF1234WEBPVP8 ", "card_other_picture"),
        ("x.png", png_card(V2)[:-20], "png_truncated"),
        ("x.png", png_card(V2)[:200], "png_truncated"),
        ("x.png", SIGNATURE, "png_truncated"),
        ("x.png", SIGNATURE + b"\xff\xff\xff\xffIHDR", "png_truncated"),
        ("x.png", png_card(V2).replace(b"chara\0", b"charb\0"), "png_damaged"),
        ("x.png", big_head(), "picture_too_large"),
        ("x.png", with_chunks(text_chunk(b"tEXt", "chara", b"*** no base64 ***")), "card_bad_base64"),
        ("x.png", with_chunks(text_chunk(b"tEXt", "chara", b"abcde")), "card_bad_base64"),
        ("x.png", with_chunks(text_chunk(b"tEXt", "chara", b"")), "card_bad_json"),
        ("x.png", with_chunks(text_chunk(b"zTXt", "chara", bytes(40 * 2**20))), "card_too_large"),
        ("x.png", with_chunks(chunk(b"zTXt", b"chara\0\0nonsense")), "png_damaged"),
        ("x.charx", bomb(), "charx_bomb"),
        ("x.charx", charx({"x.json": "{}"}), "charx_missing"),
        ("x.charx", charx({"card.json": "[]"}), "card_not_object"),
        ("x.charx", charx({"card.json": "{}"}), "card_no_character"),
        ("x.charx", charx({"card.json": "{}"})[:-30], "charx_damaged"),
        ("x.json", b"[1, 2]", "card_not_object"),
        ("x.json", b'{"name": ', "card_bad_json"),
        ("x.json", b'{"name": NaN}', "card_bad_json"),
        ("x.json", b'{"name": "a", "x": 1e999}', "card_bad_json"),
        ("x.json", b'{"a":' * 100_000, "card_bad_json"),
        ("x.json", b'{"a":' * 100 + b"1" + b"}" * 100, "card_too_complex"),
        ("x.json", b'{"port": 1}', "card_no_character"),
        ("x.jsonl", b'{"user_name": "Tom"}\n{"name": "Rosa", "mes": "Hi"}', "card_is_chat"),
        ("x.json", b'{"uuid": "1", "name": "A talk", "chat_messages": []}', "card_is_chat"),
        ("x.json", b'{"title": "A talk", "mapping": {}}', "card_is_chat"),
        ("\u200b.json", text(V2 | {"data": V2_DATA | {"name": " "}}), "character_no_name"),
        ("x.json", text({"name": "\U0001f600" * 300, "greeting": ""}), "character_long_name"),
        ("x.yaml", b"- name: x\n- name: y\n", "card_not_object"),
        ("x.yaml", b"just words", "card_not_object"),
        ("x.yaml", b"name: a\n---\nname: b\n", "card_not_object"),
        ("x.yaml", b"name: [", "card_bad_yaml"),
        ("x.yaml", b"name: !!python/object/apply:os.system ['true']", "card_yaml_tag"),
        ("x.yaml", b"name: !mine x", "card_yaml_tag"),
        ("x.yaml", b"name: !!int x", "card_yaml_tag"),
        ("x.yaml", BOMB_TEXT.encode(), "card_too_complex"),
        ("x.yaml", b"name: &a [*a]", "card_too_complex"),
        ("x.yaml", b"name: " + b"[" * 5000, "card_too_complex"),
        ("x.yaml", b"\x80\x81\x82", "card_no_text"),
        ("\u202e.yaml", b"greeting: hello", "character_no_name"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(name: str, content: bytes, key: str) -> None:
    assert refused(name, content) == key


def test_an_encrypted_charx_file_is_refused() -> None:
    content = bytearray(charx({"card.json": json.dumps(V3)}))
    place = content.index(b"PK\x01\x02")
    content[place + 8] |= 1
    assert refused("x.charx", bytes(content)) == "charx_encrypted"


def test_a_file_that_cannot_be_read_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CharacterError) as missing:
        read_path(tmp_path / "none.png")
    assert missing.value.key == "card_no_file"
    for path in (tmp_path, tmp_path / ("x" * 300), Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(CharacterError) as caught:
            read_path(path)
        assert caught.value.key == "unreadable"


def test_yaml_means_what_people_wrote() -> None:
    values = parse_yaml("x", "a: yes\nb: 2024-01-01\nc: 010\nd: true\ne: 1.5\nf:\n1: one\n<<: x\n")
    assert values == {"a": "yes", "b": "2024-01-01", "c": "010", "d": True, "e": 1.5, "f": None, "1": "one", "<<": "x"}


def test_half_characters_do_not_stop_a_card() -> None:
    character = read_card("x.json", b'{"name": "A\\ud800", "first_mes": "\\ud83d\\ude00"}').character
    assert (character.name, character.greeting) == ("A\ufffd", "\U0001f600")


SEEDS = (
    PICTURE, png_card(V2), with_chunks(text_chunk(b"zTXt", "chara", encoded(V3))), text(V1), text(V2), text(V3),
    WEBUI.encode(), BOMB_TEXT.encode(), charx({"card.json": json.dumps(V3), "a": "b"}),
    with_chunks(text_chunk(b"iTXt", "ccv3", encoded(V3)), after_pixels=True),
)  # fmt: skip


def mutated(content: bytes, source: random.Random) -> bytes:
    """Some bytes changed, taken out, doubled, or put in from elsewhere."""
    changed = bytearray(content)
    for _ in range(source.randint(1, 6)):
        first = source.randrange(len(changed) + 1)
        last = min(first + source.choice((1, 1, 4, 50)), len(changed))
        new = source.choice((b"", source.randbytes(last - first), changed[first:last] * 2, b"{", b"&a *a", b"\0\xff"))
        changed[first:last] = new
    return bytes(changed)


def repaired(png: bytes) -> bytes:
    """The same with right checksums, so that what lies behind them is reached."""
    found, place = SIGNATURE, len(SIGNATURE)
    while place + 8 <= len(png):
        length = struct.unpack(">I", png[place : place + 4])[0] % (len(png) - place)
        found += chunk(png[place + 4 : place + 8], png[place + 8 : place + 8 + length])
        place += 12 + length
    return found


def test_no_mutated_file_gives_more_than_a_sentence() -> None:
    source, num_read, num_refused = random.Random(7), 0, 0
    for number in range(6000):
        content = mutated(SEEDS[number % len(SEEDS)], source)
        if content.startswith(SIGNATURE) and number % 3:
            content = repaired(content)
        try:
            card = read_card("x", content)
            write_file(card.character), write(card.character, card.picture or PICTURE, "png")
            num_read += 1
        except DeckError as error:
            assert str(error)
            num_refused += 1
    assert num_read > 50 and num_refused > 2000


def test_a_zip_whose_directory_lies_about_sizes_is_refused() -> None:
    content = bytearray(charx({"card.json": " " * 4_000_000 + json.dumps(V3)}))
    place = content.index(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<I", 100)
    assert refused("x.charx", bytes(content)) == "charx_damaged"
    assert zipfile.is_zipfile(io.BytesIO(bytes(content)))
