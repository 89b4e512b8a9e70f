"""Lorebooks as other programs read them: what comes in goes out again, with nothing lost."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from core.personas.lore_entry import read_entries
from core.personas.lorebook_formats import read_book
from core.personas.lorebook_writing import write_v3, write_world_info
from core.personas.sillytavern import ENTRY_FIELDS
from tests.support.lorebooks import RISU_ENTRY, VALUES, WORLD_INFO

FIELDS = {one.in_world: VALUES for one in ENTRY_FIELDS if one.in_card != "position"} | {
    "key": st.lists(st.text(max_size=5), max_size=2),
    "keysecondary": VALUES,
    "content": VALUES,
    "comment": VALUES,
    "constant": VALUES,
    "order": VALUES,
    "disable": st.booleans(),
    "position": st.integers(0, 7),
    "addMemo": VALUES,
    "characterFilter": VALUES,
    "own": VALUES,
}
OTHERS = {name: values for name, values in FIELDS.items() if name != "key"}
WORLDS = st.lists(st.fixed_dictionaries({"key": FIELDS["key"]}, optional=OTHERS), max_size=2)


def written(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The lorebook of a file, as world info and as V3's."""
    book = read_book(json.loads(json.dumps(values)))
    assert book is not None
    return write_world_info(book), write_v3(book)


@settings(max_examples=40)
@given(WORLDS)
def test_every_field_of_world_info_goes_out_as_it_came(entries: list[dict[str, Any]]) -> None:
    given_entries = {str(uid): one | {"uid": uid} for uid, one in enumerate(entries)}
    world, v3 = written({"entries": given_entries, "originalData": {"x": [1]}})
    assert world["originalData"] == {"x": [1]}
    for uid, one in given_entries.items():
        assert one.items() <= world["entries"][uid].items()
    again, _ = written(world)
    assert again == world
    through, _ = written(json.loads(json.dumps(v3)))
    assert all(one.items() <= through["entries"][uid].items() for uid, one in world["entries"].items())


def test_what_sillytavern_looks_for_is_always_there() -> None:
    world, _ = written({"entries": [{"keys": ["a"], "content": "x", "position": "before_char"}]})
    [entry] = world["entries"].values()
    assert {one.in_world for one in ENTRY_FIELDS} | {"uid", "key", "keysecondary", "order", "disable"} <= entry.keys()
    assert (entry["position"], entry["disable"], entry["useProbability"]) == (0, False, True)


def test_bare_patterns_are_written_as_sillytavern_writes_them() -> None:
    entry = {"keys": ["be+s", "a/b", r"c\/d", "/x/i"], "content": "x", "use_regex": True}
    world, _ = written({"entries": [entry]})
    assert world["entries"]["0"]["key"] == ["/be+s/i", r"/a\/b/i", r"/c\/d/i", "/x/i"]
    world, _ = written({"entries": [entry | {"case_sensitive": True}]})
    assert world["entries"]["0"]["key"][0] == "/be+s/" and world["entries"]["0"]["caseSensitive"] is True
    # The same in both forms: SillyTavern's entries are matched by its rules already.
    world, _ = written({"entries": [entry | {"extensions": {"selectiveLogic": 0}}]})
    assert world["entries"]["0"]["key"] == entry["keys"]


def test_entries_of_one_number_get_numbers_of_their_own() -> None:
    entries = [
        {"keys": [], "content": name, "id": number} for name, number in zip("abcd", (None, 0, 3, 3), strict=True)
    ]
    world, _ = written({"entries": entries})
    assert [(key, one["uid"], one["content"]) for key, one in world["entries"].items()] == [
        ("1", 1, "a"),
        ("0", 0, "b"),
        ("3", 3, "c"),
        ("2", 2, "d"),
    ]


def test_other_programs_entries_mean_the_same_in_both_forms() -> None:
    for values in ({"type": "risu", "data": [RISU_ENTRY | {"useRegex": False}]}, WORLD_INFO):
        world, v3 = written(values)
        one, other = read_book(world), read_book(v3)
        assert one is not None and other is not None
        assert [(e.title, e.text, e.is_constant, e.is_enabled, e.order) for e in read_entries(one)] == [
            (e.title, e.text, e.is_constant, e.is_enabled, e.order) for e in read_entries(other)
        ]


def test_a_v3_entry_has_the_fields_that_its_specification_wants() -> None:
    _, v3 = written({"entries": [{"content": "x"}, "none"], "strange": 1})
    assert v3["spec"] == "lorebook_v3" and v3["data"]["strange"] == 1 and v3["data"]["entries"][1] == "none"
    assert {"keys", "content", "extensions", "enabled", "insertion_order", "use_regex"} <= v3["data"]["entries"][
        0
    ].keys()


def test_what_stands_around_a_v3_lorebook_is_kept() -> None:
    _, v3 = written({"spec": "lorebook_v3", "data": {"entries": []}, "exporter": "X"})
    assert v3["data"]["extensions"]["file"] == {"exporter": "X"}
