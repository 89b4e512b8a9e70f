"""docs/characters.md names what the code knows of cards, and says of nothing else that it has an effect."""

from __future__ import annotations

import re

import pytest

from core.common.paths import ROOT
from core.personas import attached, decorators, macro_names, notices, sillytavern
from core.personas.fields import CARD_FIELDS, OTHER_CARD_FIELDS
from core.personas.formats import OWN
from core.personas.lore_editing import BOOK_KEYS
from core.personas.translations import TRANSLATIONS

DOCUMENT = (ROOT / "docs" / "characters.md").read_text("utf-8")
NAME = re.compile(r"`([^`]+)`")


def rows(section: str) -> dict[str, str]:
    """What the table of a section says of each name, and each name once."""
    part = DOCUMENT.split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = [line.strip("|").split(" | ", 1) for line in part.splitlines() if line.startswith("| ")][1:]
    named = [(name, effect.strip(" |")) for names, effect in cells for name in NAME.findall(names)]
    assert len(dict(named)) == len(named)
    return dict(named)


@pytest.mark.parametrize(
    ("section", "known"),
    [
        ("Fields of a card", {*CARD_FIELDS, *OTHER_CARD_FIELDS}),
        ("Extensions of a card", {"depth_prompt", attached.WORLD, f"{OWN}.{attached.KEY}", f"{OWN}.{TRANSLATIONS}"}),
        ("A lorebook", {*BOOK_KEYS, "extensions"} - {"description"}),
        ("An entry", sillytavern.CARD_FIELDS - {"id"}),
        ("SillyTavern's fields of an entry", {one.in_card for one in sillytavern.ENTRY_FIELDS if one.has_effect}),
        ("Decorators", set(decorators.KNOWN)),
    ],
)  # fmt: skip
def test_what_has_an_effect_is_what_the_code_knows(section: str, known: set[str]) -> None:
    said = {name for name, effect in rows(section).items() if not effect.startswith("kept")}
    assert said == known - {"display_index"}


def test_what_is_named_at_import_is_said_to_be() -> None:
    named = {name for name, effect in rows("Extensions of a card").items() if effect == "kept, named at import"}
    assert named == set(notices.CARD_EXTENSIONS)
    fields = rows("SillyTavern's fields of an entry")
    assert {name for name, effect in fields.items() if effect == "kept, named at import"} == {
        one.in_card for one in sillytavern.ENTRY_FIELDS if not one.has_effect
    }
    assert set(fields) == {one.in_card for one in sillytavern.ENTRY_FIELDS}
    for field in sillytavern.ENTRY_FIELDS:
        assert f"| `{field.in_card}` ({field.in_world}) |" in DOCUMENT
    kept = {name for name, effect in rows("Decorators").items() if effect == "kept"}
    assert kept == set(decorators.NOT_IN_CHATS)


def test_every_macro_is_in_the_table() -> None:
    known = macro_names.VALUE_MACROS | macro_names.ARGUMENT_MACROS | macro_names.EMPTY_MACROS | set(macro_names.ALIASES)
    assert set(rows("Macros")) == known
